package e2e

import (
	"context"
	bits "encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// outPool is the keys of a pool over all that the hosts inside send, and more.
func outPool(more string) string {
	return fmt.Sprintf("name: out, from: %s, out: %s, addresses: %s%s",
		quoted([]string{lab.BackendNet4.String(), lab.BackendNet6.String()}), lab.OutsideDev, poolRange(1, 2), more)
}

// withMSS returns a SYN that announces a maximum segment size, 0 for none.
func withMSS(src, dst netip.AddrPort, flags uint8, mss uint16) []byte {
	seg := lab.TCPPacket(src, dst, flags, 1000, 0)
	head := 20
	if src.Addr().Is6() {
		head = 40
	}
	tcp := append([]byte{}, seg[head:]...)
	if mss != 0 {
		tcp = append(tcp, 2, 4, byte(mss>>8), byte(mss))
	}
	tcp[12] = byte(len(tcp)/4) << 4
	tcp[16], tcp[17] = 0, 0
	bits.BigEndian.PutUint16(tcp[16:], checksum(src.Addr(), dst.Addr(), 6, tcp))
	return lab.IPPacket(src.Addr(), dst.Addr(), 6, tcp)
}

// checksum is that of TCP and UDP (RFC 9293 section 3.1, RFC 8200 section 8.1).
func checksum(src, dst netip.Addr, proto byte, b []byte) uint16 {
	sum := uint32(proto) + uint32(len(b))
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), b} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(bits.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// mssOf returns what a captured TCP segment announces, 0 for nothing.
func mssOf(h lab.Header, pkt lab.Packet) uint16 {
	at := 20
	if h.Src.Addr().Is6() {
		at = 40
	}
	tcp := pkt.Data[at:]
	for opts := tcp[20 : int(tcp[12]>>4)*4]; len(opts) > 1; {
		switch {
		case opts[0] == 0:
			return 0
		case opts[0] == 1:
			opts = opts[1:]
			continue
		case opts[0] == 2:
			return bits.BigEndian.Uint16(opts[2:])
		case opts[1] < 2:
			return 0
		}
		opts = opts[min(int(opts[1]), len(opts)):]
	}
	return 0
}

// setMTU sets the MTU of a host's device.
func setMTU(t *testing.T, h *lab.Host, dev string, mtu int) {
	t.Helper()
	needTool(t, "ip")
	out, err := h.Run("ip", "link", "set", dev, "mtu", fmt.Sprint(mtu))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestClampMSS sends SYNs out by a device with a small MTU, and in by it: what arrives announces
// no more than the path bears, and no more than was announced.
func TestClampMSS(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	setMTU(t, s.Gateway, lab.OutsideDev, 1300)
	inside, outside := s.Backends[0], s.Clients[0]
	for _, x := range []struct {
		clamp bool
		said  uint16
		want  map[model.Family]uint16
	}{
		{true, 1460, map[model.Family]uint16{model.IPv4: 1260, model.IPv6: 1240}},
		{true, 1200, map[model.Family]uint16{model.IPv4: 1200, model.IPv6: 1200}}, // never raised
		{true, 0, map[model.Family]uint16{}},                                      // nor put in
		{false, 1460, map[model.Family]uint16{model.IPv4: 1460, model.IPv6: 1460}},
	} {
		s.apply(pools(outPool(fmt.Sprintf(", clamp_mss: %t, leaks: allow", x.clamp))))
		eachFamily(t, func(t *testing.T, f model.Family) {
			for _, way := range []struct {
				from, to *lab.Host
				dev      string
				flags    uint8
			}{{inside, outside, lab.HostDev, 2}, {outside, inside, lab.HostDev, 2}} {
				src := netip.AddrPortFrom(addrOf(way.from, f), s.port())
				dst := netip.AddrPortFrom(addrOf(way.to, f), 9)
				c, err := way.to.Capture(way.dev)
				check(t, err)
				check(t, way.from.SendIP(withMSS(src, dst, way.flags, x.said)))
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				pkt, h, err := c.Find(ctx, func(p lab.Packet, h lab.Header) bool {
					return h.Proto == 6 && h.Dst == dst && (h.Src == src || way.from == inside)
				})
				cancel()
				c.Close()
				if err != nil {
					t.Fatalf("clamp %t, %s to %s: %v", x.clamp, src, dst, err)
				}
				if got := mssOf(h, pkt); got != x.want[f] {
					t.Errorf("clamp %t, %s to %s: %d became %d, want %d", x.clamp, src, dst, x.said, got, x.want[f])
				}
			}
		})
	}
}

// flowsOf returns the gateway's connections to that address and port.
func (s *site) flowsOf(t *testing.T, proto model.Proto, to netip.AddrPort) []conntrack.Flow {
	t.Helper()
	var out []conntrack.Flow
	check(t, s.Gateway.Do(func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Dump(t.Context(), conntrack.Filter{Match: func(f *conntrack.Flow) bool {
			return f.Proto == proto && f.Orig.Dst == to
		}}, func(f conntrack.Flow) bool { out = append(out, f); return true })
	}))
	return out
}

// needTimeouts skips the test where the kernel has no ct timeouts.
func (s *site) needTimeouts(t *testing.T) {
	t.Helper()
	check(t, s.Gateway.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		has, err := c.HasTimeouts()
		if err == nil && !has {
			t.Skip("this kernel has no ct timeouts")
		}
		return err
	}))
}

// TestPoolTimeouts closes a TCP connection, and sends a datagram: the kernel remembers them
// for as long as the pool says, and others as ever. Reloads with other times, and without,
// hold for what is new.
func TestPoolTimeouts(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.needTimeouts(t)
	s.serveFar()
	s.write(pools(outPool(", timeouts: {tcp_time_wait: 10s, tcp_established: 1000s, udp_unreplied: 7s, udp_replied: 500s}")))
	s.start()
	remembered := func(t *testing.T, network string, f model.Family, to netip.AddrPort, state uint8) time.Duration {
		t.Helper()
		proto := map[string]model.Proto{"tcp": model.TCP, "udp": model.UDP}[network]
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			for _, fl := range s.flowsOf(t, proto, to) {
				if fl.TCPState == state {
					return fl.Timeout
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("no connection to %s in state %d: %v", to, state, s.flowsOf(t, proto, to))
			}
		}
	}
	between := func(t *testing.T, what string, got, lo, hi time.Duration) {
		t.Helper()
		if got < lo || got > hi {
			t.Errorf("%s is remembered for %s, want %s to %s", what, got, lo, hi)
		}
	}
	const established, timeWait = 3, 7
	check1 := func(t *testing.T, f model.Family, wait, open time.Duration) {
		t.Helper()
		s.forget()
		to := s.far(f, 0)
		from := netip.AddrPortFrom(addrOf(s.Backends[0], f), 0)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := s.Backends[0].Dial(ctx, "tcp", from.String(), to.String())
		check(t, err)
		_, err = question(t, c, patience)
		check(t, err)
		between(t, "an open connection", remembered(t, "tcp", f, to, established), open-60*time.Second, open)
		c.Close()
		between(t, "a closed connection", remembered(t, "tcp", f, to, timeWait), 0, wait)
		if wait > 20*time.Second {
			between(t, "a closed connection", remembered(t, "tcp", f, to, timeWait), wait-60*time.Second, wait)
		}
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		check1(t, f, 10*time.Second, 1000*time.Second)
		nobody := netip.AddrPortFrom(addrOf(s.Clients[0], f), 4444)
		check(t, s.Backends[0].SendIP(lab.UDPPacket(netip.AddrPortFrom(addrOf(s.Backends[0], f), s.port()), nobody, []byte("?"))))
		between(t, "a datagram without answer", remembered(t, "udp", f, nobody, 0), 0, 7*time.Second)
	})
	s.write(pools(outPool(", timeouts: {tcp_time_wait: 40s, tcp_established: 2000s}")))
	s.reload()
	eachFamily(t, func(t *testing.T, f model.Family) { check1(t, f, 40*time.Second, 2000*time.Second) })
	s.write(pools(outPool("")))
	s.reload()
	eachFamily(t, func(t *testing.T, f model.Family) { check1(t, f, 120*time.Second, 432000*time.Second) })
	s.stop()
}

// privateSource is an address of the hosts inside that means nothing outside.
func privateSource(f model.Family) netip.Addr {
	return map[model.Family]netip.Addr{model.IPv4: netip.MustParseAddr("10.1.1.1"), model.IPv6: netip.MustParseAddr("fd00:1::1")}[f]
}

// leaked returns what the gateway counted of private sources that did not leave.
func (s *site) leaked(t *testing.T) (n uint64) {
	t.Helper()
	cfg := &model.Config{Egress: []*model.Pool{{Name: "x", Out: []string{"x"}, Masquerade: true}}}
	set := plan.Build(cfg, nil).Ruleset.Tables[0].Set("leaked")
	check(t, s.Gateway.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Elements(t.Context(), engine.Tables[0], set, func(e nft.Elem) bool {
			if ruleset.DeviceOf(e.Key) == lab.InsideDev {
				n += e.Counter.Packets
			}
			return true
		})
	}))
	return n
}

// TestLeaks sends packets with private sources out: ones that conntrack calls invalid, and
// first ones that no pool translates. They do not appear outside, they are counted, and who
// sent an invalid one is told. With leaks: allow, and to excepted destinations, they appear.
func TestLeaks(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 1)
	inside := s.Backends[0]
	ula := netip.MustParsePrefix("fd00:1::1/64")
	check(t, inside.AddAddr(lab.HostDev, ula))
	check(t, s.Gateway.AddAddr(lab.InsideDev, netip.MustParsePrefix("fd00:1::fe/64")))
	// Answers to the hosts inside find their way; nothing else is to come back.
	appears := func(t *testing.T, f model.Family, to *lab.Host, invalid bool) bool {
		t.Helper()
		c, err := to.Capture(lab.HostDev)
		check(t, err)
		defer c.Close()
		src := netip.AddrPortFrom(privateSource(f), s.port())
		dst := netip.AddrPortFrom(addrOf(to, f), 4000)
		pkt := lab.UDPPacket(src, dst, []byte("?"))
		if invalid {
			pkt = lab.TCPPacket(src, dst, 1|2|4, 1, 1) // FIN, SYN and RST
		}
		check(t, inside.SendIP(pkt))
		ctx, cancel := context.WithTimeout(t.Context(), silence)
		defer cancel()
		_, _, err = c.Find(ctx, func(_ lab.Packet, h lab.Header) bool { return h.Src == src && h.Dst == dst })
		return err == nil
	}
	others := "name: out, from: " + quoted([]string{"10.9.0.0/16", "fd00:9::/64"}) + ", out: " + lab.OutsideDev + ", addresses: " + poolRange(1, 2)
	s.apply(pools(others + ", leaks: allow"))
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, invalid := range []bool{true, false} {
			if !appears(t, f, s.Clients[0], invalid) {
				t.Errorf("leaks: allow: a packet (invalid: %t) does not appear outside", invalid)
			}
		}
	})
	s.forget()
	s.apply(pools(others + ", except: " + both(s.Clients[1])))
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, invalid := range []bool{true, false} {
			before := s.leaked(t)
			answers, err := inside.Capture(lab.HostDev)
			check(t, err)
			if appears(t, f, s.Clients[0], invalid) {
				t.Errorf("a packet (invalid: %t) with a private source appears outside", invalid)
			}
			if n := s.leaked(t) - before; n != 1 {
				t.Errorf("%d are counted (invalid: %t)", n, invalid)
			}
			if invalid {
				icmp := map[model.Family]uint8{model.IPv4: 1, model.IPv6: 58}[f]
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				_, _, err := answers.Find(ctx, func(_ lab.Packet, h lab.Header) bool {
					return h.Proto == icmp && h.Dst.Addr() == privateSource(f)
				})
				cancel()
				if err != nil {
					t.Errorf("who sent the packet is not told: %v", err)
				}
			}
			answers.Close()
			if !appears(t, f, s.Clients[1], invalid) {
				t.Errorf("a packet (invalid: %t) to an excepted destination does not appear", invalid)
			}
		}
	})
	var st engine.Status
	s.mustJSON(&st, "status")
	if len(st.Leaks) != 1 || st.Leaks[0].In != lab.InsideDev || st.Leaks[0].Out != lab.OutsideDev || st.Leaks[0].Packets != 4 {
		t.Errorf("the status has %+v", st.Leaks)
	}
	// What the box itself sends from a private address is its own business.
	s.serve("udp", s.Clients, farPort)
	check(t, s.Gateway.AddAddr(lab.InsideDev, netip.MustParsePrefix("10.77.0.1/32")))
	check(t, s.Clients[0].Route(netip.MustParsePrefix("10.77.0.0/24"), s.Outside4, lab.HostDev))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.Gateway.AskFrom(ctx, "udp", "10.77.0.1:0", netip.AddrPortFrom(addrOf(s.Clients[0], model.IPv4), farPort).String()); err != nil {
		t.Errorf("the box itself from a private address: %v", err)
	}
	if out := s.must("explain", "--from", "10.1.1.1:4000", "--to", netip.AddrPortFrom(addrOf(s.Clients[0], model.IPv4), 4000).String()+"/udp",
		"--in", lab.InsideDev, "--out", lab.OutsideDev); !strings.Contains(out, "drop") {
		t.Errorf("explain does not say it:\n%s", out)
	}
}
