// Package egress says how full pools of addresses are, when they will be, and what follows.
//
// Its one idea: a port of an address is used up for one destination alone (protocol, address
// and port), so what runs dry is never a pool or an address but an address *for a
// destination* ([Key]). A [Census] counts those from one dump of the connection table; a
// [Ledger] puts censuses and the kernel's counters of new connections together over time:
// what was in use at the last dump plus what came since can never be too little. From that
// follow warnings, which addresses new connections to a destination should avoid ([Relief]),
// and whom the kernel's failures may be due to. [Size] is the arithmetic before there is
// anything to count.
//
// The package has no clock, no kernel and no goroutine: times are arguments.
package egress

import (
	"net/netip"
	"slices"

	"weir/internal/model"
)

// Dest is what connections go to. A source port is free or in use for each of these by itself.
type Dest struct {
	Proto model.Proto
	To    netip.AddrPort
}

// String returns "tcp 192.0.2.1:443".
func (d Dest) String() string { return d.Proto.String() + " " + d.To.String() }

// Compare orders by protocol, address and port.
func (d Dest) Compare(o Dest) int {
	if d.Proto != o.Proto {
		return int(d.Proto) - int(o.Proto)
	}
	return d.To.Compare(o.To)
}

// Key is an address of a pool, for a destination.
type Key struct {
	Addr netip.Addr
	Dest
}

// Compare orders by destination and address.
func (k Key) Compare(o Key) int {
	if c := k.Dest.Compare(o.Dest); c != 0 {
		return c
	}
	return k.Addr.Compare(o.Addr)
}

// Pool is what is to be known of a pool to account for it. It is immutable.
type Pool struct {
	Model *model.Pool
	// Addrs are its addresses, sorted: those of the model, or what the devices of one that
	// masquerades hold.
	Addrs []netip.Addr
	ports []model.PortRange // that each address hands out
	count int               // how many that are
}

// NewPool returns the pool of m, which hands out those ports. held are the addresses that a
// pool of the word masquerade has.
func NewPool(m *model.Pool, ports []model.PortRange, held []netip.Addr) *Pool {
	p := &Pool{Model: m, ports: ports, Addrs: slices.Clone(held)}
	if !m.Masquerade {
		p.Addrs = append(m.Addrs(model.IPv4), m.Addrs(model.IPv6)...)
	}
	slices.SortFunc(p.Addrs, netip.Addr.Compare)
	p.Addrs = slices.Compact(p.Addrs)
	for _, r := range ports {
		p.count += r.Len()
	}
	return p
}

// Ports returns how many source ports the address has for each destination; 0 for one that is
// not of the pool.
func (p *Pool) Ports(a netip.Addr) int {
	if _, ok := slices.BinarySearchFunc(p.Addrs, a, netip.Addr.Compare); ok {
		return p.count
	}
	return 0
}

// usable reports whether the pool hands out the port.
func (p *Pool) usable(port uint16) bool {
	return slices.ContainsFunc(p.ports, func(r model.PortRange) bool { return r.Contains(port) })
}

// drained reports whether new connections do not get the address.
func (p *Pool) drained(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(p.Model.Drained, a, netip.Addr.Compare)
	return found
}

// index finds the pool and the address in it.
type index map[netip.Addr]place

type place struct{ pool, addr int32 }

func newIndex(pools []*Pool) index {
	ix := index{}
	for i, p := range pools {
		for j, a := range p.Addrs {
			if _, dup := ix[a]; !dup { // of devices that several pools masquerade as: the first
				ix[a] = place{int32(i), int32(j)}
			}
		}
	}
	return ix
}
