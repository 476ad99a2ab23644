package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/model"
)

// The pools' addresses are routed to the gateway: the hosts outside send them there by their
// default routes. Who goes out are the hosts inside, the site's backends.
var poolNets = map[model.Family]netip.Prefix{
	model.IPv4: netip.MustParsePrefix("192.0.2.0/24"), model.IPv6: netip.MustParsePrefix("2001:db8:99::/64")}

// poolAddr returns address n of the pools.
func poolAddr(f model.Family, n int) netip.Addr { return number(poolNets[f], n) }

// poolRange is the addresses from lo to hi in both families, as the key takes them.
func poolRange(lo, hi int) string {
	var out []string
	for _, f := range families {
		out = append(out, poolAddr(f, lo).String()+"-"+poolAddr(f, hi).String())
	}
	return quoted(out)
}

// pools returns a configuration of pools; each is the keys of one.
func pools(list ...string) string { return "egress:\n  - {" + strings.Join(list, "}\n  - {") + "}\n" }

// farPort is where the hosts outside answer.
const farPort = 7

// flows are connections that stay open, by the address and port that the far side sees.
type flows struct {
	mu   sync.Mutex
	open []net.Conn
	seen map[netip.AddrPort]int
	lost int
}

// crowd is connections to open and to keep open.
type crowd struct {
	network string
	target  netip.AddrPort
	each    int           // of each client
	width   int           // how many are opened at a time
	within  time.Duration // for how long one may try again until it is answered
}

const (
	long  = 20 * time.Second // for connections that must come about
	short = 2 * time.Second  // for those that must not
)

// crowd opens the connections and keeps those that are answered.
func (s *site) crowd(t *testing.T, c crowd, clients ...*lab.Host) *flows {
	t.Helper()
	f := &flows{seen: map[netip.AddrPort]int{}}
	t.Cleanup(f.close)
	var wg sync.WaitGroup
	room := make(chan struct{}, c.width)
	for range c.each {
		for _, client := range clients {
			room <- struct{}{}
			wg.Go(func() { f.one(t, client, c); <-room })
		}
	}
	wg.Wait()
	return f
}

func (f *flows) one(t *testing.T, client *lab.Host, c crowd) {
	from := netip.AddrPortFrom(addrOf(client, model.FamilyOf(c.target.Addr())), 0)
	var conn net.Conn
	var a answer
	err := errors.New("not tried")
	for end := time.Now().Add(c.within); err != nil && time.Now().Before(end); {
		if conn == nil {
			ctx, cancel := context.WithTimeout(t.Context(), min(5*time.Second, c.within)) // a SYN is sent again after 1 and 3 s
			conn, err = client.Dial(ctx, c.network, from.String(), c.target.String())
			cancel()
		}
		if conn != nil {
			a, err = question(t, conn, 500*time.Millisecond)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if conn != nil {
		f.open = append(f.open, conn)
	}
	if err != nil {
		f.lost++
		return
	}
	f.seen[a.seen]++
}

// question asks once on an open connection.
func question(t *testing.T, c net.Conn, within time.Duration) (answer, error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return answer{}, err
	}
	if _, err := c.Write([]byte("?\n")); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	if err != nil {
		return answer{}, err
	}
	line, _, _ := strings.Cut(string(buf[:n]), "\n") // a question that was asked again may be answered twice
	return parseAnswer(t, line), nil
}

func (f *flows) close() {
	for _, c := range f.open {
		c.Close()
	}
	f.open = nil
}

// addrs counts the flows by the address that the far side sees.
func (f *flows) addrs() map[netip.Addr]int {
	out := map[netip.Addr]int{}
	for a, n := range f.seen {
		out[a.Addr()] += n
	}
	return out
}

// forget empties the gateway's table of connections.
func (s *site) forget() {
	s.t.Helper()
	needTool(s.t, "conntrack")
	_, _ = s.Gateway.Run("conntrack", "-F")
}

// far is where client i outside answers.
func (s *site) far(f model.Family, i int) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(s.Clients[i], f), farPort)
}

// serveFar starts servers outside.
func (s *site) serveFar() {
	s.serve("tcp", s.Clients, farPort)
	s.serve("udp", s.Clients, farPort)
}

// eachFlow runs a subtest for TCP and UDP in both families.
func eachFlow(t *testing.T, fn func(t *testing.T, network string, f model.Family)) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f model.Family) { fn(t, network, f) })
		})
	}
}

// TestEgressFlowUsesAllOfThePool has one client, and then eight, open as many connections to
// one destination as the pool has ports: 4 addresses with 100 each. Nobody fails. The kernel's
// own range, in its place, gives a client one address.
func TestEgressFlowUsesAllOfThePool(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	for _, clients := range []int{1, 8} {
		t.Run(fmt.Sprintf("%d clients", clients), func(t *testing.T) {
			s := newSite(t, 1, clients)
			s.serveFar()
			fill := func(t *testing.T, network string, f model.Family, within time.Duration) *flows {
				got := s.crowd(t, crowd{network, s.far(f, 0), 400 / clients, 400, within}, s.Backends...)
				got.close()
				return got
			}
			plain := map[string]int{}
			s.nft("add table inet plain; add chain inet plain out { type nat hook postrouting priority 100; }; " +
				"add rule inet plain out oifname " + lab.OutsideDev + " meta l4proto udp snat ip to 192.0.2.1-192.0.2.4:2000-2099; " +
				"add rule inet plain out oifname " + lab.OutsideDev + " meta l4proto udp snat ip6 to [2001:db8:99::1]-[2001:db8:99::4]:2000-2099")
			eachFamily(t, func(t *testing.T, f model.Family) {
				got := fill(t, "udp", f, short)
				plain[f.String()] = len(got.seen)
				if clients == 1 && len(got.seen) > 100 {
					t.Errorf("the kernel's range: %d of 400 flows, want one address's 100", len(got.seen))
				}
			})
			s.nft("delete table inet plain")
			s.forget()
			s.apply(pools("name: all, out: " + lab.OutsideDev + ", addresses: " + poolRange(1, 4) + ", ports: 2000-2099"))
			eachFlow(t, func(t *testing.T, network string, f model.Family) {
				got := fill(t, network, f, long)
				if len(got.seen) != 400 || got.lost != 0 {
					t.Errorf("%d of 400 flows, %d lost", len(got.seen), got.lost)
				}
				for i := range 4 {
					if n := got.addrs()[poolAddr(f, i+1)]; n != 100 {
						t.Errorf("%s has %d flows, want 100", poolAddr(f, i+1), n)
					}
				}
				for a := range got.seen {
					if a.Port() < 2000 || a.Port() > 2099 {
						t.Errorf("port of %s", a)
					}
				}
			})
			t.Logf("the kernel's own range of the same addresses and ports: %v of 400 flows (UDP)", plain)
		})
	}
}

// from asks once and returns whom the far side sees.
func (s *site) from(t *testing.T, client *lab.Host, network string, target netip.AddrPort) netip.AddrPort {
	t.Helper()
	return s.ask(t, client, network, target).seen
}

// TestEgressMatches sends connections that differ in what pools match by, and sees which pool
// they take.
func TestEgressMatches(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 3)
	s.serve("tcp", s.Clients, farPort, 8, 9)
	s.serve("udp", s.Clients, farPort)
	// One of them takes no pool, and leaves with the private address that it has.
	b, out := s.Backends, "leaks: allow, out: "+lab.OutsideDev
	prefixes := func(h *lab.Host) string { return quoted([]string{h.V4.String(), h.V6.String()}) }
	s.apply(fmt.Sprintf("interfaces: {wan: [%s, %s]}\n", lab.OutsideDev, "eth7") + pools(
		"name: to, leaks: allow, out: wan, from: "+prefixes(b[0])+", to: "+prefixes(s.Clients[1])+", addresses: "+poolRange(1, 1),
		"name: ports, "+out+", in: "+lab.InsideDev+", from: "+prefixes(b[0])+", to_ports: [8/tcp], addresses: "+poolRange(2, 2),
		"name: udp, "+out+", from: "+prefixes(b[0])+", protocols: udp, addresses: "+poolRange(3, 3),
		"name: elsewhere, out: eth7, addresses: "+poolRange(4, 4),
		"name: rest, "+out+", from: "+prefixes(b[0])+", except: "+prefixes(s.Clients[2])+", addresses: "+poolRange(5, 5),
		"name: masked, "+out+", from: "+prefixes(b[1])+", addresses: masquerade, ports: 3000-3999"))
	eachFamily(t, func(t *testing.T, f model.Family) {
		at := func(i int, port uint16) netip.AddrPort { return netip.AddrPortFrom(addrOf(s.Clients[i], f), port) }
		for _, c := range []struct {
			words   string
			client  *lab.Host
			network string
			to      netip.AddrPort
			want    netip.Addr
		}{
			{"the first pool that matches", b[0], "tcp", at(1, 8), poolAddr(f, 1)},
			{"by port", b[0], "tcp", at(0, 8), poolAddr(f, 2)},
			{"another port", b[0], "tcp", at(0, 9), poolAddr(f, 5)},
			{"by protocol", b[0], "udp", at(0, farPort), poolAddr(f, 3)},
			{"the rest", b[0], "tcp", at(0, farPort), poolAddr(f, 5)},
			{"except", b[0], "tcp", at(2, farPort), addrOf(b[0], f)},
			{"masquerade", b[1], "tcp", at(0, farPort), s.outside(f)},
			{"masquerade", b[1], "udp", at(0, farPort), s.outside(f)},
			{"no pool", b[2], "tcp", at(0, farPort), addrOf(b[2], f)},
			{"the box itself", s.Gateway, "tcp", at(0, farPort), s.outside(f)},
		} {
			seen := s.from(t, c.client, c.network, c.to)
			if seen.Addr() != c.want {
				t.Errorf("%s: %s sees %s, want %s", c.words, c.to, seen, c.want)
			}
			if lo, hi := uint16(3000), uint16(3999); c.words == "masquerade" && (seen.Port() < lo || seen.Port() > hi) {
				t.Errorf("masquerade: port %d, want %d to %d", seen.Port(), lo, hi)
			}
		}
		if out, err := b[0].Run("ping", "-c", "1", "-W", "5", addrOf(s.Clients[0], f).String()); err != nil {
			t.Errorf("ICMP has no way out: %v\n%s", err, out)
		}
	})
}

// TestEgressOfAService gives a service's connections a source out of a pool, whatever the
// pool matches.
func TestEgressOfAService(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serveAll(s.Backends...)
	list := backendList(on("", s.Backends...)...)
	s.apply(pools("name: lent, out: eth7, from: 10.99.0.0/16, addresses: "+poolRange(1, 3)+", ports: 4000-4999",
		"name: box, out: eth7, addresses: masquerade, ports: 5000-5999") +
		services(service("lent", listenAll(2), list, "source: lent"), service("box", listenAll(3), list, "source: box")))
	eachNetwork(t, 2, func(t *testing.T, network string, target netip.AddrPort) {
		f := model.FamilyOf(target.Addr())
		var seen []netip.Addr
		for range 3 {
			a := s.from(t, s.Clients[0], network, target)
			seen = append(seen, a.Addr())
			if network != "sctp" && (a.Port() < 4000 || a.Port() > 4999) {
				t.Errorf("port %d", a.Port())
			}
		}
		slices.SortFunc(seen, netip.Addr.Compare)
		if want := []netip.Addr{poolAddr(f, 1), poolAddr(f, 2), poolAddr(f, 3)}; network != "http" && !slices.Equal(seen, want) {
			t.Errorf("the backend sees %v, want %v", seen, want)
		}
	})
	eachNetwork(t, 3, func(t *testing.T, network string, target netip.AddrPort) {
		a := s.from(t, s.Clients[0], network, target)
		if a.Addr() != s.inside(model.FamilyOf(target.Addr())) || network != "sctp" && (a.Port() < 5000 || a.Port() > 5999) {
			t.Errorf("the backend sees %s", a)
		}
	})
}

// TestEgressLeavesListenersAlone has a pool that masquerades, on a box with services on some of
// the pool's ports: all ports are used but those.
func TestEgressLeavesListenersAlone(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serveFar()
	list := backendList(on("", s.Backends...)...)
	s.apply(pools("name: box, out: "+lab.OutsideDev+", addresses: masquerade, ports: [5000-5019, 5030-5039]") +
		services(service("five", listenOn(2, "5005/tcp", "5010-5012/udp", "5035/tcp"), list)))
	eachFlow(t, func(t *testing.T, network string, f model.Family) {
		// Which ports the kernel tries depends on chance, so it may take some attempts to
		// have them all; connections beyond find none.
		got := s.crowd(t, crowd{network, s.far(f, 0), 40, 40, short}, s.Backends...)
		got.close()
		if len(got.seen) > 25 || len(got.seen) < 20 {
			t.Errorf("%d flows, want those of 25 ports", len(got.seen))
		}
		for a := range got.seen {
			if slices.Contains([]uint16{5005, 5010, 5011, 5012, 5035}, a.Port()) {
				t.Errorf("%s was handed out, and a service listens there", a)
			}
		}
	})
}
