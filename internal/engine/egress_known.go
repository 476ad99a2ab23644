package engine

import (
	"net/netip"
	"slices"

	"weir/internal/model"
)

// KnownPool is what a running weir knows of an egress pool beyond its configuration, as far
// as that decides where new connections go. Its JSON form is part of weir's interface.
type KnownPool struct {
	Pool    string        `json:"pool"`
	Drained []netip.Addr  `json:"drained,omitempty"` // take no new connections
	Taken   []KnownTaken  `json:"taken,omitempty"`   // ports of the box itself
	Relief  []KnownRelief `json:"relief,omitempty"`  // destinations that some addresses are nearly full for
}

// KnownTaken is a model.TakenPort.
type KnownTaken struct {
	Address netip.Addr `json:"address,omitzero"` // none: all of the pool
	Port    uint16     `json:"port"`
}

// KnownRelief is a model.Relief.
type KnownRelief struct {
	Protocol    string         `json:"protocol"` // "tcp" or "udp"
	Destination netip.AddrPort `json:"destination"`
	Without     []netip.Addr   `json:"without"`
}

// newKnownPool returns what is known of a pool.
func newKnownPool(name string, drained []netip.Addr, taken []model.TakenPort, relief []model.Relief) KnownPool {
	k := KnownPool{Pool: name, Drained: drained}
	for _, t := range taken {
		k.Taken = append(k.Taken, KnownTaken{t.Addr, t.Port})
	}
	for _, r := range relief {
		k.Relief = append(k.Relief, KnownRelief{r.Proto.String(), r.To, r.Without})
	}
	return k
}

func (k KnownPool) taken() (out []model.TakenPort) {
	for _, t := range k.Taken {
		out = append(out, model.TakenPort{Addr: t.Address, Port: t.Port})
	}
	return out
}

func (k KnownPool) relief() (out []model.Relief) {
	for _, r := range k.Relief {
		p := model.TCP
		if r.Protocol == model.UDP.String() {
			p = model.UDP
		}
		out = append(out, model.Relief{Proto: p, To: r.Destination, Without: r.Without})
	}
	return out
}

// empty reports whether nothing is known.
func (k KnownPool) empty() bool { return len(k.Drained)+len(k.Taken)+len(k.Relief) == 0 }

// EffectivePools returns cfg as a weir that knows that would plan its pools.
func EffectivePools(cfg *model.Config, known []KnownPool) *model.Config {
	byName := map[string]KnownPool{}
	for _, k := range known {
		byName[k.Pool] = k
	}
	return withPools(cfg, nil, func(p *model.Pool) KnownPool { return byName[p.Name] })
}

// withPools returns cfg with what is known of its pools put into them. Pools that come out as
// in prev are those.
func withPools(cfg *model.Config, prev []*model.Pool, of func(*model.Pool) KnownPool) *model.Config {
	out := *cfg
	out.Egress = make([]*model.Pool, len(cfg.Egress))
	for i, p := range cfg.Egress {
		out.Egress[i] = withKnown(p, of(p))
		if j := slices.IndexFunc(prev, out.Egress[i].Equal); j >= 0 {
			out.Egress[i] = prev[j]
		}
	}
	return &out
}

// withKnown returns p with what is known of it, less what would leave connections without an
// address: of a family of which all addresses are drained none is, and relief that would
// leave none is none.
func withKnown(p *model.Pool, k KnownPool) *model.Pool {
	out := *p
	out.Drained, out.Relief = nil, nil
	out.Taken = k.taken()
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		of := func(list []netip.Addr) (out []netip.Addr) {
			for _, a := range list {
				if model.FamilyOf(a) == f && holds(p, a) {
					out = append(out, a)
				}
			}
			return out
		}
		drained := of(k.Drained)
		if len(drained) == 0 || len(drained) < sizeOf(p, drained[0]) {
			out.Drained = append(out.Drained, drained...)
		}
	}
	for _, r := range k.relief() {
		var without []netip.Addr
		for _, a := range r.Without {
			if holds(p, a) && a.Is4() == r.To.Addr().Is4() {
				without = append(without, a)
			}
		}
		if len(without) == 0 {
			continue
		}
		gone := len(without)
		for _, a := range out.Drained {
			if a.Is4() == r.To.Addr().Is4() && !slices.Contains(without, a) {
				gone++
			}
		}
		if gone < sizeOf(p, without[0]) {
			r.Without = without
			out.Relief = append(out.Relief, r)
		}
	}
	if out.Equal(p) {
		return p
	}
	return &out
}

// KnownPools returns what is known of pools, of those alone of which anything is.
func (v *View) KnownPools() []KnownPool {
	out := []KnownPool{}
	for _, p := range v.Pools {
		if k := newKnownPool(p.Name, p.Drained, p.Taken, p.Relief); !k.empty() {
			out = append(out, k)
		}
	}
	return out
}

// KnownPools returns what is known from before.
func (m Memory) KnownPools(cfg *model.Config) []KnownPool {
	drained := map[netip.Addr]bool{}
	for a := range m.Drains {
		drained[a] = true
	}
	var out []KnownPool
	for _, p := range cfg.Egress {
		out = append(out, KnownPool{Pool: p.Name, Drained: drainedOf(p, drained)})
	}
	return out
}
