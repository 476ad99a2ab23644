package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// TestMirrorLimit: copies beyond the limit are left out and counted; all of production passes.
func TestMirrorLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	servers := s.serve("udp", s.Backends[:2], 7)
	got := copies(t, s.Backends[2], lab.HostDev, true)
	s.write(s.mirrored("limit: 500/hour", "match: {protocol: udp, direction: requests, port: 7}"))
	s.start("--metrics", "127.0.0.1:9545")
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		served := servers[0].Requests() + servers[1].Requests()
		s.shoot(t, s.Clients[0], target, 400)
		await(t, "all arrive", func() bool { return servers[0].Requests()+servers[1].Requests()-served == 400 })
		c := of(s.looks("look"), f)
		// A token comes each 7.2 s.
		if c.Made < 50 || c.Made > 55 || c.Made+c.OverLimit != 400 || c.Failed != (engine.MirrorFailed{}) {
			t.Errorf("%+v, want 50 copies and 350 over the limit", c)
		}
		await(t, "copies", func() bool { return got.count(to(target)) == int(c.Made) })
		labels := fmt.Sprintf(`{family="%s",mirror="look"}`, f)
		text := s.scrape("http://127.0.0.1:9545/metrics")
		for _, want := range []string{
			fmt.Sprintf("weir_mirror_copies_total%s %d\n", labels, c.Made),
			fmt.Sprintf("weir_mirror_bytes_total%s %d\n", labels, c.Bytes),
			fmt.Sprintf("weir_mirror_over_limit_packets_total%s %d\n", labels, c.OverLimit),
			"weir_mirror_running{mirror=\"look\"} 1\n", "weir_up 1\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
	})
}

// TestMirrorCollectorDown: a collector that does not answer is said and counted, and production
// hears nothing of it, neither does it of one whose link takes only small packets.
func TestMirrorCollectorDown(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends[:2], 7)
	s.serve("udp", s.Backends[:2], 7)
	s.write(s.mirrored())
	s.start()
	c, err := s.Clients[0].Capture(lab.HostDev)
	check(t, err)
	var icmp atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go c.Find(ctx, func(p lab.Packet, h lab.Header) bool {
		if !p.Out && (h.Proto == 1 || h.Proto == 58 && h.Payload[0] < 128) {
			icmp.Add(1)
		}
		return false
	})
	check(t, s.Backends[2].SetLink(lab.HostDev, false))
	eachFamily(t, func(t *testing.T, f model.Family) {
		s.ip(map[model.Family]string{4: "-4", 6: "-6"}[f], "neigh", "flush", "dev", lab.InsideDev)
		target := netip.AddrPortFrom(vip(f, 1), 7)
		await(t, "lost copies are counted", func() bool {
			for range 3 {
				s.ask(t, s.Clients[0], "tcp", target)
			}
			st := of(s.looks("look"), f)
			return st.Failed.NoNeighbour > 0 && (st.Neighbour == "failed" || st.Neighbour == "incomplete")
		})
	})
	s.wantEvent(t, "mirror", "", "does not answer")
	if n := icmp.Load(); n > 0 {
		t.Errorf("the client got %d ICMP errors about copies", n)
	}
	check(t, s.Backends[2].SetLink(lab.HostDev, true))
	_ = s.Backends[2].AddAddr(lab.HostDev, netip.PrefixFrom(s.Backends[2].V6, 64)) // it went with the link
	eachFamily(t, func(t *testing.T, f model.Family) {
		await(t, "the collector is back", func() bool {
			s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), 7))
			n := of(s.looks("look"), f).Neighbour
			return n != "" && n != "failed" && n != "incomplete"
		})
	})
}

// TestMirrorCameBack: copies that the collector routes on come in again: no server gets one, and
// the mirror stops, until it is started again.
func TestMirrorCameBack(t *testing.T) {
	t.Parallel()
	for _, f := range families {
		s := newSite(t, 1, 3)
		servers := s.serve("udp", s.Backends[:2], 7)
		box := s.Backends[2]
		check(t, box.Sysctl("net.ipv4.ip_forward", "1"))
		check(t, box.Sysctl("net.ipv4.conf.all.rp_filter", "0"))
		check(t, box.Sysctl("net.ipv4.conf.eth0.rp_filter", "0"))
		check(t, box.Sysctl("net.ipv4.conf.all.send_redirects", "0"))
		check(t, box.Sysctl("net.ipv6.conf.all.forwarding", "1"))
		s.ip("link", "show") // it is there
		s.write(s.mirrored())
		s.start()
		target := netip.AddrPortFrom(vip(f, 1), 7)
		time.Sleep(1200 * time.Millisecond) // one look of weir's
		n := 0
		await(t, "the mirror is stopped", func() bool {
			s.shoot(t, s.Clients[0], target, 5)
			n += 5
			return s.looks("look").State == "stopped"
		})
		s.wantEvent(t, "mirror", "", "came in again by "+lab.InsideDev)
		await(t, "each packet arrives", func() bool { return int(servers[0].Requests()+servers[1].Requests()) >= n })
		if got := int(servers[0].Requests() + servers[1].Requests()); got != n {
			t.Errorf("servers got %d of %d packets", got, n)
		}
		m := s.looks("look")
		if of(m, f).Returned == 0 || !strings.Contains(m.Reason, "weir mirror start look") {
			t.Errorf("%+v", m)
		}
		s.stop()
		s.start()
		if m := s.looks("look"); m.State != "stopped" {
			t.Errorf("after a restart: %+v", m)
		}
		s.must("mirror", "start", "look")
		if m := s.looks("look"); m.State != "running" {
			t.Errorf("started again: %+v", m)
		}
		s.stop()
	}
}

// TestMirrorEnds: a mirror with a time ends also when weir was killed, and a restart does not
// prolong it; one that is in no file comes and goes by commands.
func TestMirrorEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("udp", s.Backends[:2], 7)
	got := copies(t, s.Backends[2], lab.HostDev, true)
	s.write(s.mirrored()[:strings.Index(s.mirrored(), "mirrors:")])
	s.start()
	box := s.Backends[2]
	s.must("mirror", "start", "mine", "--to", box.V4.String(), "--to", box.V6.String(), "--port", "7", "--for", "6s")
	for _, bad := range [][]string{{"--to", s.Backends[0].V4.String()}, {"--to", box.V4.String(), "--sample", "11/10"}, {"--to", s.Inside4.String()}, {"--to", "192.0.2.77"}, {"--port", "7"}, {"--to", box.V4.String(), "--in", "eth9"}} {
		if r := s.weir(append([]string{"mirror", "start", "bad"}, bad...)...); r.code != 2 {
			t.Errorf("%v: %+v", bad, r)
		}
	}
	if m := s.looks("mine"); m.State != "running" || m.InFile || m.Until.IsZero() {
		t.Errorf("%+v", m)
	}
	until := s.looks("mine").Until
	copied := func(f model.Family) bool {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		n := got.count(to(target))
		s.shoot(t, s.Clients[0], target, 3)
		for range 30 {
			if got.count(to(target))-n >= 3 {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	for _, f := range families {
		if !copied(f) {
			t.Errorf("IPv%d: no copies", f)
		}
	}
	s.stop()
	s.start()
	if m := s.looks("mine"); !m.Until.Equal(until) {
		t.Errorf("after a restart: %+v", m)
	}
	check(t, s.run.Signal(syscall.SIGKILL))
	<-s.run.Done()
	for _, f := range families {
		await(t, "it ends without weir", func() bool { return !copied(f) })
	}
	if time.Now().Before(until.Add(-time.Second)) {
		t.Errorf("it ended %s too early", time.Until(until))
	}
	s.start()
	if m := s.looks("mine"); m.State == "running" {
		t.Errorf("after its end: %+v", m)
	}
	s.must("mirror", "start", "more", "--to", box.V4.String(), "--to", box.V6.String())
	if !copied(4) || !copied(6) {
		t.Error("no copies")
	}
	s.must("mirror", "stop", "more")
	if copied(4) || copied(6) {
		t.Error("copies of a mirror that was stopped")
	}
}

// TestMirrorRefused: what only the box can tell of a collector is refused when it is applied, with
// its place in the file.
func TestMirrorRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	check(t, s.Gateway.Route(netip.MustParsePrefix("198.18.7.0/24"), s.Backends[1].V4, lab.InsideDev))
	check(t, s.Gateway.Route(netip.MustParsePrefix("2001:db8:77::/48"), s.Backends[1].V6, lab.InsideDev))
	for _, bad := range []struct{ mirror, want string }{
		{"{name: a, to: 198.18.7.9}", ":2:25: mirrors[0].to: 198.18.7.9 cannot be the collector: it is on no network of this machine, but behind a gateway; want an address on a network of this machine"},
		{`{name: a, to: "2001:db8:77::9"}`, ":2:25: mirrors[0].to: 2001:db8:77::9 cannot be the collector: it is on no network of this machine, but behind a gateway"},
		{"{name: a, to: " + s.Backends[1].V4.String() + "}", "it is the gateway of 198.18.7.0/24"},
		{"{name: a, to: \"" + s.Backends[1].V6.String() + "\"}", "it is the gateway of 2001:db8:77::/48"},
		{"{name: a, to: 192.0.2.9}", ":2:25: mirrors[0].to: 192.0.2.9 cannot be the collector: no route"},
		{"{name: a, to: " + s.Inside4.String() + "}", "it is an address of this machine"},
		{"{name: a, to: " + s.Backends[2].V4.String() + ", match: {in: eth9}}", `:2:47: mirrors[0].match.in: this machine has no device "eth9"`},
	} {
		s.write("services: []\nmirrors: [" + bad.mirror + "]\n")
		if r := s.weir("apply"); r.code != 2 || !strings.Contains(r.stderr, bad.want) {
			t.Errorf("%s: %+v, want %s", bad.mirror, r, bad.want)
		}
	}
	if left := s.nft("list", "ruleset"); strings.Contains(left, "weir-mirrors") {
		t.Errorf("something was made: %s", left)
	}
}

// TestMirrorTooBig: copies that are too big for the way to the collector are lost and counted;
// the client, whose packets were not too big for theirs, hears nothing.
func TestMirrorTooBig(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	servers := s.serve("udp", s.Backends[:2], 7)
	s.write(s.mirrored())
	s.start()
	s.ip("route", "add", s.Backends[2].V4.String()+"/32", "dev", lab.InsideDev, "mtu", "1280")
	s.ip("-6", "route", "add", s.Backends[2].V6.String()+"/128", "dev", lab.InsideDev, "mtu", "1280")
	c, err := s.Clients[0].Capture(lab.HostDev)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var icmp atomic.Int64
	go c.Find(ctx, func(p lab.Packet, h lab.Header) bool {
		if !p.Out && (h.Proto == 1 || h.Proto == 58 && h.Payload[0] < 128) {
			icmp.Add(1)
		}
		return false
	})
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		before := servers[0].Requests() + servers[1].Requests()
		for range 20 {
			from := netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port())
			check(t, s.Clients[0].SendIP(lab.UDPPacket(from, target, []byte(strings.Repeat("?", 1399)+"\n"))))
		}
		await(t, "all arrive", func() bool { return servers[0].Requests()+servers[1].Requests()-before == 20 })
		await(t, "too big", func() bool { return of(s.looks("look"), f).Failed.TooBig > 0 })
	})
	if n := icmp.Load(); n > 0 {
		t.Errorf("the client got %d ICMP errors about copies", n)
	}
}
