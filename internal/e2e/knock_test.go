package e2e

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"weir/internal/model"
)

// knocking opens connections in both families, one after the other, until it ends.
type knocking struct {
	came, failed, moved atomic.Int64
	stop                chan struct{}
	wg                  sync.WaitGroup
}

// knock begins. chooser says of a client who has to answer it.
func (s *site) knock(t *testing.T, chooser func(model.Family) func(netip.AddrPort) string) *knocking {
	k := &knocking{stop: make(chan struct{})}
	for i := range 4 {
		f := families[i%2]
		choose := chooser(f)
		k.wg.Go(func() {
			for {
				select {
				case <-k.stop:
					return
				default:
				}
				from := netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port())
				reply, err := s.Clients[0].AskFrom(s.t.Context(), "tcp", from.String(), netip.AddrPortFrom(vip(f, 1), 7).String())
				if id, _, _ := strings.Cut(reply, " "); err != nil {
					k.failed.Add(1)
					t.Log(err)
				} else if id != choose(from) {
					k.moved.Add(1)
				}
				k.came.Add(1)
			}
		})
	}
	return k
}

// more waits until some have come.
func (k *knocking) more(t *testing.T) {
	t.Helper()
	before := k.came.Load()
	await(t, "connections come", func() bool { return k.came.Load() > before+50 })
}

func (k *knocking) end() {
	close(k.stop)
	k.wg.Wait()
}

// check holds that none failed and each was answered by whom the table says, where weir was asked
// about that many packets.
func (k *knocking) check(t *testing.T, asked uint64) {
	t.Helper()
	t.Logf("%d connections, %d failed, %d moved", k.came.Load(), k.failed.Load(), k.moved.Load())
	if asked == 0 || k.failed.Load()+k.moved.Load() > 0 {
		t.Errorf("of %d connections %d failed, and %d went elsewhere than the table says; weir was asked about %d packets",
			k.came.Load(), k.failed.Load(), k.moved.Load(), asked)
	}
}
