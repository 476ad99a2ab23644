package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// blocksReport is what a change does to the entries of blocklists.
type blocksReport struct {
	Added   []listCount `json:"added"`   // entries that come, by the lists that hold them
	Changed int         `json:"changed"` // whose packets meet something else
	Removed int         `json:"removed"` // that no list has any more
	// RemovedFrom is those of Removed by the lists that had them, as far as the files of the
	// last good lists are kept; one that several lists had is in each.
	RemovedFrom []listCount `json:"removed_from"`
	// Replaced says that the table of the blocklists comes anew as a whole.
	Replaced bool `json:"replaced"`
}

// listCount is a number of entries.
type listCount struct {
	List    string `json:"list"`
	Entries int    `json:"entries"`
}

func isBlocks(td *ruleset.TableDelta) bool { return td.Table.Name == engine.BlocksTable.Name }

// creates reports whether the table of the services is new.
func creates(d *ruleset.Delta) bool {
	return slices.ContainsFunc(d.Tables, func(td *ruleset.TableDelta) bool { return !isBlocks(td) && td.Create })
}

// servicesOf returns d without what concerns blocklists.
func servicesOf(d *ruleset.Delta) *ruleset.Delta {
	return &ruleset.Delta{Tables: slices.DeleteFunc(slices.Clone(d.Tables), isBlocks)}
}

func withoutBlocks(r *ruleset.Ruleset) *ruleset.Ruleset {
	return &ruleset.Ruleset{Tables: slices.DeleteFunc(slices.Clone(r.Tables), func(t *ruleset.Table) bool {
		return t.Name == engine.BlocksTable.Name
	})}
}

// reportBlocks says what d does to the entries of b; nil: nothing. kept returns what the lists
// came to before, as far as that is known; it is only asked when something goes.
func reportBlocks(b *plan.Blocks, d *ruleset.Delta, kept func() *blocklist.Compiled) *blocksReport {
	out := &blocksReport{RemovedFrom: []listCount{}}
	leaving := leaving{} // what is left of it in the end is gone
	byList := map[string]int{}
	concerned := false
	for _, td := range d.Tables {
		if isBlocks(td) {
			concerned = true
			out.Replaced = out.Replaced || td.Delete && d.Replaces(td.Table) && b.Table() != nil
			leaving.note(td)
			out.Changed += arriving(b, td, leaving, byList)
		}
	}
	if !concerned {
		return nil
	}
	out.Removed = len(leaving)
	out.Added = listCounts(byList)
	if len(leaving) > 0 {
		out.RemovedFrom = leaving.lists(kept())
	}
	return out
}

func listCounts(byList map[string]int) []listCount {
	out := []listCount{}
	for name, n := range byList {
		out = append(out, listCount{name, n})
	}
	slices.SortFunc(out, func(a, b listCount) int { return strings.Compare(a.List, b.List) })
	return out
}

// lists counts the entries by the lists that held them before.
func (l leaving) lists(before *blocklist.Compiled) []listCount {
	byList := map[string]int{}
	for p := range l {
		if e, held := before.Exact(p); held {
			for _, name := range before.Set(e.Set) {
				byList[name]++
			}
		}
	}
	return listCounts(byList)
}

// leaving is the sets of entries that a change takes away, by the entries.
type leaving map[netip.Prefix]string

// isEntries reports whether a set holds entries, and of what prefixes.
func isEntries(set string) (plan.EntrySet, bool) {
	of, ok := plan.ParseEntrySet(set)
	return of, ok && !of.Hits
}

func (l leaving) note(td *ruleset.TableDelta) {
	gone := td.DelSets
	if td.Delete {
		gone = td.Table.Sets
	}
	for _, s := range gone {
		of, ok := isEntries(s.Name)
		if !ok {
			continue
		}
		for _, p := range s.Packed {
			l.packed(s.Name, of, p)
		}
		for _, p := range s.Parts {
			for _, e := range p.Elems {
				l[of.Prefix(e.Key)] = s.Name
			}
		}
	}
	for _, ch := range td.DelElems {
		if of, ok := isEntries(ch.Set.Name); ok && ch.Packed != nil {
			l.packed(ch.Set.Name, of, ch.Packed)
		}
	}
}

func (l leaving) packed(set string, of plan.EntrySet, p *ruleset.Packed) {
	for i := range p.Len() {
		l[of.Prefix(p.Key(i))] = set
	}
}

// arriving counts the entries that come by their lists, takes those that only move out of
// leaving, and returns how many of these get another action.
func arriving(b *plan.Blocks, td *ruleset.TableDelta, leaving leaving, byList map[string]int) (changed int) {
	for _, ch := range td.AddElems {
		of, ok := isEntries(ch.Set.Name)
		if !ok || ch.Packed == nil {
			continue
		}
		for i := range ch.Packed.Len() {
			p := of.Prefix(ch.Packed.Key(i))
			if was, ok := leaving[p]; ok {
				delete(leaving, p)
				if was != ch.Set.Name {
					changed++
				}
			} else if e, ok := b.Compiled.Exact(p); ok {
				for _, name := range b.Compiled.Set(e.Set) {
					byList[name]++
				}
			}
		}
	}
	return changed
}

func (r *blocksReport) print(w io.Writer) {
	if r == nil {
		return
	}
	if r.Replaced {
		fmt.Fprintln(w, "# blocklists: the table comes anew as a whole")
	}
	for _, l := range r.Added {
		fmt.Fprintf(w, "# blocklist %s: +%s\n", l.List, entriesText(l.Entries))
	}
	if r.Changed > 0 {
		fmt.Fprintf(w, "# blocklists: another action for %s\n", entriesText(r.Changed))
	}
	for _, l := range r.RemovedFrom {
		fmt.Fprintf(w, "# blocklist %s: −%s\n", l.List, entriesText(l.Entries))
	}
	if r.Removed > 0 {
		fmt.Fprintf(w, "# blocklists: −%s that no list has any more\n", entriesText(r.Removed))
	}
}

func entriesText(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
