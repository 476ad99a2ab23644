package nudge

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(from, to string) Pair {
	return Pair{netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)}
}

// TestSegment compares with bytes whose checksums were worked out elsewhere, and with what
// the lab builds.
func TestSegment(t *testing.T) {
	for _, c := range []struct {
		p    Pair
		seq  uint32
		want string // "": the lab's
	}{
		{pair("198.51.100.10:80", "203.0.113.9:40000"), 0,
			"45000028000040004006" + "d488" + "c633640acb007109" + "00509c400000000000000000" + "50110000" + "acfb" + "0000"},
		{pair("198.51.100.10:65535", "203.0.113.9:1"), 1 << 31, ""},
		{pair("[2001:db8::10]:80", "[2001:db8:c::9]:40000"), 0, ""},
		{pair("[2001:db8::10]:443", "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:40000"), 1 << 31, ""},
	} {
		got := segment(c.p, c.seq)
		if text := hex.EncodeToString(got); c.want != "" && text != c.want {
			t.Errorf("%v: %s, want %s", c.p, text, c.want)
		}
		like := lab.TCPPacket(c.p.From, c.p.To, lab.FIN|lab.ACK, c.seq, 0)
		h, err := lab.ParseIP(got)
		if err != nil || h.Src != c.p.From || h.Dst != c.p.To || h.TTL != 64 || len(h.Payload) != 20 {
			t.Fatalf("%v: %+v, %v", c.p, h, err)
		}
		// The lab's has a window, and no "don't fragment": each with its sum.
		tcp := like[len(like)-20:]
		sum := uint32(tcp[16])<<8 | uint32(tcp[17])
		sum += 0xffff // one less of the window is one more of the sum: nothing, in ones' complement
		tcp[14], tcp[15] = 0, 0
		sum = sum&0xffff + sum>>16
		tcp[16], tcp[17] = byte(sum>>8), byte(sum)
		if !bytes.Equal(h.Payload, tcp) {
			t.Errorf("%v: %x, want %x", c.p, h.Payload, tcp)
		}
		if c.p.To.Addr().Is4() && checksum(got[:20]) != 0 {
			t.Errorf("%v: the header's checksum is wrong", c.p)
		}
	}
}

// bench is a Sender whose clock and clients are the test's.
type bench struct {
	*Sender
	mu    sync.Mutex
	now   time.Time
	sent  map[Pair][]uint32
	mute  map[Pair]int // how many segments a client does not answer
	done  chan Report
	fails error
}

func newBench(t *testing.T, silent bool) *bench {
	b := &bench{sent: map[Pair][]uint32{}, mute: map[Pair]int{}, done: make(chan Report, 100), now: time.Unix(1e9, 0)}
	opts := Options{Done: func(r Report) { b.done <- r }}
	if silent {
		opts.Silent = func(_ context.Context, pairs []Pair, sent int) ([]Pair, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return slices.DeleteFunc(slices.Clone(pairs), func(p Pair) bool { return b.mute[p] < sent }), b.fails
		}
	}
	opts.now = func() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.now }
	opts.after = func(d time.Duration) <-chan time.Time { // time passes when somebody waits
		b.mu.Lock()
		defer b.mu.Unlock()
		b.now = b.now.Add(d)
		c := make(chan time.Time, 1)
		c <- b.now
		return c
	}
	opts.send = func(p Pair, seq uint32) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sent[p] = append(b.sent[p], seq)
		if p.To.Port() == 9 {
			return errors.New("no way there")
		}
		return nil
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b.Sender = s
	return b
}

func clients(n int) []Pair {
	out := make([]Pair, n)
	for i := range out {
		out[i] = Pair{netip.MustParseAddrPort("198.51.100.10:80"), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1000)}
	}
	return out
}

// TestTries: a client gets further segments as long as it does not answer, and no more.
func TestTries(t *testing.T) {
	b := newBench(t, true)
	all := clients(4)
	for i, p := range all {
		b.mute[p] = i
	}
	if left := b.Send(all); left != 0 {
		t.Fatalf("%d left out", left)
	}
	if r := <-b.done; r != (Report{Clients: 4, Silent: 1}) {
		t.Errorf("%+v", r)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, want := range [][]uint32{{0}, {0, 1 << 31}, {0, 1 << 31, 0}, {0, 1 << 31, 0}} {
		if got := b.sent[all[i]]; !slices.Equal(got, want) {
			t.Errorf("client %d got %v, want %v", i, got, want)
		}
	}
}

// TestFailures: what cannot be sent or learned is told, and is not the end.
func TestFailures(t *testing.T) {
	b := newBench(t, true)
	b.Send([]Pair{pair("198.51.100.10:80", "203.0.113.9:9"), pair("198.51.100.10:80", "203.0.113.9:10")})
	if r := <-b.done; r.Failed != 1 || r.Err == nil || r.Clients != 2 || r.Silent != 0 {
		t.Errorf("%+v", r)
	}
	b.mu.Lock()
	b.fails = errors.New("no table")
	b.mu.Unlock()
	b.Send(clients(1))
	if r := <-b.done; !errors.Is(r.Err, b.fails) || r.Silent != 0 {
		t.Errorf("%+v", r)
	}
	if b.load != 0 {
		t.Errorf("%d clients are in work", b.load)
	}
}

// TestPace: ten thousand clients take the time that 4,000 a second take, and those that
// are too many are said.
func TestPace(t *testing.T) {
	b := newBench(t, false)
	start := b.now
	if left := b.Send(clients(10000)); left != 0 {
		t.Errorf("%d left out", left)
	}
	<-b.done
	b.mu.Lock()
	took := b.now.Sub(start)
	b.mu.Unlock()
	if want := 10000 / burst * pause; took != want || len(b.sent) != 10000 {
		t.Errorf("%d clients in %s, want %s", len(b.sent), took, want)
	}
	if left := b.Send(make([]Pair, most+3)); left != 3 {
		t.Errorf("%d left out, want 3", left)
	}
}

// TestClose: a Sender with work ends at once.
func TestClose(t *testing.T) {
	b := newBench(t, true)
	b.Send(clients(most))
	b.Close()
}
