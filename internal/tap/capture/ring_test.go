package capture

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/lab"
	"weir/internal/tap"
	"weir/internal/tap/files"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// wire is two hosts on one link: what one sends, the other takes in.
type wire struct {
	t        testing.TB
	from, to *lab.Host
	index    int // of the device that sends
	device   Device
}

func newWire(t testing.TB) *wire {
	t.Helper()
	lab.Require(t)
	n, err := lab.New()
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	w := &wire{t: t}
	w.from, err = n.Host("from")
	must(t, err)
	w.to, err = n.Host("to")
	must(t, err)
	must(t, n.Link(lab.End{Host: w.from, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		lab.End{Host: w.to, Name: "copies", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}}))
	must(t, w.from.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			w.index = l.Attrs().Index
		}
		return err
	}))
	must(t, w.to.Do(func() (err error) { w.device, err = Find("copies"); return err }))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ring opens a ring on the host that takes in.
func (w *wire) ring(snaplen int) (r *Ring) {
	w.t.Helper()
	must(w.t, w.to.Do(func() (err error) { r, err = NewRing(w.device, snaplen); return err }))
	w.t.Cleanup(func() { r.Close() })
	return r
}

// send sends packets for elsewhere, one after the other, each number made by next; rate is
// packets a second, 0 as fast as it goes.
func (w *wire) send(n, rate int, next func(i int) []byte) {
	w.t.Helper()
	var fd int
	must(w.t, w.from.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	must(w.t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	mac, err := w.to.MAC("copies")
	must(w.t, err)
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: w.index, Halen: 6}
	copy(to.Addr[:], mac)
	start := time.Now()
	for i := range n {
		if rate > 0 && i%64 == 0 {
			if ahead := time.Duration(i)*time.Second/time.Duration(rate) - time.Since(start); ahead > 0 {
				time.Sleep(ahead)
			}
		}
		for {
			err := unix.Sendto(fd, next(i), 0, to)
			if err == nil {
				break
			}
			if err != unix.ENOBUFS && err != unix.EAGAIN && err != unix.EINTR {
				w.t.Error(err)
				return
			}
		}
	}
}

// segment is a TCP segment from one of many clients, with data bytes of data.
func segment(data int) func(int) []byte {
	b := lab.TCPPacket(netip.MustParseAddrPort("203.0.113.9:1"), netip.MustParseAddrPort("198.51.100.10:80"), lab.ACK, 1, 1)
	b = append(b, make([]byte, data)...)
	b[2], b[3] = byte(len(b)>>8), byte(len(b))
	return func(i int) []byte {
		b[4], b[5] = byte(i>>8), byte(i)
		b[20], b[21] = byte(i>>7&0x0f|0x40), byte(i)
		b[24], b[25], b[26], b[27] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
		return b
	}
}

// take reads until nothing came for a while.
func take(t testing.TB, r *Ring, quiet time.Duration, fn func(at time.Duration, data []byte, wire int)) {
	t.Helper()
	for last := time.Now(); time.Since(last) < quiet; {
		must(t, r.Read(10*time.Millisecond, func(at time.Duration, data []byte, wire int) error {
			last = time.Now()
			fn(at, data, wire)
			return nil
		}))
	}
}

// TestRing has every packet come, once, in its order, cut off and with its length.
func TestRing(t *testing.T) {
	w := newWire(t)
	r := w.ring(100)
	const n = 2000
	begin := time.Duration(time.Now().UnixNano())
	w.send(n, 0, segment(200))
	got := 0
	take(t, r, 500*time.Millisecond, func(at time.Duration, data []byte, wire int) {
		if wire != 240 || len(data) != 100 || data[0] != 0x45 || int(data[26])<<8|int(data[27]) != got {
			t.Fatalf("packet %d: %d of %d bytes, %x", got, len(data), wire, data)
		}
		if at < begin-time.Second || at > begin+time.Minute {
			t.Fatalf("packet %d came at %s, sending began at %s", got, at, begin)
		}
		got++
	})
	if lost, err := r.Lost(); err != nil || got != n || lost != 0 {
		t.Errorf("%d of %d packets, %d lost, %v", got, n, lost, err)
	}
}

// TestLost lets the ring run over: what is read and what is lost is what was sent.
func TestLost(t *testing.T) {
	w := newWire(t)
	r := w.ring(1 << 18)
	const n = blocks*blockSize/1400 + 10_000
	w.send(n, 0, segment(1400))
	got := 0
	take(t, r, 500*time.Millisecond, func(time.Duration, []byte, int) { got++ })
	if lost, err := r.Lost(); err != nil || lost == 0 || got+int(lost) != n {
		t.Errorf("%d read and %d lost of %d, %v", got, lost, n, err)
	}
	if lost, _ := r.Lost(); got+int(lost) != n {
		t.Errorf("asked again, %d lost", lost)
	}
}

// TestDown says so when the device goes down.
func TestDown(t *testing.T) {
	w := newWire(t)
	r := w.ring(100)
	must(t, w.to.SetLink("copies", false))
	var err error
	for range 100 {
		if err = r.Read(100*time.Millisecond, func(time.Duration, []byte, int) error { return nil }); err != nil {
			break
		}
	}
	if err == nil || err.Error() != "device copies: network is down" {
		t.Error(err)
	}
}

// BenchmarkTap takes in, analyses and, where the name says so, writes packets of 100 bytes,
// for about a second, at several rates. Lost is what the ring had no room for, missing what
// never came to it. Above "max" the sender, on one core, sends what it can.
func BenchmarkTap(b *testing.B) {
	for _, rate := range []int{100_000, 200_000, 300_000, 0} {
		for _, write := range []bool{false, true} {
			name, n := fmt.Sprint(rate), rate
			if rate == 0 {
				name, n = "max", 500_000
			}
			if write {
				name += "-written"
			}
			b.Run(name, func(b *testing.B) { flood(b, n, rate, write) })
		}
	}
}

func flood(b *testing.B, n, rate int, write bool) {
	w := newWire(b)
	r := w.ring(128)
	got := 0
	var took time.Duration
	for range b.N {
		a := tap.New(tap.Options{})
		var out *files.Writer
		if write {
			var err error
			out, err = files.Open(files.Options{Path: b.TempDir(), Device: "copies", RotateSize: 10e6, Keep: 2}, time.Now())
			must(b, err)
		}
		var sent sync.WaitGroup
		start := time.Now()
		sent.Go(func() { w.send(n, rate, segment(60)); took += time.Since(start) })
		var p tap.Packet
		take(b, r, 300*time.Millisecond, func(at time.Duration, data []byte, wire int) {
			a.Add(at, &p, p.Decode(data, wire))
			if write {
				must(b, out.Write(time.Unix(0, int64(at)), data, wire))
			}
			got++
		})
		sent.Wait()
		if write {
			must(b, out.Close())
		}
	}
	lost, err := r.Lost()
	must(b, err)
	b.ReportMetric(float64(n*b.N)/took.Seconds(), "packets/s")
	b.ReportMetric(float64(lost)/float64(b.N), "lost")
	b.ReportMetric(float64(n*b.N-got-int(lost))/float64(b.N), "missing")
	b.ReportMetric(0, "ns/op")
}
