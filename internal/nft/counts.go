package nft

import (
	"context"
	"errors"
	"fmt"
	"math"
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
// which takes most of a kilobyte in the socket's buffer until it is read.
const askedAtOnce = 250

// Counts calls each with what elements of set have counted, each element once, in no order:
// those of pieces that are there or, where that is faster to read, all that there are. The
// key is only good until each returns, and each must not use the connection.
//
// Two ways lead there. To dump the set takes a time in proportion to the square of what it
// holds, for the kernel begins each part of a dump with the first element again; to ask for
// each key takes one in proportion to their number, whether they are there or not.
func (c *Conn) Counts(ctx context.Context, table TableRef, set *ruleset.Set, pieces []*ruleset.Packed,
	each func(key string, n ruleset.Count)) error {
	keys := 0
	for _, p := range pieces {
		if len(set.Key) == 0 || p.Stride != set.Key.Len() {
			return fmt.Errorf("nft: %s: %w", setText(set), errKeyLen(p.Stride, set))
		}
		keys += p.Len()
	}
	held, err := c.held(table, set)
	switch {
	case err != nil:
	case held == 0 || keys == 0:
		return nil
	case dumpIsFaster(held, keys):
		err = c.dumpCounts(ctx, table, set, held, each)
	default:
		err = c.askCounts(ctx, table, set, pieces, each)
	}
	return readErr(err, "elements of %s in %s", setText(set), table)
}

// dumpIsFaster compares estimates in microseconds, from measurements (100,000 elements: a dump
// takes 0.8 s, to ask for them 0.3 s). held is -1 where the kernel does not tell.
func dumpIsFaster(held, keys int) bool {
	if held < 0 {
		return keys > 1<<16
	}
	return held+held*held/12_000 < 3*keys
}

// held returns how many elements a set has, -1 where the kernel does not tell.
func (c *Conn) held(table TableRef, set *ruleset.Set) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = -1
	err = c.request(msgType(unix.NFT_MSG_GETSET), 0, ofFamily(table.Family, func(w *buf) {
		w.str(unix.NFTA_SET_TABLE, table.Name)
		w.str(unix.NFTA_SET_NAME, set.Name)
	}), func(_ header, body string) error {
		if count := attr(body, setCount); count != "" {
			n = int(be32(count))
		}
		return nil
	})
	return n, err
}

// dumpCounts dumps the set. While the kernel enlarges a hash, a dump may hold some elements
// twice and lack others: one that lacks some is tried again, until it is the same twice (the
// kernel may count an element too many, where two processors made it at once).
func (c *Conn) dumpCounts(ctx context.Context, table TableRef, set *ruleset.Set, held int,
	each func(string, ruleset.Count)) error {
	stride, before := set.Key.Len(), -1
	for try := range readTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		var keys []byte
		var counts []ruleset.Count
		c.mu.Lock()
		_, err := c.scanElems(table, set, func(e *Elem) {
			if len(e.Key) == stride {
				keys, counts = append(keys, e.Key...), append(counts, e.Counter)
			}
		})
		c.mu.Unlock()
		if err != nil && !errors.Is(err, errInterrupted) {
			return err
		}
		key := func(i int) string { return view(keys[i*stride : (i+1)*stride]) }
		order := make([]int, len(counts))
		for i := range order {
			order[i] = i
		}
		slices.SortFunc(order, func(a, b int) int { return strings.Compare(key(a), key(b)) })
		order = slices.CompactFunc(order, func(a, b int) bool { return key(a) == key(b) })
		lacks := len(order) < held && len(order) != before
		before = len(order)
		if (err != nil || lacks) && try < readTries-1 {
			time.Sleep(time.Millisecond << min(try, 5)) // see readElems
			continue
		}
		for _, i := range order {
			each(key(i), counts[i])
		}
		return nil
	}
	return nil
}

// askCounts asks for each key.
func (c *Conn) askCounts(ctx context.Context, table TableRef, set *ruleset.Set, pieces []*ruleset.Packed,
	each func(string, ruleset.Count)) error {
	for _, p := range pieces {
		for at := 0; at < p.Len(); at += askedAtOnce {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.askSome(table, set, p.Slice(at, min(at+askedAtOnce, p.Len())), each); err != nil {
				return err
			}
		}
	}
	return nil
}

// askSome asks for the elements of p, each with a message of its own: the kernel's answer to a
// message ends with the first element that is not there.
func (c *Conn) askSome(table TableRef, set *ruleset.Set, p *ruleset.Packed, each func(string, ruleset.Count)) error {
	_, keyLen := kernelType(set.Key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return unix.EBADF
	}
	c.drain()
	first := max(c.seq+1, firstReqSeq)
	if first > math.MaxUint32-askedAtOnce {
		first = firstReqSeq
	}
	last := first + uint32(p.Len()-1)
	c.seq = last
	var w buf
	for i := range p.Len() {
		flags := uint16(unix.NLM_F_REQUEST)
		if i == p.Len()-1 {
			flags |= unix.NLM_F_ACK
		}
		at := w.msg(msgType(unix.NFT_MSG_GETSETELEM), flags, first+uint32(i), nfFamilies[table.Family], 0)
		w.str(unix.NFTA_SET_ELEM_LIST_TABLE, table.Name)
		w.str(unix.NFTA_SET_ELEM_LIST_SET, set.Name)
		list := w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		el := w.nest(unix.NFTA_LIST_ELEM)
		w.value(unix.NFTA_SET_ELEM_KEY, p.Key(i)[:keyLen])
		w.close(el)
		w.close(list)
		w.end(at)
	}
	if err := c.send(w.b); err != nil {
		return fmt.Errorf("nft: send request: %w", err)
	}
	var failed error
	for done := false; !done; {
		n, err := c.recv()
		if err != nil {
			return fmt.Errorf("nft: receive: %w", err)
		}
		for h, body := range messages(view(c.in[:n])) {
			switch {
			case h.seq < first || h.seq > last:
			case h.typ == unix.NLMSG_ERROR:
				if errno := parseAck(h, body).errno; errno != 0 && errno != unix.ENOENT {
					failed = errno
				}
				done = h.seq == last
			case len(body) >= 4:
				for typ, el := range attrs(attr(body[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
					var e Elem
					if typ == unix.NFTA_LIST_ELEM && parseElem(set, el, &e) {
						each(e.Key, e.Counter)
					}
				}
			}
		}
	}
	return failed
}
