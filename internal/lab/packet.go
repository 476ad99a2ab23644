package lab

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Header is what matters of a packet's IP header, and the ports where the transport
// has them (TCP, UDP, SCTP); else they are 0.
type Header struct {
	Src, Dst netip.AddrPort
	Proto    uint8 // IANA protocol number
	TTL      uint8 // or hop limit
	TOS      uint8 // or traffic class
	Payload  []byte
}

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	udpHeaderLen  = 8
	tcpHeaderLen  = 20
	defaultTTL    = 64
)

var errNotIP = errors.New("lab: not a whole IPv4 or IPv6 packet")

// ParseIP reads the header of an IPv4 or IPv6 packet (RFC 791, RFC 8200). IPv6
// extension headers are not followed: Proto is then that of the first one.
func ParseIP(pkt []byte) (h Header, err error) {
	var src, dst netip.Addr
	switch {
	case len(pkt) >= ipv4HeaderLen && pkt[0]>>4 == 4:
		start, end := int(pkt[0]&15)*4, int(binary.BigEndian.Uint16(pkt[2:]))
		if start < ipv4HeaderLen || end < start || end > len(pkt) {
			return h, errNotIP
		}
		src, dst = netip.AddrFrom4([4]byte(pkt[12:])), netip.AddrFrom4([4]byte(pkt[16:]))
		h = Header{Proto: pkt[9], TTL: pkt[8], TOS: pkt[1], Payload: pkt[start:end]}
		if binary.BigEndian.Uint16(pkt[6:])&0x1fff != 0 { // a later fragment has no ports
			h.Src, h.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
			return h, nil
		}
	case len(pkt) >= ipv6HeaderLen && pkt[0]>>4 == 6:
		end := ipv6HeaderLen + int(binary.BigEndian.Uint16(pkt[4:]))
		if end > len(pkt) {
			return h, errNotIP
		}
		src, dst = netip.AddrFrom16([16]byte(pkt[8:])), netip.AddrFrom16([16]byte(pkt[24:]))
		h = Header{Proto: pkt[6], TTL: pkt[7], TOS: pkt[0]<<4 | pkt[1]>>4, Payload: pkt[ipv6HeaderLen:end]}
	default:
		return h, errNotIP
	}
	var sport, dport uint16
	if hasPorts(h.Proto) && len(h.Payload) >= 4 {
		sport, dport = binary.BigEndian.Uint16(h.Payload), binary.BigEndian.Uint16(h.Payload[2:])
	}
	h.Src, h.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return h, nil
}

func hasPorts(proto uint8) bool {
	return proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP || proto == unix.IPPROTO_SCTP
}

// IPPacket puts an IP header before payload. The addresses are of one family.
func IPPacket(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	if src.Is4() {
		p := make([]byte, ipv4HeaderLen, ipv4HeaderLen+len(payload))
		p[0], p[8], p[9] = 4<<4|ipv4HeaderLen/4, defaultTTL, proto
		binary.BigEndian.PutUint16(p[2:], uint16(ipv4HeaderLen+len(payload)))
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(p[10:], ^fold(sum16(p)))
		return append(p, payload...)
	}
	p := make([]byte, ipv6HeaderLen, ipv6HeaderLen+len(payload))
	p[0], p[6], p[7] = 6<<4, proto, defaultTTL
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return append(p, payload...)
}

// UDPPacket is a whole IP packet with one UDP datagram, checksums right.
func UDPPacket(src, dst netip.AddrPort, data []byte) []byte {
	u := make([]byte, udpHeaderLen, udpHeaderLen+len(data))
	putPorts(u, src, dst)
	binary.BigEndian.PutUint16(u[4:], uint16(udpHeaderLen+len(data)))
	u = append(u, data...)
	sum := transportSum(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, u)
	if sum == 0 { // RFC 768: 0 would mean "none"
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], sum)
	return IPPacket(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, u)
}

// TCP flags of TCPPacket (RFC 9293).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// TCPPacket is a whole IP packet with one TCP segment without data or options,
// checksums right.
func TCPPacket(src, dst netip.AddrPort, flags uint8, seq, ack uint32) []byte {
	t := make([]byte, tcpHeaderLen)
	putPorts(t, src, dst)
	binary.BigEndian.PutUint32(t[4:], seq)
	binary.BigEndian.PutUint32(t[8:], ack)
	t[12], t[13] = tcpHeaderLen/4<<4, flags
	binary.BigEndian.PutUint16(t[14:], 0xffff) // window
	binary.BigEndian.PutUint16(t[16:], transportSum(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, t))
	return IPPacket(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, t)
}

func putPorts(b []byte, src, dst netip.AddrPort) {
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
}

// transportSum is the Internet checksum (RFC 1071) of a transport header and data
// whose checksum field is zero, with the pseudo-header of either family.
func transportSum(src, dst netip.Addr, proto uint8, b []byte) uint16 {
	return ^fold(sum16(src.AsSlice()) + sum16(dst.AsSlice()) + uint64(proto) + uint64(len(b)) + sum16(b))
}

func sum16(b []byte) (sum uint64) {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
