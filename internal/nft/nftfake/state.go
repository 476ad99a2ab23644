package nftfake

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

type table struct {
	ref    nft.TableRef
	sets   []*set
	chains []*chain
	times  []*ruleset.Timeouts
	off    bool // switched off: `flags dormant`
}

type set struct {
	*ruleset.Set
	elems map[elemID]nft.Elem
}

type chain struct {
	*ruleset.Chain
	rules []rule
}

// rule is a rule and the fingerprint in its comment, which stays when it is edited.
type rule struct {
	ruleset.Rule
	print string
}

type elemID struct{ key, end string }

func idOf(e *ruleset.Element) elemID { return elemID{e.Key, e.KeyEnd} }

func (s *set) put(e nft.Elem) { s.elems[idOf(&e.Element)] = e }

func (s *set) sorted() []nft.Elem {
	out := slices.Collect(maps.Values(s.elems))
	sortElems(out)
	return out
}

func find(tables []*table, ref nft.TableRef) *table {
	for _, t := range tables {
		if t.ref == ref {
			return t
		}
	}
	return nil
}

func (t *table) set(name string) *set {
	for _, s := range t.sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (t *table) chain(name string) *chain {
	for _, c := range t.chains {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// read returns the table as internal/nft reads it. want is the table that is expected,
// or nil.
func (t *table) read(want *ruleset.Table) *ruleset.Table {
	out := &ruleset.Table{Family: t.ref.Family, Name: t.ref.Name, Dormant: t.off}
	for _, s := range t.sets {
		spec := *s.Set
		spec.Parts, spec.Packed = nil, nil
		if !spec.Dynamic && len(s.elems) > 0 {
			p := &ruleset.Part{}
			for _, e := range s.sorted() {
				p.Elems = append(p.Elems, e.Element)
			}
			spec.Parts = []*ruleset.Part{p}
			if w := wantedSet(want, s.Name); w != nil && len(w.Packed) > 0 {
				spec.Parts, spec.Packed = nil, w.Packed
				if !t.marked(want) {
					spec.Packed = packed(s.Set, p.Elems)
				}
			}
		}
		out.Sets = append(out.Sets, &spec)
	}
	out.Timeouts = slices.Clone(t.times)
	for _, c := range t.chains {
		var prints, wanted []string
		if want != nil {
			if w := want.Chain(c.Name); w != nil {
				wanted = w.Fingerprints()
			}
		}
		for i := range c.rules {
			print := c.rules[i].print
			if print != c.rules[i].Fingerprint() && slices.Contains(wanted, print) {
				print = ""
			}
			prints = append(prints, print)
		}
		out.Chains = append(out.Chains, ruleset.ReadBack(c.Name, c.Base, prints))
	}
	return out
}

func wantedSet(t *ruleset.Table, name string) *ruleset.Set {
	if t == nil {
		return nil
	}
	return t.Set(name)
}

// marked reports whether the table has want's marker: then elements are believed, not read.
func (t *table) marked(want *ruleset.Table) bool {
	if want == nil || want.Marker == "" {
		return false
	}
	w, c := want.Chain(want.Marker), t.chain(want.Marker)
	return w != nil && c != nil && slices.EqualFunc(c.rules, w.Fingerprints(), func(r rule, print string) bool { return r.print == print })
}

// packed returns elements, in ascending order, as nft packs what it reads.
func packed(s *ruleset.Set, elems []ruleset.Element) []*ruleset.Packed {
	var jumps []ruleset.Jump
	for _, e := range elems {
		if s.Verdict && !slices.Contains(jumps, e.Jump) {
			jumps = append(jumps, e.Jump)
		}
	}
	p := ruleset.NewPacker(s.Key.Len(), jumps, nil)
	for _, e := range elems {
		p.Add([]byte(e.Key), uint8(max(slices.Index(jumps, e.Jump), 0)))
	}
	return p.Pieces()
}

func (t *table) clone() *table {
	out := &table{ref: t.ref, off: t.off, times: slices.Clone(t.times)}
	for _, s := range t.sets {
		out.sets = append(out.sets, &set{s.Set, maps.Clone(s.elems)})
	}
	for _, c := range t.chains {
		out.chains = append(out.chains, &chain{c.Chain, c.rules})
	}
	return out
}

// apply returns tables with the delta in it; tables stays as it is.
func apply(tables []*table, d *ruleset.Delta) ([]*table, error) {
	tables = slices.Clone(tables)
	for _, td := range d.Tables {
		ref := nft.TableRef{Family: td.Table.Family, Name: td.Table.Name}
		old := find(tables, ref)
		switch {
		case td.Delete && old == nil:
			return nil, refuse("delete", ref.String(), unix.ENOENT)
		case td.Delete:
			tables = slices.DeleteFunc(tables, func(t *table) bool { return t == old })
			continue
		case td.Create && old != nil:
			return nil, refuse("add", ref.String(), unix.EEXIST)
		case !td.Create && old == nil:
			return nil, refuse("change", ref.String(), unix.ENOENT)
		}
		t := &table{ref: ref}
		if old != nil {
			t = old.clone()
			tables = slices.DeleteFunc(tables, func(t *table) bool { return t == old })
		}
		c := change{table: t, in: " in " + ref.String()}
		c.remove(td)
		c.add(td)
		t.off = t.off && !td.Wake
		if c.err != nil {
			return nil, c.err
		}
		tables = append(tables, t)
	}
	return tables, nil
}

func refuse(op, object string, errno unix.Errno) error {
	return &nft.Error{Op: op, Object: object, Errno: errno,
		All: []nft.Refusal{{Op: op, Object: object, Errno: errno}}}
}

// change brings a TableDelta into a table and keeps the first thing that is wrong.
type change struct {
	*table
	in  string
	err error
}

// check notes an error unless ok, and reports whether all is well so far.
func (c *change) check(ok bool, op, object string, errno unix.Errno) bool {
	if !ok && c.err == nil {
		c.err = refuse(op, object+c.in, errno)
	}
	return c.err == nil
}

func (c *change) remove(td *ruleset.TableDelta) {
	for _, f := range td.Flush {
		if ch := c.chain(f.Name); c.check(ch != nil, "flush", "chain "+f.Name, unix.ENOENT) {
			ch.rules = nil
		}
	}
	for _, e := range td.DelElems {
		s := c.set(e.Set.Name)
		if !c.check(s != nil, "delete", "elements of "+e.Set.Name, unix.ENOENT) {
			return
		}
		for i := range e.Len() {
			el := e.Elem(i)
			_, ok := s.elems[idOf(&el)]
			c.check(ok, "delete", elemText(s.Set, &el), unix.ENOENT)
			delete(s.elems, idOf(&el))
		}
	}
	for _, d := range td.DelChains {
		ch := c.chain(d.Name)
		if !c.check(ch != nil, "delete", "chain "+d.Name, unix.ENOENT) {
			return
		}
		ch.rules = nil
		c.check(!c.chainUsed(d.Name), "delete", "chain "+d.Name, unix.EBUSY)
		c.chains = slices.DeleteFunc(c.chains, func(o *chain) bool { return o == ch })
	}
	for _, d := range td.DelTimeouts {
		name := "ct timeout " + d.Name
		if !c.check(slices.ContainsFunc(c.times, named(d.Name)), "delete", name, unix.ENOENT) ||
			!c.check(!c.timesUsed(d.Name), "delete", name, unix.EBUSY) {
			return
		}
		c.times = slices.DeleteFunc(c.times, named(d.Name))
	}
	for _, d := range td.DelSets {
		s := c.set(d.Name)
		if !c.check(s != nil, "delete", "set "+d.Name, unix.ENOENT) ||
			!c.check(!c.setUsed(d.Name), "delete", "set "+d.Name, unix.EBUSY) {
			return
		}
		c.sets = slices.DeleteFunc(c.sets, func(o *set) bool { return o == s })
	}
}

func (c *change) add(td *ruleset.TableDelta) {
	for _, a := range td.AddTimeouts {
		c.check(!slices.ContainsFunc(c.times, named(a.Name)), "add", "ct timeout "+a.Name, unix.EEXIST)
		c.times = append(c.times, a)
	}
	for _, a := range td.AddChains {
		c.check(c.chain(a.Name) == nil, "add", "chain "+a.Name, unix.EEXIST)
		c.chains = append(c.chains, &chain{Chain: a})
	}
	for _, a := range td.AddSets {
		c.check(c.set(a.Name) == nil, "add", "set "+a.Name, unix.EEXIST)
		c.sets = append(c.sets, &set{a, map[elemID]nft.Elem{}})
	}
	for _, e := range td.AddElems {
		c.addElems(e)
	}
	for _, a := range td.AddRules {
		ch := c.chain(a.Name)
		if !c.check(ch != nil, "add", "rules of chain "+a.Name, unix.ENOENT) {
			return
		}
		ch.rules = slices.Clip(ch.rules) // a table that this one is a copy of has them too
		for i := range a.Rules {
			text := fmt.Sprintf("rule %d of chain %s", i+1, a.Name)
			for _, name := range chainsOf(&a.Rules[i]) {
				c.check(c.chain(name) != nil, "add", text, unix.ENOENT)
			}
			for _, name := range timesOf(&a.Rules[i]) {
				c.check(slices.ContainsFunc(c.times, named(name)), "add", text, unix.ENOENT)
			}
			for _, name := range setsOf(&a.Rules[i]) {
				c.check(c.set(name) != nil, "add", text, unix.ENOENT)
			}
			ch.rules = append(ch.rules, rule{a.Rules[i], a.Rules[i].Fingerprint()})
		}
	}
}

func (c *change) addElems(e *ruleset.ElemChange) {
	s := c.set(e.Set.Name)
	if !c.check(s != nil, "add", "elements of "+e.Set.Name, unix.ENOENT) {
		return
	}
	for i := range e.Len() {
		one := e.Elem(i)
		el := &one
		_, dup := s.elems[idOf(el)]
		c.check(!dup, "add", elemText(s.Set, el), unix.EEXIST)
		if s.Verdict && el.Jump.Plain == 0 {
			c.check(c.chain(el.Jump.Chain) != nil, "add", elemText(s.Set, el), unix.ENOENT)
		}
		put := nft.Elem{Element: one}
		if e.Counts != nil {
			put.Counter = e.Counts[i]
		}
		s.put(put)
		c.check(s.Size == 0 || len(s.elems) <= s.Size, "add", elemText(s.Set, el), unix.ENFILE)
	}
}

func elemText(s *ruleset.Set, e *ruleset.Element) string {
	return "element " + s.Key.Text(e.Key, e.KeyEnd) + " of " + s.Name
}

func (t *table) chainUsed(name string) bool {
	for _, c := range t.chains {
		for i := range c.rules {
			if slices.Contains(chainsOf(&c.rules[i].Rule), name) {
				return true
			}
		}
	}
	for _, s := range t.sets {
		for _, e := range s.elems {
			if s.Verdict && e.Jump.Chain == name {
				return true
			}
		}
	}
	return false
}

func (t *table) setUsed(name string) bool {
	for _, c := range t.chains {
		for i := range c.rules {
			if slices.Contains(setsOf(&c.rules[i].Rule), name) {
				return true
			}
		}
	}
	return false
}

// chainsOf returns the chains that a rule names.
func chainsOf(r *ruleset.Rule) []string {
	var names []string
	for _, s := range r.Stmts {
		if v, ok := s.(ruleset.Verdict); ok && v.Chain != "" {
			names = append(names, v.Chain)
		}
	}
	return names
}

// setsOf returns the sets and maps that a rule names.
func setsOf(r *ruleset.Rule) []string {
	var names []string
	for _, s := range r.Stmts {
		switch s := s.(type) {
		case ruleset.InSet:
			names = append(keySets(names, s.Key), s.Set)
		case ruleset.NotInSet:
			names = append(keySets(names, s.Key), s.Set)
		case ruleset.RateUnder:
			names = append(keySets(names, s.Key), s.Set)
		case ruleset.VMap:
			names = append(keySets(names, s.Key), s.Map)
		case ruleset.Update:
			names = append(keySets(names, append(slices.Clip(s.Key), s.Data)), s.Set)
		case ruleset.CountOver:
			names = append(keySets(names, s.Key), s.Set)
		case ruleset.DNAT:
			names = keySets(names, ruleset.Key{s.To, s.Port})
		}
	}
	return names
}

func keySets(names []string, k ruleset.Key) []string {
	for _, e := range k {
		switch e := e.(type) {
		case ruleset.MapGet:
			names = append(keySets(names, e.Key), e.Map)
		case ruleset.Hash:
			names = keySets(names, e.Key)
		}
	}
	return names
}
