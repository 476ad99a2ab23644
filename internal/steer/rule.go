package steer

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"weir/internal/steer/match"
)

// rule is a Rule as packets are compared with it.
type rule struct {
	index, target, priority int
	protocols               []uint8
	src, dst                prefixes
	sports, dports          []PortRange
	bytes                   match.Conditions
}

func newRule(r *Rule, index, target int) (rule, error) {
	made := rule{index: index, target: target, priority: r.Priority, protocols: r.Protocols,
		sports: r.SourcePorts, dports: r.DestinationPorts, bytes: r.Bytes}
	var err error
	if made.src, err = newPrefixes(r.Sources); err != nil {
		return made, err
	}
	if made.dst, err = newPrefixes(r.Destinations); err != nil {
		return made, err
	}
	for _, list := range [][]PortRange{r.SourcePorts, r.DestinationPorts} {
		for _, ports := range list {
			if ports.First > ports.Last {
				return made, fmt.Errorf("ports %d-%d: the first is above the last", ports.First, ports.Last)
			}
		}
	}
	return made, nil
}

// match reports whether the rule, whose protocols have been asked, wants the packet. What costs
// least and tells most comes first.
func (r *rule) match(p *match.Packet, a *addrs) bool {
	return inRanges(r.dports, p.HasPorts, p.DstPort) && inRanges(r.sports, p.HasPorts, p.SrcPort) &&
		r.dst.have(p.V6, a.dst) && r.src.have(p.V6, a.src) && r.bytes.Match(p)
}

func inRanges(ranges []PortRange, has bool, port uint16) bool {
	if len(ranges) == 0 {
		return true
	}
	for _, r := range ranges {
		if has && port >= r.First && port <= r.Last {
			return true
		}
	}
	return false
}

// addr is an address as two numbers; one of IPv4 is in the upper half of the first.
type addr struct{ hi, lo uint64 }

// addrs are those of a packet.
type addrs struct{ src, dst addr }

func (a *addrs) read(p *match.Packet) {
	switch {
	case len(p.Data) == 0:
	case p.V6:
		a.src = addr{binary.BigEndian.Uint64(p.Data[8:]), binary.BigEndian.Uint64(p.Data[16:])}
		a.dst = addr{binary.BigEndian.Uint64(p.Data[24:]), binary.BigEndian.Uint64(p.Data[32:])}
	default:
		a.src.hi = uint64(binary.BigEndian.Uint32(p.Data[12:])) << 32
		a.dst.hi = uint64(binary.BigEndian.Uint32(p.Data[16:])) << 32
	}
}

// prefixes are some of both families. None at all have every address.
type prefixes struct{ v4, v6 []prefix }

type prefix struct{ net, mask addr }

func newPrefixes(list []netip.Prefix) (prefixes, error) {
	var out prefixes
	for _, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() {
			return out, fmt.Errorf("prefix %s is none of IPv4 or IPv6", p)
		}
		made := prefix{mask: maskOf(p.Bits())}
		b := p.Masked().Addr().AsSlice()
		if p.Addr().Is4() {
			made.net.hi = uint64(binary.BigEndian.Uint32(b)) << 32
			out.v4 = append(out.v4, made)
			continue
		}
		made.net = addr{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
		out.v6 = append(out.v6, made)
	}
	return out, nil
}

// maskOf returns the mask of the first bits. A shift by 64 gives 0.
func maskOf(bits int) addr {
	if bits <= 64 {
		return addr{hi: ^uint64(0) << (64 - bits)}
	}
	return addr{^uint64(0), ^uint64(0) << (128 - bits)}
}

func (ps *prefixes) have(v6 bool, a addr) bool {
	list := ps.v4
	if v6 {
		list = ps.v6
	}
	for i := range list {
		p := &list[i]
		if a.hi&p.mask.hi == p.net.hi && a.lo&p.mask.lo == p.net.lo {
			return true
		}
	}
	return len(ps.v4)+len(ps.v6) == 0
}
