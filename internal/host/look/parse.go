package look

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weir/internal/host"
	"weir/internal/model"
)

// Indices in the arrays of a device's sysctls that come with RTM_NEWLINK. IPv4's are those
// of linux/ip.h (IPV4_DEVCONF_*) less one, IPv6's those of linux/ipv6.h (DEVCONF_*).
const (
	conf4Forwarding  = 0
	conf4RPFilter    = 7
	conf6Forwarding  = 0
	conf6AcceptRA    = 3
	conf6DisableIPv6 = 26

	inetConf  = 1 // IFLA_INET_CONF
	inet6Conf = 2 // IFLA_INET6_CONF
)

// parseLink reads a struct ifinfomsg and its attributes.
func parseLink(b []byte) (l host.Link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, false
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l = host.Link{Index: int(int32(binary.NativeEndian.Uint32(b[4:]))), Up: flags&unix.IFF_UP != 0, Carrier: flags&unix.IFF_RUNNING != 0,
		Loop: flags&unix.IFF_LOOPBACK != 0, Forward4: -1, RPFilter: -1, Forward6: -1, AcceptRA: -1, Disabled6: -1}
	for typ, d := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(d)
		case unix.IFLA_AF_SPEC:
			for family, d := range attrs(d) {
				for typ, conf := range attrs(d) {
					parseConf(&l, family, typ, conf)
				}
			}
		}
	}
	return l, l.Name != ""
}

func parseConf(l *host.Link, family, typ uint16, conf []byte) {
	at := func(i int) int {
		if len(conf) < 4*(i+1) {
			return -1
		}
		return int(int32(binary.NativeEndian.Uint32(conf[4*i:])))
	}
	switch {
	case family == unix.AF_INET && typ == inetConf:
		l.Forward4, l.RPFilter = at(conf4Forwarding), at(conf4RPFilter)
	case family == unix.AF_INET6 && typ == inet6Conf:
		l.Forward6, l.AcceptRA, l.Disabled6 = at(conf6Forwarding), at(conf6AcceptRA), at(conf6DisableIPv6)
	}
}

// parseAddress reads a struct ifaddrmsg and its attributes.
func parseAddress(b []byte) (p netip.Prefix, index int) {
	if len(b) < unix.SizeofIfAddrmsg {
		return p, 0
	}
	var local, peer netip.Addr
	for typ, d := range attrs(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(d)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(d)
		}
	}
	if !local.IsValid() { // IPv6, unless it is one end of a point-to-point link
		local = peer
	}
	return netip.PrefixFrom(local, int(b[1])), int(int32(binary.NativeEndian.Uint32(b[4:])))
}

// entry is an entry of a routing table.
type entry struct {
	typ, proto byte
	dst        netip.Prefix
	metric     uint32
	hops       []hop
}

type hop struct {
	index   int
	gateway netip.Addr
}

// parseRoute reads a struct rtmsg and its attributes.
func parseRoute(b []byte) (e entry, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return e, false
	}
	e.typ, e.proto = b[7], b[5]
	dst, only := netip.IPv4Unspecified(), hop{}
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for typ, d := range attrs(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(d)
		case unix.RTA_PRIORITY:
			if len(d) == 4 {
				e.metric = binary.NativeEndian.Uint32(d)
			}
		case unix.RTA_MULTIPATH:
			e.hops = parseHops(d)
		default:
			only.attr(typ, d)
		}
	}
	e.dst = netip.PrefixFrom(dst, int(b[1])).Masked()
	if len(e.hops) == 0 && only.index != 0 {
		e.hops = []hop{only}
	}
	return e, e.dst.IsValid()
}

func (h *hop) attr(typ uint16, d []byte) {
	switch typ {
	case unix.RTA_OIF:
		if len(d) == 4 {
			h.index = int(int32(binary.NativeEndian.Uint32(d)))
		}
	case unix.RTA_GATEWAY:
		h.gateway, _ = netip.AddrFromSlice(d)
	case unix.RTA_VIA: // struct rtvia: a family of 16 bits, and an address of that
		if len(d) > 2 {
			h.gateway, _ = netip.AddrFromSlice(d[2:])
		}
	}
}

// parseHops reads a row of struct rtnexthop, each with attributes of its own.
func parseHops(b []byte) []hop {
	var out []hop
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		h := hop{index: int(int32(binary.NativeEndian.Uint32(b[4:])))}
		for typ, d := range attrs(b[unix.SizeofRtNexthop:n]) {
			h.attr(typ, d)
		}
		out = append(out, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}

// wayOf translates how the kernel refused a route (fib_props in net/ipv4/fib_semantics.c,
// ip6_rt_type_to_error in net/ipv6/route.c).
func wayOf(errno unix.Errno) host.Way {
	switch errno {
	case unix.EHOSTUNREACH:
		return host.Unreachable
	case unix.EACCES:
		return host.Prohibited
	case unix.EINVAL:
		return host.Blackholed
	}
	return host.Unroutable
}

// way translates the type of a route.
func (e *entry) way() host.Way {
	switch e.typ {
	case unix.RTN_LOCAL:
		return host.Local
	case unix.RTN_UNREACHABLE:
		return host.Unreachable
	case unix.RTN_PROHIBIT:
		return host.Prohibited
	case unix.RTN_BLACKHOLE:
		return host.Blackholed
	case unix.RTN_THROW:
		return host.Unroutable
	}
	return host.Forwarded
}

// familyOf returns the family of a prefix.
func familyOf(p netip.Prefix) model.Family { return model.FamilyOf(p.Addr()) }

// own returns the address that a box which holds these has on the segment of the first
// hop of a route.
func own(held []host.HeldPrefix, dst netip.Prefix, h host.Hop) netip.Prefix {
	neighbour := h.Gateway
	if !neighbour.IsValid() {
		neighbour = dst.Addr()
	}
	i := slices.IndexFunc(held, func(p host.HeldPrefix) bool {
		return p.Dev == h.Dev && !p.Prefix.IsSingleIP() && p.Prefix.Contains(neighbour)
	})
	if i < 0 || neighbour.IsLinkLocalUnicast() {
		return netip.Prefix{}
	}
	return held[i].Prefix
}
