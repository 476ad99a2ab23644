package model

import (
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Limits of mirrors.
const (
	// MaxMirrors is the largest number of mirrors; packets walk the rules of each.
	MaxMirrors = 16
	// MaxSample is the largest number of which a sample takes some.
	MaxSample = 1_000_000
	// MaxMirrorRate is the highest limit, in packets in its unit of time.
	MaxMirrorRate = 10_000_000
	// MaxMirrorFor is the longest time that a mirror with an end runs.
	MaxMirrorFor = 30 * 24 * time.Hour
)

// Mirror is copies of packets for somebody to look at. It is immutable.
type Mirror struct {
	Name  string
	Match MirrorMatch
	// To is where copies are sent to, at most one of each family: the collectors, neighbours on a
	// network of the box, or with a VXLAN its next hops (VXLAN.Hops).
	To       []netip.Addr
	VXLAN    VXLAN         // by which the collector in another network is reached; the zero value: none
	Backend  bool          // copies show the packets as backends see them, not as clients do
	Take, Of uint32        // the sample: Take of Of; the same where all are copied
	Packets  bool          // the sample is of packets, not of flows
	Rate     int           // the limit, packets of a family in Unit; 0: none
	Unit     time.Duration // of the limit
	For      time.Duration // it ends by itself after that time; 0: it does not

	// Off says that no packet is copied now, by a running weir's word or time. Its rules stay, so
	// that copies on their way are known when they come in again.
	Off bool

	// Said is where the file says each of To, for what only the box can tell; nil for a mirror
	// that is in no file. Equal does not look at it.
	Said []Pos
}

// VXLAN is a tunnel to a collector in another network (RFC 7348).
type VXLAN struct {
	ID     uint32     // network identifier, 1 to MaxVXLAN; 0: there is no tunnel
	Port   uint16     // UDP port of the other end
	Remote netip.Addr // the other end
}

const (
	// MaxVXLAN is the largest VXLAN network identifier.
	MaxVXLAN = 1<<24 - 1
	// VXLANPrefix begins the names of the devices of tunnels.
	VXLANPrefix = "weir-vx"
	// VXLANPort is the port that is registered for VXLAN.
	VXLANPort = 4789
)

// Device returns the name of the tunnel's device. The longest is as long as a name may be.
func (v VXLAN) Device() string { return VXLANPrefix + strconv.FormatUint(uint64(v.ID), 10) }

// Hops returns the next hops that lead into the tunnel. Nobody has these addresses: they only tell
// the tunnel's route. Those of IPv4 have the identifier in 240.0.0.0/8, which is reserved (RFC 1112
// section 4), those of IPv6 in a unique local prefix (RFC 4193).
func (v VXLAN) Hops() []netip.Addr {
	six := [16]byte{0xfd, 0x5e, 0x77, 0x65, 0x69, 0x72}
	four := [4]byte{240, byte(v.ID >> 16), byte(v.ID >> 8), byte(v.ID)}
	copy(six[13:], four[1:])
	return []netip.Addr{netip.AddrFrom4(four), netip.AddrFrom16(six)}
}

// CollectorOf returns who gets the copies of family f, by the address that the file says.
func (m *Mirror) CollectorOf(f Family) netip.Addr {
	if m.VXLAN.ID != 0 {
		return m.VXLAN.Remote
	}
	return m.Collector(f)
}

// Pos is a place in the file, both from 1 on.
type Pos struct{ Line, Column int }

// MirrorMatch is what a mirror copies. What it does not say matches everything.
type MirrorMatch struct {
	Devices  []string // by which the side that is looked at (Mirror.Backend) is reached
	Requests bool     // packets to servers
	Answers  bool     // packets from servers
	Proto    Proto    // 0: any
	Ports    []PortRange
	From     []netip.Prefix // clients
	To       []netip.Prefix // servers, as the side that is looked at knows them
	Service  string         // "": any, and what is no service
	Said     []Pos          // where the file says each of Devices, as Mirror.Said
}

// Families returns the families of which the mirror copies packets, IPv4 first.
func (m *Mirror) Families() []Family {
	var out []Family
	for _, f := range []Family{IPv4, IPv6} {
		if m.Collector(f).IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// Collector returns who gets the copies of family f, or the zero Addr.
func (m *Mirror) Collector(f Family) netip.Addr {
	for _, a := range m.To {
		if FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// Sampled reports whether some are left out on purpose.
func (m *Mirror) Sampled() bool { return m.Take < m.Of }

// RateText returns the limit as the file says it, "" for none.
func (m *Mirror) RateText() string {
	if m.Rate == 0 {
		return ""
	}
	unit := map[time.Duration]string{time.Second: "second", time.Minute: "minute", time.Hour: "hour"}[m.Unit]
	return strconv.Itoa(m.Rate) + "/" + unit
}

// Equal reports whether the two say the same.
func (m *Mirror) Equal(o *Mirror) bool {
	a, b := m.Match, o.Match
	return m.Name == o.Name && slices.Equal(m.To, o.To) && m.VXLAN == o.VXLAN && m.Backend == o.Backend && m.Take == o.Take && m.Of == o.Of &&
		m.Packets == o.Packets && m.Rate == o.Rate && m.Unit == o.Unit && m.For == o.For && m.Off == o.Off &&
		slices.Equal(a.Devices, b.Devices) && a.Requests == b.Requests && a.Answers == b.Answers && a.Proto == b.Proto &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.From, b.From) && slices.Equal(a.To, b.To) && a.Service == b.Service
}

// Mirror returns the mirror of that name, or nil.
func (c *Config) Mirror(name string) *Mirror {
	for _, m := range c.Mirrors {
		if m.Name == name {
			return m
		}
	}
	return nil
}
