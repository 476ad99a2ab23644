package e2e

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/model"
)

// idle is a connection on which nobody says anything any more.
type idle struct {
	*talk
	backend string
	client  netip.AddrPort
	listen  netip.AddrPort
}

// idles opens n connections to a target and asks once on each.
func (s *site) idles(t *testing.T, to netip.AddrPort, n int) []idle {
	t.Helper()
	var out []idle
	for range n {
		k := s.talk(t, s.Clients[0], to)
		out = append(out, idle{k, k.ask(t), netip.MustParseAddrPort(k.LocalAddr().String()), to})
	}
	return out
}

// hear returns how listening on a connection ends.
func (k idle) hear(patience time.Duration) error {
	if err := k.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := k.r.ReadByte()
	return err
}

// hearAll listens on all at the same time.
func hearAll(list []idle, patience time.Duration) []error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, k := range list {
		wg.Go(func() { errs[i] = k.hear(patience) })
	}
	wg.Wait()
	return errs
}

// wantResets wants every one of them to end with a reset, though nothing is sent on it.
func wantResets(t *testing.T, list []idle) {
	t.Helper()
	start := time.Now()
	for i, err := range hearAll(list, patience) {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s from %s: %v, want a reset", list[i].listen, list[i].client, err)
		}
	}
	t.Logf("%d resets, the last %s after the backend's state was seen", len(list), time.Since(start).Round(time.Millisecond))
}

// wantQuiet wants nothing to come on any of them, and that they work.
func wantQuiet(t *testing.T, list []idle) {
	t.Helper()
	for i, err := range hearAll(list, silence) {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s from %s: %v, want nothing", list[i].listen, list[i].client, err)
		} else if id := list[i].ask(t); id != list[i].backend {
			t.Errorf("%s from %s goes on with %s, not with %s", list[i].listen, list[i].client, id, list[i].backend)
		}
	}
}

// split parts the connections of one backend from the others.
func split(list []idle, h *lab.Host) (its, others []idle) {
	for _, k := range list {
		if k.backend == h.Name {
			its = append(its, k)
		} else {
			others = append(others, k)
		}
	}
	return its, others
}

// wantAgain wants the clients of connections that were reset to be served anew, from the
// ports that they had.
func (s *site) wantAgain(t *testing.T, list []idle, by *lab.Host) {
	t.Helper()
	for _, k := range list {
		check(t, k.Close())
		var c net.Conn
		var err error
		await(t, "the port is free", func() bool { // a fork elsewhere may hold the socket for a moment
			c, err = s.Clients[0].Dial(within(t, patience), "tcp", k.client.String(), k.listen.String())
			return !errors.Is(err, syscall.EADDRINUSE)
		})
		if err != nil {
			t.Errorf("again from %s: %v", k.client, err)
			continue
		}
		again := &talk{Conn: c, r: bufio.NewReader(c)}
		for range 2 { // its packets are those of a connection that is known
			if id := again.ask(t); id != by.Name {
				t.Errorf("again from %s: %s answers, not %s", k.client, id, by.Name)
			}
		}
		check(t, c.Close())
	}
}

// segments counts the FINs and the resets that the client gets on each connection, by its
// own end and the other.
type segments map[[2]netip.AddrPort][2]int

// watch counts segments until its result is called.
func (s *site) watch(t *testing.T) (stop func() segments) {
	t.Helper()
	c, err := s.Clients[0].Capture(lab.HostDev)
	check(t, err)
	seen, done := segments{}, make(chan struct{})
	go func() {
		defer close(done)
		for {
			p, h, err := c.Find(t.Context(), func(p lab.Packet, h lab.Header) bool {
				return !p.Out && h.Proto == uint8(model.TCP) && len(h.Payload) == 20
			})
			if err != nil {
				return
			}
			n := seen[[2]netip.AddrPort{h.Dst, h.Src}]
			switch flags := p.Data[len(p.Data)-len(h.Payload)+13]; {
			case flags&lab.FIN != 0:
				n[0]++
			case flags&lab.RST != 0:
				n[1]++
			}
			seen[[2]netip.AddrPort{h.Dst, h.Src}] = n
		}
	}()
	return func() segments {
		check(t, c.Close())
		<-done
		return seen
	}
}

// want wants each of the connections to have got so many FINs and resets.
func (seen segments) want(t *testing.T, list []idle, fins, resets int) {
	t.Helper()
	for _, k := range list {
		if n := seen[[2]netip.AddrPort{k.client, k.listen}]; n != [2]int{fins, resets} {
			t.Errorf("%s got %d FINs and %d resets, want %d and %d", k.client, n[0], n[1], fins, resets)
		}
	}
}

// awaitTold waits until weir has said of n clients that they are reset.
func (s *site) awaitTold(t *testing.T, n int) {
	t.Helper()
	line := regexp.MustCompile(`msg="clients of ended connections .*" clients=(\d+)`)
	await(t, "weir has done with the clients", func() bool {
		sum := 0
		for _, m := range line.FindAllStringSubmatch(s.log.String(), -1) {
			k, err := strconv.Atoi(m[1])
			check(t, err)
			sum += k
		}
		return sum >= n
	})
	if log := s.log.String(); strings.Contains(log, "may not know it") {
		t.Errorf("weir says:\n%s", log)
	}
}

// firewall makes a host drop without an answer what belongs to no connection it knows.
func firewall(t *testing.T, h *lab.Host) {
	t.Helper()
	drop(t, h, "input", "ct state invalid", "tcp flags & syn == 0 ct state new")
}

// drop makes a host drop packets in a hook.
func drop(t *testing.T, h *lab.Host, hook string, matches ...string) {
	t.Helper()
	needTool(t, "nft")
	_, err := h.Run("nft", "table inet firewall { chain filter { type filter hook "+hook+" priority 0; "+
		strings.Join(matches, " drop; ")+" drop; }; }")
	check(t, err)
}

// TestSilentClients takes a backend off the network while a hundred clients of each family
// wait in silence: those whose backend it was get a reset, at once; nobody else hears
// anything.
func TestSilentClients(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	sick, well := s.Backends[0], s.Backends[1]
	firewall(t, well) // else it would answer what goes astray
	drop(t, s.Gateway, "output", "ct state invalid")
	s.serve("tcp", s.Backends, 7)
	check7 := "check: {tcp: true, port: 7, every: 100ms, timeout: 90ms, rise: 2, fall: 3}"
	s.write(services(
		service("web", listenOn(1, "7/tcp"), backendList(on("", s.Backends...)...), check7, "on_down: reset"),
		service("kept", listenOn(2, "7/tcp"), backendList(on("", s.Backends...)...), check7, "on_down: keep")))
	s.start()
	for _, name := range []string{"web", "kept"} {
		s.awaitStates(name, sick, "up")
		s.awaitStates(name, well, "up")
	}
	var reset, kept []idle
	for _, f := range families {
		reset = append(reset, s.idles(t, target(f, 1, 7), 100)...)
		kept = append(kept, s.idles(t, target(f, 2, 7), 4)...)
	}
	gone, stay := split(reset, sick)
	keptGone, keptStay := split(kept, sick)
	if len(gone) < 50 || len(stay) < 50 || len(keptGone) < 2 {
		t.Fatalf("%d and %d connections, and %d", len(gone), len(stay), len(keptGone))
	}
	watched := s.watch(t)
	check(t, sick.SetLink(lab.HostDev, false))
	s.awaitStates("web", sick, "down")
	wantResets(t, gone)
	s.awaitStates("kept", sick, "down")
	for i, err := range hearAll(keptGone, silence) {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("on_down: keep, from %s: %v, want nothing", keptGone[i].client, err)
		}
	}
	s.awaitTold(t, len(gone)) // which is when nobody is asked a second time
	seen := watched()
	seen.want(t, gone, 1, 1)
	seen.want(t, append(slices.Clone(stay), kept...), 0, 0)
	wantQuiet(t, append(stay, keptStay...))
	s.wantAgain(t, gone, well)
	s.stop()
}

// disturb sends the client of a connection two ACKs of which one at least is out of its
// window. It answers, and then no more such for half a second.
func (s *site) disturb(t *testing.T, backend *lab.Host, k idle) {
	t.Helper()
	from := netip.AddrPortFrom(addrOf(backend, model.FamilyOf(k.client.Addr())), 7)
	for _, seq := range []uint32{0, 1 << 31} {
		check(t, backend.SendIP(lab.TCPPacket(from, k.client, lab.ACK, seq, 0)))
	}
}

// TestDrainDeadlineResets: the deadline of a drain ends what is left, and tells its clients
// at the first try, though they answer no ACKs that are out of their windows just then.
func TestDrainDeadlineResets(t *testing.T) {
	t.Parallel()
	s, _ := checkedSite(t, 2)
	leaves, stays := s.Backends[0], s.Backends[1]
	firewall(t, stays)
	check(t, s.Gateway.Sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "1")) // else it stops what disturbs
	s.awaitStates("web", leaves, "up")
	s.awaitStates("web", stays, "up")
	var all []idle
	for _, f := range families {
		all = append(all, s.idles(t, target(f, 1, 7), 6)...)
	}
	gone, stay := split(all, leaves)
	watched := s.watch(t)
	s.each("drain", "web", leaves, "--deadline", "1s")
	await(t, leaves.Name+" is drained", func() bool {
		for _, k := range gone {
			s.disturb(t, leaves, k)
		}
		return s.backendStatus("web", leaves.V4.String()).State == "drained" && s.backendStatus("web", leaves.V6.String()).State == "drained"
	})
	wantResets(t, gone)
	s.awaitTold(t, len(gone))
	watched().want(t, gone, 1, 1)
	wantQuiet(t, stay)
	s.wantAgain(t, gone, stays)
	if n := len(gone); n != 6 {
		t.Errorf("%d connections were of the backend that left, want 6", n)
	}
	s.stop()
}

// TestLostNudge: a client that does not get the first of weir's segments gets another.
func TestLostNudge(t *testing.T) {
	t.Parallel()
	s, _ := checkedSite(t, 2)
	sick := s.Backends[0]
	s.awaitStates("web", sick, "up")
	drop(t, s.Clients[0], "input", "tcp sequence 0 tcp flags & fin == fin")
	var all []idle
	for _, f := range families {
		all = append(all, s.idles(t, target(f, 1, 7), 4)...)
	}
	gone, stay := split(all, sick)
	watched := s.watch(t)
	check(t, sick.SetLink(lab.HostDev, false))
	wantResets(t, gone)
	s.awaitTold(t, len(gone))
	seen := watched()
	seen.want(t, gone, 2, 1)
	seen.want(t, stay, 0, 0)
	wantQuiet(t, stay)
	s.stop()
}

// TestClientOnTheGateway is a client that weir shares its box with.
func TestClientOnTheGateway(t *testing.T) {
	t.Parallel()
	s, _ := checkedSite(t, 2)
	sick := s.Backends[0]
	s.awaitStates("web", sick, "up")
	var all []idle
	for _, f := range families {
		held := target(f, 1, 7).Addr()
		check(t, s.Gateway.AddAddr(lab.OutsideDev, netip.PrefixFrom(held, held.BitLen())))
		for range 4 {
			c, err := s.Gateway.Dial(within(t, patience), "tcp", "", target(f, 1, 7).String())
			check(t, err)
			t.Cleanup(func() { c.Close() })
			k := &talk{Conn: c, r: bufio.NewReader(c)}
			all = append(all, idle{k, k.ask(t), netip.MustParseAddrPort(c.LocalAddr().String()), target(f, 1, 7)})
		}
	}
	gone, stay := split(all, sick)
	check(t, sick.SetLink(lab.HostDev, false))
	s.awaitStates("web", sick, "down")
	wantResets(t, gone)
	wantQuiet(t, stay)
	if len(gone) != 4 {
		t.Errorf("%d connections were of %s, want 4", len(gone), sick.Name)
	}
	s.stop()
}
