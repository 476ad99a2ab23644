package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// Limits of checks.
const (
	maxLine     = 2048 // bytes of path, host, method and domain name, some of which take less
	maxAnswer   = 1024 // bytes of body, send and expect, and of the name of a gRPC service
	maxStatuses = 32   // codes and ranges of status
	maxArgs     = 64   // of a command, which is one of them
	maxArg      = 4096 // bytes of each
)

// just reads the key of a kind that needs to be told no more.
func (r *checkReader) just(n yaml.Node, w where) {
	if n.Kind() != yaml.Bool || !strings.EqualFold(n.Text(), "true") {
		r.addf(n, w, "%s is not allowed; want true", describe(n))
	}
}

func (r *checkReader) timeout(n yaml.Node, w where) {
	r.timeoutAt = place{n.Pos(), w}
	r.c.Timeout = r.duration(n, w, timeoutSpan)
}

// text reads text of at most most bytes. bad says why it is wrong, "" when it is not.
func (r *checkReader) text(n yaml.Node, w where, most int, want string, bad func(string) string) string {
	s, ok := r.str(n, w, want)
	if !ok {
		return ""
	}
	if len(s) > most {
		r.addf(n, w, "%d bytes are too long; allowed: up to %d", len(s), most)
		return ""
	}
	if why := bad(s); why != "" {
		r.addf(n, w, "%s %s", quote(s), why)
		return ""
	}
	return s
}

func (r *checkReader) path(n yaml.Node, w where) {
	r.c.Path = r.text(n, w, maxLine, "a path, such as /healthz", func(s string) string {
		if !strings.HasPrefix(s, "/") {
			return "is not a path; it must begin with a slash, such as /healthz"
		}
		for _, c := range s {
			if c <= ' ' || c > '~' {
				return fmt.Sprintf("is not a path: character %s is not allowed; write it as %s", strconv.QuoteRuneToASCII(c), percentEncoded(c))
			}
		}
		return ""
	})
}

// percentEncoded writes a character as RFC 3986 section 2.1 has it.
func percentEncoded(c rune) string {
	out := ""
	for _, b := range []byte(string(c)) {
		out += fmt.Sprintf("%%%02X", b)
	}
	return out
}

// host reads a name or an address. An IPv6 address gets its brackets, which the Host
// header wants.
func (r *checkReader) host(n yaml.Node, w where) {
	r.c.Host = r.text(n, w, maxLine, "a host name or an address, such as www.example.org", badHost)
	inner := strings.TrimSuffix(strings.TrimPrefix(r.c.Host, "["), "]")
	if a, err := netip.ParseAddr(inner); err == nil {
		if r.c.Host = a.String(); a.Is6() {
			r.c.Host = "[" + a.String() + "]"
		}
	}
}

func badHost(s string) string {
	const want = "; want a host name or an address without a port, such as www.example.org"
	inner, bracket := strings.CutPrefix(s, "[")
	if bracket {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed || !strings.Contains(inner, ":") {
			return "is not a host" + want
		}
	}
	if a, err := netip.ParseAddr(inner); err == nil {
		if a.Zone() != "" {
			return "has a zone, which is not allowed"
		}
		return ""
	}
	if why := badDNSName(s); why != "" || s[len(s)-1] == '.' {
		return "is not a host name" + want
	}
	if last := s[strings.LastIndexByte(s, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "is no address, and a host name does not end with a number" + want
	}
	return ""
}

// badDNSName says why s is no domain name (RFC 1035 section 2.3.4, with the underscores
// of RFC 8552); "." is the root, and a dot at the end is allowed.
func badDNSName(s string) string {
	const allowed = "is not a domain name; allowed: up to 253 bytes, of parts of 1 to 63 letters, digits, dashes and underscores with dots between them, such as example.org"
	if s == "." {
		return ""
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return allowed
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return allowed
		}
		for _, c := range []byte(label) {
			if !letter(c) && (c < '0' || c > '9') && c != '-' && c != '_' {
				return allowed
			}
		}
	}
	return ""
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func (r *checkReader) method(n yaml.Node, w where) {
	const allowed = "allowed: 1 to 20 capital letters, such as GET, HEAD or OPTIONS"
	r.c.Method = r.text(n, w, maxLine, "a method, such as GET", func(s string) string {
		switch {
		case s == "" || len(s) > 20 || slices.ContainsFunc([]byte(s), func(c byte) bool { return !letter(c) }):
			return "is not a method; " + allowed
		case s != strings.ToUpper(s):
			return "is not a method, whose case counts; write " + strings.ToUpper(s)
		}
		return ""
	})
}

// status reads a code, a range of codes, or a list of these.
func (r *checkReader) status(n yaml.Node, w where) {
	switch {
	case n.Kind() != yaml.Sequence:
		r.codes(n, w)
	case n.Len() == 0:
		r.addf(n, w, "a list without entries is not allowed; want %s", codesForm)
	case n.Len() > maxStatuses:
		r.addf(n, w, "%d entries; allowed: up to %d", n.Len(), maxStatuses)
	default:
		for i, c := range n.Items() {
			r.codes(c, w.entry(i))
		}
	}
}

const codesForm = "a status code or a range of them from 100 to 599, such as 204 or 200-299"

func (r *checkReader) codes(n yaml.Node, w where) {
	if n.Kind() != yaml.String && n.Kind() != yaml.Int {
		r.addf(n, w, "%s is not allowed; want %s", describe(n), codesForm)
		return
	}
	first, last, isRange := strings.Cut(n.Text(), "-")
	if !isRange {
		last = first
	}
	lo, okLo := code(first)
	hi, okHi := code(last)
	switch {
	case !okLo || !okHi:
		r.addf(n, w, "%s is not allowed; want %s", quote(n.Text()), codesForm)
	case hi < lo:
		r.addf(n, w, "%s ends before it begins; want %s", quote(n.Text()), codesForm)
	default:
		r.c.Status = append(r.c.Status, model.CodeRange{Lo: lo, Hi: hi})
	}
}

func code(s string) (int, bool) {
	if len(s) != 3 || !digits(s, 3) || s[0] < '1' || s[0] > '5' {
		return 0, false
	}
	v, err := strconv.Atoi(s)
	return v, err == nil
}

func anything(string) string { return "" }

func (r *checkReader) body(n yaml.Node, w where) {
	r.bodyAt = place{n.Pos(), w}
	r.c.Body = r.text(n, w, maxAnswer, "the text that the body must contain"+inQuotes, anything)
}

func (r *checkReader) verify(n yaml.Node, w where) {
	r.verifyAt = place{n.Pos(), w}
	r.c.Verify = r.boolean(n, w)
}

func (r *checkReader) udp(n yaml.Node, w where) {
	const form = `such as {send: "ping\n", expect: "pong"}`
	if n.Kind() != yaml.Mapping {
		r.addf(n, w, "%s is not allowed; want a mapping, %s", describe(n), form)
		return
	}
	sends := false
	for k, v := range n.Pairs() {
		switch at := w.under(k.Text()); k.Text() {
		case "send":
			sends = true
			r.c.Send = r.datagram(v, at)
		case "expect":
			r.c.Expect = r.datagram(v, at)
		default:
			r.unknown(k, w, udpAllowed)
		}
	}
	if !sends {
		r.addf(n, w, "key send is missing; want the datagram that is sent, %s", form)
	}
}

// datagram reads bytes: each character stands for one, so that "\xff" is what it looks
// like, though YAML means a character by it that UTF-8 writes with two bytes.
func (r *checkReader) datagram(n yaml.Node, w where) string {
	s, ok := r.str(n, w, "the content of a datagram"+inQuotes)
	if !ok {
		return ""
	}
	var out []byte
	for _, c := range s {
		if c > 0xff {
			r.addf(n, w, `character %s is not a byte; allowed: ASCII, and \x80 to \xff in double quotes for the other bytes`, strconv.QuoteRune(c))
			return ""
		}
		out = append(out, byte(c))
	}
	if len(out) > maxAnswer {
		r.addf(n, w, "%d bytes are too long; allowed: up to %d", len(out), maxAnswer)
		return ""
	}
	return string(out)
}

// datagramText is the inverse of datagram.
func datagramText(s string) string {
	chars := make([]rune, len(s))
	for i, b := range []byte(s) {
		chars[i] = rune(b)
	}
	return strconv.QuoteToASCII(string(chars))
}

func (r *checkReader) dnsName(n yaml.Node, w where) {
	r.c.Name = r.text(n, w, maxLine, "a domain name, such as example.org", badDNSName)
}

var dnsTypes = []string{"A", "AAAA", "SOA", "NS", "TXT", "MX"}

func (r *checkReader) dnsType(n yaml.Node, w where) {
	if i, ok := r.word(n, w, dnsTypes); ok {
		r.c.Type = dnsTypes[i]
	}
}

func (r *checkReader) grpc(n yaml.Node, w where) {
	r.c.Name = r.text(n, w, maxAnswer, `the name of a service, "" for the whole server`, anything)
}

const execForm = "a list of the command's absolute path and its arguments, such as [/usr/local/bin/check, -v]"

func (r *checkReader) exec(n yaml.Node, w where) {
	switch {
	case n.Kind() != yaml.Sequence:
		r.addf(n, w, "%s is not allowed; want %s", describe(n), execForm)
	case n.Len() == 0:
		r.addf(n, w, "a list without entries is not allowed; want %s", execForm)
	case n.Len() > maxArgs:
		r.addf(n, w, "%d entries; allowed: up to %d, the command among them", n.Len(), maxArgs)
	default:
		for i, c := range n.Items() {
			r.c.Args = append(r.c.Args, r.text(c, w.entry(i), maxArg, "text"+inQuotes, func(s string) string {
				switch {
				case strings.ContainsRune(s, 0):
					return "has a NUL byte, which no argument can have"
				case i == 0 && !strings.HasPrefix(s, "/"):
					return "is not an absolute path; want " + execForm
				}
				return ""
			}))
		}
	}
}
