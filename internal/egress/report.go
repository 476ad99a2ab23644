package egress

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
)

// UseReport is an address for a destination.
type UseReport struct {
	Key
	InUse   int     // ports, at the last dump
	More    int     // may be in use besides, for what was not told apart
	Ports   int     // there are
	New     float64 // connections a second, tried or made
	Growth  float64 // ports a second between the last dumps; NaN: not known
	FullIn  float64 // seconds until all ports are in use if that goes on; NaN: they do not fill, or it is not known
	Relieve bool    // near full: new connections avoid it where they can
}

// Percent returns how much of the ports is in use.
func (u UseReport) Percent() float64 { return percent(u.InUse, u.Ports) }

// AddrReport is an address of a pool.
type AddrReport struct {
	Addr     netip.Addr
	Drained  bool
	Flows    int        // connections of any protocol
	Ports    int        // that it has for each destination
	Busiest  *UseReport // the fullest destination; nil: there is none
	New      float64    // connections a second
	Total    uint64     // connections since accounting began
	FullIn   float64    // the soonest of all destinations; NaN: none fills, or it is not known
	Relieved int        // destinations for which it is left out
}

// PoolReport is a pool.
type PoolReport struct {
	Name  string
	Flows int
	New   float64
	Total uint64
	Hold  float64 // seconds for which a connection is remembered on average; 0: not known
	Addrs []AddrReport
	Uses  []UseReport // the fullest first
	Rest  int         // addresses and destinations that are not among them
}

// Report returns what is known of the pool of that place, with at most most uses.
func (l *Ledger) Report(pool, most int) PoolReport {
	p := l.pools[pool]
	out := PoolReport{Name: p.Model.Name, Hold: l.holds[pool], Uses: []UseReport{}}
	at := map[netip.Addr]int{}
	for i, a := range p.Addrs {
		r := AddrReport{Addr: a, Drained: p.drained(a), Ports: p.count, Total: l.totals[a], FullIn: math.NaN()}
		if place := l.index[a]; int(place.pool) == pool {
			r.Flows, _ = l.Flows(a)
		}
		out.Flows += r.Flows
		out.Total += r.Total
		at[a] = i
		out.Addrs = append(out.Addrs, r)
	}
	keys := l.sortedKeys(func(k Key, e *entry) bool { return e.pool == pool && (e.inUse > 0 || e.rate >= 0.05 || e.near) })
	for _, k := range keys {
		u := l.use(k)
		a := &out.Addrs[at[k.Addr]]
		a.New += u.New
		out.New += u.New
		if a.Busiest == nil {
			a.Busiest = &u
		}
		if !math.IsNaN(u.FullIn) && !(u.FullIn > a.FullIn) {
			a.FullIn = u.FullIn
		}
		if u.Relieve {
			a.Relieved++
		}
		if len(out.Uses) < most {
			out.Uses = append(out.Uses, u)
		}
	}
	out.Rest = len(keys) - len(out.Uses)
	return out
}

// use returns what is known of a key.
func (l *Ledger) use(k Key) UseReport {
	e := l.keys[k]
	u := UseReport{Key: k, InUse: e.inUse, More: e.more, Ports: l.ports(k, e), New: e.rate, Growth: e.growth, Relieve: e.near}
	u.FullIn = fullIn(u.InUse+u.More, u.Ports, u.Growth, u.New)
	return u
}

// fullIn returns the seconds until all ports are in use; NaN if nothing points to that. Growth
// of less than a hundredth of what comes is a fluctuation, not growth.
func fullIn(inUse, ports int, growth, rate float64) float64 {
	if ports > 0 && inUse >= ports {
		return 0
	}
	if math.IsNaN(growth) || growth < 0.05 || growth < rate/100 {
		return math.NaN()
	}
	return float64(ports-inUse) / growth
}

// Total is how many connections an address got since accounting began.
func (l *Ledger) Total(a netip.Addr) uint64 { return l.totals[a] }

// Bearing is what a pool bears of what it carries now, if only there were more of it.
type Bearing struct {
	Pool string
	Dest Dest // that comes to its end first
	// Rate is how many connections a second the destination gets now, and InUse how many
	// ports it has in use.
	Rate  float64
	InUse int
	// Even says that connections go to the addresses in turn, so that the sum of their ports
	// counts; else that of the fullest address does.
	Even  bool
	Addr  netip.Addr // the fullest, unless Even
	Limit int        // ports that may be in use with the headroom
	Load  int        // of InUse, what Limit is compared with
	// Factor is by how much the rate may grow; Hold the seconds for which a connection is
	// remembered, 0: not known.
	Factor, Hold float64
}

// Bear returns what the pool bears until that part (0 to 1) of the ports is in use: of the
// destination with the least room. ok is false where nothing is in use.
func (l *Ledger) Bear(pool int, headroom float64) (b Bearing, ok bool) {
	p := l.pools[pool]
	type sum struct {
		rate       float64
		inUse, max int
		addr       netip.Addr
		share      float64
	}
	sums := map[Dest]sum{}
	for k, e := range l.keys {
		if e.pool != pool || e.inUse == 0 || p.drained(k.Addr) {
			continue
		}
		s := sums[k.Dest]
		s.rate += e.rate
		s.inUse += e.inUse
		if share := percent(e.inUse, p.Ports(k.Addr)); share > s.share || share == s.share && (!s.addr.IsValid() || k.Addr.Less(s.addr)) {
			s.share, s.max, s.addr = share, e.inUse, k.Addr
		}
		sums[k.Dest] = s
	}
	var found []Bearing
	for d, s := range sums {
		_, all := l.room(poolDest{p.Model.Name, d})
		b := Bearing{Pool: p.Model.Name, Dest: d, Rate: s.rate, InUse: s.inUse, Even: evenly(p), Hold: l.holds[pool]}
		b.Load, b.Limit = s.inUse, int(headroom*float64(all))
		if !b.Even {
			b.Addr, b.Load, b.Limit = s.addr, s.max, int(headroom*float64(p.Ports(s.addr)))
		}
		b.Factor = float64(b.Limit) / float64(b.Load)
		found = append(found, b)
	}
	if len(found) == 0 {
		return b, false
	}
	return slices.MinFunc(found, func(a, b Bearing) int {
		return cmp.Or(cmp.Compare(a.Factor, b.Factor), a.Dest.Compare(b.Dest))
	}), true
}

// evenly reports whether the pool's addresses are filled alike, whoever the clients are.
func evenly(p *Pool) bool { return relieves(p.Model) || p.Model.Masquerade && len(p.Addrs) == 1 }
