package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"weir/internal/lab"
	"weir/internal/model"
)

// tunnelDev is the device by which copies come out at the collector.
const tunnelDev = "vx0"

// farCollector returns a host in another network, behind the third backend, at the other end of a
// VXLAN of the gateway's by IPv4 or IPv6, and its address.
func (s *site) farCollector(outer model.Family) (*lab.Host, netip.Addr) {
	s.t.Helper()
	router := s.Backends[2]
	far, err := s.Net.Host("collector")
	check(s.t, err)
	near4, far4 := netip.MustParsePrefix("198.18.9.1/24"), netip.MustParsePrefix("198.18.9.9/24")
	near6, far6 := netip.MustParsePrefix("2001:db8:99::1/64"), netip.MustParsePrefix("2001:db8:99::9/64")
	check(s.t, s.Net.Link(lab.End{Host: router, Name: "far0", Addrs: []netip.Prefix{near4, near6}},
		lab.End{Host: far, Name: lab.HostDev, Addrs: []netip.Prefix{far4, far6}}))
	check(s.t, router.Sysctl("net.ipv4.ip_forward", "1"))
	check(s.t, router.Sysctl("net.ipv6.conf.all.forwarding", "1"))
	check(s.t, far.Route(netip.MustParsePrefix("0.0.0.0/0"), near4.Addr(), lab.HostDev))
	check(s.t, far.Route(netip.MustParsePrefix("::/0"), near6.Addr(), lab.HostDev))
	check(s.t, s.Gateway.Route(near4.Masked(), router.V4, lab.InsideDev))
	check(s.t, s.Gateway.Route(near6.Masked(), router.V6, lab.InsideDev))
	end, here := far4.Addr(), s.Inside4
	if outer == model.IPv6 {
		end, here = far6.Addr(), s.Inside6
	}
	if out, err := far.Run("ip", "link", "add", tunnelDev, "type", "vxlan", "id", "42", "dstport", "4789", "local", end.String(), "remote", here.String()); err != nil {
		s.t.Skip("the kernel has no VXLAN: ", out, err)
	}
	_, err = far.Run("ip", "link", "set", tunnelDev, "up")
	check(s.t, err)
	return far, end
}

// tunneled returns a configuration of a service on two backends, and a mirror of it to that end.
func (s *site) tunneled(end netip.Addr) string {
	return services(service("echo", listenOn(1, "7/tcp", "7/udp"), backendList(on("", s.Backends[:2]...)...))) +
		fmt.Sprintf("mirrors: [{name: look, to: %q, vxlan: 42, match: {port: 7}}]\n", end)
}

// TestMirrorTunnel: copies of both families go to a collector in another network, each once, by a
// device that comes with the mirror and goes with it; nothing comes in by it.
func TestMirrorTunnel(t *testing.T) {
	t.Parallel()
	for _, outer := range families {
		s := newSite(t, 1, 3)
		far, end := s.farCollector(outer)
		servers := s.serve("tcp", s.Backends[:2], 7)
		servers = append(servers, s.serve("udp", s.Backends[:2], 7)...)
		got, real := copies(t, far, tunnelDev, true), copies(t, s.Clients[0], lab.HostDev, false)
		s.write(s.tunneled(end))
		s.start()
		complete := func(t *testing.T, f model.Family) {
			t.Helper()
			target := netip.AddrPortFrom(vip(f, 1), 7)
			quiet(t, got, real)
			failed := of(s.looks("look"), outer).Failed
			sent, back, n, m := real.count(to(target)), real.count(from(target)), got.count(to(target)), got.count(from(target))
			for range 5 {
				s.ask(t, s.Clients[0], "tcp", target)
				s.ask(t, s.Clients[0], "udp", target)
			}
			await(t, "copies of all", func() bool {
				k := real.count(to(target)) - sent
				return k >= 25 && k == got.count(to(target))-n && real.count(from(target))-back == got.count(from(target))-m
			})
			c := of(s.looks("look"), outer) // both have the same address
			if c.Collector != end || c.VXLAN != 42 || c.Device != "weir-vx42" || c.Failed != failed || c.Returned > 0 {
				t.Errorf("%+v", c)
			}
		}
		eachFamily(t, complete)
		if out, err := s.Gateway.Run("conntrack", "-L", "-p", "udp", "-d", end.String()); err == nil && strings.Contains(out, "dport=4789") {
			t.Errorf("connections of the tunnel: %s", out)
		}

		// weir tap sees them as any other mirror's.
		tap := (&tapSite{t: t, box: far}).tapOn(tunnelDev)
		eachFamily(t, complete)
		for _, f := range families {
			await(t, "the copies' figures", func() bool {
				sum := tap.totals()[netip.AddrPortFrom(vip(f, 1), 7).String()+"/tcp"]
				return sum != nil && sum.connections == 5 && sum.answered == 5
			})
		}
		check(t, tap.Signal(syscall.SIGTERM))
		check(t, tap.Wait())

		// Packets as large as the link's are copied whole. By IPv6 the kernel sends no tunnel's packets
		// in fragments, and that is counted.
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(vip(f, 1), 7)
			before, n := got.count(to(target)), servers[2].Requests()+servers[3].Requests()
			lost := of(s.looks("look"), outer).Failed.Tunnel
			data := []byte(strings.Repeat("x", 1440) + "\n")
			for range 10 {
				check(t, s.Clients[0].SendIP(lab.UDPPacket(netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port()), target, data)))
			}
			await(t, "large packets and their copies", func() bool {
				copied, failed := got.count(to(target))-before, of(s.looks("look"), outer).Failed.Tunnel-lost
				if outer == model.IPv6 {
					copied, failed = int(failed), 0
				}
				return servers[2].Requests()+servers[3].Requests()-n == 10 && copied == 10 && failed == 0
			})
		})

		// What the other end, or who says it is, sends into the tunnel goes nowhere.
		inside := servers[2].Requests() + servers[3].Requests()
		mac, err := s.Gateway.MAC("weir-vx42")
		check(t, err)
		for _, args := range [][]string{{"addr", "add", "198.18.7.1/24", "dev", tunnelDev}, {"neigh", "add", "198.18.7.2", "lladdr", mac.String(), "dev", tunnelDev},
			{"route", "add", vip(4, 1).String(), "via", "198.18.7.2", "dev", tunnelDev, "src", "198.18.7.1"}} {
			if out, err := far.Run("ip", args...); err != nil {
				t.Fatal(out, err)
			}
		}
		check(t, s.Gateway.Route(netip.MustParsePrefix("198.18.7.0/24"), s.Backends[2].V4, lab.InsideDev))
		check(t, s.Gateway.Sysctl("net.ipv4.conf.all.rp_filter", "0"))
		check(t, s.Gateway.Sysctl("net.ipv4.conf.weir-vx42.rp_filter", "0"))
		came := s.received("weir-vx42")
		for range 20 {
			check(t, far.SendIP(lab.UDPPacket(netip.MustParseAddrPort("198.18.7.1:999"), netip.AddrPortFrom(vip(4, 1), 7), []byte("?\n"))))
		}
		await(t, "packets by the tunnel", func() bool { return s.received("weir-vx42")-came >= 20 })
		eachFamily(t, complete)
		if n := servers[2].Requests() + servers[3].Requests() - inside; n != 10 {
			t.Errorf("%d packets out of the tunnel reached a server", int(n)-10)
		}

		// Somebody takes the device away: it comes again, and with it the copies.
		s.ip("link", "del", "weir-vx42")
		await(t, "the tunnel is back", func() bool { return s.hasDevice("weir-vx42") })
		s.wantEvent(t, "repair", "", "put back weir-vx42")
		eachFamily(t, complete)
		s.must("mirror", "stop", "look")
		await(t, "no tunnel", func() bool { return !s.hasDevice("weir-vx42") })
		s.must("mirror", "start", "look")
		await(t, "a tunnel", func() bool { return s.hasDevice("weir-vx42") })
		eachFamily(t, complete)

		// No way to the other end: production hears nothing of it.
		s.ip(map[model.Family]string{4: "-4", 6: "-6"}[outer], "route", "del", netip.PrefixFrom(end, map[model.Family]int{4: 24, 6: 64}[outer]).Masked().String())
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(vip(f, 1), 7)
			for range 20 {
				s.ask(t, s.Clients[0], "tcp", target)
			}
			await(t, "failures are counted", func() bool {
				c := of(s.looks("look"), outer)
				return c.Failed.Tunnel+c.Failed.NoRoute+c.Failed.NoNeighbour > 0
			})
		})
		s.awaitMirror(t, fmt.Sprintf("no route of this machine leads to collector %s", end))
		s.stop()
		if !s.hasDevice("weir-vx42") {
			t.Error("the tunnel went with weir")
		}
		s.must("clear")
		if s.hasDevice("weir-vx42") {
			t.Error("clear leaves the tunnel")
		}
	}
}

// TestMirrorTunnelStarted: weir apply makes a tunnel, and so does an operator's word; one that is in
// the file takes the place of one that is not.
func TestMirrorTunnelStarted(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	far, end := s.farCollector(model.IPv4)
	s.serve("tcp", s.Backends[:2], 7)
	got := copies(t, far, tunnelDev, true)
	s.apply(s.tunneled(end))
	target := netip.AddrPortFrom(vip(6, 1), 7)
	copied := func() {
		t.Helper()
		before := got.count(to(target))
		s.ask(t, s.Clients[0], "tcp", target)
		await(t, "copies", func() bool { return got.count(to(target)) > before })
	}
	copied()
	s.must("clear")
	if s.hasDevice("weir-vx42") {
		t.Error("clear leaves the tunnel")
	}

	text := services(service("echo", listenOn(1, "7/tcp", "7/udp"), backendList(on("", s.Backends[:2]...)...)))
	s.write(text)
	s.start()
	s.must("mirror", "start", "by-hand", "--to", end.String(), "--vxlan", "42", "--port", "7")
	await(t, "the tunnel", func() bool { return s.hasDevice("weir-vx42") })
	copied()
	for _, c := range []struct{ words, vxlan string }{{"mirror by-hand has the network identifier 42 already", "42"}, {"is out of range", "0"}} {
		if r := s.weir("mirror", "start", "other", "--to", end.String(), "--vxlan", c.vxlan); r.code == 0 || !strings.Contains(r.stderr, c.words) {
			t.Errorf("vxlan %s: %+v, want %q", c.vxlan, r, c.words)
		}
	}
	s.write(s.tunneled(end))
	s.must("reload")
	if m := s.looks("by-hand"); m.State != "stopped" || !strings.Contains(m.Reason, "mirror look of the file has its network identifier") {
		t.Errorf("%+v", m)
	}
	copied()
	if r := s.weir("mirror", "start", "by-hand"); r.code == 0 || !strings.Contains(r.stderr, "mirror look has the network identifier 42 already") {
		t.Errorf("%+v", r)
	}
}

func (s *site) hasDevice(name string) bool {
	_, err := s.Gateway.Run("ip", "link", "show", name)
	return err == nil
}

// received returns the packets that came in by a device of the gateway.
func (s *site) received(dev string) (n int) {
	s.t.Helper()
	check(s.t, s.Gateway.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil {
			n = int(link.Attrs().Statistics.RxPackets)
		}
		return err
	}))
	return n
}
