package engine

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"

	"weir/internal/plan"
	"weir/internal/ruleset"
)

// SettleCounts completes d, which makes the kernel block what b says, so that each entry of b
// goes on counting and what is no entry any more is forgotten: one that comes again later
// begins at 0. Packets that are counted between this and the commit of d are lost where a set
// of counters goes: where the table is replaced as a whole, and where it is of a weir that gave
// each entry a counter from the start.
func SettleCounts(ctx context.Context, k BlockCounters, d *ruleset.Delta, b *plan.Blocks) error {
	for _, td := range d.Tables {
		if td.Table.Name != BlocksTable.Name || td.Delete {
			continue
		}
		if err := forgetGone(ctx, k, td, b); err != nil {
			return err
		}
		if err := carryCounts(ctx, k, d, td, b); err != nil {
			return err
		}
	}
	return nil
}

// forgetGone has td delete what entries counted that go.
func forgetGone(ctx context.Context, k BlockCounters, td *ruleset.TableDelta, b *plan.Blocks) error {
	gone := goneEntries(td, b)
	for _, c := range b.Counted() {
		keys := gone[c.EntrySet]
		if len(keys) == 0 {
			continue
		}
		for _, s := range c.Sets {
			if slices.Contains(td.AddSets, s) {
				continue // nothing is in it
			}
			var there []string
			err := k.Counts(ctx, BlocksTable, s, []*ruleset.Packed{packedKeys(keys)}, func(key string, _ ruleset.Count) {
				if _, ok := slices.BinarySearch(keys, key); ok {
					there = append(there, string([]byte(key)))
				}
			})
			if err != nil {
				return err
			}
			if len(there) > 0 {
				slices.Sort(there)
				td.DelElems = append(td.DelElems, &ruleset.ElemChange{Set: s, Packed: packedKeys(there)})
			}
		}
	}
	return nil
}

// goneEntries returns the keys of entries that td takes away and b has not, in order, by what
// they are. Entries of all actions stand under that of the counters.
func goneEntries(td *ruleset.TableDelta, b *plan.Blocks) map[plan.EntrySet][]string {
	gone := map[plan.EntrySet][]string{}
	add := func(set string, n int, key func(int) string) {
		of, ok := plan.ParseEntrySet(set)
		if !ok || of.Hits {
			return
		}
		of.Hits = true
		for i := range n {
			if _, stays := b.Compiled.Exact(of.Prefix(key(i))); !stays {
				gone[of] = append(gone[of], key(i))
			}
		}
	}
	for _, s := range td.DelSets {
		for _, p := range s.Packed {
			add(s.Name, p.Len(), p.Key)
		}
		for _, p := range s.Parts {
			add(s.Name, len(p.Elems), func(i int) string { return p.Elems[i].Key })
		}
	}
	for _, ch := range td.DelElems {
		add(ch.Set.Name, ch.Len(), func(i int) string { return ch.Elem(i).Key })
	}
	for of, keys := range gone {
		slices.Sort(keys)
		gone[of] = slices.Compact(keys)
	}
	return gone
}

// packedKeys packs keys of one length.
func packedKeys(keys []string) *ruleset.Packed {
	p := &ruleset.Packed{Stride: len(keys[0])}
	all := make([]byte, 0, len(keys)*p.Stride)
	for _, k := range keys {
		all = append(all, k...)
	}
	p.Keys = string(all)
	return p
}

// carryCounts has td give what was counted in sets that go to those that come.
func carryCounts(ctx context.Context, k BlockCounters, d *ruleset.Delta, td *ruleset.TableDelta, b *plan.Blocks) error {
	from := td.DelSets
	if d.Replaces(td.Table) {
		var err error
		if from, err = k.Declarations(ctx, BlocksTable); err != nil {
			return err
		}
	}
	for _, c := range b.Counted() {
		counts := map[netip.Prefix]ruleset.Count{}
		for _, s := range from {
			of, ok := plan.ParseEntrySet(s.Name)
			if !ok || !s.Counter || of.Bits != c.Bits || of.Family != c.Family || len(s.Key) == 0 {
				continue
			}
			err := k.Counts(ctx, BlocksTable, s, c.Entries, func(key string, n ruleset.Count) {
				p := c.Prefix(key)
				if _, ok := b.Compiled.Exact(p); ok && n != (ruleset.Count{}) {
					n.Packets += counts[p].Packets
					n.Bytes += counts[p].Bytes
					counts[p] = n
				}
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		giveCounts(td, c.Sets, counts)
	}
	return nil
}

// giveCounts fills those of the sets that are new, one after the other.
func giveCounts(td *ruleset.TableDelta, sets []*ruleset.Set, counts map[netip.Prefix]ruleset.Count) {
	keys := make([]string, 0, len(counts))
	byKey := make(map[string]ruleset.Count, len(counts))
	for p, n := range counts {
		key := string(ruleset.AppendAddr(nil, p.Addr()))
		keys, byKey[key] = append(keys, key), n
	}
	slices.Sort(keys)
	for _, s := range sets {
		n := min(len(keys), s.Size)
		if n == 0 || !slices.Contains(td.AddSets, s) {
			continue
		}
		ch := &ruleset.ElemChange{Set: s, Packed: packedKeys(keys[:n]), Counts: make([]ruleset.Count, n)}
		for i, key := range keys[:n] {
			ch.Counts[i] = byKey[key]
		}
		td.AddElems, keys = append(td.AddElems, ch), keys[n:]
	}
}
