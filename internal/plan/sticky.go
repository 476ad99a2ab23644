package plan

import (
	"encoding/binary"

	"weir/internal/ruleset"
)

// Sticky is a map that remembers clients, and which of them must be forgotten.
type Sticky struct {
	Map *ruleset.Set
	// Gone reports whether an element leads to a backend that takes no new connections
	// any more, or belongs to a service that is no more.
	Gone func(key, data string) bool
}

// StickyChanges returns the maps in which clients may be remembered whose backend went on
// the way from old to p. After a start, when old is nil, that is every map.
func (p *Plan) StickyChanges(old *Plan) []Sticky {
	pools := map[poolKey]*Pool{}
	changed := map[string]bool{}
	p.eachSticky(func(pool *Pool) {
		pools[poolKey{pool.StickyMap, pool.Base}] = pool
		if old == nil || old.units[pool.Service] == nil {
			changed[pool.StickyMap] = true
		}
	})
	if old != nil {
		old.eachSticky(func(pool *Pool) {
			if p.units[pool.Service] == nil {
				changed[pool.StickyMap] = true
			}
		})
	}
	var out []Sticky
	for _, s := range p.Ruleset.Tables[0].Sets {
		if changed[s.Name] {
			out = append(out, Sticky{s, goneFrom(s.Name, pools)})
		}
	}
	return out
}

// Remembering returns the sets and maps that packets fill and that a new connection's way
// depends on: the clients of sticky services, and who is full.
func (p *Plan) Remembering() []*ruleset.Set {
	var out []*ruleset.Set
	for _, s := range p.Ruleset.Tables[0].Sets {
		if s.Dynamic && s.Timeout {
			out = append(out, s)
		}
	}
	return out
}

func (p *Plan) eachSticky(fn func(*Pool)) {
	for _, pool := range p.Pools {
		if pool.StickyMap != "" {
			fn(pool)
		}
	}
}

// goneFrom returns the test for one map. The targets of a pool are the data of its slots:
// what a client remembered is of the same form, or the address alone.
func goneFrom(name string, pools map[poolKey]*Pool) func(key, data string) bool {
	targets := map[*Pool]map[string]bool{}
	return func(key, data string) bool {
		pool := pools[poolKey{name, binary.NativeEndian.Uint32([]byte(key[:4]))}]
		if pool == nil {
			return true
		}
		if targets[pool] == nil {
			targets[pool] = pool.targets(len(data))
		}
		return !targets[pool][data]
	}
}

// targets returns what n bytes of data may lead to from the pool.
func (p *Pool) targets(n int) map[string]bool {
	out := map[string]bool{}
	for i := range p.Backends {
		if !p.takes(int32(i)) {
			continue
		}
		b := p.Backends[i]
		addr := ruleset.AppendAddr(nil, b.Addr)
		if n == len(addr) {
			out[string(addr)] = true
			continue
		}
		for _, q := range portsOf(p.Service, p.Family) {
			out[string(ruleset.AppendPort(addr[:len(addr):len(addr)], p.Target(b, q.listen, q.port)))] = true
		}
	}
	return out
}

// takes reports whether a slot leads to backend i.
func (p *Pool) takes(i int32) bool {
	for _, s := range p.Slots {
		if s == i {
			return true
		}
	}
	return false
}
