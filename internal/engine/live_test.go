package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/health"
	"weir/internal/model"
	"weir/internal/nft/nftfake"
	"weir/internal/state"
)

// asked is a Checker that remembers whom to ask.
type asked struct{ targets chan []health.Target }

func (a *asked) Set(t []health.Target) { a.targets <- t }

// traffic is a connection table in the test's hands.
type traffic struct {
	live  map[engine.Member]int
	ended chan []engine.Cut
}

func (t *traffic) Count(context.Context, *model.Config) (map[engine.Member]int, error) {
	return t.live, nil
}

func (t *traffic) End(_ context.Context, cuts []engine.Cut) (int, error) {
	t.ended <- cuts
	return len(cuts), nil
}

// live is a loop with checks.
type live struct {
	*rig
	loop  *engine.Loop
	table *traffic
	asked chan []health.Target
	saved chan engine.Memory
}

func checked(weights ...int) *model.Config {
	cfg := web(weights...)
	cfg.Services[0].Check = &model.Check{Kind: model.CheckTCP, Every: time.Second, Timeout: time.Second, Rise: 2, Fall: 3}
	return cfg
}

func startLive(t *testing.T, cfg *model.Config, memory engine.Memory) *live {
	t.Helper()
	return startLiveWith(t, cfg, memory, func(*engine.Loop) {})
}

// startLiveWith is startLive with a loop that more is put into.
func startLiveWith(t *testing.T, cfg *model.Config, memory engine.Memory, more func(*engine.Loop)) *live {
	t.Helper()
	r := &rig{t: t, k: nftfake.New(), clock: newClock(), cfg: cfg, reload: make(chan struct{}),
		states: make(chan string, 100), reports: make(chan engine.Report, 1000)}
	l := &live{rig: r, asked: make(chan []health.Target, 100), saved: make(chan engine.Memory, 100),
		table: &traffic{live: map[engine.Member]int{}, ended: make(chan []engine.Cut, 100)}}
	l.loop = &engine.Loop{Engine: &engine.Engine{Kernel: r.k}, Load: r.load, Reload: r.reload,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), After: r.clock.After,
		Notify: func(s string) { r.states <- s }, Report: func(rep engine.Report) { r.reports <- rep },
		Checks: &asked{l.asked}, Results: engine.NewInbox(), Traffic: l.table, Memory: memory, Journal: engine.NewJournal(),
		Save: func(m engine.Memory) error { l.saved <- m; return nil }}
	more(l.loop)
	l.loop.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the loop ended with %v", err)
		}
	})
	r.state("ready")
	return l
}

// weights waits until the kernel holds the service with these weights.
func (l *live) weights(weights ...int) {
	l.t.Helper()
	for deadline := time.After(10 * time.Second); ; {
		if holdsNow(l.k, web(weights...)) {
			return
		}
		select {
		case <-l.reports:
		case <-deadline:
			l.t.Fatalf("the kernel did not come to hold weights %v", weights)
		}
	}
}

// holdsNow reports what holds asserts.
func holdsNow(k *nftfake.Kernel, cfg *model.Config) bool {
	probe := &verdict{}
	holds(probe, k, cfg)
	return !probe.failed
}

type verdict struct{ failed bool }

func (v *verdict) Helper()               {}
func (v *verdict) Fatalf(string, ...any) { v.failed = true }

func (l *live) answer(id string, ok bool, n int) {
	for range n {
		l.loop.Results.Put(health.Update{ID: id, Result: health.Result{OK: ok, At: time.Now(), Detail: "as the test says"}})
	}
}

func (l *live) say(m engine.Member, change func(state.Word) state.Word) {
	l.t.Helper()
	if err := l.loop.Say(context.Background(), nil, m, change, "test"); err != nil {
		l.t.Fatal(err)
	}
}

var first = engine.Member{Service: "web", Backend: "10.1.1.1:8080"}

func TestChecksTakeOutAndBringBack(t *testing.T) {
	l := startLive(t, checked(1, 1), engine.Memory{})
	if targets := <-l.asked; len(targets) != 2 || targets[0].ID != "web/10.1.1.1:8080" || targets[0].Port != 8080 {
		t.Fatalf("asked %+v", targets)
	}
	l.answer("web/10.1.1.1:8080", true, 1)
	l.answer("web/10.1.1.1:8080", false, 3)
	l.weights(0, 1)
	if cuts := <-l.table.ended; len(cuts) != 1 || cuts[0].Backend.ID() != first.Backend || cuts[0].All {
		t.Errorf("ended %+v, want the UDP flows of the backend that went down", cuts)
	}
	l.answer("web/10.1.1.1:8080", true, 2)
	l.weights(1, 1)
	events, _ := l.loop.Journal.Since(0)
	var states []string
	for _, e := range events {
		if e.Kind == "state" {
			states = append(states, e.From+">"+e.To)
		}
	}
	if len(states) != 2 || states[0] != "up>down" || states[1] != "down>up" {
		t.Errorf("events %v", events)
	}
}

func TestOnDownReset(t *testing.T) {
	cfg := checked(1, 1)
	cfg.Services[0].OnDown = model.Reset
	l := startLive(t, cfg, engine.Memory{})
	l.answer("web/10.1.1.1:8080", false, 3)
	if cuts := <-l.table.ended; len(cuts) != 1 || !cuts[0].All {
		t.Errorf("ended %+v, want all connections of the backend", cuts)
	}
}

func TestOperatorsWords(t *testing.T) {
	l := startLive(t, checked(1, 1), engine.Memory{})
	l.table.live = map[engine.Member]int{first: 3}
	l.say(first, func(w state.Word) state.Word { w.Admin = state.Drain; return w })
	l.weights(0, 1)
	if w := <-l.saved; w.Words[first].Admin != state.Drain {
		t.Errorf("saved %+v", w)
	}
	v, err := l.loop.View(context.Background())
	if err != nil || v.Backends["web"][0].State != state.Draining {
		t.Errorf("%+v (%v), want draining", v.Backends, err)
	}
	l.say(first, func(state.Word) state.Word { return state.Word{} })
	l.weights(1, 1)
	five := 5
	l.say(first, func(w state.Word) state.Word { w.Weight = &five; return w })
	l.weights(5, 1)
	missing := engine.Member{Service: "web", Backend: "10.9.9.9:1"}
	if err := l.loop.Say(context.Background(), nil, missing, func(w state.Word) state.Word { return w }, ""); !errors.Is(err, engine.ErrNoBackend) {
		t.Errorf("a backend that is not there: %v", err)
	}
}

// TestSayAgain: a backend that drains goes on as it was when its weight changes or the same
// is said again: since when, by whom, until when, and the connections that were counted.
func TestSayAgain(t *testing.T) {
	l := startLive(t, checked(1, 1), engine.Memory{})
	l.table.live = map[engine.Member]int{first: 3}
	alice, bob := &state.Operator{UID: 1, User: "alice", PID: 11}, &state.Operator{UID: 2, User: "bob"}
	say := func(by *state.Operator, change func(*state.Word)) {
		t.Helper()
		err := l.loop.Say(context.Background(), by, first, func(w state.Word) state.Word { change(&w); return w }, "test")
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func() (state.Word, state.Backend) {
		t.Helper()
		v, err := l.loop.View(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return v.Words[first], v.Backends["web"][0]
	}
	until := time.Now().Add(time.Hour)
	say(alice, func(w *state.Word) { w.Admin, w.Deadline = state.Drain, until })
	for counted := false; !counted; {
		l.clock.advance(time.Second)
		_, b := look()
		counted = b.Reason == "by operator alice; 3 connections left"
	}
	before, was := look()
	nine := 9
	say(bob, func(w *state.Word) { w.Weight = &nine })
	if w, b := look(); !w.At.Equal(before.At) || !w.Deadline.Equal(until) || *w.By != *alice || b.Reason != was.Reason || !b.Since.Equal(was.Since) {
		t.Errorf("another weight: %+v, %+v; before %+v, %+v", w, b, before, was)
	}
	say(bob, func(w *state.Word) { w.Admin = state.Drain })
	if w, b := look(); !w.At.Equal(before.At) || *w.By != *alice || b.Reason != was.Reason {
		t.Errorf("said again: %+v, %+v; before %+v, %+v", w, b, before, was)
	}
	say(bob, func(w *state.Word) { w.Admin, w.Deadline = state.Disable, time.Time{} })
	if w, b := look(); !w.At.After(before.At) || *w.By != *bob || b.Reason != "by operator bob" {
		t.Errorf("another word: %+v, %+v", w, b)
	}
	events, _ := l.loop.Journal.Since(0)
	if e := events[0]; e.Kind != "operator" || e.By == nil || *e.By != *alice {
		t.Errorf("the first event is %+v", e)
	}
}

// TestEffective: who plans with what a running weir knows plans what that one does when it
// loads the file.
func TestEffective(t *testing.T) {
	member := func(n int) engine.Member {
		return engine.Member{Service: "web", Backend: fmt.Sprintf("10.1.1.%d:8080", n)}
	}
	l := startLive(t, checked(1, 1, 1, 1, 1, 1), engine.Memory{})
	four := 4
	l.say(member(1), func(w state.Word) state.Word { w.Admin = state.Drain; return w })
	l.say(member(2), func(w state.Word) state.Word { w.Weight = &four; return w })
	l.answer(targetOf(member(3)), false, 3)
	l.answer(targetOf(member(4)), false, 3)
	l.weights(0, 4, 0, 0, 1, 1)
	l.say(member(4), func(w state.Word) state.Word { w.Admin = state.Disable; return w })
	l.answer(targetOf(member(5)), false, 3)
	l.answer(targetOf(member(5)), true, 2)
	l.weights(0, 4, 0, 0, 1, 1)

	backup := checked(1, 1, 1, 1, 1, 1, 1, 1)
	backup.Services[0].MinHealthy = 0.9
	backup.Services[0].Backends[7].Backup = true
	open := checked(2, 2, 2)
	open.Services[0].WhenAllDown, open.Services[0].MinHealthy = model.FailOpen, 1
	unasked := checked(1, 2, 3, 4)
	unasked.Services[0].Check = nil
	for name, c := range map[string]struct {
		next *model.Config
		want []int // as they follow from the file and what is known
	}{
		"other weights":       {checked(5, 5, 5, 5, 6, 7), []int{0, 4, 0, 0, 6, 7}},
		"fewer":               {checked(1, 1), []int{0, 4}},
		"backups":             {backup, []int{0, 4, 0, 0, 1, 1, 1, 1}},
		"fail-open":           {open, []int{0, 4, 2}},
		"nobody is asked now": {unasked, []int{0, 4, 3, 0}},
	} {
		v, err := l.loop.View(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		next := engine.Effective(c.next, v.Known(), time.Now())
		for i, b := range next.Services[0].Backends {
			if next.Services[0] != c.next.Services[0] && b.Weight != c.want[i]*state.Scale {
				t.Errorf("%s: backend %d gets %d, want %d of %d", name, i, b.Weight, c.want[i], state.Scale)
			}
		}
		l.file(c.next, nil)
		if err := l.loop.ReloadNow(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := l.loop.View(context.Background()); err != nil {
			t.Fatal(err)
		}
		holds(t, l.k, next)
		l.file(checked(1, 1, 1, 1, 1, 1), nil)
		if err := l.loop.ReloadNow(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		l.answer(targetOf(member(3)), false, 3)
		l.weights(0, 4, 0, 0, 1, 1)
	}
}

func targetOf(m engine.Member) string { return m.Service + "/" + m.Backend }

// TestMemory: what operators said, and who was down, holds after a restart, before any check.
func TestMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	seven := 7
	said := map[engine.Member]state.Word{
		first: {Admin: state.Disable, At: time.Now().Round(0), By: &state.Operator{UID: 7, User: "alice", PID: 8}},
		{Service: "web", Backend: "10.1.1.2:8080"}: {Weight: &seven, At: time.Now().Round(0)},
	}
	down := map[engine.Member]state.Health{
		{Service: "web", Backend: "10.1.1.3:8080"}: {Down: true, Reason: "refused", Since: time.Now().Round(0)}}
	if err := engine.SaveMemory(path, engine.Memory{Words: said, Down: down}); err != nil {
		t.Fatal(err)
	}
	words, err := engine.LoadMemory(path)
	if err != nil || len(words.Words) != 2 || len(words.Down) != 1 {
		t.Fatalf("%+v (%v)", words, err)
	}
	if by := words.Words[first].By; by == nil || *by != (state.Operator{UID: 7, User: "alice", PID: 8}) {
		t.Errorf("said by %+v", by)
	}
	l := startLive(t, checked(1, 1, 1, 1), words)
	l.weights(0, 7, 0, 1)
	for _, target := range <-l.asked {
		if target.ID == "web/10.1.1.1:8080" {
			t.Error("a disabled backend is checked")
		}
	}
}

// TestReloadKeepsHealth: a backend that is down stays so over a reload.
func TestReloadKeepsHealth(t *testing.T) {
	l := startLive(t, checked(1, 1), engine.Memory{})
	l.answer("web/10.1.1.1:8080", false, 3)
	l.weights(0, 1)
	l.file(checked(1, 4), nil)
	if err := l.loop.ReloadNow(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	l.weights(0, 4)
}

// TestMemoryFile: what is not there says nothing; what cannot be understood is refused whole.
func TestMemoryFile(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"torn": `{"version": 1, "words": [{"service": "web", "back`, "later": `{"version": 2, "words": []}`, "other": "[]",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if words, err := engine.LoadMemory(path); err == nil || words.Words != nil {
			t.Errorf("%s: %v, %v; want an error and nothing read", name, words, err)
		}
	}
	if words, err := engine.LoadMemory(filepath.Join(dir, "missing")); err != nil || words.Words != nil {
		t.Errorf("missing: %v, %v", words, err)
	}
	if err := engine.SaveMemory(filepath.Join(dir, "no", "such", "folder"), engine.Memory{}); err == nil {
		t.Error("a file that cannot be written gives no error")
	}
}

// TestFullDisk: what cannot be saved is tried again, said once, and saved when it can be.
func TestFullDisk(t *testing.T) {
	var mu sync.Mutex
	full := true
	saved := make(chan struct{}, 100)
	l := startLive(t, checked(1, 1), engine.Memory{})
	if err := l.loop.Do(context.Background(), func() {
		l.loop.Save = func(engine.Memory) error {
			mu.Lock()
			defer mu.Unlock()
			if full {
				return errors.New("no space left on device")
			}
			saved <- struct{}{}
			return nil
		}
	}); err != nil {
		t.Fatal(err)
	}
	l.say(first, func(w state.Word) state.Word { w.Admin = state.Disable; return w })
	for range 5 {
		<-l.clock.asked
		l.clock.advance(time.Second)
	}
	mu.Lock()
	full = false
	mu.Unlock()
	for done := false; !done; {
		l.clock.advance(time.Second)
		select {
		case <-saved:
			done = true
		case <-l.reports:
		}
	}
	said := 0
	events, _ := l.loop.Journal.Since(0)
	for _, e := range events {
		if e.Kind == "error" {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times, want once", said)
	}
}

// TestResumedWords starts over words of a weir whose clock was an hour ahead: a drain of
// ten seconds has ten seconds.
func TestResumedWords(t *testing.T) {
	later := time.Now().Add(time.Hour)
	l := startLive(t, checked(1, 1), engine.Memory{Words: map[engine.Member]state.Word{
		first: {Admin: state.Drain, At: later, Deadline: later.Add(10 * time.Second)}}})
	v, err := l.loop.View(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(v.Words[first].Deadline); left > 10*time.Second || left < -time.Minute {
		t.Errorf("the drain ends in %s", left)
	}
	if b := v.Backends["web"][0]; b.State != state.Draining || b.Since.After(time.Now()) {
		t.Errorf("%+v", b)
	}
}

// TestJournalIsBounded keeps the last events, and no more, however many came.
func TestJournalIsBounded(t *testing.T) {
	const kept = 4096
	j := engine.NewJournal()
	for i := range 5 * kept / 2 {
		_, more := j.Since(math.MaxUint64)
		j.Add(engine.Event{})
		<-more
		if n := i + 1; n%1000 == 0 || n == kept || n == kept+1 || n == 2*kept+1 {
			list, _ := j.Since(0)
			if len(list) != min(n, kept) || list[len(list)-1].Seq != uint64(n) || list[0].Seq != uint64(max(n-kept, 0)+1) {
				t.Fatalf("after %d: %d events, %d to %d", n, len(list), list[0].Seq, list[len(list)-1].Seq)
			}
			if list, _ = j.Since(uint64(n - 3)); len(list) != 3 {
				t.Errorf("after %d: %d events since the last but three", n, len(list))
			}
		}
	}
}
