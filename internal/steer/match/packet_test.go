package match

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"weir/internal/lab"
)

var (
	src4, dst4 = netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.10")
	src6, dst6 = netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("2001:db8:1::10")
)

func udp(src, dst netip.Addr, payload string) []byte {
	return lab.UDPPacket(netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, 5060), []byte(payload))
}

// options makes the header of an IPv4 packet longer by n bytes.
func options(pkt []byte, n int) []byte {
	out := slices.Insert(slices.Clone(pkt), 20, make([]byte, n)...)
	out[0] += uint8(n / 4)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	return out
}

// extend puts headers between that of IPv6 and what follows. Each begins with a zero, which
// becomes the number of the next.
func extend(pkt []byte, headers ...string) []byte {
	out := slices.Clone(pkt[:40])
	next, last := 6, pkt[6]
	for i := 0; i < len(headers); i += 2 {
		out[next] = headers[i][0]
		next = len(out)
		out = append(out, headers[i+1]...)
	}
	out[next] = last
	out = append(out, pkt[40:]...)
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-40))
	return out
}

const (
	hop     = "\x00"
	routing = "\x2b"
	frag    = "\x2c"
	auth    = "\x33"
	dest    = "\x3c"

	empty8  = "\x00\x00\x00\x00\x00\x00\x00\x00"
	long16  = "\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	auth12  = "\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	first   = "\x00\x00\x00\x01\x00\x00\x00\x07" // offset 0, more to come
	second  = "\x00\x00\x05\xa8\x00\x00\x00\x07"
	nothing = "\x00\x00\x00\x00\x00\x00\x00\x00"
)

func TestPacket(t *testing.T) {
	cut := func(b []byte, n int) []byte { return b[:n] }
	fragment4 := func(b []byte, field uint16) []byte {
		b = slices.Clone(b)
		binary.BigEndian.PutUint16(b[6:], field)
		return b
	}
	length := func(b []byte, at int, n uint16) []byte {
		b = slices.Clone(b)
		binary.BigEndian.PutUint16(b[at:], n)
		return b
	}
	u4, u6 := udp(src4, dst4, "INVITE"), udp(src6, dst6, "INVITE")
	icmp := lab.IPPacket(src4, dst4, 1, []byte{8, 0, 0, 0, 0, 0, 0, 0})
	for _, c := range []struct {
		name      string
		pkt       []byte
		proto     uint8
		transport int
		ports     bool
		later     bool
		end       int
	}{
		{"UDP", u4, 17, 20, true, false, 34},
		{"UDP, IPv6", u6, 17, 40, true, false, 54},
		{"IPv4 options", options(u4, 40), 17, 60, true, false, 74},
		{"padded by Ethernet", append(slices.Clone(u4), make([]byte, 12)...), 17, 20, true, false, 34},
		{"padded by Ethernet, IPv6", append(slices.Clone(u6), 0, 0), 17, 40, true, false, 54},
		{"longer than 64 KB", length(u4, 2, 0), 17, 20, true, false, 34},
		{"longer than 64 KB, IPv6", length(u6, 4, 0), 17, 40, true, false, 54},
		{"only the beginning", length(u4, 2, 1400), 17, 20, true, false, 34},
		{"first fragment", fragment4(u4, 0x2000), 17, 20, true, false, 34},
		{"do not fragment", fragment4(u4, 0x4000), 17, 20, true, false, 34},
		{"second fragment", fragment4(u4, 0x20b9), 17, 0, false, true, 34},
		{"last fragment", fragment4(u4, 0x00b9), 17, 0, false, true, 34},
		{"cut behind the IP header", cut(u4, 20), 17, 0, false, false, 20},
		{"cut in the ports", cut(u4, 23), 17, 20, false, false, 23},
		{"cut behind the ports", cut(u4, 24), 17, 20, true, false, 24},
		{"cut behind the IPv6 header", cut(u6, 40), 17, 0, false, false, 40},
		{"ICMP", icmp, 1, 20, false, false, 28},
		{"hop by hop", extend(u6, hop, empty8), 17, 48, true, false, 62},
		{"many headers", extend(u6, hop, long16, dest, empty8, routing, empty8, auth, auth12, dest, empty8), 17, 92, true, false, 106},
		{"first fragment, IPv6", extend(u6, frag, first), 17, 48, true, false, 62},
		{"atomic fragment, IPv6", extend(u6, frag, nothing), 17, 48, true, false, 62},
		{"second fragment, IPv6", extend(u6, frag, second), 17, 0, false, true, 62},
		{"no next header", length(u6, 6, 59<<8|64), 59, 0, false, false, 54},
		{"cut in an extension header", cut(extend(u6, dest, long16), 47), 60, 0, false, false, 47},
		{"cut behind an extension header", cut(extend(u6, dest, long16), 48), 17, 0, false, false, 48},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Packet
			if !p.Parse(c.pkt) {
				t.Fatal("is no packet")
			}
			if p.Proto != c.proto || p.Transport != c.transport || p.HasPorts != c.ports || p.Later != c.later || len(p.Data) != c.end {
				t.Errorf("protocol %d, transport at %d, ports %t, later %t, %d bytes", p.Proto, p.Transport, p.HasPorts, p.Later, len(p.Data))
			}
			src, dst, v6 := src4, dst4, false
			if c.pkt[0]>>4 == 6 {
				src, dst, v6 = src6, dst6, true
			}
			if p.Src != src || p.Dst != dst || p.V6 != v6 {
				t.Errorf("%s to %s", p.Src, p.Dst)
			}
			if c.ports && (p.SrcPort != 40000 || p.DstPort != 5060) {
				t.Errorf("ports %d and %d", p.SrcPort, p.DstPort)
			}
		})
	}
}

func TestNoPacket(t *testing.T) {
	u4, u6 := udp(src4, dst4, "x"), udp(src6, dst6, "x")
	for name, pkt := range map[string][]byte{
		"nothing": nil, "neither": append([]byte{0x50}, u4[1:]...), "short": u4[:19], "short, IPv6": u6[:39],
		"header length 4":             append([]byte{0x41}, u4[1:]...),
		"total length below a header": append([]byte{0x45, 0, 0, 19}, u4[4:]...),
	} {
		var p Packet
		if p.Parse(pkt) {
			t.Errorf("%s: is a packet", name)
		}
	}
}

func TestMatch(t *testing.T) {
	u4, u6 := udp(src4, dst4, "INVITE sip:"), udp(src6, dst6, "INVITE sip:")
	syn := lab.TCPPacket(netip.AddrPortFrom(src6, 40000), netip.AddrPortFrom(dst6, 443), lab.SYN, 1, 0)
	ack := lab.TCPPacket(netip.AddrPortFrom(src4, 40000), netip.AddrPortFrom(dst4, 443), lab.ACK, 1, 1)
	later := slices.Clone(u4)
	later[7] = 1
	for _, c := range []struct {
		text string
		pkt  []byte
		want bool
	}{
		{"udp[8:4]&0xffffff00=0x494e5600", u4, true},
		{"udp[8:4]&0xffffff00=0x494e5600", u6, true},
		{"udp[8:4]=0x494e5649", options(u4, 24), true},
		{"udp[8:4]=0x494e5649", extend(u6, hop, empty8, dest, long16), true},
		{"udp[8:4]=0x494e5600", u4, false},
		{"udp[8:4]!=0x494e5600", u4, true},
		{"udp[8:4]!=0x494e5649", u4, false},
		{"udp[8:8]=0x494e564954452073", u4, true},
		{"udp[8:4]=0x494e5649", ack, false},
		{"udp[8:4]!=0x494e5649", ack, false}, // another protocol is neither
		{"udp[8:4]=0x494e5649", later, false},
		{"udp[8:4]!=0x494e5649", later, false},
		{"tcp[12:2]&0x01ff=0x0002", syn, true},
		{"tcp[12:2]&0x01ff=0x0002", ack, false},
		{"udp[18:1]=0x3a", u4, true},
		{"udp[19:1]!=0", u4, false}, // one byte too far
		{"udp[18:2]!=0", u4, false}, // and half of them
		{"udp[1400:1]!=0", u4, false},
		{"ip[8:1]=64", u4, true},
		{"ip[8:1]!=64", u6, false},
		{"ip6[7:1]=64", u6, true},
		{"ip6[7:1]=64", u4, false},
		{"ip[16:4]=0xc633640a and udp[2:2]=5060 and udp[8:1]!=0", later, false},
		{"ip[16:4]=0xc633640a and udp[2:2]=5060 and udp[8:1]!=0", u4, true},
		{"ip[16:4]=0xc633640a", later, true},
	} {
		cs, err := Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		var p Packet
		if !p.Parse(c.pkt) {
			t.Fatal("is no packet")
		}
		if got := cs.Match(&p); got != c.want {
			t.Errorf("%s: %t of % x", c.text, got, c.pkt)
		}
		// What is copied of a packet is enough.
		if n := cs.CopyLength(); n < len(c.pkt) {
			p.Parse(c.pkt[:n])
			if got := cs.Match(&p); got != c.want {
				t.Errorf("%s: %t of the first %d bytes", c.text, got, n)
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	cs, err := Parse("ip6[7:1]=64 and udp[8:8]=0x494e564954452073")
	if err != nil {
		t.Fatal(err)
	}
	pkt := extend(udp(src6, dst6, "INVITE sip:"), hop, empty8)
	var p Packet
	if n := testing.AllocsPerRun(1000, func() {
		if !p.Parse(pkt) || !cs.Match(&p) {
			t.Error("does not match")
		}
	}); n != 0 {
		t.Errorf("%g allocations for a packet", n)
	}
}

// FuzzPacket: whatever the bytes are, offsets stay inside of them, and what is known of the
// beginning of a packet is not contradicted by more of it.
func FuzzPacket(f *testing.F) {
	u4, u6 := udp(src4, dst4, "INVITE"), udp(src6, dst6, "INVITE")
	f.Add(u4, 20)
	f.Add(u6, 43)
	f.Add(options(u4, 40), 61)
	f.Add(extend(u6, hop, long16, dest, empty8, routing, empty8, auth, auth12, frag, first), 100)
	f.Add(extend(u6, frag, second), 50)
	all := make([]Conditions, 0, 2*len(headers))
	for h := range headers {
		for _, not := range []bool{false, true} {
			all = append(all, Conditions{{Header: Header(h), Offset: 3, Length: 8, Mask: 0xff, Value: 1, Not: not}})
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		var whole, part Packet
		okWhole := whole.Parse(data)
		n = min(max(n, 0), len(data))
		okPart := part.Parse(data[:n])
		if okPart && !okWhole {
			t.Fatalf("the first %d bytes are a packet, all are not", n)
		}
		if !okWhole {
			return
		}
		if whole.Transport >= len(whole.Data) || len(whole.Data) > len(data) || whole.HasPorts && whole.Transport+4 > len(whole.Data) {
			t.Fatalf("transport at %d of %d", whole.Transport, len(whole.Data))
		}
		if okPart && part.Transport != 0 && (part.Transport != whole.Transport || part.Proto != whole.Proto ||
			part.HasPorts && (part.SrcPort != whole.SrcPort || part.DstPort != whole.DstPort)) {
			t.Fatalf("the first %d bytes: %+v, all: %+v", n, part, whole)
		}
		for i := 0; i < len(all); i += 2 {
			if all[i].Match(&whole) && all[i+1].Match(&whole) {
				t.Fatalf("%s and its contrary", all[i])
			}
			if okPart && all[i].Match(&part) && !all[i].Match(&whole) {
				t.Fatalf("%s of the first %d bytes alone", all[i], n)
			}
		}
	})
}
