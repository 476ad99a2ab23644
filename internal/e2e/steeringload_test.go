package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/internal/lab"
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
