package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
	"weir/internal/model"
)

// listenHeld is listenOn for an address of the clients' segment.
func listenHeld(n int, entries ...string) string {
	var out []string
	for _, e := range entries {
		out = append(out, held(model.IPv4, n).String()+":"+e, "["+held(model.IPv6, n).String()+"]:"+e)
	}
	return quoted(out)
}

// holds reports whether a device of the gateway bears an address.
func (s *site) holds(dev string, a netip.Addr) bool {
	s.t.Helper()
	needTool(s.t, "ip")
	out, err := s.Gateway.Run("ip", "-o", "addr", "show", "dev", dev)
	check(s.t, err)
	return slices.ContainsFunc(strings.Fields(out), func(w string) bool {
		p, err := netip.ParsePrefix(w)
		return err == nil && p.Addr() == a
	})
}

// wantHeld checks that the gateway holds, or does not hold, vip n of both families.
func (s *site) wantHeld(t *testing.T, n int, want bool) {
	t.Helper()
	for _, f := range families {
		if got := s.holds(lab.OutsideDev, held(f, n)); got != want {
			t.Errorf("%s on %s: %t, want %t", held(f, n), lab.OutsideDev, got, want)
		}
	}
}

// announcement is a kind of packet that tells a segment of an address.
type announcement struct {
	what string
	is   func(p lab.Packet, mac []byte) bool
}

// announcements of vip n from the gateway: RFC 5227 (both forms of gratuitous ARP) and
// RFC 4861 section 7.2.6.
func announcements(n int) []announcement {
	arp := func(op byte) func(lab.Packet, []byte) bool {
		return func(p lab.Packet, mac []byte) bool {
			a, b := held(model.IPv4, n).As4(), p.Data
			return p.EtherType == unix.ETH_P_ARP && len(b) >= 28 && b[7] == op &&
				string(b[8:14]) == string(mac) && string(b[14:18]) == string(a[:]) && string(b[24:28]) == string(a[:])
		}
	}
	na := func(p lab.Packet, mac []byte) bool {
		h, err := lab.ParseIP(p.Data)
		a := held(model.IPv6, n)
		want := a.As16()
		return err == nil && h.Proto == unix.IPPROTO_ICMPV6 && len(h.Payload) >= 32 && h.Payload[0] == 136 &&
			h.TTL == 255 && h.Src.Addr() == a && h.Dst.Addr() == netip.MustParseAddr("ff02::1") &&
			h.Payload[4]&0x60 == 0x20 && // not solicited, override
			string(h.Payload[8:24]) == string(want[:]) && string(h.Payload[26:32]) == string(mac)
	}
	return []announcement{{"gratuitous ARP request", arp(1)}, {"gratuitous ARP reply", arp(2)},
		{"unsolicited neighbour advertisement", na}}
}

// awaitAnnounced waits until a client has seen every kind of announcement of vip n.
func (s *site) awaitAnnounced(t *testing.T, c *lab.Capture, n int) {
	t.Helper()
	mac, err := s.Gateway.MAC(lab.OutsideDev)
	check(t, err)
	missing := announcements(n)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for len(missing) > 0 {
		p, err := c.Next(ctx)
		if err != nil {
			t.Errorf("the client saw no %s of number %d", missing[0].what, n)
			return
		}
		missing = slices.DeleteFunc(missing, func(a announcement) bool { return !p.Out && a.is(p, mac) })
	}
}

// TestAssign has weir hold the services' addresses on the outside device, which the
// clients of the segment find by ARP and neighbour discovery. weir takes away what it
// added, and nothing else.
func TestAssign(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	client := s.Clients[0]
	const first, second, own = 201, 202, 203
	for _, f := range families { // the administrator's own, before weir came
		a := held(f, own)
		check(t, s.Gateway.AddAddr(lab.OutsideDev, netip.PrefixFrom(a, map[model.Family]int{4: 24, 6: 64}[f])))
	}
	list := backendList(on("", s.Backends...)...)
	entries := []string{"80/tcp", "7/tcp", "7/udp", "7/sctp"}
	one := service("first", listenHeld(first, entries...), list, "assign: outside")
	two := service("second", listenHeld(second, entries...), list, "assign: "+lab.OutsideDev)
	mine := service("mine", listenHeld(own, entries...), list, "assign: outside")
	config := func(list ...string) string {
		return "interfaces: {outside: [" + lab.OutsideDev + "]}\n" + services(list...)
	}
	reach := func(t *testing.T, n int) {
		for _, nw := range networks {
			for _, f := range families {
				got := tally(s.askMany(t, client, nw.name, netip.AddrPortFrom(held(f, n), nw.port), 2))
				if got["backend1"] != 1 || got["backend2"] != 1 {
					t.Errorf("%s to %s: %v", nw.name, held(f, n), got)
				}
			}
		}
	}
	capture, err := client.Capture(lab.HostDev)
	check(t, err)
	defer capture.Close()

	s.write(config(one, mine))
	s.start()
	s.awaitAnnounced(t, capture, first)
	s.wantHeld(t, first, true)
	reach(t, first)
	reach(t, own)

	s.write(config(one, two, mine))
	s.reload()
	s.awaitAnnounced(t, capture, second)
	s.wantHeld(t, second, true)
	reach(t, second)

	s.write(config(two, mine))
	s.reload()
	s.wantHeld(t, first, false)
	s.wantHeld(t, second, true)
	reach(t, second)

	t.Run("taken away by somebody else", func(t *testing.T) {
		for _, f := range families {
			a := held(f, second)
			check(t, s.Gateway.DelAddr(lab.OutsideDev, netip.PrefixFrom(a, a.BitLen())))
			took := await(t, a.String()+" is back", func() bool { return s.holds(lab.OutsideDev, a) })
			t.Logf("%s was back after %s", a, took)
		}
		s.awaitAnnounced(t, capture, second)
		reach(t, second)
	})

	s.write(config(two))
	s.reload()
	s.wantHeld(t, own, true)

	t.Run("held by a weir that is gone", func(t *testing.T) {
		s.run.Kill()
		s.wantHeld(t, second, true)
		reach(t, second)
		s.start()
		s.write(config())
		s.reload()
		s.wantHeld(t, second, false)
	})

	s.write(config(one, mine))
	s.reload()
	s.wantHeld(t, first, true)
	s.stop()
	s.wantHeld(t, first, true)
	reach(t, first)
	s.must("clear")
	s.wantHeld(t, first, false)
	s.wantHeld(t, own, true)
	for _, f := range families {
		if !s.holds(lab.OutsideDev, s.outside(f)) {
			t.Errorf("the gateway's own address %s is gone", s.outside(f))
		}
	}
}
