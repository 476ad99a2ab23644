package engine_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/nft/nftfake"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// compiled returns a list of these entries, which are dropped.
func compiled(t testing.TB, entries ...string) *blocklist.Compiled {
	t.Helper()
	return compiledAs(t, blocklist.Drop, entries...)
}

func compiledAs(t testing.TB, action blocklist.Action, entries ...string) *blocklist.Compiled {
	t.Helper()
	b := blocklist.NewBuilder("bad", blocklist.Options{Strict: true})
	if err := b.Add("bad.txt", strings.NewReader(strings.Join(entries, "\n"))); err != nil {
		t.Fatal(err)
	}
	c, err := blocklist.Compile([]blocklist.Use{{List: b.List(), Action: action}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// holdsBlocks fails the test unless the kernel blocks exactly what p says.
func holdsBlocks(t *testing.T, k *nftfake.Kernel, p *plan.Plan) {
	t.Helper()
	have, _, err := k.Read(ctx, engine.Tables, p.Ruleset)
	if err != nil {
		t.Fatal(err)
	}
	if d := ruleset.Diff(have, p.Ruleset); !d.Empty() {
		t.Fatalf("the kernel is not as wanted; still to do:\n%s", d)
	}
}

// hit makes packets meet an entry.
func hit(t *testing.T, k *nftfake.Kernel, p *plan.Plan, entry string, packets uint64) {
	t.Helper()
	at := netip.MustParsePrefix(entry)
	e, _ := p.Blocks.Compiled.Exact(at)
	set := p.Blocks.Set(e)
	if set == nil || !k.Hit(engine.BlocksTable, set.Name, string(ruleset.AppendAddr(nil, at.Addr())), packets, 10*packets, p.Blocks.Counts(e)...) {
		t.Fatalf("%s is not blocked", entry)
	}
}

func counted(t *testing.T, k *nftfake.Kernel, p *plan.Plan, address string) uint64 {
	t.Helper()
	n, _, err := (&engine.Hits{Kernel: k}).Count(ctx, p.Blocks, netip.MustParseAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	return n.Packets
}

// TestBlocksKeepTheirCounts changes lists, the action of one, and the weir, and wants one
// counter to go on; then somebody flushes all, and it begins anew.
func TestBlocksKeepTheirCounts(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k}
	want := uint64(0)
	apply := func(c *blocklist.Compiled) {
		t.Helper()
		e.Blocked = c
		if _, err := e.Apply(ctx, web(1)); err != nil {
			t.Fatal(err)
		}
		holdsBlocks(t, k, e.Plan())
	}
	check := func(when string) {
		t.Helper()
		if got := counted(t, k, e.Plan(), "192.0.2.7"); got != want {
			t.Errorf("%s: %d packets, want %d", when, got, want)
		}
		hit(t, k, e.Plan(), "192.0.2.7/32", 3)
		want += 3
	}
	apply(compiled(t, "192.0.2.7", "2001:db8::/48"))
	check("at first")
	many := []string{"192.0.2.7"}
	for i := range 200 { // the set has no room for them
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String())
	}
	apply(compiled(t, many...))
	check("in a larger set")
	apply(compiledAs(t, blocklist.Reject, many...))
	check("with another action")
	apply(compiledAs(t, blocklist.Reject, many[:100]...)) // which would get a smaller set if it were the first
	check("in a set with much room")
	before := k.Commits()
	e = &engine.Engine{Kernel: k}
	apply(compiledAs(t, blocklist.Reject, many[:100]...))
	if k.Commits() != before {
		t.Error("a restart committed")
	}
	check("after a restart")
	e = &engine.Engine{Kernel: k}
	apply(compiledAs(t, blocklist.Reject, many[:90]...))
	check("after a restart with another list")
	for _, many := range [][]string{many[1:90], many[:90]} { // it goes, and comes again
		apply(compiledAs(t, blocklist.Reject, many...))
	}
	want = 0
	check("after it was gone")
	e = &engine.Engine{Kernel: k} // the length has no other entry but this one
	apply(compiled(t, "192.0.2.7", "192.0.2.0/24"))
	check("alone")

	k.Flush()
	if rep, err := e.Repair(ctx); err != nil || rep.Delta.Empty() {
		t.Fatalf("repair did nothing: %v", err)
	}
	holdsBlocks(t, k, e.Plan())
	want = 0
	check("after a flush")
	apply(nil)
	if have, _, err := k.Read(ctx, engine.Tables, nil); err != nil || len(have.Tables) != 1 {
		t.Errorf("without lists there are %d tables (%v)", len(have.Tables), err)
	}
	apply(compiled(t, "192.0.2.7"))
	if removed, err := e.Clear(ctx); err != nil || !removed {
		t.Errorf("clear: %v", err)
	}
	if have, _, err := k.Read(ctx, engine.Tables, nil); err != nil || len(have.Tables) != 0 {
		t.Errorf("after clear there are %d tables (%v)", len(have.Tables), err)
	}
}

// TestRepairOfAnElement: an element that somebody took out comes again, though the marker
// says that nothing has changed.
func TestRepairOfAnElement(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k, Blocked: compiled(t, "192.0.2.7", "192.0.2.9")}
	if _, err := e.Apply(ctx, web(1)); err != nil {
		t.Fatal(err)
	}
	hit(t, k, e.Plan(), "192.0.2.9/32", 5)
	entry, _ := e.Plan().Blocks.Compiled.Exact(netip.MustParsePrefix("192.0.2.7/32"))
	set := e.Plan().Blocks.Set(entry)
	err := k.DeleteElements(ctx, engine.BlocksTable, set, []ruleset.Element{{Key: string(ruleset.AppendAddr(nil, netip.MustParseAddr("192.0.2.7")))}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	hit(t, k, e.Plan(), "192.0.2.7/32", 1)
	if n := counted(t, k, e.Plan(), "192.0.2.9"); n != 5 {
		t.Errorf("its neighbour has counted %d packets, want 5", n)
	}
}

// fakeLists is lists in the test's hands.
type fakeLists struct {
	mu      sync.Mutex
	now     *blocklist.Compiled
	next    *blocklist.Compiled // what the next Poll finds
	took    []*model.Config
	status  []lists.Status
	blocked []lists.Block
}

func (f *fakeLists) Take(cfg *model.Config) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took = append(f.took, cfg)
}

func (f *fakeLists) Poll() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		return false
	}
	f.now, f.next = f.next, nil
	return true
}

func (f *fakeLists) Compiled() *blocklist.Compiled {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fakeLists) Status() []lists.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.status)
}

func (f *fakeLists) Blocks() []lists.Block {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blocked
}

func (f *fakeLists) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// TestLoopLists: what a poll finds is committed and told; an operator's block is written
// down before the answer; a kernel that refuses it is asked again.
func TestLoopLists(t *testing.T) {
	k, clock := nftfake.New(), newClock()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := &fakeLists{now: compiled(t, "192.0.2.1"), status: []lists.Status{{Name: "bad", InUse: true, Entries: 1, ReadAt: at}}}
	var mu sync.Mutex
	var saved []engine.Memory
	cfg := web(1)
	loop := &engine.Loop{Engine: &engine.Engine{Kernel: k}, Lists: f, After: clock.After, Journal: engine.NewJournal(),
		Load: func() (engine.File, error) { return engine.File{Config: cfg}, nil },
		Log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		Save: func(m engine.Memory) error {
			mu.Lock()
			defer mu.Unlock()
			saved = append(saved, m)
			return nil
		}}
	loop.Start()
	run, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- loop.Run(run) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	view := func() engine.View {
		t.Helper()
		v, err := loop.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	blocks := func(v engine.View, a string) bool {
		_, ok := v.Blocks.Compiled.Find(netip.MustParseAddr(a))
		return ok
	}
	for view().Behind {
		time.Sleep(time.Millisecond)
	}
	if v := view(); !blocks(v, "192.0.2.1") || len(f.took) != 1 || f.took[0] != cfg {
		t.Error("the lists are not in the first commit")
	}
	f.set(func() {
		f.next = compiled(t, "192.0.2.2", "192.0.2.3")
		f.status = []lists.Status{{Name: "bad", InUse: true, Entries: 2, ReadAt: at.Add(time.Second), Problem: "no"}}
	})
	for !blocks(view(), "192.0.2.2") {
		clock.advance(time.Second)
		time.Sleep(time.Millisecond)
	}
	holdsBlocks(t, k, &plan.Plan{Ruleset: plan.Build(cfg, nil).WithBlocks(plan.NewBlocks(compiled(t, "192.0.2.2", "192.0.2.3"), nil)).Ruleset})

	k.Bar(engine.BlocksTable, unix.ENOMEM)
	no := errors.New("no")
	if err := loop.Relist(ctx, nil, "block", func() error { return no }); err != no {
		t.Errorf("a refused word: %v", err)
	}
	block := lists.Block{Prefix: netip.MustParsePrefix("192.0.2.9/32"), At: at}
	err := loop.Relist(ctx, nil, "block 192.0.2.9", func() error {
		f.set(func() { f.now, f.blocked = compiled(t, "192.0.2.9"), []lists.Block{block} })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if n := len(saved); n == 0 || len(saved[n-1].Blocks) != 1 {
		t.Error("a block is not written down")
	}
	mu.Unlock()
	if v := view(); !v.Behind || blocks(v, "192.0.2.9") {
		t.Error("the kernel refused it, and the view says that it is there")
	}
	// A reload is not held up by lists that the kernel refuses.
	more := web(1, 1)
	cfg = more
	if err := loop.ReloadNow(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if v := view(); !v.Applied || v.Reached() || blocks(v, "192.0.2.9") || !blocks(v, "192.0.2.2") {
		t.Error("the lists before do not hold")
	}
	holdsBlocks(t, k, &plan.Plan{Ruleset: plan.Build(more, nil).WithBlocks(plan.NewBlocks(compiled(t, "192.0.2.2", "192.0.2.3"), nil)).Ruleset})
	k.Bar(engine.BlocksTable, 0)
	for !blocks(view(), "192.0.2.9") {
		clock.advance(time.Second)
		time.Sleep(time.Millisecond)
	}
	var told []string
	events, _ := loop.Journal.Since(0)
	for _, e := range events {
		told = append(told, strings.TrimSpace(e.Kind+" "+e.List+" "+e.Message))
	}
	for _, want := range []string{"blocks bad taken: 1 entry", "blocks bad not taken, the last good one stays: no", "operator  block 192.0.2.9"} {
		if !slices.Contains(told, want) {
			t.Errorf("no event %q in %q", want, told)
		}
	}
}

// TestMemoryOfBlocks: what operators blocked is read back, and what nobody can have said is
// an error.
func TestMemoryOfBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := []lists.Block{{Prefix: netip.MustParsePrefix("192.0.2.7/32"), Why: "scraper", By: "alice", At: at, Until: at.Add(time.Hour)},
		{Prefix: netip.MustParsePrefix("2001:db8::/48"), At: at}}
	if err := engine.SaveMemory(path, engine.Memory{Blocks: want}); err != nil {
		t.Fatal(err)
	}
	if m, err := engine.LoadMemory(path); err != nil || !slices.Equal(m.Blocks, want) {
		t.Errorf("read back: %+v, %v", m.Blocks, err)
	}
	if err := engine.SaveMemory(path, engine.Memory{Blocks: []lists.Block{{Prefix: netip.MustParsePrefix("192.0.2.7/8")}}}); err != nil {
		t.Fatal(err)
	}
	if m, err := engine.LoadMemory(path); err == nil {
		t.Errorf("read back: %+v", m.Blocks)
	}
}

// TestHits follows counters from look to look.
func TestHits(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k, Blocked: compiled(t, "192.0.2.7", "192.0.2.0/24", "2001:db8::7")}
	if _, err := e.Apply(ctx, web(1)); err != nil {
		t.Fatal(err)
	}
	h := &engine.Hits{Kernel: k}
	look := func() []engine.Hit {
		t.Helper()
		if err := h.Look(ctx, e.Plan().Blocks); err != nil {
			t.Fatal(err)
		}
		top, _, _ := h.Top(10, "")
		return top
	}
	hit(t, k, e.Plan(), "192.0.2.7/32", 5)
	if top := look(); len(top) != 1 || !top[0].LastChange.IsZero() || top[0].Packets != 5 || top[0].Bytes != 50 || top[0].Lists[0] != "bad" {
		t.Errorf("the first look: %+v", top)
	}
	hit(t, k, e.Plan(), "2001:db8::7/128", 7)
	top := look()
	if len(top) != 2 || top[0].Entry != netip.MustParsePrefix("2001:db8::7/128") || top[0].LastChange.IsZero() || !top[1].LastChange.IsZero() {
		t.Errorf("the second: %+v", top)
	}
	at := top[0].LastChange
	hit(t, k, e.Plan(), "192.0.2.0/24", 1)
	if top = look(); len(top) != 3 || !top[0].LastChange.Equal(at) || top[2].Packets != 1 {
		t.Errorf("the third: %+v", top)
	}
	if n := h.Sums()["bad"]; n != (ruleset.Count{Packets: 8, Bytes: 80}) { // without what was there at first
		t.Errorf("sums: %+v", n)
	}
	if top, all, _ := h.Top(1, "bad"); len(top) != 1 || all != 3 {
		t.Errorf("one of %d: %+v", all, top)
	}
	if top, all, _ := h.Top(1, "good"); len(top) != 0 || all != 0 {
		t.Errorf("of another list: %d %+v", all, top)
	}
	k.Flush() // counters begin anew: the sums never fall
	if _, err := e.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	hit(t, k, e.Plan(), "2001:db8::7/128", 2)
	look()
	if n := h.Sums()["bad"]; n.Packets != 10 {
		t.Errorf("sums after a flush: %+v", n)
	}
}
