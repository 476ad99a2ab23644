package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weir/internal/egress"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/state"
)

// Pools watches what pools of egress addresses have in use, in a goroutine of its own.
// Implementation: Meter. None of these waits.
type Pools interface {
	// Applied says what the kernel does now.
	Applied(p *plan.Plan)
	// Wake gets something when Found has changed.
	Wake() <-chan struct{}
	// Found returns what was found, and what was to be told since the last call.
	Found() PoolsFound
	// Watch says which addresses are to be free, so that they are looked at more often.
	Watch(addrs []netip.Addr)
	// Cut has all connections of the address end.
	Cut(addr netip.Addr)
}

// PoolsFound is what is known of pools.
type PoolsFound struct {
	Taken  map[string][]model.TakenPort // by pool
	Relief map[string][]model.Relief    // by pool
	Left   map[netip.Addr]int           // connections of watched addresses, of those where it is known
	Dumped time.Time                    // when the dump began of which this is
	Alarms []egress.Alarm               // what is full or nearly so, the worst first
	News   []Event                      // to be told; without a time
}

// ErrNoAddress says that no pool has the address.
var ErrNoAddress = errors.New("no egress pool has that address")

// ErrLastAddress says that a drain would leave a pool without an address.
var ErrLastAddress = errors.New("it is the last address that takes new connections")

// cutAgain is after what time connections that are still there are ended again.
const cutAgain = 10 * time.Second

// drain is an address that takes no new connections by an operator's word.
type drain struct {
	state.Word
	left int // connections; state.NotCounted: not known yet
	free time.Time
	from time.Time // when the kernel began to do so; zero: not yet
	cut  time.Time // when its connections were ended, for the deadline was over
}

// pooled is the Loop's part of egress pools.
type pooled struct {
	drains    map[netip.Addr]*drain
	usage     PoolsFound
	effective []*model.Pool // as planned last
	told      map[string]bool
}

func (l *Loop) poolsWake() <-chan struct{} {
	if l.Pools == nil {
		return nil
	}
	return l.Pools.Wake()
}

// resumeDrains takes over what operators said to the weir before.
func (l *Loop) resumeDrains() {
	l.pooled = pooled{drains: map[netip.Addr]*drain{}, told: map[string]bool{}}
	for a, w := range l.Memory.Drains {
		l.drains[a] = &drain{Word: w.Resume(l.Now()), left: state.NotCounted}
	}
	l.watchDrains()
}

// words returns the drains as they are kept.
func (l *Loop) drainWords() map[netip.Addr]state.Word {
	out := make(map[netip.Addr]state.Word, len(l.drains))
	for a, d := range l.drains {
		out[a] = d.Word
	}
	return out
}

// poolsChanged takes what the watcher of pools found.
func (l *Loop) poolsChanged() {
	l.usage = l.Pools.Found()
	for _, e := range l.usage.News {
		switch e.To {
		case string(egress.Error):
			l.Log.Error("egress", "pool", e.Pool, "message", e.Message)
		case string(egress.Warning):
			l.Log.Warn("egress", "pool", e.Pool, "message", e.Message)
		default:
			l.Log.Info("egress", "pool", e.Pool, "message", e.Message)
		}
		l.note(e)
	}
	l.countDrains()
	if l.file != nil && !slices.EqualFunc(l.withPools(l.file).Egress, l.pooled.effective, (*model.Pool).Equal) {
		l.pending, l.retry = true, nil
	}
}

// withPools returns cfg with what is known of its pools.
func (l *Loop) withPools(cfg *model.Config) *model.Config {
	if len(cfg.Egress) == 0 {
		return cfg
	}
	drained := make(map[netip.Addr]bool, len(l.drains))
	for a := range l.drains {
		drained[a] = true
	}
	return withPools(cfg, l.pooled.effective, func(p *model.Pool) KnownPool {
		return newKnownPool(p.Name, drainedOf(p, drained), l.usage.Taken[p.Name], l.usage.Relief[p.Name])
	})
}

// planned notes what of pools is planned, and tells of drains that cannot be.
func (l *Loop) planned(cfg *model.Config) {
	l.pooled.effective = cfg.Egress
	all := map[netip.Addr]bool{}
	for a := range l.drains {
		all[a] = true
	}
	told := map[string]bool{}
	for _, p := range cfg.Egress {
		want := drainedOf(p, all)
		if len(want) == len(p.Drained) {
			continue
		}
		told[p.Name] = true
		if !l.told[p.Name] {
			words := "all its addresses are to be drained: they go on taking new connections, for there is no other (weir egress enable, or give it another address)"
			l.Log.Error("egress", "pool", p.Name, "message", words)
			l.note(Event{Kind: "egress", Pool: p.Name, To: string(egress.Error), Message: words})
		}
	}
	l.told = told
}

// drainedOf returns the addresses of p that are in drained.
func drainedOf(p *model.Pool, drained map[netip.Addr]bool) []netip.Addr {
	var out []netip.Addr
	for a := range drained {
		if holds(p, a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// holds reports whether the address is one of the pool's.
func holds(p *model.Pool, a netip.Addr) bool {
	return slices.ContainsFunc(p.Addresses, func(r model.AddrRange) bool {
		return r.Lo.Is4() == a.Is4() && r.Lo.Compare(a) <= 0 && a.Compare(r.Hi) <= 0
	})
}

// poolOf returns the pool that has the address; nil if none does.
func poolOf(cfg *model.Config, a netip.Addr) *model.Pool {
	i := slices.IndexFunc(cfg.Egress, func(p *model.Pool) bool { return holds(p, a) })
	if i < 0 {
		return nil
	}
	return cfg.Egress[i]
}

// sizeOf returns how many addresses of a's family the pool has.
func sizeOf(p *model.Pool, like netip.Addr) int {
	n := 0
	for _, r := range p.Addresses {
		for a := r.Lo; r.Lo.Is4() == like.Is4() && a.IsValid() && a.Compare(r.Hi) <= 0; a = a.Next() {
			n++
		}
	}
	return n
}

// DrainAddress has an address of a pool take no new connections; those that are open go on
// until they end or until is over (zero: never). The last address of a family that takes any
// is refused with ErrLastAddress, one of no pool with ErrNoAddress.
func (l *Loop) DrainAddress(ctx context.Context, by *state.Operator, a netip.Addr, until time.Time) error {
	var err error
	return firstError(l.Do(ctx, func() { err = l.drainAddress(by, a, until) }), &err)
}

func (l *Loop) drainAddress(by *state.Operator, a netip.Addr, until time.Time) error {
	p := poolOf(l.file, a)
	if p == nil {
		return fmt.Errorf("%w: %s", ErrNoAddress, a)
	}
	others := sizeOf(p, a) - 1
	for o := range l.drains {
		if o != a && o.Is4() == a.Is4() && holds(p, o) {
			others--
		}
	}
	if others < 1 {
		return fmt.Errorf("%s of egress pool %s: %w, so that nobody behind the pool could connect any more; give the pool another address first", a, p.Name, ErrLastAddress)
	}
	old := l.drains[a]
	d := &drain{left: state.NotCounted}
	words := "drain " + a.String()
	if !until.IsZero() {
		words += " within " + until.Sub(l.Now()).Round(time.Second).String()
	}
	was := state.Word{}
	if old != nil {
		was, d.left, d.free, d.from = old.Word, old.left, old.free, old.from
	}
	d.Word = state.Word{Admin: state.Drain, Deadline: until}.After(was, l.Now(), by)
	l.drains[a] = d
	l.saidOf(a, p.Name, by, words)
	return nil
}

// EnableAddress takes DrainAddress back.
func (l *Loop) EnableAddress(ctx context.Context, by *state.Operator, a netip.Addr) error {
	var err error
	return firstError(l.Do(ctx, func() {
		p := poolOf(l.file, a)
		if p == nil && l.drains[a] == nil {
			err = fmt.Errorf("%w: %s", ErrNoAddress, a)
			return
		}
		name := ""
		if p != nil {
			name = p.Name
		}
		delete(l.drains, a)
		l.saidOf(a, name, by, "enable "+a.String())
	}), &err)
}

// saidOf does what follows an operator's word of an address.
func (l *Loop) saidOf(a netip.Addr, pool string, by *state.Operator, words string) {
	l.unsaved, l.pending = true, true
	l.retry = nil
	l.note(Event{Kind: "operator", By: by, Pool: pool, Address: a.String(), Message: words})
	l.watchDrains()
	l.save()
}

func (l *Loop) watchDrains() {
	if l.Pools == nil {
		return
	}
	var addrs []netip.Addr
	for a, d := range l.drains {
		if d.free.IsZero() {
			addrs = append(addrs, a)
		}
	}
	l.Pools.Watch(addrs)
}

// countDrains notes which drained addresses are free now.
func (l *Loop) countDrains() {
	for a, d := range l.drains {
		n, known := l.usage.Left[a]
		if !known || !d.free.IsZero() || d.from.IsZero() || !l.usage.Dumped.After(d.from) {
			continue
		}
		d.left = n
		if n > 0 {
			continue
		}
		d.free = l.Now().Round(0)
		words := fmt.Sprintf("%s is free: it drained since %s", a, d.At.Format(time.DateTime))
		l.Log.Info("egress", "address", a, "message", words)
		l.note(Event{Kind: "egress", Pool: l.poolName(a), Address: a.String(), From: string(state.Draining), To: string(state.Drained), Message: words})
		l.watchDrains()
	}
}

// drainsApplied notes which drains the kernel does now.
func (l *Loop) drainsApplied() {
	for a, d := range l.drains {
		switch is := l.isDrained(a); {
		case !is:
			d.from = time.Time{}
		case d.from.IsZero():
			d.from = l.Now()
		}
	}
}

func (l *Loop) isDrained(a netip.Addr) bool {
	p := poolOf(&model.Config{Egress: l.pooled.effective}, a)
	return p != nil && slices.Contains(p.Drained, a)
}

func (l *Loop) poolName(a netip.Addr) string {
	if p := poolOf(l.file, a); p != nil {
		return p.Name
	}
	return ""
}

// dueDrains ends connections of addresses whose time to drain is over.
func (l *Loop) dueDrains() {
	if l.Pools == nil {
		return
	}
	for a, d := range l.drains {
		if d.Deadline.IsZero() || !d.free.IsZero() || d.from.IsZero() || l.Now().Before(d.Deadline) || l.Now().Sub(d.cut) < cutAgain {
			continue
		}
		d.cut = l.Now()
		l.Log.Info("egress", "address", a, "message", "the time to drain is over: its connections are ended")
		l.Pools.Cut(a)
	}
}
