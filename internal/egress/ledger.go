package egress

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Times and bounds of accounting.
const (
	// rateOver is over what time rates of new connections are averaged: to that part 1/e of
	// what was before is forgotten.
	rateOver = 5 * time.Second
	// growthOver is the shortest time between two dumps from which growth is computed.
	growthOver = 2 * time.Second
	// ledgerRoom is for how many keys a Ledger remembers anything.
	ledgerRoom = 131072
	// watchRoom is how many of the busiest keys are counted exactly in the next census.
	watchRoom = 8192
)

// New is the kernel's count of new connections of a key, since the element was made.
type New struct {
	Key
	Count uint64
}

// Ledger is the account of pools over time. It must be told of the counters (Counted) before
// each dump (Dumped), so that nothing is missed in between.
type Ledger struct {
	pools []*Pool
	index index
	keys  map[Key]*entry
	marks map[poolDest]mark // of destinations: what was said of them

	counted, dumped time.Time
	base            time.Time // of the census that growth is computed from
	census          *Census
	poolNew         []uint64 // since base
	holds           []float64
	totals          map[netip.Addr]uint64
	failures        Failures
	stats           *Stats
}

type entry struct {
	pool        int
	inUse, more int
	base        int     // in use at the census of Ledger.base
	growth      float64 // ports a second; NaN: not known
	fresh       uint64  // new since the last dump
	total       uint64  // new since accounting began
	last        uint64  // the counter
	seen        bool    // in the last counting
	rate        float64 // new a second
	near        bool    // to be avoided
	nearAt      time.Time
	leave       int // as long as there are so many in use
}

// NewLedger returns the account of pools of which nothing is known.
func NewLedger(pools []*Pool) *Ledger {
	l := &Ledger{keys: map[Key]*entry{}, marks: map[poolDest]mark{}, totals: map[netip.Addr]uint64{}}
	l.Load(pools)
	return l
}

// Load takes other pools. What is known of addresses that stay is kept.
func (l *Ledger) Load(pools []*Pool) {
	names := map[string]bool{}
	old := l.holdsByName()
	same := slices.EqualFunc(l.pools, pools, func(a, b *Pool) bool { return slices.Equal(a.Addrs, b.Addrs) })
	l.pools, l.index = pools, newIndex(pools)
	l.poolNew, l.holds = make([]uint64, len(pools)), make([]float64, len(pools))
	for i, p := range pools {
		names[p.Model.Name] = true
		l.holds[i] = old[p.Model.Name]
	}
	for k, e := range l.keys {
		at, ok := l.index[k.Addr]
		if !ok {
			delete(l.keys, k)
			continue
		}
		e.pool = int(at.pool)
	}
	for a := range l.totals {
		if _, ok := l.index[a]; !ok {
			delete(l.totals, a)
		}
	}
	for k := range l.marks {
		if !names[k.pool] {
			delete(l.marks, k)
		}
	}
	if !same {
		l.census = nil // its places are those of the pools before
	}
}

func (l *Ledger) holdsByName() map[string]float64 {
	out := map[string]float64{}
	for i, p := range l.pools {
		out[p.Model.Name] = l.holds[i]
	}
	return out
}

// Counted takes the counters of new connections, as they are at that time. Those of the first
// call are where counting begins. A counter that is smaller than before began anew.
func (l *Ledger) Counted(at time.Time, list []New) {
	first := l.counted.IsZero()
	alpha := 0.0
	if dt := at.Sub(l.counted); !first && dt > 0 {
		alpha = 1 - math.Exp(-dt.Seconds()/rateOver.Seconds())
	}
	for _, n := range list {
		e := l.entry(n.Key)
		if e == nil || e.seen { // of two sets with one key the first counts
			continue
		}
		e.seen = true
		delta := n.Count
		if n.Count >= e.last {
			delta -= e.last
		}
		e.last = n.Count
		if first {
			continue
		}
		e.fresh += delta
		e.total += delta
		l.totals[n.Addr] += delta
		l.poolNew[e.pool] += delta
		if alpha > 0 {
			e.rate += (float64(delta)/at.Sub(l.counted).Seconds() - e.rate) * alpha
		}
	}
	for _, e := range l.keys {
		if !e.seen { // the kernel has forgotten it
			e.last = 0
			e.rate -= e.rate * alpha
		}
		e.seen = false
	}
	l.counted = at
}

// entry returns what is known of a key of a pool; nil where there is no room.
func (l *Ledger) entry(k Key) *entry {
	if e := l.keys[k]; e != nil {
		return e
	}
	at, ok := l.index[k.Addr]
	if !ok || len(l.keys) >= ledgerRoom {
		return nil
	}
	e := &entry{pool: int(at.pool), growth: math.NaN()}
	l.keys[k] = e
	return e
}

// Census returns an empty census for the next dump.
func (l *Ledger) Census() *Census {
	var watch []Key
	if l.census != nil {
		for _, u := range l.census.Uses() {
			if len(watch) == watchRoom {
				break
			}
			watch = append(watch, u.Key)
		}
	}
	return newCensus(l.pools, l.index, watch)
}

// Dumped takes the census of a dump that began at that time, right after a Counted. It must
// be one that Census gave since the last Load.
func (l *Ledger) Dumped(at time.Time, c *Census) {
	if c.index == nil || len(c.flows) != len(l.pools) {
		return
	}
	span := at.Sub(l.base)
	grown := l.base.IsZero() || span >= growthOver
	for _, e := range l.keys {
		e.inUse, e.more, e.fresh = 0, 0, 0
	}
	for _, u := range c.Uses() {
		if e := l.entry(u.Key); e != nil {
			e.inUse, e.more = u.InUse, u.More
		}
	}
	if grown {
		l.grow(at, span)
	}
	for k, e := range l.keys {
		if e.inUse == 0 && e.last == 0 && e.rate < 0.01 && !e.near && e.base == 0 {
			delete(l.keys, k)
		}
	}
	l.dumped, l.census = at, c
}

// grow computes growth since the base census, and how long connections are remembered, and
// makes the new census the base.
func (l *Ledger) grow(at time.Time, span time.Duration) {
	first := l.base.IsZero()
	was, is := make([]int, len(l.pools)), make([]int, len(l.pools))
	for _, e := range l.keys {
		was[e.pool] += e.base
		is[e.pool] += e.inUse
		if !first {
			e.growth = float64(e.inUse-e.base) / span.Seconds()
		}
		e.base = e.inUse
	}
	if !first {
		for i := range l.pools {
			l.holds[i] = hold(l.holds[i], was[i], is[i], l.poolNew[i], span)
		}
	}
	l.base = at
	clear(l.poolNew)
}

// hold returns for how many seconds a connection is remembered on average: by Little's law the
// ports in use, over those that end in a second. What ends is what came less the growth. 0 is
// not known: next to nothing ended, or nothing came.
func hold(old float64, was, is int, fresh uint64, span time.Duration) float64 {
	ended := float64(fresh) - float64(is-was)
	if ended < 10 || ended < float64(fresh)/20 {
		return old
	}
	now := float64(was+is) / 2 * span.Seconds() / ended
	if old == 0 {
		return now
	}
	return old + (now-old)*0.5
}

// Bound is what may be in use of a key at most: what was at the last dump, and what came
// since.
func (e *entry) bound() int { return e.inUse + e.more + int(min(e.fresh, math.MaxInt32)) }

// ports returns how many ports the key has.
func (l *Ledger) ports(k Key, e *entry) int { return l.pools[e.pool].Ports(k.Addr) }

// Flows reports how many connections of any protocol the address has left, and whether that
// is known.
func (l *Ledger) Flows(a netip.Addr) (n int, known bool) {
	if l.census == nil {
		return 0, false
	}
	return l.census.Flows(a), true
}

// LastDump returns when the last dump began that counts; zero: there is none.
func (l *Ledger) LastDump() time.Time {
	if l.census == nil {
		return time.Time{}
	}
	return l.dumped
}

// WantsDump reports whether what came since the last dump may have made something full enough
// to act: a threshold lies between what was in use and what may be.
func (l *Ledger) WantsDump(reaction time.Duration) bool {
	if l.census == nil {
		return len(l.pools) > 0
	}
	for k, e := range l.keys {
		if e.fresh == 0 {
			continue
		}
		ports := l.ports(k, e)
		for _, limit := range []int{ports * warnAt / 100, ports * errorAt / 100, ports - margin(e.rate, ports, reaction)} {
			if e.inUse < limit && e.bound() >= limit {
				return true
			}
		}
	}
	return false
}

// sortedKeys returns the keys for which keep holds, the fullest first.
func (l *Ledger) sortedKeys(keep func(Key, *entry) bool) []Key {
	var out []Key
	for k, e := range l.keys {
		if keep(k, e) {
			out = append(out, k)
		}
	}
	share := func(k Key) float64 {
		e := l.keys[k]
		return float64(e.inUse+e.more) / float64(max(l.ports(k, e), 1))
	}
	slices.SortFunc(out, func(a, b Key) int {
		return cmp.Or(cmp.Compare(share(b), share(a)), cmp.Compare(l.keys[b].rate, l.keys[a].rate), a.Compare(b))
	})
	return out
}
