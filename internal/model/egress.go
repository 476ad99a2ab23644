package model

import (
	"net/netip"
	"slices"
	"time"
)

// Limits and defaults of egress pools.
const (
	// MaxPools is the largest number of egress pools in one configuration. They are looked
	// at one after the other for the first packet of a connection.
	MaxPools = 256
	// MaxPoolAddresses is the largest number of addresses of one pool and family.
	MaxPoolAddresses = 4096
	// MaxPoolClients is the largest number of clients of a pool that gives each a block of
	// ports: each is an element of a map.
	MaxPoolClients = 65536
	// MaxBlock is the largest number of ports of a client's block, in one protocol.
	MaxBlock = 32768
)

// DefaultPoolPorts are the source ports of a pool that names none.
var DefaultPoolPorts = PortRange{Lo: 1024, Hi: 65535}

// Spread is how a pool chooses the address of a new connection.
type Spread uint8

// The ways.
const (
	// SpreadFlow takes the addresses in turn, so that one client and one destination use all.
	SpreadFlow Spread = iota
	// SpreadClient keeps a client's address, by a consistent hash of its own.
	SpreadClient
	// SpreadClientDestination keeps the address of a client and a destination address.
	SpreadClientDestination
)

var spreadNames = [...]string{"flow", "client", "client+destination"}

// String returns the word of the configuration file.
func (s Spread) String() string { return spreadNames[s] }

// SpreadNames returns the allowed words in the order of the constants.
func SpreadNames() []string { return spreadNames[:] }

// Pool is addresses that connections get as their source when they leave. A connection
// takes the first pool, in file order, that matches it. What a list does not say matches
// anything. It is immutable.
type Pool struct {
	Name string

	// What it matches.
	From    []netip.Prefix // sources; masked, none in another
	In      []string       // devices by which packets come in; empty: any, and the box's own
	Out     []string       // devices by which they leave; at least one; groups are resolved
	To      []netip.Prefix // destinations; masked, none in another
	Except  []netip.Prefix // destinations to which the source stays as it is; masked
	Traffic []Traffic      // protocols and destination ports; empty: all

	// What it gives.
	Masquerade bool        // the outgoing device's own address; Addresses is empty
	Addresses  []AddrRange // of both families, sorted, none overlaps; at most MaxPoolAddresses of a family
	Ports      []PortRange // source ports of TCP and UDP, sorted, none touches another; not empty
	Spread     Spread
	// Spill says that a connection whose address has no port left for its destination gets
	// another address; else it fails. Always with SpreadFlow, never with Block.
	Spill  bool
	Assign string // device that holds the addresses; "" when they are routed here
	// Block is how many ports each client of From has for itself, in each protocol; 0: none.
	// Then client and ports follow from each other (RFC 7422).
	Block int
	Log   bool // each connection, or with Block each client's block, is written to the log of bindings

	// What its connections need.
	ClampMSS bool       // SYNs announce no more than the path's MTU bears
	Leaks    bool       // private sources may leave by Out untranslated; else they are rejected
	Timeouts []CtExpiry // sorted by protocol and state, each once

	// What a running weir adds to what the file says.
	Drained []netip.Addr // addresses that new connections do not get; sorted
	Taken   []TakenPort  // ports that somebody on the box listens on; sorted
	Relief  []Relief     // destinations for which some addresses have no ports left; sorted
}

// TakenPort is a port of the box itself, which a pool does not hand out.
type TakenPort struct {
	Addr netip.Addr // invalid: of all addresses
	Port uint16
}

// Relief sends new connections to a destination past addresses that run out of ports for it.
type Relief struct {
	Proto   Proto // TCP or UDP
	To      netip.AddrPort
	Without []netip.Addr // sorted; some address of the pool is not among them
}

// CtExpiry is for how long conntrack remembers a connection of a protocol that is in a state,
// without another packet.
type CtExpiry struct {
	Proto Proto  // TCP or UDP
	State string // the kernel's word: time_wait, established, close, …; unreplied, replied
	Time  time.Duration
}

// Families returns the families whose packets the pool may match and translate, IPv4 first.
func (p *Pool) Families() []Family {
	var out []Family
	for _, f := range []Family{IPv4, IPv6} {
		is := func(x netip.Prefix) bool { return FamilyOf(x.Addr()) == f }
		if p.Has(f) &&
			(len(p.From) == 0 || slices.ContainsFunc(p.From, is)) && (len(p.To) == 0 || slices.ContainsFunc(p.To, is)) {
			out = append(out, f)
		}
	}
	return out
}

// Pool returns the pool of that name, or nil.
func (c *Config) Pool(name string) *Pool {
	for _, p := range c.Egress {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// reusePools is Reuse for the pools.
func (c *Config) reusePools(prev *Config) {
	for i, p := range c.Egress {
		if o := prev.Pool(p.Name); o != nil && o.Equal(p) {
			c.Egress[i] = o
		}
	}
}

// Has reports whether the pool has an address of family f.
func (p *Pool) Has(f Family) bool {
	return p.Masquerade || slices.ContainsFunc(p.Addresses, func(r AddrRange) bool { return FamilyOf(r.Lo) == f })
}

// Addrs returns the addresses of family f one by one, in order; none with Masquerade.
func (p *Pool) Addrs(f Family) []netip.Addr {
	var out []netip.Addr
	for _, r := range p.Addresses {
		if FamilyOf(r.Lo) != f {
			continue
		}
		for a := r.Lo; ; a = a.Next() {
			if out = append(out, a); a == r.Hi {
				break
			}
		}
	}
	return out
}

// Equal reports whether the two pools say the same.
func (p *Pool) Equal(o *Pool) bool {
	return p.Name == o.Name && slices.Equal(p.From, o.From) && slices.Equal(p.In, o.In) && slices.Equal(p.Out, o.Out) &&
		slices.Equal(p.To, o.To) && slices.Equal(p.Except, o.Except) && slices.Equal(p.Traffic, o.Traffic) &&
		p.Masquerade == o.Masquerade && slices.Equal(p.Addresses, o.Addresses) && slices.Equal(p.Ports, o.Ports) &&
		p.Spread == o.Spread && p.Spill == o.Spill && p.Assign == o.Assign && p.Block == o.Block && p.Log == o.Log &&
		p.ClampMSS == o.ClampMSS && p.Leaks == o.Leaks && slices.Equal(p.Timeouts, o.Timeouts) &&
		slices.Equal(p.Drained, o.Drained) && slices.Equal(p.Taken, o.Taken) && slices.EqualFunc(p.Relief, o.Relief, Relief.Equal)
}

// Equal reports whether the two say the same.
func (r Relief) Equal(o Relief) bool {
	return r.Proto == o.Proto && r.To == o.To && slices.Equal(r.Without, o.Without)
}
