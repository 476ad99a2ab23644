package model

import (
	"net/netip"
	"slices"
)

// Covers reports whether p matches all that o matches: o never gets a connection if it comes
// behind p. It looks at one range of p at a time, so it may say no where several together
// would do.
func (p *Pool) Covers(o *Pool) bool {
	names := func(p, o []string, none bool) bool {
		return none || len(o) > 0 && !slices.ContainsFunc(o, func(d string) bool { return !slices.Contains(p, d) })
	}
	prefixes := func(p, o []netip.Prefix) bool {
		return len(p) == 0 || len(o) > 0 && !slices.ContainsFunc(o, func(x netip.Prefix) bool {
			return !slices.ContainsFunc(p, func(y netip.Prefix) bool { return y.Bits() <= x.Bits() && y.Contains(x.Addr()) })
		})
	}
	traffic := len(p.Traffic) == 0 || len(o.Traffic) > 0 && !slices.ContainsFunc(o.Traffic, func(x Traffic) bool {
		return !slices.ContainsFunc(p.Traffic, func(y Traffic) bool {
			return y.Proto == x.Proto && (y.Ports.IsZero() || !x.Ports.IsZero() && y.Ports.Lo <= x.Ports.Lo && x.Ports.Hi <= y.Ports.Hi)
		})
	})
	families := !slices.ContainsFunc(o.Families(), func(f Family) bool { return !slices.Contains(p.Families(), f) })
	return families && traffic && names(p.Out, o.Out, false) && names(p.In, o.In, len(p.In) == 0) && prefixes(p.From, o.From) && prefixes(p.To, o.To)
}

// Hidden returns the pools that never get a connection, each with the one before it that
// matches all that it matches. Pools that are the source of a service are not among them.
func (c *Config) Hidden() map[*Pool]*Pool {
	out := map[*Pool]*Pool{}
	for i, p := range c.Egress {
		if slices.ContainsFunc(c.Services, func(s *Service) bool { return s.Source.Mode == SourcePool && s.Source.Pool == p.Name }) {
			continue
		}
		if at := slices.IndexFunc(c.Egress[:i], func(o *Pool) bool { return o.Covers(p) }); at >= 0 {
			out[p] = c.Egress[at]
		}
	}
	return out
}
