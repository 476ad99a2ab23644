package blocklist

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Match is an entry of a list that holds an address.
type Match struct {
	List      string `json:"list"`
	Action    Action `json:"action"`
	Entry     string `json:"entry"`               // as people write it: 192.0.2.0/24, 192.0.2.1-192.0.2.9
	Exception bool   `json:"exception,omitempty"` // ipset's nomatch: what is wider in this list does not count here
	File      string `json:"file"`
	Line      int    `json:"line"`
	Note      string `json:"note,omitempty"`
	More      int    `json:"more,omitempty"` // doubles in the same list; 255 and more are 255
	// Since is when the entry came into the list, to the second; zero: not known. With
	// SinceAtMost it was there when the list was read for the first time, at Since: it came then
	// or at any time before.
	Since       time.Time `json:"since,omitzero"`
	SinceAtMost bool      `json:"since_at_most,omitempty"`

	order [3]uint64 // the size of what it covers, less one, and the place of its list
}

// Answer is all that is known of an address.
type Answer struct {
	Action  Action         // what happens to its packets
	Entry   Entry          // the compiled entry that decides; zero when Action is None
	Matches []Match        // what lists say, the most specific entry first
	Allow   []netip.Prefix // allowed prefixes that hold it, the most specific first
}

// Lookup returns why packets from an address meet what they meet. It looks at all entries
// (about a millisecond for a million), where Find is quick.
func (c *Compiled) Lookup(a netip.Addr) Answer {
	var out Answer
	if e, ok := c.Find(a); ok {
		out.Action, out.Entry = e.Action, e
	}
	for i := len(c.allow) - 1; i >= 0; i-- {
		if c.allow[i].Contains(a.Unmap().WithZone("")) {
			out.Allow = append(out.Allow, c.allow[i])
		}
	}
	four, six, is4 := numberOf(a)
	for i, u := range c.uses {
		if is4 {
			out.Matches = matches(out.Matches, u, i, &u.List.four, 0, four)
		} else {
			out.Matches = matches(out.Matches, u, i, &u.List.six, u.List.sixPlace(), six)
		}
	}
	slices.SortStableFunc(out.Matches, func(a, b Match) int { return slices.Compare(a.order[:], b.order[:]) })
	slices.SortStableFunc(out.Allow, func(a, b netip.Prefix) int { return cmp.Compare(b.Bits(), a.Bits()) })
	return out
}

// matches appends what a list has of a; from is the place of the family's first entry.
func matches[A number[A]](to []Match, u Use, place int, f *family[A], from int, a A) []Match {
	for kind, list := range [][]entry[A]{f.entries, f.holes} {
		for i, e := range list {
			if e.first.cmp(a) > 0 {
				break
			}
			if e.last.cmp(a) < 0 {
				continue
			}
			m := Match{List: u.List.Name, Action: u.Action, Exception: kind == 1}
			m.Entry, m.File, m.Line = e.String(), u.List.Files[e.file].Name, int(e.line)
			m.Note, m.More = u.List.notes.get(e.note), int(e.more)
			u.List.stamped(&m, from+i)
			hi, lo := distance(e.first.addr(), e.last.addr())
			m.order = [3]uint64{hi, lo, uint64(place)}
			to = append(to, m)
		}
		from += len(list)
	}
	return to
}

// distance returns last-first as a number of 128 bits.
func distance(first, last netip.Addr) (hi, lo uint64) {
	f4, f6, is4 := numberOf(first)
	l4, l6, _ := numberOf(last)
	if is4 {
		return 0, uint64(l4 - f4)
	}
	lo = l6.lo - f6.lo
	hi = l6.hi - f6.hi
	if l6.lo < f6.lo {
		hi--
	}
	return hi, lo
}
