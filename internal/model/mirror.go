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
	// To is the collectors, at most one of each family: neighbours on a network of the box.
	To       []netip.Addr
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
	return m.Name == o.Name && slices.Equal(m.To, o.To) && m.Backend == o.Backend && m.Take == o.Take && m.Of == o.Of &&
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
