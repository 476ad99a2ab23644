package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// TestLimitsHold lets connections come and go through the rules of services with limits:
// no backend and no service has ever more than its limit, whoever is refused finds all of
// them full, and a connection is dropped only by one that is full while nothing says so.
func TestLimitsHold(t *testing.T) {
	spilled, refused, dropped := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		cfg := configtest.RandomModel(t, &configtest.Options{MaxServices: 1, MaxBackends: 5, Limits: []int{1, 2, 3},
			NoEmpty: true, NoHealth: true, NoAssign: true, NoLocal: true, NoFloods: true})
		s := cfg.Services[0]
		s.Backends[0].MaxConnections = 1 // at least one limit
		p := plan.Build(cfg, nil)
		w := &waterway{ev: ruleset.NewEvaluator(p.Ruleset), s: s, full: map[string]bool{}, at: map[netip.AddrPort]int{}}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				w.end(t)
			case 1:
				w.runOut()
			default:
				l := rapid.SampledFrom(s.Listen).Draw(t, "listener")
				w.connect(t, i, l)
			}
		}
		spilled, refused, dropped = spilled+w.spilled, refused+w.refused, dropped+w.dropped
	})
	if spilled == 0 || refused == 0 || dropped == 0 {
		t.Errorf("%d spilled, %d refused, %d dropped: not all was seen", spilled, refused, dropped)
	}
}

// waterway is a service whose connections are counted beside the rules.
type waterway struct {
	ev    *ruleset.Evaluator
	state ruleset.State
	s     *model.Service
	open  []ruleset.Trace
	at    map[netip.AddrPort]int
	full  map[string]bool // elements that were put into full

	spilled, refused, dropped int
}

func (w *waterway) connect(t *rapid.T, i int, l model.Listen) {
	src := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(1000+i))
	if l.Family() == model.IPv6 {
		src = netip.AddrPortFrom(netip.MustParseAddr("2001:db8:9::1"), uint16(1000+i))
	}
	env := w.state.Env()
	tr := w.ev.Eval(ruleset.Packet{Src: src, Dst: netip.AddrPortFrom(l.Addr, l.Ports.Lo), Proto: l.Proto}, env)
	w.state.Keep(tr)
	for _, u := range tr.Updates {
		if u.Set == "full" {
			w.full[u.Key] = true
		}
	}
	whole := w.s.MaxConnections > 0 && len(w.open) >= w.s.MaxConnections
	switch tr.Verdict {
	case ruleset.Accepted:
		b := w.backend(t, tr.DNAT)
		if whole || b.MaxConnections > 0 && w.count(b) >= b.MaxConnections {
			t.Fatalf("%s is over its limit, with %d of %d in all", b.ID(), len(w.open), w.s.MaxConnections)
		}
		w.open, w.at[tr.DNAT] = append(w.open, tr), w.at[tr.DNAT]+1
		if w.anyFull(l.Family()) {
			w.spilled++
		}
	case ruleset.Dropped:
		if w.s.WhenAllDown != model.Drop && (whole || !w.anyFull(l.Family()) || w.allFull(l.Family())) && !w.sharing() {
			t.Fatalf("dropped: %v of %+v", w.at, w.s.Backends)
		}
		w.dropped++
	default:
		if !whole && !w.allFull(l.Family()) {
			t.Fatalf("refused, and somebody has room: %v of %+v", w.at, w.s.Backends)
		}
		w.refused++
	}
}

func (w *waterway) backend(t *rapid.T, to netip.AddrPort) model.Backend {
	for _, b := range w.s.Backends {
		if b.Weight > 0 && b.Addr == to.Addr() && (b.Ports.IsZero() || b.Ports.Contains(to.Port())) {
			return b
		}
	}
	t.Fatalf("%s is no backend", to)
	return model.Backend{}
}

// count is how many connections a backend has that has its address to itself.
func (w *waterway) count(b model.Backend) int {
	n := 0
	for to, c := range w.at {
		if b.Addr == to.Addr() && (b.Ports.IsZero() || b.Ports.Contains(to.Port())) {
			n += c
		}
	}
	if w.shared(b) {
		return 0
	}
	return n
}

func (w *waterway) shared(b model.Backend) bool {
	for _, o := range w.s.Backends {
		if o.Addr == b.Addr && o.ID() != b.ID() {
			return true
		}
	}
	return false
}

func (w *waterway) sharing() bool { return slices.ContainsFunc(w.s.Backends, w.shared) }

// isFull also holds for a backend whose connections cannot be told from another's.
func (w *waterway) isFull(b model.Backend) bool {
	return b.MaxConnections > 0 && (w.shared(b) || w.count(b) >= b.MaxConnections)
}

func (w *waterway) allFull(f model.Family) bool {
	for _, b := range w.s.Backends {
		if b.Family() == f && b.Weight > 0 && !w.isFull(b) {
			return false
		}
	}
	return true
}

func (w *waterway) anyFull(f model.Family) bool {
	for _, b := range w.s.Backends {
		if b.Family() == f && b.Weight > 0 && w.isFull(b) {
			return true
		}
	}
	return false
}

// end closes a connection, after which nobody counts as full: the first to come finds out.
func (w *waterway) end(t *rapid.T) {
	if len(w.open) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.open)-1).Draw(t, "which")
	tr := w.open[i]
	w.state.Close(tr)
	w.at[tr.DNAT]--
	w.open = append(w.open[:i], w.open[i+1:]...)
	w.runOut()
}

func (w *waterway) runOut() {
	for k := range w.full {
		w.state.Forget("full", k)
	}
	clear(w.full)
}

// TestSpillGoesRound: with one of many backends full, its share goes to all others.
func TestSpillGoesRound(t *testing.T) {
	for _, balance := range []model.Balance{model.RoundRobin, model.Random, model.Maglev} {
		s := service(1)
		s.Balance = balance
		s.Backends[0].MaxConnections = 1
		p := plan.Build(&model.Config{HashSeed: 7, Services: []*model.Service{s}}, nil)
		ev, state, got := ruleset.NewEvaluator(p.Ruleset), &ruleset.State{}, map[netip.Addr]int{}
		for i := range 3000 {
			tr := ev.Eval(ruleset.Packet{Src: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", i%200)), uint16(1000+i)),
				Dst: netip.AddrPortFrom(s.Listen[0].Addr, 80), Proto: model.TCP}, state.Env())
			state.Keep(tr)
			got[tr.DNAT.Addr()]++
		}
		for i, b := range s.Backends {
			if n := got[b.Addr]; i == 0 && n != 1 || i > 0 && (n < 250 || n > 420) {
				t.Errorf("%s: %s got %d of 3000", balance, b.ID(), n)
			}
		}
	}
}
