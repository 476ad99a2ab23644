package ruleset

import (
	"fmt"
	"maps"
	"slices"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// Random rulesets that the kernel takes. They draw from few names, so that two of them
// share much: chain0 and chain1 may be base chains, the others are called; a rule calls
// only chains of a higher number, so that there are no loops.

const (
	genChains = 6
	genSets   = 6
	genKeys   = 6
)

// genSet draws a set's spec. A name stands for a few kinds, to have respecs.
func genSet(t *rapid.T, i int) *Set {
	s := &Set{Name: fmt.Sprintf("s%d", i)}
	switch rapid.SampledFrom([]string{"plain", "plain", "verdict", "verdict", "slots", "ranges"}).Draw(t, "kind") {
	case "plain":
		s.Key = Types{IPv4Addr, Port}
		s.Counter = rapid.IntRange(0, 4).Draw(t, "counter") == 0
	case "verdict":
		s.Key, s.Verdict = listener4, true
	case "slots":
		s.Key, s.Data = Types{Integer}, Types{IPv4Addr, Port}
	case "ranges":
		s.Key, s.Verdict, s.Range = listener4, true, true
	}
	return s
}

// genElem makes the n-th possible element of a set; v varies what may change.
func genElem(s *Set, n, v int, chains []string) Element {
	addr := fmt.Sprintf("198.51.100.%d", 10+n)
	switch {
	case s.Verdict:
		chain := chains[v%len(chains)]
		if s.Range {
			return rangeTo(addr, model.TCP, 1000, 1001+v, chain)
		}
		e := to(addr, model.TCP, 80, chain)
		e.Jump.Goto = v%2 == 0
		return e
	case len(s.Data) > 0:
		return Element{Key: keyOf(uint32(1000 + n)), Data: keyOf("10.0.0.1", 8000+v)}
	}
	return Element{Key: keyOf(addr, 80)}
}

// genParts draws parts; an element may be in two of them.
func genParts(t *rapid.T, s *Set, chains []string) []*Part {
	if s.Verdict && len(chains) == 0 {
		return nil
	}
	parts := make([]*Part, rapid.IntRange(0, 3).Draw(t, "parts"))
	for i := range parts {
		parts[i] = &Part{}
	}
	if len(parts) == 0 {
		return nil
	}
	for n := range genKeys {
		if !rapid.Bool().Draw(t, "there") {
			continue
		}
		e := genElem(s, n, rapid.IntRange(0, 3).Draw(t, "variant"), chains)
		first := parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")]
		first.Elems = append(first.Elems, e)
		if second := parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part too")]; second != first {
			second.Elems = append(second.Elems, e)
		}
	}
	return parts
}

// genRule draws a rule that binds only what there is.
func genRule(t *rapid.T, sets []*Set, callees []string) Rule {
	r := Rule{Stmts: []Stmt{IsFamily(model.IPv4), IsProto(model.TCP)}}
	if rapid.Bool().Draw(t, "words") {
		r.Comment = rapid.SampledFrom([]string{"a", "b c"}).Draw(t, "comment")
	}
	if len(sets) > 0 && rapid.Bool().Draw(t, "bind") {
		switch s := rapid.SampledFrom(sets).Draw(t, "set"); {
		case s.Verdict:
			r.Stmts = append(r.Stmts, VMap{asked4, s.Name})
			return r
		case len(s.Data) == 0:
			r.Stmts = append(r.Stmts, InSet{Key{IPDaddr, DPort}, s.Name})
		}
	}
	v := Verdict{Kind: rapid.SampledFrom([]VerdictKind{AcceptPacket, DropPacket, ReturnBack, JumpTo, GotoChain}).Draw(t, "verdict")}
	if v.Kind == JumpTo || v.Kind == GotoChain {
		if len(callees) == 0 {
			v.Kind = AcceptPacket
		} else {
			v.Chain = rapid.SampledFrom(callees).Draw(t, "callee")
		}
	}
	r.Stmts = append(r.Stmts, v)
	return r
}

// genRuleset draws a whole ruleset. Verdicts of maps lead to leaf chains, the two of the
// highest numbers, whose rules call nothing.
func genRuleset(t *rapid.T) *Ruleset {
	if rapid.IntRange(0, 9).Draw(t, "empty") == 0 {
		return &Ruleset{}
	}
	tab := &Table{Family: Inet, Name: "weir"}
	var there []int
	for i := range genChains {
		if rapid.IntRange(0, 3).Draw(t, "chain") > 0 {
			there = append(there, i)
		}
	}
	var leaves []string
	for _, i := range there {
		if i >= genChains-2 {
			leaves = append(leaves, fmt.Sprintf("chain%d", i))
		}
	}
	for i := range genSets {
		if rapid.IntRange(0, 3).Draw(t, "set") > 0 {
			s := genSet(t, i)
			s.Parts = genParts(t, s, leaves)
			tab.Sets = append(tab.Sets, s)
		}
	}
	for n, i := range there {
		tab.Chains = append(tab.Chains, genChain(t, tab.Sets, i, there[n+1:]))
	}
	return &Ruleset{Tables: []*Table{tab}}
}

func genChain(t *rapid.T, sets []*Set, i int, later []int) *Chain {
	c := &Chain{Name: fmt.Sprintf("chain%d", i)}
	if i < 2 {
		c.Base = rapid.SampledFrom([]*Base{nil, {Type: "filter", Hook: Prerouting}, {Type: "filter", Hook: Prerouting, Priority: 5}, {Type: "nat", Hook: Output, Priority: -100}}).Draw(t, "base")
	}
	var callees []string
	if i < genChains-2 {
		for _, l := range later {
			if l >= 2 { // 0 and 1 may be base chains
				callees = append(callees, fmt.Sprintf("chain%d", l))
			}
		}
	} else {
		sets = nil
	}
	for range rapid.IntRange(0, 3).Draw(t, "rules") {
		c.Rules = append(c.Rules, genRule(t, sets, callees))
	}
	return c
}

// pair is an old ruleset and a new one.
type pair struct{ a, b *Ruleset }

// genPair draws two rulesets that have about half of their chains, sets and parts in
// common, by value.
func genPair(t *rapid.T) pair {
	p := pair{genRuleset(t), genRuleset(t)}
	for _, tab := range p.b.Tables {
		old := clone(p.a).Table(tab.Family, tab.Name)
		if old == nil {
			continue
		}
		for i, s := range tab.Sets {
			if o := old.Set(s.Name); o != nil && o.SameSpec(s) {
				for n := range min(len(o.Parts), len(s.Parts)) {
					keepIf(t, tab, &s.Parts[n], o.Parts[n])
				}
			} else if o != nil {
				keepIf(t, tab, &tab.Sets[i], o)
			}
		}
		for i, c := range tab.Chains {
			if o := old.Chain(c.Name); o != nil {
				keepIf(t, tab, &tab.Chains[i], o)
			}
		}
	}
	return p
}

// keepIf puts the old object in the place of the new one, by chance and if the table can
// still be loaded then.
func keepIf[T any](t *rapid.T, tab *Table, place *T, old T) {
	now := *place
	if rapid.Bool().Draw(t, "keep") {
		if *place = old; !loadable(tab) {
			*place = now
		}
	}
}

// loadable reports whether all that is referred to is there and of the right kind, and
// no key has two meanings.
func loadable(tab *Table) bool {
	for _, s := range tab.Sets {
		seen := map[string]Element{}
		for _, p := range s.Parts {
			for _, e := range p.Elems {
				if o, dup := seen[e.Key]; dup && o != e || s.Verdict && tab.Chain(e.Jump.Chain) == nil {
					return false
				}
				seen[e.Key] = e
			}
		}
	}
	for _, c := range tab.Chains {
		for _, r := range c.Rules {
			for _, stmt := range r.Stmts {
				ok := true
				switch stmt := stmt.(type) {
				case VMap:
					s := tab.Set(stmt.Map)
					ok = s != nil && s.Verdict
				case InSet:
					s := tab.Set(stmt.Set)
					ok = s != nil && !s.IsMap()
				case Verdict:
					ok = stmt.Chain == "" || tab.Chain(stmt.Chain) != nil
				}
				if !ok {
					return false
				}
			}
		}
	}
	return true
}

// clone copies all of r; nothing is shared.
func clone(r *Ruleset) *Ruleset {
	out := &Ruleset{}
	for _, t := range r.Tables {
		n := &Table{Family: t.Family, Name: t.Name}
		for _, s := range t.Sets {
			c := *s
			c.Parts = nil
			for _, p := range s.Parts {
				c.Parts = append(c.Parts, part(slices.Clone(p.Elems)...))
			}
			n.Sets = append(n.Sets, &c)
		}
		for _, ch := range t.Chains {
			c := *ch
			c.Rules = slices.Clone(ch.Rules)
			n.Chains = append(n.Chains, &c)
		}
		out.Tables = append(out.Tables, n)
	}
	return out
}

// share replaces what b has in common with a by a's own pointers.
func share(a, b *Ruleset) *Ruleset {
	out := clone(b)
	for _, t := range out.Tables {
		old := a.Table(t.Family, t.Name)
		if old == nil {
			continue
		}
		for i, c := range t.Chains {
			o := old.Chain(c.Name)
			if o != nil && sameBase(o.Base, c.Base) && slices.Equal(o.Fingerprints(), c.Fingerprints()) {
				t.Chains[i] = o
			}
		}
		for _, s := range t.Sets {
			o := old.Set(s.Name)
			if o == nil || !o.SameSpec(s) {
				continue
			}
			for i, p := range s.Parts {
				for _, q := range o.Parts {
					if slices.Equal(p.Elems, q.Elems) {
						s.Parts[i] = q
					}
				}
			}
		}
	}
	return out
}

// readBack makes of r what a reader of the kernel would: rules by their fingerprints, all
// elements in one part.
func readBack(r *Ruleset) *Ruleset {
	out := clone(r)
	for _, t := range out.Tables {
		for i, c := range t.Chains {
			t.Chains[i] = ReadBack(c.Name, c.Base, c.Fingerprints())
		}
		for _, s := range t.Sets {
			s.Parts = []*Part{part(partElems(s)...)}
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
