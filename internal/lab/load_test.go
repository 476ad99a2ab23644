package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestLoadCounts(t *testing.T) {
	topo := newGateway(t, GatewayOptions{Backends: 2})
	c := topo.Clients[0]
	for _, network := range []string{"http", "tcp", "udp"} {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reset=%t", network, reset), func(t *testing.T) {
				start := map[string]func(*Host, string, ...string) (*Server, error){
					"http": HTTPServer, "tcp": EchoTCP, "udp": EchoUDP}[network]
				var targets []string
				for _, b := range topo.Backends {
					s := must(start(b, b.Name, b.V4.String()+":0"))(t)
					defer s.Close()
					targets = append(targets, s.Addrs[0].String())
				}
				res, err := Load(t.Context(), LoadSpec{Host: c, Network: network, Targets: targets,
					Concurrency: 4, Count: 101, Reset: reset, Long: 3, LongEvery: time.Millisecond})
				check(t, err)
				if res.Opened != 101 || res.Failed != 0 || len(res.Errors) != 0 ||
					res.ByBackend["backend1"] != 51 || res.ByBackend["backend2"] != 50 {
					t.Errorf("short: %s", res)
				}
				if l := res.Long; l.Opened != 3 || l.Failed != 0 || l.Broken != 0 || l.Answers < 3 {
					t.Errorf("long: %+v", l)
				}
				if l := res.Latency; l.P50 <= 0 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.Max {
					t.Errorf("latency: %s", l)
				}
			})
		}
	}
}

// TestLoadRate sees that a load keeps to its schedule: never faster, whatever the
// machine; how much slower is the benchmark's to say.
func TestLoadRate(t *testing.T) {
	topo := newGateway(t, GatewayOptions{})
	must(HTTPServer(topo.Backends[0], "b", "10.1.1.1:80"))(t)
	const rate, count = 2000, 1001
	res, err := Load(t.Context(), LoadSpec{Host: topo.Clients[0], Network: "http", Targets: []string{"10.1.1.1:80"},
		Rate: rate, Count: count, Reset: true})
	check(t, err)
	t.Log(res)
	if res.Failed != 0 || res.Opened != count || len(res.Errors) != 0 {
		t.Errorf("failed: %s", res)
	}
	if least := (count - 1) * time.Second / rate; res.Elapsed < least {
		t.Errorf("ended after %s, the last was due at %s", res.Elapsed, least)
	}
}

// TestLoadWaitCounts takes a server that answers one at a time, slower than asked:
// the latency must show what clients of a real crowd would have waited.
func TestLoadWaitCounts(t *testing.T) {
	_, a, b := pairOfHosts(t)
	const pause, rate, count = 5 * time.Millisecond, 1000, 20
	c := must(b.ListenPacket("udp", "192.0.2.2:9"))(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for buf := make([]byte, 10); ; {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			time.Sleep(pause) // the server's work
			_, _ = c.WriteTo([]byte("slow\n"), from)
		}
	}()
	res, err := Load(t.Context(), LoadSpec{Host: a, Network: "udp", Targets: []string{"192.0.2.2:9"},
		Rate: rate, Count: count, Concurrency: 1})
	check(t, err)
	check(t, c.Close())
	<-served
	if least := count*pause - count*time.Second/rate; res.Opened != count || res.Latency.Max < least {
		t.Errorf("%s; the last waited at least %s", res, least)
	}
}

// BenchmarkLoad is the price of a short HTTP connection through the gateway: client,
// server and the kernel's forwarding together.
func BenchmarkLoad(b *testing.B) {
	Require(b)
	topo, err := Gateway(GatewayOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer topo.Net.Close()
	if _, err := HTTPServer(topo.Backends[0], "b", "10.1.1.1:80"); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	res, err := Load(b.Context(), LoadSpec{Host: topo.Clients[0], Network: "http", Targets: []string{"10.1.1.1:80"},
		Count: b.N, Concurrency: 64, Reset: true})
	if err != nil || res.Failed != 0 {
		b.Fatal(res, err)
	}
	b.ReportMetric(float64(res.Opened)/res.Elapsed.Seconds(), "conn/s")
}

// TestLoadSeesFailures takes a server away while a load runs.
func TestLoadSeesFailures(t *testing.T) {
	topo := newGateway(t, GatewayOptions{})
	s := must(EchoTCP(topo.Backends[0], "b", "10.1.1.1:7"))(t)
	r, err := StartLoad(t.Context(), LoadSpec{Host: topo.Clients[0], Network: "tcp", Targets: []string{"10.1.1.1:7"},
		Rate: 500, Long: 5, LongEvery: 5 * time.Millisecond})
	check(t, err)
	waitFor(t, r, func(res LoadResult) bool { return res.Opened > 20 && res.Long.Opened == 5 })
	check(t, s.Close())
	waitFor(t, r, func(res LoadResult) bool { return res.Failed > 20 && res.Long.Broken == 5 })
	res := r.Stop()
	if res.Errors["dial: "+syscall.ECONNREFUSED.Error()] == 0 {
		t.Errorf("errors %v", res.Errors)
	}
}

// waitFor waits until the load's figures are as wanted.
func waitFor(t *testing.T, r *Running, want func(LoadResult) bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !want(r.Snapshot()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s: %s", r.Stop())
		}
	}
}

func TestLoadLongAlone(t *testing.T) {
	topo := newGateway(t, GatewayOptions{})
	must(EchoTCP(topo.Backends[0], "b", "10.1.1.1:7"))(t)
	res, err := Load(t.Context(), LoadSpec{Host: topo.Clients[0], Network: "tcp", Targets: []string{"10.1.1.1:7", "10.1.1.1:8"},
		NoShort: true, Long: 4, LongEvery: time.Millisecond, Duration: 100 * time.Millisecond})
	check(t, err)
	if l := res.Long; l.Opened != 2 || l.Failed != 2 || l.Broken != 0 || l.Answers < 4 || res.Opened+res.Failed != 0 {
		t.Errorf("%s", res)
	}
	if _, err := Load(t.Context(), LoadSpec{}); err == nil {
		t.Error("a load of nothing was accepted")
	}
}

// TestLoadTimesOut asks an address that swallows packets.
func TestLoadTimesOut(t *testing.T) {
	_, a, b := pairOfHosts(t)
	c := must(b.ListenPacket("udp", "192.0.2.2:9"))(t)
	defer c.Close()
	res, err := Load(t.Context(), LoadSpec{Host: a, Network: "udp", Targets: []string{"192.0.2.2:9"},
		Count: 3, Timeout: 20 * time.Millisecond})
	check(t, err)
	if res.Failed != 3 || res.Errors["read: timeout"] != 3 {
		t.Errorf("%s", res)
	}
}

func TestErrorText(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, tc := range []struct {
		err  error
		want string
	}{
		{refused, "dial: connection refused"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, "read: timeout"},
		{context.DeadlineExceeded, "timeout"},
		{fmt.Errorf("wrapped: %w", refused), "dial: connection refused"},
		{errors.New("words"), "words"},
	} {
		if got := errorText(tc.err); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.err, got, tc.want)
		}
	}
}

// TestHistogram compares percentiles with the exact ones.
func TestHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		us := rapid.SliceOfN(rapid.Int64Range(0, math.MaxInt32), 1, 200).Draw(t, "us")
		var h histogram
		for _, v := range us {
			h.add(time.Duration(v) * time.Microsecond)
		}
		for _, p := range []float64{0.5, 0.9, 0.99, 1} {
			got := h.percentile(p)
			atMost, below := 0, 0
			for _, v := range us {
				d := time.Duration(v) * time.Microsecond
				if d <= got {
					atMost++
				}
				if d < got-got/16-time.Microsecond {
					below++
				}
			}
			rank := int(math.Ceil(p * float64(len(us))))
			if atMost < rank || below >= rank {
				t.Fatalf("p%g = %s: %d of %d at most that, %d clearly below", p*100, got, atMost, len(us), below)
			}
		}
	})
}

func TestBuckets(t *testing.T) {
	for us := range uint64(1 << 17) {
		i := bucket(us)
		if upper(i) < us || (i > 0 && upper(i-1) >= us) {
			t.Fatalf("%d is in bucket %d, (%d, %d]", us, i, upper(i-1), upper(i))
		}
	}
	if i := bucket(math.MaxUint64); i >= len(histogram{}.counts) {
		t.Errorf("the largest is in bucket %d", i)
	}
}
