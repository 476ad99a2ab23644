package e2e

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"weir/internal/lab"
	"weir/internal/model"
)

// udpAsk opens a UDP flow from a port of the client's and returns whom the far side sees.
func (s *site) udpAsk(t *testing.T, client *lab.Host, from, target netip.AddrPort) (netip.AddrPort, error) {
	t.Helper()
	c, err := client.Dial(t.Context(), "udp", from.String(), target.String())
	check(t, err)
	defer c.Close()
	a, err := question(t, c, patience)
	return a.seen, err
}

// TestEgressClientKeepsItsAddress opens 1,000 connections of each of two clients, with a
// reload, a weir that is killed and one that is started again between them.
func TestEgressClientKeepsItsAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	s.serveFar()
	keys := func(more string) string {
		return pools("name: stable, out: "+lab.OutsideDev+", spread: client, addresses: "+poolRange(1, 5),
			"name: other, out: eth7, addresses: "+poolRange(9, 9)+more)
	}
	s.write(keys(""))
	s.start()
	first := map[netip.Addr]netip.Addr{}
	round := func(what string) {
		t.Helper()
		for _, f := range families {
			for _, client := range s.Backends {
				from := addrOf(client, f)
				for i := range 125 {
					network, far := "udp", s.far(f, i%2)
					if i%5 == 0 {
						network = "tcp"
					}
					seen := s.from(t, client, network, far).Addr()
					if first[from] == (netip.Addr{}) {
						first[from] = seen
					}
					if seen != first[from] {
						t.Fatalf("%s: %s has %s, and had %s before", what, from, seen, first[from])
					}
				}
			}
		}
	}
	round("at first")
	s.write(keys(", ports: 2000-2999"))
	s.reload()
	round("after a reload")
	check(t, s.run.Signal(syscall.SIGKILL))
	<-s.run.Done()
	round("with no weir")
	s.start()
	round("after a restart")
	s.stop()
}

// TestEgressAddressMoreMovesItsShare asks for many clients, before and after the pool gets an
// address: those that move go to the new one, and are as many as its share.
func TestEgressAddressMoreMovesItsShare(t *testing.T) {
	t.Parallel()
	const clients, addrs = 1000, 5
	s := newSite(t, 1, 1)
	s.serveFar()
	b := s.Backends[0]
	inside := map[model.Family]netip.Prefix{model.IPv4: netip.MustParsePrefix("10.77.0.0/16"), model.IPv6: netip.MustParsePrefix("2001:db8:77::/64")}
	client := func(f model.Family, i int) netip.Addr {
		a := inside[f].Addr().AsSlice()
		a[len(a)-2], a[len(a)-1] = byte(i>>8), byte(i)
		out, _ := netip.AddrFromSlice(a)
		return out
	}
	for _, f := range families {
		check(t, s.Gateway.Route(inside[f], addrOf(b, f), lab.InsideDev))
	}
	// Any address of those networks is the client's own, without being on a device.
	for _, f := range families {
		out, err := b.Run("ip", map[model.Family]string{model.IPv4: "-4", model.IPv6: "-6"}[f], "route", "add", "local", inside[f].String(), "dev", "lo")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	check(t, b.Sysctl("net.ipv4.ip_nonlocal_bind", "1"))
	check(t, b.Sysctl("net.ipv6.ip_nonlocal_bind", "1"))
	look := func(f model.Family, n int) []netip.Addr {
		s.apply(pools("name: stable, out: " + lab.OutsideDev + ", spread: client, addresses: " + poolRange(1, n)))
		out := make([]netip.Addr, clients)
		for i := range out {
			seen, err := s.udpAsk(t, b, netip.AddrPortFrom(client(f, i+1), s.port()), s.far(f, 0))
			check(t, err)
			out[i] = seen.Addr()
		}
		return out
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		before, after := look(f, addrs), look(f, addrs+1)
		moved := 0
		for i := range before {
			switch {
			case before[i] == after[i]:
			case after[i] != poolAddr(f, addrs+1):
				t.Fatalf("%s moved from %s to %s, which is not the new address", client(f, i+1), before[i], after[i])
			default:
				moved++
			}
		}
		// One sixth of 1,000 is 167; the hash is fixed, so the count does not change from run to run.
		if moved < 120 || moved > 215 {
			t.Errorf("%d of %d clients moved, want about %d", moved, clients, clients/(addrs+1))
		}
		t.Logf("%d of %d clients moved to the new address; a share is %d", moved, clients, clients/(addrs+1))
	})
}

// TestEgressSpills fills the address of a client: with when_full: spill its further
// connections get other addresses, with fail they get none.
func TestEgressSpills(t *testing.T) {
	t.Parallel()
	for _, full := range []string{"spill", "fail"} {
		t.Run(full, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 1, 1)
			s.serveFar()
			s.apply(pools("name: stable, out: " + lab.OutsideDev + ", spread: client+destination, when_full: " + full +
				", addresses: " + poolRange(1, 4) + ", ports: 2000-2049"))
			eachFlow(t, func(t *testing.T, network string, f model.Family) {
				before := s.counted("egress-spilled")
				got := s.crowd(t, crowd{network, s.far(f, 0), 50, 1, long}, s.Backends...) // one by one: two that race for a port are no sign of a full address
				if len(got.addrs()) != 1 || got.lost > 0 {
					t.Fatalf("50 flows have %d addresses, %d lost", len(got.addrs()), got.lost)
				}
				within := long
				if full == "fail" {
					within = short
				}
				more := s.crowd(t, crowd{network, s.far(f, 0), 30, 30, within}, s.Backends...)
				got.close()
				more.close()
				switch {
				case full == "fail" && more.lost != 30:
					t.Errorf("%d of 30 flows found room where there is none", 30-more.lost)
				case full == "spill" && (len(more.seen) != 30 || more.lost != 0):
					t.Errorf("%d of 30 flows got another address, %d lost", len(more.seen), more.lost)
				}
				for a := range got.addrs() {
					if more.addrs()[a] > 0 {
						t.Errorf("%d more flows on %s, which is full", more.addrs()[a], a)
					}
				}
				if n := s.counted("egress-spilled") - before; full == "spill" && n < 30 {
					t.Errorf("%d connections counted as spilled, want 30 at least", n)
				}
			})
		})
	}
}

// counterForm is a counter as nft lists it.
var counterForm = regexp.MustCompile(`counter packets (\d+)`)

// counted returns the packets counted in a set of weir's table.
func (s *site) counted(set string) int {
	s.t.Helper()
	n := 0
	needTool(s.t, "nft")
	out, err := s.Gateway.Run("nft", "list", "set", "inet", "weir", set)
	if err != nil {
		return 0
	}
	for _, m := range counterForm.FindAllStringSubmatch(out, -1) {
		v, err := strconv.Atoi(m[1])
		check(s.t, err)
		n += v
	}
	return n
}

// TestEgressKeepsOpenConnections opens many connections, then changes the pool, reloads, kills
// and restarts weir: none breaks, and none changes its source.
func TestEgressKeepsOpenConnections(t *testing.T) {
	t.Parallel()
	const each, clients = 1250, 4 // times two families: 10,000
	s := newSite(t, 1, clients)
	s.serveFar()
	s.write(pools("name: all, out: " + lab.OutsideDev + ", addresses: " + poolRange(1, 4)))
	s.start()
	type held struct {
		net.Conn
		seen netip.AddrPort
	}
	var open []held
	t.Cleanup(func() {
		for _, h := range open {
			h.Close()
		}
	})
	for _, f := range families {
		for _, client := range s.Backends {
			for range each {
				c, err := client.Dial(t.Context(), "udp", "", s.far(f, 0).String())
				check(t, err)
				a, err := question(t, c, patience)
				check(t, err)
				open = append(open, held{c, a.seen})
			}
		}
	}
	still := func(what string) {
		t.Helper()
		broken := 0
		for _, h := range open {
			if a, err := question(t, h.Conn, patience); err != nil || a.seen != h.seen {
				broken++
			}
		}
		if broken > 0 {
			t.Fatalf("%s: %d of %d connections are broken", what, broken, len(open))
		}
	}
	s.write(pools("name: all, out: " + lab.OutsideDev + ", spread: client, addresses: " + poolRange(5, 9)))
	s.reload()
	still("after the pool has other addresses")
	check(t, s.run.Signal(syscall.SIGKILL))
	<-s.run.Done()
	still("with weir killed")
	s.start()
	still("after a restart")
	for _, f := range families {
		if seen := s.from(t, s.Backends[0], "udp", s.far(f, 0)).Addr(); seen.Compare(poolAddr(f, 5)) < 0 {
			t.Errorf("a new connection has %s, of the pool before", seen)
		}
	}
	s.stop()
}

// TestEgressAssign has weir hold a pool's addresses on the device, in the network of the
// hosts outside, which find them by ARP and neighbour discovery.
func TestEgressAssign(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serveFar()
	entry := func(lo, hi int) string {
		return quoted([]string{held(4, lo).String() + "-" + held(4, hi).String(), held(6, lo).String() + "-" + held(6, hi).String()})
	}
	for _, f := range families { // one is there already: weir must leave it
		check(t, s.Gateway.AddAddr(lab.OutsideDev, netip.PrefixFrom(held(f, 201), held(f, 201).BitLen())))
	}
	s.apply(pools("name: held, out: " + lab.OutsideDev + ", assign: true, addresses: " + entry(200, 202)))
	eachFamily(t, func(t *testing.T, f model.Family) {
		var seen []netip.Addr
		for range 3 {
			seen = append(seen, s.from(t, s.Backends[0], "tcp", s.far(f, 0)).Addr())
		}
		slices.SortFunc(seen, netip.Addr.Compare)
		if want := []netip.Addr{held(f, 200), held(f, 201), held(f, 202)}; !slices.Equal(seen, want) {
			t.Errorf("the far side sees %v, want %v", seen, want)
		}
	})
	s.apply(pools("name: held, out: " + lab.OutsideDev + ", assign: true, addresses: " + entry(200, 200)))
	s.wantHeld(t, 200, true)
	s.wantHeld(t, 201, true) // not weir's
	s.wantHeld(t, 202, false)
}

// TestEgressBlocks gives each client its block: address and ports follow from the client, and
// what is beyond the block fails.
func TestEgressBlocks(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serveFar()
	text := pools("name: cgn, out: " + lab.OutsideDev + ", from: " + quoted([]string{"10.1.1.0/29", "2001:db8:1::/125"}) +
		", block: 20, ports: 2000-2099, addresses: " + poolRange(1, 2))
	s.apply(text)
	eachFlow(t, func(t *testing.T, network string, f model.Family) {
		for i, client := range s.Backends { // their numbers are 1, 2 and 3; five have the first address
			n := i + 1
			got := s.crowd(t, crowd{network, s.far(f, 0), 20, 20, long}, client)
			if len(got.seen) != 20 {
				t.Errorf("%s: %d of 20 flows", client.Name, len(got.seen))
			}
			lo := uint16(2000 + 20*(n%5))
			for a := range got.seen {
				if a.Addr() != poolAddr(f, 1+n/5) || a.Port() < lo || a.Port() > lo+19 {
					t.Errorf("%s has %s, want %s with %d to %d", client.Name, a, poolAddr(f, 1+n/5), lo, lo+19)
				}
			}
			got.close()
		}
	})
}
