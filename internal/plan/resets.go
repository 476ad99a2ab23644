package plan

import (
	"net/netip"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// resetsSize bounds the connections of one family that are being reset at one time.
const resetsSize = 1 << 16

// resetsSpec: connections that are cut off, by client and listener. weir puts them there
// when it ends them; they leave by themselves. Packets of either side are counted.
func resetsSpec(f model.Family) setSpec {
	return setSpec{Name: "resets" + digit(f), Timeout: true, Counter: true, Size: resetsSize,
		Key: ruleset.Types{ruleset.AddrType(f), ruleset.Port, ruleset.AddrType(f), ruleset.Port}}
}

// resets reports whether connections of that protocol are reset when their backend goes
// down.
func resets(s *model.Service, proto model.Proto) bool {
	return s.OnDown == model.Reset && proto == model.TCP
}

// resetStmts answer a packet of a connection that was cut off with a reset. Only packets
// that conntrack takes for the first of a connection come by here, and a SYN is the first
// of one that is really new.
func resetStmts(f model.Family) []ruleset.Stmt {
	return []ruleset.Stmt{ruleset.NoSYN{},
		ruleset.InSet{Key: ruleset.Key{ruleset.Saddr(f), ruleset.SPort, ruleset.Daddr(f), ruleset.DPort}, Set: resetsSpec(f).Name},
		ruleset.RejectWith{TCPReset: true}}
}

// nudges keep from conntrack what weir sends the clients of those connections, in the
// listener's name, to make them speak. It would be invalid there, which firewalls like to
// drop; and a conntrack that took it for a connection would give that the answer.
func nudges(u usage) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		if set := resetsSpec(f).Name; u[set] != nil {
			stmts := []ruleset.Stmt{ruleset.IsFamily(f), ruleset.IsProto(model.TCP), ruleset.NoSYN{},
				ruleset.InSet{Key: ruleset.Key{ruleset.Daddr(f), ruleset.DPort, ruleset.Saddr(f), ruleset.SPort}, Set: set}}
			rules = append(rules, ruleset.Rule{Comment: "a nudge for a client that is cut off", Stmts: append(stmts, notracked()...)})
		}
	}
	return rules
}

// Stream is a TCP connection to a service, as its client sees it.
type Stream struct{ Client, Listen netip.AddrPort }

// Resets are elements for the set of the connections of one family that are cut off.
type Resets struct {
	Set     *ruleset.Set
	Elems   []ruleset.Element
	Streams []Stream // as many, in the same order
}

// Resets returns what makes the rules answer the packets of streams with a reset. Streams
// of a family of which no service says `on_down: reset` are left out.
func (p *Plan) Resets(streams []Stream) []Resets {
	var out []Resets
	for _, f := range families {
		g := p.sets[resetsSpec(f).Name]
		if g == nil {
			continue
		}
		r := Resets{Set: g.Set}
		for _, s := range streams {
			if model.FamilyOf(s.Client.Addr()) == f {
				r.Streams = append(r.Streams, s)
				r.Elems = append(r.Elems, ruleset.Element{Key: s.Key()})
			}
		}
		if len(r.Elems) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// ResetSet returns the set of the connections of family f that are cut off. Its elements'
// keys are Stream.Key, and their counters what came from the client and was sent to it.
func ResetSet(f model.Family) *ruleset.Set { return resetsSpec(f).set() }

// Key returns the element by which the stream is known in its ResetSet.
func (s Stream) Key() string {
	b := make([]byte, 0, 40)
	for _, a := range []netip.AddrPort{s.Client, s.Listen} {
		b = ruleset.AppendPort(ruleset.AppendAddr(b, a.Addr()), a.Port())
	}
	return string(b)
}
