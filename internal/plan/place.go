package plan

import (
	"hash/fnv"
	"slices"

	"weir/internal/model"
)

// A group is the services that share slot maps. The kernel finds a map by walking the
// table's list of sets, and a rule that binds a map walks the map's elements, so neither
// one map for all nor a map for each is quick to load; some twenty services a map is.
const servicesPerGroup = 16

// Inside a group's maps a service owns the slots whose number begins with its index.
const (
	slotBits   = 20 // 1,048,576 slots a service
	indexCount = 1 << (32 - slotBits)
)

// place is where in the shared maps a service's slots lie. It follows from the names in
// the configuration alone, so that every run and every node places alike, and from the
// other names as little as can be: a service that comes moves no other, but for rare
// collisions, and for all of them when the number of groups doubles.
type place struct {
	group int
	base  uint32 // first slot
}

// places returns the place of each service.
func places(services []*model.Service) []place {
	groups := 1
	for groups*servicesPerGroup < len(services) {
		groups *= 2
	}
	type item struct {
		at    int
		group int
		index uint64
	}
	items := make([]item, len(services))
	for i, s := range services {
		h := fnv.New64a()
		h.Write([]byte(s.Name))
		sum := mix(h.Sum64())
		items[i] = item{i, int(sum % uint64(groups)), sum >> 32 % indexCount}
	}
	slices.SortFunc(items, func(a, b item) int {
		if a.group != b.group {
			return a.group - b.group
		}
		return compareNames(services[a.at].Name, services[b.at].Name)
	})
	out := make([]place, len(services))
	taken := make(map[uint64]bool, 4*servicesPerGroup)
	for i, it := range items {
		if i > 0 && items[i-1].group != it.group {
			clear(taken)
		}
		for taken[it.index] {
			it.index = (it.index + 1) % indexCount
		}
		taken[it.index] = true
		out[it.at] = place{it.group, uint32(it.index << slotBits)}
	}
	return out
}

// mix spreads the bits of an FNV sum, whose low bits alone are poor for short names
// (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
