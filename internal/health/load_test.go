package health

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// acceptForever is the server of the load tests: it listens on all of 127.0.0.0/8, says
// its port, answers in HTTP or not at all, and ends with its input.
func acceptForever() {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	go func() {
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	say := os.Getenv(serveEnv)
	for {
		c, err := l.Accept()
		if err != nil {
			continue
		}
		if say == "tcp" {
			c.Close()
			continue
		}
		go func() {
			answering(httpAnswer(200, "", "ok"))(c)
			silent(c)
			c.Close()
		}()
	}
}

// server starts acceptForever in a process of its own and returns its port.
func server(t testing.TB, kind string) uint16 {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+kind)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	port, err2 := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return uint16(port)
}

// load is what probing n backends for a while came to.
type load struct {
	results, bad, void int
	last               string
	wall, cpu          time.Duration
	latency            []time.Duration
	stats              Stats
}

func (l *load) percentile(p int) time.Duration {
	if len(l.latency) == 0 {
		return 0
	}
	slices.Sort(l.latency)
	return l.latency[(len(l.latency)-1)*p/100]
}

// probeMany checks n backends on addresses of their own with one processor.
func probeMany(t testing.TB, n int, c *model.Check, wall time.Duration) *load {
	port := server(t, c.Kind.String())
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var targets []Target
	for i := range n {
		a := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		targets = append(targets, Target{ID: a.String(), Addr: a, Port: port, Check: c})
	}
	l := new(load)
	var mu sync.Mutex
	p := NewProber(func(u Update) {
		mu.Lock()
		defer mu.Unlock()
		l.results++
		l.latency = append(l.latency, u.Result.Latency)
		switch {
		case u.Result.Void:
			l.void++
			l.last = u.Result.Detail
		case !u.Result.OK:
			l.bad++
			l.last = u.Result.Detail
		}
	}, Options{})
	begin, before := time.Now(), cpuTime()
	p.Set(targets)
	time.Sleep(wall)
	l.stats = p.Stats()
	l.cpu, l.wall = cpuTime()-before, time.Since(begin)
	p.Close()
	return l
}

func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// 5,000 backends every 2 s on one core: each is asked at its turn and answers.
func TestFiveThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	c := &model.Check{Kind: model.CheckTCP, Every: 2 * time.Second, Timeout: time.Second, Jitter: 0.1}
	l := probeMany(t, 5000, c, 5*time.Second)
	t.Logf("%d probes, %d bad, %d void (%s); most lag %v; latency p50 %v, p99 %v; CPU %.0f %% of one core",
		l.results, l.bad, l.void, l.last, l.stats.MaxLag, l.percentile(50), l.percentile(99), 100*l.cpu.Seconds()/l.wall.Seconds())
	// Two whole intervals are over, and 0.5 s of the third has begun. What a machine that
	// is busy otherwise may cost is lag of less than an interval, and no skipped turn.
	if l.stats.Started >= 10000 && l.stats.Skipped == 0 && l.bad+l.void == 0 && l.stats.MaxLag < c.Every/2 {
		return
	}
	// Who falls behind with the processor to itself is too slow; with half of one, it waited.
	if share := l.cpu.Seconds() / l.wall.Seconds(); share < 0.8 {
		t.Skipf("others had the processor: fell behind with %.0f %% of it: %+v, %d bad, %d void: %s", 100*share, l.stats, l.bad, l.void, l.last)
	}
	t.Errorf("fell behind: %+v, %d bad, %d void: %s", l.stats, l.bad, l.void, l.last)
}

// BenchmarkFiveThousand gives the figures: lag and CPU of checking 5,000 backends every
// 2 s for 20 s, on one core. Run it with -benchtime 1x.
func BenchmarkFiveThousand(b *testing.B) {
	for _, kind := range []model.CheckKind{model.CheckTCP, model.CheckHTTP} {
		b.Run(kind.String(), func(b *testing.B) {
			for b.Loop() {
				c := &model.Check{Kind: kind, Every: 2 * time.Second, Timeout: time.Second, Jitter: 0.1}
				l := probeMany(b, 5000, c, 20*time.Second)
				b.ReportMetric(float64(l.stats.Started)/l.wall.Seconds(), "probes/s")
				b.ReportMetric(100*l.cpu.Seconds()/l.wall.Seconds(), "%CPU")
				b.ReportMetric(float64(l.stats.MaxLag.Microseconds())/1000, "ms-max-lag")
				b.ReportMetric(float64(l.percentile(50).Microseconds()), "µs-p50")
				b.ReportMetric(float64(l.percentile(99).Microseconds()), "µs-p99")
				b.ReportMetric(float64(l.bad+l.void), "failed")
				b.ReportMetric(float64(l.stats.Skipped), "skipped")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
