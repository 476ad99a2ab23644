package ruleset

import "slices"

// Steps is a change in one to four transactions, so that no packet meets a part of it alone.
//
// One transaction is not atomic for a packet that is under way. It keeps to the rules that
// were in force when it came into its chain (nft_do_chain in net/netfilter/nf_tables_core.c),
// but looks up the elements that are in force when it looks. So rules from before a commit
// meet the elements from after it, where what they look for is gone, and a chain that is new
// has no rules yet. And elements of sets of ranges come into force after everything else
// (nft_set_commit_update in net/netfilter/nf_tables_api.c), up to milliseconds later, so that
// new rules, and those that had others go, are in force without them.
//
// A table that comes or goes, is switched on, or has a set of which another of the same name
// takes the place, changes in one transaction.
type Steps struct {
	// Prepare brings what nobody can reach yet: new sets with their elements, and new chains
	// with their rules. It is empty where nothing depends on that.
	Prepare *Delta
	// Change is what packets notice.
	Change *Delta
	// Withdraw takes elements away for which others come in another set, as when a listener's
	// port becomes a range of ports: until then packets may meet the one or the other.
	Withdraw *Delta
	// Clear takes away what nobody can reach any more: sets and chains, and those elements of
	// sets that stay which no rule looks up.
	Clear *Delta
}

// Steps returns the steps of d.
func (d *Delta) Steps() Steps {
	s := Steps{&Delta{}, &Delta{}, &Delta{}, &Delta{}}
	for _, td := range d.Tables {
		if td.Create || td.Delete || td.Wake || td.respecs() {
			s.Change.append(td)
			continue
		}
		rest := *td
		first, then, last := &TableDelta{Table: td.Table}, &TableDelta{Table: td.Table}, &TableDelta{Table: td.Table}
		rest.leave(then, last)
		if td.dependsOnNew() {
			rest.prepare(first)
		}
		s.Prepare.append(first)
		s.Change.append(&rest)
		s.Withdraw.append(then)
		s.Clear.append(last)
	}
	return s
}

func (d *Delta) append(td *TableDelta) {
	if !td.Empty() {
		d.Tables = append(d.Tables, td)
	}
}

// Undo returns what takes Steps.Prepare back, where d is that.
func (d *Delta) Undo() *Delta {
	back := &Delta{}
	for _, td := range d.Tables {
		u := &TableDelta{Table: td.Table, Flush: td.AddRules, DelChains: td.AddChains, DelSets: td.AddSets, DelTimeouts: td.AddTimeouts}
		for _, ch := range td.AddElems {
			if ch.Set.Verdict { // a chain that an element leads to cannot go
				u.DelElems = append(u.DelElems, ch)
			}
		}
		back.Tables = append(back.Tables, u)
	}
	return back
}

// respecs reports whether something goes and another of the same name comes.
func (td *TableDelta) respecs() bool {
	return slices.ContainsFunc(td.DelSets, func(s *Set) bool {
		return slices.ContainsFunc(td.AddSets, func(o *Set) bool { return o.Name == s.Name })
	}) || slices.ContainsFunc(td.DelTimeouts, func(s *Timeouts) bool {
		return slices.ContainsFunc(td.AddTimeouts, func(o *Timeouts) bool { return o.Name == s.Name })
	})
}

// dependsOnNew reports whether what changes in the place of something else leads to what is
// new before that is in force.
func (td *TableDelta) dependsOnNew() bool {
	fresh := td.newChains()
	return slices.ContainsFunc(td.AddElems, func(ch *ElemChange) bool {
		if slices.Contains(td.AddSets, ch.Set) {
			return ch.Set.Range
		}
		return ch.Set.Verdict && ch.leadsTo(fresh)
	})
}

// leadsTo reports whether an element leads to one of the chains.
func (c *ElemChange) leadsTo(chains map[string]bool) bool {
	in := func(j Jump) bool { return chains[j.Chain] }
	if c.Packed != nil {
		return slices.ContainsFunc(c.Packed.Jumps, in)
	}
	return slices.ContainsFunc(c.Elems, func(e Element) bool { return in(e.Jump) })
}

// newChains are the chains that come and that packets do not meet by themselves, by name.
func (td *TableDelta) newChains() map[string]bool {
	fresh := make(map[string]bool, len(td.AddChains))
	for _, c := range td.AddChains {
		fresh[c.Name] = c.Base == nil
	}
	for _, c := range td.DelChains { // it takes the place of another
		delete(fresh, c.Name)
	}
	delete(fresh, td.Table.Marker) // it tells of a change that is done
	return fresh
}

// prepare moves what nobody can reach yet to first.
func (td *TableDelta) prepare(first *TableDelta) {
	fresh := td.newChains()
	first.AddTimeouts, td.AddTimeouts = td.AddTimeouts, nil
	first.AddChains, td.AddChains = parted(td.AddChains, func(c *Chain) bool { return fresh[c.Name] })
	first.AddRules, td.AddRules = parted(td.AddRules, func(c *Chain) bool { return fresh[c.Name] })
	first.AddElems, td.AddElems = parted(td.AddElems, func(ch *ElemChange) bool { return slices.Contains(td.AddSets, ch.Set) })
	first.AddSets, td.AddSets = td.AddSets, nil
}

// leave moves what nobody can reach any more to last, and to then what others come for.
func (td *TableDelta) leave(then, last *TableDelta) {
	gone := make(map[string]bool, len(td.DelChains))
	for _, c := range td.DelChains {
		gone[c.Name] = c.Base == nil
	}
	for _, c := range td.AddChains {
		delete(gone, c.Name)
	}
	isGone := func(c *Chain) bool { return gone[c.Name] }
	last.Flush, td.Flush = parted(td.Flush, isGone)
	last.DelChains, td.DelChains = parted(td.DelChains, isGone)
	var with []*ElemChange
	last.DelElems, with = parted(td.DelElems, func(ch *ElemChange) bool { return slices.Contains(td.DelSets, ch.Set) })
	last.DelSets, td.DelSets = td.DelSets, nil
	last.DelTimeouts, td.DelTimeouts = td.DelTimeouts, nil
	td.DelElems = nil
	// What others come for under the same key goes with the change.
	free := make([]*ElemChange, 0, len(with))
	comes := td.comesTo(with)
	for _, ch := range with {
		if ch.Packed != nil {
			td.DelElems = append(td.DelElems, ch)
			continue
		}
		now, rest := parted(ch.Elems, func(e Element) bool { return comes[elemIn{ch.Set.Name, elemKey{key: e.Key}}] })
		td.delElems(ch.Set, now)
		if len(rest) > 0 {
			free = append(free, &ElemChange{Set: ch.Set, Elems: rest})
		}
	}
	if len(free) == 0 {
		return
	}
	unreached := unreached(td.Table, free)
	moved := movedTo(td.AddElems, free)
	for _, ch := range free {
		none := unreached[ch.Set.Name]
		late, rest := parted(ch.Elems, func(e Element) bool { return none != nil && none(e.Key) })
		later, now := parted(rest, func(e Element) bool { return moved[elemIn{ch.Set.Name, e.id()}] })
		last.delElems(ch.Set, late)
		then.delElems(ch.Set, later)
		td.delElems(ch.Set, now)
	}
}

// comesTo returns the keys of elements that come to the sets of changes.
func (td *TableDelta) comesTo(changes []*ElemChange) map[elemIn]bool {
	sets := make(map[string]bool, len(changes))
	for _, ch := range changes {
		sets[ch.Set.Name] = true
	}
	comes := map[elemIn]bool{}
	for _, add := range td.AddElems {
		if !sets[add.Set.Name] {
			continue
		}
		for i := range add.Elems {
			comes[elemIn{add.Set.Name, elemKey{key: add.Elems[i].Key}}] = true
		}
	}
	return comes
}

// parted returns what is in and what is not.
func parted[T any](list []T, in func(T) bool) (yes, no []T) {
	for _, x := range list {
		if in(x) {
			yes = append(yes, x)
		} else {
			no = append(no, x)
		}
	}
	return yes, no
}
