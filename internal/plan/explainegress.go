package plan

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"weir/internal/ruleset"
)

// counters notes which counters of the kernel decided about a packet: they cannot be read, so
// what follows the first number is one of the ways.
type counters struct {
	plan    *Plan
	backend bool
	sources []netip.Addr // among which one decided
	ports   bool         // one decided among several ranges of ports
}

// next answers for a counter that is asked.
func (c *counters) next(r *ruleset.Rule, n ruleset.Numgen) uint32 {
	for _, s := range r.Stmts {
		switch s := s.(type) {
		case ruleset.SNAT:
			c.sources = c.plan.addrsOf(s, n)
			return 0
		case ruleset.VMap:
			if strings.HasPrefix(s.Map, "egress-ports/") {
				c.ports = true
				return 0
			}
		}
	}
	c.backend = true
	return 0
}

// addrsOf returns the addresses among which the rule of a pool takes one in turn.
func (p *Plan) addrsOf(s ruleset.SNAT, n ruleset.Numgen) []netip.Addr {
	via, ok := s.Via.(ruleset.MapGet)
	if !ok {
		return nil
	}
	out := make([]netip.Addr, n.Mod)
	for _, part := range p.Ruleset.Tables[0].Set(via.Map).Parts {
		for _, e := range part.Elems {
			if i := binary.NativeEndian.Uint32([]byte(e.Key)) - n.Offset; i < n.Mod {
				out[i], _ = netip.AddrFromSlice([]byte(e.Data[:ruleset.AddrType(s.Family).Size()]))
			}
		}
	}
	return out
}

// portsOf returns the ranges of ports that a pool hands out.
func (p *Plan) portsOf(pool string) string {
	var words []string
	for _, u := range p.egress {
		if u.pool.Name == pool {
			for _, r := range longest(u.ports) {
				words = append(words, r.String())
			}
		}
	}
	return strings.Join(words, ",")
}

// poolOf returns the pool that a packet took; "" for none.
func poolOf(t ruleset.Trace) string {
	for _, s := range t.Steps {
		if rest, ok := strings.CutPrefix(s.Chain, "egress/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			return name
		}
	}
	return ""
}

// source fills in what the far side sees.
func (x *Explanation) source(t ruleset.Trace, packet ruleset.Packet, c *counters) {
	x.Pool = poolOf(t)
	if !t.Ports.IsZero() {
		x.SourcePorts = t.Ports.String()
	}
	if c.ports {
		x.SourcePorts = c.plan.portsOf(x.Pool)
	}
	switch {
	case len(c.sources) > 1:
		for _, a := range c.sources {
			x.Sources = append(x.Sources, a.String())
		}
	case t.Masquerade:
		x.Source = "masquerade"
	case t.SNAT.IsValid():
		x.Source = t.SNAT.String()
	default:
		x.Source = packet.Src.Addr().String()
	}
}
