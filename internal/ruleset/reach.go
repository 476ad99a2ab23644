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
// types: the same elements, ranges that they are in, or single keys in their ranges. Numbers
// mean something in their own set alone.
func movedTo(add, del []*ElemChange) map[elemIn]bool {
	came, went := byTypes(add), byTypes(del)
	moved := map[elemIn]bool{}
	for types, dels := range went {
		adds := came[types]
		in := map[elemKey]string{} // the set, "" for several
		for _, a := range adds {
			for i := range a.Elems {
				if set, more := in[a.Elems[i].id()]; more && set != a.Set.Name {
					in[a.Elems[i].id()] = ""
				} else {
					in[a.Elems[i].id()] = a.Set.Name
				}
			}
		}
		for _, d := range dels {
			for i := range d.Elems {
				if set, ok := in[d.Elems[i].id()]; ok && set != d.Set.Name {
					moved[elemIn{d.Set.Name, d.Elems[i].id()}] = true
				}
			}
		}
		within(dels, adds, func(d *ElemChange, single *Element, _ *ElemChange, _ *Element) {
			moved[elemIn{d.Set.Name, single.id()}] = true
		})
		within(adds, dels, func(_ *ElemChange, _ *Element, d *ElemChange, wide *Element) {
			moved[elemIn{d.Set.Name, wide.id()}] = true
		})
	}
	return moved
}

// byTypes sorts changes by the types of their keys, without those whose keys begin with a number.
func byTypes(list []*ElemChange) map[string][]*ElemChange {
	out := map[string][]*ElemChange{}
	for _, ch := range list {
		if ch.Packed == nil && len(ch.Set.Key) > 0 && ch.Set.Key[0] != Integer {
			types := string(typeBytes(ch.Set.Key))
			out[types] = append(out[types], ch)
		}
	}
	return out
}

// within calls each for single keys of a that are in a range of another set of b.
func within(a, b []*ElemChange, each func(a *ElemChange, single *Element, b *ElemChange, wide *Element)) {
	for _, y := range b {
		if !y.Set.Range {
			continue
		}
		index := indexOf(y)
		for _, x := range a {
			for i := range x.Elems {
				e := &x.Elems[i]
				if x.Set.Name == y.Set.Name || e.KeyEnd != "" {
					continue
				}
				if wide := index.lookup(e.Key); wide != nil {
					each(x, e, y, wide)
				}
			}
		}
	}
}

func indexOf(ch *ElemChange) *setIndex {
	s := *ch.Set
	s.Parts, s.Packed = []*Part{{Elems: ch.Elems}}, nil
	return &setIndex{set: &s}
}
