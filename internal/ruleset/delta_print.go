package ruleset

import (
	"fmt"
	"slices"
	"strings"
)

// elemsPerLine is how many elements one printed command carries at most: few enough to
// read, many enough that nft does not spend its time on commands.
const elemsPerLine = 64

// String returns the delta as nft commands, one a line, in an order that `nft -f` takes
// as one transaction. Chains that were read back from the kernel print like any other,
// because only rules that come are printed.
func (d *Delta) String() string {
	var b strings.Builder
	for _, td := range d.Tables {
		td.print(&b)
	}
	return b.String()
}

func (td *TableDelta) print(b *strings.Builder) {
	table := fmt.Sprintf("%s %s", td.Table.Family, td.Table.Name)
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	if td.Delete {
		line("delete table %s", table)
		return
	}
	if td.Create {
		line("add table %s", table)
	}
	for _, c := range td.Flush {
		line("flush chain %s %s", table, c.Name)
	}
	printElems(b, "delete", table, td.DelElems)
	for _, c := range td.DelChains {
		line("delete chain %s %s", table, c.Name)
	}
	for _, s := range td.DelSets {
		line("delete %s %s %s", s.word(), table, s.Name)
	}
	for _, o := range td.DelTimeouts {
		line("delete ct timeout %s %s", table, o.Name)
	}
	for _, o := range td.AddTimeouts {
		line("add ct timeout %s %s { %s; }", table, o.Name, strings.Join(o.spec(), "; "))
	}
	for _, c := range td.AddChains {
		if c.Base != nil {
			line("add chain %s %s { %s }", table, c.Name, c.Base)
		} else {
			line("add chain %s %s", table, c.Name)
		}
	}
	for _, s := range td.AddSets {
		line("add %s %s %s { %s; }", s.word(), table, s.Name, strings.Join(s.spec(), "; "))
	}
	printElems(b, "add", table, td.AddElems)
	for _, c := range td.AddRules {
		for i := range c.Rules {
			line("add rule %s %s %s", table, c.Name, &c.Rules[i])
		}
	}
	if td.Wake {
		line("add table %s", table) // without `flags dormant`, which it has
	}
}

func printElems(b *strings.Builder, verb, table string, changes []*ElemChange) {
	for _, ch := range changes {
		if ch.Packed != nil {
			printPackedChange(b, verb, table, ch)
			continue
		}
		for elems := range slices.Chunk(ch.Elems, elemsPerLine) {
			fmt.Fprintf(b, "%s element %s %s { ", verb, table, ch.Set.Name)
			ch.Set.printElems(b, elems, ", ")
			b.WriteString(" }\n")
		}
	}
}

func printPackedChange(b *strings.Builder, verb, table string, ch *ElemChange) {
	for lo := 0; lo < ch.Packed.Len(); lo += elemsPerLine {
		hi := min(lo+elemsPerLine, ch.Packed.Len())
		var counts []Count
		if ch.Counts != nil {
			counts = ch.Counts[lo:hi]
		}
		fmt.Fprintf(b, "%s element %s %s { ", verb, table, ch.Set.Name)
		ch.Set.printPacked(b, ch.Packed.Slice(lo, hi), counts, ", ")
		b.WriteString(" }\n")
	}
}

// Summary says the delta in a few words: "3 elements added, 1 rule replaced". A rule that
// is loaded again unchanged, because it shares a chain with one that changed, is not
// counted, unless there is nothing else to say; nor are the elements of a set that goes
// or is replaced. An empty delta is "no change".
func (d *Delta) Summary() string {
	var n tally
	for _, td := range d.Tables {
		n.table(td)
	}
	var words []string
	for _, c := range []count{
		{n.tablesAdded, "table", "added"}, {n.tablesDeleted, "table", "deleted"},
		{n.tablesWoken, "table", "switched on"},
		{n.setsAdded, "set", "added"}, {n.setsReplaced, "set", "replaced"}, {n.setsDeleted, "set", "deleted"},
		{n.timeoutsAdded, "ct timeout", "added"}, {n.timeoutsDeleted, "ct timeout", "deleted"},
		{n.elemsAdded, "element", "added"}, {n.elemsChanged, "element", "changed"}, {n.elemsDeleted, "element", "deleted"},
		{n.chainsAdded, "chain", "added"}, {n.chainsReplaced, "chain", "replaced"}, {n.chainsDeleted, "chain", "deleted"},
		{n.rulesAdded, "rule", "added"}, {n.rulesReplaced, "rule", "replaced"}, {n.rulesDeleted, "rule", "deleted"},
	} {
		words = append(words, c.words()...)
	}
	switch {
	case len(words) > 0:
		return strings.Join(words, ", ")
	case d.Empty():
		return "no change"
	}
	return strings.Join(count{n.chainsReloaded, "chain", "loaded again"}.words(), "")
}

// count is a number of things that something was done to.
type count struct {
	n           int
	thing, done string
}

func (c count) words() []string {
	switch c.n {
	case 0:
		return nil
	case 1:
		return []string{"1 " + c.thing + " " + c.done}
	}
	return []string{fmt.Sprintf("%d %ss %s", c.n, c.thing, c.done)}
}

// tally counts what a delta does.
type tally struct {
	tablesAdded, tablesDeleted, tablesWoken    int
	setsAdded, setsReplaced, setsDeleted       int
	timeoutsAdded, timeoutsDeleted             int
	elemsAdded, elemsChanged, elemsDeleted     int
	chainsAdded, chainsReplaced, chainsDeleted int
	rulesAdded, rulesReplaced, rulesDeleted    int
	chainsReloaded                             int
}

func (n *tally) table(td *TableDelta) {
	if td.Create {
		n.tablesAdded++
	}
	if td.Delete {
		n.tablesDeleted++
	}
	if td.Wake {
		n.tablesWoken++
	}
	n.timeoutsAdded += len(td.AddTimeouts)
	n.timeoutsDeleted += len(td.DelTimeouts)
	n.sets(td)
	n.elems(td)
	n.chains(td)
}

func (n *tally) sets(td *TableDelta) {
	gone := map[string]bool{}
	for _, s := range td.DelSets {
		gone[s.Name] = true
	}
	both := 0
	for _, s := range td.AddSets {
		if gone[s.Name] {
			both++
		}
	}
	n.setsReplaced += both
	n.setsAdded += len(td.AddSets) - both
	n.setsDeleted += len(td.DelSets) - both
}

func (n *tally) elems(td *TableDelta) {
	type place struct {
		set string
		id  elemKey
	}
	setGone := map[string]bool{}
	for _, s := range td.DelSets {
		setGone[s.Name] = true
	}
	gone := map[place]bool{}
	for _, ch := range td.DelElems {
		if setGone[ch.Set.Name] {
			continue
		}
		for i := range ch.Elems {
			gone[place{ch.Set.Name, ch.Elems[i].id()}] = true
		}
	}
	added, both := 0, 0
	for _, ch := range td.AddElems {
		if setGone[ch.Set.Name] {
			continue
		}
		for i := range ch.Elems {
			added++
			if gone[place{ch.Set.Name, ch.Elems[i].id()}] {
				both++
			}
		}
	}
	n.elemsChanged += both
	n.elemsAdded += added - both
	n.elemsDeleted += len(gone) - both
	n.packed(td, setGone)
}

// packed counts the elements that are packed. There may be a million: they are in
// ascending order, and no map is made of them.
func (n *tally) packed(td *TableDelta, setGone map[string]bool) {
	gone, come := map[string][]*Packed{}, map[string][]*Packed{}
	for _, side := range []struct {
		list []*ElemChange
		to   map[string][]*Packed
	}{{td.DelElems, gone}, {td.AddElems, come}} {
		for _, ch := range side.list {
			if ch.Packed != nil && !setGone[ch.Set.Name] {
				side.to[ch.Set.Name] = append(side.to[ch.Set.Name], ch.Packed)
			}
		}
	}
	for name, pieces := range gone {
		both := common(pieces, come[name])
		n.elemsChanged += both
		n.elemsDeleted += packedLen(pieces) - both
		n.elemsAdded -= both
	}
	for _, pieces := range come {
		n.elemsAdded += packedLen(pieces)
	}
}

// common returns how many keys are in both.
func common(a, b []*Packed) int {
	n := 0
	x, y := cursor{pieces: a}, cursor{pieces: b}
	for x.more() && y.more() {
		c := strings.Compare(x.key(), y.key())
		if c == 0 {
			n++
		}
		if c <= 0 {
			x.next()
		}
		if c >= 0 {
			y.next()
		}
	}
	return n
}

func (n *tally) chains(td *TableDelta) {
	old := map[string]*Chain{}
	for _, c := range td.Flush {
		old[c.Name] = c
	}
	gone := map[string]bool{}
	for _, c := range td.DelChains {
		gone[c.Name] = true
	}
	for _, c := range td.AddChains {
		if gone[c.Name] {
			n.chainsReplaced++
			delete(gone, c.Name)
		} else {
			n.chainsAdded++
		}
	}
	n.chainsDeleted += len(gone)
	for _, c := range td.AddRules {
		if o := old[c.Name]; o != nil {
			n.chainsReloaded++
			n.rules(o.Fingerprints(), c.Fingerprints())
			delete(old, c.Name)
		} else {
			n.rulesAdded += len(c.Rules)
		}
	}
	for _, o := range old {
		n.rulesDeleted += len(o.Fingerprints())
	}
}

// rules compares the rules of a chain by their fingerprints; order does not count.
func (n *tally) rules(old, now []string) {
	have := map[string]int{}
	for _, p := range old {
		have[p]++
	}
	added := 0
	for _, p := range now {
		if have[p] > 0 {
			have[p]--
		} else {
			added++
		}
	}
	deleted := len(old) - len(now) + added
	both := min(added, deleted)
	n.rulesReplaced += both
	n.rulesAdded += added - both
	n.rulesDeleted += deleted - both
}
