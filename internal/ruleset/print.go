package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weir/internal/model"
)

// String returns the whole ruleset as nft syntax; `nft -f` loads it unchanged.
func (r *Ruleset) String() string {
	var b strings.Builder
	for i, t := range r.Tables {
		if i > 0 {
			b.WriteByte('\n')
		}
		t.print(&b)
	}
	return b.String()
}

func (t *Table) print(b *strings.Builder) {
	fmt.Fprintf(b, "table %s %s {\n", t.Family, t.Name)
	sep := ""
	if t.Owned {
		b.WriteString("\tflags owner\n")
		sep = "\n"
	}
	for _, o := range t.Timeouts {
		b.WriteString(sep)
		sep = "\n"
		o.print(b)
	}
	for _, s := range t.Sets {
		b.WriteString(sep)
		sep = "\n"
		s.print(b)
	}
	for _, c := range t.Chains {
		b.WriteString(sep)
		sep = "\n"
		c.print(b)
	}
	b.WriteString("}\n")
}

func (c *Chain) print(b *strings.Builder) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Base != nil {
		fmt.Fprintf(b, "\t\t%s\n", c.Base)
	}
	for i := range c.Rules {
		fmt.Fprintf(b, "\t\t%s\n", &c.Rules[i])
	}
	b.WriteString("\t}\n")
}

// String returns the line that makes a chain a base chain.
func (b *Base) String() string {
	device := ""
	if b.Device != "" {
		device = ` device "` + b.Device + `"`
	}
	return fmt.Sprintf("type %s hook %s%s priority %d; policy accept;", b.Type, b.Hook, device, b.Priority)
}

// word returns "map" or "set".
func (s *Set) word() string {
	if s.IsMap() {
		return "map"
	}
	return "set"
}

func (s *Set) print(b *strings.Builder) {
	fmt.Fprintf(b, "\t%s %s {\n", s.word(), s.Name)
	for _, line := range s.spec() {
		fmt.Fprintf(b, "\t\t%s\n", line)
	}
	if s.Len() > 0 {
		const sep = ",\n\t\t\t     "
		b.WriteString("\t\telements = { ")
		s.printElems(b, partElems(s), sep)
		for i, p := range s.Packed {
			if i > 0 {
				b.WriteString(sep)
			}
			s.printPacked(b, p, nil, sep)
		}
		b.WriteString(" }\n")
	}
	b.WriteString("\t}\n")
}

// spec returns the lines that declare the set, in the order in which nft lists them.
func (s *Set) spec() []string {
	lines := []string{s.typeLine()}
	if s.Size > 0 {
		lines = append(lines, "size "+strconv.Itoa(s.Size))
	}
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{{s.Range, "interval"}, {s.Dynamic, "dynamic"}, {s.Timeout, "timeout"}} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	if len(flags) > 0 {
		lines = append(lines, "flags "+strings.Join(flags, ","))
	}
	if s.Counter {
		lines = append(lines, "counter")
	}
	return lines
}

func (s *Set) typeLine() string {
	typeOf := false
	for _, t := range append(s.Key[:len(s.Key):len(s.Key)], s.Data...) {
		typeOf = typeOf || typeInfo[t].name == ""
	}
	line := "type "
	if typeOf {
		line = "typeof "
	}
	line += s.Key.names(typeOf)
	switch {
	case s.Verdict:
		line += " : verdict"
	case len(s.Data) > 0:
		line += " : " + s.Data.names(typeOf)
	}
	return line
}

func (ts Types) names(typeOf bool) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = typeInfo[t].name
		if typeOf {
			names[i] = typeInfo[t].typeOf
		}
	}
	return strings.Join(names, " . ")
}

func (s *Set) printElems(b *strings.Builder, elems []Element, sep string) {
	for i := range elems {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(s.ElementText(&elems[i]))
	}
}

func (s *Set) printPacked(b *strings.Builder, p *Packed, counts []Count, sep string) {
	for i := range p.Len() {
		if i > 0 {
			b.WriteString(sep)
		}
		e, with := p.Elem(i), ""
		if counts != nil {
			with = counts[i].String()
		}
		b.WriteString(s.elementText(&e, with))
	}
}

// ElementText returns the element in nft syntax: "198.51.100.10 . tcp . 80 : goto web".
func (s *Set) ElementText(e *Element) string {
	return s.elementText(e, "")
}

// elementText puts what is said of the element itself, say a counter, behind its key.
func (s *Set) elementText(e *Element, with string) string {
	text := s.Key.Text(e.Key, e.KeyEnd) + with
	switch {
	case s.Verdict:
		text += " : " + stmtText(e.Jump.Verdict())
	case len(s.Data) > 0:
		text += " : " + s.Data.Text(e.Data, "")
	}
	return text
}

// Text returns the value in nft syntax. Where end is given, fields that differ print as
// ranges.
func (ts Types) Text(lo, end string) string {
	var parts []string
	for _, t := range ts {
		text := t.text(lo[:t.Size()])
		if end != "" {
			if hi := t.text(end[:t.Size()]); hi != text {
				text += "-" + hi
			}
			end = end[t.Padded():]
		}
		parts = append(parts, text)
		lo = lo[t.Padded():]
	}
	return strings.Join(parts, " . ")
}

func (t Type) text(v string) string {
	switch t {
	case IPv4Addr, IPv6Addr:
		a, _ := netip.AddrFromSlice([]byte(v))
		return a.String()
	case Protocol:
		return model.Proto(v[0]).String()
	case Port:
		return strconv.Itoa(int(v[0])<<8 | int(v[1]))
	case IfName:
		return `"` + DeviceOf(v) + `"`
	case TCPFlagByte:
		return flagsText(v[0])
	case ICMPTypeByte, ICMP6TypeByte:
		return strconv.Itoa(int(v[0]))
	case MarkBits:
		return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32([]byte(v)))
	case RouteType:
		return routeTypeText(v)
	}
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32([]byte(v))), 10)
}

func dirName(d uint8) string {
	if d == 0 {
		return "original"
	}
	return "reply"
}

// duration prints whole seconds, or milliseconds where there is a rest, as nft reads them.
func duration(d time.Duration) string {
	if ms := d.Milliseconds(); ms%1000 != 0 {
		return strconv.FormatInt(ms, 10) + "ms"
	}
	return strconv.FormatInt(int64(d/time.Second), 10) + "s"
}

// String returns the rule in nft syntax, with the comment that carries its words and its
// fingerprint.
func (r *Rule) String() string {
	return r.body() + ` comment "` + r.FullComment() + `"`
}

// FullComment returns what is stored with the rule: its words and its fingerprint.
func (r *Rule) FullComment() string {
	if r.Comment == "" {
		return "#" + r.Fingerprint()
	}
	return r.Comment + " #" + r.Fingerprint()
}

// CommentFingerprint returns the fingerprint in a comment that FullComment made, or "".
func CommentFingerprint(comment string) string {
	i := strings.LastIndexByte(comment, '#')
	if i < 0 || len(comment)-i-1 != 16 {
		return ""
	}
	return comment[i+1:]
}

func (r *Rule) body() string {
	parts := make([]string, len(r.Stmts))
	for i, s := range r.Stmts {
		parts[i] = stmtText(s)
	}
	return strings.Join(parts, " ")
}

func stmtText(s Stmt) string {
	switch s := s.(type) {
	case Match:
		return fieldInfo[s.Field].text + " " + s.valueText()
	case StatusDNAT:
		return "ct status dnat"
	case NotLoopback:
		return `meta iif != "lo"`
	case NoSYN:
		return "tcp flags & syn == 0"
	case Notrack:
		return "notrack"
	case CtState:
		return "ct state " + s.States.String()
	case OnLoopback:
		if s.Out {
			return `meta oif "lo"`
		}
		return `meta iif "lo"`
	case OutDevice:
		return `oifname "` + s.Name + `"`
	case InDevice:
		return `iifname "` + s.Name + `"`
	case IsEther, ToThisHost, Whole, Counting, Fwd, SendOn, HopsLeft:
		return directText(s)
	case RateUnder:
		return s.text()
	case NotInSet:
		return s.Key.String() + " != @" + s.Set
	case IsSYN:
		return "tcp flags & (fin | syn | rst | ack) == syn"
	case SynProxy:
		return s.text()
	case MarkIs:
		return s.text()
	case SetMark:
		return s.text()
	case Queue:
		return s.text()
	case SetTimeouts:
		return `ct timeout set "` + s.Name + `"`
	case ClampMSS:
		return "tcp option maxseg size set rt mtu"
	case SourceKept:
		return "ct status & snat == 0"
	case CameIn:
		return "meta iif != 0"
	case InSet:
		return s.Key.String() + " @" + s.Set
	case VMap:
		return s.Key.String() + " vmap @" + s.Map
	case Update:
		return s.text()
	case CountOver:
		return fmt.Sprintf("add @%s { %s ct count over %d }", s.Set, s.Key, s.Limit)
	case Expires:
		op := "<"
		if s.AtLeast {
			op = ">="
		}
		return "ct expiration " + op + " " + duration(s.Time)
	case TCPFlags:
		return "tcp flags " + s.names()
	case DNAT:
		return s.text()
	case SNAT:
		return s.text()
	case Masquerade:
		return s.text()
	case FirstSNAT:
		return "ct status & (snat | confirmed) == snat"
	case RejectWith:
		if s.TCPReset {
			return "reject with tcp reset"
		}
		if s.Prohibited {
			return "reject with icmpx admin-prohibited"
		}
		return "reject with icmpx port-unreachable"
	case Verdict:
		if s.Chain != "" {
			return string(s.Kind) + " " + s.Chain
		}
		return string(s.Kind)
	}
	if text, ok := mirrorText(s); ok {
		return text
	}
	panic(fmt.Sprintf("ruleset: statement %T has no text", s))
}

func (m Match) valueText() string {
	switch m.Field {
	case NFProto:
		if m.Value == nfprotoIPv4 {
			return "ipv4"
		}
		return "ipv6"
	case CtDirection:
		return dirName(m.Value)
	}
	return model.Proto(m.Value).String()
}

func (f TCPFlags) names() string { return strings.Join(f.words(), ",") }

func (f TCPFlags) words() []string {
	var out []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func (u Update) text() string {
	text := "update @" + u.Set + " { " + u.Key.String()
	if u.Timeout > 0 {
		text += " timeout " + duration(u.Timeout)
	}
	if u.Data != nil {
		text += " : " + exprText(u.Data)
	}
	return text + " }"
}

func (d DNAT) text() string {
	text := "dnat " + d.Family.String()
	if d.WithPort {
		text += " addr . port"
	}
	text += " to " + exprText(d.To)
	if d.Port != nil {
		text += " : " + exprText(d.Port)
	}
	return text
}

// String returns the key in nft syntax, its parts joined by " . ".
func (k Key) String() string {
	parts := make([]string, len(k))
	for i, e := range k {
		parts[i] = exprText(e)
	}
	return strings.Join(parts, " . ")
}

func exprText(e Expr) string {
	switch e := e.(type) {
	case Field:
		return fieldInfo[e].text
	case Numgen:
		kind := "inc"
		if e.Random {
			kind = "random"
		}
		return fmt.Sprintf("numgen %s mod %d%s", kind, e.Mod, offset(e.Offset))
	case Hash:
		return fmt.Sprintf("jhash %s mod %d seed 0x%x%s", e.Key, e.Mod, e.Seed, offset(e.Offset))
	case MapGet:
		return e.Key.String() + " map @" + e.Map
	case Masked:
		return e.text()
	case Mark:
		return e.text()
	case Concat:
		parts := make([]string, len(e))
		for i, f := range e {
			parts[i] = exprText(f)
		}
		return strings.Join(parts, " . ")
	case FixedPort:
		return strconv.Itoa(int(e))
	}
	panic(fmt.Sprintf("ruleset: expression %T has no text", e))
}

func offset(n uint32) string {
	if n == 0 {
		return ""
	}
	return " offset " + strconv.FormatUint(uint64(n), 10)
}
