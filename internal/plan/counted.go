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

	ListenerConnections // new connections to listeners of the box, one packet each
	ListenerIn          // packets to listeners of the box
	ListenerOut         // packets from them
	Opened              // packets that an open rule let pass
	Managed             // packets that management let pass
	DroppedIn           // packets to the box that the policy dropped, by device
	DroppedForward      // packets through it, by the devices they come in and leave by
	Leaked              // packets with private sources that did not leave by a pool's device, by the same
	DroppedFlags        // TCP segments with flags that make no sense, by device and flags
)

// Counted is a set whose elements count: the first three kinds by pair of listener and
// backend, listeners' by themselves, the rest by what they are about.
type Counted struct {
	What   What
	Family model.Family // 0 where addresses do not matter
	Set    *ruleset.Set
}

// Counted returns the counted sets of the plan.
func (p *Plan) Counted() []Counted {
	out := p.countedEdge()
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
