package nfqueue

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestFirstPackets: of a thousand TCP connections of some hundred packets, and of a thousand one-way
// UDP flows of a hundred, user space sees two thousand packets, in each family; every one goes to the backend
// that the set chooses, and stays there when nobody listens any more.
func TestFirstPackets(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.load(w.rules(1))
	qs, served := w.open(Options{Count: 2}, w.steer)
	want := uint64(0)
	var flows []*udpFlow
	for _, v6 := range []bool{false, true} {
		w.connections(v6, connections)
		if want += connections; w.sum(qs).Packets != want {
			t.Errorf("IPv6 %t: TCP: %d packets were asked about, want %d", v6, w.sum(qs).Packets, want)
		}
		fresh := w.flows(v6, connections)
		flows = append(flows, fresh...)
		w.send(fresh, 1) // a second packet must not overtake the verdict on the first
		w.until("all flows have a verdict", func() bool { return w.sum(qs).Waiting == 0 })
		w.send(fresh, perFlow-1)
		if want += connections; w.sum(qs).Packets != want {
			t.Errorf("IPv6 %t: UDP: %d packets were asked about, want %d", v6, w.sum(qs).Packets, want)
		}
	}
	stats, err := qs.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s := w.sum(qs); s.Dropped+s.Unreceived+s.Refused+s.Overruns != 0 || s.Numbered != want || stats[0].Packets == 0 || stats[1].Packets == 0 {
		t.Errorf("%+v", stats)
	}
	w.where(flows, perFlow)
	counts := w.set.Counts()
	if counts.Rules[0] != want || counts.Targets[0] != want {
		t.Errorf("%+v", counts)
	}
	// Nobody listens: flows stay, and the kernel chooses for new connections, and chooses alike.
	if err := qs.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	w.send(flows, 5)
	w.where(flows, perFlow+5)
	for _, v6 := range []bool{false, true} {
		w.connections(v6, connections/10)
	}
}

const (
	connections = 1000
	perFlow     = 100 // packets of a UDP flow
	rounds      = 33  // of question and answer in a TCP connection, each some three packets
	parallel    = 20
)

// connections opens TCP connections, talks over each, and asks whether it went where it should.
func (w *world) connections(v6 bool, n int) {
	w.Helper()
	var todo atomic.Int64
	errs := make(chan error, parallel)
	for range parallel {
		go func() {
			var err error
			for err == nil && todo.Add(1) <= int64(n) {
				err = w.talk(v6)
			}
			errs <- err
		}()
	}
	for range parallel {
		if err := <-errs; err != nil {
			w.Error(err)
		}
	}
	if w.Failed() {
		w.FailNow()
	}
}

func (w *world) talk(v6 bool) error {
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	c, err := w.Clients[0].Dial(ctx, "tcp", "", netip.AddrPortFrom(vip(v6), port).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	id := make([]byte, 1)
	if _, err := c.Read(id); err != nil {
		return err
	}
	for range rounds {
		if _, err := c.Write(id); err != nil {
			return err
		}
		old := id[0]
		if _, err := c.Read(id); err != nil || id[0] != old {
			return fmt.Errorf("%q came back as %q: %w", old, id, err)
		}
	}
	if got, want := int(id[0]-'0'), w.chosen(6, c.LocalAddr(), c.RemoteAddr()); got != want {
		return fmt.Errorf("%s went to backend %d, not %d", c.LocalAddr(), got, want)
	}
	return nil
}

// udpFlow is one flow of datagrams that say whose they are.
type udpFlow struct {
	id   string
	conn net.Conn
}

func (w *world) flows(v6 bool, n int) []*udpFlow { return w.named("flow", v6, n) }

func (w *world) named(name string, v6 bool, n int) []*udpFlow {
	w.Helper()
	out := make([]*udpFlow, n)
	for i := range out {
		c, err := w.Clients[0].Dial(w.Context(), "udp", "", netip.AddrPortFrom(vip(v6), port).String())
		w.ok(err)
		w.Cleanup(func() { c.Close() })
		out[i] = &udpFlow{fmt.Sprint(name, v6, i), c}
	}
	return out
}

// unread is how many datagrams may be on their way: what the smallest socket buffer holds.
const unread = 100

// send sends packets of each flow, in turn.
func (w *world) send(flows []*udpFlow, packets int) {
	w.Helper()
	for range packets {
		for i, f := range flows {
			if _, err := f.conn.Write([]byte(f.id)); err != nil {
				w.Fatal(err)
			}
			if i%unread == unread-1 || i == len(flows)-1 {
				sent := w.sent(i%unread + 1)
				w.until("all datagrams have come", func() bool { return w.total.Load() >= sent })
			}
		}
	}
}

// sent counts what the test has sent.
func (w *world) sent(n int) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.allSent += int64(n)
	return w.allSent
}

// where asks whether each flow went to its one backend with so many packets.
func (w *world) where(flows []*udpFlow, packets int) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	used := map[int]int{}
	for _, f := range flows {
		want := w.chosen(17, f.conn.LocalAddr(), f.conn.RemoteAddr())
		if got := w.seen[f.id]; len(got) != 1 || got[want] != packets {
			w.Fatalf("flow %s: %v by backend, want %d to %d", f.id, got, packets, want)
		}
		used[want]++
	}
	if len(used) != backends {
		w.Errorf("only %v of %d backends are used", used, backends)
	}
}

// TestClose: what waits in the queue when it is closed is answered, and what comes then goes on.
func TestClose(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %t", v6), func(t *testing.T) { testClose(t, v6) })
	}
}

func testClose(t *testing.T, v6 bool) {
	w := newWorld(t)
	w.serve()
	w.load(w.rules(0))
	var once sync.Once
	begun, proceed := make(chan struct{}), make(chan struct{})
	qs, served := w.open(Options{Count: 1, FailOpen: true}, func(worker int, data []byte, mark uint32) Verdict {
		once.Do(func() { close(begun); <-proceed })
		return w.steer(worker, data, mark)
	})
	flows := w.flows(v6, 2*unread)
	write := func(flows []*udpFlow) {
		for _, f := range flows {
			if _, err := f.conn.Write([]byte(f.id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(flows[:unread])
	<-begun
	w.until("the packets wait", func() bool { return w.sum(qs).Waiting == unread })
	closed := make(chan error)
	go func() { closed <- qs.Close() }()
	// The queue takes no more once a datagram goes past it.
	probes := int64(0)
	w.until("a datagram goes past the queue", func() bool {
		probes++
		write(w.named("probe", v6, 1))
		return w.total.Load() > 0
	})
	write(flows[unread:])
	w.until("what comes afterwards goes on", func() bool { return w.total.Load() >= unread+1 })
	close(proceed)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	w.until("all datagrams have come", func() bool { return w.total.Load() == 2*unread+probes })
	w.mu.Lock()
	for i, f := range flows {
		want := w.chosen(17, f.conn.LocalAddr(), f.conn.RemoteAddr())
		if got := w.seen[f.id]; got[want] != 1 || len(got) != 1 {
			t.Errorf("datagram %d: %v by backend, want one to %d", i, got, want)
		}
	}
	w.mu.Unlock()
}

// TestCopy: no more of a packet comes than was asked for, and another length comes into force with
// the next packet.
func TestCopy(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.load(w.rules(0))
	var length atomic.Int64
	qs, _ := w.open(Options{Count: 1, Copy: 40}, func(worker int, data []byte, mark uint32) Verdict {
		length.Store(int64(len(data)))
		return w.steer(worker, data, mark)
	})
	for i, n := range []int64{40, 1000, 20, 2048} {
		if i > 0 {
			if err := qs.SetCopy(int(n)); err != nil {
				t.Fatal(err)
			}
		}
		f := w.flows(false, 1)[0]
		f.id = strings.Repeat("x", 1400)
		if _, err := f.conn.Write([]byte(f.id)); err != nil {
			t.Fatal(err)
		}
		w.until("the datagram has come", func() bool { return w.total.Load() == int64(i)+1 })
		if want := min(n, 1428); length.Load() != want {
			t.Errorf("%d bytes of a packet, want %d", length.Load(), want)
		}
	}
	if err := qs.SetCopy(2049); err == nil || !strings.Contains(err.Error(), "not between 1 and 2048") {
		t.Error(err)
	}
	if err := qs.Close(); err != nil {
		t.Fatal(err)
	}
	if err := qs.SetCopy(1); err != ErrClosed {
		t.Error(err)
	}
}

// TestDrop: what is dropped does not come, also where verdicts are one message.
func TestDrop(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.load(w.rules(0))
	proceed := make(chan struct{})
	qs, _ := w.open(Options{Count: 1}, func(worker int, data []byte, mark uint32) Verdict {
		<-proceed // so that one receive brings many
		v := w.steer(worker, data, mark)
		v.Drop = bytes.HasSuffix(data, []byte("drop"))
		return v
	})
	var all []*udpFlow
	for i, f := range w.flows(true, unread) {
		if i%10 < 3 {
			f.id += "drop"
		}
		if _, err := f.conn.Write([]byte(f.id)); err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	w.until("the packets wait", func() bool { return w.sum(qs).Waiting == unread })
	close(proceed)
	if err := qs.Close(); err != nil { // all have their verdict then
		t.Fatal(err)
	}
	w.until("what passes has come", func() bool { return w.total.Load() >= unread*7/10 })
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range all {
		if came, want := len(w.seen[f.id]) == 1, i%10 >= 3; came != want {
			t.Errorf("datagram %d came: %t, want %t", i, came, want)
		}
	}
}
