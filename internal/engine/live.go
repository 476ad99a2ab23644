package engine

import (
	"context"
	"slices"
	"sync"

	"weir/internal/health"
	"weir/internal/model"
	"weir/internal/state"
)

// Inbox takes results from many goroutines without making them wait, and gives them to
// the loop in batches.
type Inbox struct {
	mu     sync.Mutex
	queue  []health.Update
	signal chan struct{}
}

// NewInbox returns an empty inbox.
func NewInbox() *Inbox { return &Inbox{signal: make(chan struct{}, 1)} }

// Put adds a result.
func (b *Inbox) Put(u health.Update) {
	b.mu.Lock()
	b.queue = append(b.queue, u)
	b.mu.Unlock()
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

func (b *Inbox) wake() <-chan struct{} { return b.signal }

func (b *Inbox) take() []health.Update {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue
	b.queue = nil
	return q
}

// targetID names a backend to the checks; service names have no slash.
func targetID(m Member) string { return m.Service + "/" + m.Backend }

// watch tells the checks whom to ask: every backend that has a check and is not disabled.
func (l *Loop) watch() {
	if l.Checks == nil {
		return
	}
	var targets []health.Target
	kept := map[Member]*health.Tracker{}
	for _, s := range l.file.Services {
		for i, m := range l.roster.Members(s) {
			b := s.Backends[i]
			c := watched(l.roster, s, m, b)
			if c == nil {
				l.roster.Health(m, state.Health{})
				continue
			}
			kept[m] = l.trackers[m]
			if kept[m] == nil {
				kept[m] = l.newTracker(m, c)
			}
			kept[m].SetCheck(c)
			targets = append(targets, health.Target{ID: targetID(m), Addr: b.Addr, Port: checkPort(s, b), Check: c})
		}
	}
	l.trackers = kept
	l.members = make(map[string]Member, len(kept))
	for m := range kept {
		l.members[targetID(m)] = m
	}
	l.Checks.Set(targets)
}

// newTracker returns the tracker of a backend that was not checked until now. One that was
// down when the weir before ended is down until the checks say otherwise.
func (l *Loop) newTracker(m Member, c *model.Check) *health.Tracker {
	h, down := l.Memory.Down[m]
	if !down {
		return health.NewTracker(c, health.Unknown, l.Now(), "not checked yet")
	}
	l.roster.Health(m, h)
	return health.NewTracker(c, health.Down, h.Since, h.Reason)
}

// checkPort is the port on which the backend gets its traffic: its own, or that of the
// first listener of its family.
func checkPort(s *model.Service, b model.Backend) uint16 {
	if !b.Ports.IsZero() {
		return b.Ports.Lo
	}
	i := slices.IndexFunc(s.Listen, func(l model.Listen) bool { return l.Family() == b.Family() })
	if i < 0 {
		return 0
	}
	return s.Listen[i].Ports.Lo
}

// results feeds what the checks found to the trackers, and what changed to the roster.
func (l *Loop) results() {
	for _, u := range l.Results.take() {
		m, ok := l.members[u.ID]
		if !ok {
			continue // asked before the last reload
		}
		t := l.trackers[m]
		before := t.Snapshot().State
		if !t.Feed(u.Result) {
			continue
		}
		s := t.Snapshot()
		l.unsaved = true // tick saves it: many may change at once
		l.roster.Health(m, state.Health{Down: !s.State.Serves(), Reason: s.Reason, Since: s.Since,
			CameUp: before == health.Down})
		l.pending = true
	}
}

// Do runs fn in the loop, which nothing else touches meanwhile, and waits for it.
func (l *Loop) Do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	select {
	case l.calls <- func() { fn(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Say takes an operator's word of a backend: change gets what was said before, and
// returns what holds from now on. It is kept, and applied with the loop's next step.
func (l *Loop) Say(ctx context.Context, by *state.Operator, m Member, change func(state.Word) state.Word, words string) error {
	var err error
	return firstError(l.Do(ctx, func() {
		if !l.roster.Knows(m) {
			err = m.missing()
			return
		}
		old := l.roster.Word(m)
		l.roster.Say(m, change(old).After(old, l.Now(), by))
		l.watch() // a disabled backend is not checked
		l.unsaved, l.pending = true, true
		l.retry = nil
		l.note(Event{Kind: "operator", By: by, Service: m.Service, Backend: m.Backend, Message: words})
		l.save()
	}), &err)
}

func firstError(err error, other *error) error {
	if err != nil {
		return err
	}
	return *other
}

// ReloadNow is what SIGHUP does, with the mistakes of the file as its error. It returns when
// the file's blocklists are in the kernel, or refused.
func (l *Loop) ReloadNow(ctx context.Context, by *state.Operator) error {
	return l.taking(ctx, func() error { return l.reload(by, true) })
}

// taking has the loop take a file, and waits for its blocklists.
func (l *Loop) taking(ctx context.Context, take func() error) error {
	var err error
	var tried <-chan struct{}
	e := l.Do(ctx, func() {
		if err = take(); err == nil {
			tried = l.relisting
		}
	})
	if err := firstError(e, &err); err != nil {
		return err
	}
	return await(ctx, tried)
}

// Health is what is known of a backend's health.
type Health struct {
	Checked bool
	health.Snapshot
}
