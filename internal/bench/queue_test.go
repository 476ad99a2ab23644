package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
	"weir/internal/steer"
	"weir/internal/steer/nfqueue"
)

// steered gives all TCP packets to the queues, and opens those.
func steered(tb testing.TB, host *lab.Host, o nfqueue.Options) *nfqueue.Queues {
	tb.Helper()
	if err := queueTCP(host, int(o.First), o.Count); err != nil {
		tb.Fatal(err)
	}
	var queues *nfqueue.Queues
	err := host.Do(func() (err error) {
		queues, err = nfqueue.Open(o)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return queues
}

// BenchmarkQueue floods queues from one processor of the machine, and tells how many packets come
// back a second, how many are lost, and what a system call brings. Nothing is asserted.
func BenchmarkQueue(b *testing.B) {
	lab.Require(b)
	if _, err := exec.LookPath("nft"); err != nil {
		b.Skip(err)
	}
	gen, err := newGenerator()
	if err != nil {
		b.Skip(err)
	}
	defer gen.close()
	drop := filepath.Join(b.TempDir(), "drop.nft")
	if err := os.WriteFile(drop, []byte(dropAll), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		o     nfqueue.Options
		rules int
		rate  int // packets a second; 0: as many as there can be
	}{
		{"one", nfqueue.Options{Count: 1}, 1, 0},
		{"long copy", nfqueue.Options{Count: 1, Copy: 1500}, 1, 0},
		{"cpu0", nfqueue.Options{Count: 1, CPUs: []int{0}}, 1, 0},
		{"100 rules", nfqueue.Options{Count: 1}, 100, 0},
		{"two", nfqueue.Options{Count: 2}, 1, 0},
		{"40000", nfqueue.Options{Count: 1}, 1, 40000},
		{"100000", nfqueue.Options{Count: 1}, 1, 100000},
	} {
		b.Run(c.name, func(b *testing.B) {
			st, err := newSteerer(c.rules, c.o.Count)
			if err != nil {
				b.Fatal(err)
			}
			if c.o.Copy == 0 {
				c.o.Copy = st.Set().CopyLength()
			}
			flood(b, gen, drop, c.o, st, c.rate)
		})
	}
}

// floodTime is how long packets are sent.
const floodTime = 2 * time.Second

// keepSending sends what is loaded, so many a second or (0) as many as there can be.
func (g *gateway) keepSending(gen *generator, rate int) (sent int, err error) {
	start := time.Now()
	for since := time.Duration(0); since < floodTime && err == nil; since = time.Since(start) {
		n := 50_000
		if rate > 0 {
			n = int(since.Seconds()*float64(rate)) - sent
		}
		if n < 1 {
			time.Sleep(200 * time.Microsecond)
			continue
		}
		_, err = g.send(gen, outside, n)
		sent += n
	}
	return sent, err
}

// worked is what a worker has done by its thread's clock.
type worked struct {
	packets, from, to, first, last int64
	_                              [88]byte
}

// packet counts one, and looks at the clock now and then.
func (w *worked) packet() {
	if w.packets++; w.packets%1024 != 1 {
		return
	}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return
	}
	if w.first == 0 {
		w.first, w.from = ts.Nano(), w.packets
	}
	w.last, w.to = ts.Nano(), w.packets
}

func flood(b *testing.B, gen *generator, drop string, o nfqueue.Options, st *steer.Steerer, rate int) {
	n, err := lab.New()
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	gw, err := newGateway(n, "gateway", drop)
	if err != nil {
		b.Fatal(err)
	}
	queues := steered(b, gw.host, o)
	served := make(chan error, 1)
	work := make([]worked, o.Count)
	go func() {
		served <- queues.Serve(func(worker int, data []byte, mark uint32) nfqueue.Verdict {
			work[worker].packet()
			return nfqueue.Verdict{Mark: st.Mark(worker, data, mark)}
		})
	}()
	syns, _ := clientPackets(maxFrames, 100)
	gen.load(ether(outsideMAC, clientMAC, syns))
	before, _ := gw.delivered()
	start := time.Now()
	sent, err := gw.keepSending(gen, rate)
	if err != nil {
		b.Fatal(err)
	}
	spent := time.Since(start)
	stats, err := queues.Stats()
	if err != nil {
		b.Fatal(err)
	}
	if err := queues.Close(); err != nil {
		b.Fatal(err)
	}
	if err := <-served; err != nil {
		b.Fatal(err)
	}
	out, _ := gw.delivered()
	var sum nfqueue.Stats
	for _, s := range stats {
		b.Logf("%+v", s)
		sum.Packets += s.Packets
		sum.Receives += s.Receives
		sum.Verdicts += s.Verdicts
	}
	var cpu, answered int64
	for i := range work {
		cpu, answered = cpu+work[i].last-work[i].first, answered+work[i].to-work[i].from
	}
	b.ReportMetric(float64(cpu)/float64(max(answered, 1)), "cpu-ns/packet")
	b.ReportMetric(float64(sum.Packets)/spent.Seconds(), "answered/s")
	b.ReportMetric(float64(sent)/spent.Seconds(), "sent/s")
	b.ReportMetric(float64(out-before), "out")
	b.ReportMetric(float64(sent)-float64(out-before), "lost")
	b.ReportMetric(float64(sum.Packets)/float64(max(sum.Receives, 1)), "packets/receive")
	b.ReportMetric(float64(sum.Packets)/float64(max(sum.Verdicts, 1)), "packets/verdict")
}
