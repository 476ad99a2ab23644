package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// edgeReader is the access policy while it is read.
type edgeReader struct {
	there bool           // the key was there
	names map[string]int // of open rules: name to line
	rules []openReader
}

// openReader is a rule and what its parts need to be checked against each other.
type openReader struct {
	*model.OpenRule
	at                 yaml.Pos
	w                  where
	from, to           place
	hasTo, hasOut, bad bool
}

// The words of the keys policy and invalid_flags.
var policyWords = []string{"accept", "drop"}

// edge reads the access policy.
func (d *decoder) edge(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a mapping with the keys %s", describe(n), strings.Join(edgeAllowed, ", "))
		return
	}
	e := &model.Edge{}
	d.cfg.Edge = e
	var policy, flags bool
	var open yaml.Node
	for k, v := range n.Pairs() {
		switch w := w.in(k.Text()); k.Text() {
		case "policy":
			i, ok := d.word(v, w, policyWords)
			policy, e.Drop = true, ok && i == 1
		case "invalid_flags":
			i, ok := d.word(v, w, policyWords)
			flags, e.DropInvalidFlags = true, ok && i == 1
		case "management":
			e.Management = d.prefixes(v, w)
		case "open":
			open = k
			d.open(e, v, w)
		default:
			d.unknown(k, top("edge"), edgeAllowed)
		}
	}
	if !flags {
		e.DropInvalidFlags = e.Drop
	}
	if !policy && open != (yaml.Node{}) {
		d.addf(open, w, "key policy is missing; open rules open nothing with policy: accept, the default; want policy: drop, or say policy: accept")
	}
}

// open reads the open rules.
func (d *decoder) open(e *model.Edge, n yaml.Node, w where) {
	if n.Kind() != yaml.Sequence {
		d.addf(n, w, "%s is not allowed; want a list of rules, such as [{to: box, from: [10.0.0.0/8], ports: [22/tcp]}]", describe(n))
		return
	}
	if n.Len() > model.MaxOpen {
		d.addf(n, w, "%d rules; allowed: up to %d", n.Len(), model.MaxOpen)
		return
	}
	d.edges.names = map[string]int{}
	for i, c := range n.Items() {
		if r := d.openRule(i, c, w.at(i)); r != nil {
			e.Open = append(e.Open, r)
		}
	}
}

func (d *decoder) openRule(i int, n yaml.Node, w where) *model.OpenRule {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a rule with the keys %s", describe(n), strings.Join(openAllowed, ", "))
		return nil
	}
	r := openReader{OpenRule: &model.OpenRule{Name: fmt.Sprintf("open[%d]", i)}, at: n.Pos(), w: w}
	before := len(d.problems)
	for k, v := range n.Pairs() {
		switch w := w.of(k.Text()); k.Text() {
		case "name":
			d.openName(r.OpenRule, v, w)
		case "in":
			d.deviceWords(&r.In, v, w)
		case "out":
			r.hasOut = true
			d.deviceWords(&r.Out, v, w)
		case "from":
			r.from = place{v.Pos(), w}
			r.From = d.prefixes(v, w)
		case "to":
			r.hasTo, r.to = true, place{v.Pos(), w}
			switch text := v.Kind() == yaml.String; {
			case text && v.Text() == "box":
				r.Box = true
			case text && strings.EqualFold(v.Text(), "box"):
				d.addf(v, w, "%s is not allowed; did you mean box?", quote(v.Text()))
			default:
				r.To = d.prefixes(v, w)
			}
		case "ports":
			d.openPorts(r.OpenRule, v, w)
		case "protocols":
			d.openProtocols(r.OpenRule, v, w)
		default:
			d.unknown(k, w.of(""), openAllowed)
		}
	}
	slices.SortStableFunc(r.Traffic, func(a, b model.Traffic) int { // the order of the keys does not matter
		return cmp.Compare(b2i(a.Ports.IsZero()), b2i(b.Ports.IsZero()))
	})
	r.bad = len(d.problems) > before
	d.checkOpen(&r)
	d.edges.rules = append(d.edges.rules, r)
	return r.OpenRule
}

// checkOpen holds the parts of a rule against each other.
func (d *decoder) checkOpen(r *openReader) {
	switch {
	case r.bad:
	case r.Box && r.hasOut:
		d.add(r.to.at, r.to.w, "box", "what goes to the box leaves by no device; want to: box or out, not both")
	case !r.hasTo && !r.hasOut:
		d.add(r.at, r.w, "", "neither to nor out is said; want to: box for packets to this machine, out (devices) or to (prefixes) for those that pass through it")
	case len(r.From) > 0 && len(r.To) > 0 && !slices.Equal(familiesOf(r.From), familiesOf(r.To)):
		d.add(r.to.at, r.to.w, "", "from and to are not of the same families: no packet goes from an IPv4 to an IPv6 address; want prefixes of one family in both, or of both in both")
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func familiesOf(list []netip.Prefix) []model.Family {
	return (&model.OpenRule{From: list}).Families()
}

func (d *decoder) openName(r *model.OpenRule, n yaml.Node, w where) {
	s, ok := d.str(n, w, "a name"+inQuotes)
	if !ok {
		return
	}
	if why := badName(s); why != "" {
		d.addf(n, w, "%s is not a name: %s", quote(s), why)
		return
	}
	if line := d.edges.names[s]; line != 0 {
		d.addf(n, w, "name %s is there twice; it was first given in line %d", quote(s), line)
		return
	}
	d.edges.names[s] = n.Pos().Line
	r.Name = s
}

// oneOrEach calls fn for the one value that n is, or for each of the list.
func (d *decoder) oneOrEach(n yaml.Node, w where, what string, fn func(yaml.Node, where)) {
	if n.Kind() != yaml.Sequence {
		fn(n, w)
		return
	}
	if n.Len() == 0 {
		d.addf(n, w, "a list without entries is not allowed; want %s, or leave the key out", what)
	}
	for i, c := range n.Items() {
		if w.field != "" {
			fn(c, w.entry(i))
		} else {
			fn(c, w.at(i))
		}
	}
}

const prefixForm = "prefixes such as 10.0.0.0/8 or 2001:db8::/32, or single addresses"

// prefixes reads prefixes none of which is in another.
func (d *decoder) prefixes(n yaml.Node, w where) []netip.Prefix {
	var out []netip.Prefix
	d.oneOrEach(n, w, prefixForm, func(n yaml.Node, w where) {
		s, ok := d.str(n, w, prefixForm)
		if !ok {
			return
		}
		p, why := exactPrefix(s)
		if why != "" {
			d.addf(n, w, "%s", why)
			return
		}
		if i := slices.IndexFunc(out, p.Overlaps); i >= 0 {
			d.addf(n, w, "%s and %s of the same list overlap; the wider one is enough", p, out[i])
			return
		}
		out = append(out, p)
	})
	return out
}

// exactPrefix reads a prefix without host bits, or an address.
func exactPrefix(s string) (netip.Prefix, string) {
	if !strings.Contains(s, "/") {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
			return netip.PrefixFrom(a, a.BitLen()), ""
		}
		return netip.Prefix{}, quote(s) + " is neither a prefix nor an address; want " + prefixForm
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, quote(s) + " is not a prefix; want " + prefixForm
	case p.Addr().Is4In6():
		return p, quote(s) + " is an IPv4 prefix in IPv6 form; write it as IPv4"
	case p != p.Masked():
		return p, fmt.Sprintf("%s has bits behind its length; want %s, or the address alone", quote(s), p.Masked())
	}
	return p, ""
}

const trafficForm = `PORTS/PROTOCOL, such as "22/tcp", "80,443/tcp" or "8000-8010/udp"`

func (d *decoder) openPorts(r *model.OpenRule, n yaml.Node, w where) {
	d.oneOrEach(n, w, trafficForm, func(n yaml.Node, w where) {
		s, ok := d.str(n, w, trafficForm)
		if !ok {
			return
		}
		ports, word, has := strings.Cut(s, "/")
		if !has {
			d.addf(n, w, "%s has no protocol; want %s", quote(s), trafficForm)
			return
		}
		proto, why := parseProto(word)
		for part := range strings.SplitSeq(ports, ",") {
			var p model.PortRange
			if why == "" {
				p, why = parsePorts(part)
			}
			if why == "" {
				why = addTraffic(r, model.Traffic{Proto: proto, Ports: p})
			}
		}
		if why != "" {
			d.addf(n, w, "%s: %s; want %s", quote(s), why, trafficForm)
		}
	})
}

// addTraffic adds t to the rule, or says why not.
func addTraffic(r *model.OpenRule, t model.Traffic) string {
	for _, o := range r.Traffic {
		if o.Proto == t.Proto && (o.Ports.IsZero() || t.Ports.IsZero() || o.Ports.Overlaps(t.Ports)) {
			return fmt.Sprintf("%s is in this rule already", cmp.Or(o.Ports.String(), "all")+"/"+o.Proto.String())
		}
	}
	r.Traffic = append(r.Traffic, t)
	return ""
}

// openProtos are the names that the key protocols knows, beside numbers.
var openProtos = []struct {
	word  string
	proto model.Proto
}{
	{"icmp", 1}, {"igmp", 2}, {"ipip", 4}, {"tcp", 6}, {"udp", 17}, {"ipv6", 41}, {"gre", 47}, {"esp", 50},
	{"ah", 51}, {"icmpv6", 58}, {"ospf", 89}, {"vrrp", 112}, {"sctp", 132},
}

func openProtoWords() []string {
	words := make([]string, len(openProtos))
	for i, p := range openProtos {
		words[i] = p.word
	}
	return words
}

// openProtocols reads protocols as a whole, by name or number.
func (d *decoder) openProtocols(r *model.OpenRule, n yaml.Node, w where) {
	d.oneOrEach(n, w, "protocols, by name or number", func(n yaml.Node, w where) {
		var proto model.Proto
		before := len(d.problems)
		if n.Kind() == yaml.Int {
			proto = model.Proto(d.number(n, w, 1, 255))
		} else if i, ok := d.word(n, w, openProtoWords()); ok {
			proto = openProtos[i].proto
		}
		if len(d.problems) > before {
			return
		}
		if why := addTraffic(r, model.Traffic{Proto: proto}); why != "" {
			d.addf(n, w, "%s", why)
		}
	})
}

// finishEdge counts what the rules stand for.
func (d *decoder) finishEdge() {
	all := 0
	for _, r := range d.edges.rules {
		n := max(1, len(r.In)) * max(1, len(r.Out)) * max(1, len(r.From)) * max(1, len(r.To)) * max(1, len(r.Traffic))
		if all += n; all > model.MaxOpenings {
			d.add(r.at, r.w, "", fmt.Sprintf("more than %d combinations of devices, prefixes and ports in all open rules", model.MaxOpenings))
			return
		}
	}
}
