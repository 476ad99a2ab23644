package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/plan"
)

// explained is what `weir explain` says.
type explained struct {
	plan.Explanation
	Live  bool `json:"live"`
	Drift bool `json:"drift"`

	Running bool `json:"running"`

	Steering *engine.Steered `json:"steering"`
}

// explain asks weir about a packet.
func (s *site) explain(from, to netip.AddrPort, proto string, more ...string) explained {
	s.t.Helper()
	var x explained
	s.mustJSON(&x, append([]string{"explain", "--from", from.String(), "--to", to.String() + "/" + proto}, more...)...)
	return x
}

// backendOf returns the address and port of a server that answered with "backend1" or, of
// several ports, "backend1/9003".
func (s *site) backendOf(t *testing.T, id string, f model.Family, port uint16) string {
	t.Helper()
	for _, h := range append([]*lab.Host{s.Gateway}, s.Backends...) {
		if id == h.Name {
			return join(addrOf(h, f), port)
		}
		var p uint16
		if n, _ := fmt.Sscanf(id, h.Name+"/%d", &p); n == 1 {
			return join(addrOf(h, f), p)
		}
	}
	t.Fatalf("nobody is called %s", id)
	return ""
}

// TestExplainTellsTheBackend asks weir where packets go before it sends them, from random
// ports, to services whose choice follows from the file.
func TestExplainTellsTheBackend(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	var ports []uint16
	for p := uint16(9000); p < 9010; p++ {
		ports = append(ports, p)
	}
	for _, proto := range []string{"tcp", "udp", "sctp"} {
		s.serve(proto, s.Backends, ports...)
	}
	b := s.Backends
	entries := func(ports string) []string { return []string{ports + "/tcp", ports + "/udp", ports + "/sctp"} }
	fixed := quoted([]string{"192.0.2.99", "2001:db8:99::1"})
	list := []string{
		service("maglev", listenOn(1, entries("9000-9009")...), backendList(on("", b...)...), "balance: maglev"),
		service("translated", listenOn(2, entries("70-79")...),
			backendList(backend{b[0], "9000-9009", 3}, backend{b[1], "9000-9009", 1}), "balance: maglev", "source: masquerade"),
		service("source", listenOn(3, entries("70-79")...), backendList(on("9004", b...)...), "balance: source", "source: "+fixed),
	}
	first := []uint16{9000, 70, 70} // of each listener
	s.apply(fmt.Sprintf("hash_seed: %#x\n", seed) + services(list...))
	client := s.Clients[0]
	protos := []string{"tcp", "udp", "sctp"}
	random := rand.Perm(38000) // each port once: one that was used may not be free yet
	for i := range list {
		eachFamily(t, func(t *testing.T, f model.Family) {
			for n := range 20 {
				proto := protos[n%len(protos)]
				from := netip.AddrPortFrom(addrOf(client, f), uint16(1024+random[20*i+n]))
				to := netip.AddrPortFrom(vip(f, i+1), first[i]+uint16(rand.IntN(10)))
				x := s.explain(from, to, proto)
				a, err := try(t, client, proto, from.Port(), to)
				check(t, err)
				if got := s.backendOf(t, a.id, f, 0); x.Backend != got || x.Backend == "" {
					t.Errorf("%s from %s to %s: weir explains %s, %s answers", proto, from, to, x.Backend, got)
				}
				wantSource(t, s, x, a.seen.Addr(), f)
			}
		})
	}
}

// wantSource checks the source that was explained against the one a backend saw.
func wantSource(t *testing.T, s *site, x explained, seen netip.Addr, f model.Family) {
	t.Helper()
	want := x.Source
	if want == "masquerade" {
		want = s.inside(f).String()
	}
	if want != seen.String() {
		t.Errorf("%s to %s: weir explains source %s, the backend sees %s", x.From, x.To, x.Source, seen)
	}
}

// TestExplainFromTheFile looks at answers that need no kernel: who may get a connection
// in turn, and who refuses.
func TestExplainFromTheFile(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	b := s.Backends
	s.apply(services(
		service("turns", listenAll(1), backendList(backend{b[0], "", 3}, backend{b[1], "", 1})),
		service("refuses", listenAll(2), "[]"),
		service("drops", listenAll(3), "[]", "when_all_down: drop")))
	eachFamily(t, func(t *testing.T, f model.Family) {
		client := netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port())
		x := s.explain(client, netip.AddrPortFrom(vip(f, 1), 7), "tcp")
		want := []plan.Candidate{{Address: addrOf(b[0], f).String(), Share: 0.75}, {Address: addrOf(b[1], f).String(), Share: 0.25}}
		if x.Service != "turns" || x.Backend != "" || x.Verdict != "accept" || !slices.Equal(x.Candidates, want) {
			t.Errorf("turns: %+v", x)
		}
		// A backend that calls its own service is masked, as TestHairpin shows.
		self := s.explain(netip.AddrPortFrom(addrOf(b[0], f), 4000), netip.AddrPortFrom(vip(f, 1), 7), "udp")
		a := s.ask(t, b[0], "udp", netip.AddrPortFrom(vip(f, 1), 7))
		wantSource(t, s, self, a.seen.Addr(), f)
		for _, c := range []struct {
			n              int
			proto, verdict string
		}{{2, "tcp", "reject tcp-reset"}, {2, "udp", "reject icmp"}, {2, "sctp", "reject icmp"}, {3, "tcp", "drop"}, {3, "udp", "drop"}} {
			x := s.explain(client, netip.AddrPortFrom(vip(f, c.n), 7), c.proto)
			if x.Verdict != c.verdict || x.Backend != "" {
				t.Errorf("%s to %s: verdict %q, want %q; %+v", c.proto, vip(f, c.n), x.Verdict, c.verdict, x)
			}
		}
		if x := s.explain(client, netip.AddrPortFrom(vip(f, 9), 7), "tcp"); x.Service != "" || x.Backend != "" || x.Verdict != "accept" {
			t.Errorf("nobody listens: %+v", x)
		}
	})
}

// TestPlanBesideARunningWeir: plan and explain know who is down and what operators said, so
// that the plan is what the running weir then does.
func TestPlanBesideARunningWeir(t *testing.T) {
	t.Parallel()
	s, servers := checkedSite(t, 4)
	drained, sick, heavy := s.Backends[0], s.Backends[1], s.Backends[2]
	check(t, servers[1].Close())
	s.awaitStates("web", sick, "down")
	s.each("drain", "web", drained)
	s.each("weight", "web", heavy, "3")
	type planned struct {
		Changes, Running, Live bool
		Summary                string
	}
	var p planned
	if s.mustJSON(&p, "plan"); p.Changes || !p.Running || !p.Live {
		t.Errorf("beside a running weir, with nothing to change: %+v", p)
	}
	asks := func(f model.Family) []plan.Candidate {
		x := s.explain(netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port()), target(f, 1, 7), "tcp")
		if !x.Running {
			t.Errorf("explain does not know of the running weir: %+v", x)
		}
		return x.Candidates
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		want := []plan.Candidate{{Address: addrOf(heavy, f).String(), Share: 0.75}, {Address: addrOf(s.Backends[3], f).String(), Share: 0.25}}
		if got := asks(f); !slices.Equal(got, want) {
			t.Errorf("candidates %+v, want %+v", got, want)
		}
	})
	s.among(t, "as explained", 4, heavy, s.Backends[3])
	// One comes, one goes, and the weights of all the others stay as they are.
	s.write(services(service("web", listenOn(1, "7/tcp", "7/udp"), backendList(on("", s.Backends[:3]...)...),
		"check: {tcp: true, port: 7, every: 100ms, timeout: 90ms, rise: 2, fall: 3}", "on_down: reset")))
	if s.mustJSON(&p, "plan"); !p.Changes || !p.Running {
		t.Errorf("with another file: %+v", p)
	}
	gen, logged := s.generation(), len(s.log.String())
	s.must("reload")
	if now := s.generation(); now <= gen || now > gen+4 { // the steps of one change (ruleset.Steps)
		t.Errorf("the reload took %d commits", now-gen)
	}
	if did := s.log.String()[logged:]; !strings.Contains(did, `change="`+p.Summary+`"`) {
		t.Errorf("planned %q, done:\n%s", p.Summary, did)
	}
	s.among(t, "as planned", 4, heavy)
	if s.mustJSON(&p, "plan"); p.Changes {
		t.Errorf("after the reload: %+v", p)
	}
	s.stop()
	// Without a weir the file alone is known.
	if s.mustJSON(&p, "plan"); !p.Changes || p.Running {
		t.Errorf("without a weir: %+v", p)
	}
}

// TestExplainLive asks about connections that are open and clients that are remembered.
func TestExplainLive(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	for _, p := range []uint16{7, 8, 9} {
		s.serve("tcp", s.Backends, p)
		s.serve("udp", s.Backends, p)
	}
	b := s.Backends
	s.apply(services(
		service("turns", listenOn(1, "7/tcp"), backendList(on("", b...)...)),
		service("masked", listenOn(2, "7/tcp"), backendList(on("", b...)...), "source: masquerade"),
		service("kept", listenOn(3, "7/tcp", "7/udp"), backendList(on("", b...)...), "sticky: 1h"),
		service("ports", listenOn(4, "7/tcp", "7/udp"), backendList(each("7", "8")(b)...), "sticky: 1h"),
		service("range", listenOn(5, "70-72/tcp", "70-72/udp"), backendList(on("7-9", b...)...), "sticky: 1h"),
		service("one", listenOn(6, "7/tcp", "7/udp"), backendList(on("9", b...)...), "sticky: 1h", "source: masquerade")))
	eachFamily(t, func(t *testing.T, f model.Family) {
		t.Run("open", func(t *testing.T) {
			for n := 1; n <= 2; n++ {
				to := netip.AddrPortFrom(vip(f, n), 7)
				for range 3 {
					k := s.talk(t, s.Clients[0], to)
					from := netip.MustParseAddrPort(k.LocalAddr().String())
					x := s.explain(from, to, "tcp", "--live")
					if want := s.backendOf(t, k.ask(t), f, 7); !x.Established || !x.Live || x.Drift || x.Backend != want {
						t.Errorf("the open connection from %s to %s is with %s; weir explains %+v", from, to, want, x)
					}
					wantSource(t, s, x, k.seen, f)
				}
			}
		})
		t.Run("sticky", func(t *testing.T) {
			for n, c := range map[int]struct {
				asked uint16
				port  func(host string) uint16
			}{
				3: {7, func(string) uint16 { return 7 }},
				4: {7, func(h string) uint16 { return map[string]uint16{"backend1": 7, "backend2": 8}[h] }},
				5: {71, func(string) uint16 { return 8 }},
				6: {7, func(string) uint16 { return 9 }},
			} {
				to := netip.AddrPortFrom(vip(f, n), c.asked)
				for _, proto := range []string{"tcp", "udp"} {
					for _, client := range s.Clients {
						id := s.ask(t, client, proto, to).id
						from := netip.AddrPortFrom(addrOf(client, f), s.port())
						x := s.explain(from, to, proto, "--live")
						if want := s.backendOf(t, id, f, c.port(id)); x.Established || x.Backend != want {
							t.Errorf("%s is remembered at %s; weir explains %+v", client.Name, want, x)
						}
						a, err := try(t, client, proto, from.Port(), to)
						check(t, err)
						if a.id != id {
							t.Errorf("%s gets %s, then %s", client.Name, id, a.id)
						}
					}
				}
			}
			stranger := s.explain(netip.AddrPortFrom(held(f, 77), 4000), netip.AddrPortFrom(vip(f, 3), 7), "tcp", "--live")
			if stranger.Backend != "" || len(stranger.Candidates) != 2 {
				t.Errorf("a client that is not known: %+v", stranger)
			}
		})
	})
	s.write(services(service("turns", listenOn(1, "7/tcp"), backendList(on("", b[0])...))))
	if x := s.explain(netip.MustParseAddrPort("203.0.113.9:4000"), netip.AddrPortFrom(vip(4, 1), 7), "tcp", "--live"); !x.Drift {
		t.Errorf("the file has changed and weir does not say that the kernel differs: %+v", x)
	}
}
