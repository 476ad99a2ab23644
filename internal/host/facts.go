package host

import (
	"net/netip"
	"slices"

	"weir/internal/model"
)

// Facts is what was seen on a box.
type Facts struct {
	// Forward and RPFilterAll are the sysctls of the whole box, -1 where they cannot be read.
	Forward     map[model.Family]int // net.ipv4.ip_forward, net.ipv6.conf.all.forwarding
	RPFilterAll int                  // net.ipv4.conf.all.rp_filter

	Links    []Link
	Held     []HeldPrefix // of all devices
	Defaults []Default    // each device's best default route of each family

	Routes []*Route // of Needs.Backends; nil: not looked at yet
	// Last are the routes at a time when there were some, nil for a backend that had none.
	// It may be nil itself: then nothing is known of before.
	Last []*Route

	// SourceRoutes are those of Needs.Sources, ListenRoutes of Needs.Listens: is the address
	// the box's own? Either may be nil: not looked at.
	SourceRoutes, ListenRoutes []*Route

	Conntrack Conntrack
	// net.netfilter.nf_conntrack_tcp_loose and nf_conntrack_tcp_be_liberal, -1 where they cannot be
	// read.
	TCPLoose, TCPLiberal int
}

// Link is a device.
type Link struct {
	Name    string
	Index   int
	Up      bool // set up
	Carrier bool // and something is at the other end
	Loop    bool // it is a loopback device

	// The device's own sysctls; -1 where it has none.
	Forward4, RPFilter            int
	Forward6, AcceptRA, Disabled6 int
}

// HeldPrefix is an address that a device bears, with the length of its network.
type HeldPrefix struct {
	Dev    string
	Prefix netip.Prefix // not masked
}

// Default is a default route over a device.
type Default struct {
	Family model.Family
	Dev    string
	Metric uint32
	RA     bool // it was learnt from a router advertisement
}

// Way is how the kernel treats packets to a destination.
type Way uint8

// The ways.
const (
	Forwarded   Way = iota // to a next hop, or to the destination on its segment
	Local                  // the destination is the box itself
	Unroutable             // no route at all
	Unreachable            // a route says so: ICMP host unreachable
	Prohibited             // a route says so: ICMP administratively prohibited
	Blackholed             // a route drops them
)

// Route is the route to a destination. It is immutable, and shared by destinations.
type Route struct {
	Way  Way
	Dst  netip.Prefix // the network of the route; zero where Way is not Forwarded or Local
	Hops []Hop        // one, or several that share the packets
	// Own is the box's address on the segment of the (first) next hop, with the length of
	// its network; invalid where there is none.
	Own netip.Prefix
}

// Hop is where packets go next.
type Hop struct {
	Dev     string
	Gateway netip.Addr // invalid: the destination is on the device's segment
}

// usable reports whether packets are sent somewhere.
func (r *Route) usable() bool { return r.Way == Forwarded || r.Way == Local }

// Remember brings Last up to date, after Routes: what leads somewhere is kept, unless it
// is but the default route where there was a better one.
func (f *Facts) Remember() {
	if len(f.Last) != len(f.Routes) {
		f.Last = make([]*Route, len(f.Routes))
	}
	for i, r := range f.Routes {
		if r == nil || !r.usable() {
			continue
		}
		if last := f.Last[i]; last == nil || r.Way == Local || r.Dst.Bits() > 0 || last.Dst.Bits() == 0 {
			f.Last[i] = r
		}
	}
}

// Inherit takes over what was remembered for other needs, of the backends that nothing
// leads to now. Where a route leads somewhere, a new configuration starts from that.
func (f *Facts) Inherit(n *Needs, before *Facts, needs *Needs) {
	f.Last = make([]*Route, len(n.Backends))
	for i, a := range n.Backends {
		at, found := slices.BinarySearchFunc(needs.Backends, a, netip.Addr.Compare)
		if found && at < len(before.Last) && at < len(before.Routes) && before.Routes[at] != nil && !before.Routes[at].usable() {
			f.Last[i] = before.Last[at]
		}
	}
}

// Conntrack is the state of the connection table. A Max of 0 is one that cannot be read.
type Conntrack struct {
	Count, Max, Buckets int
	Level               int  // the last one: see Fill
	NoEvents            bool // net.netfilter.nf_conntrack_events is 0
}

// Levels of the connection table, in percent.
const (
	FillWarning = 80
	FillError   = 95
	fillGap     = 5 // a level is left that much below where it is entered
)

// Fill returns the level that the table has reached: 0, FillWarning or FillError. It
// depends on the last one too, so that a table on the edge is not told of each second.
func (c Conntrack) Fill() int {
	if c.Max <= 0 {
		return 0
	}
	percent := 100 * c.Count / c.Max
	for _, l := range []int{FillError, FillWarning} {
		if percent >= l || c.Level >= l && percent >= l-fillGap {
			return l
		}
	}
	return 0
}
