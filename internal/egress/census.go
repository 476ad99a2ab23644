package egress

import (
	"cmp"
	"net/netip"
	"slices"

	"weir/internal/model"
)

// censusRoom is for how many addresses and destinations a Census counts each by itself, some
// 4 MB of memory. Where a dump shows more, rare ones are summed up.
const censusRoom = 65536

// Census counts the connections of one dump. Memory is bounded however many destinations
// there are; what is busy is counted exactly all the same. The zero value is not usable.
type Census struct {
	pools []*Pool
	index index
	room  int

	uses   map[packed]tally
	missed int // how many of one key may have been summed up before it got a tally
	flows  [][]int
	other  []int // of each pool: what was summed up
}

// packed is a Key without pointers, for maps that the garbage collector need not look into.
type packed struct {
	pool, addr int32
	to         [16]byte
	port       uint16
	proto      model.Proto
	v4         bool
}

type tally struct {
	n      int32
	missed int32 // may have been met before, at most that often
	pinned bool
}

// NewCensus returns an empty one. What is in watch is counted exactly whatever else comes:
// the busiest of the census before.
func NewCensus(pools []*Pool, watch []Key) *Census { return newCensus(pools, newIndex(pools), watch) }

func newCensus(pools []*Pool, ix index, watch []Key) *Census {
	c := &Census{pools: pools, index: ix, room: censusRoom, uses: map[packed]tally{},
		flows: make([][]int, len(pools)), other: make([]int, len(pools))}
	for i, p := range pools {
		c.flows[i] = make([]int, len(p.Addrs))
	}
	for _, k := range watch[:min(len(watch), c.room/4)] {
		if at, ok := ix[k.Addr]; ok {
			c.uses[pack(at, k.Dest)] = tally{pinned: true}
		}
	}
	return c
}

func pack(at place, d Dest) packed {
	return packed{pool: at.pool, addr: at.addr, to: d.To.Addr().As16(), port: d.To.Port(), proto: d.Proto, v4: d.To.Addr().Is4()}
}

func (c *Census) unpack(k packed) Key {
	a := netip.AddrFrom16(k.to)
	if k.v4 {
		a = a.Unmap()
	}
	return Key{c.pools[k.pool].Addrs[k.addr], Dest{k.proto, netip.AddrPortFrom(a, k.port)}}
}

// Add counts a connection that left as outside, to d. It reports whether that is an address
// of a pool. A port that the pool does not hand out (any more) uses up nothing.
func (c *Census) Add(outside netip.AddrPort, d Dest) bool {
	at, ok := c.index[outside.Addr()]
	if !ok {
		return false
	}
	c.flows[at.pool][at.addr]++
	if d.Proto != model.TCP && d.Proto != model.UDP || !c.pools[at.pool].usable(outside.Port()) {
		return true
	}
	k := pack(at, d)
	t, known := c.uses[k]
	if !known {
		if len(c.uses) >= c.room {
			c.prune()
		}
		t.missed = int32(c.missed)
	}
	t.n++
	c.uses[k] = t
	return true
}

// prune sums up the rarer half. This is the counting of Misra and Gries ("Finding repeated
// elements", 1982): what is left out is at most twice the connections per place, so whatever
// has more than that is kept.
func (c *Census) prune() {
	counts := make([]int32, 0, len(c.uses))
	for _, t := range c.uses {
		if !t.pinned {
			counts = append(counts, t.n+t.missed)
		}
	}
	slices.Sort(counts)
	limit := counts[len(counts)/2]
	for k, t := range c.uses {
		if !t.pinned && t.n+t.missed <= limit {
			c.other[k.pool] += int(t.n)
			delete(c.uses, k)
		}
	}
	c.missed = max(c.missed, int(limit))
}

// Use is what is in use of an address for a destination.
type Use struct {
	Key
	Pool  int // place of the pool in the list
	InUse int // ports
	More  int // may be in use besides; 0 unless there were more destinations than room
}

// Uses returns what was counted, most first.
func (c *Census) Uses() []Use {
	out := make([]Use, 0, len(c.uses))
	for k, t := range c.uses {
		if t.n > 0 {
			out = append(out, Use{c.unpack(k), int(k.pool), int(t.n), int(t.missed)})
		}
	}
	slices.SortFunc(out, func(a, b Use) int {
		if c := cmp.Compare(b.InUse+b.More, a.InUse+a.More); c != 0 {
			return c
		}
		return a.Key.Compare(b.Key)
	})
	return out
}

// Flows returns how many connections of any protocol have the address as their source.
func (c *Census) Flows(a netip.Addr) int {
	at, ok := c.index[a]
	if !ok {
		return 0
	}
	return c.flows[at.pool][at.addr]
}
