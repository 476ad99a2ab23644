package plan

import (
	"net/netip"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// What is what the elements of a counted set count.
type What uint8

// The kinds.
const (
	Connections What = iota // new connections, one packet each
	Requests                // packets to backends
	Replies                 // packets back from backends
)

// Counted is a set whose elements count by pair of listener and backend.
type Counted struct {
	What   What
	Family model.Family
	Set    *ruleset.Set
}

// Counted returns the counted sets of the plan.
func (p *Plan) Counted() []Counted {
	var out []Counted
	for _, f := range families {
		requests, replies := trafficSpecs(f)
		for what, spec := range []setSpec{connectionsSpec(f), requests, replies} {
			if s := p.Ruleset.Tables[0].Set(spec.Name); s != nil {
				out = append(out, Counted{What(what), f, s})
			}
		}
	}
	return out
}

// Pair is a listener and a backend.
type Pair struct {
	Listen  netip.AddrPort
	Proto   model.Proto
	Backend netip.AddrPort
}

// ParsePair reads the key of an element of a counted set of family f.
func ParsePair(f model.Family, key string) Pair {
	var p Pair
	p.Listen, key = takeAddr(f, key), key[ruleset.AddrType(f).Padded():]
	p.Proto, key = model.Proto(key[0]), key[4:]
	p.Listen, key = withPort(p.Listen, key), key[4:]
	p.Backend, key = takeAddr(f, key), key[ruleset.AddrType(f).Padded():]
	p.Backend = withPort(p.Backend, key)
	return p
}

func takeAddr(f model.Family, b string) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(b, f), 0)
}

func withPort(a netip.AddrPort, b string) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), uint16(b[0])<<8|uint16(b[1]))
}
