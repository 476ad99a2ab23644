package proof

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

const (
	// patience bounds the wait for whatever must come, on a busy machine.
	patience = 10 * time.Second
	// look is how often a condition is looked at that nobody tells of.
	look = 2 * time.Millisecond

	vip4, vip6  = "198.51.100.10", "2001:db8:f::10"
	backendPort = 8080
	// longEach is the number of long connections of each of the two clients.
	longEach = 100
)

// town is two clients, a gateway with `weir run` on it, and four servers.
type town struct {
	tb testing.TB
	*lab.Topology
	binary  string // the weir that runs
	config  string
	state   string        // where weir keeps what it remembers
	servers []*lab.Server // of the backends, in their order
	kernel  *nft.Conn     // of the gateway
	log     *safeBuffer
	weir    *lab.Process
	ready   chan struct{} // weir said READY=1
}

// safeBuffer collects what a process writes.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newTown builds the network and starts the servers; weir runs when start was called.
func newTown(tb testing.TB) *town { return newTownOf(tb, 4) }

// newTownOf is newTown with another number of servers.
func newTownOf(tb testing.TB, backends int) *town {
	lab.Require(tb)
	topo := must(lab.Gateway(lab.GatewayOptions{Clients: 2, Backends: backends}))(tb)
	t := &town{tb: tb, Topology: topo, binary: build(tb), log: &safeBuffer{}}
	tb.Cleanup(func() { check(tb, t.Net.Close()) })
	t.servers = make([]*lab.Server, len(t.Backends))
	for i := range t.Backends {
		t.serve(i)
	}
	check(tb, t.Gateway.Do(func() (err error) { t.kernel, err = nft.Open(); return err }))
	tb.Cleanup(func() { t.kernel.Close() })
	t.config = filepath.Join(shortDir(tb), "weir.yaml")
	t.state = t.config + ".state"
	t.listen()
	return t
}

// serve starts the server of a backend.
func (t *town) serve(i int) {
	t.tb.Helper()
	b := t.Backends[i]
	t.servers[i] = must(lab.EchoTCP(b, b.Name, netip.AddrPortFrom(b.V4, backendPort).String(),
		netip.AddrPortFrom(b.V6, backendPort).String()))(t.tb)
}

// listen takes what weir tells systemd.
func (t *town) listen() {
	sock := must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: t.notifyPath(), Net: "unixgram"}))(t.tb)
	t.tb.Cleanup(func() { sock.Close() })
	t.ready = make(chan struct{}, 1)
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := sock.Read(buf)
			if err != nil {
				return
			}
			if strings.Contains("\n"+string(buf[:n]), "\nREADY=1") {
				t.ready <- struct{}{}
			}
		}
	}()
}

func (t *town) notifyPath() string { return t.config + ".notify" }

// start starts `weir run` and waits until it is ready.
func (t *town) start() {
	cmd := t.Gateway.Command(t.binary, "run", "--config", t.config, "--state", t.state)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+t.notifyPath())
	cmd.Stderr = t.log
	t.weir = must(t.Gateway.Start(cmd))(t.tb)
	t.await()
}

func (t *town) await() {
	t.tb.Helper()
	select {
	case <-t.ready:
	case <-t.weir.Done():
		t.tb.Fatalf("weir run ended:\n%s", t.log)
	case <-time.After(patience):
		t.tb.Fatalf("weir run does not say READY=1:\n%s", t.log)
	}
}

// reload makes weir load the file again and waits until it says that it has.
func (t *town) reload() {
	t.tb.Helper()
	check(t.tb, t.weir.Signal(syscall.SIGHUP))
	t.await()
}

// write replaces the configuration, at once.
func (t *town) write(cfg *model.Config) {
	tmp := t.config + ".new"
	check(t.tb, os.WriteFile(tmp, config.Marshal(cfg), 0o600))
	check(t.tb, os.Rename(tmp, t.config))
}

func (t *town) generation() uint32 { return must(t.kernel.Generation())(t.tb) }

// differs reports whether the kernel holds other rules than the file says.
func (t *town) differs() bool {
	want := plan.Build(must(config.Load(t.config))(t.tb), nil).Ruleset
	have, _, err := t.kernel.Read(t.tb.Context(), tables, want)
	check(t.tb, err)
	return !ruleset.Diff(have, want).Empty()
}

// counted returns the new connections of the service web, as `weir status` tells.
func (t *town) counted() int {
	cmd := t.Gateway.Command(t.binary, "status", "web", "-o", "json", "--config", t.config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, t.log
	check(t.tb, must(t.Gateway.Start(cmd))(t.tb).Wait())
	var st engine.Status
	check(t.tb, json.Unmarshal(out.Bytes(), &st))
	if len(st.Services) != 1 {
		t.tb.Fatalf("status of one service: %s", out.Bytes())
	}
	return int(st.Services[0].Total.NewConnections)
}

// service returns the service web with these weights; a backend of weight -1 is left out.
func (t *town) service(balance model.Balance, weights []int) *model.Service {
	s := &model.Service{Name: "web", Balance: balance}
	for _, a := range []string{vip4, vip6} {
		s.Listen = append(s.Listen, model.Listen{Addr: netip.MustParseAddr(a), Proto: model.TCP, Ports: model.Port(80)})
	}
	for i, b := range t.Backends {
		if weights[i] >= 0 {
			for _, a := range []netip.Addr{b.V4, b.V6} {
				s.Backends = append(s.Backends, model.Backend{Addr: a, Ports: model.Port(backendPort), Weight: weights[i]})
			}
		}
	}
	return s
}

func newConfig(services ...*model.Service) *model.Config {
	return &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask, Services: services}
}

// even is the configuration in which all four servers get the same.
func (t *town) even() *model.Config { return newConfig(t.service(model.RoundRobin, []int{1, 1, 1, 1})) }

// random returns a configuration in which some of the servers, with random weights,
// serve web, and which differs from others in all that may change under traffic.
func (t *town) random(r *rand.Rand) *model.Config {
	weights := make([]int, len(t.Backends))
	for i := range weights {
		weights[i] = r.IntN(10) - 1
	}
	weights[r.IntN(len(weights))] = 1 + r.IntN(8)
	s := t.service(model.Balance(r.IntN(4)), weights)
	if r.IntN(4) == 0 {
		s.Sticky = time.Duration(1+r.IntN(60)) * time.Second
	}
	if r.IntN(4) == 0 {
		s.Source.Mode = model.SourceMasquerade
	}
	cfg := newConfig(s)
	for i := range r.IntN(3) { // others come and go beside it
		other := t.service(model.Balance(r.IntN(4)), []int{1, 2, 3, 4})
		other.Name = fmt.Sprintf("other%d", i)
		for j := range other.Listen {
			other.Listen[j].Ports = model.PortRange{Lo: uint16(1000 * (i + 1)), Hi: uint16(1000*(i+1) + r.IntN(10))}
		}
		cfg.Services = append(cfg.Services, other)
	}
	return cfg
}

// wanted is the number of new connections a second that the traffic tests try for, and slow
// the one below which a test shows nothing. They are far apart because machines that run
// tests are shared: how many are reached is logged, and is no verdict on weir.
const wanted, slow = 1100, 100

// rate is the number of new connections a second to try for, and the one to reach.
func rate(tb testing.TB) (try, must float64) {
	v := os.Getenv("WEIR_PROOF_RATE")
	if v == "" {
		return wanted, slow
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil || n <= 0 {
		tb.Fatalf("WEIR_PROOF_RATE=%q: want a number of connections a second", v)
	}
	return 1.1 * n, n
}

// load is what the two clients do.
type load struct {
	tb   testing.TB
	rate float64 // new connections a second that it tries for
	must float64 // and those that it must reach
	long int     // long connections of each client
	runs []*lab.Running
}

// startLoad starts traffic over both families, and returns when the long connections are
// open.
func (t *town) startLoad() *load { return t.startLoadOf(longEach, 0) }

// startLoadOf is startLoad with another number of long connections of each client, and
// another time after which an answer is not waited for any more; 0 is the usual one.
func (t *town) startLoadOf(long int, timeout time.Duration) *load {
	l := &load{tb: t.tb, long: long}
	l.rate, l.must = rate(t.tb)
	for _, c := range t.Clients {
		l.runs = append(l.runs, must(lab.StartLoad(t.tb.Context(), lab.LoadSpec{
			Host: c, Network: "tcp", Targets: []string{vip4 + ":80", "[" + vip6 + "]:80"}, Timeout: timeout,
			Rate: l.rate / float64(len(t.Clients)), Reset: true, Long: long, LongEvery: 500 * time.Millisecond,
		}))(t.tb))
	}
	return l
}

// sofar adds up what the clients saw.
func (l *load) sofar() lab.LoadResult {
	sum := lab.LoadResult{Errors: map[string]int{}, ByBackend: map[string]int{}}
	for _, r := range l.runs {
		s := r.Snapshot()
		sum.Opened += s.Opened
		sum.Failed += s.Failed
		for k, v := range s.Errors {
			sum.Errors[k] += v
		}
		for k, v := range s.ByBackend {
			sum.ByBackend[k] += v
		}
		sum.Latency = worse(sum.Latency, s.Latency)
		sum.Long.Opened += s.Long.Opened
		sum.Long.Failed += s.Long.Failed
		sum.Long.Broken += s.Long.Broken
		sum.Long.Answers += s.Long.Answers
		sum.Long.MaxWait = max(sum.Long.MaxWait, s.Long.MaxWait)
		sum.Elapsed = max(sum.Elapsed, s.Elapsed)
	}
	return sum
}

// worse takes the larger figure of each.
func worse(a, b lab.Latency) lab.Latency {
	return lab.Latency{P50: max(a.P50, b.P50), P90: max(a.P90, b.P90), P99: max(a.P99, b.P99), Max: max(a.Max, b.Max)}
}

// more waits until the clients have opened, or failed to open, n more connections.
func (l *load) more(n int) {
	l.tb.Helper()
	begun := func() int { s := l.sofar(); return s.Opened + s.Failed }
	want := begun() + n
	until(l.tb, patience+time.Duration(float64(n)/l.rate*float64(time.Second)),
		fmt.Sprintf("%d more connections", n), func() bool { return begun() >= want })
}

// finish waits until what was begun before has come to an end: at once where there is an
// answer, or after the time that clients wait.
func (l *load) finish(wait time.Duration) {
	l.tb.Helper()
	time.Sleep(wait)          // nobody tells of a client that still waits
	l.more(len(l.runs) * 256) // as many as may be open at once
}

// stop ends the traffic and returns what the clients saw.
func (l *load) stop() lab.LoadResult {
	var stopping sync.WaitGroup
	for _, r := range l.runs {
		stopping.Go(func() { r.Stop() })
	}
	stopping.Wait()
	return l.sofar()
}

// flawless fails the test unless every connection was answered, the long ones to the
// end, and as many a second were opened as must be.
func (l *load) flawless(res lab.LoadResult) {
	l.tb.Helper()
	if res.Failed > 0 || res.Long.Broken > 0 || res.Long.Opened != len(l.runs)*l.long {
		l.tb.Errorf("%d connections failed; of %d long ones %d were opened and %d broke: %v", res.Failed,
			len(l.runs)*l.long, res.Long.Opened, res.Long.Broken, maps.Clone(res.Errors))
	}
	l.reached(res)
}

// reached fails the test unless as many connections a second were opened as must be.
func (l *load) reached(res lab.LoadResult) {
	l.tb.Helper()
	reached := float64(res.Opened+res.Failed) / res.Elapsed.Seconds()
	l.tb.Logf("%.0f new connections a second: %s", reached, res)
	if reached < l.must {
		l.tb.Errorf("%.0f new connections a second were opened, fewer than %.0f", reached, l.must)
	}
}

// until waits for a condition.
func until(tb testing.TB, bound time.Duration, what string, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(bound); !cond(); time.Sleep(look) {
		if time.Now().After(deadline) {
			tb.Fatalf("no %s within %s", what, bound)
		}
	}
}
