package e2e

import (
	"context"
	bin "encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// seen is what a capture saw of packets with ports, both ways of a connection under one name.
type seen struct {
	mu      sync.Mutex
	flows   map[way]int // packets by who they are from and to
	unknown int         // copies without the mark
}

type way struct {
	from, to netip.AddrPort
}

// copies captures copies on the device of a collector, or what really passes where marked is
// false, until the test ends.
func copies(t *testing.T, h *lab.Host, dev string, marked bool) *seen {
	t.Helper()
	c, err := h.Capture(dev)
	check(t, err)
	s := &seen{flows: map[way]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); c.Close(); <-done })
	go func() {
		defer close(done)
		for {
			p, h, err := c.Find(ctx, func(p lab.Packet, h lab.Header) bool {
				return (h.Proto == 6 || h.Proto == 17) && h.Dst.Port() != 0
			})
			if err != nil {
				return
			}
			is := bin.BigEndian.Uint16(p.Data[6:])&0x8000 != 0
			if p.Data[0]>>4 == 6 {
				is = bin.BigEndian.Uint32(p.Data)&0xfcfffff == 55<<22|0x77656
			}
			s.mu.Lock()
			if is == marked {
				s.flows[way{h.Src, h.Dst}]++
			} else {
				s.unknown++
			}
			s.mu.Unlock()
		}
	}()
	return s
}

// count returns the packets that match.
func (s *seen) count(match func(way) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f, packets := range s.flows {
		if match(f) {
			n += packets
		}
	}
	return n
}

func to(a netip.AddrPort) func(way) bool   { return func(f way) bool { return f.to == a } }
func from(a netip.AddrPort) func(way) bool { return func(f way) bool { return f.from == a } }

// quiet waits until nothing more comes of what was sent before.
func quiet(t *testing.T, all ...*seen) {
	t.Helper()
	count := func() (n int) {
		for _, s := range all {
			n += s.count(func(way) bool { return true })
		}
		return n
	}
	before, since := count(), time.Now()
	await(t, "no more packets", func() bool {
		if n := count(); n != before {
			before, since = n, time.Now()
		}
		return time.Since(since) > silence
	})
}

// mirrored returns a configuration of a service on two backends, and a mirror of it to the third
// host.
func (s *site) mirrored(more ...string) string {
	box := s.Backends[2]
	text := services(service("echo", listenOn(1, "7/tcp", "7/udp"), backendList(on("", s.Backends[:2]...)...)))
	text += fmt.Sprintf("mirrors:\n  - name: look\n    to: [%q, %q]\n", box.V4, box.V6)
	for _, m := range more {
		text += "    " + m + "\n"
	}
	return text
}

// TestMirrorCopies: requests and answers of translated connections are copied, each once, as
// clients see them, and as backends do.
func TestMirrorCopies(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends[:2], 7)
	got, real := copies(t, s.Backends[2], lab.HostDev, true), copies(t, s.Clients[0], lab.HostDev, false)
	for _, match := range []string{"", "match: {port: 7}", "match: {service: echo}", "match: {in: " + lab.OutsideDev + "}", fmt.Sprintf("match: {from: [%s, %q]}", lab.ClientNet4, lab.ClientNet6)} {
		s.apply(s.mirrored(match))
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(vip(f, 1), 7)
			quiet(t, got, real)
			sent, back, sentCopies, backCopies := real.count(to(target)), real.count(from(target)), got.count(to(target)), got.count(from(target))
			for range 5 {
				s.ask(t, s.Clients[0], "tcp", target)
			}
			await(t, "copies of all", func() bool {
				n := real.count(to(target)) - sent
				return n >= 5*4 && n == got.count(to(target))-sentCopies && real.count(from(target))-back == got.count(from(target))-backCopies
			})
			for _, b := range s.Backends[:2] {
				if n := got.count(func(f way) bool { return f.to.Addr() == addrOf(b, 4) || f.to.Addr() == addrOf(b, 6) }); n > 0 {
					t.Errorf("%s: %d copies of what goes to a backend", match, n)
				}
			}
		})
	}
	for _, match := range []string{"match: {port: 7}", "match: {service: echo}", "match: {out: " + lab.InsideDev + "}"} {
		s.apply(s.mirrored("view: backend", match))
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(vip(f, 1), 7)
			quiet(t, got, real)
			toBackends := func(f way) bool { return f.to.Port() == 7 && f.to.Addr() != target.Addr() }
			fromBackends := func(f way) bool { return f.from.Port() == 7 && f.from.Addr() != target.Addr() }
			sent, back, n, m := real.count(to(target)), real.count(from(target)), got.count(toBackends), got.count(fromBackends)
			for range 5 {
				s.ask(t, s.Clients[0], "tcp", target)
			}
			await(t, "copies of all", func() bool {
				k := real.count(to(target)) - sent
				return k >= 5*4 && k == got.count(toBackends)-n && real.count(from(target))-back == got.count(fromBackends)-m
			})
		})
	}
	if got.unknown > 0 {
		t.Errorf("%d packets without the mark of copies", got.unknown)
	}
}

// TestMirrorAdopted: a second apply finds the rules as they should be.
func TestMirrorAdopted(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	text := s.mirrored("sample: 1/10", "limit: 100/second", "match: {port: [7, 80-90], protocol: tcp, from: 203.0.113.0/24}")
	s.apply(text)
	gen := s.generation()
	s.apply(text)
	if now := s.generation(); now != gen {
		t.Errorf("the second apply made generation %d of %d: %s", now, gen, s.must("plan"))
	}
	s.must("clear")
	if left := s.nft("list", "ruleset"); strings.Contains(left, "weir") {
		t.Errorf("clear leaves %s", left)
	}
}

// looks returns what weir says of a mirror.
func (s *site) looks(name string) (m engine.MirrorStatus) {
	s.t.Helper()
	var out api.Mirrors
	s.mustJSON(&out, "mirrors")
	for _, m := range out.Mirrors {
		if m.Name == name {
			return m
		}
	}
	return m
}

// of returns the copies of a family.
func of(m engine.MirrorStatus, f model.Family) (c engine.MirrorCollector) {
	for _, c := range m.Families {
		if model.FamilyOf(c.Collector) == f {
			return c
		}
	}
	return c
}

// TestMirrorLocal: what a service of the box itself gets and says, and what the box asks others,
// is copied once, tracked or not.
func TestMirrorLocal(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends[:1], 9)
	got, real := copies(t, s.Backends[2], lab.HostDev, true), copies(t, s.Clients[0], lab.HostDev, false)
	box := s.Backends[2]
	text := services(ownService("own", listenOn(1, "7/tcp"))) + fmt.Sprintf("mirrors: [{name: look, to: [%q, %q], match: {port: [7, 9]}}]\n", box.V4, box.V6)
	for i, text := range []string{text, strings.Replace(text, "forward: local\n", "forward: local\n    track: none\n", 1), text + "#\n"} {
		if i == 2 {
			text = strings.Replace(text, "name: look,", "name: look, view: backend,", 1)
		}
		s.apply(text)
		if i == 0 {
			_, err := lab.EchoTCP(s.Gateway, "box", join(vip(4, 1), 7), join(vip(6, 1), 7))
			check(t, err)
		}
		eachFamily(t, func(t *testing.T, f model.Family) {
			target := netip.AddrPortFrom(vip(f, 1), 7)
			quiet(t, got, real)
			a, b, c, d := real.count(to(target)), real.count(from(target)), got.count(to(target)), got.count(from(target))
			out := func() (n uint64) {
				for _, l := range s.status("own").Listeners {
					n += l.PacketsOut
				}
				return n
			}
			counted := out()
			for range 5 {
				s.ask(t, s.Clients[0], "tcp", target)
			}
			await(t, "copies of all", func() bool {
				n := real.count(to(target)) - a
				return n >= 20 && n == got.count(to(target))-c && real.count(from(target))-b == got.count(from(target))-d
			})
			quiet(t, got, real)
			if n, m := out()-counted, real.count(from(target))-b; int(n) != m {
				t.Errorf("weir counted %d packets from its listener, which sent %d", n, m)
			}
			other := netip.AddrPortFrom(addrOf(s.Backends[0], f), 9)
			n, m := got.count(to(other)), got.count(from(other))
			real := copies(t, s.Backends[0], lab.HostDev, false)
			for range 5 {
				if _, err := s.Gateway.Ask("tcp", other.String()); err != nil {
					t.Fatal(err)
				}
			}
			await(t, "copies of what the box asks", func() bool {
				n, m := got.count(to(other))-n, got.count(from(other))-m
				return n >= 20 && m >= 15 && n == real.count(to(other)) && m == real.count(from(other))
			})
		})
	}
}

// TestMirrorSample: the sample of flows is what the hash says, and a flow that is in it is there
// to the last packet, both ways; one of packets is exact.
func TestMirrorSample(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends[:2], 7)
	s.serve("udp", s.Backends[:2], 7)
	got, real := copies(t, s.Backends[2], lab.HostDev, true), copies(t, s.Clients[0], lab.HostDev, false)
	s.apply(s.mirrored("sample: 1/4"))
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		want := map[netip.AddrPort]bool{}
		const flows = 80
		for range flows {
			port := s.port()
			client := netip.AddrPortFrom(addrOf(s.Clients[0], f), port)
			_, err := try(t, s.Clients[0], "tcp", port, target)
			check(t, err)
			b := ruleset.AppendPort(ruleset.AppendPort(ruleset.AppendAddr(ruleset.AppendAddr(nil, client.Addr()), target.Addr()), port), 7)
			want[client] = flow.Choose(b, model.DefaultHashSeed, 4, 0) < 1
		}
		in := 0
		await(t, "the flows of the sample, and no others", func() bool {
			in = 0
			for client, chosen := range want {
				n, m := got.count(from(client)), got.count(to(client))
				if !chosen && n+m > 0 {
					t.Fatalf("%s is not in the sample, and there are %d copies", client, n+m)
				}
				if chosen {
					in++
					if n != real.count(from(client)) || m != real.count(to(client)) || n < 4 {
						return false
					}
				}
			}
			return true
		})
		if in < flows/10 || in > flows/2 {
			t.Errorf("%d of %d flows are in a sample of 1/4", in, flows)
		}
	})
	s.apply(s.mirrored("sample: 1/10", "sample_by: packet", "match: {protocol: udp, direction: requests, port: 7}"))
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		before := got.count(to(target))
		s.shoot(t, s.Clients[0], target, 1000)
		await(t, "a tenth of the packets", func() bool { return got.count(to(target))-before == 100 })
	})
}
