package plan

import (
	"slices"

	"weir/internal/ruleset"
)

// Stages is the way from one table of blocklists to another in several transactions, so that
// a large change does not keep others from the kernel for long. Whatever number of them is
// done, what both tables block is blocked, and what neither blocks is not: entries come
// before the rules and the summary that lead to them, and go after them. A table that is new
// gets its hook last.
type Stages struct {
	Deltas []*ruleset.Delta

	from, want *ruleset.Table // from: nil where there is none
	switched   int            // so many are done once rules and summary are those of want
	between    *ruleset.Chain // the marker on the way
}

// NewStages splits d, which leads from one table (nil: none) to b's, into transactions of at
// most some elements each, as far as that can be. A small change is one transaction, and so
// is one in which a set or the whole table is replaced while packets meet it.
func NewStages(from *ruleset.Table, b *Blocks, d *ruleset.Delta, most int) *Stages {
	s := &Stages{Deltas: []*ruleset.Delta{d}, from: from, want: b.table}
	if b.table == nil || len(d.Tables) == 0 || changed(d) <= most {
		return s
	}
	td := d.Tables[len(d.Tables)-1]
	switch {
	case len(d.Tables) == 1 && !splits(td):
		return s
	case len(d.Tables) > 1 && hooked(from):
		return s
	}
	s.Deltas = nil
	if len(d.Tables) > 1 { // what is there blocks nothing
		s.from = nil
		s.Deltas = append(s.Deltas, &ruleset.Delta{Tables: d.Tables[:1]})
	}
	s.between = &ruleset.Chain{Name: b.table.Marker, Rules: []ruleset.Rule{{
		Comment: "on the way to " + b.table.Chain(b.table.Marker).Rules[0].Comment,
		Stmts:   []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.ReturnBack}}}}}
	s.split(td, most)
	return s
}

// changed returns how many packed elements come and go.
func changed(d *ruleset.Delta) int {
	n := 0
	for _, td := range d.Tables {
		for _, list := range [][]*ruleset.ElemChange{td.AddElems, td.DelElems} {
			for _, ch := range list {
				n += ch.Len()
			}
		}
	}
	return n
}

// hooked reports whether packets meet the table.
func hooked(t *ruleset.Table) bool {
	return t != nil && slices.ContainsFunc(t.Chains, func(c *ruleset.Chain) bool { return c.Base != nil })
}

// splits reports whether the change can be split: no set is replaced by another of the same
// name.
func splits(td *ruleset.TableDelta) bool {
	if td.Delete || td.Wake {
		return false
	}
	for _, s := range td.AddSets {
		if slices.ContainsFunc(td.DelSets, func(o *ruleset.Set) bool { return o.Name == s.Name }) {
			return false
		}
	}
	return !slices.ContainsFunc(append(slices.Clone(td.AddElems), td.DelElems...), func(ch *ruleset.ElemChange) bool { return ch.Packed == nil })
}

// split makes the stages of td.
func (s *Stages) split(td *ruleset.TableDelta, most int) {
	t, marker := td.Table, td.Table.Marker
	first := &ruleset.TableDelta{Table: t, Create: td.Create, AddSets: td.AddSets}
	turn := &ruleset.TableDelta{Table: t, DelChains: td.DelChains, DelSets: td.DelSets}
	last := &ruleset.TableDelta{Table: t, Flush: []*ruleset.Chain{s.between}, AddRules: []*ruleset.Chain{t.Chain(marker)}}
	fresh := map[string]bool{} // chains that are there from the first stage on
	for _, c := range td.AddChains {
		if c.Base != nil {
			turn.AddChains = append(turn.AddChains, c)
			continue
		}
		fresh[c.Name] = true
		if c.Name == marker {
			c = s.between
		}
		first.AddChains = append(first.AddChains, c)
	}
	if !fresh[marker] {
		first.Flush = []*ruleset.Chain{s.between}
	}
	first.AddRules = []*ruleset.Chain{s.between}
	for _, c := range td.AddRules {
		switch {
		case c.Name == marker:
		case fresh[c.Name]:
			first.AddRules = append(first.AddRules, c)
		default:
			turn.AddRules = append(turn.AddRules, c)
		}
	}
	for _, c := range td.Flush {
		if c.Name != marker {
			turn.Flush = append(turn.Flush, c)
		}
	}
	// What leads to entries changes at once, unless nothing leads to it yet.
	led := func(ch *ruleset.ElemChange) bool { return ch.Set.Verdict && !slices.Contains(td.AddSets, ch.Set) }
	var add, del []*ruleset.ElemChange
	for _, ch := range td.AddElems {
		if led(ch) {
			turn.AddElems = append(turn.AddElems, ch)
		} else {
			add = append(add, ch)
		}
	}
	for _, ch := range td.DelElems {
		if ch.Set.Verdict {
			turn.DelElems = append(turn.DelElems, ch)
		} else {
			del = append(del, ch)
		}
	}
	s.stage(first)
	for _, part := range portions(add, most) {
		s.stage(&ruleset.TableDelta{Table: t, AddElems: part})
	}
	s.stage(turn)
	s.switched = len(s.Deltas)
	for _, part := range portions(del, most) {
		s.stage(&ruleset.TableDelta{Table: t, DelElems: part})
	}
	s.stage(last)
}

func (s *Stages) stage(td *ruleset.TableDelta) {
	if td.Empty() {
		return
	}
	s.Deltas = append(s.Deltas, &ruleset.Delta{Tables: []*ruleset.TableDelta{td}})
}

// portions deals changes out, at most so many elements in each portion.
func portions(changes []*ruleset.ElemChange, most int) [][]*ruleset.ElemChange {
	var out [][]*ruleset.ElemChange
	room := 0
	for _, ch := range changes {
		for at := 0; at < ch.Len(); {
			if room == 0 {
				out, room = append(out, nil), most
			}
			n := min(room, ch.Len()-at)
			part := &ruleset.ElemChange{Set: ch.Set, Packed: ch.Packed.Slice(at, at+n)}
			if ch.Counts != nil {
				part.Counts = ch.Counts[at : at+n]
			}
			out[len(out)-1] = append(out[len(out)-1], part)
			at, room = at+n, room-n
		}
	}
	return out
}

// At returns the table after the first n stages, nil where there is none.
func (s *Stages) At(n int) *ruleset.Table {
	switch {
	case n == 0:
		return s.from
	case n == len(s.Deltas):
		return s.want
	case s.Deltas[n-1].Tables[0].Delete:
		return nil
	}
	from := s.from
	if from == nil {
		from = &ruleset.Table{Family: s.want.Family, Name: s.want.Name}
	}
	out := &ruleset.Table{Family: s.want.Family, Name: s.want.Name, Marker: s.want.Marker}
	var add, del []*ruleset.ElemChange
	for _, d := range s.Deltas[:n] {
		td := d.Tables[0]
		if td.Delete {
			continue
		}
		add, del = append(add, td.AddElems...), append(del, td.DelElems...)
		if n < s.switched {
			out.Chains = append(out.Chains, td.AddChains...)
			out.Sets = append(out.Sets, td.AddSets...)
		}
	}
	before := s.want
	if n < s.switched {
		before = from
		out.Sets = append(slices.Clone(from.Sets), out.Sets...)
	} else {
		out.Sets = slices.Clone(s.want.Sets)
	}
	chains := out.Chains
	out.Chains = nil
	for _, c := range append(slices.Clone(before.Chains), chains...) {
		if c.Name != out.Marker {
			out.Chains = append(out.Chains, c)
		}
	}
	out.Chains = append(out.Chains, s.between)
	for i, set := range out.Sets {
		if set.Dynamic || set.Verdict && n >= s.switched {
			continue // packets fill it; or it is as in want
		}
		with := *set
		with.Packed = ruleset.Merge(held(from, set.Name), packedOf(del, set.Name), packedOf(add, set.Name))
		out.Sets[i] = &with
	}
	return out
}

func held(t *ruleset.Table, set string) []*ruleset.Packed {
	if s := t.Set(set); s != nil {
		return s.Packed
	}
	return nil
}

func packedOf(changes []*ruleset.ElemChange, set string) []*ruleset.Packed {
	var out []*ruleset.Packed
	for _, ch := range changes {
		if ch.Set.Name == set {
			out = append(out, ch.Packed)
		}
	}
	return out
}
