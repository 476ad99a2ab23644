package nftfake

import (
	"context"

	"golang.org/x/sys/unix"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

// Declared returns the sets of a table, as [nft.Conn.Declared] does.
func (k *Kernel) Declared(ctx context.Context, ref nft.TableRef) ([]*ruleset.Set, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := find(k.tables, ref); t != nil {
		return t.read(nil).Sets, ctx.Err()
	}
	return nil, ctx.Err()
}

// Counts reads the counters of elements, as [nft.Conn.Counts] does.
func (k *Kernel) Counts(ctx context.Context, ref nft.TableRef, set *ruleset.Set, pieces []*ruleset.Packed,
	each func(key string, n ruleset.Count) bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.set(set.Name) == nil {
		return &nft.Error{Op: "read", Object: "the elements of " + set.Name, Errno: unix.ENOENT}
	}
	for _, p := range pieces {
		for i := range p.Len() {
			e, ok := t.set(set.Name).elems[elemID{key: p.Key(i)}]
			if ok && !each(p.Key(i), e.Counter) {
				return nil
			}
		}
	}
	return ctx.Err()
}

// CarryCounts takes counters over, as [nft.Conn.CarryCounts] does.
func (k *Kernel) CarryCounts(ctx context.Context, d *ruleset.Delta) error {
	return nft.CarryCounts(ctx, k, d)
}

// Hit makes packets meet an element that counts. It reports whether there is one.
func (k *Kernel) Hit(ref nft.TableRef, set, key string, packets, bytes uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.set(set) == nil {
		return false
	}
	s := t.set(set)
	e, ok := s.elems[elemID{key: key}]
	if ok {
		e.Counter.Packets += packets
		e.Counter.Bytes += bytes
		s.put(e)
	}
	return ok
}
