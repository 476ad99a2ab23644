package pickup

import (
	"encoding/binary"
	"errors"

	"weir/internal/steer/match"
)

// Offsets and flags of the TCP header (RFC 9293 section 3.1).
const (
	tcpLen   = 20
	ackAt    = 8
	offsetAt = 12
	flagsAt  = 13
	sumAt    = 16

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagPSH = 0x08
	flagACK = 0x10
	flagURG = 0x20

	protoTCP = 6
	ipv6Len  = 40
)

// Why a packet is not sent on.
var (
	errNoEnd   = errors.New("no FIN or RST of a TCP connection")
	errExpired = errors.New("its time to live is over")
	errCorrupt = errors.New("its checksum is wrong")
)

// packets returns what takes the place of a packet: the segment that begins the connection, and the
// packet itself; nil, where data is not all of it. Both have one hop less to live. Nothing of data
// is kept.
func packets(data []byte) (first, then []byte, err error) {
	var p match.Packet
	if !p.Parse(data) || p.Proto != protoTCP || p.Transport == 0 || len(p.Data) < p.Transport+tcpLen {
		return nil, nil, errNoEnd
	}
	tcp := p.Data[p.Transport:]
	head := int(tcp[offsetAt]>>4) * 4
	switch flags := tcp[flagsAt]; {
	case head < tcpLen || head > len(tcp), flags&flagSYN != 0,
		flags&flagRST == 0 && flags&(flagFIN|flagACK) != flagFIN|flagACK:
		return nil, nil, errNoEnd
	}
	hops := 8
	if p.V6 {
		hops = 7
	}
	if p.Data[hops] <= 1 {
		return nil, nil, errExpired
	}
	if whole(&p) {
		then = append([]byte{}, p.Data...)
		then[hops]--
		if !finish(&p, then) {
			return nil, nil, errCorrupt
		}
	}
	first = append([]byte{}, p.Data[:p.Transport+head]...)
	first[hops]--
	tcp = first[p.Transport:]
	if tcp[flagsAt]&flagACK == 0 {
		binary.BigEndian.PutUint32(tcp[ackAt:], 0)
	}
	tcp[flagsAt] = tcp[flagsAt]&^(flagFIN|flagRST|flagPSH|flagURG) | flagACK
	if p.V6 {
		binary.BigEndian.PutUint16(first[4:], uint16(len(first)-ipv6Len))
	} else {
		binary.BigEndian.PutUint16(first[2:], uint16(len(first)))
	}
	binary.BigEndian.PutUint16(tcp[sumAt:], 0)
	binary.BigEndian.PutUint16(tcp[sumAt:], ^sum(&p, tcp))
	return first, then, nil
}

// whole reports whether the packet's data is all that its header says.
func whole(p *match.Packet) bool {
	n := int(binary.BigEndian.Uint16(p.Data[2:]))
	if p.V6 {
		n = ipv6Len + int(binary.BigEndian.Uint16(p.Data[4:]))
	}
	return n == len(p.Data)
}

// finish writes the packet's checksum and reports whether the one that is there is right, or one
// that a card was to finish: the sum of the pseudo-header alone (CHECKSUM_PARTIAL of the kernel's
// skbuff.h).
func finish(p *match.Packet, b []byte) bool {
	tcp := b[p.Transport:]
	has := binary.BigEndian.Uint16(tcp[sumAt:])
	ok := sum(p, tcp) == 0xffff
	binary.BigEndian.PutUint16(tcp[sumAt:], 0)
	right := ^sum(p, tcp)
	binary.BigEndian.PutUint16(tcp[sumAt:], right)
	return ok || has == fold(pseudo(p, len(tcp)))
}

// sum is the Internet checksum (RFC 1071), not complemented, of the segment with its pseudo-header
// (RFC 9293 section 3.1, RFC 8200 section 8.1).
func sum(p *match.Packet, tcp []byte) uint16 { return fold(add(pseudo(p, len(tcp)), tcp)) }

func pseudo(p *match.Packet, length int) uint32 {
	return add(add(uint32(protoTCP+length), p.Src.AsSlice()), p.Dst.AsSlice())
}

func add(s uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
