package proof

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"weir/internal/config"
	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/health"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/ruleset"
	"weir/internal/state"
)

// inner is a weir within the test, on the gateway's kernel, whose clock and kernel the
// test can tamper with.
type inner struct {
	*engine.Loop
	t *town
}

// fileOf makes a file's reader of what makes a configuration.
func fileOf(load func() (*model.Config, error)) func() (engine.File, error) {
	return func() (engine.File, error) {
		cfg, err := load()
		return engine.File{Config: cfg}, err
	}
}

// startInner starts one. probe is how its checks ask; nil: nobody asks.
func (t *town) startInner(load func() (*model.Config, error), k engine.Kernel, now func() time.Time,
	probe func(context.Context, health.Target) health.Result) *inner {
	t.tb.Helper()
	var flows *conntrack.Conn
	check(t.tb, t.Gateway.Do(func() (err error) { flows, err = conntrack.Open(); return err }))
	events := must(t.kernel.Monitor(t.tb.Context()))(t.tb)
	results := engine.NewInbox()
	prober := health.NewProber(results.Put, health.Options{Probe: probe})
	ready := make(chan struct{}, 100)
	w := &inner{t: t, Loop: &engine.Loop{Engine: &engine.Engine{Kernel: k}, Load: fileOf(load), Now: now, Events: events,
		Log: slog.New(slog.NewTextHandler(t.log, nil)), Checks: prober, Results: results,
		Traffic: engine.Conntrack{Conn: flows}, Journal: engine.NewJournal(),
		Notify: func(s string) {
			if s == "ready" {
				ready <- struct{}{}
			}
		}}}
	if probe == nil {
		w.Checks = nobody{}
	}
	w.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.tb.Errorf("the loop ended with %v", err)
		}
		prober.Close()
		flows.Close()
	})
	select {
	case <-ready:
	case <-time.After(2 * patience):
		t.tb.Fatalf("the loop is not ready:\n%.2000s", t.log)
	}
	return w
}

// nobody is a Checker that does not ask.
type nobody struct{}

// Set implements engine.Checker.
func (nobody) Set([]health.Target) {}

// probe returns what asks a backend whether it can be connected to. Who is dead here refuses
// at once; who is slow is well, for this process has more to do than a weir.
func (t *town) probe(now func() time.Time) func(context.Context, health.Target) health.Result {
	return func(ctx context.Context, to health.Target) health.Result {
		start := time.Now()
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		c, err := t.Gateway.Dial(ctx, "tcp", "", netip.AddrPortFrom(to.Addr, to.Port).String())
		if err == nil {
			c.Close()
		}
		return health.Result{OK: err == nil, At: now(), Latency: time.Since(start), Detail: fmt.Sprint(err)}
	}
}

// is reports whether a backend of web is in a state in both families.
func (w *inner) is(i int, want state.Name) bool {
	w.t.tb.Helper()
	v := must(w.View(w.t.tb.Context()))(w.t.tb)
	n := 0
	for k, b := range v.Config.Service("web").Backends {
		for _, id := range w.t.ids(i) {
			if b.ID() == id && v.Backends["web"][k].State == want {
				n++
			}
		}
	}
	return n == 2 && v.Applied
}

func (w *inner) await(i int, want state.Name) {
	w.t.tb.Helper()
	until(w.t.tb, patience, fmt.Sprintf("state %s of backend %d", want, i+1), func() bool { return w.is(i, want) })
}

// became counts how often a backend of web came to be in a state.
func (w *inner) became(i int, want state.Name) (n int) {
	events, _ := w.Journal.Since(0)
	for _, e := range events {
		if e.To == string(want) && slices.Contains(w.t.ids(i), e.Backend) {
			n++
		}
	}
	return n
}

// say says a word of a backend of web in both families.
func (w *inner) say(i int, word state.Word) {
	w.t.tb.Helper()
	for _, id := range w.t.ids(i) {
		check(w.t.tb, w.Say(w.t.tb.Context(), nil, engine.Member{Service: "web", Backend: id},
			func(state.Word) state.Word { return word }, "test"))
	}
}

// setBack returns what time.Now would have returned in place of now, had somebody set the
// machine's clock back meanwhile: the wall clock reads less, the monotonic one goes on.
// There is no other way to make such a time, and no clock that a test may set.
func setBack(tb testing.TB, now time.Time, by time.Duration) time.Time {
	t := now
	// With a monotonic reading a time.Time begins with a bit, 33 of seconds, 30 of
	// nanoseconds; see the source of package time.
	*(*uint64)(unsafe.Pointer(&t)) -= uint64(by/time.Second) << 30
	if t.Sub(now) != 0 || now.Round(0).Sub(t.Round(0)) != by {
		tb.Errorf("package time is laid out otherwise: %s became %s", now, t)
	}
	return t
}

// clockSetBack sets the clock of a weir back, and lets all happen that has to do with time;
// then starts one over a state file that was written before the clock was set back.
func clockSetBack(tt *testing.T) (saw string) {
	t := newTown(tt)
	var back atomic.Bool
	now := func() time.Time {
		if back.Load() {
			return setBack(tt, time.Now(), time.Hour)
		}
		return time.Now()
	}
	s := t.checked(quick())
	s.SlowStart = time.Second
	t.write(newConfig(s))
	w := t.startInner(func() (*model.Config, error) { return config.Load(t.config) }, t.kernel, now, t.probe(now))
	l := t.startLoadOf(longEach, time.Second)
	l.more(int(l.rate / 2))
	w.say(1, state.Word{Admin: state.Drain, At: now(), Deadline: now().Add(2 * time.Second)})
	back.Store(true)
	w.say(2, state.Word{Admin: state.Drain, At: now(), Deadline: now().Add(time.Second)})
	a, start := t.arrivals(0), time.Now()
	check(tt, t.servers[0].Close())
	w.await(0, state.Down)
	took := a.Last().Sub(start)
	t.serve(0)
	w.await(0, state.Up)
	if n := w.became(0, state.Starting); n != 2 {
		tt.Errorf("%d backends climbed to their weight, want one in each family", n)
	}
	w.await(1, state.Drained) // with connections that are open still
	w.await(2, state.Drained)
	must(t.Gateway.Run("nft", "delete", "table", "inet", "weir"))(tt)
	until(tt, repairBound, "repair", func() bool { _, err := t.Gateway.Run("nft", "list", "table", "inet", "weir"); return err == nil })
	l.more(int(1.2 * l.rate))
	settled := l.sofar().Failed
	l.more(int(l.rate / 2))
	res := l.stop()
	if res.Failed > settled {
		tt.Errorf("%d connections failed when all was well again", res.Failed-settled)
	}
	t.restartInThePast()
	return fmt.Sprintf("%s: those of a backend that died, of a table that was deleted, and of two drains whose time was over; the dead backend had its last new connection after %d ms",
		ofAll(res), took.Milliseconds())
}

// restartInThePast starts a weir whose state file is of an hour later.
func (t *town) restartInThePast() {
	t.tb.Helper()
	t2 := newTown(t.tb)
	t2.write(newConfig(t2.checked(quick())))
	later := time.Now().Add(time.Hour)
	type entry map[string]any
	var words, down []entry
	for _, id := range t2.ids(1) {
		words = append(words, entry{"service": "web", "backend": id, "admin": "drain", "at": later, "deadline": later.Add(2 * time.Second)})
	}
	for _, id := range t2.ids(2) {
		down = append(down, entry{"service": "web", "backend": id, "reason": "refused", "since": later})
	}
	check(t.tb, os.WriteFile(t2.state, must(json.Marshal(map[string]any{"version": 1, "words": words, "down": down}))(t.tb), 0o600))
	long := t2.startLoadOfDrained()
	t2.awaitIs(state.Drained, 1)
	t2.awaitIs(state.Up, 2)
	long()
}

// startLoadOfDrained starts weir, and holds a connection to the backend that it drains, so
// that only the deadline can end the drain.
func (t *town) startLoadOfDrained() (end func()) {
	t.tb.Helper()
	only := t.service(model.RoundRobin, []int{-1, 1, -1, -1})
	good := must(os.ReadFile(t.config))(t.tb)
	t.write(newConfig(only))
	must(t.Gateway.Run(t.binary, "apply", "--config", t.config))(t.tb)
	l := t.startLoadOf(10, 0)
	check(t.tb, os.WriteFile(t.config, good, 0o600))
	t.start()
	return func() {
		if res := l.stop(); res.Long.Broken > 0 || res.Long.Opened == 0 || res.Failed > 0 {
			t.tb.Errorf("beside a drain whose time is over: %s", res)
		}
	}
}

// forgetful is the kernel, of which every other answer to a commit gets lost.
type forgetful struct {
	*nft.Conn
	commits, lost int
}

// Apply implements engine.Kernel.
func (k *forgetful) Apply(ctx context.Context, d *ruleset.Delta, gen uint32) (uint32, error) {
	now, err := k.Conn.Apply(ctx, d, gen)
	if err != nil {
		return now, err
	}
	if k.commits++; k.commits%2 == 1 {
		return now, nil
	}
	k.lost++
	return 0, fmt.Errorf("as the test wants: %w", nft.ErrUncertain)
}

// lostAnswers loses the answers to every other commit while backends go out and come back.
func lostAnswers(tt *testing.T) (saw string) {
	t := newTown(tt)
	t.write(t.even())
	k := &forgetful{Conn: t.kernel}
	w := t.startInner(func() (*model.Config, error) { return config.Load(t.config) }, k, time.Now, nil)
	l := t.startLoad()
	for n := range 40 {
		w.say(n%4, state.Word{Admin: state.Disable, At: time.Now()})
		w.await(n%4, state.Disabled)
		l.more(int(l.rate / 100))
		w.say(n%4, state.Word{})
		w.await(n%4, state.Up)
	}
	res := l.stop()
	l.flawless(res)
	lost := 0
	check(tt, w.Do(tt.Context(), func() { lost = k.lost })) // the loop's goroutine owns it
	if lost < 40 || t.differs() {
		tt.Errorf("%d answers were lost; the rules are other than the file says: %t", lost, t.differs())
	}
	if log := t.log.String(); strings.Contains(log, "level=ERROR") {
		tt.Errorf("%.2000s", log)
	}
	return fmt.Sprintf("%s, in %d changes of which the answer was lost", ofAll(res), lost)
}

// burstSpan is the time in which all change.
const burstSpan = time.Second

// burst has 10,000 backends of other services go down within a second, and come up again.
func burst(tt *testing.T) (saw string) {
	const services, each = 1000, 10
	t := newTown(tt)
	cfg := newConfig(t.checked(nil))
	c := &model.Check{Kind: model.CheckTCP, Every: time.Second, Timeout: time.Second, Rise: 1, Fall: 1}
	var ids []string
	for i := range services {
		s := &model.Service{Name: fmt.Sprintf("s%d", i), Check: c, WhenAllDown: model.Reject, Listen: []model.Listen{
			{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Proto: model.TCP, Ports: model.Port(80)}}}
		for k := range each {
			b := model.Backend{Addr: netip.AddrFrom4([4]byte{10, 200 + byte(k), byte(i >> 8), byte(i)}), Ports: model.Port(80), Weight: 1}
			s.Backends = append(s.Backends, b)
			ids = append(ids, s.Name+"/"+b.ID())
		}
		cfg.Services = append(cfg.Services, s)
	}
	counting := &counter{Conn: t.kernel}
	w := t.startInner(func() (*model.Config, error) { return cfg, nil }, counting, time.Now, nil)
	l := t.startLoad()
	l.more(int(l.rate / 2))
	var words []string
	for _, up := range []bool{false, true} {
		commits := counting.n.Load()
		start := time.Now()
		for i := range ids { // one of each service, then the next of each
			at := i%services*each + i/services
			w.Results.Put(health.Update{ID: ids[at], Result: health.Result{OK: up, At: time.Now(), Detail: "test"}})
			if wait := time.Until(start.Add(burstSpan * time.Duration(i) / time.Duration(len(ids)))); wait > 0 {
				time.Sleep(wait)
			}
		}
		fed := time.Since(start)
		until(tt, 6*patience, "state of all of them", func() bool { return w.allAre(map[bool]state.Name{false: state.Down, true: state.Up}[up]) })
		took := time.Since(start)
		words = append(words, fmt.Sprintf("%.1f s and %d commits", took.Seconds(), counting.n.Load()-commits))
		tt.Logf("up %t: fed in %s, done after %s", up, fed, took)
	}
	res := l.stop()
	// How many a second is no question here: this process does the work of weir, too.
	if res.Failed+res.Long.Failed+res.Long.Broken > 0 {
		tt.Errorf("another service: %s", res)
	}
	if n := counting.n.Load(); n > 1000 {
		tt.Errorf("%d commits for 20,000 changes", n)
	}
	return fmt.Sprintf("%s, of another service; all were out after %s, all in after %s", ofAll(res), words[0], words[1])
}

// counter counts the commits of the kernel.
type counter struct {
	*nft.Conn
	n atomic.Int64
}

// Apply implements engine.Kernel.
func (k *counter) Apply(ctx context.Context, d *ruleset.Delta, gen uint32) (uint32, error) {
	k.n.Add(1)
	return k.Conn.Apply(ctx, d, gen)
}

// allAre reports whether every backend that is checked is in a state, and the kernel too.
func (w *inner) allAre(want state.Name) bool {
	w.t.tb.Helper()
	v := must(w.View(w.t.tb.Context()))(w.t.tb)
	for _, s := range v.Config.Services {
		if s.Check == nil {
			continue
		}
		for _, b := range v.Backends[s.Name] {
			if b.State != want {
				return false
			}
		}
	}
	return v.Applied
}
