package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// talkMany opens connections, some at a time, and talks on each.
func (s *site) talkMany(t *testing.T, to netip.AddrPort, n int) {
	t.Helper()
	var todo atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for todo.Add(1) <= int64(n) {
				if err := s.talkOnce(to); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (s *site) talkOnce(to netip.AddrPort) error {
	c, err := s.Clients[0].Dial(s.t.Context(), "tcp", "", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(6 * patience)); err != nil {
		return err
	}
	buf := make([]byte, 512)
	for range steeredTurns {
		if _, err := c.Write([]byte("?\n")); err != nil {
			return err
		}
		if _, err := c.Read(buf); err != nil {
			return fmt.Errorf("%s: %w", c.LocalAddr(), err)
		}
	}
	return nil
}

// sink notes datagrams by what they say and who got them, and never answers.
type sink struct {
	total atomic.Uint64
	mu    sync.Mutex
	seen  map[string]map[string]int
}

func newSink(t *testing.T, hosts []*lab.Host) *sink {
	t.Helper()
	k := &sink{seen: map[string]map[string]int{}}
	for _, h := range hosts {
		for _, a := range []netip.Addr{h.V4, h.V6} {
			c, err := h.ListenPacket("udp", join(a, 7))
			check(t, err)
			t.Cleanup(func() { c.Close() })
			go k.read(c, h.Name)
		}
	}
	return k
}

func (k *sink) read(c net.PacketConn, host string) {
	for buf := make([]byte, 512); ; {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		k.mu.Lock()
		flow := string(buf[:n])
		if k.seen[flow] == nil {
			k.seen[flow] = map[string]int{}
		}
		k.seen[flow][host]++
		k.mu.Unlock()
		k.total.Add(1)
	}
}

// one sees that each flow went to one host, whole.
func (k *sink) one(t *testing.T, flows, packets int) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.seen) != flows {
		t.Errorf("%d flows, want %d", len(k.seen), flows)
	}
	for flow, hosts := range k.seen {
		for _, n := range hosts {
			if len(hosts) != 1 || n != packets {
				t.Errorf("flow %s: %v", flow, hosts)
			}
		}
	}
}

// TestSteeringPorts: backends on the listener's port and on one of their own, connections of the
// box itself, and a target that has nobody left.
func TestSteeringPorts(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	b := s.Backends
	s.serve("tcp", b[:1], 7)
	s.serve("tcp", b[1:2], 7, 9)
	s.serve("tcp", b[2:], 7)
	all := append(on("7", b[0]), on("", b[1])...)
	s.startSteering(strings.Replace(s.steered("rules:", "  - {name: few, source_ports: 30000-30999, to: one}",
		groups("rest: "+backendList(all...), "one: "+backendList(on("7", b[2])...))), `:7/tcp"`, `:7,9/tcp"`, -1))
	for _, f := range families {
		got := map[string]bool{}
		for _, port := range []uint16{7, 9} {
			to := netip.AddrPortFrom(vip(f, 1), port)
			for range 20 {
				from := netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port())
				a, err := try(t, s.Clients[0], "tcp", from.Port(), to)
				check(t, err)
				host, p, hasPort := strings.Cut(a.id, "/")
				if want := fmt.Sprint(port); hasPort && p != want {
					t.Errorf("%s got port %s of %s", to, p, host)
				}
				if x := s.explain(from, to, "tcp"); x.Steering == nil || x.Steering.Rule != engine.DefaultRule || !strings.Contains(x.Backend, s.addressOf(host, f)) {
					t.Errorf("%s answers %s, and weir explain says %s (%+v)", a.id, from, x.Backend, x.Steering)
				}
				got[a.id] = true
			}
		}
		if len(got) != 3 {
			t.Errorf("%v answer", got)
		}
		to := netip.AddrPortFrom(vip(f, 1), 9)
		if a, err := try(t, s.Clients[0], "tcp", 30000, to); err != nil || a.id != b[2].Name {
			t.Errorf("%+v %v", a, err)
		}
		before, _ := s.asked()
		s.ip("route", "add", vip(f, 1).String(), "dev", lab.OutsideDev) // else it sends nothing
		_, err := s.Gateway.Ask("tcp", to.String())
		check(t, err)
		if n, _ := s.asked(); n != before+1 {
			t.Errorf("weir was asked about %d packets of the box's own connection", n-before)
		}
		s.must("drain", "steered", netip.AddrPortFrom(addrOf(b[2], f), 7).String())
		await(t, "nobody is left", func() bool {
			return s.explain(netip.AddrPortFrom(addrOf(s.Clients[0], f), 30001), to, "tcp").Backend == ""
		})
		_, err = try(t, s.Clients[0], "tcp", 30001, to)
		wantRefused(t, "tcp", err)
	}
	if st := s.steering(); st.Nobody != 2 {
		t.Errorf("%d packets for nobody, want 2", st.Nobody)
	}
	s.stop()
}

// addressOf returns the address of a backend by its name.
func (s *site) addressOf(name string, f model.Family) string {
	for _, h := range s.Backends {
		if h.Name == name {
			return addrOf(h, f).String()
		}
	}
	return name + " is no backend"
}
