package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// addTries is how often others may commit between a look at the generation and a commit.
const addTries = 5

// AddElements puts elements into a dynamic set, as rules do, for the time of timeout
// (whole milliseconds, above zero), in one transaction. One that is there stays, and
// kernels before 6.12 do not renew its timeout. It returns the generation after the
// commit. A set that is not there, or has no room for them all, is an [*Error] of ENOENT
// or ENFILE, and none is added then.
func (c *Conn) AddElements(ctx context.Context, table TableRef, set *ruleset.Set, elems []ruleset.Element, timeout time.Duration) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		gen, err := c.generation()
		if err != nil || len(elems) == 0 {
			return gen, err
		}
		b, err := encodeAdd(table, set, elems, timeout, gen)
		if err != nil {
			return 0, err
		}
		gen, err = c.commit(b, gen)
		if try == addTries || !errors.Is(err, ErrStale) {
			return gen, err
		}
	}
}

// encodeAdd writes a batch that adds elements with a timeout.
func encodeAdd(table TableRef, set *ruleset.Set, elems []ruleset.Element, timeout time.Duration, gen uint32) (*Batch, error) {
	b := &Batch{}
	t := tableOf(table)
	switch {
	case checkSet(set) != nil:
		return nil, fmt.Errorf("nft: %s %w", setText(set), checkSet(set))
	case !set.Dynamic || !set.Timeout || set.IsMap():
		return nil, fmt.Errorf("nft: %s is not a dynamic set whose elements have timeouts", setText(set))
	}
	_, keyLen := kernelType(set.Key)
	var err error
	b.frame(gen, func() {
		for rest := elems; len(rest) > 0 && err == nil; {
			m := message{op: opKeepElems, table: t, set: set}
			at := b.open(m)
			b.w.str(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
			b.w.str(unix.NFTA_SET_ELEM_LIST_SET, set.Name)
			list := b.w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			n := 0
			for ; n < len(rest) && n < maxElems && len(b.w.b)-list < maxAttr && err == nil; n++ {
				if err = checkElem(set, &rest[n], false); err == nil {
					one := b.w.nest(unix.NFTA_LIST_ELEM)
					b.w.value(unix.NFTA_SET_ELEM_KEY, rest[n].Key[:keyLen])
					b.w.u64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(timeout.Milliseconds()))
					b.w.close(one)
				}
			}
			b.w.close(list)
			b.w.end(at)
			b.msgs[len(b.msgs)-1].elems = rest[:n:n]
			rest = rest[n:]
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nft: %s: %w", setText(set), err)
	}
	return b, nil
}
