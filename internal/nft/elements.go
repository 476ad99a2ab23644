package nft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// readElems reads the elements of s into one part of it. The kernel enlarges a hash table
// some time after it was filled, and moves elements about while it does: a dump may then
// hold some twice and lack others. So what was read is checked, against the count that
// newer kernels tell, and read again.
func (c *Conn) readElems(ref TableRef, s *ruleset.Set, count int) error {
	var all []Elem
	for try := range readTries {
		all = all[:0]
		msgs, err := c.dumpElems(ref, s, func(e *Elem) {
			if e.catchAll {
				s.Size = foreignSize // a ruleset has no such element: the set is replaced
				return
			}
			all = append(all, *e)
		})
		if err != nil {
			return err
		}
		if ranges(s) {
			all = joinRanges(s, all)
			break
		}
		if s.Timeout {
			count = -1 // the kernel counts elements that have run out, too
		}
		one := msgs <= 1 && count >= 0 // nothing can be missing, and what is double counts
		if (count < 0 || count == len(all)) && (one || !doubles(all)) {
			break
		}
		if try == readTries-1 {
			return unix.EBUSY
		}
		time.Sleep(time.Millisecond << min(try, 5)) // it takes the kernel some milliseconds
	}
	if len(all) == 0 {
		return nil
	}
	elems := make([]ruleset.Element, len(all))
	for i := range all {
		elems[i] = all[i].Element
	}
	s.Parts = []*ruleset.Part{{Elems: elems}}
	return nil
}

// doubles reports whether an element comes twice.
func doubles(elems []Elem) bool {
	seen := make(map[string]struct{}, len(elems))
	for i := range elems {
		seen[elems[i].Key+elems[i].KeyEnd] = struct{}{}
	}
	return len(seen) < len(elems)
}

// joinRanges makes ranges of one field out of elements that begin and end them.
func joinRanges(s *ruleset.Set, all []Elem) []Elem {
	slices.SortFunc(all, func(a, b Elem) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(b2i(b.end), b2i(a.end)))
	})
	var out []Elem
	size := s.Key[0].Size()
	for i := range all {
		e := all[i]
		if e.end {
			continue // nft writes one that ends nothing before the first range
		}
		last := strings.Repeat("\xff", size)
		if i+1 < len(all) {
			last, _ = addOne(all[i+1].Key[:size], -1)
		}
		e.KeyEnd = last + e.Key[size:] // what pads the key pads its end
		if e.KeyEnd == e.Key {
			e.KeyEnd = ""
		}
		out = append(out, e)
	}
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Elements calls each for the elements of a set or map, dynamic or not, with their
// counters and timeouts, until it returns false. The set need not be as in a ruleset
// that was read, but its types must be right. The elements are gathered first, so each
// may use the connection. While the ruleset changes or a set grows, elements may be missing.
func (c *Conn) Elements(ctx context.Context, table TableRef, set *ruleset.Set, each func(Elem) bool) error {
	elems, err := c.elements(ctx, table, set)
	if err != nil {
		return readErr(err, "the elements of %s in %s", setText(set), table)
	}
	for i := range elems {
		if !each(elems[i]) {
			return nil
		}
	}
	return nil
}

func (c *Conn) elements(ctx context.Context, table TableRef, set *ruleset.Set) ([]Elem, error) {
	if err := checkSet(set); err != nil && len(set.Key) == 0 {
		return nil, fmt.Errorf("nft: %s %w", setText(set), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var elems []Elem
	for range readTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		elems = elems[:0]
		seen := map[string]bool{}
		_, err := c.dumpElems(table, set, func(e *Elem) {
			if !e.catchAll && (ranges(set) || !seen[e.Key+e.KeyEnd]) {
				seen[e.Key+e.KeyEnd] = true
				elems = append(elems, *e)
			}
		})
		if err != nil && !errors.Is(err, errInterrupted) {
			return nil, err
		}
		if err == nil {
			break
		}
	}
	if ranges(set) {
		elems = joinRanges(set, elems)
	}
	return elems, nil
}

// DeleteElements takes elements out of a set or map, for instance what rules have put
// into a dynamic one; only their keys count. Elements that are not there, because they
// have run out or the set is gone, do no harm. It is not guarded by a generation.
func (c *Conn) DeleteElements(ctx context.Context, table TableRef, set *ruleset.Set, elems []ruleset.Element) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(elems) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(elems), deleteAtOnce)
		if err := c.deleteSome(table, set, elems[:n]); err != nil {
			return err
		}
		elems = elems[n:]
	}
	return nil
}

const (
	deleteAtOnce = 1000 // elements; each is a message of its own
	deleteTries  = 5    // how often elements may run out between try and try
)

// deleteSome deletes elements with one message each, so that the kernel says which of
// them are not there.
func (c *Conn) deleteSome(table TableRef, set *ruleset.Set, elems []ruleset.Element) error {
	for range deleteTries {
		b, err := encodeDelete(table, set, elems, !c.noDestr)
		if err != nil {
			return err
		}
		gen, err := c.generation()
		if err != nil {
			return err
		}
		_, err = c.commit(b, gen)
		var refused *Error
		if !errors.As(err, &refused) || len(refused.All) == 0 {
			return err
		}
		if !c.noDestr && refused.Errno == unix.EINVAL {
			c.noDestr = true
			continue
		}
		gone := map[string]bool{}
		for _, r := range refused.All {
			if r.Errno != unix.ENOENT {
				return err
			}
			gone[r.Object] = true
		}
		left := elems[:0:0]
		for i := range elems {
			m := message{op: opDelElems, table: tableOf(table), set: set, elems: elems[i : i+1]}
			if !gone[m.object()] {
				left = append(left, elems[i])
			}
		}
		if elems = left; len(elems) == 0 {
			return nil
		}
	}
	return fmt.Errorf("nft: elements of %s keep running out while they are deleted", setText(set))
}

func tableOf(ref TableRef) *ruleset.Table {
	return &ruleset.Table{Family: ref.Family, Name: ref.Name}
}

// encodeDelete writes a batch that deletes elements, one in a message.
func encodeDelete(table TableRef, set *ruleset.Set, elems []ruleset.Element, destroy bool) (*Batch, error) {
	b := &Batch{}
	e := encoder{Batch: b}
	t := tableOf(table)
	b.frame(0, func() {
		for i := range elems {
			at := len(b.w.b)
			e.elems(opDelElems, t, &ruleset.ElemChange{Set: set, Elems: elems[i : i+1]})
			if destroy && e.err == nil {
				b.w.setType(at, msgType(msgDestroySetElem))
			}
		}
	})
	return b, e.err
}
