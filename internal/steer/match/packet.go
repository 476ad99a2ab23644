package match

import (
	"encoding/binary"
	"net/netip"
)

// IANA protocol numbers.
const (
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoSCTP  = 132

	protoDCCP    = 33
	protoUDPLite = 136
)

// The headers of IPv6 that may stand before the transport's (RFC 8200 section 4); those that
// the kernel, too, steps over when it looks for one (ipv6_ext_hdr in
// net/ipv6/exthdrs_core.c).
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extAuth        = 51
	extNone        = 59
	extDestination = 60
)

const (
	ipv4Min = 20
	ipv6Len = 40

	fragmentOffset = 0x1fff // of the IPv4 field, in units of 8 bytes (RFC 791)
)

// Packet is what is known of an IP packet.
type Packet struct {
	Data             []byte // from the IP header on, no further than the packet's end
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // 0 without HasPorts
	Proto            uint8  // IANA number of the transport protocol, also of a later fragment
	V6               bool
	HasPorts         bool // of TCP, UDP, SCTP, DCCP and UDP-Lite, if the packet is there so far
	Later            bool // a fragment that is not the first
	Transport        int  // where the transport header begins in Data; 0: it is not there
}

// Parse reads an IPv4 or IPv6 packet, or the first bytes of one, and reports whether it has a
// whole IP header. What is cut off behind it is not an error: the packet then has no transport
// header, or no ports. Packet keeps a reference to data.
//
// Where the length in the header is 0, as of IPv6 jumbograms and of segments that the kernel has
// gathered to more than 64 KB (BIG TCP), the packet ends where data does.
func (p *Packet) Parse(data []byte) bool {
	*p = Packet{}
	if len(data) == 0 {
		return false
	}
	switch data[0] >> 4 {
	case 4:
		return p.ipv4(data)
	case 6:
		return p.ipv6(data)
	}
	return false
}

func (p *Packet) ipv4(data []byte) bool {
	if len(data) < ipv4Min {
		return false
	}
	head := int(data[0]&15) * 4
	total := int(binary.BigEndian.Uint16(data[2:]))
	if head < ipv4Min || total != 0 && total < head {
		return false
	}
	if total != 0 && total < len(data) {
		data = data[:total]
	}
	p.Data, p.Proto = data, data[9]
	p.Src = netip.AddrFrom4([4]byte(data[12:16]))
	p.Dst = netip.AddrFrom4([4]byte(data[16:20]))
	p.Later = binary.BigEndian.Uint16(data[6:])&fragmentOffset != 0
	p.transport(head)
	return true
}

func (p *Packet) ipv6(data []byte) bool {
	if len(data) < ipv6Len {
		return false
	}
	if n := int(binary.BigEndian.Uint16(data[4:])); n != 0 && ipv6Len+n < len(data) {
		data = data[:ipv6Len+n]
	}
	p.Data, p.Proto, p.V6 = data, data[6], true
	p.Src = netip.AddrFrom16([16]byte(data[8:24]))
	p.Dst = netip.AddrFrom16([16]byte(data[24:40]))
	// Every header has at least 8 bytes, so this ends with the data.
	for at := ipv6Len; ; {
		switch p.Proto {
		case extHopByHop, extRouting, extFragment, extAuth, extDestination:
		case extNone:
			return true
		default:
			p.transport(at)
			return true
		}
		if at+8 > len(data) {
			return true
		}
		n := 8 * (int(data[at+1]) + 1)
		switch p.Proto {
		case extFragment:
			n = 8 // RFC 8200 section 4.5
			p.Later = p.Later || binary.BigEndian.Uint16(data[at+2:])&^7 != 0
		case extAuth:
			n = 4 * (int(data[at+1]) + 2) // RFC 4302 section 2.2
			n = max(n, 8)
		}
		p.Proto = data[at]
		if p.Later {
			return true // what follows is the middle of something
		}
		at += n
	}
}

// transport notes where the transport header is, and its ports.
func (p *Packet) transport(at int) {
	if p.Later || at >= len(p.Data) {
		return
	}
	p.Transport = at
	switch p.Proto {
	case protoTCP, protoUDP, protoSCTP, protoDCCP, protoUDPLite:
		if at+portBytes <= len(p.Data) {
			p.HasPorts = true
			p.SrcPort = binary.BigEndian.Uint16(p.Data[at:])
			p.DstPort = binary.BigEndian.Uint16(p.Data[at+2:])
		}
	}
}
