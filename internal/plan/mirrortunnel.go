package plan

import (
	"weir/internal/model"
	"weir/internal/ruleset"
)

// Mirrors whose collector is in another network send their copies to a next hop behind which is
// the device of a tunnel. Of the tunnel's own packets nothing has to be copied, nor remembered.

const (
	setTunnels    = "tunnels"     // devices of tunnels
	setTunnelEnds = "tunnel-ends" // address and port of their other ends
)

// tunnels adds what is known of the mirrors' tunnels; no set where there is none.
func (t *mirrorTable) tunnels(mirrors []*model.Mirror) {
	var devices, ends []string
	for _, m := range mirrors {
		if m.VXLAN.ID == 0 {
			continue
		}
		devices = append(devices, string(ruleset.AppendDevice(nil, m.VXLAN.Device())))
		if end := m.VXLAN.Remote; model.FamilyOf(end) == t.f {
			ends = append(ends, string(ruleset.AppendPort(ruleset.AppendAddr(nil, end), m.VXLAN.Port)))
		}
	}
	if len(devices) > 0 {
		t.fill(setSpec{Name: setTunnels, Key: ruleset.Types{ruleset.IfName}}, devices)
	}
	if len(ends) > 0 {
		t.fill(setSpec{Name: setTunnelEnds, Key: ruleset.Types{ruleset.AddrType(t.f), ruleset.Port}}, ends)
	}
}

func (t *mirrorTable) has(set string) bool {
	for _, s := range t.Sets {
		if s.Name == set {
			return true
		}
	}
	return false
}

// tunnelIn keeps out what comes by a tunnel: who knows the identifier, from wherever, could else
// send packets into the box past the rules of its devices.
func (t *mirrorTable) tunnelIn() []ruleset.Rule {
	if !t.has(setTunnels) {
		return nil
	}
	return []ruleset.Rule{{Comment: "nothing comes out of a tunnel", Stmts: []ruleset.Stmt{
		ruleset.InSet{Key: ruleset.Key{ruleset.IIFName}, Set: setTunnels}, drop}}}
}

// tunnelOut keeps conntrack from what the tunnels send: their source ports are as many as there
// are flows.
func (t *mirrorTable) tunnelOut() []ruleset.Rule {
	if !t.has(setTunnelEnds) {
		return nil
	}
	return []ruleset.Rule{{Comment: "copies in a tunnel are no connections", Stmts: append([]ruleset.Stmt{ruleset.IsProto(model.UDP),
		ruleset.InSet{Key: ruleset.Key{ruleset.Daddr(t.f), ruleset.DPort}, Set: setTunnelEnds}}, notracked()...)}}
}
