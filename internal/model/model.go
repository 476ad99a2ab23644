// Package model holds the validated domain values that weir works on.
//
// A value in a model is right: internal/config checked it, or a test made it by
// hand, and nothing to the right of it (plan, ruleset, nft) checks it again. The
// package knows no text format, no clock and no kernel.
package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Defaults and limits of the configuration language.
const (
	// DefaultHashSeed seeds every hash of a configuration that names no seed.
	DefaultHashSeed uint32 = 0x77656972
	// DefaultMarkMask is the part of packet and connection marks that weir may use.
	DefaultMarkMask uint32 = 0x0fff0000
	// MaxWeight is the largest weight of a backend; 0 takes no new connections.
	MaxWeight = 256
	// MaxNameLen is the longest name, in bytes.
	MaxNameLen = 63
	// MaxBackends is the largest number of backends of one service.
	MaxBackends = 4096
	// MaxTranslatedPorts is the longest listen range whose ports a backend may
	// translate: each port of such a range needs slots of its own.
	MaxTranslatedPorts = 1024
	// MaxConnections is the largest limit of open connections.
	MaxConnections = 10_000_000
)

// Config is one whole configuration.
type Config struct {
	HashSeed   uint32              // seed of every jhash; the same on every node of a group
	MarkMask   uint32              // bits of packet and connection marks that weir may use
	Interfaces map[string][]string // interface groups: name to device names
	Services   []*Service          // in file order; names are unique
	Edge       *Edge               // what may reach and pass the box; nil: weir restricts nothing
	Blocklists []*Blocklist        // in file order; names are unique
	Allow      []netip.Prefix      // masked; never blocked, whatever a list says
	Egress     []*Pool             // in file order, which is the order of match; names are unique
	Mirrors    []*Mirror           // in file order; names are unique
	Bindings   Bindings            // where bindings of the pools are logged

	// Wires is what the box has for services with ForwardDirect: no part of a file, but seen
	// before it is planned. nil: not seen, and taken for what such services need.
	Wires *Wires
}

// Family is an IP version: 4 or 6.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of a, which must be valid and not 4-in-6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns the word nft uses for the family: "ip" or "ip6".
func (f Family) String() string {
	if f == IPv4 {
		return "ip"
	}
	return "ip6"
}

// Proto is an IANA protocol number.
type Proto uint8

// The protocols a service may listen on.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

// String returns the protocol's name in lower case, or its number.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// PortRange is an inclusive range of ports. The zero value means "no port said".
type PortRange struct{ Lo, Hi uint16 }

// Port returns the range that holds p alone.
func Port(p uint16) PortRange { return PortRange{p, p} }

// IsZero reports whether no port was said.
func (r PortRange) IsZero() bool { return r == PortRange{} }

// Single reports whether the range holds exactly one port.
func (r PortRange) Single() bool { return r.Lo == r.Hi && r.Lo != 0 }

// Len returns the number of ports, 0 for the zero value.
func (r PortRange) Len() int {
	if r.IsZero() {
		return 0
	}
	return int(r.Hi) - int(r.Lo) + 1
}

// Contains reports whether p lies in the range.
func (r PortRange) Contains(p uint16) bool { return !r.IsZero() && r.Lo <= p && p <= r.Hi }

// Overlaps reports whether the ranges share a port.
func (r PortRange) Overlaps(o PortRange) bool {
	return !r.IsZero() && !o.IsZero() && r.Lo <= o.Hi && o.Lo <= r.Hi
}

// String returns "80" or "8000-8010", and "" for the zero value.
func (r PortRange) String() string {
	switch {
	case r.IsZero():
		return ""
	case r.Lo == r.Hi:
		return strconv.Itoa(int(r.Lo))
	}
	return fmt.Sprintf("%d-%d", r.Lo, r.Hi)
}

// Listen is one address and contiguous port range that a service answers on. A
// port list in the file becomes several of these.
type Listen struct {
	Addr  netip.Addr // never 4-in-6, never with a zone
	Proto Proto
	Ports PortRange // never zero
}

// Family returns the family of the listen address.
func (l Listen) Family() Family { return FamilyOf(l.Addr) }

// String returns the form of the file: "198.51.100.10:80/tcp".
func (l Listen) String() string {
	if l.Addr.Is4() {
		return fmt.Sprintf("%s:%s/%s", l.Addr, l.Ports, l.Proto)
	}
	return fmt.Sprintf("[%s]:%s/%s", l.Addr, l.Ports, l.Proto)
}

// Backend is one server of a service.
type Backend struct {
	Addr   netip.Addr // never 4-in-6, never with a zone
	Ports  PortRange  // zero: the port of the connection is kept
	Weight int        // share of new connections, 0 to MaxWeight; 0 takes none
	Backup bool       // takes new connections only when too few others are up
	Check  *Check     // how its health is asked for; nil: as the service says
	// MaxConnections is how many connections may be open at a time, 1 to MaxConnections;
	// 0: any number. Beyond it, new ones go to other backends.
	MaxConnections int
}

// Family returns the family of the backend's address.
func (b Backend) Family() Family { return FamilyOf(b.Addr) }

// ID is the backend's identity, by which hashes and commands know it: its address,
// with its port or port range where it has one. It does not change with its weight
// or its place in the file.
func (b Backend) ID() string {
	switch {
	case b.Ports.IsZero():
		return b.Addr.String()
	case b.Addr.Is4():
		return b.Addr.String() + ":" + b.Ports.String()
	}
	return "[" + b.Addr.String() + "]:" + b.Ports.String()
}

// Balance is how a service chooses a backend for a new connection.
type Balance uint8

// The algorithms.
const (
	RoundRobin Balance = iota // in turn, by weight
	Random                    // independent random choice, by weight
	Maglev                    // consistent hash of source address and port
	Source                    // consistent hash of the source address alone
)

var balanceNames = [...]string{"round-robin", "random", "maglev", "source"}

// String returns the word of the configuration file.
func (b Balance) String() string { return balanceNames[b] }

// BalanceNames returns the allowed words in the order of the constants.
func BalanceNames() []string { return balanceNames[:] }

// SourceMode is what a backend sees as the client's address.
type SourceMode uint8

// The modes.
const (
	SourceKeep       SourceMode = iota // the client's own address
	SourceMasquerade                   // the address of the outgoing interface
	SourceAddress                      // a fixed address
	SourcePool                         // an address of an egress pool
)

// SourceNAT is a mode and, for SourceAddress, the address of each family.
type SourceNAT struct {
	Mode   SourceMode
	V4, V6 netip.Addr // valid for SourceAddress only; one of them may be missing
	Pool   string     // the pool's name, for SourcePool only
}

// Addr returns the fixed address of family f; invalid where there is none.
func (s SourceNAT) Addr(f Family) netip.Addr {
	if f == IPv4 {
		return s.V4
	}
	return s.V6
}

// AllDown is what happens to new connections when no backend can be chosen.
type AllDown uint8

// The actions.
const (
	Reject   AllDown = iota // TCP RST, ICMP port unreachable for the rest
	Drop                    // silence
	FailOpen                // all backends are tried, sick or not: the checks may be wrong
)

// String returns the word of the configuration file.
func (a AllDown) String() string {
	return [...]string{"reject", "drop", "fail-open"}[a]
}

// OnDown is what happens to the connections of a backend that goes down.
type OnDown uint8

// The actions.
const (
	Keep  OnDown = iota // nothing: they may live longer than the check believes
	Reset               // TCP clients get a reset, UDP flows move to another backend
)

// String returns the word of the configuration file.
func (o OnDown) String() string { return [...]string{"keep", "reset"}[o] }

// Service is a set of listen addresses whose new connections go to backends. It is
// immutable once built: plan keeps what it made of a *Service while the pointer is
// the same.
type Service struct {
	Name        string
	Listen      []Listen // at least one; no two overlap, in this service or another
	Forward     Forward
	In          []string // devices by which clients' packets come in, groups resolved; ForwardDirect only
	Untracked   bool     // conntrack does not see its packets; always with ForwardDirect, never with ForwardNAT
	Balance     Balance
	Source      SourceNAT
	Sticky      time.Duration // 0: off; else idle time after which a client is forgotten
	WhenAllDown AllDown
	Assign      string    // device that holds the listen addresses; "" when they are routed here
	Backends    []Backend // identities are unique; may be empty

	Check      *Check        // nil: backends count as up
	SlowStart  time.Duration // a backend that came up gets its whole weight after that; 0: at once
	MinHealthy float64       // part of the backends, 0 to 1, below which backups take part; 0: when none is up
	OnDown     OnDown

	// MaxConnections is how many connections may be open at a time with all backends
	// together, 1 to MaxConnections; 0: any number. Beyond it, new ones are refused.
	MaxConnections int
	Limits         []Limit // at most MaxLimits; no two are the same
	SynProxy       bool    // TCP clients must prove their address before a server hears of them

	Steering *Steering // nil: the kernel chooses. Else Forward is ForwardNAT, and Balance Maglev or Source
}

// Limited reports whether the service or one of its backends has a limit of connections.
func (s *Service) Limited() bool {
	return s.MaxConnections > 0 ||
		slices.ContainsFunc(s.Backends, func(b Backend) bool { return b.MaxConnections > 0 })
}

// Families returns the families the service listens on, IPv4 first.
func (s *Service) Families() []Family {
	var v4, v6 bool
	for _, l := range s.Listen {
		v4 = v4 || l.Addr.Is4()
		v6 = v6 || l.Addr.Is6()
	}
	var out []Family
	if v4 {
		out = append(out, IPv4)
	}
	if v6 {
		out = append(out, IPv6)
	}
	return out
}

// Service returns the service of that name, or nil.
func (c *Config) Service(name string) *Service {
	for _, s := range c.Services {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Equal reports whether the two services are the same in all that they say.
func (s *Service) Equal(o *Service) bool {
	return s.Name == o.Name && s.Forward == o.Forward && slices.Equal(s.In, o.In) && s.Untracked == o.Untracked && s.Balance == o.Balance && s.Source == o.Source &&
		s.Sticky == o.Sticky && s.WhenAllDown == o.WhenAllDown && s.Assign == o.Assign &&
		s.SlowStart == o.SlowStart && s.MinHealthy == o.MinHealthy && s.OnDown == o.OnDown && s.MaxConnections == o.MaxConnections &&
		s.SynProxy == o.SynProxy && s.Steering.Equal(o.Steering) && slices.Equal(s.Limits, o.Limits) &&
		s.Check.Equal(o.Check) && slices.Equal(s.Listen, o.Listen) &&
		slices.EqualFunc(s.Backends, o.Backends, func(a, b Backend) bool {
			checks := a.Check.Equal(b.Check)
			a.Check, b.Check = nil, nil
			return checks && a == b
		})
}

// Reuse puts prev's services in the place of those of c that equal them, so that what was
// made of a *Service need not be made again. prev may be nil.
func (c *Config) Reuse(prev *Config) {
	if prev == nil {
		return
	}
	if c.Edge.Equal(prev.Edge) {
		c.Edge = prev.Edge
	}
	c.reusePools(prev)
	var byName map[string]*Service
	for i, s := range c.Services {
		if i < len(prev.Services) && prev.Services[i] == s {
			continue // whoever changes a live model shares the rest
		}
		if byName == nil {
			byName = make(map[string]*Service, len(prev.Services))
			for _, s := range prev.Services {
				byName[s.Name] = s
			}
		}
		if o := byName[s.Name]; o != nil && o.Equal(s) {
			c.Services[i] = o
		}
	}
}
