package ruleset

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// packOf packs elements given by key.
func packOf(elems map[uint32]uint8, jumps []Jump, old []*Packed) []*Packed {
	p := NewPacker(4, jumps, old)
	for _, k := range slices.Sorted(maps.Keys(elems)) {
		p.Add(binary.BigEndian.AppendUint32(nil, k), elems[k])
	}
	return p.Pieces()
}

func packedSet(pieces []*Packed) *Set {
	return &Set{Name: "s", Key: Types{IPv4Addr}, Verdict: true, Packed: pieces}
}

// TestPackedDiff: the difference of packed sets is that of maps, whatever the pieces, and
// pieces far from a change stay.
func TestPackedDiff(t *testing.T) {
	jumps := []Jump{{Plain: PlainDrop}, {Chain: "c", Goto: true}, {Plain: PlainContinue}}
	rapid.Check(t, func(t *rapid.T) {
		was := map[uint32]uint8{}
		for i := range uint32(rapid.IntRange(0, 20_000).Draw(t, "size")) {
			was[i*7] = uint8(i % 3)
		}
		now := maps.Clone(was)
		changes := rapid.IntRange(0, 20).Draw(t, "changes")
		for range changes {
			k := rapid.Uint32Range(0, 150_000).Draw(t, "key")
			if rapid.Bool().Draw(t, "goes") {
				delete(now, k)
			} else {
				now[k] = uint8(k % 3)
			}
		}
		old := packedSet(packOf(was, jumps, nil))
		next := packedSet(packOf(now, jumps, old.Packed))
		if next.Len() != len(now) {
			t.Fatalf("%d elements, want %d", next.Len(), len(now))
		}
		fresh := 0
		for _, p := range next.Packed {
			if !slices.Contains(old.Packed, p) {
				fresh++
			}
		}
		if fresh > 2*changes {
			t.Fatalf("%d pieces are new after %d changes", fresh, changes)
		}
		del, add := diffPacked(old, next)
		have := maps.Clone(was)
		for _, p := range del {
			for i := range p.Len() {
				k := binary.BigEndian.Uint32([]byte(p.Key(i)))
				if w, ok := have[k]; !ok || jumps[w] != p.Jump(i) {
					t.Fatalf("%d goes and is not there", k)
				}
				delete(have, k)
			}
		}
		for _, p := range add {
			for i := range p.Len() {
				k := binary.BigEndian.Uint32([]byte(p.Key(i)))
				if _, ok := have[k]; ok {
					t.Fatalf("%d comes and is there", k)
				}
				have[k] = uint8(slices.Index(jumps, p.Jump(i)))
			}
		}
		if !maps.Equal(have, now) {
			t.Fatal("the difference does not lead to the new elements")
		}
		if packedLen(del)+packedLen(add) > 2*changes {
			t.Fatalf("%d go and %d come after %d changes", packedLen(del), packedLen(add), changes)
		}
		for range 20 {
			k := rapid.Uint32Range(0, 150_000).Draw(t, "asked")
			e, ok := findPacked(next.Packed, string(binary.BigEndian.AppendUint32(nil, k)))
			if w, want := now[k]; ok != want || ok && e.Jump != jumps[w] {
				t.Fatalf("%d: found %v %v, want %v", k, ok, e.Jump, want)
			}
		}
	})
}
