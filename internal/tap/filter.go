package tap

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Filter says which packets are wanted. The zero value, and nil, want all.
//
// It is written in a part of the language of pcap-filter(7):
//
//	ip ip6 tcp udp icmp icmp6 sctp
//	[src|dst] host ADDRESS    [src|dst] net PREFIX    [src|dst] port NUMBER
//	tcp port 80 and the like: tcp and port 80
//
// joined by and (&&), or (||), not (!) and parentheses. As there, and and or bind alike,
// from the left, and later fragments have no ports.
type Filter struct{ match func(*Packet) bool }

// Match reports whether the packet is wanted.
func (f *Filter) Match(p *Packet) bool { return f == nil || f.match == nil || f.match(p) }

// FilterError is a mistake in a filter.
type FilterError struct {
	Column  int // from 1, in bytes
	Found   string
	Allowed string
}

func (e *FilterError) Error() string {
	found := "its end"
	if e.Found != "" {
		found = strconv.Quote(e.Found)
	}
	return fmt.Sprintf("filter, column %d: found %s, want %s", e.Column, found, e.Allowed)
}

// ParseFilter reads a filter. An error is a *FilterError.
func ParseFilter(text string) (*Filter, error) {
	if strings.TrimSpace(text) == "" {
		return &Filter{}, nil
	}
	p := filterParser{words: filterWords(text), end: len(text) + 1}
	match, err := p.expr(0)
	if err == nil && p.word() != "" {
		err = p.fail("and, or, or its end")
	}
	if err != nil {
		return nil, err
	}
	return &Filter{match}, nil
}

type filterWord struct {
	text string
	at   int
}

// filterWords cuts a filter into words; parentheses and ! are words of their own.
func filterWords(s string) (out []filterWord) {
	for i := 0; i < len(s); {
		n := strings.IndexAny(s[i:], " \t\n()!")
		switch {
		case n < 0:
			n = len(s) - i
		case n == 0 && strings.IndexByte(" \t\n", s[i]) >= 0:
			i++
			continue
		case n == 0:
			n = 1
		}
		out = append(out, filterWord{s[i : i+n], i + 1})
		i += n
	}
	return out
}

type filterParser struct {
	words []filterWord
	end   int
}

// maxDepth bounds parentheses and nots within each other.
const maxDepth = 100

func (p *filterParser) word() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0].text
}

func (p *filterParser) next() string {
	w := p.word()
	if w != "" {
		p.words = p.words[1:]
	}
	return w
}

func (p *filterParser) fail(allowed string) error {
	e := &FilterError{Column: p.end, Allowed: allowed}
	if len(p.words) > 0 {
		e.Column, e.Found = p.words[0].at, p.words[0].text
	}
	return e
}

type matcher = func(*Packet) bool

func (p *filterParser) expr(depth int) (matcher, error) {
	left, err := p.term(depth)
	for err == nil {
		var right matcher
		l := left
		switch p.word() {
		case "and", "&&":
			p.next()
			right, err = p.term(depth)
			left = func(k *Packet) bool { return l(k) && right(k) }
		case "or", "||":
			p.next()
			right, err = p.term(depth)
			left = func(k *Packet) bool { return l(k) || right(k) }
		default:
			return left, nil
		}
	}
	return nil, err
}

// filterStart is what a term may begin with.
const filterStart = "one of ip, ip6, tcp, udp, icmp, icmp6, sctp, src, dst, host, net, port, not, ("

var filterProtos = map[string]uint8{"tcp": TCP, "udp": UDP, "icmp": 1, "icmp6": 58, "sctp": sctp}

func (p *filterParser) term(depth int) (matcher, error) {
	if depth > maxDepth {
		return nil, p.fail(fmt.Sprintf("at most %d parentheses and nots within each other", maxDepth))
	}
	switch w := p.word(); w {
	case "not", "!":
		p.next()
		m, err := p.term(depth + 1)
		return func(k *Packet) bool { return !m(k) }, err
	case "(":
		p.next()
		m, err := p.expr(depth + 1)
		if err == nil && p.word() != ")" {
			return nil, p.fail("and, or, or )")
		}
		p.next()
		return m, err
	case "ip", "ip6":
		p.next()
		return p.qualified(func(k *Packet) bool { return k.addrs && k.v6 == (w == "ip6") })
	case "tcp", "udp", "icmp", "icmp6", "sctp":
		p.next()
		proto := filterProtos[w]
		return p.qualified(func(k *Packet) bool {
			return k.addrs && k.proto == proto && (proto != 1 || !k.v6) && (proto != 58 || k.v6)
		})
	case "src", "dst", "host", "net", "port":
		return p.primitive()
	}
	return nil, p.fail(filterStart)
}

// qualified reads what a protocol may stand before: "tcp port 80" is "tcp and port 80".
func (p *filterParser) qualified(proto matcher) (matcher, error) {
	switch p.word() {
	case "src", "dst", "host", "net", "port":
		more, err := p.primitive()
		return func(k *Packet) bool { return proto(k) && more(k) }, err
	}
	return proto, nil
}

// primitive reads what may have src or dst before it.
func (p *filterParser) primitive() (matcher, error) {
	src, dst := true, true
	if w := p.word(); w == "src" || w == "dst" {
		p.next()
		src, dst = w == "src", w == "dst"
	}
	switch kind := p.word(); kind {
	case "host", "net":
		p.next()
		net, ok := filterNet(p.word(), kind == "host")
		if !ok {
			if kind == "host" {
				return nil, p.fail("an address, such as 198.51.100.10 or 2001:db8::10")
			}
			return nil, p.fail("a prefix without bits behind its length, such as 198.51.100.0/24 or 2001:db8::/32")
		}
		p.next()
		v6 := net.Addr().Is6()
		m := func(k *Packet) bool {
			return k.addrs && k.v6 == v6 && (src && net.Contains(k.src.addrPort(v6).Addr()) || dst && net.Contains(k.dst.addrPort(v6).Addr()))
		}
		return m, nil
	case "port":
		p.next()
		n, err := strconv.ParseUint(p.word(), 10, 16)
		if err != nil {
			return nil, p.fail("a port from 0 to 65535")
		}
		p.next()
		port := uint16(n)
		return func(k *Packet) bool {
			return k.ports && (src && k.src.port == port || dst && k.dst.port == port)
		}, nil
	}
	return nil, p.fail("host, net or port")
}

func filterNet(s string, host bool) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	if host {
		return netip.Prefix{}, false
	}
	n, err := netip.ParsePrefix(s)
	return n, err == nil && n == n.Masked() && !n.Addr().Is4In6()
}
