package plan

import (
	"slices"

	"weir/internal/model"
)

// EgressPorts returns the source ports that the pool of that name hands out, for each of its
// addresses: its own without those that are taken, and without what is cut too small to be
// chosen. Sorted; nil of a pool that is not there, or has none left.
func (p *Plan) EgressPorts(name string) []model.PortRange {
	i := slices.IndexFunc(p.egress, func(u *egressUnit) bool { return u.pool.Name == name })
	if i < 0 {
		return nil
	}
	ports := longest(p.egress[i].ports)
	if len(ports) < 2 {
		return ports
	}
	used := make([]bool, len(ports))
	for _, s := range shares(ports) {
		used[s] = true
	}
	var out []model.PortRange
	for i, r := range ports {
		if used[i] {
			out = append(out, r)
		}
	}
	return out
}
