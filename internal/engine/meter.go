package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weir/internal/conntrack"
	"weir/internal/egress"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/sockets"
)

// Times of a Meter.
const (
	// meterEvery is how often it looks at counters and listeners, or less often, so that
	// it takes one part in meterShare of the time at most, besides dumps.
	meterEvery = time.Second
	meterShare = 50
	// dumpEvery is how often it dumps the connection table, or less often, so that dumps
	// take one part in dumpShare of the time at most; one in urgentShare where what came
	// since the last dump may have made something full, or an address is to be free.
	dumpEvery   = 10 * time.Second
	dumpShare   = 100
	urgentEvery = time.Second
	urgentShare = 10
	// reaction is for how long new connections still come to an address after it was found
	// to be full: the next look, and a commit.
	reaction = 3 * time.Second
)

// Meter keeps account of egress pools: it looks at the connection table, the counters and
// the box's listeners beside the Loop. Its methods may be called from several goroutines.
type Meter struct {
	Flows    *conntrack.Conn // dumps may be long: no one else's
	Counters Counters
	Sockets  *sockets.Looker
	Log      *slog.Logger
	Now      func() time.Time // nil: time.Now

	mu     sync.Mutex // guards what is below
	plan   *plan.Plan
	watch  []netip.Addr
	cuts   []netip.Addr
	found  PoolsFound
	news   []Event
	tried  time.Time // when the last dump was begun
	asked  []chan struct{}
	wake   chan struct{}
	kick   chan struct{}
	once   sync.Once
	status EgressStatus

	// Of the goroutine that looks alone.
	ledger   *egress.Ledger
	taken    *takenPorts
	of       *plan.Plan // that ledger is loaded with
	held     string     // and what else: see poolsOf
	crowded  map[poolDest]bool
	relieved map[poolDest]string // without whom
	problems map[string]string   // by what could not be done
	blamed   map[string]time.Time
	reaction time.Duration
	reported time.Time
}

// poolDest is a destination of a pool.
type poolDest struct {
	pool string
	dest egress.Dest
}

func (m *Meter) init() {
	m.once.Do(func() {
		if m.Now == nil {
			m.Now = time.Now
		}
		m.wake, m.kick = make(chan struct{}, 1), make(chan struct{}, 1)
		m.ledger, m.taken = egress.NewLedger(nil), newTakenPorts()
		m.problems, m.reaction = map[string]string{}, reaction
		m.crowded, m.relieved, m.blamed = map[poolDest]bool{}, map[poolDest]string{}, map[string]time.Time{}
	})
}

// Applied implements Pools.
func (m *Meter) Applied(p *plan.Plan) {
	m.init()
	m.mu.Lock()
	had := m.plan
	m.plan = p
	m.mu.Unlock()
	if had == nil || !slices.Equal(had.Config.Egress, p.Config.Egress) {
		poke(m.kick)
	}
}

// Wake implements Pools.
func (m *Meter) Wake() <-chan struct{} { m.init(); return m.wake }

// Found implements Pools.
func (m *Meter) Found() PoolsFound {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.found
	f.News, m.news = m.news, nil
	return f
}

// Watch implements Pools.
func (m *Meter) Watch(addrs []netip.Addr) {
	m.init()
	m.mu.Lock()
	m.watch = addrs
	m.mu.Unlock()
	poke(m.kick)
}

// Cut implements Pools.
func (m *Meter) Cut(a netip.Addr) {
	m.init()
	m.mu.Lock()
	m.cuts = append(m.cuts, a)
	m.mu.Unlock()
	poke(m.kick)
}

// Run looks until ctx ends.
func (m *Meter) Run(ctx context.Context) {
	m.init()
	defer func() { answer(m.waiting()) }()
	for {
		var waiting []chan struct{}
		wait := time.Hour // until there are pools
		if p := m.current(); p != nil && len(p.Config.Egress) > 0 {
			waiting = m.waiting()
			took := m.look(ctx, len(waiting) > 0, false)
			wait = max(meterEvery, meterShare*took)
			m.reaction = reaction + wait - meterEvery
		} else {
			waiting = m.waiting()
		}
		answer(waiting)
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		case <-time.After(wait):
		}
	}
}

func (m *Meter) current() *plan.Plan {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.plan
}

// waiting returns those who wait for a look.
func (m *Meter) waiting() []chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.asked
	m.asked = nil
	return list
}

// answer tells them that there was one.
func answer(list []chan struct{}) {
	for _, c := range list {
		close(c)
	}
}

// Fresh waits until Run has looked again; with a dump if the last is older than a second, or
// than ten times as long as it took.
func (m *Meter) Fresh(ctx context.Context) error {
	m.init()
	done := make(chan struct{})
	m.mu.Lock()
	m.asked = append(m.asked, done)
	m.mu.Unlock()
	poke(m.kick)
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Look looks once, in the caller's goroutine, at what changes fast, and dumps the connection
// table if it is time or dump says so. It returns how long that took, without the dump. Not to
// be called while Run runs.
func (m *Meter) Look(ctx context.Context, dump bool) time.Duration {
	m.init()
	return m.look(ctx, dump, dump)
}

// look is Look; asked says that somebody waits for it.
func (m *Meter) look(ctx context.Context, asked, dump bool) time.Duration {
	p := m.current()
	m.load(p)
	start := m.Now()
	news, spilled, err := readNew(ctx, m.Counters, p)
	if err == nil {
		m.ledger.Counted(start, news)
	}
	dumped := time.Duration(0)
	m.problem("the counters of new connections could not be read", err)
	if dump || m.dumpDue(asked) {
		asked = true // there is news for all
		began := m.Now()
		m.dump(ctx)
		dumped = m.Now().Sub(began)
	}
	m.cut(ctx)
	m.fail(ctx)
	m.listeners(p)
	m.publish(p, spilled, asked)
	return m.Now().Sub(start) - dumped
}

// load has the ledger account for the pools of p.
func (m *Meter) load(p *plan.Plan) {
	pools, held := poolsOf(p, m.Sockets)
	if m.of != nil && m.held == held && slices.Equal(m.of.Config.Egress, p.Config.Egress) {
		m.of = p
		return
	}
	m.ledger.Load(pools)
	m.of, m.held = p, held
}

// poolsOf returns the pools of p with their addresses and ports, and what of that does not
// follow from the pools themselves as words.
func poolsOf(p *plan.Plan, look *sockets.Looker) ([]*egress.Pool, string) {
	var out []*egress.Pool
	words := ""
	for _, mp := range p.Config.Egress {
		var held []netip.Addr
		if mp.Masquerade && look != nil {
			for _, dev := range mp.Out {
				list, _ := look.Addresses(dev) // one that is not there has none
				for _, a := range list {
					if !a.IsLinkLocalUnicast() && !a.IsLoopback() {
						held = append(held, a)
					}
				}
			}
		}
		words += fmt.Sprint(held, p.EgressPorts(mp.Name))
		out = append(out, egress.NewPool(mp, p.EgressPorts(mp.Name), held))
	}
	return out, words
}

// dumpDue reports whether it is time for a dump.
func (m *Meter) dumpDue(urgent bool) bool {
	m.mu.Lock()
	urgent = urgent || len(m.watch) > 0
	last := m.status.Dump.took
	since := m.Now().Sub(m.tried)
	never := m.tried.IsZero()
	m.mu.Unlock()
	if never || since >= max(dumpEvery, dumpShare*last) {
		return true
	}
	urgent = urgent || m.ledger.WantsDump(m.reaction)
	return urgent && since >= max(urgentEvery, urgentShare*last)
}

// dump takes a census of the connection table.
func (m *Meter) dump(ctx context.Context) {
	at := m.Now()
	var c *egress.Census
	err := eachSNAT(ctx, m.Flows, func() { c = m.ledger.Census() }, func(f conntrack.Flow) bool {
		c.Add(unzoned(f.Reply.Dst), egress.Dest{Proto: f.Proto, To: unzoned(f.Reply.Src)})
		return true
	})
	took := m.Now().Sub(at)
	m.mu.Lock()
	m.tried = at
	m.status.Dump.took = took
	m.mu.Unlock()
	m.problem("the connection table could not be read", err)
	if err != nil {
		return
	}
	m.ledger.Dumped(at, c)
	m.mu.Lock()
	m.status.Dump.At, m.status.Dump.TookMS = at.Round(0), float64(took.Microseconds())/1000
	m.mu.Unlock()
}

// eachSNAT calls fn for every connection whose source was translated; begin before each try.
func eachSNAT(ctx context.Context, c *conntrack.Conn, begin func(), fn func(conntrack.Flow) bool) error {
	filter := conntrack.Filter{Status: conntrack.StatusSNAT, StatusMask: conntrack.StatusSNAT}
	var err error
	for range dumpTries {
		begin()
		if err = c.Dump(ctx, filter, fn); !errors.Is(err, conntrack.ErrInterrupted) {
			return err
		}
	}
	return err
}

// cut ends the connections of addresses whose time to drain is over.
func (m *Meter) cut(ctx context.Context) {
	m.mu.Lock()
	cuts := m.cuts
	m.cuts = nil
	m.mu.Unlock()
	if len(cuts) == 0 {
		return
	}
	n := map[netip.Addr]int{}
	var failed error
	err := eachSNAT(ctx, m.Flows, func() {}, func(f conntrack.Flow) bool {
		a := f.Reply.Dst.Addr()
		if !slices.Contains(cuts, a) {
			return true
		}
		gone, err := m.Flows.Delete(ctx, f)
		if err != nil {
			failed = err
		}
		if gone {
			n[a]++
		}
		return true
	})
	for _, a := range cuts {
		e := Event{Kind: "egress", Pool: m.poolName(a), Address: a.String(),
			Message: fmt.Sprintf("%s: the time to drain is over: %d connections were ended", a, n[a])}
		if err := errors.Join(err, failed); err != nil {
			e.To, e.Message = string(egress.Error), e.Message+"; "+err.Error()
		}
		m.tell(e)
	}
	m.dump(ctx)
}

func (m *Meter) poolName(a netip.Addr) string {
	if p := poolOf(m.of.Config, a); p != nil {
		return p.Name
	}
	return ""
}

// fail takes the kernel's counts of connections that it could not enter, and says what they
// may be due to.
func (m *Meter) fail(ctx context.Context) {
	s, err := m.Flows.Stats(ctx)
	if err != nil {
		m.problem("the statistics of the connection table could not be read", err)
		return
	}
	full := false
	if n, most, err := m.Flows.Usage(ctx); err == nil && most > 0 {
		full = n >= most-most/100
	}
	f, pools := m.ledger.Failed(egress.Stats{InsertFailed: s.InsertFailed, Drop: s.Drop}, full)
	for _, name := range pools {
		if m.Now().Sub(m.blamed[name]) < time.Minute {
			continue
		}
		m.blamed[name] = m.Now()
		m.tell(Event{Kind: "egress", Pool: name, To: string(egress.Error), Message: fmt.Sprintf(
			"the kernel could not enter %d connections while addresses of the pool were nearly full: no port was found for them, as far as can be known", f.InsertFailed)})
	}
}

// problem notes what could not be done, and says it once.
func (m *Meter) problem(what string, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	if err == nil {
		delete(m.problems, what)
		return
	}
	words := what + ": " + err.Error()
	if m.problems[what] != words && m.Log != nil {
		m.Log.Warn("egress", "message", words)
	}
	m.problems[what] = words
}

// tell notes what the Loop is to tell.
func (m *Meter) tell(e Event) {
	m.mu.Lock()
	m.news = append(m.news, e)
	m.mu.Unlock()
}

// listeners looks for ports on which somebody listens.
func (m *Meter) listeners(p *plan.Plan) {
	if m.Sockets == nil || m.Now().Sub(m.taken.at) < 2*meterEvery {
		return
	}
	m.taken.at = m.Now()
	list, err := m.Sockets.Listeners()
	var held []netip.Addr
	if err == nil {
		held, err = m.Sockets.Addresses("")
	}
	m.problem("the box's listeners could not be read", err)
	if err == nil {
		m.taken.see(m.Now(), list, sockets.Ephemeral(), held)
	}
}

// publish puts together what was found, and wakes the Loop where that is news.
func (m *Meter) publish(p *plan.Plan, spilled map[string]uint64, report bool) {
	found := PoolsFound{Taken: m.taken.of(p.Config.Egress), Relief: map[string][]model.Relief{}, Left: map[netip.Addr]int{}}
	m.tellUsage(&found)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.watch {
		if n, ok := m.ledger.Flows(a); ok {
			found.Left[a] = n
		}
	}
	found.Dumped = m.ledger.LastDump()
	changed := len(m.news) > 0 || !sameFound(m.found, found) || len(m.watch) > 0 && !found.Dumped.Equal(m.found.Dumped)
	m.found = found
	if report || m.Now().Sub(m.reported) >= dumpEvery {
		m.report(p, spilled)
		m.reported = m.Now()
	}
	if changed {
		poke(m.wake)
	}
}

func sameFound(a, b PoolsFound) bool {
	sameTaken := func(x, y []model.TakenPort) bool { return slices.Equal(x, y) }
	sameRelief := func(x, y []model.Relief) bool { return slices.EqualFunc(x, y, model.Relief.Equal) }
	return sameMaps(a.Taken, b.Taken, sameTaken) && sameMaps(a.Relief, b.Relief, sameRelief) &&
		sameMaps(a.Left, b.Left, func(x, y int) bool { return x == y }) && slices.Equal(a.Alarms, b.Alarms)
}

func sameMaps[K comparable, V any](a, b map[K]V, same func(V, V) bool) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || !same(v, w) {
			return false
		}
	}
	return true
}
