package tap

import (
	"encoding/binary"
	"net/netip"
)

// Protocols with figures of their own (IANA protocol numbers).
const (
	TCP = 6
	UDP = 17
)

const sctp = 132

// Flags of the TCP header (RFC 9293 section 3.1).
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

// end is one end of a flow. IPv4 addresses are mapped into IPv6 (RFC 4291 section 2.5.5.2).
type end struct {
	ip   [16]byte
	port uint16
}

func endOf(a netip.AddrPort) end { return end{a.Addr().As16(), a.Port()} }

func (e end) addrPort(v6 bool) netip.AddrPort {
	a := netip.AddrFrom16(e.ip)
	if !v6 {
		a = a.Unmap()
	}
	return netip.AddrPortFrom(a, e.port)
}

func (e *end) set4(b []byte) {
	e.ip = [16]byte{10: 0xff, 11: 0xff}
	copy(e.ip[12:], b[:4])
}

// Packet is what matters of one packet.
type Packet struct {
	src, dst end
	v6       bool
	proto    uint8 // IANA protocol number, behind IPv6 extension headers
	ttl      uint8 // or hop limit
	length   int   // of the IP packet, in bytes; of what was on the wire where that can't be read
	addrs    bool  // the addresses were there

	id       uint32 // of IPv4, or of an IPv6 fragment
	hasID    bool   // the sender numbers its packets; 0 is taken for none (RFC 6864)
	fragment bool   // a piece of a packet
	later    bool   // a piece that is not the first: no ports

	ports bool // the protocol has ports, and they were there
	whole bool // the header of TCP or UDP was there

	// TCP alone.
	flags    uint8
	seq, ack uint32
	payload  int // bytes of data

	print uint64 // of all that two copies of one packet have in common
}

// Dst returns the address the packet goes to; the zero Addr where that was not there.
func (p *Packet) Dst() netip.Addr {
	if !p.addrs {
		return netip.Addr{}
	}
	return p.dst.addrPort(p.v6).Addr()
}

// Header lengths in bytes (RFC 791, 8200, 768, 9293).
const (
	ip4Len  = 20
	ip6Len  = 40
	udpLen  = 8
	tcpLen  = 20
	maxExts = 8 // IPv6 extension headers that are followed
)

// Decode reads an IP packet from its network header on. data may be less than the packet
// had on the wire, wire bytes. It reports false where the headers can't be read to their
// end, because they are wrong or cut off; p has then what was there.
func (p *Packet) Decode(data []byte, wire int) bool {
	*p = Packet{length: wire}
	if len(data) == 0 {
		return false
	}
	switch data[0] >> 4 {
	case 4:
		return p.decode4(data, wire)
	case 6:
		return p.decode6(data, wire)
	}
	return false
}

func (p *Packet) decode4(b []byte, wire int) bool {
	if len(b) < ip4Len {
		return false
	}
	head, total := 4*int(b[0]&15), int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 { // what the kernel gathered and is longer than the field can say
		total = wire
	}
	if head < ip4Len || total < head || total > wire {
		return false
	}
	p.src.set4(b[12:])
	p.dst.set4(b[16:])
	p.length, p.addrs, p.ttl, p.proto = total, true, b[8], b[9]
	frag := binary.BigEndian.Uint16(b[6:])
	p.id = uint32(binary.BigEndian.Uint16(b[4:]))
	p.fragment, p.later = frag&0x3fff != 0, frag&0x1fff != 0
	p.hasID = p.id != 0
	p.print = mix(mix(mix(uint64(p.proto)<<32|uint64(p.id)<<16|uint64(frag), binary.BigEndian.Uint64(b[12:])), uint64(total)), 4)
	if head > len(b) {
		return false
	}
	return p.transport(b[head:min(total, len(b))], total-head)
}

// IPv6 extension headers (IANA protocol numbers).
const (
	extHop      = 0
	extRouting  = 43
	extFragment = 44
	extAH       = 51
	extOptions  = 60
	extMobility = 135
)

func (p *Packet) decode6(b []byte, wire int) bool {
	if len(b) < ip6Len {
		return false
	}
	total := ip6Len + int(binary.BigEndian.Uint16(b[4:]))
	if total == ip6Len && b[6] == extHop { // a jumbogram (RFC 2675), also one that the kernel gathered
		total = wire
	}
	if total > wire {
		return false
	}
	p.v6 = true
	copy(p.src.ip[:], b[8:])
	copy(p.dst.ip[:], b[24:])
	p.length, p.addrs, p.proto, p.ttl = total, true, b[6], b[7]
	p.print = mix(mix(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])),
		mix(binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:]))+uint64(total))
	rest, left := b[ip6Len:min(total, len(b))], total-ip6Len
	for range maxExts {
		n := p.extension(rest)
		if n == 0 {
			return p.transport(rest, left)
		}
		if n < 0 || n > len(rest) {
			return false
		}
		rest, left = rest[n:], left-n
		if p.later {
			return p.transport(rest, left)
		}
	}
	return false
}

// extension reads the extension header at the head of b and returns its length: 0 if there
// is none, negative if it is cut off.
func (p *Packet) extension(b []byte) int {
	switch p.proto {
	case extHop, extRouting, extFragment, extAH, extOptions, extMobility:
	default:
		return 0
	}
	if len(b) < 8 {
		return -1
	}
	kind := p.proto
	p.proto = b[0]
	switch kind {
	case extAH:
		return 4 * (int(b[1]) + 2)
	case extFragment:
		frag := binary.BigEndian.Uint16(b[2:])
		p.id, p.hasID = binary.BigEndian.Uint32(b[4:]), true
		p.later = frag&^7 != 0
		p.fragment = p.later || frag&1 != 0
		p.print = mix(p.print, uint64(p.id)<<16|uint64(frag))
		return 8
	}
	return 8 * (int(b[1]) + 1)
}

// transport reads the header behind IP, of a packet with size bytes behind IP.
func (p *Packet) transport(b []byte, size int) bool {
	head := tcpLen
	if p.proto == UDP {
		head = udpLen
	}
	if p.proto == TCP && len(b) >= tcpLen { // its options tell packets apart, too
		head = max(tcpLen, 4*int(b[12]>>4))
	}
	p.print = mixBytes(mix(p.print, uint64(p.proto)), b[:min(head, len(b))])
	if p.later || p.proto != TCP && p.proto != UDP && p.proto != sctp {
		return true
	}
	if len(b) < 4 {
		return false
	}
	p.ports = true
	p.src.port, p.dst.port = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	switch p.proto {
	case TCP:
		return p.tcp(b, size)
	case UDP:
		p.whole = len(b) >= udpLen
		return p.whole
	}
	return true
}

func (p *Packet) tcp(b []byte, size int) bool {
	if len(b) < tcpLen {
		return false
	}
	head := 4 * int(b[12]>>4)
	if head < tcpLen || head > size {
		return false
	}
	p.seq, p.ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	p.flags, p.payload = b[13], size-head
	p.whole = true
	return true
}

// space returns how many sequence numbers a TCP segment takes.
func (p *Packet) space() uint32 {
	n := uint32(p.payload)
	if p.flags&flagSYN != 0 {
		n++
	}
	if p.flags&flagFIN != 0 {
		n++
	}
	return n
}

// mix puts v into a hash (the finalizer of MurmurHash3).
func mix(h, v uint64) uint64 {
	h ^= v * 0x9e3779b97f4a7c15
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func mixBytes(h uint64, b []byte) uint64 {
	for ; len(b) >= 8; b = b[8:] {
		h = mix(h, binary.LittleEndian.Uint64(b))
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		h = mix(h, binary.LittleEndian.Uint64(rest[:])+uint64(len(b)))
	}
	return h
}
