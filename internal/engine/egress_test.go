package engine_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/egress"
	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/state"
)

// pools is an engine.Pools that finds what a test says.
type pools struct {
	mu      sync.Mutex
	found   engine.PoolsFound
	applied []*model.Pool
	watched []netip.Addr
	cut     chan netip.Addr
	wake    chan struct{}
	changed chan struct{} // after each Applied
}

func newPools() *pools {
	return &pools{cut: make(chan netip.Addr, 10), wake: make(chan struct{}, 1), changed: make(chan struct{}, 100)}
}

func (p *pools) Applied(pl *plan.Plan) {
	p.mu.Lock()
	p.applied = pl.Config.Egress
	p.mu.Unlock()
	p.changed <- struct{}{}
}

func (p *pools) Wake() <-chan struct{} { return p.wake }

func (p *pools) Found() engine.PoolsFound {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.found
	p.found.News = nil
	return f
}

func (p *pools) Watch(list []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched = list
}

func (p *pools) Cut(a netip.Addr) { p.cut <- a }

func (p *pools) find(f engine.PoolsFound) {
	p.mu.Lock()
	p.found = f
	p.mu.Unlock()
	p.wake <- struct{}{}
}

// until waits until the pool is applied as is says.
func (p *pools) until(t *testing.T, what string, is func(*model.Pool) bool) {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		p.mu.Lock()
		ok := len(p.applied) > 0 && is(p.applied[0])
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-p.changed:
		case <-deadline:
			t.Fatalf("never applied: %s; it is %+v", what, p.applied[0])
		}
	}
}

var one, two, three = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::1")

// withPool is a configuration with a pool of two IPv4 addresses and one of IPv6.
func withPool() *model.Config {
	cfg := web(1)
	cfg.Egress = []*model.Pool{{Name: "apis", Out: []string{"wan"}, Ports: []model.PortRange{{Lo: 1000, Hi: 1099}}, Spill: true, ClampMSS: true,
		Addresses: []model.AddrRange{{Lo: one, Hi: two}, {Lo: three, Hi: three}}}}
	return cfg
}

func startPools(t *testing.T, memory engine.Memory) (*live, *pools) {
	t.Helper()
	p := newPools()
	l := startLiveWith(t, withPool(), memory, func(loop *engine.Loop) { loop.Pools = p })
	p.until(t, "anything", func(*model.Pool) bool { return true })
	return l, p
}

func view(t *testing.T, l *live) engine.View {
	t.Helper()
	v, err := l.loop.View(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDrainAddress(t *testing.T) {
	l, p := startPools(t, engine.Memory{})
	ctx := context.Background()
	if err := l.loop.DrainAddress(ctx, nil, netip.MustParseAddr("203.0.113.9"), time.Time{}); !errors.Is(err, engine.ErrNoAddress) {
		t.Error(err)
	}
	if err := l.loop.DrainAddress(ctx, nil, three, time.Time{}); !errors.Is(err, engine.ErrLastAddress) {
		t.Error(err)
	}
	if err := l.loop.DrainAddress(ctx, &state.Operator{User: "ann"}, one, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := l.loop.DrainAddress(ctx, nil, two, time.Time{}); !errors.Is(err, engine.ErrLastAddress) {
		t.Error(err)
	}
	p.until(t, "the drain", func(m *model.Pool) bool { return slices.Equal(m.Drained, []netip.Addr{one}) })
	if m := <-l.saved; m.Drains[one].Admin != state.Drain {
		t.Errorf("saved: %+v", m)
	}
	p.mu.Lock()
	if !slices.Equal(p.watched, []netip.Addr{one}) {
		t.Errorf("watched: %v", p.watched)
	}
	p.mu.Unlock()
	st := engine.EgressStatus{Pools: []engine.EgressPool{{Name: "apis", Addresses: []engine.EgressAddress{{Address: one, State: state.Up}, {Address: two, State: state.Up}}}}}
	states := func() (out []state.Name) {
		v := view(t, l)
		for _, a := range v.Egress(st, "").Pools[0].Addresses {
			out = append(out, a.State)
		}
		return out
	}
	p.find(engine.PoolsFound{Left: map[netip.Addr]int{one: 3}, Dumped: time.Now()})
	view(t, l)
	if got := states(); !slices.Equal(got, []state.Name{state.Draining, state.Up}) {
		t.Error(got)
	}
	p.find(engine.PoolsFound{Left: map[netip.Addr]int{one: 0}, Dumped: time.Now()})
	for deadline := time.Now().Add(10 * time.Second); !slices.Equal(states(), []state.Name{state.Drained, state.Up}); {
		if time.Now().After(deadline) {
			t.Fatal(states())
		}
	}
	if err := l.loop.EnableAddress(ctx, nil, one); err != nil {
		t.Fatal(err)
	}
	p.until(t, "no drain", func(m *model.Pool) bool { return len(m.Drained) == 0 })
	if got := states(); !slices.Equal(got, []state.Name{state.Up, state.Up}) {
		t.Error(got)
	}
}

func TestDrainIsResumedAndEnds(t *testing.T) {
	now := time.Now()
	word := state.Word{Admin: state.Drain, At: now.Add(-time.Hour), Deadline: now.Add(-time.Minute)}
	l, p := startPools(t, engine.Memory{Drains: map[netip.Addr]state.Word{one: word}})
	p.until(t, "the drain", func(m *model.Pool) bool { return slices.Equal(m.Drained, []netip.Addr{one}) })
	for {
		select {
		case a := <-p.cut:
			if a != one {
				t.Fatal(a)
			}
			return
		case <-time.After(10 * time.Millisecond):
			l.clock.advance(time.Second)
		}
	}
}

// A file that leaves only drained addresses goes on with them.
func TestAllDrained(t *testing.T) {
	word := state.Word{Admin: state.Drain, At: time.Now()}
	l, _ := startPools(t, engine.Memory{Drains: map[netip.Addr]state.Word{one: word, two: word, three: word}})
	v := view(t, l)
	if len(v.Pools[0].Drained) != 0 {
		t.Errorf("all are drained: %v", v.Pools[0].Drained)
	}
	events, _ := l.loop.Journal.Since(0)
	if !slices.ContainsFunc(events, func(e engine.Event) bool { return e.Kind == "egress" && e.Pool == "apis" && e.To == "error" }) {
		t.Errorf("it is not said: %v", events)
	}
}

func TestFindingsOfPools(t *testing.T) {
	l, p := startPools(t, engine.Memory{})
	relief := model.Relief{Proto: model.TCP, To: netip.MustParseAddrPort("203.0.113.1:443"), Without: []netip.Addr{two}}
	taken := model.TakenPort{Addr: one, Port: 1022}
	p.find(engine.PoolsFound{Relief: map[string][]model.Relief{"apis": {relief}}, Taken: map[string][]model.TakenPort{"apis": {taken}},
		Alarms: []egress.Alarm{{Pool: "apis", Level: egress.Warning, Addr: two}},
		News:   []engine.Event{{Kind: "egress", Pool: "apis", To: "warning", Message: "nearly full"}}})
	p.until(t, "what was found", func(m *model.Pool) bool {
		return len(m.Relief) == 1 && m.Relief[0].Equal(relief) && slices.Equal(m.Taken, []model.TakenPort{taken})
	})
	v := view(t, l)
	if len(v.Alarms) != 1 || l.loop.Journal.Counts()["egress"] != 1 {
		t.Errorf("%+v, %v", v.Alarms, l.loop.Journal.Counts())
	}
	// Whoever asks what is planned gets the same.
	got := engine.EffectivePools(withPool(), v.KnownPools())
	if !got.Egress[0].Equal(v.Pools[0]) {
		t.Errorf("%+v, want %+v", got.Egress[0], v.Pools[0])
	}
	p.find(engine.PoolsFound{})
	p.until(t, "nothing", func(m *model.Pool) bool { return len(m.Relief) == 0 && len(m.Taken) == 0 })
}

func TestDrainsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := map[netip.Addr]state.Word{one: {Admin: state.Drain, At: at, Deadline: at.Add(time.Hour), By: &state.Operator{UID: 1000, User: "ann"}}, three: {Admin: state.Drain, At: at}}
	if err := engine.SaveMemory(path, engine.Memory{Drains: want}); err != nil {
		t.Fatal(err)
	}
	got, err := engine.LoadMemory(path)
	if err != nil || !reflect.DeepEqual(got.Drains, want) {
		t.Errorf("%+v, %v", got.Drains, err)
	}
}

// Whatever is known, each family keeps an address for new connections, and each destination.
func TestEffectivePoolsLeaveAnAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addrs := []netip.Addr{one, two, three, netip.MustParseAddr("198.51.100.77")}
		some := func(name string) []netip.Addr {
			out := []netip.Addr{}
			for _, a := range addrs {
				if rapid.Bool().Draw(t, name) {
					out = append(out, a)
				}
			}
			return out
		}
		k := engine.KnownPool{Pool: "apis", Drained: some("drained")}
		for _, to := range []string{"203.0.113.1:443", "[2001:db8::9]:443"} {
			k.Relief = append(k.Relief, engine.KnownRelief{Protocol: "udp", Destination: netip.MustParseAddrPort(to), Without: some("without")})
		}
		p := engine.EffectivePools(withPool(), []engine.KnownPool{k}).Egress[0]
		left := func(less ...netip.Addr) map[bool]int {
			n := map[bool]int{}
			for _, a := range addrs[:3] {
				if !slices.Contains(less, a) {
					n[a.Is4()]++
				}
			}
			return n
		}
		if n := left(p.Drained...); n[true] == 0 || n[false] == 0 {
			t.Fatalf("drained: %v", p.Drained)
		}
		for _, r := range p.Relief {
			if left(append(slices.Clone(r.Without), p.Drained...)...)[r.To.Addr().Is4()] == 0 {
				t.Fatalf("%+v with %v drained", r, p.Drained)
			}
		}
	})
}
