package engine_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/health"
	"weir/internal/model"
	"weir/internal/nft/nftfake"
	"weir/internal/plan"
	"weir/internal/ruleset"
	"weir/internal/state"
)

// addressList returns n of them, from the at-th of 198.18.0.0/15 on.
func addressList(at, n int) []string {
	out := make([]string, n)
	for i := range out {
		k := at + i
		out[i] = netip.AddrFrom4([4]byte{198, 18 + byte(k>>16), byte(k >> 8), byte(k)}).String()
	}
	return out
}

// slow is a kernel that lets a commit of blocklists through when the test says so.
type slow struct {
	*nftfake.Kernel
	held   chan struct{} // a commit of blocklists waits
	let    chan struct{} // it may go on
	closed atomic.Bool   // all may
	order  chan string   // what was committed, by its table, in the order of the beginnings
}

func newSlow() *slow {
	s := &slow{Kernel: nftfake.New(), held: make(chan struct{}), let: make(chan struct{}), order: make(chan string, 1000)}
	s.Meet(func(d *ruleset.Delta) {
		name := d.Tables[0].Table.Name
		s.order <- name
		if name == plan.BlocksTableName && !s.closed.Load() {
			s.held <- struct{}{}
			<-s.let
		}
	})
	return s
}

// watched is a loop over lists and a kernel, with a check.
type watched struct {
	*engine.Loop
	t       *testing.T
	k       *slow
	f       *fakeLists
	clock   *clock
	results *engine.Inbox
	cfg     atomic.Pointer[model.Config]
	stop    func()
}

func watch(t *testing.T, k *slow, large ...string) *watched {
	t.Helper()
	f := &fakeLists{now: compiled(t)}
	w := &watched{t: t, k: k, f: f, clock: newClock(), results: engine.NewInbox()}
	cfg := checked(1, 1)
	cfg.Services[0].Balance = model.Maglev // a backend that goes is one transaction
	w.cfg.Store(cfg)
	run, cancel := context.WithCancel(ctx)
	events, err := k.Monitor(run)
	if err != nil {
		t.Fatal(err)
	}
	w.Loop = &engine.Loop{Engine: &engine.Engine{Kernel: k}, Lists: f, After: w.clock.After, Journal: engine.NewJournal(), Events: events,
		Load:   func() (engine.File, error) { return engine.File{Config: w.cfg.Load()}, nil },
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
		Checks: noChecks{}, Results: w.results}
	w.Start()
	done := make(chan error, 1)
	go func() { done <- w.Run(run) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if !k.closed.Swap(true) {
			close(k.let)
		}
		go func() {
			for range k.held {
			}
		}()
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(k.held)
	})
	t.Cleanup(w.stop)
	k.closed.Store(true)
	for w.view().Behind {
		time.Sleep(time.Millisecond)
	}
	w.load(large)
	return w
}

// load makes the list another one, and waits for its first piece.
func (w *watched) load(entries []string) {
	w.t.Helper()
	w.k.let = make(chan struct{})
	w.k.closed.Store(false)
	next := compiled(w.t, entries...)
	w.f.set(func() { w.f.next = next })
	w.until("it is on its way", func() bool {
		select {
		case <-w.k.held:
			return true
		default:
			return false
		}
	})
}

type noChecks struct{}

func (noChecks) Set([]health.Target) {}

func (w *watched) view() engine.View {
	w.t.Helper()
	v, err := w.View(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// until lets time go by until ok.
func (w *watched) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not reached: %s", what)
		}
		w.clock.advance(time.Second)
	}
}

// down has the checks find a backend down.
func (w *watched) down(i int) {
	for range 3 {
		w.results.Put(health.Update{ID: "web/" + w.cfg.Load().Services[0].Backends[i].ID(), Result: health.Result{At: time.Now(), Detail: "test"}})
	}
}

// passes lets pieces of lists through until the kernel is given something else, which it wants
// to be the case before the third.
func (w *watched) passes(what string) {
	w.t.Helper()
	for pieces := 0; ; {
		select {
		case name := <-w.k.order:
			if name != plan.BlocksTableName {
				return
			}
		case <-w.k.held:
			pieces++
		case <-time.After(5 * time.Millisecond): // whoever waits for his turn has it before who comes
			if pieces == 3 {
				w.t.Fatalf("%s waits behind %d pieces of lists", what, pieces)
			}
			select {
			case w.k.let <- struct{}{}:
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// TestHealthGoesPastLists: while the kernel takes a large list, in pieces, a backend that goes
// down is out after one of them, so is one that an operator takes out, and the view says that
// lists are on their way; a reload is answered when its lists are there.
func TestHealthGoesPastLists(t *testing.T) {
	k := newSlow()
	w := watch(t, k, addressList(0, 100_000)...)
	if v := w.view(); !v.Applied || !v.Behind || v.Reached() {
		t.Errorf("applied %t, behind %t", v.Applied, v.Behind)
	}
	for len(k.order) > 0 {
		<-k.order
	}
	w.down(0)
	w.passes("a backend that is down")
	said := make(chan error, 1)
	go func() {
		b := w.cfg.Load().Services[0].Backends[1].ID()
		said <- w.Say(ctx, nil, engine.Member{Service: "web", Backend: b}, weightTo(0), "weight 0")
	}()
	w.passes("an operator's word")
	if err := <-said; err != nil {
		t.Fatal(err)
	}
	if v := w.view(); !v.Behind || v.Backends["web"][0].Weight+v.Backends["web"][1].Weight > 0 {
		t.Errorf("behind %t, backends %+v", v.Behind, v.Backends["web"])
	}
	answered := make(chan error, 1)
	go func() { answered <- w.ReloadNow(ctx, nil) }()
	pieces := 0
	for reloaded := false; !reloaded; {
		select {
		case err := <-answered:
			if err != nil {
				t.Error(err)
			}
			reloaded = true
			if v := w.view(); v.Behind {
				t.Error("the answer came before the lists")
			}
		case k.let <- struct{}{}:
			pieces++
		case <-k.held:
		}
	}
	if pieces < 4 {
		t.Errorf("the rest of 100,000 entries came in %d pieces", pieces)
	}
	v := w.view()
	holdsBlocks(t, k.Kernel, (&plan.Plan{Ruleset: k.services(t)}).WithBlocks(v.Blocks))
}

// services returns the kernel's table of services as it is.
func (s *slow) services(t *testing.T) *ruleset.Ruleset {
	t.Helper()
	have, _, err := s.Read(ctx, engine.Tables[:1], nil)
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func weightTo(n int) func(w state.Word) state.Word {
	return func(w state.Word) state.Word { w.Weight = &n; return w }
}

// TestNewestListWins: lists that are on their way when others come are left there, and what
// is there in the end is the newest. A weir that ends in the middle leaves what the next one
// goes on from.
func TestNewestListWins(t *testing.T) {
	k := newSlow()
	first, second := addressList(0, 20_000), addressList(10_000, 20_000)
	w := watch(t, k, first...)
	k.let <- struct{}{}
	<-k.held
	third := compiled(t, append(second, "192.0.2.9")...)
	answered := make(chan error, 1)
	go func() {
		answered <- w.Relist(ctx, nil, "block 192.0.2.9", func() error {
			w.f.set(func() { w.f.now = third })
			return nil
		})
	}()
	w.until("the word is said", func() bool {
		events, _ := w.Journal.Since(0)
		return slices.ContainsFunc(events, func(e engine.Event) bool { return e.Kind == "operator" })
	})
	k.closed.Store(true)
	close(k.let)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	v := w.view()
	if v.Behind || v.Blocks.Compiled != third {
		t.Error("the newest lists are not there")
	}
	holdsBlocks(t, k.Kernel, (&plan.Plan{Ruleset: k.services(t)}).WithBlocks(v.Blocks))
	hit(t, k.Kernel, &plan.Plan{Blocks: v.Blocks}, "192.0.2.9/32", 5)

	// The next one is cut off in the middle.
	w.load(append(first, "192.0.2.9"))
	k.let <- struct{}{}
	<-k.held
	w.stop()
	e := &engine.Engine{Kernel: k.Kernel, Blocked: compiled(t, append(first, "192.0.2.9")...)}
	if _, err := e.Apply(ctx, w.cfg.Load()); err != nil {
		t.Fatal(err)
	}
	holdsBlocks(t, k.Kernel, &plan.Plan{Ruleset: e.Plan().Ruleset.Unmarked()})
	if n := counted(t, k.Kernel, e.Plan(), "192.0.2.9"); n != 5 {
		t.Errorf("an entry that stayed has counted %d packets, want 5", n)
	}
}

// fenced is a fence with lists in force.
func fenced(t *testing.T, entries ...string) (*nftfake.Kernel, *engine.Fence) {
	t.Helper()
	k := nftfake.New()
	f := (&engine.Engine{Kernel: k}).Fence()
	if _, err := f.Apply(ctx, compiled(t, entries...), nil); err != nil {
		t.Fatal(err)
	}
	return k, f
}

// TestFenceOverOthers: others commit before each piece, and nothing begins anew for that;
// when they take the table away in the middle, it does.
func TestFenceOverOthers(t *testing.T) {
	k, f := fenced(t, addressList(0, 40_000)...)
	commits := k.Commits()
	pieces := 0
	k.Meet(func(d *ruleset.Delta) {
		if pieces++; pieces%2 == 0 { // the other one is its next try
			k.Interfere()
		}
		if pieces == 7 {
			k.Flush()
		}
	})
	rep, err := f.Apply(ctx, compiled(t, addressList(15_000, 40_000)...), nil)
	if err != nil {
		t.Fatal(err)
	}
	k.Meet(nil)
	holdsBlocks(t, k, (&plan.Plan{Ruleset: &ruleset.Ruleset{}}).WithBlocks(f.Blocks()))
	if n := k.Commits() - commits; n > 20 || rep.Delta.Empty() {
		t.Errorf("%d commits", n)
	}
}

// TestFenceGoesBack: when the kernel refuses a piece in the middle, the lists before are there
// again, with what they have counted.
func TestFenceGoesBack(t *testing.T) {
	k, f := fenced(t, addressList(0, 20_000)...)
	before := f.Blocks()
	hit(t, k, &plan.Plan{Blocks: before}, "198.18.0.0/32", 7)
	pieces := 0
	k.Meet(func(d *ruleset.Delta) {
		if pieces++; pieces == 3 {
			k.Refuse(unix.ENOMEM)
		}
	})
	_, err := f.Apply(ctx, compiled(t, addressList(10_000, 20_000)...), nil)
	if !errors.Is(err, unix.ENOMEM) || strings.Contains(err.Error(), "not all there") {
		t.Fatalf("refused: %v", err)
	}
	if pieces < 4 || f.Blocks() != before {
		t.Errorf("after %d pieces it did not go back", pieces)
	}
	holdsBlocks(t, k, (&plan.Plan{Ruleset: &ruleset.Ruleset{}}).WithBlocks(before))
	if n := counted(t, k, &plan.Plan{Blocks: before}, "198.18.0.0"); n != 7 {
		t.Errorf("it has counted %d packets, want 7", n)
	}
}
