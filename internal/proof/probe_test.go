package proof

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"weir/internal/lab"
	"weir/internal/model"
)

// probe is a packet that opens a connection.
type probe struct {
	from     site
	proto    model.Proto // TCP, UDP, SCTP, ICMP (1) or ICMPv6 (58)
	src, dst netip.AddrPort
}

func (p probe) String() string {
	return fmt.Sprintf("%s %s > %s from the %s", p.proto, p.src, p.dst, p.from)
}

func (p probe) family() model.Family { return model.FamilyOf(p.dst.Addr()) }

// packet writes the probe with a number in it that translation leaves alone.
func (p probe) packet(id uint32) []byte {
	switch p.proto {
	case model.TCP:
		return lab.TCPPacket(p.src, p.dst, lab.SYN, id, 0)
	case model.UDP:
		return lab.UDPPacket(p.src, p.dst, binary.BigEndian.AppendUint32(nil, id))
	case model.SCTP:
		return lab.SCTPInit(p.src, p.dst, id)
	}
	return lab.IPPacket(p.src.Addr(), p.dst.Addr(), uint8(p.proto), p.echo(id))
}

// icmpType is the type of the message that packet writes, 0 for another protocol.
func (p probe) icmpType() uint8 {
	switch p.proto {
	case unix.IPPROTO_ICMP:
		return 8
	case unix.IPPROTO_ICMPV6:
		return 128
	}
	return 0
}

// echo is an ICMP echo request (RFC 792, RFC 4443) with the number as its data.
func (p probe) echo(id uint32) []byte {
	b := make([]byte, 12)
	b[0] = 8
	sum := uint32(0)
	if p.proto == unix.IPPROTO_ICMPV6 {
		b[0] = 128
		sum = uint32(p.proto) + uint32(len(b))
		for _, a := range []netip.Addr{p.src.Addr(), p.dst.Addr()} {
			sum += sum16(a.AsSlice())
		}
	}
	binary.BigEndian.PutUint16(b[4:], uint16(id)) // identifier: a connection each
	binary.BigEndian.PutUint32(b[8:], id)
	for sum += sum16(b); sum>>16 != 0; {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

func sum16(b []byte) (sum uint32) {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

// number reads what packet wrote.
func number(h lab.Header) (uint32, bool) {
	at := 0
	switch b := h.Payload; {
	case h.Proto == unix.IPPROTO_TCP && len(b) >= 20 && b[13] == lab.SYN:
		at = 4
	case h.Proto == unix.IPPROTO_UDP,
		h.Proto == unix.IPPROTO_ICMP && len(b) > 0 && b[0] == 8,
		h.Proto == unix.IPPROTO_ICMPV6 && len(b) > 0 && b[0] == 128:
		at = 8
	case h.Proto == unix.IPPROTO_SCTP && len(b) > 12 && b[12] == 1: // INIT
		at = 16
	default:
		return 0, false
	}
	if len(h.Payload) < at+4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(h.Payload[at:]), true
}

// drawer draws probes for one configuration, each with a source port of its own: the
// kernel would change a port where two connections look alike behind the gateway.
type drawer struct {
	*rapid.T
	cfg    *model.Config
	inside map[model.Family]netip.Addr
	used   map[uint16]bool
}

func (d *drawer) oneIn(n int, label string) bool { return rapid.IntRange(1, n).Draw(d.T, label) == n }

func (d *drawer) probe() probe {
	s := rapid.SampledFrom(d.cfg.Services).Draw(d.T, "service")
	l := rapid.SampledFrom(s.Listen).Draw(d.T, "listener")
	port := uint16(rapid.IntRange(int(l.Ports.Lo), int(l.Ports.Hi)).Draw(d.T, "port"))
	p := probe{proto: l.Proto, dst: netip.AddrPortFrom(l.Addr, port)}
	if d.oneIn(4, "beside") {
		d.beside(&p, l)
	}
	d.source(&p, s)
	return p
}

// beside moves a probe to just beside the listener: perhaps to another one.
func (d *drawer) beside(p *probe, l model.Listen) {
	switch rapid.IntRange(0, 3).Draw(d.T, "how") {
	case 0:
		p.dst = netip.AddrPortFrom(p.dst.Addr(), rapid.SampledFrom([]uint16{l.Ports.Lo - 1, l.Ports.Hi + 1}).Draw(d.T, "port beside"))
	case 1:
		p.dst = netip.AddrPortFrom(p.dst.Addr().Next(), p.dst.Port())
	case 2:
		p.proto = rapid.SampledFrom([]model.Proto{model.TCP, model.UDP, model.SCTP}).Draw(d.T, "other protocol")
	case 3:
		p.dst = netip.AddrPortFrom(p.dst.Addr(), 0)
		p.proto = unix.IPPROTO_ICMP
		if p.family() == model.IPv6 {
			p.proto = unix.IPPROTO_ICMPV6
		}
	}
}

// source gives a probe a sender: a client, the gateway itself, or a backend of the
// service that was aimed at.
func (d *drawer) source(p *probe, s *model.Service) {
	f := p.family()
	var addr netip.Addr
	backends := slices.DeleteFunc(slices.Clone(s.Backends), func(b model.Backend) bool { return b.Family() != f })
	switch kind := rapid.IntRange(0, 9).Draw(d.T, "sender"); {
	case kind == 8:
		p.from, addr = atGateway, d.inside[f]
	case kind == 9 && len(backends) > 0:
		p.from, addr = atSink, rapid.SampledFrom(backends).Draw(d.T, "backend").Addr
	default:
		// Few, so that sticky services see them again.
		n := byte(rapid.IntRange(1, 6).Draw(d.T, "client"))
		p.from, addr = atClient, nth(netip.MustParsePrefix(behindClient[(int(f)-4)/2]), n)
	}
	port := uint16(0)
	if p.proto != unix.IPPROTO_ICMP && p.proto != unix.IPPROTO_ICMPV6 {
		port = rapid.Uint16Min(1).Draw(d.T, "source port")
		for port == 0 || d.used[port] {
			port++
		}
		d.used[port] = true
	}
	p.src = netip.AddrPortFrom(addr, port)
}
