package nftfake

import (
	"context"

	"golang.org/x/sys/unix"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

// Counts calls each for the packed elements that are there, as [nft.Conn.Counts] does.
func (k *Kernel) Counts(ctx context.Context, ref nft.TableRef, s *ruleset.Set, pieces []*ruleset.Packed,
	each func(key string, n ruleset.Count)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.set(s.Name) == nil {
		return &nft.Error{Op: "read", Object: "the elements of set " + s.Name, Errno: unix.ENOENT}
	}
	for _, p := range pieces {
		for i := range p.Len() {
			want := p.Elem(i)
			if e, ok := t.set(s.Name).elems[idOf(&want)]; ok {
				each(want.Key, e.Counter)
			}
		}
	}
	return ctx.Err()
}

// RuleCounters returns nothing: no packet passes here.
func (k *Kernel) RuleCounters(ctx context.Context, _ nft.TableRef) (map[string]nft.Counter, error) {
	return map[string]nft.Counter{}, ctx.Err()
}

// CarryRules has nothing to do.
func (k *Kernel) CarryRules(ctx context.Context, _ *ruleset.Delta) error { return ctx.Err() }

// Declarations returns the sets of a table without their elements.
func (k *Kernel) Declarations(ctx context.Context, ref nft.TableRef) ([]*ruleset.Set, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*ruleset.Set
	if t := find(k.tables, ref); t != nil {
		for _, s := range t.sets {
			spec := *s.Set
			spec.Parts, spec.Packed = nil, nil
			out = append(out, &spec)
		}
	}
	return out, ctx.Err()
}

// Hit makes packets meet an element, which counts them in the first of the dynamic sets that
// has room. It reports whether there is such an element.
func (k *Kernel) Hit(ref nft.TableRef, set, key string, packets, bytes uint64, counts ...*ruleset.Set) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.set(set) == nil {
		return false
	}
	if _, ok := t.set(set).elems[elemID{key: key}]; !ok {
		return false
	}
	for _, c := range counts {
		s := t.set(c.Name)
		if s == nil {
			return false
		}
		e, ok := s.elems[elemID{key: key}]
		if !ok && len(s.elems) >= s.Size {
			continue
		}
		e.Key = key
		e.Counter.Packets += packets
		e.Counter.Bytes += bytes
		s.put(e)
		return true
	}
	return false
}
