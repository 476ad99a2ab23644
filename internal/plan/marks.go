package plan

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/bits"
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Marks are the marks by which packets and connections of steered services tell what was
// chosen for them. They follow from the backends' names and the mask alone; a backend that
// comes moves no other's, but for rare collisions. It is immutable.
type Marks struct {
	Mask uint32
	// None is of packets whose target has nobody to choose.
	None uint32
	// Kernel is of connections that the kernel chose for, as nobody answered. A packet that is
	// asked about has it where conntrack knows no connection of it (see steeredEndsSpec).
	Kernel uint32
	// Members is by the backends' identities, of all steered services.
	Members map[string]uint32

	kept []uint32 // those that connections can have, in order
}

// newMarks returns the marks of cfg, nil where nothing is steered.
func newMarks(cfg *model.Config) *Marks {
	ids := map[string]bool{} // whether connections can have the mark
	for _, s := range cfg.Services {
		if s.Steered() {
			for _, b := range s.Backends {
				ids[b.ID()] = ids[b.ID()] || !s.Direct()
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	m := &Marks{Mask: cfg.MarkMask, Members: make(map[string]uint32, len(ids))}
	m.None, m.Kernel = deposit(1, m.Mask), deposit(2, m.Mask)
	room := uint64(1)<<bits.OnesCount32(m.Mask) - 1 - model.SteerMarks
	taken := make(map[uint64]bool, len(ids))
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		h := fnv.New64a()
		h.Write([]byte(id))
		n := mix(h.Sum64()) % room
		for taken[n] {
			n = (n + 1) % room
		}
		taken[n] = true
		m.Members[id] = deposit(uint32(n)+1+model.SteerMarks, m.Mask)
		if ids[id] {
			m.kept = append(m.kept, m.Members[id])
		}
	}
	if len(m.kept) > 0 {
		m.kept = append(m.kept, m.None)
		slices.Sort(m.kept)
	}
	return m
}

// deposit spreads the bits of n over those of the mask, the lowest first.
func deposit(n, mask uint32) uint32 {
	var out uint32
	for ; mask != 0; mask &= mask - 1 {
		if n&1 != 0 {
			out |= mask & -mask
		}
		n >>= 1
	}
	return out
}

// Equal reports whether the marks are the same; nil equals nil.
func (m *Marks) Equal(o *Marks) bool {
	if m == nil || o == nil {
		return m == o
	}
	return m.Mask == o.Mask && maps.Equal(m.Members, o.Members) && slices.Equal(m.kept, o.kept)
}

func (m *Marks) conn() ruleset.Mark   { return ruleset.Mark{Conn: true, Mask: m.Mask} }
func (m *Marks) packet() ruleset.Mark { return ruleset.Mark{Mask: m.Mask} }

func keepChain(mark uint32) string { return fmt.Sprintf("steered/%08x", mark) }

// Marks returns the marks of steered services, nil where there are none.
func (p *Plan) Marks() *Marks { return p.marks }
