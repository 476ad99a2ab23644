package ruleset

import "encoding/binary"

// unreached returns, by name, what tells the keys that no rule of t can look up in a set,
// for those sets of changes of which that can be told.
func unreached(t *Table, changes []*ElemChange) map[string]func(key string) bool {
	of := make(map[string]*reach, len(changes))
	for _, ch := range changes {
		if len(ch.Set.Key) > 0 && ch.Set.Key[0] == Integer && !ch.Set.Range {
			of[ch.Set.Name] = &reach{}
		}
	}
	if len(of) == 0 {
		return nil
	}
	for _, c := range t.Chains {
		for i := range c.Rules {
			c.Rules[i].lookups(func(set string, k Key) {
				if r := of[set]; r != nil {
					r.add(k)
				}
			})
		}
	}
	out := make(map[string]func(string) bool, len(of))
	for name, r := range of {
		if !r.all {
			out[name] = func(key string) bool { return !r.has(binary.NativeEndian.Uint32([]byte(key[:4]))) }
		}
	}
	return out
}

// reach is the numbers with which the keys begin that rules look up in a set.
type reach struct {
	all   bool
	spans []span
}

type span struct{ first, n uint32 }

func (r *reach) add(k Key) {
	switch e := k[0].(type) {
	case Numgen:
		r.spans = append(r.spans, span{e.Offset, e.Mod})
	case Hash:
		r.spans = append(r.spans, span{e.Offset, e.Mod})
	default:
		r.all = true
	}
}

func (r *reach) has(n uint32) bool {
	for _, s := range r.spans {
		if n-s.first < s.n {
			return true
		}
	}
	return false
}

// lookups calls each for all sets that the rule looks up, with the key.
func (r *Rule) lookups(each func(set string, k Key)) {
	for _, s := range r.Stmts {
		switch s := s.(type) {
		case InSet:
			lookup(s.Set, s.Key, each)
		case NotInSet:
			lookup(s.Set, s.Key, each)
		case VMap:
			lookup(s.Map, s.Key, each)
		case Update:
			lookup(s.Set, s.Key, each)
			lookupsIn(s.Data, each)
		case CountOver:
			lookup(s.Set, s.Key, each)
		case RateUnder:
			lookup(s.Set, s.Key, each)
		case DNAT:
			lookupsIn(s.To, each)
			lookupsIn(s.Port, each)
		case SNAT:
			lookupsIn(s.Via, each)
		}
	}
}

func lookup(set string, k Key, each func(string, Key)) {
	each(set, k)
	for _, e := range k {
		lookupsIn(e, each)
	}
}

func lookupsIn(e Expr, each func(string, Key)) {
	switch e := e.(type) {
	case MapGet:
		lookup(e.Map, e.Key, each)
	case Hash:
		for _, in := range e.Key {
			lookupsIn(in, each)
		}
	}
}

// elemIn is an element of a set.
type elemIn struct {
	set string
	id  elemKey
}

// movedTo returns which elements of del others come for in another set with keys of the same
// types: the same elements, ranges that they are in, or single keys in their ranges.
func movedTo(add, del []*ElemChange) map[elemIn]bool {
	moved := map[elemIn]bool{}
	for _, d := range del {
		for _, a := range add {
			if d.Packed != nil || a.Packed != nil || d.Set.Name == a.Set.Name || string(typeBytes(d.Set.Key)) != string(typeBytes(a.Set.Key)) {
				continue
			}
			came := map[elemKey]bool{}
			for i := range a.Elems {
				came[a.Elems[i].id()] = true
			}
			into, outOf := indexOf(a), indexOf(d)
			for i := range d.Elems {
				e := &d.Elems[i]
				if came[e.id()] || a.Set.Range && e.KeyEnd == "" && into.lookup(e.Key) != nil {
					moved[elemIn{d.Set.Name, e.id()}] = true
				}
			}
			for i := range a.Elems {
				if e := &a.Elems[i]; d.Set.Range && e.KeyEnd == "" {
					if was := outOf.lookup(e.Key); was != nil {
						moved[elemIn{d.Set.Name, was.id()}] = true
					}
				}
			}
		}
	}
	return moved
}

func indexOf(ch *ElemChange) *setIndex {
	s := *ch.Set
	s.Parts, s.Packed = []*Part{{Elems: ch.Elems}}, nil
	return &setIndex{set: &s}
}
