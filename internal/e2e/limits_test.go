package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/internal/config"
	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
)

// These tests hold connections open, and count at the servers how many there are.

// limited returns the backends of a service in both families, each host with its limit;
// 0 for none.
func limited(hosts []*lab.Host, most ...int) string {
	var out []string
	for _, f := range families {
		for i, n := range most {
			text := fmt.Sprintf("{address: %q", backend{hosts[i], "", 1}.address(f))
			if n > 0 {
				text += fmt.Sprintf(", max_connections: %d", n)
			}
			out = append(out, text+"}")
		}
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// held is a connection that stays open, and who answers on it.
type heldConn struct {
	*talk
	by string
}

// hold opens a connection that must be there at once.
func (s *site) hold(t *testing.T, f model.Family, n int) heldConn {
	t.Helper()
	before := retried(t, s.Clients[0])
	k := s.talk(t, s.Clients[0], target(f, n, 7))
	wantNoRetry(t, k.RemoteAddr().String(), s.Clients[0], before)
	return heldConn{k, k.ask(t)}
}

// holdMany opens n connections and returns them, and how many each backend has.
func (s *site) holdMany(t *testing.T, f model.Family, at, n int) ([]heldConn, map[string]int) {
	t.Helper()
	var conns []heldConn
	by := map[string]int{}
	for range n {
		c := s.hold(t, f, at)
		conns, by[c.by] = append(conns, c), by[c.by]+1
	}
	return conns, by
}

// wantFull sees that one more connection is refused, and at once.
func (s *site) wantFull(t *testing.T, when string, f model.Family, n int) {
	t.Helper()
	before := retried(t, s.Clients[0])
	_, err := try(t, s.Clients[0], "tcp", s.port(), target(f, n, 7))
	wantRefused(t, when, err)
	wantNoRetry(t, when, s.Clients[0], before)
}

// released waits until a connection is taken again, which must be soon, and returns it.
func (s *site) released(t *testing.T, when string, f model.Family, n int) heldConn {
	t.Helper()
	from := join(addrOf(s.Clients[0], f), 0)
	var c net.Conn
	took := await(t, when+": there is room again", func() bool {
		var err error
		c, err = s.Clients[0].Dial(within(t, patience), "tcp", from, target(f, n, 7).String())
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	if took > patience/2 { // long before it would be tried anyway
		t.Errorf("%s: there was room only after %s", when, took)
	}
	k := &talk{Conn: c, r: bufio.NewReader(c)}
	return heldConn{k, k.ask(t)}
}

// closed closes connections and waits until the kernel has seen the end of all that there
// are. It counts them until its clock has moved on.
func (s *site) closed(t *testing.T, conns ...heldConn) {
	t.Helper()
	for _, c := range conns {
		check(t, c.Close())
	}
	const timeWait = 7 // TCP_CONNTRACK_TIME_WAIT; only CLOSE is above
	await(t, "all have ended", func() bool {
		open := false
		check(t, s.Gateway.Do(func() error {
			c, err := conntrack.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Dump(t.Context(), conntrack.Filter{}, func(f conntrack.Flow) bool {
				open = open || f.Proto == model.TCP && f.TCPState < timeWait
				return true
			})
		}))
		return !open
	})
	time.Sleep(10 * time.Millisecond) // a tick of the kernel's at 100 Hz
}

// fullNow returns how many are full at the moment, as far as the kernel has noticed.
func (s *site) fullNow() int {
	s.t.Helper()
	cfg, err := config.Load(s.config)
	check(s.t, err)
	set := plan.Build(cfg, nil).Ruleset.Tables[0].Set("full")
	n := 0
	check(s.t, s.Gateway.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Elements(s.t.Context(), engine.Tables[0], set, func(nft.Elem) bool { n++; return true })
	}))
	return n
}

// TestLimitOfBackends fills two backends, whose limits must hold at the servers, whatever
// happens to weir and however silent the connections are.
func TestLimitOfBackends(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	servers := s.serve("tcp", s.Backends, 7)
	web := service("web", listenOn(1, "7/tcp"), limited(s.Backends, 3, 2))
	s.write(services(web))
	s.start()
	conns := map[model.Family][]heldConn{}
	each := func(fn func(f model.Family)) {
		for _, f := range families {
			fn(f)
		}
	}
	each(func(f model.Family) {
		var by map[string]int
		if conns[f], by = s.holdMany(t, f, 1, 5); by["backend1"] != 3 || by["backend2"] != 2 {
			t.Errorf("%s: five connections went to %v", f, by)
		}
		s.wantFull(t, "five are open", f, 1)
	})
	for _, b := range s.status("web").Backends {
		if b.Active == nil || *b.Active != b.MaxConnections {
			t.Errorf("status of a full backend: %+v", b)
		}
	}
	// Somebody leaves: the next gets his place, and nobody else's.
	again := func(when string) {
		t.Helper()
		each(func(f model.Family) {
			gone := conns[f][0]
			check(t, gone.Close())
			c := s.released(t, when, f, 1)
			if c.by != gone.by {
				t.Errorf("%s: %s had room, %s got it", when, gone.by, c.by)
			}
			conns[f] = append(conns[f][1:], c)
			s.wantFull(t, when, f, 1)
		})
	}
	again("weir runs")

	s.write(services(web, service("more", listenOn(2, "7/tcp"), limited(s.Backends, 1))))
	s.reload()
	each(func(f model.Family) { s.wantFull(t, "after a reload", f, 1) })
	again("after a reload")

	s.run.Kill()
	each(func(f model.Family) { s.wantFull(t, "without a weir", f, 1) })
	again("without a weir")

	// Silent connections count. That both are full is then forgotten, and found out anew by
	// the next, which finds no room either.
	for start := time.Now(); s.fullNow() > 0; time.Sleep(100 * time.Millisecond) {
		if time.Since(start) > 3*patience {
			t.Fatalf("%d are said to be full for longer than that holds", s.fullNow())
		}
	}
	each(func(f model.Family) { s.wantFull(t, "after a long silence", f, 1) })
	s.start()
	each(func(f model.Family) {
		for _, c := range conns[f] {
			if by := c.ask(t); by != c.by {
				t.Errorf("a connection moved from %s to %s", c.by, by)
			}
		}
		s.wantFull(t, "after a restart", f, 1)
	})
	again("after a restart")
	s.wantPeaks(t, servers, 2*3, 2*2)
	s.stop()
}

// wantPeaks sees that no server had ever more connections than that.
func (s *site) wantPeaks(t *testing.T, servers []*lab.Server, most ...int) {
	t.Helper()
	for i, srv := range servers {
		if n := srv.Peak(); n > most[i] {
			t.Errorf("%s had %d connections, at most %d are allowed", srv.ID, n, most[i])
		}
	}
}

// TestLimitSpills fills one backend of three: what would be its share goes to both others,
// without a delay.
func TestLimitSpills(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	servers := s.serve("tcp", s.Backends, 7)
	var list []string
	for i, balance := range model.BalanceNames() {
		list = append(list, service(balance, listenOn(1+i, "7/tcp"), limited(s.Backends, 1, 0, 0), "balance: "+balance))
	}
	s.apply(services(list...))
	for i, balance := range model.BalanceNames() {
		eachFamily(t, func(t *testing.T, f model.Family) {
			_, by := s.holdMany(t, f, 1+i, 24)
			source := balance == model.Source.String() // one client: at most two backends
			if by["backend1"] > 1 || !source && (by["backend1"] != 1 || by["backend2"] < 3 || by["backend3"] < 3) {
				t.Errorf("%s: %v", balance, by)
			}
		})
	}
	s.wantPeaks(t, servers, 2*len(list), 1000, 1000)
}

// TestLimitOfService fills a service, whose limit holds for both families together, and
// one whose backends have limits too.
func TestLimitOfService(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serve("tcp", s.Backends, 7)
	s.apply(services(
		service("whole", listenOn(1, "7/tcp"), limited(s.Backends, 0, 0), "max_connections: 4"),
		service("both", listenOn(2, "7/tcp"), limited(s.Backends, 2, 2), "max_connections: 3"),
		service("silent", listenOn(3, "7/tcp"), limited(s.Backends, 0, 1), "max_connections: 1", "when_all_down: drop")))
	v4, _ := s.holdMany(t, model.IPv4, 1, 2)
	v6, _ := s.holdMany(t, model.IPv6, 1, 2)
	eachFamily(t, func(t *testing.T, f model.Family) { s.wantFull(t, "whole", f, 1) })
	check(t, v4[0].Close())
	v6 = append(v6, s.released(t, "whole", model.IPv6, 1))
	eachFamily(t, func(t *testing.T, f model.Family) { s.wantFull(t, "whole again", f, 1) })
	s.closed(t, append(v6, v4[1])...)

	eachFamily(t, func(t *testing.T, f model.Family) {
		conns, by := s.holdMany(t, f, 2, 3)
		if by["backend1"] > 2 || by["backend2"] > 2 {
			t.Errorf("both: %v", by)
		}
		s.wantFull(t, "both", f, 2)
		s.closed(t, conns...)
	})
	eachFamily(t, func(t *testing.T, f model.Family) {
		c := s.hold(t, f, 3)
		s.wantSilence(t, s.Clients[0], "tcp", target(f, 3, 7))
		s.closed(t, c)
	})
}

// TestLimitSticky: a client whose backend is full goes to another, and comes back.
func TestLimitSticky(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	s.serve("tcp", s.Backends, 7)
	s.apply(services(service("web", listenOn(1, "7/tcp"), limited(s.Backends, 4, 4), "sticky: 1h")))
	eachFamily(t, func(t *testing.T, f model.Family) {
		conns, by := s.holdMany(t, f, 1, 6)
		first := conns[0].by
		if len(by) != 2 || by[first] != 4 {
			t.Errorf("one client's connections: %v, first to %s", by, first)
		}
		s.closed(t, conns...)
		again, by := s.holdMany(t, f, 1, 3)
		if len(by) != 1 {
			t.Errorf("one client's connections, with room everywhere: %v", by)
		}
		s.closed(t, again...)
	})
}

// TestLimitUDP: flows count until the kernel forgets them, which nobody is told: the next
// is taken once it is asked for again.
func TestLimitUDP(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serve("udp", s.Backends, 7)
	s.apply(services(service("web", listenOn(1, "7/udp"), limited(s.Backends, 2, 1))))
	ask := func(f model.Family) (answer, error) {
		return try(t, s.Clients[0], "udp", s.port(), target(f, 1, 7))
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		var ids []string
		for range 3 {
			a, err := ask(f)
			check(t, err)
			ids = append(ids, a.id)
		}
		if got := tally(ids); got["backend1"] != 2 || got["backend2"] != 1 {
			t.Errorf("three flows went to %v", got)
		}
		_, err := ask(f)
		wantRefused(t, "three flows are known", err)
	})
	s.forgetFlows()
	eachFamily(t, func(t *testing.T, f model.Family) {
		for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			if _, err := ask(f); err == nil {
				return
			}
			if time.Since(start) > 3*patience {
				t.Fatal("no room though all flows are forgotten")
			}
		}
	})
}

// TestLimitManyAtOnce has more clients than places call at the same moment.
func TestLimitManyAtOnce(t *testing.T) {
	t.Parallel()
	const places, callers = 100, 300
	eachFamily(t, func(t *testing.T, f model.Family) {
		s := newSite(t, 1, 2)
		servers := s.serve("tcp", s.Backends, 7)
		s.apply(services(service("web", listenOn(1, "7/tcp"), limited(s.Backends, places, places))))
		var mu sync.Mutex
		var wg sync.WaitGroup
		var open []net.Conn
		refused := 0
		for range callers {
			wg.Go(func() {
				c, err := s.Clients[0].Dial(within(t, patience), "tcp", "", target(f, 1, 7).String())
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					open = append(open, c)
				case errors.Is(err, syscall.ECONNREFUSED):
					refused++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(open) != 2*places || refused != callers-2*places {
			t.Errorf("%d open and %d refused", len(open), refused)
		}
		s.wantPeaks(t, servers, places, places)
		s.wantFull(t, "all places are taken", f, 1)
		for _, c := range open {
			check(t, c.Close())
		}
	})
}

// TestLimitOfRanges counts where listeners and backends have ranges of ports.
func TestLimitOfRanges(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serve("tcp", s.Backends, 7, 8)
	b := s.Backends[0]
	var to []string
	for _, f := range families {
		to = append(to, fmt.Sprintf("{address: %q, max_connections: 2}", backend{b, "7-8", 1}.address(f)))
	}
	s.apply(services(service("web", listenOn(1, "70-71/tcp"), "["+strings.Join(to, ", ")+"]")))
	eachFamily(t, func(t *testing.T, f model.Family) {
		first := s.talk(t, s.Clients[0], target(f, 1, 70))
		second := s.talk(t, s.Clients[0], target(f, 1, 71))
		if by := first.ask(t) + " " + second.ask(t); by != "backend1/7 backend1/8" {
			t.Errorf("ports 70 and 71 lead to %s", by)
		}
		_, err := try(t, s.Clients[0], "tcp", s.port(), target(f, 1, 71))
		wantRefused(t, "two are open", err)
		check(t, first.Close())
		await(t, "there is room again", func() bool {
			_, err := try(t, s.Clients[0], "tcp", s.port(), target(f, 1, 71))
			return err == nil
		})
	})
}
