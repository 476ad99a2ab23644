package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"weir/internal/model"
)

// listsEvery is how often the files of blocklists are looked at. One that changed is read
// when it has not changed from one look to the next.
const listsEvery = 750 * time.Millisecond

// fencer has blocklists read, and brought into the kernel, in two goroutines of their own: to
// do that with a million entries takes seconds, in which nothing else may wait. Of what is
// wanted the newest wins. Its methods may be called from any goroutine, before run as well.
type fencer struct {
	lists Lists
	fence *Fence
	after func(time.Duration) <-chan time.Time
	wake  chan struct{} // there are news

	reading, working chan struct{} // there is something to read; to commit

	mu      sync.Mutex
	cfg     *model.Config   // whose lists are to be taken; nil: none
	takers  []chan struct{} // who waits for that
	known   bool            // lists were taken; before that, nobody knows what the kernel is to hold
	wanted  bool            // the kernel is to be brought to what the lists say now
	waiters []chan struct{} // who waits for that
	look    bool            // the kernel may not hold what it was brought to
	busy    bool            // with either
	failed  bool            // and the last time it did not work
	told    []listsNews
	last    Outcome // of what was brought to the kernel last
	said    string  // why the last repair failed: it has been told
}

// listsNews is something that the loop is told.
type listsNews struct {
	read   bool          // lists were read
	repair bool          // rep is a repair
	rep    Report        // what was done in the kernel
	err    error         // why it was not
	pause  time.Duration // before the next try
}

func newFencer(lists Lists, fence *Fence, after func(time.Duration) <-chan time.Time) *fencer {
	return &fencer{lists: lists, fence: fence, after: after,
		wake: make(chan struct{}, 1), reading: make(chan struct{}, 1), working: make(chan struct{}, 1)}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look anyhow
	}
}

// take has the lists made those of cfg. What it returns is closed once that was tried.
func (f *fencer) take(cfg *model.Config) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := make(chan struct{})
	f.cfg, f.takers = cfg, append(f.takers, done)
	poke(f.reading)
	return done
}

// renew has the kernel brought to what the lists say now. What it returns is closed once
// that was tried.
func (f *fencer) renew() <-chan struct{} {
	done := make(chan struct{})
	f.want([]chan struct{}{done})
	return done
}

func (f *fencer) want(waiters []chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted, f.waiters = true, append(f.waiters, waiters...)
	poke(f.working)
}

// check has the kernel looked at.
func (f *fencer) check() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look = true
	poke(f.working)
}

// newer reports whether what is on its way to the kernel is not what is wanted any more.
func (f *fencer) newer() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted
}

// behind reports whether the kernel has not the lists as they are wanted, and what was done last.
func (f *fencer) behind() (bool, Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.busy || f.wanted || f.failed || f.cfg != nil, f.last
}

// news returns what there was to tell since it was called last.
func (f *fencer) news() []listsNews {
	f.mu.Lock()
	defer f.mu.Unlock()
	told := f.told
	f.told = nil
	return told
}

func (f *fencer) tell(n listsNews) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, n)
	poke(f.wake)
}

// run works until ctx ends. What it returns waits until it has ended.
func (f *fencer) run(ctx context.Context) (wait func()) {
	var g sync.WaitGroup
	g.Go(func() { f.read(ctx) })
	g.Go(func() { f.work(ctx) })
	return func() {
		g.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, w := range append(f.takers, f.waiters...) {
			close(w)
		}
		f.takers, f.waiters = nil, nil
	}
}

// read reads lists.
func (f *fencer) read(ctx context.Context) {
	poll := f.after(listsEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.reading:
			f.mu.Lock()
			cfg, takers := f.cfg, f.takers
			f.mu.Unlock()
			if cfg == nil {
				continue
			}
			f.lists.Take(cfg)
			f.taken(cfg, takers)
		case <-poll:
			poll = f.after(listsEvery)
			if !f.lists.Poll() {
				continue
			}
			f.want(nil)
		}
		f.tell(listsNews{read: true})
	}
}

// taken has the kernel brought to what the lists of cfg say. Who waited for the lists waits
// for that.
func (f *fencer) taken(cfg *model.Config, takers []chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.takers = f.takers[len(takers):]; f.cfg == cfg {
		f.cfg = nil
	}
	f.known, f.wanted, f.waiters = true, true, append(f.waiters, takers...)
	poke(f.working)
}

// work brings the kernel to what the lists say.
func (f *fencer) work(ctx context.Context) {
	var pause time.Duration    // before the next try; 0: none failed
	var retry <-chan time.Time // ends it
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.working:
		case <-retry:
			retry = nil
			f.want(nil)
		}
		wanted, look, waiters := f.job()
		var n listsNews
		switch {
		case wanted:
			n.rep, n.err = f.fence.Apply(ctx, f.lists.Compiled(), f.newer)
		case look:
			n.repair = true
			n.rep, n.err = f.fence.Repair(ctx)
		}
		if ctx.Err() != nil {
			f.put(waiters)
			return
		}
		if errors.Is(n.err, errOvertaken) {
			f.put(waiters)
			poke(f.working)
			continue
		}
		switch {
		case !wanted: // the next look comes by itself
		case n.err != nil:
			pause = min(max(2*pause, backoffMin), backoffMax)
			n.pause, retry = pause, f.after(pause)
		default:
			pause, retry = 0, nil
		}
		f.done(n, wanted, waiters)
	}
}

// job takes what there is to do.
func (f *fencer) job() (wanted, look bool, waiters []chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return false, false, nil
	}
	wanted, look, waiters = f.wanted, f.look, f.waiters
	f.wanted, f.waiters = false, nil
	f.busy = wanted
	if !wanted {
		f.look = false
	} else if look {
		poke(f.working) // after that
	}
	return wanted, look, waiters
}

// put gives back who waits.
func (f *fencer) put(waiters []chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters = append(waiters, f.waiters...)
}

// done tells of what was done.
func (f *fencer) done(n listsNews, wanted bool, waiters []chan struct{}) {
	f.mu.Lock()
	f.busy = false
	if wanted {
		f.failed = n.err != nil
		f.last = Outcome{}
		if n.err == nil {
			f.last = n.rep.Outcome()
		} else {
			f.last.Warnings = []string{"blocklists: " + n.err.Error()}
		}
	}
	why := ""
	if n.err != nil && !wanted {
		why = n.err.Error()
	}
	fresh := why != f.said
	f.said = why
	f.mu.Unlock()
	if wanted || fresh || n.repair && n.err == nil && !n.rep.Delta.Empty() {
		f.tell(n)
	}
	for _, w := range waiters {
		close(w)
	}
}
