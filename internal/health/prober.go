package health

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"
)

// firstWithin is the longest that the first probe of a target waits for its turn: with a
// check of every hour nothing would be known for an hour.
const firstWithin = 10 * time.Second

// Options are what a Prober may be told. The zero value is good.
type Options struct {
	// Probe asks a target once, and returns when ctx ends. nil: Probes.Probe.
	Probe func(context.Context, Target) Result
	// Rand is where jitter comes from; the Prober alone uses it. nil: a random seed.
	Rand *rand.Rand
}

// Stats are counts since the Prober was made.
type Stats struct {
	Targets  int           // now
	InFlight int           // probes now
	Started  uint64        // probes
	Skipped  uint64        // turns that nobody got: the last probe ran over two, or this process did not run
	MaxLag   time.Duration // the latest that a probe started after its turn
}

// Prober asks many targets, each at its own pace.
//
// One goroutine keeps the turns in a heap; each probe has its own goroutine, so that one
// that waits delays nobody, and there is at most one for each target. A turn is counted
// from the turn before, not from the end of the probe. One that comes while the target's
// last probe is still running is taken when that has ended, and the next is counted from
// there; no more than one waits.
//
// So a probe begins at most Check.Every after the one before, for jitter only shortens and
// no probe takes longer than its timeout, which is at most Every: what stops answering is
// known to be bad after at most Fall × Every and the time that the last probe takes.
type Prober struct {
	probe  func(context.Context, Target) Result
	report func(Update)

	reporting sync.Mutex // held around report, and taken before mu

	mu      sync.Mutex
	rand    *rand.Rand
	targets map[string]*job
	turns   turns
	stats   Stats
	closed  bool

	wake chan struct{}   // the first turn may have changed
	ctx  context.Context // ends at Close
	end  context.CancelFunc
	wg   sync.WaitGroup
}

// job is a target and its schedule.
type job struct {
	Target
	turn    time.Time
	index   int // in turns
	running bool
	waiting bool            // its turn came while it was running
	ctx     context.Context // ends when the target is no longer asked
	end     context.CancelFunc
}

// NewProber returns a running Prober without targets; Close ends it.
//
// report gets every result, one call at a time, in the order in which they came to be
// known of each target. It must be quick, and must not call the Prober.
func NewProber(report func(Update), o Options) *Prober {
	p := &Prober{probe: o.Probe, rand: o.Rand, report: report, targets: map[string]*job{}, wake: make(chan struct{}, 1)}
	if p.probe == nil {
		p.probe = new(Probes).Probe
	}
	if p.rand == nil {
		p.rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.wg.Go(p.run)
	return p
}

// Set makes targets the ones that are asked. A target that was there before with the
// same ID, address, port and an equal check keeps its turn and its running probe; the
// others of the old ones are given up, and once Set has returned no result of theirs is
// reported. New ones get their first turns spread evenly over their interval, or over
// 10 s if that is shorter. Of targets with one ID the first counts.
func (p *Prober) Set(targets []Target) {
	p.reporting.Lock()
	defer p.reporting.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	old := p.targets
	p.targets = make(map[string]*job, len(targets))
	var fresh []*job
	for _, t := range targets {
		if p.targets[t.ID] != nil {
			continue
		}
		j := old[t.ID]
		if j != nil && same(&j.Target, &t) {
			delete(old, t.ID)
		} else {
			j = &job{Target: t}
			j.ctx, j.end = context.WithCancel(p.ctx)
			fresh = append(fresh, j)
		}
		p.targets[t.ID] = j
	}
	for _, j := range old {
		j.end()
		heap.Remove(&p.turns, j.index)
	}
	now := time.Now()
	for i, j := range fresh {
		within := min(j.Check.Every, firstWithin)
		j.turn = now.Add(time.Duration(float64(within) * float64(i) / float64(len(fresh))))
		heap.Push(&p.turns, j)
	}
	p.stats.Targets = len(p.targets)
	p.rouse()
}

// rouse has run look at the turns again.
func (p *Prober) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func same(a, b *Target) bool {
	return a.Addr == b.Addr && a.Port == b.Port && (a.Check == b.Check || reflect.DeepEqual(a.Check, b.Check))
}

// Stats returns the counts.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Close ends all probes and waits for them. Nothing is reported once it has returned.
func (p *Prober) Close() {
	p.reporting.Lock() // a result that is being reported still is
	p.mu.Lock()
	p.closed = true
	p.targets = nil
	p.stats.Targets = 0
	p.end()
	p.mu.Unlock()
	p.reporting.Unlock()
	p.wg.Wait()
}

// run starts probes when their turn comes.
func (p *Prober) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		if wait, any := p.startDue(); any {
			timer.Reset(wait)
		}
	}
}

// startDue starts what is due and returns how long it is to the next turn.
func (p *Prober) startDue() (wait time.Duration, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.turns) > 0 && !p.closed {
		j, now := p.turns[0], time.Now()
		if wait = j.turn.Sub(now); wait > 0 {
			return wait, true
		}
		p.start(j, now)
		heap.Fix(&p.turns, 0)
	}
	return 0, false
}

// start gives j its turn and sets the next one.
func (p *Prober) start(j *job, now time.Time) {
	lag := now.Sub(j.turn)
	p.stats.MaxLag = max(p.stats.MaxLag, lag)
	if lag >= j.Check.Every {
		// The process was stopped, and everybody is due at once: what was missed is
		// missed, and the next turns are spread again.
		j.turn = now.Add(time.Duration(float64(min(j.Check.Every, firstWithin)) * p.rand.Float64()))
		p.stats.Skipped++
		return
	}
	j.turn = j.turn.Add(time.Duration(float64(j.Check.Every) * (1 - j.Check.Jitter*p.rand.Float64())))
	if j.running {
		if j.waiting {
			p.stats.Skipped++
		}
		j.waiting = true
		return
	}
	j.running = true
	p.stats.Started++
	p.stats.InFlight++
	p.wg.Go(func() { p.ask(j) })
}

// ask runs one probe and reports it, unless the target was given up meanwhile.
func (p *Prober) ask(j *job) {
	r := p.probe(j.ctx, j.Target)
	p.reporting.Lock()
	defer p.reporting.Unlock()
	p.mu.Lock()
	j.running = false
	p.stats.InFlight--
	current := p.targets[j.ID] == j
	if current && j.waiting {
		j.waiting = false
		j.turn = time.Now()
		heap.Fix(&p.turns, j.index)
		p.rouse()
	}
	p.mu.Unlock()
	if current {
		p.report(Update{ID: j.ID, Result: r})
	}
}

// turns is a heap of jobs, the next turn first.
type turns []*job

func (h turns) Len() int           { return len(h) }
func (h turns) Less(i, k int) bool { return h[i].turn.Before(h[k].turn) }
func (h turns) Swap(i, k int) {
	h[i], h[k] = h[k], h[i]
	h[i].index, h[k].index = i, k
}
func (h *turns) Push(x any) {
	j := x.(*job)
	j.index = len(*h)
	*h = append(*h, j)
}
func (h *turns) Pop() any {
	old := *h
	j := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return j
}
