package plan

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Move is what a delta does to the choice that a pool makes for new connections. What is
// established stays where it is, whatever moves.
type Move struct {
	Service string
	Family  model.Family
	Slots   int // slots of the pool afterwards
	Moved   int // slots that lead to another backend than before
	Added   int // slots that were not there
	Removed int // slots that are no more
	// Gone are the backends that get no new connections any more, in order.
	Gone []netip.Addr
}

// Moves returns what d, on the way to p, does to the pools of p, in p's order. Pools of
// services that d removes have a Move with no slots left; their name is that of the
// chain that goes.
func (p *Plan) Moves(d *ruleset.Delta) []Move {
	changes := map[poolKey]*slotChange{}
	for _, td := range d.Tables {
		if td.Create || td.Delete {
			continue
		}
		for _, c := range td.DelElems {
			collect(changes, c, func(s *slotChange) map[string]string { return s.del })
		}
		for _, c := range td.AddElems {
			collect(changes, c, func(s *slotChange) map[string]string { return s.add })
		}
	}
	bases := map[uint32]bool{} // so that few of many pools are looked up by name
	for k := range changes {
		bases[k.base] = true
	}
	var moves []Move
	for _, pool := range p.Pools {
		if !bases[pool.Base] {
			continue
		}
		k := poolKey{pool.SlotMap, pool.Base}
		if c := changes[k]; c != nil {
			moves = append(moves, pool.move(c))
		}
	}
	return append(moves, removedServices(p, d)...)
}

type poolKey struct {
	slotMap string
	base    uint32
}

// slotChange is the elements of one pool that go and come, key to data.
type slotChange struct{ del, add map[string]string }

func collect(changes map[poolKey]*slotChange, c *ruleset.ElemChange, side func(*slotChange) map[string]string) {
	if !isSlotMap(c.Set.Name) && !isDirectMap(c.Set.Name) {
		return
	}
	for _, e := range c.Elems {
		slot := binary.NativeEndian.Uint32([]byte(e.Key[:4]))
		k := poolKey{c.Set.Name, slot &^ (1<<slotBits - 1)}
		if changes[k] == nil {
			changes[k] = &slotChange{map[string]string{}, map[string]string{}}
		}
		side(changes[k])[e.Key] = e.Data + e.Jump.Chain
	}
}

func isSlotMap(name string) bool {
	return slices.ContainsFunc(kindNames[:], func(k string) bool {
		return strings.HasPrefix(name, k+"4/") || strings.HasPrefix(name, k+"6/")
	})
}

func (p *Pool) move(c *slotChange) Move {
	m := Move{Service: p.Service.Name, Family: p.Family, Slots: len(p.Slots)}
	perSlot := 1
	if p.kind == kindPerPort {
		perSlot = len(portsOf(p.Service, p.Family))
	}
	gone := map[netip.Addr]bool{}
	for k, old := range c.del {
		if _, both := c.add[k]; both {
			m.Moved++
		} else {
			m.Removed++
		}
		if p.Service.Direct() {
			gone[backendOf(old)] = true
		} else {
			gone[addrOf(old, p.Family)] = true
		}
	}
	m.Added = len(c.add) - m.Moved
	m.Moved, m.Added, m.Removed = m.Moved/perSlot, m.Added/perSlot, m.Removed/perSlot
	for _, i := range p.Slots {
		delete(gone, p.Backends[i].Addr)
	}
	for a := range gone {
		m.Gone = append(m.Gone, a)
	}
	slices.SortFunc(m.Gone, netip.Addr.Compare)
	return m
}

func addrOf(data string, f model.Family) netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(data[:ruleset.AddrType(f).Size()]))
	return a
}

// removedServices returns a Move for each service and family whose chains all go.
func removedServices(p *Plan, d *ruleset.Delta) []Move {
	var moves []Move
	for _, td := range d.Tables {
		for _, c := range td.DelChains {
			parts := strings.Split(c.Name, "/")
			if len(parts) < 3 || parts[0] != "service" || p.Config.Service(parts[1]) != nil {
				continue
			}
			m := Move{Service: parts[1], Family: model.IPv4}
			if parts[2] == model.IPv6.String() {
				m.Family = model.IPv6
			}
			if !slices.ContainsFunc(moves, func(o Move) bool { return o.Service == m.Service && o.Family == m.Family }) {
				moves = append(moves, m)
			}
		}
	}
	return moves
}

// String says in words what moves: "3 of 1021 slots of web (ip) move".
func (m Move) String() string {
	name := m.Service + " (" + m.Family.String() + ")"
	if m.Slots+m.Moved+m.Added+m.Removed == 0 {
		return name + " is removed"
	}
	var parts []string
	if m.Moved > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d slots of %s move", m.Moved, m.Slots, name))
	}
	if m.Added > 0 {
		parts = append(parts, fmt.Sprintf("%s gets %d more", name, m.Added))
	}
	if m.Removed > 0 {
		parts = append(parts, fmt.Sprintf("%s loses %d", name, m.Removed))
	}
	if len(m.Gone) > 0 {
		parts = append(parts, fmt.Sprintf("no new connections to %v", m.Gone))
	}
	return strings.Join(parts, ", ")
}
