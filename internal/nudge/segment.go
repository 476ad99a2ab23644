package nudge

import "encoding/binary"

const (
	ipv4Len, ipv6Len, tcpLen = 20, 40, 20 // headers without options

	hops     = 64
	protoTCP = 6
	flagFIN  = 0x01
	flagACK  = 0x10
	dontFrag = 0x40 // in the byte of the IPv4 header that holds the flags
)

// segment returns an IP packet with a FIN of that sequence number (RFC 791, RFC 8200,
// RFC 9293 section 3.1). It acknowledges number 0 and has a window of 0: neither is looked
// at in a segment outside the receiver's window.
func segment(p Pair, seq uint32) []byte {
	src, dst := p.From.Addr().AsSlice(), p.To.Addr().AsSlice()
	var b []byte
	if p.To.Addr().Is4() {
		b = make([]byte, ipv4Len+tcpLen)
		b[0], b[6], b[8], b[9] = 4<<4|ipv4Len/4, dontFrag, hops, protoTCP
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], src)
		copy(b[16:], dst)
		binary.BigEndian.PutUint16(b[10:], checksum(b))
	} else {
		b = make([]byte, ipv6Len+tcpLen)
		b[0], b[6], b[7] = 6<<4, protoTCP, hops
		binary.BigEndian.PutUint16(b[4:], tcpLen)
		copy(b[8:], src)
		copy(b[24:], dst)
	}
	t := b[len(b)-tcpLen:]
	binary.BigEndian.PutUint16(t, p.From.Port())
	binary.BigEndian.PutUint16(t[2:], p.To.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	t[12], t[13] = tcpLen/4<<4, flagFIN|flagACK
	// Both families' pseudo-headers are these numbers, in words of other places.
	binary.BigEndian.PutUint16(t[16:], checksum(src, dst, []byte{0, protoTCP, 0, tcpLen}, t))
	return b
}

// checksum is the Internet checksum (RFC 1071) over parts of even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i := 0; i < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
