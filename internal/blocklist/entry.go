package blocklist

import (
	"iter"
	"net/netip"
	"slices"
	"sort"

	"weir/internal/model"
)

// Entry is one prefix of a compiled table.
type Entry struct {
	Prefix netip.Prefix
	// From is the prefix that it is a piece of, when an allowed one lies inside that; else
	// it is Prefix. The counters of its pieces add up to it. (A range, or an entry with
	// ipset's nomatch inside, comes to several prefixes, each for itself: Lookup tells the
	// entry.)
	From   netip.Prefix
	Action Action // what happens
	Own    Action // what its own lists ask for; less than Action inside a stronger entry
	// Set numbers the lists that hold it: see Compiled.Set.
	Set uint32
}

func (c cell[A]) entry() Entry {
	return Entry{
		Prefix: c.prefix().netip(),
		From:   netip.PrefixFrom(c.addr.first(int(c.from)).addr(), int(c.from)),
		Action: c.action, Own: c.own, Set: c.set,
	}
}

// Entries returns the table of a family in order: by address, the wider prefix first.
func (c *Compiled) Entries(f model.Family) iter.Seq[Entry] {
	if f == model.IPv4 {
		return entriesOf(c.four)
	}
	return entriesOf(c.six)
}

func entriesOf[A number[A]](cells []cell[A]) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range cells {
			if !yield(cells[i].entry()) {
				return
			}
		}
	}
}

// Set returns the names of the lists of a set, in the order in which they were compiled.
func (c *Compiled) Set(set uint32) []string {
	names := make([]string, len(c.sets[set]))
	for i, list := range c.sets[set] {
		names[i] = c.uses[list].List.Name
	}
	return names
}

// Sets returns the number of sets: those that Entry.Set may name are below it.
func (c *Compiled) Sets() int { return len(c.sets) }

// Find returns the entry that decides about packets from an address: the most specific
// one that holds it. A 4-in-6 address is IPv4.
func (c *Compiled) Find(a netip.Addr) (Entry, bool) {
	four, six, is4 := numberOf(a)
	if is4 {
		return find(c.four, four)
	}
	return find(c.six, six)
}

// find looks for the last cell that does not lie behind a, and then for those around it:
// what holds a but not that cell's end holds its beginning, so it is no longer than what
// both have in common.
func find[A number[A]](cells []cell[A], a A) (Entry, bool) {
	for bits := a.width(); bits >= 0; {
		p := prefix[A]{a.first(bits), uint8(bits)}
		n := sort.Search(len(cells), func(i int) bool { return cells[i].prefix().compare(p) > 0 })
		if n == 0 {
			return Entry{}, false
		}
		cells = cells[:n]
		common := cells[n-1].addr.common(a)
		if int(cells[n-1].bits) <= common {
			return cells[n-1].entry(), true
		}
		bits = min(bits-1, common)
	}
	return Entry{}, false
}

// Exact returns the entry of just that prefix.
func (c *Compiled) Exact(p netip.Prefix) (Entry, bool) {
	four, six, is4 := numberPrefix(p)
	if is4 {
		return exact(c.four, four)
	}
	return exact(c.six, six)
}

func exact[A number[A]](cells []cell[A], p prefix[A]) (Entry, bool) {
	i, ok := sort.Find(len(cells), func(i int) int { return p.compare(cells[i].prefix()) })
	if !ok {
		return Entry{}, false
	}
	return cells[i].entry(), true
}

// Kind says what a Change is.
type Kind uint8

// The kinds.
const (
	Added   Kind = iota // New only
	Removed             // Old only
	Changed             // the same prefix with another action, other lists or another origin
)

// Change is one difference of two tables.
type Change struct {
	Kind     Kind
	Old, New Entry // their Set numbers belong to the one compiled and the other
}

// Diff returns what makes of the old table of a family the new one, in the order of the
// prefixes. Lists are compared by their names. old may be nil: then all is added.
func Diff(old, now *Compiled, f model.Family) iter.Seq[Change] {
	if old == nil {
		old = &Compiled{}
	}
	same := &sameSets{old: old, now: now, known: map[[2]uint32]bool{}}
	if f == model.IPv4 {
		return diffCells(old.four, now.four, same)
	}
	return diffCells(old.six, now.six, same)
}

func diffCells[A number[A]](old, now []cell[A], same *sameSets) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		for i, j := 0, 0; i < len(old) || j < len(now); {
			c := 0
			switch {
			case i == len(old):
				c = +1
			case j == len(now):
				c = -1
			default:
				c = old[i].prefix().compare(now[j].prefix())
			}
			more := true
			switch {
			case c < 0:
				more = yield(Change{Kind: Removed, Old: old[i].entry()})
				i++
			case c > 0:
				more = yield(Change{Kind: Added, New: now[j].entry()})
				j++
			default:
				if a, b := old[i], now[j]; a.action != b.action || a.own != b.own || a.from != b.from || !same.are(a.set, b.set) {
					more = yield(Change{Kind: Changed, Old: a.entry(), New: b.entry()})
				}
				i++
				j++
			}
			if !more {
				return
			}
		}
	}
}

// sameSets remembers which sets of two compiled forms have the same names.
type sameSets struct {
	old, now *Compiled
	known    map[[2]uint32]bool
	last     [2]uint32
	lastIs   bool
	any      bool
}

func (s *sameSets) are(old, now uint32) bool {
	pair := [2]uint32{old, now}
	if s.any && pair == s.last {
		return s.lastIs
	}
	is, ok := s.known[pair]
	if !ok {
		is = slices.Equal(s.old.Set(old), s.now.Set(now))
		s.known[pair] = is
	}
	s.last, s.lastIs, s.any = pair, is, true
	return is
}
