package engine_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/model"
	"weir/internal/nft/nftfake"
	"weir/internal/state"
)

// shelf is a Keeper on disk, whose disk may be full.
type shelf struct {
	*keep.Store
	mu   sync.Mutex
	full bool
}

func (s *shelf) Write(r keep.Record, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return errors.New("no space left on device")
	}
	return s.Store.Write(r, text)
}

func (s *shelf) fill(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

// keeping is a machine on which weirs that remember configurations come and go.
type keeping struct {
	*rig
	loop  *engine.Loop
	shelf *shelf
	stop  func()

	mu   sync.Mutex
	wall time.Time
	boot string
	up   time.Duration
}

func newKeeping(t *testing.T) *keeping {
	k := &keeping{wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), boot: "one", up: time.Hour,
		shelf: &shelf{Store: keep.Beside(filepath.Join(t.TempDir(), "state.json"))}}
	k.rig = &rig{t: t, k: nftfake.New(), clock: newClock()}
	return k
}

func (k *keeping) now() keep.Clock {
	k.mu.Lock()
	defer k.mu.Unlock()
	return keep.Clock{Wall: k.wall, Boot: k.boot, SinceBoot: k.up}
}

// pass lets time go by, whether a weir runs or not.
func (k *keeping) pass(d time.Duration) {
	k.mu.Lock()
	k.wall, k.up = k.wall.Add(d), k.up+d
	k.mu.Unlock()
	k.clock.advance(d)
}

// start starts a weir, which ends with stop: killed, for nothing is done at the end.
func (k *keeping) start() {
	k.t.Helper()
	k.clock, k.reload = newClock(), make(chan struct{})
	k.states, k.reports = make(chan string, 1000), make(chan engine.Report, 10000)
	reports, states := k.reports, k.states
	k.loop = &engine.Loop{Engine: &engine.Engine{Kernel: k.k}, Load: k.load, Reload: k.reload,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), After: k.clock.After,
		Now: func() time.Time { return k.now().Wall }, Clock: k.now, Kept: k.shelf, Parse: k.parse, Journal: engine.NewJournal(),
		Notify: func(s string) { states <- s }, Report: func(rep engine.Report) { reports <- rep }}
	k.loop.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	loop := k.loop
	go func() { done <- loop.Run(ctx) }()
	k.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			k.t.Errorf("the loop ended with %v", err)
		}
	})
	k.t.Cleanup(k.stop)
	k.state("ready")
}

// holds waits until the kernel holds the weights.
func (k *keeping) holds(when string, weights ...int) {
	k.t.Helper()
	for start := time.Now(); !holdsNow(k.k, web(weights...)); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			k.t.Fatalf("%s: the kernel did not come to hold %v", when, weights)
		}
	}
}

// nothing waits until the kernel holds no service.
func (k *keeping) nothing(when string) {
	k.t.Helper()
	for start := time.Now(); !holdsNow(k.k, &model.Config{}); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			k.t.Fatalf("%s: the kernel still holds services", when)
		}
	}
}

var alice = &state.Operator{UID: 1000, User: "alice", PID: 42}

func (k *keeping) apply(within time.Duration) error {
	return k.loop.Apply(context.Background(), alice, within)
}

func (k *keeping) confirm() error {
	_, err := k.loop.Confirm(context.Background(), alice)
	return err
}

func (k *keeping) view() engine.View {
	k.t.Helper()
	v, err := k.loop.View(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	return v
}

// said counts the events of a kind.
func (k *keeping) said(kind string) (n int) {
	list, _ := k.loop.Journal.Since(0)
	for _, e := range list {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func (k *keeping) ok(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func TestConfirmed(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	if err := k.confirm(); !errors.Is(err, engine.ErrNothing) {
		t.Errorf("with nothing to confirm: %v", err)
	}
	k.file(web(1, 5), nil)
	k.ok(k.apply(time.Minute))
	k.holds("applied", 1, 5)
	if w := k.view().Waiting; w == nil || w.Left != 60 || w.By == nil || w.By.User != "alice" || w.File != "/etc/weir/weir.yaml" {
		t.Errorf("waiting: %+v", w)
	}
	k.pass(59 * time.Second)
	k.ok(k.confirm())
	if v := k.view(); v.Waiting != nil || v.Rejected != nil {
		t.Errorf("confirmed, and %+v, %+v", v.Waiting, v.Rejected)
	}
	for range 3 {
		k.pass(time.Hour)
		k.view()
	}
	k.holds("long after", 1, 5)
	if k.said("apply") != 1 || k.said("confirm") != 1 || k.said("back") != 0 {
		t.Error("events are wrong")
	}
	k.stop()
	k.start()
	k.holds("after a restart", 1, 5)
}

func TestNotConfirmed(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	k.file(web(1, 5), nil)
	k.ok(k.apply(time.Minute))
	k.holds("applied", 1, 5)
	k.pass(59 * time.Second)
	k.view()
	k.holds("just before", 1, 5)
	k.pass(time.Second)
	k.holds("over", 1, 1)
	v := k.view()
	if v.Waiting != nil || v.Rejected == nil || k.said("back") != 1 {
		t.Errorf("went back: %+v, %+v", v.Waiting, v.Rejected)
	}
	if err := k.confirm(); !errors.Is(err, engine.ErrNothing) {
		t.Errorf("confirmed too late: %v", err)
	}
	// The file still has the text: SIGHUP and a start do not take it, a word does.
	before := k.said("error")
	k.reload <- struct{}{}
	k.view()
	k.holds("SIGHUP", 1, 1)
	if k.said("error") != before+1 {
		t.Error("SIGHUP with the text that was not confirmed: nothing is said")
	}
	for range 2 {
		k.stop()
		k.start()
		k.holds("started again", 1, 1)
		if k.said("error") != 1 || k.view().Rejected == nil {
			t.Error("started over a file that was not confirmed: nothing is said")
		}
	}
	k.file(web(1, 7), nil)
	k.reload <- struct{}{}
	k.holds("SIGHUP with another text", 1, 7)
	k.file(web(1, 5), nil)
	k.reload <- struct{}{}
	k.holds("the text that once was not confirmed, after another was taken", 1, 5)
}

func TestMeantAgain(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	k.file(web(1, 5), nil)
	k.ok(k.apply(time.Minute))
	k.pass(time.Minute)
	k.holds("over", 1, 1)
	k.ok(k.loop.ReloadNow(context.Background(), alice))
	k.holds("weir reload", 1, 5)
	k.stop()
	k.start()
	k.holds("and after a restart", 1, 5)
}

// TestWhileItWaits: reload, apply and SIGHUP are refused; another apply --confirm takes its
// place, and goes back to the last confirmed one.
func TestWhileItWaits(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	k.file(web(1, 5), nil)
	k.ok(k.apply(time.Minute))
	k.file(web(1, 6), nil)
	if err := k.loop.ReloadNow(context.Background(), alice); !errors.Is(err, engine.ErrWaiting) {
		t.Errorf("reload: %v", err)
	}
	if err := k.apply(0); !errors.Is(err, engine.ErrWaiting) || !strings.Contains(err.Error(), "weir confirm") {
		t.Errorf("apply: %v", err)
	}
	k.reload <- struct{}{}
	k.view()
	k.holds("refused", 1, 5)
	k.pass(40 * time.Second)
	k.ok(k.apply(time.Minute))
	k.holds("another", 1, 6)
	k.pass(40 * time.Second)
	k.view()
	k.holds("after the first one's time", 1, 6)
	bad := errors.New("a mistake")
	k.file(nil, bad)
	if err := k.apply(time.Hour); !errors.Is(err, bad) {
		t.Errorf("a wrong file: %v", err)
	}
	k.pass(20 * time.Second)
	k.holds("over", 1, 1)
	// A wrong file leaves nothing that waits.
	if err := k.apply(time.Hour); !errors.Is(err, bad) || k.view().Waiting != nil {
		t.Errorf("a wrong file: %v, %+v", err, k.view().Waiting)
	}
}

// TestKilledWhileItWaits kills weir, and starts it again before the time is over and after;
// in the same boot and in another, with a clock that is right and one that was set back.
func TestKilledWhileItWaits(t *testing.T) {
	for name, c := range map[string]struct {
		down   time.Duration
		boot   string
		clock  time.Duration // by which the wall clock is set
		before bool          // the time is not over
	}{
		"before":                          {20 * time.Second, "one", 0, true},
		"after":                           {61 * time.Second, "one", 0, false},
		"before, clock set back":          {20 * time.Second, "one", -24 * time.Hour, true},
		"after, clock set back":           {61 * time.Second, "one", -24 * time.Hour, false},
		"before, another boot":            {20 * time.Second, "two", 0, true},
		"after, another boot":             {61 * time.Second, "two", 0, false},
		"another boot and clock set back": {20 * time.Second, "two", -24 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeping(t)
			k.file(web(1, 1), nil)
			k.start()
			k.file(web(1, 5), nil)
			k.ok(k.apply(time.Minute))
			k.pass(10 * time.Second)
			k.stop()
			k.pass(c.down)
			k.mu.Lock()
			k.wall = k.wall.Add(c.clock)
			if c.boot != k.boot {
				k.boot, k.up = c.boot, 5*time.Second
				k.k.Flush() // the kernel is new as well
			}
			k.mu.Unlock()
			k.file(web(1, 9), nil) // edited meanwhile, and nobody said so
			k.start()
			if !c.before {
				k.holds("started after", 1, 1)
				if k.view().Rejected == nil || k.said("back") != 1 {
					t.Error("went back, and does not say so")
				}
				return
			}
			k.holds("started before", 1, 5)
			k.mu.Lock()
			k.wall = k.wall.Add(-48 * time.Hour) // whoever sets the clock gains nothing
			k.mu.Unlock()
			k.pass(29 * time.Second)
			k.view()
			k.holds("still before", 1, 5)
			k.pass(time.Second)
			k.holds("over", 1, 1)
		})
	}
}

// TestConfirmedAfterRestart: the weir that was started again is told.
func TestConfirmedAfterRestart(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	k.file(web(1, 5), nil)
	k.ok(k.apply(time.Minute))
	k.stop()
	k.start()
	k.holds("started", 1, 5)
	k.ok(k.confirm())
	k.pass(time.Hour)
	k.view()
	k.holds("long after", 1, 5)
}

// TestFullDiskAndConfirm: what cannot be written down is not begun, not confirmed, and gone
// back from all the same.
func TestFullDiskAndConfirm(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	k.file(web(1, 5), nil)
	k.shelf.fill(true)
	if err := k.apply(time.Minute); !errors.Is(err, engine.ErrNotKept) || k.view().Waiting != nil {
		t.Errorf("applied with a full disk: %v, %+v", err, k.view().Waiting)
	}
	k.holds("full", 1, 1)
	k.shelf.fill(false)
	k.ok(k.apply(time.Minute))
	k.shelf.fill(true)
	if err := k.confirm(); err == nil || k.view().Waiting == nil {
		t.Errorf("confirmed with a full disk: %v", err)
	}
	k.pass(time.Minute)
	k.holds("over", 1, 1)
	k.shelf.fill(false)
	k.pass(time.Second)
	k.view()
	if r, err := k.shelf.Read(); err != nil || r.Pending != nil || r.Rejected == nil {
		t.Errorf("written when it could be: %+v, %v", r, err)
	}
	// One that was taken without being written down is nothing to go back to until it is.
	k.shelf.fill(true)
	k.file(web(1, 6), nil)
	k.ok(k.apply(0))
	k.holds("taken", 1, 6)
	k.file(web(1, 7), nil)
	if err := k.apply(time.Minute); !errors.Is(err, engine.ErrNotKept) {
		t.Errorf("with nothing to go back to: %v", err)
	}
	k.shelf.fill(false)
	k.ok(k.apply(time.Minute))
	k.holds("written when it could be", 1, 7)
	k.stop()
	k.pass(time.Minute)
	k.start()
	k.holds("gone back", 1, 6)
}

// TestFirstOfAll: before the first configuration there was nothing, and a weir goes back to
// that, too.
func TestFirstOfAll(t *testing.T) {
	k := newKeeping(t)
	text := k.rig.text(web(1, 5))
	var r keep.Record
	r.Propose(keep.Config{File: "/etc/weir/weir.yaml", Sum: keep.Sum(text), At: k.now().Wall}, time.Minute, k.now())
	k.ok(k.shelf.Write(r, text)) // as weir apply does without a running weir
	k.file(web(1, 5), nil)
	k.start()
	k.holds("started before", 1, 5)
	k.pass(time.Minute)
	k.nothing("over")
	k.stop()
	k.start()
	k.nothing("started again")
	k.file(web(1, 6), nil)
	k.ok(k.apply(time.Minute))
	k.holds("applied", 1, 6)
	k.pass(time.Minute)
	k.nothing("over again")
}

// TestLostTexts: without the text to go back to, weir starts with what waits, and keeps it.
func TestLostTexts(t *testing.T) {
	k := newKeeping(t)
	k.file(web(1, 1), nil)
	k.start()
	k.file(web(1, 5), nil)
	k.ok(k.apply(time.Minute))
	k.stop()
	r, err := k.shelf.Read()
	k.ok(err)
	gone := *r.Confirmed
	gone.Sum = keep.Sum("lost")
	r.Confirmed = &gone
	k.ok(k.shelf.Write(r, ""))
	k.start()
	k.holds("started", 1, 5)
	if err := k.apply(time.Minute); !errors.Is(err, engine.ErrNotKept) {
		t.Errorf("with nothing to go back to: %v", err)
	}
	k.ok(k.confirm())
	k.stop()
	k.start()
	k.holds("confirmed", 1, 5)
}
