package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// marked reports whether what was read has want's marker.
func marked(t, want *ruleset.Table) bool {
	if want == nil || want.Marker == "" {
		return false
	}
	w, c := want.Chain(want.Marker), t.Chain(want.Marker)
	return w != nil && c != nil && len(w.Rules) > 0 && slices.Equal(c.Fingerprints(), w.Fingerprints())
}

// wantedPacked returns the set of want that s is to be compared with, if that is packed
// and, but for its size, of the same declaration.
func wantedPacked(want *ruleset.Table, s *ruleset.Set) *ruleset.Set {
	if want == nil {
		return nil
	}
	w := want.Set(s.Name)
	if w == nil || len(w.Packed) == 0 {
		return nil
	}
	sized := *w // one of another size is replaced, and its counters go on
	sized.Size = s.Size
	if !sized.SameSpec(s) {
		return nil
	}
	return w
}

// readPacked is readElems for very many elements: it keeps no more of one than its key and
// verdict.
func (c *Conn) readPacked(ref TableRef, s *ruleset.Set, count int) error {
	for try := range readTries {
		r := packedRead{stride: s.Key.Len()}
		_, err := c.scanElems(ref, s, r.add)
		if err != nil {
			return err
		}
		pieces, elems, unique := r.pack(s)
		if r.odd {
			s.Size = foreignSize
			return nil
		}
		if (count < 0 || count == elems) && unique {
			s.Packed = pieces
			return nil
		}
		time.Sleep(time.Millisecond << min(try, 5)) // see readElems
	}
	return unix.EBUSY
}

// packedRead collects what is read.
type packedRead struct {
	stride int
	keys   []byte
	which  []uint8
	jumps  []ruleset.Jump
	odd    bool // there is what no set of weir's has
}

func (r *packedRead) add(e *Elem) {
	if e.catchAll || e.KeyEnd != "" || len(e.Key) != r.stride || e.Timeout > 0 {
		r.odd = true
		return
	}
	i := slices.Index(r.jumps, e.Jump)
	if i < 0 {
		e.Jump.Chain = strings.Clone(e.Jump.Chain)
		i = len(r.jumps)
		r.jumps = append(r.jumps, e.Jump)
	}
	if i > 255 {
		r.odd = true
		return
	}
	r.keys = append(r.keys, e.Key...)
	r.which = append(r.which, uint8(i))
}

// pack returns what was read in order, how many elements it is, and whether none came twice.
func (r *packedRead) pack(s *ruleset.Set) (pieces []*ruleset.Packed, elems int, unique bool) {
	order := make([]uint32, len(r.which))
	for i := range order {
		order[i] = uint32(i)
	}
	key := func(i uint32) string { return view(r.keys[int(i)*r.stride : (int(i)+1)*r.stride]) }
	slices.SortFunc(order, func(a, b uint32) int { return strings.Compare(key(a), key(b)) })
	jumps := r.jumps
	if !s.Verdict {
		jumps = nil
	}
	p := ruleset.NewPacker(r.stride, jumps, nil)
	for n, i := range order {
		if n > 0 && key(i) == key(order[n-1]) {
			return nil, len(order), false
		}
		p.Add(r.keys[int(i)*r.stride:(int(i)+1)*r.stride], r.which[i])
	}
	return p.Pieces(), len(order), true
}

// askedAtOnce is how many elements are asked for at once. The answer has a message for each,
// which takes some kilobytes in the socket's buffer until it is read.
const askedAtOnce = 1000

// Counts calls each with the keys of pieces and what the elements of set under them have
// counted, in the order of the pieces, until it returns false. What is not there is left
// out. The key is only good until each returns.
//
// It asks for each key, which takes a time in proportion to their number, where a dump of
// the whole set takes one in proportion to its square. Between the questions others may
// have the connection, but each must not use it.
func (c *Conn) Counts(ctx context.Context, table TableRef, set *ruleset.Set, pieces []*ruleset.Packed,
	each func(key string, n ruleset.Count) bool) error {
	for _, p := range pieces {
		for at := 0; at < p.Len(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := p.Slice(at, min(at+askedAtOnce, p.Len()))
			n, more, err := c.countsOf(table, set, part, each)
			switch {
			case err == nil && !more:
				return nil
			case err == nil:
				at += part.Len()
			case errors.Is(err, unix.ENOENT) && n < part.Len():
				if exists, existsErr := c.hasSet(table, set); !exists {
					return readErr(existsErr, "%s in %s", setText(set), table)
				}
				at += n + 1 // the first that is not there ends the answer
			default:
				return readErr(err, "elements of %s in %s", setText(set), table)
			}
		}
	}
	return nil
}

// countsOf asks for the elements of p. n is how many were answered.
func (c *Conn) countsOf(table TableRef, set *ruleset.Set, p *ruleset.Packed,
	each func(string, ruleset.Count) bool) (n int, more bool, err error) {
	if len(set.Key) == 0 || p.Stride != set.Key.Len() {
		return 0, false, fmt.Errorf("nft: %s: %w", setText(set), errKeyLen(p.Stride, set))
	}
	_, keyLen := kernelType(set.Key)
	more = true
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.scan(msgType(unix.NFT_MSG_GETSETELEM), 0,
		func(w *buf) {
			w.of(table).str(unix.NFTA_SET_ELEM_LIST_TABLE, table.Name)
			w.str(unix.NFTA_SET_ELEM_LIST_SET, set.Name)
			list := w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for i := range p.Len() {
				el := w.nest(unix.NFTA_LIST_ELEM)
				w.value(unix.NFTA_SET_ELEM_KEY, p.Key(i)[:keyLen])
				w.close(el)
			}
			w.close(list)
		},
		func(_ header, body string) error {
			for typ, el := range attrs(attr(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				var e Elem
				if typ == unix.NFTA_LIST_ELEM && parseElem(set, el, &e) {
					n++
					more = more && each(e.Key, e.Counter)
				}
			}
			return nil
		})
	return n, more, err
}

// hasSet tells a set that is not there from an element that is not.
func (c *Conn) hasSet(table TableRef, set *ruleset.Set) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.request(msgType(unix.NFT_MSG_GETSET), 0, func(w *buf) {
		w.of(table).str(unix.NFTA_SET_TABLE, table.Name)
		w.str(unix.NFTA_SET_NAME, set.Name)
	}, func(header, string) error { return nil })
	return err == nil, err
}

// CarryCounts makes elements that the delta deletes and adds again start with what they
// have counted so far: those of a set that is replaced by a larger one, those that get
// another verdict, those that go to a set of the same Kin, and those of a table that is
// replaced as a whole, which stay in their set. Only packed elements are looked at, and
// counters of rules. What is counted between this and Apply is lost.
func (c *Conn) CarryCounts(ctx context.Context, d *ruleset.Delta) error {
	if err := c.carryRules(ctx, d); err != nil {
		return err
	}
	return CarryCounts(ctx, c.Counts, d)
}

// CarryCounts is Conn.CarryCounts for whatever has a method like Conn.Counts.
func CarryCounts(ctx context.Context, read func(context.Context, TableRef, *ruleset.Set, []*ruleset.Packed,
	func(string, ruleset.Count) bool) error, d *ruleset.Delta) error {
	for _, td := range d.Tables {
		for i, ch := range td.AddElems {
			from := td.Returning(ch)
			if td.Create && d.Replaces(td.Table) && ch.Packed != nil && ch.Set.Counter {
				from = []ruleset.Held{{Set: ch.Set, Keys: ch.Packed}} // whatever of it is there
			}
			if from == nil {
				continue
			}
			counts := make([]ruleset.Count, ch.Len())
			any := false
			ref := TableRef{td.Table.Family, td.Table.Name}
			for _, s := range from {
				err := read(ctx, ref, s.Set, []*ruleset.Packed{s.Keys}, func(key string, n ruleset.Count) bool {
					if at, ok := ch.Packed.Find(key); ok && n != (ruleset.Count{}) {
						counts[at], any = n, true
					}
					return true
				})
				if err != nil && !(td.Create && errors.Is(err, unix.ENOENT)) { // there, a set may be new
					return err
				}
			}
			if any {
				with := *ch
				with.Counts = counts
				td.AddElems[i] = &with
			}
		}
	}
	return nil
}
