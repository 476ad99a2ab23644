package plan

import (
	"net/netip"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// A service that a program on the box serves needs nothing but to be counted, and to be
// let in. Each of its listeners is one element that counts, in a set for each direction.

// untrackedSpecs: listeners that conntrack does not see, for packets to them and from them.
func untrackedSpecs(f model.Family) (in, out setSpec) {
	return countedListeners("untracked", f), countedListeners("untracked-out", f)
}

// localSpecs: the other listeners of the box, for packets to them, packets from them, and
// new connections.
func localSpecs(f model.Family) (in, out, fresh setSpec) {
	return countedListeners("local-in", f), countedListeners("local-out", f), countedListeners("local-new", f)
}

func countedListeners(name string, f model.Family) setSpec {
	return setSpec{Name: name + digit(f), Key: listenerKey(f), Counter: true}
}

// admit adds the sets in which the unit's listeners are counted, if a program on the box
// serves them, and with drop those by which packets to them are let in.
func (u *unit) admit(drop bool) {
	s := u.service
	if s.Direct() {
		return // its packets are gone before
	}
	for _, f := range s.Families() {
		var specs []setSpec
		switch {
		case s.Untracked:
			in, out := untrackedSpecs(f)
			specs = []setSpec{in, out}
		case s.Local():
			in, out, fresh := localSpecs(f)
			specs = []setSpec{in, out, fresh}
		}
		switch {
		case !drop:
		case s.Local():
			specs = append(specs, edgeLocalSpec(f))
		default:
			specs = append(specs, edgeNATSpec(f))
		}
		if len(specs) > 0 {
			u.members(f, specs...)
		}
	}
}

// members puts the listeners of family f into sets. All share the same parts.
func (u *unit) members(f model.Family, specs ...setSpec) {
	var t twins
	for _, l := range u.service.Listen {
		if l.Family() == f {
			t.add(l, listenElement(l, netip.Addr{}))
		}
	}
	for i, elems := range t.elems {
		if len(elems) == 0 {
			continue
		}
		part := &ruleset.Part{Elems: elems}
		for _, spec := range specs {
			if i == 1 {
				spec = spec.twin()
			}
			u.parts = append(u.parts, setPart{spec, part, t.protos[i]})
		}
	}
}

// answerKey is askedKey for a packet from a listener.
func answerKey(f model.Family) ruleset.Key {
	return ruleset.Key{ruleset.Saddr(f), ruleset.L4Proto, ruleset.SPort}
}

// inEither returns a rule for each set of the declaration and its twin, in both families,
// that is in use.
func inEither(u usage, spec func(model.Family) setSpec, key func(model.Family) ruleset.Key, words string,
	before []ruleset.Stmt, after ...ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		for _, s := range []setSpec{spec(f), spec(f).twin()} {
			if u[s.Name] == nil {
				continue
			}
			stmts := append(append([]ruleset.Stmt{}, before...), ruleset.IsFamily(f), ruleset.InSet{Key: key(f), Set: s.Name})
			rules = append(rules, ruleset.Rule{Comment: words, Stmts: append(stmts, after...)})
		}
	}
	return rules
}

// notracked ends every rule that keeps packets from conntrack: the verdict stands beside
// it, so that one without the other can not be.
func notracked() []ruleset.Stmt {
	return []ruleset.Stmt{ruleset.Notrack{}, ruleset.Verdict{Kind: ruleset.AcceptPacket}}
}

func untrackedIn(f model.Family) setSpec  { in, _ := untrackedSpecs(f); return in }
func untrackedOut(f model.Family) setSpec { _, out := untrackedSpecs(f); return out }
func localIn(f model.Family) setSpec      { in, _, _ := localSpecs(f); return in }
func localOut(f model.Family) setSpec     { _, out, _ := localSpecs(f); return out }
func localNew(f model.Family) setSpec     { _, _, fresh := localSpecs(f); return fresh }

// keepFromConntrack is the rules for packets that come in. Those of the box to itself were
// seen, and counted, on their way out.
func keepFromConntrack(u usage) []ruleset.Rule {
	return inEither(u, untrackedIn, askedKey, "to a listener without conntrack", []ruleset.Stmt{ruleset.NotLoopback{}}, notracked()...)
}

// keepFromConntrackOut is the rules for packets that the box sends: to a listener of its
// own, and from one.
func keepFromConntrackOut(u usage) []ruleset.Rule {
	return append(
		inEither(u, untrackedIn, askedKey, "to a listener without conntrack", []ruleset.Stmt{ruleset.OnLoopback{Out: true}}, notracked()...),
		inEither(u, untrackedOut, answerKey, "from a listener without conntrack", nil, notracked()...)...)
}

// Listener is what an element of a set of counted listeners stands for.
type Listener struct{ model.Listen }

// First returns the listener's address and first port.
func (l Listener) First() netip.AddrPort { return netip.AddrPortFrom(l.Addr, l.Ports.Lo) }

// ParseListener reads the key of an element of such a set of family f.
func ParseListener(f model.Family, key, end string) Listener {
	at := func(key string) (l model.Listen, port uint16) {
		l.Addr, key = addrOf(key, f), key[ruleset.AddrType(f).Padded():]
		l.Proto = model.Proto(key[0])
		return l, uint16(key[4])<<8 | uint16(key[5])
	}
	l, lo := at(key)
	l.Ports = model.Port(lo)
	if end != "" {
		_, l.Ports.Hi = at(end)
	}
	return Listener{l}
}
