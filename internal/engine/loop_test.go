package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/nft/nftfake"
	"weir/internal/ruleset"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time.After in the test's hands: it goes on when the test says so.
type clock struct {
	mu      sync.Mutex
	now     time.Duration
	waiting []alarm
	asked   chan time.Duration // every wait that somebody begins
}

type alarm struct {
	at time.Duration
	ch chan time.Time
}

func newClock() *clock { return &clock{asked: make(chan time.Duration, 1000)} }

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.waiting = append(c.waiting, alarm{c.now + d, ch})
	c.asked <- d
	return ch
}

// advance lets d pass.
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	left := c.waiting[:0]
	for _, a := range c.waiting {
		if a.at <= c.now {
			a.ch <- time.Time{}
		} else {
			left = append(left, a)
		}
	}
	c.waiting = left
}

// rig is a loop that runs on a fake kernel.
type rig struct {
	t       *testing.T
	k       *nftfake.Kernel
	clock   *clock
	reload  chan struct{}
	states  chan string
	reports chan engine.Report
	mu      sync.Mutex
	cfg     *model.Config
	err     error
	texts   map[string]*model.Config
}

func (r *rig) load() (engine.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return engine.File{}, r.err
	}
	c := *r.cfg // as a file that is read again: other pointers
	c.Services = nil
	for _, s := range r.cfg.Services {
		s := *s
		c.Services = append(c.Services, &s)
	}
	return engine.File{Path: "/etc/weir/weir.yaml", Text: r.text(r.cfg), Config: &c}, nil
}

// text names a configuration as its text would.
func (r *rig) text(cfg *model.Config) string {
	if r.texts == nil {
		r.texts = map[string]*model.Config{}
	}
	var words []string
	for _, s := range cfg.Services {
		words = append(words, fmt.Sprintf("%s %v\n", s.Name, s.Backends))
	}
	text := strings.Join(words, "")
	r.texts[text] = cfg
	return text
}

// parse finds the configuration of a text.
func (r *rig) parse(_, text string) (*model.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if text == engine.Nothing {
		return &model.Config{}, nil
	}
	if cfg := r.texts[text]; cfg != nil {
		return cfg, nil
	}
	return nil, errors.New("no such text")
}

func (r *rig) file(cfg *model.Config, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cfg, r.err = cfg, err
}

// start runs a loop until the test ends. prepare may harm the kernel before.
func start(t *testing.T, cfg *model.Config, prepare func(*nftfake.Kernel)) *rig {
	t.Helper()
	r := &rig{t: t, k: nftfake.New(), clock: newClock(), cfg: cfg, reload: make(chan struct{}),
		states: make(chan string, 100), reports: make(chan engine.Report, 1000)}
	if prepare != nil {
		prepare(r.k)
	}
	ctx, cancel := context.WithCancel(context.Background())
	events, err := r.k.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	loop := &engine.Loop{Engine: &engine.Engine{Kernel: r.k}, Load: r.load, Reload: r.reload, Events: events,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), After: r.clock.After,
		Notify: func(s string) { r.states <- s }, Report: func(rep engine.Report) { r.reports <- rep }}
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the loop ended with %v", err)
		}
	})
	return r
}

func (r *rig) state(want string) {
	r.t.Helper()
	select {
	case got := <-r.states:
		if got != want {
			r.t.Fatalf("state %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		r.t.Fatalf("state %q was not reached", want)
	}
}

func (r *rig) report() engine.Report {
	r.t.Helper()
	select {
	case rep := <-r.reports:
		return rep
	case <-time.After(10 * time.Second):
		r.t.Fatal("no report")
		return engine.Report{}
	}
}

func TestLoopReload(t *testing.T) {
	r := start(t, web(1, 1), nil)
	r.state("ready")
	r.file(web(1, 5), nil)
	r.reload <- struct{}{}
	r.state("reloading")
	r.state("ready")
	holds(t, r.k, web(1, 5))

	r.file(nil, errors.New("a mistake"))
	r.reload <- struct{}{}
	r.state("reloading")
	r.state("ready")
	holds(t, r.k, web(1, 5))
}

func TestLoopRefusesABadFirstFile(t *testing.T) {
	bad := errors.New("a mistake")
	loop := &engine.Loop{Engine: &engine.Engine{Kernel: nftfake.New()}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Load: func() (engine.File, error) { return engine.File{}, bad }}
	if err := loop.Run(context.Background()); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
}

// TestLoopRepairs: an event leads to a repair after a short while, and a lost event to
// one at the next look.
func TestLoopRepairs(t *testing.T) {
	r := start(t, web(1, 1), nil)
	r.state("ready")
	r.report() // of the first apply
	for range 3 {
		r.k.Flush()
		for repaired := false; !repaired; {
			r.clock.advance(time.Second)
			repaired = !r.report().Delta.Empty()
		}
		holds(t, r.k, web(1, 1))
	}
}

// TestLoopTriesAgain: a commit that the kernel refuses is tried again, after pauses that
// grow, until it succeeds.
func TestLoopTriesAgain(t *testing.T) {
	r := start(t, web(1, 1), func(k *nftfake.Kernel) {
		for range 2 {
			k.Refuse(unix.ENOMEM)
		}
	})
	var pauses []time.Duration
	for len(pauses) < 2 {
		if d := <-r.clock.asked; d < time.Second { // the others are of the poll
			pauses = append(pauses, d)
			r.clock.advance(d)
		}
	}
	r.state("ready")
	holds(t, r.k, web(1, 1))
	if pauses[1] != 2*pauses[0] {
		t.Errorf("pauses %v: want each twice the one before", pauses)
	}
}

// countingKernel counts how often everything is read.
type countingKernel struct {
	*nftfake.Kernel
	reads int
}

func (k *countingKernel) Read(ctx context.Context, refs []nft.TableRef, expect *ruleset.Ruleset) (*ruleset.Ruleset, uint32, error) {
	k.reads++
	return k.Kernel.Read(ctx, refs, expect)
}

// TestForeignCommitsCostNoRead: what others do in their own tables is followed by the
// events alone.
func TestForeignCommitsCostNoRead(t *testing.T) {
	k := &countingKernel{Kernel: nftfake.New()}
	e := &engine.Engine{Kernel: k}
	if _, err := e.Apply(ctx, web(1, 1)); err != nil {
		t.Fatal(err)
	}
	before := k.reads
	for range 10 {
		k.Touch()
		gen, err := k.Generation()
		if err != nil {
			t.Fatal(err)
		}
		e.Moved(gen)
		if _, err := e.Repair(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if k.reads != before {
		t.Errorf("%d reads for foreign commits", k.reads-before)
	}
	k.Touch() // and one whose event is lost
	if _, err := e.Repair(ctx); err != nil || k.reads != before+1 {
		t.Errorf("%d reads for a commit without an event (%v), want 1", k.reads-before, err)
	}
}
