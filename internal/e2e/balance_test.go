package e2e

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"testing"

	"weir/internal/conntrack"
	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
)

// networks are the kinds of connection that are tried, and the ports of their servers.
var networks = []struct {
	name  string
	proto string
	port  uint16
}{{"http", "tcp", 80}, {"tcp", "tcp", 7}, {"udp", "udp", 7}, {"sctp", "sctp", 7}}

// serveAll starts a server of each kind on each host.
func (s *site) serveAll(hosts ...*lab.Host) {
	for _, n := range networks {
		s.serve(n.name, hosts, n.port)
	}
}

// eachNetwork runs a subtest for each kind of connection and family, to vip n.
func eachNetwork(t *testing.T, n int, fn func(t *testing.T, network string, target netip.AddrPort)) {
	for _, nw := range networks {
		eachFamily(t, func(t *testing.T, f model.Family) {
			t.Run(nw.name, func(t *testing.T) { fn(t, nw.name, netip.AddrPortFrom(vip(f, n), nw.port)) })
		})
	}
}

// listenAll is the listeners that eachNetwork asks.
func listenAll(n int) string { return listenOn(n, "80/tcp", "7/tcp", "7/udp", "7/sctp") }

// TestRoundRobin sees that the turns are exact: two backends alternate, and weights give
// exact counts in every round, for one connection after the other and for many at once.
func TestRoundRobin(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serveAll(s.Backends...)
	b := s.Backends
	s.apply(services(
		service("two", listenAll(2), backendList(on("", b[0], b[1])...)),
		service("weighted", listenAll(3), backendList(backend{b[0], "", 2}, backend{b[1], "", 1}, backend{b[2], "", 1})),
		service("zero", listenAll(4), backendList(backend{b[0], "", 3}, backend{b[1], "", 0}, backend{b[2], "", 3})),
	))
	t.Run("two alternate", func(t *testing.T) {
		eachNetwork(t, 2, func(t *testing.T, network string, target netip.AddrPort) {
			ids := s.askMany(t, s.Clients[0], network, target, 9)
			for i := 1; i < len(ids); i++ {
				if ids[i] == ids[i-1] {
					t.Fatalf("%s twice in turn: %v", ids[i], ids)
				}
			}
			if got := tally(ids); len(got) != 2 {
				t.Errorf("not two backends: %v", got)
			}
		})
	})
	t.Run("weights 2:1:1", func(t *testing.T) {
		eachNetwork(t, 3, func(t *testing.T, network string, target netip.AddrPort) {
			ids := s.askMany(t, s.Clients[0], network, target, 12)
			for round := 0; round < len(ids); round += 4 {
				got := tally(ids[round : round+4])
				if got["backend1"] != 2 || got["backend2"] != 1 || got["backend3"] != 1 {
					t.Errorf("round %d: %v", round/4, ids[round:round+4])
				}
			}
		})
	})
	t.Run("weight 0 gets none", func(t *testing.T) {
		eachNetwork(t, 4, func(t *testing.T, network string, target netip.AddrPort) {
			got := tally(s.askMany(t, s.Clients[0], network, target, 6))
			if got["backend1"] != 3 || got["backend3"] != 3 {
				t.Errorf("got %v", got)
			}
		})
	})
	t.Run("many at once", func(t *testing.T) {
		eachNetwork(t, 3, func(t *testing.T, network string, target netip.AddrPort) {
			var (
				wg  sync.WaitGroup
				mu  sync.Mutex
				got = map[string]int{}
			)
			for range 40 {
				wg.Go(func() {
					a, err := try(t, s.Clients[0], network, s.port(), target)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Error(err)
					}
					got[a.id]++
				})
			}
			wg.Wait()
			if got["backend1"] != 20 || got["backend2"] != 10 || got["backend3"] != 10 {
				t.Errorf("got %v of 40", got)
			}
		})
	})
}

// TestRandom sees shares as far from their weights as chance allows, 5 standard
// deviations (once in 1.7 million), and no order in them.
func TestRandom(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serve("udp", s.Backends, 7)
	s.serve("tcp", s.Backends, 7)
	b := s.Backends
	s.apply(services(
		service("even", listenOn(2, "7/udp", "7/tcp"), backendList(on("", b...)...), "balance: random"),
		service("three", listenOn(3, "7/udp", "7/tcp"), backendList(backend{b[0], "", 3}, backend{b[1], "", 1}), "balance: random"),
	))
	for _, network := range []string{"udp", "tcp"} {
		eachFamily(t, func(t *testing.T, f model.Family) {
			const n = 300
			t.Run(network, func(t *testing.T) {
				ids := s.askMany(t, s.Clients[0], network, netip.AddrPortFrom(vip(f, 2), 7), n)
				binomial(t, "share of even weights", tally(ids)["backend1"], n, 0.5)
				again := 0
				for i := 1; i < n; i++ {
					if ids[i] == ids[i-1] {
						again++
					}
				}
				binomial(t, "same backend again", again, n-1, 0.5)
				ids = s.askMany(t, s.Clients[0], network, netip.AddrPortFrom(vip(f, 3), 7), n)
				binomial(t, "share of weight 3 beside 1", tally(ids)["backend1"], n, 0.75)
			})
		})
	}
}

// binomial checks that k of n is within 5 standard deviations of p.
func binomial(t *testing.T, what string, k, n int, p float64) {
	t.Helper()
	mean, sd := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if math.Abs(float64(k)-mean) > 5*sd {
		t.Errorf("%s: %d of %d, want %.0f ± %.0f", what, k, n, mean, 5*sd)
	}
}

// seed is the hash seed of the tests' configurations, another than the default.
const seed = 0x5eed1234

// chooser computes what the kernel should choose.
type chooser struct {
	hosts []string // by index of the table
	table []int32
	bySrc bool
}

// newChooser makes the table of a service whose backends have these weights.
func newChooser(f model.Family, bySource bool, backends []backend) chooser {
	c := chooser{bySrc: bySource}
	var members []flow.Member
	for _, b := range backends {
		members = append(members, flow.Member{ID: b.address(f), Weight: b.weight})
		c.hosts = append(c.hosts, b.host.Name)
	}
	c.table = flow.Maglev(members, flow.TableSize(len(members)))
	return c
}

// host returns the name of the backend of a client.
func (c chooser) host(client netip.AddrPort) string {
	var buf [flow.KeySize]byte
	key := flow.KeySourcePort(&buf, client.Addr(), client.Port())
	if c.bySrc {
		key = flow.KeySource(&buf, client.Addr())
	}
	return c.hosts[c.table[flow.Choose(key, seed, uint32(len(c.table)), 0)]]
}

// forgetFlows empties the gateway's connection table, so that the same client port makes
// a new connection.
func (s *site) forgetFlows() {
	s.t.Helper()
	check(s.t, s.Gateway.Do(func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		var deleteErr error
		err = c.Dump(s.t.Context(), conntrack.Filter{}, func(f conntrack.Flow) bool {
			_, deleteErr = c.Delete(s.t.Context(), f)
			return deleteErr == nil
		})
		if err != nil {
			return err
		}
		return deleteErr
	}))
}

// TestMaglev sees that the kernel chooses for each client port what flow computes, by
// weight, the same again when asked again, and that a backend that goes takes only its
// own flows with it, and few others.
func TestMaglev(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serveAll(s.Backends...)
	b := s.Backends
	all := []backend{{b[0], "7", 2}, {b[1], "7", 1}, {b[2], "7", 1}}
	config := func(list []backend) string {
		return fmt.Sprintf("hash_seed: %#x\n", seed) + services(
			service("hashed", listenOn(2, "70/udp", "70/tcp", "70/sctp"), backendList(list...), "balance: maglev"))
	}
	s.apply(config(all))
	const n = 150
	ports := make([]uint16, n)
	for i := range ports {
		ports[i] = s.port()
	}
	// who asks from every port, compares with what flow says, and returns the answers.
	who := func(t *testing.T, f model.Family, network string, ports []uint16, list []backend) []string {
		t.Helper()
		want := newChooser(f, false, list)
		var got []string
		for _, p := range ports {
			client := netip.AddrPortFrom(addrOf(s.Clients[0], f), p)
			a, err := try(t, s.Clients[0], network, p, netip.AddrPortFrom(vip(f, 2), 70))
			check(t, err)
			if w := want.host(client); a.id != w {
				t.Errorf("%s from %s: %s, flow says %s", network, client, a.id, w)
			}
			got = append(got, a.id)
		}
		return got
	}
	first := map[model.Family][]string{}
	eachFamily(t, func(t *testing.T, f model.Family) {
		first[f] = who(t, f, "udp", ports, all)
		binomial(t, "share of weight 2 of 4", tally(first[f])["backend1"], n, 0.5)
		who(t, f, "tcp", ports[:40], all)
		who(t, f, "sctp", ports[:10], all)
	})
	s.forgetFlows()
	eachFamily(t, func(t *testing.T, f model.Family) {
		again := who(t, f, "udp", ports, all)
		if moved := moves(first[f], again, ""); moved != 0 {
			t.Errorf("%d of %d chose another backend when asked again", moved, n)
		}
	})
	for _, gone := range []struct {
		name string
		list []backend
	}{
		{"weight 0", []backend{{b[0], "7", 2}, {b[1], "7", 1}, {b[2], "7", 0}}},
		{"out of the file", all[:2]},
	} {
		t.Run(gone.name, func(t *testing.T) {
			s.apply(config(gone.list))
			s.forgetFlows()
			eachFamily(t, func(t *testing.T, f model.Family) {
				now := who(t, f, "udp", ports, gone.list)
				if tally(now)["backend3"] != 0 {
					t.Errorf("backend3 is gone and answers: %v", tally(now))
				}
				if moved := moves(first[f], now, "backend3"); moved > n/10 {
					t.Errorf("%d of %d moved that were not of backend3", moved, n)
				}
			})
		})
	}
}

// moves counts who has another backend than before, leaving out those who were of one.
func moves(before, after []string, except string) int {
	n := 0
	for i := range before {
		if before[i] != except && before[i] != after[i] {
			n++
		}
	}
	return n
}

// TestSource sees that a client address always gets the same backend, the one that flow
// computes, whatever its port and protocol.
func TestSource(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serveAll(s.Backends...)
	b := s.Backends
	list := []backend{{b[0], "7", 2}, {b[1], "7", 1}, {b[2], "7", 1}}
	const clients = 24
	client := s.Clients[0]
	// More addresses make more clients out of one host. They come first: the kernel needs a
	// moment until it answers for a new IPv6 address.
	for i := range clients {
		for _, f := range families {
			a := held(f, 100+i)
			check(t, client.AddAddr(lab.HostDev, netip.PrefixFrom(a, a.BitLen())))
		}
	}
	s.apply(fmt.Sprintf("hash_seed: %#x\n", seed) + services(
		service("hashed", listenOn(2, "70/udp", "70/tcp", "70/sctp"), backendList(list...), "balance: source")))
	eachFamily(t, func(t *testing.T, f model.Family) {
		want := newChooser(f, true, list)
		var got []string
		for i := range clients {
			a := held(f, 100+i)
			for _, network := range []string{"udp", "udp", "tcp", "sctp"} {
				from := netip.AddrPortFrom(a, s.port())
				reply, err := client.AskFrom(t.Context(), network, from.String(), join(vip(f, 2), 70))
				check(t, err)
				if w := want.host(from) + " " + from.String(); reply != w {
					t.Errorf("%s from %s: answer %q, flow says %q", network, from, reply, w)
				}
				got = append(got, want.host(from))
			}
		}
		if len(tally(got)) != 3 {
			t.Errorf("%d clients use only %v", clients, tally(got))
		}
	})
}
