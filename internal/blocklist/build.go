package blocklist

import (
	"fmt"
	"math"
)

// bag collects entries in pieces, so that a growing list is not copied again and again.
type bag[A number[A]] struct {
	full [][]entry[A]
	last []entry[A]
	n    int
}

// bagPiece is how many entries a piece of a bag holds.
const bagPiece = 1 << 15

func (b *bag[A]) put(e entry[A]) {
	if len(b.last) == bagPiece {
		b.full = append(b.full, b.last)
		b.last = make([]entry[A], 0, bagPiece)
	}
	b.last = append(b.last, e)
	b.n++
}

// all empties the bag into one slice.
func (b *bag[A]) all() []entry[A] {
	out := b.last
	if len(b.full) > 0 {
		out = make([]entry[A], 0, b.n)
		for i, piece := range b.full {
			out = append(out, piece...)
			b.full[i] = nil
		}
		out = append(out, b.last...)
	}
	*b = bag[A]{}
	return out
}

// keep adds the entry of a line of the last file.
func (b *Builder) keep(it *item, line int) error {
	c := &b.list.Counts
	n := len(b.list.Files) - 1
	if c.Entries == b.opts.MaxEntries {
		return b.fatal(b.list.Files[n].Name, line, fmt.Sprintf("more than %d entries, the most that list %s may hold", b.opts.MaxEntries, printable(b.list.Name)))
	}
	c.Entries++
	note := uint32(0)
	if len(it.note) > 0 {
		note = b.notes.put(it.note)
	}
	if it.masked {
		c.Masked++
	}
	if it.mapped {
		c.Mapped++
	}
	if it.timed {
		c.Timed++
	}
	at := uint32(min(line, math.MaxUint32))
	if it.is4 {
		to := &b.four
		if it.hole {
			to = &b.fourHoles
		}
		to.put(entry[v4]{first: it.first4, last: it.last4, line: at, note: note, file: uint16(n)})
		return nil
	}
	to := &b.six
	if it.hole {
		to = &b.sixHoles
	}
	to.put(entry[v6]{first: it.first6, last: it.last6, line: at, note: note, file: uint16(n)})
	return nil
}

// List returns the list in normal form. The Builder is of no use after it.
func (b *Builder) List() *List {
	l := b.list
	c := &l.Counts
	b.notes.done()
	l.notes, l.More = b.notes, b.more
	c.NotesLost = b.notes.lost
	c.Exceptions = b.fourHoles.n + b.sixHoles.n
	l.four = family[v4]{normal(b.four.all(), c), normal(b.fourHoles.all(), c)}
	l.six = family[v6]{normal(b.six.all(), c), normal(b.sixHoles.all(), c)}
	c.Inside = inside(l.four.entries) + inside(l.six.entries)
	*b = Builder{}
	return l
}

// normal sorts entries and takes doubles out: the one that stands first stays.
func normal[A number[A]](list []entry[A], c *Counts) []entry[A] {
	sortRecords(list)
	out := list[:0]
	for _, e := range list {
		if n := len(out); n > 0 && out[n-1].first == e.first && out[n-1].last == e.last {
			if out[n-1].more < math.MaxUint8 {
				out[n-1].more++
			}
			c.Duplicates++
			continue
		}
		out = append(out, e)
	}
	return out
}

// inside counts the entries that lie inside another one. They are sorted, so whatever
// covers one stands before it, and reaches as far.
func inside[A number[A]](list []entry[A]) int {
	n := 0
	var reach A
	for i, e := range list {
		if i > 0 && e.last.cmp(reach) <= 0 {
			n++
			continue
		}
		reach = e.last
	}
	return n
}
