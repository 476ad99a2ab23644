package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/state"
)

// egress returns what the first pool has in use.
func (s *site) egress() engine.EgressPool {
	s.t.Helper()
	var st engine.EgressStatus
	s.mustJSON(&st, "egress")
	if len(st.Pools) == 0 {
		s.t.Fatalf("no pools: %+v", st)
	}
	return st.Pools[0]
}

// addressOf returns what is known of one address.
func addressOf(t *testing.T, p engine.EgressPool, a netip.Addr) engine.EgressAddress {
	t.Helper()
	i := slices.IndexFunc(p.Addresses, func(o engine.EgressAddress) bool { return o.Address == a })
	if i < 0 {
		t.Fatalf("%s is not in %+v", a, p)
	}
	return p.Addresses[i]
}

// failures returns what the kernel could not do, of a running weir.
func (s *site) failures() (insertFailed, exhaustion, race uint64) {
	s.t.Helper()
	var st engine.EgressStatus
	s.mustJSON(&st, "egress")
	return st.Failures.InsertFailed, st.Failures.Exhaustion, st.Failures.Race
}

// egressSite is a site on which weir runs with one pool of ports 2000 to 2099, and more keys.
func egressSite(t *testing.T, clients, addresses int, more string) *site {
	t.Helper()
	s := newSite(t, 2, clients)
	s.serveFar()
	s.write(pools("name: apis, out: " + lab.OutsideDev + ", addresses: " + poolRange(1, addresses) + more))
	s.start("--metrics", "127.0.0.1:9545")
	return s
}

// fill opens n connections of each client, which must come about, and keeps them open.
func (s *site) fill(t *testing.T, network string, target netip.AddrPort, n int, clients ...*lab.Host) *flows {
	t.Helper()
	return s.crowd(t, crowd{network, target, n, 32, long}, clients...)
}

const hundred = ", ports: 2000-2099"

// TestEgressUsage opens connections through a pool and compares what weir counts, running or
// not, with what the far side sees.
func TestEgressUsage(t *testing.T) {
	t.Parallel()
	s := egressSite(t, 2, 4, hundred)
	compare := func(t *testing.T, network string, f model.Family, got *flows) {
		t.Helper()
		want := fmt.Sprint(got.addrs())
		await(t, "counts are as seen", func() bool {
			p := s.egress()
			count := map[netip.Addr]int{}
			for _, u := range p.Destinations {
				if u.Destination == s.far(f, 0) && u.Protocol == network {
					count[u.Address] = u.InUse
					if u.Ports != 100 || u.Percent != float64(u.InUse) {
						t.Fatalf("%+v", u)
					}
				}
			}
			return fmt.Sprint(count) == want
		})
	}
	eachFlow(t, func(t *testing.T, network string, f model.Family) {
		s.forget()
		got := s.fill(t, network, s.far(f, 0), 30, s.Backends...)
		if got.lost > 0 || len(got.seen) != 60 {
			t.Fatalf("%d flows, %d lost", len(got.seen), got.lost)
		}
		compare(t, network, f, got)
		if p := s.egress(); p.Connections < 60 || p.NewTotal < 60 || addressOf(t, p, poolAddr(f, 1)).InUse != 15 {
			t.Errorf("%+v", p)
		}
		text := s.scrape("http://127.0.0.1:9545/metrics")
		for _, want := range []string{"weir_egress_ports_in_use{%s} 15\n", "weir_egress_ports{%s} 100\n", "weir_egress_ports_used_ratio{%s} 0.15\n", "weir_egress_drained{%s} 0\n"} {
			if want = fmt.Sprintf(want, fmt.Sprintf(`address="%s",pool="apis"`, poolAddr(f, 1))); !strings.Contains(text, want) {
				t.Errorf("no %q in the metrics", want)
			}
		}
		got.close()
	})
	text := s.must("egress", "apis")
	for _, word := range []string{"POOL", "FULL-IN", poolAddr(model.IPv4, 1).String(), "spread flow", "new a second"} {
		if !strings.Contains(text, word) {
			t.Errorf("%q is not in\n%s", word, text)
		}
	}
	if r := s.weir("egress", "nosuch"); r.code != 2 || !strings.Contains(r.stderr, "there are: apis") {
		t.Errorf("%d %s", r.code, r.stderr)
	}
	s.stop()
	s.forget()
	got := s.fill(t, "udp", s.far(model.IPv6, 0), 10, s.Backends...)
	compare(t, "udp", model.IPv6, got)
	if r := s.weir("egress", "nosuch"); r.code != 2 {
		t.Errorf("%d %s", r.code, r.stderr)
	}
}

// TestEgressWarns fills a pool and wants to be told at 80 % and at 95 %, and when it is over.
func TestEgressWarns(t *testing.T) {
	t.Parallel()
	s := egressSite(t, 1, 2, hundred)
	level := func(f model.Family) string {
		var st engine.Status
		s.mustJSON(&st, "status")
		for _, a := range st.Egress {
			if a.Pool == "apis" && a.Destination == s.far(f, 0) {
				return string(a.Level)
			}
		}
		return ""
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, step := range []struct {
			more int
			want string
		}{{156, ""}, {6, "warning"}, {30, "error"}} {
			s.fill(t, "udp", s.far(f, 0), step.more, s.Backends...)
			if step.want == "" { // nothing to wait for but a look
				s.egress()
			}
			await(t, "level "+step.want, func() bool { s.egress(); return level(f) == step.want })
		}
		if text := s.must("status"); !strings.Contains(text, "error: egress pool apis:") {
			t.Errorf("no error in\n%s", text)
		}
		s.forget()
		await(t, "all is well", func() bool { s.egress(); return level(f) == "" })
		var told []string
		for _, e := range s.events(0) {
			if e.Kind == "egress" && strings.Contains(e.Message, s.far(f, 0).String()) && strings.Contains(e.Message, "ports in use") {
				told = append(told, e.To)
			}
		}
		if strings.Join(told, " ") != "warning error ok" {
			t.Errorf("told: %v", told)
		}
	})
}

// TestEgressRelief fills one address by hand: new connections to that destination go to the
// others and none fails, those to another destination use it still; and when it has room again
// it is used again.
func TestEgressRelief(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	s := egressSite(t, 2, 4, hundred)
	hand := s.Backends[1]
	s.nft(fmt.Sprintf("add table inet hand; add chain inet hand out { type nat hook postrouting priority 99; }; "+
		"add rule inet hand out ip saddr %s meta l4proto tcp snat ip to %s:2000-2099; add rule inet hand out ip6 saddr %s meta l4proto tcp snat ip6 to [%s]:2000-2099",
		hand.V4, poolAddr(model.IPv4, 1), hand.V6, poolAddr(model.IPv6, 1)))
	eachFamily(t, func(t *testing.T, f model.Family) {
		full := poolAddr(f, 1)
		relieved := func() int { return addressOf(t, s.egress(), full).Relieved }
		byHand := s.fill(t, "tcp", s.far(f, 0), 100, hand)
		await(t, "relief", func() bool { return relieved() == 1 })
		s.awaitSaid(s.far(f, 0).String() + " avoid " + full.String())
		before, _, _ := s.failures()
		got := s.fill(t, "tcp", s.far(f, 0), 150, s.Backends[0])
		if got.lost > 0 || len(got.seen) != 150 || got.addrs()[full] > 0 {
			t.Errorf("%d lost, seen %v", got.lost, got.addrs())
		}
		if after, _, _ := s.failures(); after != before {
			t.Errorf("%d connections failed on the way", after-before)
		}
		if other := s.fill(t, "tcp", s.far(f, 1), 40, s.Backends[0]); other.addrs()[full] != 10 {
			t.Errorf("to another destination: %v", other.addrs())
		}
		// The far side must have seen their end, or it takes new ones from the same ports for them.
		got.close()
		byHand.close()
		await(t, "the end of connections", func() bool {
			out, err := s.Gateway.Run("conntrack", "-L", "-p", "tcp", "--orig-dst", s.far(f, 0).Addr().String(),
				"-f", map[model.Family]string{model.IPv4: "ipv4", model.IPv6: "ipv6"}[f])
			// Whoever has something to say yet would be picked up, with the port that it has, when all is forgotten.
			return err == nil && !slices.ContainsFunc([]string{"ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"}, func(state string) bool {
				return strings.Contains(out, state)
			})
		})
		s.forget()
		awaitWithin(t, 3*patience, "no relief", func() bool { return relieved() == 0 })
		s.awaitSaid(s.far(f, 0).String() + " go to all addresses again")
		if again := s.fill(t, "tcp", s.far(f, 0), 40, s.Backends[0]); again.addrs()[full] != 10 {
			t.Errorf("with room again: %v", again.addrs())
		}
	})
}

// awaitSaid waits until weir says that of a pool, and does it.
func (s *site) awaitSaid(words string) {
	s.t.Helper()
	await(s.t, words, func() bool {
		return slices.ContainsFunc(s.events(0), func(e engine.Event) bool { return e.Kind == "egress" && strings.Contains(e.Message, words) })
	})
	awaitApplied(s.t, s)
}

// awaitApplied waits until the kernel does what weir knows.
func awaitApplied(t *testing.T, s *site) {
	t.Helper()
	await(t, "applied", func() bool {
		var st engine.Status
		s.mustJSON(&st, "status")
		return st.Applied != nil && *st.Applied
	})
}

// TestEgressStableWhenFull fills the address of the one client of a stable pool.
func TestEgressStableWhenFull(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"spill", "fail"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			s := egressSite(t, 1, 4, ", ports: 2000-2049, spread: client, when_full: "+when)
			eachFamily(t, func(t *testing.T, f model.Family) {
				first := s.fill(t, "tcp", s.far(f, 0), 40, s.Backends[0])
				if len(first.addrs()) != 1 || first.lost > 0 {
					t.Fatalf("a client's connections: %v, %d lost", first.addrs(), first.lost)
				}
				within := long
				if when == "fail" {
					within = short
				}
				more := s.crowd(t, crowd{"tcp", s.far(f, 0), 40, 40, within}, s.Backends[0])
				p := s.egress()
				if when == "spill" {
					if more.lost > 0 || len(more.addrs()) < 2 {
						t.Errorf("%d lost; %v", more.lost, more.addrs())
					}
					if p.Spilled == 0 && p.Relieved == 0 {
						t.Errorf("nothing is counted: %+v", p)
					}
					return
				}
				if len(more.addrs()) > 1 || len(more.seen) != 10 || more.lost != 30 || p.Relieved != 0 || p.Spilled != 0 {
					t.Errorf("%d lost, %v, %+v", more.lost, more.addrs(), p)
				}
				if failed, exhaustion, race := s.failures(); failed < 30 || exhaustion != failed || race != 0 {
					t.Errorf("%d failures, %d of exhaustion, %d of races", failed, exhaustion, race)
				}
			})
		})
	}
}

// TestEgressDrain drains addresses: no new connections, open ones go on, then it is free; at
// the deadline what is left is cut; and a weir that was killed knows it still.
func TestEgressDrain(t *testing.T) {
	t.Parallel()
	s := egressSite(t, 1, 3, hundred)
	eachFamily(t, func(t *testing.T, f model.Family) {
		one, two := poolAddr(f, 1), poolAddr(f, 2)
		stateOf := func(a netip.Addr) state.Name { return addressOf(t, s.egress(), a).State }
		open := s.fill(t, "tcp", s.far(f, 0), 30, s.Backends[0])
		if len(open.addrs()) != 3 {
			t.Fatal(open.addrs())
		}
		if text := s.must("egress", "drain", one.String()); !strings.Contains(text, "draining") {
			t.Error(text)
		}
		fresh := s.fill(t, "tcp", s.far(f, 0), 30, s.Backends[0])
		if fresh.addrs()[one] > 0 || fresh.lost > 0 {
			t.Errorf("new connections: %v, %d lost", fresh.addrs(), fresh.lost)
		}
		for _, c := range open.open {
			if _, err := question(t, c, patience); err != nil {
				t.Errorf("an open connection: %v", err)
			}
		}
		await(t, "10 connections are left", func() bool { return addressOf(t, s.egress(), one).Connections == 10 })
		if a := addressOf(t, s.egress(), one); a.State != state.Draining {
			t.Errorf("%+v", a)
		}
		check(t, s.run.Signal(syscall.SIGKILL))
		<-s.run.Done()
		s.start()
		if a := addressOf(t, s.egress(), one); a.State != state.Draining || a.Connections != 10 {
			t.Errorf("after kill -9: %+v", a)
		}
		if fresh := s.fill(t, "tcp", s.far(f, 0), 10, s.Backends[0]); fresh.addrs()[one] > 0 {
			t.Errorf("after kill -9: %v", fresh.addrs())
		}
		s.must("egress", "drain", two.String(), "--deadline", "1s")
		await(t, two.String()+" is cut", func() bool { return stateOf(two) == state.Drained })
		if a := addressOf(t, s.egress(), two); a.Connections != 0 {
			t.Errorf("%+v", a)
		}
		if r := s.weir("egress", "drain", poolAddr(f, 3).String()); r.code != 1 || !strings.Contains(r.stderr, "last address") {
			t.Errorf("the last address: %d %s", r.code, r.stderr)
		}
		if r := s.weir("egress", "drain", "203.0.113.99"); r.code != 2 {
			t.Errorf("no one's address: %d %s", r.code, r.stderr)
		}
		_, _ = s.Gateway.Run("conntrack", "-D", "-f", map[model.Family]string{model.IPv4: "ipv4", model.IPv6: "ipv6"}[f], "--reply-dst", one.String())
		await(t, one.String()+" is free", func() bool { return stateOf(one) == state.Drained })
		if !slices.ContainsFunc(s.events(0), func(e engine.Event) bool {
			return e.Kind == "egress" && e.Address == one.String() && strings.Contains(e.Message, "is free")
		}) {
			t.Error("nobody was told")
		}
		s.must("egress", "enable", one.String())
		s.must("egress", "enable", two.String())
		if again := s.fill(t, "tcp", s.far(f, 0), 30, s.Backends[0]); len(again.addrs()) != 3 {
			t.Errorf("enabled again: %v", again.addrs())
		}
	})
}

// TestEgressTakenPorts has the box listen on a port of a pool whose addresses it holds.
func TestEgressTakenPorts(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serveFar()
	s.write(pools("name: apis, out: " + lab.OutsideDev + ", assign: true, addresses: " + poolRange(1, 1) + ", ports: 2048-2055"))
	s.start()
	l, err := s.Gateway.Listen("tcp", "[::]:2050")
	check(t, err)
	defer l.Close()
	await(t, "the port is taken", func() bool { p := s.egress(); return p.Taken == 1 && p.Addresses[0].Ports == 7 })
	awaitApplied(t, s)
	eachFamily(t, func(t *testing.T, f model.Family) {
		got := s.fill(t, "udp", s.far(f, 0), 7, s.Backends[0])
		if got.lost > 3 { // by turns of the parts that it cuts, a search may end in a full one
			t.Errorf("%d of 7 lost", got.lost)
		}
		for a := range got.seen {
			if a.Port() == 2050 {
				t.Errorf("the port of a listener was handed out: %s", a)
			}
		}
	})
}

func awaitWithin(t *testing.T, d time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}
