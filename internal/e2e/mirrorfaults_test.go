package e2e

import (
	bin "encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// boxDev is the gateway's device on the network of a collector that has one of its own.
const boxDev = "eth-box"

// box gives the gateway a collector on a network of its own.
func (s *site) box(t *testing.T) *lab.Host {
	t.Helper()
	h, err := s.Net.Host("box")
	check(t, err)
	check(t, s.Net.Link(lab.End{Host: s.Gateway, Name: boxDev, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.9.254/24"), netip.MustParsePrefix("2001:db8:99::fe/64")}},
		lab.End{Host: h, Name: lab.HostDev, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24"), netip.MustParsePrefix("2001:db8:99::9/64")}}))
	return h
}

// awaitMirror waits until weir tells that of a mirror.
func (s *site) awaitMirror(t *testing.T, words string) {
	t.Helper()
	await(t, "told: "+words, func() bool {
		return slices.ContainsFunc(s.events(0), func(e engine.Event) bool { return e.Kind == "mirror" && strings.Contains(e.Message, words) })
	})
}

// boxed returns a configuration of a service, and a mirror of all that goes to its port to the box.
func (s *site) boxed(more ...string) string {
	text := services(service("echo", listenOn(1, "7/tcp", "7/udp"), backendList(on("", s.Backends...)...)))
	text += "mirrors:\n  - name: look\n    to: [10.9.9.9, \"2001:db8:99::9\"]\n    match: {port: 7}\n"
	for _, m := range more {
		text += "    " + m + "\n"
	}
	return text
}

// TestMirrorForwarded: traffic that passes the box and that nothing translates is copied, each
// packet once, whichever side is looked at, and by direction.
func TestMirrorForwarded(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serve("tcp", s.Backends, 9)
	got, real := copies(t, s.box(t), lab.HostDev, true), copies(t, s.Backends[0], lab.HostDev, false)
	for _, c := range []struct {
		mirror, match string
		to, from      bool // what is copied
	}{
		{"", "{}", true, true},
		{"", "{port: 9}", true, true},
		{"", "{in: " + lab.OutsideDev + "}", true, true},
		{"view: backend", "{out: " + lab.InsideDev + ", protocol: tcp}", true, true},
		{"view: backend", "{port: 9, direction: answers}", false, true},
		{"", fmt.Sprintf("{to: [%s, %q], direction: requests}", lab.BackendNet4, lab.BackendNet6), true, false},
		{"", "{port: 7}", false, false},
	} {
		text := strings.Replace(s.boxed(c.mirror), "{port: 7}", c.match, 1)
		s.apply(text)
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(addrOf(s.Backends[0], f), 9)
			quiet(t, got, real)
			a, b, n, m := real.count(to(target)), real.count(from(target)), got.count(to(target)), got.count(from(target))
			for range 5 {
				if _, err := s.Clients[0].Ask("tcp", target.String()); err != nil {
					t.Fatal(err)
				}
			}
			quiet(t, got, real)
			sent, back := real.count(to(target))-a, real.count(from(target))-b
			want := map[bool]int{true: 1}
			if n, m := got.count(to(target))-n, got.count(from(target))-m; sent < 20 || n != sent*want[c.to] || m != back*want[c.from] {
				t.Errorf("%s %s: %d and %d packets, %d and %d copies", c.match, c.mirror, sent, back, n, m)
			}
		})
	}
}

// TestMirrorSlow: a collector whose link is far too slow costs production nothing, and it is said
// how many packets its queue dropped.
func TestMirrorSlow(t *testing.T) {
	t.Parallel()
	needTool(t, "tc")
	s := newSite(t, 1, 2)
	servers := s.serve("udp", s.Backends, 7)
	got := copies(t, s.box(t), lab.HostDev, true)
	_, err := s.Gateway.Run("tc", "qdisc", "add", "dev", boxDev, "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "3000")
	check(t, err)
	s.write(s.boxed("view: client"))
	s.start()
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		before := servers[0].Requests() + servers[1].Requests()
		// The collector's neighbour entry needs the slow link too.
		lost := func() uint64 { st := of(s.looks("look"), f); return st.QueueDropped + st.Failed.NoNeighbour }
		c, dropped := got.count(to(target)), lost()
		const n = 400
		s.shoot(t, s.Clients[0], target, n)
		await(t, "all arrive", func() bool { return servers[0].Requests()+servers[1].Requests()-before == n })
		await(t, "what the queue dropped is counted", func() bool {
			return of(s.looks("look"), f).Made >= 2*n && lost()-dropped >= n
		})
		if c := got.count(to(target)) - c; c > n/2 {
			t.Errorf("%d copies arrived over a link of 8 kbit/s", c)
		}
	})
	s.awaitMirror(t, "queue of "+boxDev)
}

// TestMirrorDeviceGone: when the collector's device goes, the box has a route to it still, by its
// default gateway. Production must not get its packets a second time that way: copies are lost,
// counted and told of, and go on when the device is back.
func TestMirrorDeviceGone(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	servers := s.serve("udp", s.Backends, 7)
	s.box(t)
	gateway := s.Clients[1]
	check(t, s.Gateway.Route(netip.MustParsePrefix("0.0.0.0/0"), gateway.V4, lab.OutsideDev))
	check(t, s.Gateway.Route(netip.MustParsePrefix("::/0"), gateway.V6, lab.OutsideDev))
	s.write(s.boxed())
	s.start()
	stray := copies(t, gateway, lab.HostDev, false)
	strayMarked := copies(t, gateway, lab.HostDev, true)
	real := copies(t, s.Clients[0], lab.HostDev, false)
	shoot := func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		before := servers[0].Requests() + servers[1].Requests()
		answers := real.count(from(target))
		s.shoot(t, s.Clients[0], target, 50)
		await(t, "all arrive", func() bool { return servers[0].Requests()+servers[1].Requests()-before == 50 })
		await(t, "all are answered", func() bool { return real.count(from(target))-answers >= 50 })
		quiet(t, real, stray)
		if n := real.count(from(target)) - answers; n != 50 {
			t.Errorf("the client got %d answers to 50 packets", n)
		}
	}
	eachFamily(t, shoot)
	s.ip("link", "set", boxDev, "down")
	eachFamily(t, func(t *testing.T, f model.Family) {
		made := of(s.looks("look"), f)
		shoot(t, f)
		await(t, "failed copies are counted", func() bool {
			now := of(s.looks("look"), f)
			return now.Failed.NoRoute-made.Failed.NoRoute == 100 && now.Made-made.Made == 100
		})
	})
	s.awaitMirror(t, "no network of this machine")
	none := func(way) bool { return true }
	if n, m := stray.count(none), strayMarked.count(none); n+m > 0 {
		t.Errorf("the default gateway got %d packets, and %d with the mark of copies", n, m)
	}
	s.ip("link", "set", boxDev, "up")
	_, _ = s.Gateway.Run("ip", "-6", "addr", "add", "2001:db8:99::fe/64", "dev", boxDev, "nodad") // it went with the link
	eachFamily(t, func(t *testing.T, f model.Family) {
		await(t, "copies go again", func() bool {
			made := of(s.looks("look"), f)
			s.shoot(t, s.Clients[0], netip.AddrPortFrom(vip(f, 1), 7), 5)
			now := of(s.looks("look"), f)
			return now.Made > made.Made && now.Failed.NoRoute == made.Failed.NoRoute
		})
	})
	s.awaitMirror(t, "answers again")
	if m := s.looks("look"); m.State != "running" {
		t.Errorf("%+v", m)
	}
}

// TestMirrorForged: packets with the mark of copies that come in where no collector is go no
// further and are told of, but stop no mirror; a flow label alone is no mark.
func TestMirrorForged(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	servers := s.serve("udp", s.Backends, 7)
	s.box(t)
	s.write(s.boxed())
	s.start()
	served := func() int { return int(servers[0].Requests() + servers[1].Requests()) }
	packet := func(f model.Family) []byte {
		return lab.UDPPacket(netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port()), netip.AddrPortFrom(vip(f, 1), 7), []byte("?\n"))
	}
	forge := func(p []byte, f model.Family) []byte {
		if f == model.IPv6 {
			bin.BigEndian.PutUint32(p, bin.BigEndian.Uint32(p)&0xf0300000|55<<22|0x77656)
			return p
		}
		p[6] |= 0x80
		bin.BigEndian.PutUint16(p[10:], 0)
		sum := uint32(0)
		for i := 0; i < 20; i += 2 {
			sum += uint32(bin.BigEndian.Uint16(p[i:]))
		}
		bin.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
		return p
	}
	time.Sleep(1200 * time.Millisecond) // one look of weir's, which it compares others with
	eachFamily(t, func(t *testing.T, f model.Family) {
		before, returned := served(), of(s.looks("look"), f).Returned
		for range 3 {
			check(t, s.Clients[0].SendIP(forge(packet(f), f)))
		}
		await(t, "they are counted", func() bool { return of(s.looks("look"), f).Returned-returned == 3 })
		check(t, s.Clients[0].SendIP(packet(f)))
		want := 1
		if f == model.IPv6 {
			p := packet(f)
			bin.BigEndian.PutUint32(p, bin.BigEndian.Uint32(p)&0xfff00000|0x77656)
			check(t, s.Clients[0].SendIP(p))
			want = 2
		}
		await(t, "others arrive", func() bool { return served()-before == want })
	})
	s.awaitMirror(t, "by "+lab.OutsideDev+", where no collector is")
	if m := s.looks("look"); m.State != "running" || served() != 3 {
		t.Errorf("%d packets arrived, %+v", served(), m)
	}
}

// TestMirrorRepair: what somebody changes in the tables of mirrors is put back.
func TestMirrorRepair(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	s := newSite(t, 1, 1)
	s.box(t)
	s.write(s.boxed("limit: 100/second", "for: 1h", "sample: 1/2"))
	s.start()
	own := func(family string) string {
		out, err := s.Gateway.Run("nft", "-s", "list", "table", family, "weir-mirrors")
		if err != nil {
			return "" // it is not there
		}
		words := strings.Fields(out)
		for i, w := range words { // what is left of an hour
			if (w == "timeout" || w == "expires") && i+1 < len(words) {
				words[i+1] = ""
			}
		}
		slices.Sort(words)
		return strings.Join(words, " ")
	}
	for _, family := range []string{"ip", "ip6"} {
		want := own(family)
		if want == "" {
			t.Fatalf("%s: the table is not there", family)
		}
		table := []string{family, "weir-mirrors"}
		handle, comment := s.firstRuleOf(t, family, "mirror/look/requests")
		for _, edit := range [][]string{
			slices.Concat([]string{"delete", "table"}, table),
			slices.Concat([]string{"flush", "chain"}, table, []string{"copies-in/prerouting"}),
			slices.Concat([]string{"replace", "rule"}, table, []string{"mirror/look/requests", "handle", handle, "drop", "comment", strconv.Quote(comment)}),
			slices.Concat([]string{"flush", "set"}, table, []string{"collectors"}),
			slices.Concat([]string{"flush", "set"}, table, []string{"running"}),
			slices.Concat([]string{"add", "table"}, table, []string{"{ flags dormant; }"}),
		} {
			if edit[0] == "replace" {
				edit[6], comment = s.firstRuleOf(t, family, "mirror/look/requests")
				edit[len(edit)-1] = strconv.Quote(comment)
			}
			logged := strings.Count(s.log.String(), "put back")
			s.nft(edit...)
			await(t, "back after "+strings.Join(edit, " "), func() bool { return own(family) == want })
			if edit[len(edit)-1] != "running" { // its elements are no part of the rules
				await(t, "the log says so", func() bool { return strings.Count(s.log.String(), "put back") > logged })
			}
		}
	}
}

// firstRuleOf returns the handle and the comment of the first rule of a chain of mirrors.
func (s *site) firstRuleOf(t *testing.T, family, chain string) (handle, comment string) {
	t.Helper()
	for line := range strings.Lines(s.nft("-a", "list", "chain", family, "weir-mirrors", chain)) {
		if _, after, ok := strings.Cut(line, `comment "`); ok {
			comment, after, _ = strings.Cut(after, `"`)
			_, handle, _ = strings.Cut(strings.TrimSpace(after), "# handle ")
			return handle, comment
		}
	}
	t.Fatalf("%s: no rule in %s", family, chain)
	return "", ""
}
