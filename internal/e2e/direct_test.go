package e2e

import (
	"bytes"
	be "encoding/binary"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"weir/internal/lab"
	"weir/internal/model"
)

// TestDirectReturn has real clients ask real servers in all protocols and both families:
// the answers come from the listen address, and past the balancer.
func TestDirectReturn(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	d.write(services(direct("web", 2, allDirect, backendList(on("", d.Backends...)...))))
	d.setUp("web", 2, "tcp", "udp", "sctp")
	d.must("apply")
	seen, err := d.Gateway.CaptureFrames(segmentDev)
	check(t, err)
	var requests, answers atomic.Int64
	go func() { // all the time, for there is room for some hundred packets
		for {
			p, hdr, err := seen.Find(t.Context(), func(lab.Packet, lab.Header) bool { return true })
			if err != nil {
				return
			}
			for _, f := range families {
				switch {
				case hdr.Src.Addr() == vip(f, 2):
					answers.Add(1)
				case hdr.Dst.Addr() == vip(f, 2) && p.Out:
					requests.Add(1)
				}
			}
		}
	}()
	asked := 0
	for _, network := range []string{"tcp", "udp", "sctp"} {
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(vip(f, 2), 7)
			for range 10 {
				port := d.port()
				from := netip.AddrPortFrom(addrOf(d.Clients[0], f), port)
				want := d.explained(network, from, target)
				a, err := try(t, d.Clients[0], network, port, target)
				if err != nil {
					t.Fatalf("%s: %v", network, err)
				}
				if a.id != want || a.seen != from {
					t.Errorf("%s from %s: answered by %s, which saw %s; explain says %s", network, from, a.id, a.seen, want)
				}
				asked++
			}
		})
	}
	st := d.status("web")
	if st.Forward != "direct" || st.Total.PacketsIn < uint64(asked) || st.Total.PacketsOut != 0 || st.Total.NewConnections != 0 {
		t.Errorf("after %d questions: %+v", asked, st.Total)
	}
	await(t, "the balancer's device has shown what was counted", func() bool { return uint64(requests.Load()) >= st.Total.PacketsIn })
	if n := answers.Load(); n != 0 {
		t.Errorf("%d answers came by the balancer", n)
	}
	if n := requests.Load(); uint64(n) != st.Total.PacketsIn {
		t.Errorf("the balancer sent %d packets, and counted %d", n, st.Total.PacketsIn)
	}
	if out, err := d.Gateway.Run("cat", "/proc/net/nf_conntrack"); err == nil && strings.Contains(out, vip(4, 2).String()) {
		t.Errorf("conntrack saw it:\n%s", out)
	}
}

// TestDirectFrames looks at frames: nothing is another but the link-layer addresses, the time
// to live and, in IPv4, the header's checksum over that.
func TestDirectFrames(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 1)
	d.write(services(direct("web", 2, allDirect, backendList(on("", d.Backends...)...))))
	d.setUp("web", 2)
	d.must("apply")
	b := d.Backends[0]
	mac := func(h *lab.Host, dev string) string {
		m, err := h.MAC(dev)
		check(t, err)
		return m.String()
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		got, err := b.CaptureFrames(lab.HostDev)
		check(t, err)
		defer got.Close()
		src, dst := netip.AddrPortFrom(addrOf(d.Clients[0], f), d.port()), netip.AddrPortFrom(vip(f, 2), 7)
		for name, pkt := range map[string][]byte{
			"udp":  lab.UDPPacket(src, dst, []byte("question")),
			"tcp":  lab.TCPPacket(src, dst, lab.SYN, 1000, 0),
			"ack":  lab.TCPPacket(src, dst, lab.ACK|lab.PSH, 5, 6), // of no connection that anybody knows
			"sctp": lab.SCTPInit(src, dst, 7),
		} {
			check(t, d.Clients[0].SendIP(pkt))
			p, hdr, err := got.Find(within(t, patience), func(_ lab.Packet, h lab.Header) bool { return h.Src == src })
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			sent, err := lab.ParseIP(pkt)
			check(t, err)
			if hdr.Dst != dst || hdr.Proto != sent.Proto || !bytes.Equal(hdr.Payload, sent.Payload) {
				t.Errorf("%s: what came is not what was sent:\n%x\n%x", name, pkt, p.Data)
			}
			if hdr.TTL != sent.TTL-2 { // the router, and the balancer
				t.Errorf("%s: ttl %d became %d", name, sent.TTL, hdr.TTL)
			}
			if f == model.IPv4 && headerSum(p.Data) != 0xffff {
				t.Errorf("%s: the header's checksum is wrong: %x", name, p.Data[:20])
			}
			if p.LinkDst.String() != mac(b, lab.HostDev) || p.LinkSrc.String() != mac(d.Gateway, segmentDev) {
				t.Errorf("%s: the frame goes from %s to %s", name, p.LinkSrc, p.LinkDst)
			}
		}
	})
}

// headerSum is the sum of an IPv4 header, 0xffff where its checksum is right (RFC 1071).
func headerSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// TestDirectLeavesAlone sends what is not for a listener: it goes on as if weir were not there.
func TestDirectLeavesAlone(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 1)
	d.write(services(direct("web", 2, []string{"7/udp"}, backendList(on("", d.Backends...)...), "assign: "+segmentDev)))
	d.setUp("web", 2)
	d.must("apply")
	got, err := d.Gateway.Capture(segmentDev)
	check(t, err)
	for _, f := range families {
		a := vip(f, 2)
		if _, err := d.Clients[0].Run("ping", "-c", "1", "-W", "5", a.String()); err != nil {
			t.Errorf("the balancer, which holds %s, does not answer: %v", a, err)
		}
		// Another port: the box's own UDP says that nobody listens.
		src := netip.AddrPortFrom(addrOf(d.Clients[0], f), d.port())
		check(t, d.Clients[0].SendIP(lab.UDPPacket(src, netip.AddrPortFrom(a, 8), nil)))
		if _, _, err := got.Find(within(t, patience), func(p lab.Packet, h lab.Header) bool {
			return p.Out && h.Dst.Addr() == src.Addr() && (h.Proto == 1 && h.Payload[0] == 3 || h.Proto == 58 && h.Payload[0] == 1)
		}); err != nil {
			t.Errorf("no answer for a port without listener: %v", err)
		}
	}
	// A later fragment has no ports: it is not for a listener.
	src := netip.AddrPortFrom(d.Clients[0].V4, 7)
	pkt := lab.UDPPacket(src, netip.AddrPortFrom(vip(4, 2), 7), make([]byte, 64))
	be.BigEndian.PutUint16(pkt[6:], 100)
	be.BigEndian.PutUint16(pkt[10:], 0)
	be.BigEndian.PutUint16(pkt[10:], ^headerSum(pkt))
	before := d.status("web").Total.PacketsIn
	check(t, d.Clients[0].SendIP(pkt))
	check(t, d.Clients[0].SendIP(lab.UDPPacket(netip.AddrPortFrom(src.Addr(), d.port()), netip.AddrPortFrom(vip(4, 2), 7), nil)))
	await(t, "the datagram behind the fragment is counted", func() bool { return d.status("web").Total.PacketsIn > before })
	if n := d.status("web").Total.PacketsIn - before; n != 1 {
		t.Errorf("%d packets were sent on, of a fragment and a datagram", n)
	}
}
