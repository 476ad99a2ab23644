package engine_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/nft/nftfake"
	"weir/internal/plan"
	"weir/internal/ruleset"
	"weir/internal/vip"
)

var (
	ctx   = context.Background()
	table = engine.Tables[0]
)

// web returns a configuration of one service with a backend for each weight.
func web(weights ...int) *model.Config {
	s := &model.Service{Name: "web", Listen: []model.Listen{
		{Addr: netip.MustParseAddr("198.51.100.10"), Proto: model.TCP, Ports: model.Port(80)}}}
	for i, w := range weights {
		s.Backends = append(s.Backends, model.Backend{
			Addr: netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}), Ports: model.Port(8080), Weight: w})
	}
	return &model.Config{HashSeed: 1, MarkMask: model.DefaultMarkMask, Services: []*model.Service{s}}
}

// holds fails the test unless the kernel holds exactly what cfg asks for.
func holds(t interface {
	Helper()
	Fatalf(string, ...any)
}, k *nftfake.Kernel, cfg *model.Config) {
	t.Helper()
	want := plan.Build(cfg, nil).Ruleset
	have, _, err := k.Read(ctx, engine.Tables, want)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if d := ruleset.Diff(have, want); !d.Empty() {
		t.Fatalf("the kernel is not as wanted; still to do:\n%s", d)
	}
}

func TestApplyTwiceCommitsOnce(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k}
	for range 2 {
		if _, err := e.Apply(ctx, web(1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	holds(t, k, web(1, 1))
	if k.Commits() != 1 {
		t.Errorf("%d commits, want 1", k.Commits())
	}
}

func TestRestartAdopts(t *testing.T) {
	k := nftfake.New()
	if _, err := (&engine.Engine{Kernel: k}).Apply(ctx, web(1, 1)); err != nil {
		t.Fatal(err)
	}
	rep, err := (&engine.Engine{Kernel: k}).Apply(ctx, web(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	if !rep.Delta.Empty() || k.Commits() != 1 {
		t.Errorf("a restart committed again: %s", rep.Delta)
	}
}

// TestRestartTrustsNoComment starts where a rule was edited, comment kept, while no weir
// was running. Preview has to tell of it, too.
func TestRestartTrustsNoComment(t *testing.T) {
	k := nftfake.New()
	if _, err := (&engine.Engine{Kernel: k}).Apply(ctx, web(1, 1)); err != nil {
		t.Fatal(err)
	}
	if !k.EditRule(table, "prerouting", 0) {
		t.Fatal("no rule to edit")
	}
	e := &engine.Engine{Kernel: k}
	_, d, err := e.Preview(ctx, web(1, 1))
	if err != nil || d.Empty() {
		t.Errorf("preview sees nothing to do (%v)", err)
	}
	if rep, err := e.Apply(ctx, web(1, 1)); err != nil || rep.Delta.Empty() {
		t.Errorf("nothing was put back (%v)", err)
	}
	holds(t, k, web(1, 1))
}

func TestFailedCommitChangesNothing(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k}
	if _, err := e.Apply(ctx, web(1, 1)); err != nil {
		t.Fatal(err)
	}
	k.Refuse(unix.ENOMEM)
	if _, err := e.Apply(ctx, web(2, 1)); !errors.Is(err, unix.ENOMEM) {
		t.Fatalf("got %v, want ENOMEM", err)
	}
	holds(t, k, web(1, 1))
	if got := e.Plan().Config.Services[0].Backends[0].Weight; got != 1 {
		t.Errorf("the plan says weight %d after a failure, want 1", got)
	}
	if _, err := e.Apply(ctx, web(2, 1)); err != nil {
		t.Fatal(err)
	}
	holds(t, k, web(2, 1))
}

func TestOthersCommitMeanwhile(t *testing.T) {
	for name, fault := range map[string]func(*nftfake.Kernel){
		"stale generation": (*nftfake.Kernel).Interfere,
		"lost answer":      (*nftfake.Kernel).LoseAnswer,
	} {
		t.Run(name, func(t *testing.T) {
			k := nftfake.New()
			e := &engine.Engine{Kernel: k}
			fault(k)
			if _, err := e.Apply(ctx, web(1, 1)); err != nil {
				t.Fatal(err)
			}
			holds(t, k, web(1, 1))
		})
	}
}

func TestRepair(t *testing.T) {
	for name, harm := range map[string]func(*nftfake.Kernel){
		"flush":       (*nftfake.Kernel).Flush,
		"chain empty": func(k *nftfake.Kernel) { k.FlushChain(table, "prerouting") },
		"rule edited": func(k *nftfake.Kernel) { k.EditRule(table, "prerouting", 0) },
		"table off":   func(k *nftfake.Kernel) { k.SwitchOff(table) },
	} {
		t.Run(name, func(t *testing.T) {
			k := nftfake.New()
			e := &engine.Engine{Kernel: k}
			if _, err := e.Apply(ctx, web(1, 1)); err != nil {
				t.Fatal(err)
			}
			harm(k)
			rep, err := e.Repair(ctx)
			if err != nil || rep.Delta.Empty() {
				t.Fatalf("repair did nothing (%v)", err)
			}
			holds(t, k, web(1, 1))
			if rep, err = e.Repair(ctx); err != nil || !rep.Delta.Empty() {
				t.Errorf("a second repair did %s (%v)", rep.Delta, err)
			}
		})
	}
}

// TestConverges: whatever fails on the way, trying again ends with what is wanted, and a
// failure leaves what was there.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := nftfake.New()
		k.FailAtRandom(rapid.Uint64().Draw(t, "seed"), 0.3)
		e := &engine.Engine{Kernel: k}
		for i := range 4 {
			cfg := configtest.RandomModel(t, &configtest.Options{MaxServices: 4, MaxBackends: 3, MaxRange: 4, NoAssign: true})
			var err error
			for range 50 {
				if _, err = e.Apply(ctx, cfg); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatalf("configuration %d: %v", i, err)
			}
			holds(t, k, cfg)
		}
	})
}

func TestClear(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k}
	if _, err := e.Apply(ctx, web(1)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if removed, err := e.Clear(ctx); err != nil || removed != want {
			t.Errorf("clear %d: removed %v (%v), want %v", i, removed, err, want)
		}
	}
	have, _, err := k.Read(ctx, engine.Tables, nil)
	if err != nil || len(have.Tables) != 0 {
		t.Errorf("%d tables left (%v)", len(have.Tables), err)
	}
}

// TestForget: a sticky client whose backend takes no more new connections is forgotten,
// others are not.
func TestForget(t *testing.T) {
	cfg := func(weights ...int) *model.Config {
		c := web(weights...)
		c.Services[0].Sticky = time.Minute
		return c
	}
	k := nftfake.New()
	e := &engine.Engine{Kernel: k}
	if _, err := e.Apply(ctx, cfg(1, 1)); err != nil {
		t.Fatal(err)
	}
	pool := e.Plan().Pools[0]
	for client := range byte(4) {
		key := ruleset.AppendAddr(ruleset.AppendInteger(nil, pool.Base), netip.AddrFrom4([4]byte{203, 0, 113, client}))
		data := ruleset.AppendAddr(nil, pool.Backends[client%2].Addr)
		if !k.Put(table, pool.StickyMap, nft.Elem{Element: ruleset.Element{Key: string(key), Data: string(data)}}) {
			t.Fatalf("there is no map %s", pool.StickyMap)
		}
	}
	rep, err := e.Apply(ctx, cfg(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	set := e.Plan().Ruleset.Tables[0].Set(pool.StickyMap)
	err = k.Elements(ctx, table, set, func(el nft.Elem) bool {
		left = append(left, netip.AddrFrom4([4]byte([]byte(el.Key[4:8]))).String())
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(left); rep.Forgotten != 2 || (got != "[203.0.113.0 203.0.113.2]" && got != "[203.0.113.2 203.0.113.0]") {
		t.Errorf("%d forgotten, left %v; want the clients of 10.1.1.1", rep.Forgotten, left)
	}
}

func TestStatus(t *testing.T) {
	k := nftfake.New()
	cfg := web(1, 3)
	e := &engine.Engine{Kernel: k}
	p := plan.Build(cfg, nil)
	st, err := engine.ReadStatus(ctx, k, p)
	if err != nil || st.Loaded {
		t.Fatalf("nothing applied: loaded %v, %v", st.Loaded, err)
	}
	if _, err := e.Apply(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	put := func(set, listen, backend string, packets, bytes uint64) {
		t.Helper()
		if !k.Put(table, set, nft.Elem{Element: ruleset.Element{Key: pairKey(listen, backend)}, Counter: nft.Counter{Packets: packets, Bytes: bytes}}) {
			t.Fatalf("there is no set %s", set)
		}
	}
	put("connections4", "198.51.100.10:80", "10.1.1.1:8080", 5, 300)
	put("requests4", "198.51.100.10:80", "10.1.1.1:8080", 50, 5000)
	put("replies4", "198.51.100.10:80", "10.1.1.1:8080", 40, 9000)
	put("connections4", "198.51.100.10:80", "10.1.1.9:8080", 7, 420)  // no longer in the file
	put("connections4", "198.51.100.77:80", "10.1.1.1:8080", 11, 660) // a service that is gone
	st, err = engine.ReadStatus(ctx, k, p)
	if err != nil || !st.Loaded {
		t.Fatalf("loaded %v, %v", st.Loaded, err)
	}
	s := st.Services[0]
	want := engine.Traffic{NewConnections: 5, PacketsIn: 50, BytesIn: 5000, PacketsOut: 40, BytesOut: 9000}
	if s.Backends[0].Traffic != want || s.Backends[0].Share != 0.25 || s.Backends[1].Share != 0.75 {
		t.Errorf("backends: %+v", s.Backends)
	}
	if s.Former.NewConnections != 7 || s.Total.NewConnections != 12 {
		t.Errorf("former %+v, total %+v", s.Former, s.Total)
	}
}

func pairKey(listen, backend string) string {
	l, b := netip.MustParseAddrPort(listen), netip.MustParseAddrPort(backend)
	key := ruleset.AppendPort(ruleset.AppendByte(ruleset.AppendAddr(nil, l.Addr()), uint8(model.TCP)), l.Port())
	return string(ruleset.AppendPort(ruleset.AppendAddr(key, b.Addr()), b.Port()))
}

// fakeAddresses is an Addresses in memory.
type fakeAddresses struct {
	held      map[vip.Want]bool
	announced int
}

func (f *fakeAddresses) Sync(_ context.Context, want []vip.Want) (vip.Report, error) {
	var rep vip.Report
	wanted := map[vip.Want]bool{}
	for _, w := range want {
		wanted[w] = true
		if !f.held[w] {
			f.held[w] = true
			rep.Added = append(rep.Added, w)
		}
	}
	for w := range f.held {
		if !wanted[w] {
			delete(f.held, w)
			rep.Removed = append(rep.Removed, vip.Have{Dev: w.Dev, Prefix: netip.PrefixFrom(w.Addr, w.Addr.BitLen()), Ours: true})
		}
	}
	return rep, nil
}

func (f *fakeAddresses) Announce(_ context.Context, _ string, addrs []netip.Addr) <-chan error {
	f.announced += len(addrs)
	return nil
}

func TestAddresses(t *testing.T) {
	cfg := web(1)
	cfg.Services[0].Assign = "eth0"
	a := &fakeAddresses{held: map[vip.Want]bool{}}
	e := &engine.Engine{Kernel: nftfake.New(), Addresses: a}
	for range 2 {
		if _, err := e.Apply(ctx, cfg); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.held) != 1 || a.announced != 1 {
		t.Errorf("holds %v, announced %d; want one of each", a.held, a.announced)
	}
	if _, err := e.Clear(ctx); err != nil || len(a.held) != 0 {
		t.Errorf("after clear: holds %v (%v)", a.held, err)
	}
}
