package nft

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// maxDump is how many elements of marked tables are read at most.
const maxDump = 1 << 17

// elements returns how many elements a table may have: as many as the kernel says, or, where
// it does not, as are wanted.
func elements(want *ruleset.Table, counts []int) int {
	n, known := 0, true
	for _, c := range counts {
		n, known = n+c, known && c >= 0
	}
	if known {
		return n
	}
	n = 0
	for _, s := range want.Sets {
		n += s.Len()
	}
	return n
}

// Declared returns the sets of a table without their elements; none where there is no such
// table.
func (c *Conn) Declared(ctx context.Context, ref TableRef) ([]*ruleset.Set, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range readTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		sets, _, err := c.declared(ref)
		switch {
		case err == unix.ENOENT:
			return nil, nil
		case !errors.Is(err, errInterrupted):
			return sets, readErr(err, "the sets of %s", ref)
		}
	}
	return nil, errInterrupted
}

// declared reads the declarations of a table's sets, and how many elements each has, -1 where
// the kernel does not say.
func (c *Conn) declared(ref TableRef) (sets []*ruleset.Set, counts []int, err error) {
	err = c.request(msgType(unix.NFT_MSG_GETSET), unix.NLM_F_DUMP,
		func(w *buf) { w.str(unix.NFTA_SET_TABLE, ref.Name) },
		func(_ header, body string) error {
			if attr(body, unix.NFTA_SET_TABLE) != ref.Name+"\x00" {
				return nil
			}
			if s, count := parseSet(body); s != nil {
				sets, counts = append(sets, s), append(counts, count)
			}
			return nil
		})
	return sets, counts, err
}
