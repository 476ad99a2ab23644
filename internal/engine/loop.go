package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"weir/internal/health"
	"weir/internal/host"
	"weir/internal/keep"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/state"
)

// Times of the loop.
const (
	// pollEvery is how often the loop looks at the kernel's generation when nobody told
	// it of a change (events may get lost), and at what time alone changes.
	pollEvery = time.Second
	// settle is how long the loop waits after somebody else's commit for the next one, so
	// that a flush and a load that follow each other are one repair.
	settle = 100 * time.Millisecond
	// backoffMin and backoffMax bound the pause after a failure; it doubles in between.
	backoffMin, backoffMax = 250 * time.Millisecond, 30 * time.Second
	// eventTables is from how many tables on an event may name only some of them.
	eventTables = 64
)

// Loop keeps an Engine's namespace as the configuration, the checks and the operators say
// until its context ends. It is the only goroutine that touches what it holds; others
// reach it through channels and Do.
type Loop struct {
	Engine *Engine
	Load   func() (File, error)
	Reload <-chan struct{}                      // somebody asks to load again
	Events <-chan nft.Event                     // commits of anybody; hints, may be nil
	Log    *slog.Logger                         // what happened
	After  func(time.Duration) <-chan time.Time // the clock; nil: time.After
	Now    func() time.Time                     // the clock; nil: time.Now

	Checks  Checker              // who asks the backends; nil: nobody
	Results *Inbox               // what they answered; nil: nothing
	Traffic Connections          // the connection table; nil: it is left alone
	Ways    func(netip.Addr) Way // how collectors of mirrors are reached; nil: nobody knows
	Host    Host                 // what the box provides; nil: nobody watches it
	Lists   Lists                // blocklists; nil: none
	Pools   Pools                // who watches egress pools; nil: nobody
	Memory  Memory               // what was known before this start
	Save    func(Memory) error   // keeps what is known; nil: it is lost
	Journal *Journal             // nil: events are lost

	Bindings Bindings // the log of bindings; nil: none

	Kept  Keeper                                         // configurations that were taken; nil: none is kept
	Parse func(name, text string) (*model.Config, error) // reads what was kept
	Clock func() keep.Clock                              // for deadlines; nil: keep.Now

	// Notify tells of a state that was reached: "ready", "reloading". May be nil.
	Notify func(state string)
	// Report is told what each step did. May be nil.
	Report func(Report)

	calls      chan func()
	roster     *Roster
	file       *model.Config // as loaded last
	trackers   map[Member]*health.Tracker
	members    map[string]Member // by targetID
	cuts       []Cut             // connections to end once the next commit is done
	pending    bool              // the kernel is not as it should be
	announce   bool              // somebody waits to hear "ready"
	findings   []host.Finding    // what is wrong on the box; nil: not known
	listed     []lists.Status    // of the blocklists, as told last
	fencer     *fencer           // has the blocklists read and committed; nil: there are none
	relisting  <-chan struct{}   // closed when the lists of the last file were tried; nil: there are none
	repairErr  string            // of the last repair: it has been said
	wireErr    string            // of the last look at neighbours: it has been said
	unsaved    bool              // what there is to remember is not on disk
	saveFailed bool              // and the last try failed: that has been said
	pause      time.Duration     // before the next try; 0: none failed
	retry      <-chan time.Time  // ends the pause
	last       Outcome           // of the last step

	pooled // egress pools

	mirror     mirrorBook
	unsent     unsent        // of mirrors
	book       keep.Record   // what is kept of configurations
	before     *model.Config // to go back to, while a change waits
	unkept     bool          // the book is not on disk
	owed       string        // nor is this text, which it names; "": all are
	keepFailed bool          // and the last try failed: that has been said
}

// Checker asks backends how they are. Implementation: health.Prober.
type Checker interface {
	Set([]health.Target)
}

// Connections is the part of the connection table that has to do with services.
// Implementation: Conntrack.
type Connections interface {
	// Count returns the live connections of each backend of cfg.
	Count(ctx context.Context, cfg *model.Config) (map[Member]int, error)
	// End makes connections come to an end, so that clients start anew.
	End(ctx context.Context, cuts []Cut) (int, error)
}

// Cut is connections of a backend that are to end.
type Cut struct {
	Service *model.Service
	Backend model.Backend
	// All says that TCP and SCTP are meant too; else it is UDP alone, which would never
	// notice by itself, and TCP clients that nobody has answered yet.
	All bool
}

// Start makes the loop ready to be called from other goroutines. Run does it too.
func (l *Loop) Start() {
	if l.calls == nil {
		l.calls = make(chan func())
	}
}

// Run loads the configuration, applies it, and keeps it applied. It returns the error of
// the first load, and nil when ctx ends: the kernel goes on with what it has.
func (l *Loop) Run(ctx context.Context) error {
	l.prepare()
	if err := l.first(); err != nil {
		return err
	}
	l.announce = true
	relisted, wait := l.startLists(ctx)
	defer wait()
	poll := l.After(pollEvery)
	var quiet <-chan time.Time // runs while commits of others settle
	for {
		if l.pending && l.retry == nil {
			l.step(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.Reload:
			_ = l.reload(nil, false) // it has said what is wrong
		case call := <-l.calls:
			call()
		case <-l.Results.wake():
			l.results()
		case list := <-l.found():
			l.judged(list)
		case <-relisted:
			l.listsNews(ctx)
		case <-l.poolsWake():
			l.poolsChanged()
		case e, ok := <-l.Events:
			switch {
			case !ok:
				l.Events = nil
			case l.foreign(e):
			case quiet == nil:
				quiet = l.After(settle)
			}
		case <-quiet:
			quiet = nil
			l.repair(ctx)
		case <-l.retry:
			l.retry = nil
		case <-poll:
			poll = l.After(pollEvery)
			l.tick(ctx)
			if quiet == nil {
				l.repair(ctx)
			}
		}
	}
}

func (l *Loop) prepare() {
	l.Start()
	if l.After == nil {
		l.After = time.After
	}
	if l.Now == nil {
		l.Now = time.Now
	}
	if l.Clock == nil {
		l.Clock = keep.Now
	}
	if l.Journal == nil {
		l.Journal = NewJournal()
	}
	if l.Results == nil {
		l.Results = NewInbox()
	}
	l.roster = NewRoster(l.resumed())
	l.mirror = newMirrorBook(l.Memory.Mirrors)
	l.trackers = map[Member]*health.Tracker{}
	if l.Lists != nil {
		l.fencer = newFencer(l.Lists, l.Engine.Fence(), l.After)
	}
	l.resumeDrains()
}

// resumed returns what operators said to the weir before, as it holds now.
func (l *Loop) resumed() map[Member]state.Word {
	words := make(map[Member]state.Word, len(l.Memory.Words))
	for m, w := range l.Memory.Words {
		words[m] = w.Resume(l.Now())
	}
	return words
}

// set makes cfg what is wanted.
func (l *Loop) set(cfg *model.Config) {
	cfg.Reuse(l.file)
	l.dropped(cfg)
	l.file = cfg
	l.roster.Load(cfg)
	l.watch()
	l.relisting = l.takeLists(cfg)
	if l.Host != nil {
		l.Host.Set(cfg)
	}
	l.Memory.Down = nil // it is of before the start: a check that a later file adds begins anew
	l.pending = true
}

// reload takes the file again. A bad one is refused, and the last good one stays; so is one
// while a change waits, and, unless somebody meant just that one, one that was not confirmed.
func (l *Loop) reload(by *state.Operator, meant bool) error {
	l.notify("reloading")
	l.announce = true
	f, err := l.readAgain(meant)
	if err != nil {
		return l.refused(by, err)
	}
	l.take(f, by)
	l.Log.Info("configuration taken")
	l.note(Event{Kind: "reload", By: by, Message: "configuration taken"})
	return nil
}

func (l *Loop) readAgain(meant bool) (File, error) {
	l.expire()
	if p := l.book.Pending; p != nil {
		return File{}, WaitingError(p, l.Clock())
	}
	f, err := l.read()
	if err == nil && !meant && l.book.Refuses(f.sum) {
		err = errRefused
	}
	return f, err
}

// refused says why the file was not taken, if it was not.
func (l *Loop) refused(by *state.Operator, err error) error {
	if err != nil {
		l.Log.Error("configuration not taken; the last good one stays", "error", err)
		l.note(Event{Kind: "error", By: by, Message: "configuration not taken: " + err.Error()})
		l.ready()
	}
	return err
}

// step brings the kernel to what is wanted now. When it fails it is tried again after a
// pause; what happens meanwhile is part of the next try.
func (l *Loop) step(ctx context.Context) {
	rep, err := l.apply(ctx)
	l.report(rep)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		l.pause = min(max(2*l.pause, backoffMin), backoffMax)
		l.retry = l.After(l.pause)
		l.Log.Error("apply failed; trying again", "error", err, "in", l.pause)
		l.note(Event{Kind: "error", Message: err.Error()})
		l.last = Outcome{Added: []string{}, Removed: []string{}, Warnings: []string{err.Error()}}
		return
	}
	l.pending, l.pause = false, 0
	l.drainsApplied()
	if l.Pools != nil {
		l.Pools.Applied(l.Engine.Plan())
	}
	l.bind()
	l.last = rep.Outcome()
	l.Log.Info("applied", "change", rep.Delta.Summary(), "read", rep.Read, "plan", rep.Plan, "commit", rep.Commit)
	l.end(ctx)
	l.arrived()
}

func (l *Loop) apply(ctx context.Context) (Report, error) {
	cfg, transitions := l.roster.Effective(l.Now())
	cfg = l.withPools(cfg)
	l.planned(cfg)
	for _, t := range transitions {
		l.transition(t)
	}
	return l.Engine.Apply(ctx, l.mirrors(cfg))
}

// repair looks whether the kernel still holds what it should. A failure is not waited
// for: the next look comes by itself.
func (l *Loop) repair(ctx context.Context) {
	if l.fencer != nil {
		l.fencer.check()
	}
	if l.pending && l.retry == nil || l.Engine.Plan() == nil {
		return // what is wanted is on its way
	}
	// While a change that failed waits for its next try, what was reached before it is kept.
	rep, err := l.Engine.Repair(ctx)
	if errors.Is(err, context.Canceled) {
		return
	}
	if rep.Left && rep.Delta != nil && !rep.Delta.Empty() {
		l.Log.Info("what a change had left in the kernel is gone", "change", rep.Delta.Summary())
	} else if rep.Delta != nil && !rep.Delta.Empty() && l.Engine.Known() {
		l.Log.Warn("somebody changed weir's rules: put back", "change", rep.Delta.Summary(),
			"took", rep.Read+rep.Commit)
		words := "somebody changed weir's rules: " + rep.Delta.Summary()
		if lostCounts(rep.Delta) {
			words += "; entries of blocklists that were gone count anew"
		}
		l.note(Event{Kind: "repair", Message: words})
	}
	if words := addressWords(rep.Addresses.Added); words != "" {
		l.Log.Warn("somebody took weir's addresses away: put back", "addresses", words)
		l.note(Event{Kind: "repair", Message: "somebody took weir's addresses away: put back " + words})
	}
	l.saidOfTunnels(rep.Tunnels)
	l.repairFailed(err)
	l.report(rep)
}

// tick does what time alone asks for: weights that climb, drains that end, words that
// could not be saved.
func (l *Loop) tick(ctx context.Context) {
	l.count(ctx)
	if l.roster.Due(l.Now()) {
		l.pending = true
	}
	l.dueDrains()
	l.lookAtMirrors(ctx)
	l.expire()
	l.rewire()
	l.tellLists() // of one that cannot be read, which changes nothing
	l.keepBook()
	l.save()
}

// transition tells of a state that changed, and notes the connections that must end.
func (l *Loop) transition(t Transition) {
	l.Log.Info("backend", "service", t.Service, "backend", t.Backend, "from", t.From, "to", t.To, "reason", t.Reason)
	l.note(Event{Kind: "state", Service: t.Service, Backend: t.Backend, From: string(t.From), To: string(t.To), Message: t.Reason})
	s, b, ok := find(l.file, t.Member)
	if !ok {
		return
	}
	switch t.To {
	case state.Down:
		l.cuts = append(l.cuts, Cut{s, b, s.OnDown == model.Reset})
	case state.Disabled:
		l.cuts = append(l.cuts, Cut{s, b, false})
	case state.Drained:
		l.cuts = append(l.cuts, Cut{s, b, true})
	}
}

// dropped notes the flows of backends that next does not name any more.
func (l *Loop) dropped(next *model.Config) {
	if l.file == nil {
		return
	}
	for _, s := range l.file.Services {
		n := next.Service(s.Name)
		if n == s {
			continue
		}
		for _, b := range s.Backends {
			if n == nil || !slices.ContainsFunc(n.Backends, func(o model.Backend) bool { return o.ID() == b.ID() }) {
				l.cuts = append(l.cuts, Cut{s, b, false})
			}
		}
	}
}

// end ends the connections that were noted, now that new ones go elsewhere.
func (l *Loop) end(ctx context.Context) {
	if len(l.cuts) == 0 || l.Traffic == nil {
		return
	}
	n, err := l.Traffic.End(ctx, l.cuts)
	if err != nil {
		l.Log.Error("connections could not be ended", "error", err)
		l.note(Event{Kind: "error", Message: "connections could not be ended: " + err.Error()})
	}
	if n > 0 {
		l.Log.Info("connections ended", "count", n)
	}
	l.cuts = nil
}

// count looks how many connections the backends that drain have left.
func (l *Loop) count(ctx context.Context) {
	draining := l.roster.Draining()
	if len(draining) == 0 || l.Traffic == nil {
		return
	}
	live, err := l.Traffic.Count(ctx, l.file)
	if err != nil {
		l.Log.Warn("connections could not be counted", "error", err)
		return
	}
	for _, m := range draining {
		l.roster.Connections(m, live[m])
	}
}

func (l *Loop) save() {
	if !l.unsaved || l.Save == nil {
		return
	}
	if err := l.Save(Memory{l.roster.Words(), l.roster.Down(), l.blocks(), l.drainWords(), l.mirror.known}); err != nil {
		if !l.saveFailed { // a full disk needs no line a second
			l.Log.Error("what is to be remembered could not be saved; trying again", "error", err)
			l.note(Event{Kind: "error", Message: "state could not be saved: " + err.Error()})
		}
		l.saveFailed = true
		return
	}
	if l.saveFailed {
		l.Log.Info("what is to be remembered is saved again")
	}
	l.unsaved, l.saveFailed = false, false
}

func (l *Loop) note(e Event) {
	e.At = l.Now()
	l.Journal.Add(e)
}

// arrived tells that weir is ready, once the kernel does all that is wanted.
func (l *Loop) arrived() {
	if l.pending {
		return
	}
	if l.fencer != nil {
		if behind, _ := l.fencer.behind(); behind {
			return
		}
	}
	l.ready()
}

func (l *Loop) ready() {
	if l.announce {
		l.announce = false
		l.notify("ready")
	}
}

func (l *Loop) notify(state string) {
	if l.Notify != nil {
		l.Notify(state)
	}
}

func (l *Loop) report(r Report) {
	if l.Report != nil {
		l.Report(r)
	}
}

// find returns the service and backend that m names.
func find(cfg *model.Config, m Member) (*model.Service, model.Backend, bool) {
	s := cfg.Service(m.Service)
	if s == nil {
		return nil, model.Backend{}, false
	}
	i := slices.IndexFunc(s.Backends, func(b model.Backend) bool { return b.ID() == m.Backend })
	if i < 0 {
		return nil, model.Backend{}, false
	}
	return s, s.Backends[i], true
}

// ErrNoBackend says that the configuration names no such backend.
var ErrNoBackend = errors.New("no such backend")

func (m Member) missing() error {
	return fmt.Errorf("%w: %s of service %s", ErrNoBackend, m.Backend, m.Service)
}
