package ruleset

import (
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Delta is what turns one ruleset into another. Its lists are in the order in which the
// kernel takes them: what is referred to must be there, and must not be there any more
// when it goes.
type Delta struct {
	Tables []*TableDelta
}

// TableDelta is the part of a Delta that concerns one table.
type TableDelta struct {
	Table  *Table // family and name; the wanted table unless Delete
	Delete bool   // the table goes with all that is in it; every list is empty
	Create bool   // the table is new

	Flush     []*Chain      // chains that lose all their rules
	DelElems  []*ElemChange // elements that go, or come back with other data
	DelChains []*Chain
	DelSets   []*Set

	DelTimeouts []*Timeouts
	AddTimeouts []*Timeouts

	AddChains []*Chain
	AddSets   []*Set
	AddElems  []*ElemChange
	AddRules  []*Chain // chains that get all of their Rules
	// Counted is what the rules of chains that are loaded again have counted so far, by chain; a
	// driver fills it in.
	Counted map[string]Count

	Wake bool // the table is switched off and has to be switched on
}

// ElemChange is elements of one set: Elems, or else Packed.
type ElemChange struct {
	Set    *Set
	Elems  []Element
	Packed *Packed
	// Counts is what the counter of each packed element that comes starts at; nil: at 0.
	Counts []Count
}

// Len returns the number of elements.
func (c *ElemChange) Len() int {
	if c.Packed != nil {
		return c.Packed.Len()
	}
	return len(c.Elems)
}

// Elem returns the i-th element.
func (c *ElemChange) Elem(i int) Element {
	if c.Packed != nil {
		return c.Packed.Elem(i)
	}
	return c.Elems[i]
}

// Count is what the counter of an element has counted.
type Count struct{ Packets, Bytes uint64 }

// String returns the counter as nft writes it behind a key; "" for one that is zero.
func (c Count) String() string {
	if c == (Count{}) {
		return ""
	}
	return fmt.Sprintf(" counter packets %d bytes %d", c.Packets, c.Bytes)
}

// Empty reports whether there is nothing to do.
func (d *Delta) Empty() bool { return len(d.Tables) == 0 }

// Fingerprints returns one fingerprint a rule: 16 hexadecimal digits over the rule's
// statements. The driver stores them with the rules, and a chain read back from the
// kernel has them in place of Rules (see ReadBack).
func (c *Chain) Fingerprints() []string {
	if c.prints != nil || len(c.Rules) == 0 {
		return c.prints
	}
	prints := make([]string, len(c.Rules))
	for i := range c.Rules {
		prints[i] = c.Rules[i].Fingerprint()
	}
	return prints
}

// Fingerprint returns 16 hexadecimal digits over the rule's statements and comment.
func (r *Rule) Fingerprint() string {
	h := fnv.New64a()
	io.WriteString(h, r.body())
	io.WriteString(h, "\x00")
	io.WriteString(h, r.Comment)
	s := strconv.FormatUint(h.Sum64(), 16)
	return strings.Repeat("0", 16-len(s)) + s
}

// ReadBack makes a chain out of what the kernel has: rules are known by the fingerprints
// stored with them, "" for a rule that carries none or is not what its fingerprint says.
func ReadBack(name string, base *Base, prints []string) *Chain {
	return &Chain{Name: name, Base: base, prints: prints}
}

// Diff returns what has to be sent to make have into want. Tables in have that want
// does not name are deleted: have must hold nothing but weir's own.
func Diff(have, want *Ruleset) *Delta {
	d := &Delta{}
	for _, t := range have.Tables {
		if want.Table(t.Family, t.Name) == nil {
			d.Tables = append(d.Tables, &TableDelta{Table: t, Delete: true})
		}
	}
	for _, t := range want.Tables {
		old := have.Table(t.Family, t.Name)
		td := &TableDelta{Table: t, Create: old == nil}
		if old == nil {
			old = &Table{Family: t.Family, Name: t.Name}
		}
		td.diff(old, t)
		if old.Unread || td.Wake && td.losesBase() {
			d.Tables = append(d.Tables, &TableDelta{Table: old, Delete: true})
			td = &TableDelta{Table: t, Create: true}
			td.diff(&Table{Family: t.Family, Name: t.Name}, t)
		}
		if !td.Empty() {
			d.Tables = append(d.Tables, td)
		}
	}
	return d
}

// Replaces reports whether the table goes and comes again.
func (d *Delta) Replaces(t *Table) bool {
	return slices.ContainsFunc(d.Tables, func(td *TableDelta) bool {
		return td.Delete && td.Table.Family == t.Family && td.Table.Name == t.Name
	})
}

// losesBase reports whether a base chain goes. The kernel does not take that in one
// transaction with the waking of the table.
func (td *TableDelta) losesBase() bool {
	return slices.ContainsFunc(td.DelChains, func(c *Chain) bool { return c.Base != nil })
}

// Empty reports whether nothing of the table changes.
func (td *TableDelta) Empty() bool {
	return !td.Create && !td.Delete && !td.Wake && len(td.Flush) == 0 && len(td.DelElems) == 0 &&
		len(td.DelChains) == 0 && len(td.DelSets) == 0 && len(td.AddChains) == 0 &&
		len(td.AddSets) == 0 && len(td.DelTimeouts) == 0 && len(td.AddTimeouts) == 0 && len(td.AddElems) == 0 && len(td.AddRules) == 0
}

func (td *TableDelta) diff(old, want *Table) {
	td.Wake = old.Dormant
	respec := td.sets(old, want)
	replaced := td.timeouts(old, want)
	was, now := old.Chains, want.Chains
	if !respec && replaced == nil { // most often next to all is as it was, in the same order
		was, now = trim(was, now)
	}
	oldChains := make(map[string]*Chain, len(was))
	for _, c := range was {
		oldChains[c.Name] = c
	}
	for _, c := range now {
		o := oldChains[c.Name]
		delete(oldChains, c.Name)
		reload := respec || c.refersTo(replaced)
		switch {
		case o == c && !reload:
			continue
		case o == nil:
			td.AddChains = append(td.AddChains, c)
		case !sameBase(o.Base, c.Base):
			td.Flush = append(td.Flush, o)
			td.DelChains = append(td.DelChains, o)
			td.AddChains = append(td.AddChains, c)
		case !reload && slices.Equal(o.Fingerprints(), c.Fingerprints()):
			continue
		default:
			td.Flush = append(td.Flush, o)
		}
		if len(c.Rules) > 0 {
			td.AddRules = append(td.AddRules, c)
		}
	}
	for _, c := range was { // in order, so that the delta is the same every time
		if oldChains[c.Name] != nil {
			td.Flush = append(td.Flush, c)
			td.DelChains = append(td.DelChains, c)
		}
	}
}

// sets fills in the sets and elements. It reports whether a set is replaced, by one of
// another kind or because it has no room for what comes beside what goes: then the rules that bind it must be loaded again, and since rules that
// were read back do not say what they bind, all of them are.
func (td *TableDelta) sets(old, want *Table) (respec bool) {
	oldSets := make(map[string]*Set, len(old.Sets))
	for _, s := range old.Sets {
		oldSets[s.Name] = s
	}
	for _, s := range want.Sets {
		o := oldSets[s.Name]
		delete(oldSets, s.Name)
		if o == s {
			continue
		}
		if o != nil && !o.SameSpec(s) {
			td.DelSets = append(td.DelSets, o)
			td.freeChains(o)
			respec, o = true, nil
		}
		if o == nil {
			td.AddSets = append(td.AddSets, s)
			td.addElems(s, partElems(s))
			td.AddElems = appendPacked(td.AddElems, s, s.Packed)
			continue
		}
		if len(o.Parts) == 0 && len(s.Parts) == 0 {
			del, add := diffPacked(o, s)
			if s.Size > 0 && o.Len()+packedLen(add) > s.Size {
				// The kernel counts what goes until it is gone.
				td.DelSets, td.AddSets = append(td.DelSets, o), append(td.AddSets, s)
				td.freeChains(o)
				td.AddElems = appendPacked(td.AddElems, s, s.Packed)
				respec = true
				continue
			}
			td.DelElems = appendPacked(td.DelElems, s, del)
			td.AddElems = appendPacked(td.AddElems, s, add)
			continue
		}
		del, add := diffElems(o, s)
		td.delElems(s, del)
		td.addElems(s, add)
	}
	for _, s := range old.Sets {
		if oldSets[s.Name] != nil {
			if s.Verdict {
				td.freeChains(s)
			}
			td.DelSets = append(td.DelSets, s)
		}
	}
	return respec
}

// freeChains deletes the elements of a set that goes, because a chain that they lead to
// may go too, and can't while they are there.
func (td *TableDelta) freeChains(s *Set) {
	td.delElems(s, partElems(s))
	for _, p := range s.Packed {
		if slices.ContainsFunc(p.Jumps, func(j Jump) bool { return j.Chain != "" }) {
			td.DelElems = appendPacked(td.DelElems, s, []*Packed{p})
		}
	}
}

func appendPacked(list []*ElemChange, s *Set, pieces []*Packed) []*ElemChange {
	for _, p := range pieces {
		list = append(list, &ElemChange{Set: s, Packed: p})
	}
	return list
}

func (td *TableDelta) delElems(s *Set, elems []Element) {
	if len(elems) > 0 {
		td.DelElems = append(td.DelElems, &ElemChange{Set: s, Elems: elems})
	}
}

func (td *TableDelta) addElems(s *Set, elems []Element) {
	if len(elems) > 0 {
		td.AddElems = append(td.AddElems, &ElemChange{Set: s, Elems: elems})
	}
}

func sameBase(a, b *Base) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

type elemKey struct{ key, end string }

func (e *Element) id() elemKey { return elemKey{e.Key, e.KeyEnd} }

// partElems returns the elements of all parts without repetition.
func partElems(s *Set) []Element {
	if len(s.Parts) == 1 {
		return s.Parts[0].Elems
	}
	n := 0
	for _, p := range s.Parts {
		n += len(p.Elems)
	}
	out := make([]Element, 0, n)
	seen := make(map[elemKey]struct{}, n)
	for _, p := range s.Parts {
		for _, e := range p.Elems {
			if _, dup := seen[e.id()]; !dup {
				seen[e.id()] = struct{}{}
				out = append(out, e)
			}
		}
	}
	return out
}

// trim returns what is left of two lists without what they begin and end with in common.
func trim[T comparable](a, b []T) ([]T, []T) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

// unpacked returns a set that holds its elements in parts, for a comparison with one that
// was read that way.
func unpacked(s *Set) *Set {
	if len(s.Packed) == 0 {
		return s
	}
	out := *s
	out.Packed = nil
	for _, p := range s.Packed {
		part := &Part{Elems: make([]Element, p.Len())}
		for i := range part.Elems {
			part.Elems[i] = p.Elem(i)
		}
		out.Parts = append(out.Parts[:len(out.Parts):len(out.Parts)], part)
	}
	return &out
}

// diffElems compares the elements of two sets of one kind. Parts that both hold are not
// looked at, unless an element that seems to go has to be sought in them.
func diffElems(old, want *Set) (del, add []Element) {
	old, want = unpacked(old), unpacked(want)
	was0, now := trim(old.Parts, want.Parts)
	kept := make(map[*Part]bool, len(was0))
	for _, p := range was0 {
		kept[p] = true
	}
	var fresh []*Part
	for _, p := range now {
		if kept[p] {
			kept[p] = false // false: in both
		} else {
			fresh = append(fresh, p)
		}
	}
	was := map[elemKey]*Element{}
	for _, p := range old.Parts {
		if kept[p] {
			for i := range p.Elems {
				was[p.Elems[i].id()] = &p.Elems[i]
			}
		}
	}
	var maybe []Element
	seen := map[elemKey]bool{}
	for _, p := range fresh {
		for _, e := range p.Elems {
			k := e.id()
			if seen[k] {
				continue
			}
			seen[k] = true
			switch o := was[k]; {
			case o == nil:
				maybe = append(maybe, e)
			case *o != e:
				del, add = append(del, *o), append(add, e)
			}
			delete(was, k)
		}
	}
	shared := sharedElems(old, kept, was, maybe)
	for _, e := range maybe {
		if !shared[e.id()] {
			add = append(add, e)
		}
	}
	for _, p := range old.Parts {
		if !kept[p] {
			continue
		}
		for i := range p.Elems {
			if e := &p.Elems[i]; was[e.id()] == e && !shared[e.id()] {
				del = append(del, *e)
			}
		}
	}
	// What was read back came in the kernel's order; a delta is the same every time.
	slices.SortFunc(del, func(a, b Element) int { return strings.Compare(a.Key, b.Key) })
	return del, add
}

// sharedElems returns which of the elements that seem to come or go are held by a part
// that stays, so that they neither come nor go.
func sharedElems(old *Set, kept map[*Part]bool, going map[elemKey]*Element, coming []Element) map[elemKey]bool {
	if len(going) == 0 && len(coming) == 0 {
		return nil
	}
	look := make(map[elemKey]struct{}, len(going)+len(coming))
	for k := range going {
		look[k] = struct{}{}
	}
	for _, e := range coming {
		look[e.id()] = struct{}{}
	}
	shared := map[elemKey]bool{}
	for _, p := range old.Parts {
		if kept[p] {
			continue
		}
		for i := range p.Elems {
			k := p.Elems[i].id()
			if _, ok := look[k]; ok {
				shared[k] = true
			}
		}
	}
	return shared
}
