package egress

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"weir/internal/model"
)

// Bounds of relief.
const (
	// maxRelief is for how many destinations of one pool addresses are left out, the fullest
	// first: each is rules of its own.
	maxRelief = 256
	// minRelief is how long an address is left out at least.
	minRelief = 10 * time.Second
	// wholeSearch is up to how many ports the kernel looks at each; of longer ranges it
	// tries 248 at random, so that some connections fail before the last port is used
	// (nf_nat_l4proto_unique_tuple in net/netfilter/nf_nat_core.c).
	wholeSearch = 128
	// searchShare is the part of a longer range that is kept free, one in that many: with
	// 4 % free a search fails once in 25,000.
	searchShare = 25
	// leaveShare is by what part, one in that many, ports in use must have become fewer
	// before an address is used again.
	leaveShare = 10
)

// margin is how many ports an address should have free, so that what comes within the time of
// reaction finds one: never more than half of them.
func margin(rate float64, ports int, reaction time.Duration) int {
	free := 1
	if ports > wholeSearch {
		free = ports / searchShare
	}
	return min(max(free, int(math.Ceil(rate*reaction.Seconds()))), ports/2)
}

// Crowded is a destination for which all addresses of a pool run out of ports, so that none
// is left out.
type Crowded struct {
	Pool string
	Dest Dest
}

// Relief decides which addresses new connections must avoid, for which destinations, when
// what is decided takes so long to be in force. What it returns is in the order of the pools,
// sorted by destination. An address is left out until clearly fewer of its ports are in use
// than when that began, and for ten seconds at least. Pools that can give a connection no
// other address have none: blocks of ports, stable ones that say fail, and masquerade.
func (l *Ledger) Relief(now time.Time, reaction time.Duration) ([][]model.Relief, []Crowded) {
	near := make([]map[Dest][]netip.Addr, len(l.pools))
	for k, e := range l.keys {
		if l.nearFull(now, k, e, reaction) {
			if near[e.pool] == nil {
				near[e.pool] = map[Dest][]netip.Addr{}
			}
			near[e.pool][k.Dest] = append(near[e.pool][k.Dest], k.Addr)
		}
	}
	out := make([][]model.Relief, len(l.pools))
	var crowded []Crowded
	for i, p := range l.pools {
		for d, addrs := range near[i] {
			if others(p, d, addrs) == 0 {
				if l.seenFull(d, addrs) {
					crowded = append(crowded, Crowded{p.Model.Name, d})
				}
				continue
			}
			if relieves(p.Model) {
				slices.SortFunc(addrs, netip.Addr.Compare)
				out[i] = append(out[i], model.Relief{Proto: d.Proto, To: d.To, Without: addrs})
			}
		}
		out[i] = l.foremost(out[i])
	}
	slices.SortFunc(crowded, func(a, b Crowded) int { return cmp.Or(cmp.Compare(a.Pool, b.Pool), a.Dest.Compare(b.Dest)) })
	return out, crowded
}

// seenFull reports whether the last dump, too, showed little room on all of the addresses.
func (l *Ledger) seenFull(d Dest, addrs []netip.Addr) bool {
	return !slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		k := Key{a, d}
		e := l.keys[k]
		return percent(e.inUse+e.more, l.ports(k, e)) < errorBelow
	})
}

// expected is what is in use now, on the safe side: what was at the last dump and what came
// since, less half of those that must have ended if connections last as long as before.
func (l *Ledger) expected(now time.Time, e *entry) int {
	n := e.bound()
	if h := l.holds[e.pool]; h > 0 && now.After(l.dumped) {
		ended := float64(e.inUse) * now.Sub(l.dumped).Seconds() / h
		n -= int(min(ended, float64(e.fresh)) / 2)
	}
	return n
}

// relieves reports whether a pool can give a connection another address than the one that it
// would have.
func relieves(m *model.Pool) bool {
	return !m.Masquerade && m.Block == 0 && (m.Spread == model.SpreadFlow || m.Spill)
}

// others returns how many addresses of the pool take new connections to d, less those.
func others(p *Pool, d Dest, less []netip.Addr) int {
	n := 0
	for _, a := range p.Addrs {
		if a.Is4() == d.To.Addr().Is4() && !p.drained(a) && p.Ports(a) > 0 && !slices.Contains(less, a) {
			n++
		}
	}
	return n
}

// nearFull decides anew whether an address has too few ports left for a destination.
func (l *Ledger) nearFull(now time.Time, k Key, e *entry, reaction time.Duration) bool {
	p := l.pools[e.pool]
	if p.drained(k.Addr) {
		e.near = false
		return false
	}
	ports := p.Ports(k.Addr)
	free := margin(e.rate, ports, reaction)
	switch {
	case ports > 0 && l.expected(now, e) >= ports-free:
		if !e.near {
			e.near, e.nearAt, e.leave = true, now, ports-free-ports/leaveShare
		}
	case e.near && now.Sub(e.nearAt) >= minRelief && l.expected(now, e) < max(e.leave, 1):
		e.near = false
	}
	return e.near
}

// foremost returns the fullest maxRelief of list, sorted by destination.
func (l *Ledger) foremost(list []model.Relief) []model.Relief {
	if len(list) > maxRelief {
		most := func(r model.Relief) (n int) {
			for _, a := range r.Without {
				n = max(n, l.keys[Key{a, Dest{r.Proto, r.To}}].bound())
			}
			return n
		}
		slices.SortFunc(list, func(a, b model.Relief) int {
			return cmp.Or(cmp.Compare(most(b), most(a)), Dest{a.Proto, a.To}.Compare(Dest{b.Proto, b.To}))
		})
		list = list[:maxRelief]
	}
	slices.SortFunc(list, func(a, b model.Relief) int { return Dest{a.Proto, a.To}.Compare(Dest{b.Proto, b.To}) })
	return list
}
