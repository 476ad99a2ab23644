package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// memory is what the kernel remembers of a client of a sticky service.
type memory struct {
	backend netip.Addr
	left    time.Duration
}

// remembered returns what is remembered of the clients of a service. Where memory is by
// port, one of a client's counts.
func (s *site) remembered(name string, f model.Family) map[netip.Addr]memory {
	s.t.Helper()
	cfg, err := config.Load(s.config)
	check(s.t, err)
	p := plan.Build(cfg, nil)
	out := map[netip.Addr]memory{}
	size := map[model.Family]int{model.IPv4: 4, model.IPv6: 16}[f]
	for _, pool := range p.Pools {
		if pool.Service.Name != name || pool.Family != f {
			continue
		}
		set := p.Ruleset.Tables[0].Set(pool.StickyMap)
		check(s.t, s.Gateway.Do(func() error {
			c, err := nft.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Elements(s.t.Context(), engine.Tables[0], set, func(e nft.Elem) bool {
				client, _ := netip.AddrFromSlice([]byte(e.Key[len(e.Key)-size:]))
				to, _ := netip.AddrFromSlice([]byte(e.Data[:size]))
				if e.Key[:4] == string(ruleset.AppendInteger(nil, pool.Base)) {
					out[client] = memory{to, e.Expires}
				}
				return true
			})
		}))
	}
	return out
}

// stickyShapes are the forms of listeners and backends that remember clients in other
// maps, or in other ways.
var stickyShapes = []struct {
	name     string
	ports    string // of the listener
	backends func([]*lab.Host) []backend
	asked    []uint16 // ports among which a client keeps its backend
}{
	{"kept", "7", twice(""), []uint16{7}},
	{"one other port", "70", twice("7"), []uint16{70}},
	{"two other ports", "70", each("7", "8"), []uint16{70}},
	{"a list, kept", "7,8", twice(""), []uint16{7, 8}},
	{"a range, kept", "7-9", twice(""), []uint16{7, 9, 8}},
	{"a range to one port", "70-79", twice("9"), []uint16{70, 79}},
	// Here the backend's port follows from the listener's: each port remembers for itself.
	{"a range translated", "70-72", twice("7-9"), []uint16{71}},
}

// TestSticky sees that a client keeps the backend it got, while others get their turn.
func TestSticky(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 2)
	protos := []string{"tcp", "udp", "sctp"}
	var list []string
	for _, proto := range protos {
		for _, p := range []uint16{7, 8, 9} {
			s.serve(proto, s.Backends, p)
		}
	}
	at := func(shape, proto int) int { return 1 + shape*len(protos) + proto }
	for i, sh := range stickyShapes {
		for j, proto := range protos {
			list = append(list, service(fmt.Sprintf("s%d", at(i, j)), listenOn(at(i, j), sh.ports+"/"+proto),
				backendList(sh.backends(s.Backends)...), "sticky: 1h"))
		}
	}
	s.apply(services(list...))
	for i, sh := range stickyShapes {
		t.Run(sh.name, func(t *testing.T) {
			for j, proto := range protos {
				eachFamily(t, func(t *testing.T, f model.Family) {
					ask := func(client int, n int) string {
						target := netip.AddrPortFrom(vip(f, at(i, j)), sh.asked[n%len(sh.asked)])
						return s.ask(t, s.Clients[client], proto, target).id
					}
					var home [3]string
					for c := range s.Clients {
						home[c] = ask(c, 0)
					}
					if home[0] == home[1] || home[0] != home[2] {
						t.Errorf("%s: three clients in turn got %v", proto, home)
					}
					for n := range 6 {
						for c, want := range home {
							if got := ask(c, n); got != want {
								t.Errorf("%s: client %d got %s, then %s", proto, c, want, got)
							}
						}
					}
				})
			}
		})
	}
}

// TestStickyAcrossProtocols sees that a client of a service keeps its backend also when it
// comes with another protocol.
func TestStickyAcrossProtocols(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	s.serveAll(s.Backends...)
	s.apply(services(service("all", listenAll(1), backendList(on("", s.Backends...)...), "sticky: 1h")))
	first := map[*lab.Host]map[model.Family]string{s.Clients[0]: {}, s.Clients[1]: {}}
	eachNetwork(t, 1, func(t *testing.T, network string, target netip.AddrPort) {
		for c, home := range first {
			f := model.FamilyOf(target.Addr())
			id := s.ask(t, c, network, target).id
			if home[f] == "" {
				home[f] = id
			}
			if id != home[f] {
				t.Errorf("%s: %s by %s, %s before", c.Name, id, network, home[f])
			}
		}
	})
}

// TestStickyTime sees that a client is remembered for as long as it comes, and forgotten
// when it stays away.
func TestStickyTime(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serve("tcp", s.Backends, 7)
	s.serve("udp", s.Backends, 7)
	list := backendList(on("", s.Backends...)...)
	s.apply(services(
		service("long", listenOn(1, "7/tcp", "7/udp"), list, "sticky: 1h"),
		service("short", listenOn(2, "7/tcp", "7/udp"), list, "sticky: 1s")))
	client := s.Clients[0]
	for _, network := range []string{"tcp", "udp"} {
		eachFamily(t, func(t *testing.T, f model.Family) {
			left := func() time.Duration { return s.remembered("long", f)[addrOf(client, f)].left }
			s.ask(t, client, network, netip.AddrPortFrom(vip(f, 1), 7))
			var before time.Duration
			await(t, "time passes", func() bool {
				before = left()
				return before < time.Hour-200*time.Millisecond
			})
			s.ask(t, client, network, netip.AddrPortFrom(vip(f, 1), 7))
			if after := left(); after <= before {
				t.Errorf("%s: %s was left, and %s after the client came again", network, before, after)
			}

			target := netip.AddrPortFrom(vip(f, 2), 7)
			first := s.ask(t, client, network, target).id
			await(t, "the client is forgotten", func() bool {
				_, there := s.remembered("short", f)[addrOf(client, f)]
				return !there
			})
			if next := s.ask(t, client, network, target).id; next == first {
				t.Errorf("%s: forgotten, and not the next in turn: %s again", network, next)
			}
		})
	}
}

// TestStickyBackendGoes takes a backend's weight or the backend itself away: its clients
// move and are forgotten there, those of others stay, and so does what is established.
func TestStickyBackendGoes(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 3)
	for _, p := range []uint16{7, 8, 9} {
		s.serve("tcp", s.Backends, p)
		s.serve("udp", s.Backends, p)
	}
	b := s.Backends
	type shape struct {
		ports, backend, proto string
	}
	var shapes []shape
	for _, proto := range []string{"tcp", "udp"} {
		shapes = append(shapes, shape{"7", "", proto}, shape{"70", "7", proto}, shape{"70-72", "7-9", proto})
	}
	config := func(gone []backend) string {
		var list []string
		for i, sh := range shapes {
			var now []backend
			for _, g := range append([]backend{{b[1], "", 1}, {b[2], "", 1}}, gone...) {
				now = append(now, backend{g.host, sh.backend, g.weight})
			}
			list = append(list, service(fmt.Sprintf("s%d", i), listenOn(i+1, sh.ports+"/"+sh.proto),
				backendList(now...), "sticky: 1h"))
		}
		return services(list...)
	}
	whole := config([]backend{{b[0], "", 1}})
	for _, c := range []struct {
		name string
		gone []backend
		run  bool // `weir run` reloads; else `weir apply`
	}{
		{"weight 0, run", []backend{{b[0], "", 0}}, true},
		{"out of the file, run", nil, true},
		{"weight 0, apply", []backend{{b[0], "", 0}}, false},
		{"out of the file, apply", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.must("clear") // what was remembered, too
			s.apply(whole)
			change := s.apply
			if c.run {
				s.start()
				defer s.stop()
				change = func(text string) { s.write(text); s.reload() }
			}
			for i, sh := range shapes {
				port := uint16(7)
				if sh.backend != "" {
					port = 70
				}
				eachFamily(t, func(t *testing.T, f model.Family) {
					target := netip.AddrPortFrom(vip(f, i+1), port)
					s.backendGoes(t, fmt.Sprintf("s%d", i), sh.proto, target,
						func() { change(config(c.gone)) }, func() { change(whole) })
				})
			}
		})
	}
}

// backendGoes gives three clients a backend each and takes backend1 away, and back.
func (s *site) backendGoes(t *testing.T, name, network string, target netip.AddrPort, away, back func()) {
	t.Helper()
	f := model.FamilyOf(target.Addr())
	var home [3]string
	for i, c := range s.Clients {
		home[i] = s.ask(t, c, network, target).id
	}
	if got := tally(home[:]); len(got) != 3 {
		t.Fatalf("three clients got %v", home)
	}
	var open *talk
	for i, c := range s.Clients {
		if home[i] == "backend1" && network == "tcp" {
			open = s.talk(t, c, target)
		}
	}
	before := s.remembered(name, f)
	away()
	for client, m := range s.remembered(name, f) {
		if m.backend == addrOf(s.Backends[0], f) {
			t.Errorf("%s is still remembered at backend1", client)
		}
		if m.backend != before[client].backend {
			t.Errorf("%s was remembered at %s and is at %s", client, before[client].backend, m.backend)
		}
	}
	if len(before) != 3 || len(s.remembered(name, f)) != 2 {
		t.Errorf("%d clients were remembered and %d are", len(before), len(s.remembered(name, f)))
	}
	for i, c := range s.Clients {
		for range 2 {
			switch got := s.ask(t, c, network, target).id; {
			case home[i] == "backend1" && got == "backend1":
				t.Errorf("%s still gets backend1", c.Name)
			case home[i] != "backend1" && got != home[i]:
				t.Errorf("%s had %s and gets %s", c.Name, home[i], got)
			}
		}
	}
	if open != nil {
		if got := open.ask(t); got != "backend1" {
			t.Errorf("the open connection is answered by %s", got)
		}
	}
	back()
	for i, c := range s.Clients {
		if got := s.ask(t, c, network, target).id; home[i] != "backend1" && got != home[i] {
			t.Errorf("backend1 is back: %s had %s and gets %s", c.Name, home[i], got)
		}
	}
}
