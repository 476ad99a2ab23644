package tap

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// The ends of the connections of most tests, in both families.
var (
	client  = [2]netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:40000"), netip.MustParseAddrPort("[2001:db8:f::9]:40000")}
	server  = [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.10:80"), netip.MustParseAddrPort("[2001:db8::10]:80")}
	family  = [2]string{"IPv4", "IPv6"}
	bothIPs = []int{0, 1}
)

// made is a packet made by hand.
type made struct {
	src, dst netip.AddrPort
	proto    uint8
	id       uint16 // of IPv4
	ttl      uint8  // 0: 64
	flags    uint8
	seq, ack uint32
	data     int
	options  []byte // of TCP, a multiple of 4
}

func (m made) bytes() []byte {
	var t []byte
	switch m.proto {
	case TCP:
		t = make([]byte, tcpLen)
		binary.BigEndian.PutUint32(t[4:], m.seq)
		binary.BigEndian.PutUint32(t[8:], m.ack)
		t[12], t[13] = uint8((tcpLen+len(m.options))/4)<<4, m.flags
		t = append(t, m.options...)
	case UDP:
		t = make([]byte, udpLen)
		binary.BigEndian.PutUint16(t[4:], uint16(udpLen+m.data))
	default:
		t = make([]byte, 8)
	}
	binary.BigEndian.PutUint16(t, m.src.Port())
	binary.BigEndian.PutUint16(t[2:], m.dst.Port())
	return ip(m.src.Addr(), m.dst.Addr(), m.proto, m.id, m.ttl, append(t, make([]byte, m.data)...))
}

// ip puts an IP header before what it carries.
func ip(src, dst netip.Addr, proto uint8, id uint16, ttl uint8, rest []byte) []byte {
	if ttl == 0 {
		ttl = 64
	}
	if src.Is4() {
		b := make([]byte, ip4Len)
		b[0], b[8], b[9] = 0x45, ttl, proto
		binary.BigEndian.PutUint16(b[2:], uint16(ip4Len+len(rest)))
		binary.BigEndian.PutUint16(b[4:], id)
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		return append(b, rest...)
	}
	b := make([]byte, ip6Len)
	b[0], b[6], b[7] = 0x60, proto, ttl
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, rest...)
}

// pieces cuts an IP packet without extension headers into fragments of size bytes each, a
// multiple of 8.
func pieces(b []byte, id uint32, size int) (out [][]byte) {
	head := ip4Len
	if b[0]>>4 == 6 {
		head = ip6Len
	}
	rest := b[head:]
	for off := 0; off < len(rest); off += size {
		part := rest[off:min(off+size, len(rest))]
		more := off+size < len(rest)
		h := append([]byte(nil), b[:head]...)
		if head == ip4Len {
			frag := uint16(off / 8)
			if more {
				frag |= 0x2000
			}
			binary.BigEndian.PutUint16(h[2:], uint16(head+len(part)))
			binary.BigEndian.PutUint16(h[4:], uint16(id))
			binary.BigEndian.PutUint16(h[6:], frag)
		} else {
			frag := uint16(off)
			if more {
				frag |= 1
			}
			ext := []byte{b[6], 0, 0, 0, 0, 0, 0, 0}
			binary.BigEndian.PutUint16(ext[2:], frag)
			binary.BigEndian.PutUint32(ext[4:], id)
			h[6] = extFragment
			binary.BigEndian.PutUint16(h[4:], uint16(len(ext)+len(part)))
			h = append(h, ext...)
		}
		out = append(out, append(h, part...))
	}
	return out
}

// in gives a packet to the analysis.
func (a *Analysis) in(at time.Duration, b []byte) {
	var p Packet
	a.Add(at, &p, p.Decode(b, len(b)))
}

// one returns the figures of the only service.
func one(t *testing.T, f Figures) ServiceFigures {
	t.Helper()
	if len(f.Services) != 1 {
		t.Fatalf("%d services: %+v", len(f.Services), f.Services)
	}
	return f.Services[0]
}

func is(t *testing.T, what string, got *uint64, want int) {
	t.Helper()
	switch {
	case got == nil && want != unknown:
		t.Errorf("%s: not known, want %d", what, want)
	case got != nil && *got != uint64(max(want, 0)):
		t.Errorf("%s: %d, want %d", what, *got, want)
	case got != nil && want == unknown:
		t.Errorf("%s: %d, want nothing", what, *got)
	}
}

const unknown = -1
