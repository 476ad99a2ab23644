package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Numbers of the kernel's headers that x/sys/unix does not have.
const (
	ifaProto       = 11 // IFA_PROTO, linux/if_addr.h
	devconfForward = 0  // DEVCONF_FORWARDING, linux/ipv6.h: index in an array of int32
)

// dumpTries is how often a dump is asked for that was not consistent.
const dumpTries = 5

// link is what is to be known of a device.
type link struct {
	name  string
	index int
	up    bool // set up, and it has a carrier
	// neighbours says that the device resolves addresses on Ethernet: there is somebody to
	// tell. Loopback, tunnels and devices with NOARP do not.
	neighbours bool
	mac        mac
	forwards6  bool // it is an IPv6 router, and its advertisements say so
}

// rtnl is a routing socket; it belongs to one network namespace.
type rtnl struct {
	handle *nl.SocketHandle
	// protoKept says that the kernel is sure to give IFA_PROTO back.
	protoKept bool
}

func openRTNL() (rtnl, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return rtnl{}, err
	}
	_ = s.SetExtAck(true) // for the kernel's words; an old kernel has none
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		s.Close()
		return rtnl{}, os.NewSyscallError("uname", err)
	}
	return rtnl{&nl.SocketHandle{Socket: s}, keepsProto(unix.ByteSliceToString(u.Release[:]))}, nil
}

// keepsProto reports whether a kernel of that release has IFA_PROTO: 5.18 and later. A
// distribution may have it in an older one; then it is read, but not insisted on.
func keepsProto(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > 5 || major == 5 && minor >= 18
}

func (r rtnl) execute(req *nl.NetlinkRequest, answer uint16) ([][]byte, error) {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: r.handle}
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// dump asks for a whole table; header is the fixed part of the question, all zero.
func (r rtnl) dump(question int, header nl.NetlinkRequestData, answer uint16) ([][]byte, error) {
	var msgs [][]byte
	var err error
	for range dumpTries {
		req := nl.NewNetlinkRequest(question, unix.NLM_F_DUMP)
		req.AddData(header)
		msgs, err = r.execute(req, answer)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return msgs, err
}

// links returns the devices of the namespace in the kernel's order.
func (r rtnl) links() ([]link, error) {
	msgs, err := r.dump(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("vip: list devices: %w", err)
	}
	var out []link
	for _, m := range msgs {
		l, err := parseLink(m)
		if err != nil {
			return nil, fmt.Errorf("vip: list devices: %w", err)
		}
		out = append(out, l)
	}
	return out, nil
}

func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, fmt.Errorf("a message of %d bytes", len(b))
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l := link{
		index: int(int32(binary.NativeEndian.Uint32(b[4:]))),
		up:    flags&unix.IFF_UP != 0 && flags&unix.IFF_RUNNING != 0,
		neighbours: binary.NativeEndian.Uint16(b[2:]) == unix.ARPHRD_ETHER &&
			flags&unix.IFF_NOARP == 0,
	}
	err := eachAttr(b[unix.SizeofIfInfomsg:], func(typ uint16, d []byte) error {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(d)
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], d)
		case unix.IFLA_AF_SPEC:
			return eachAttr(d, l.parseFamily)
		}
		return nil
	})
	return l, err
}

func (l *link) parseFamily(family uint16, d []byte) error {
	if family != unix.AF_INET6 {
		return nil
	}
	return eachAttr(d, func(typ uint16, conf []byte) error {
		if typ == unix.IFLA_INET6_CONF && len(conf) >= 4*(devconfForward+1) {
			l.forwards6 = binary.NativeEndian.Uint32(conf[4*devconfForward:]) != 0
		}
		return nil
	})
}

func eachAttr(b []byte, fn func(typ uint16, data []byte) error) error {
	attrs, err := nl.ParseRouteAttr(b)
	for _, a := range attrs {
		if err != nil {
			break
		}
		err = fn(a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), a.Value)
	}
	return err
}

// addresses returns what the devices hold, of both families.
func (r rtnl) addresses(links []link) ([]Have, error) {
	msgs, err := r.dump(unix.RTM_GETADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), unix.RTM_NEWADDR)
	if err != nil {
		return nil, fmt.Errorf("vip: list addresses: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.index] = l.name
	}
	var out []Have
	for _, m := range msgs {
		h, index, err := parseAddress(m, r.protoKept)
		if err != nil {
			return nil, fmt.Errorf("vip: list addresses: %w", err)
		}
		// A device that came after the links were read is the next look's business.
		if h.Dev = names[index]; h.Dev != "" && h.Prefix.IsValid() {
			out = append(out, h)
		}
	}
	return out, nil
}

func parseAddress(b []byte, protoKept bool) (h Have, index int, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return h, 0, fmt.Errorf("a message of %d bytes", len(b))
	}
	bits := int(b[1])
	index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	var local, peer netip.Addr
	var metric uint32
	var proto uint8 // the kernel leaves 0 out, as an old kernel does everything
	err = eachAttr(b[unix.SizeofIfAddrmsg:], func(typ uint16, d []byte) error {
		switch {
		case typ == unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(d)
		case typ == unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(d)
		case typ == unix.IFA_RT_PRIORITY && len(d) == 4:
			metric = binary.NativeEndian.Uint32(d)
		case typ == ifaProto && len(d) == 1:
			proto = d[0]
		}
		return nil
	})
	// IPv6 has no IFA_LOCAL unless the address is one end of a point-to-point link; then
	// IFA_ADDRESS is the other end, as it always may be for IPv4.
	if !local.IsValid() {
		local = peer
	}
	h.Prefix = netip.PrefixFrom(local, bits)
	// An operator's `replace` of an IPv6 address sets the protocol, to none, and keeps the
	// metric: where the kernel knows protocols, the metric is not enough.
	h.Ours = metric == Metric && (proto == Protocol || proto == 0 && !protoKept)
	return h, index, err
}

// add puts the address on the device, as a host address with weir's mark. It fails with
// EEXIST, and changes nothing, where the address is there already.
func (r rtnl) add(l link, addr netip.Addr) error {
	flags := uint32(unix.IFA_F_NOPREFIXROUTE)
	if addr.Is6() {
		// The address moves between boxes on purpose. Looking for a duplicate would cost a
		// second without service, and find the other box when it is slow to let go.
		flags |= unix.IFA_F_NODAD
	}
	req := addrRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, l, netip.PrefixFrom(addr, addr.BitLen()))
	req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
	req.AddData(nl.NewRtAttr(unix.IFA_RT_PRIORITY, nl.Uint32Attr(Metric)))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{Protocol}))
	_, err := r.execute(req, 0)
	return err
}

// remove takes the address away again; EADDRNOTAVAIL where it is not there.
func (r rtnl) remove(l link, p netip.Prefix) error {
	_, err := r.execute(addrRequest(unix.RTM_DELADDR, 0, l, p), 0)
	return err
}

func addrRequest(typ, flags int, l link, p netip.Prefix) *nl.NetlinkRequest {
	family := unix.AF_INET
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Prefixlen = uint8(p.Bits())
	msg.Index = uint32(l.index)
	req := nl.NewNetlinkRequest(typ, unix.NLM_F_ACK|flags)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	return req
}
