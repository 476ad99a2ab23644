package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weir/internal/model"
)

// diary notes when probes start and what is reported.
type diary struct {
	sync.Mutex
	start   map[string][]time.Duration
	updates map[string]int
	begin   time.Time
	block   map[string]time.Duration // how long probes of a target take
}

func newDiary() *diary {
	return &diary{start: map[string][]time.Duration{}, updates: map[string]int{}, begin: time.Now(), block: map[string]time.Duration{}}
}

func (d *diary) probe(ctx context.Context, t Target) Result {
	d.Lock()
	d.start[t.ID] = append(d.start[t.ID], time.Since(d.begin))
	wait := d.block[t.ID]
	d.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
	return Result{OK: true, At: time.Now()}
}

func (d *diary) report(u Update) {
	d.Lock()
	defer d.Unlock()
	d.updates[u.ID]++
}

// many returns n targets with one check.
func many(n int, c *model.Check) []Target {
	var out []Target
	for i := range n {
		out = append(out, Target{ID: fmt.Sprint(i), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Port: 80, Check: c})
	}
	return out
}

func (d *diary) prober() *Prober {
	return NewProber(d.report, Options{Probe: d.probe, Rand: rand.New(rand.NewPCG(1, 2))})
}

func TestProberSpreadsAndPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		p := d.prober()
		defer p.Close()
		const n, every = 200, 2 * time.Second
		p.Set(many(n, &model.Check{Every: every, Timeout: every, Jitter: 0.1}))
		time.Sleep(time.Minute)
		synctest.Wait()
		var slots [n]int
		for id := range d.start {
			starts := d.start[id]
			slots[starts[0]*n/every]++
			var sum time.Duration
			for i := 1; i < len(starts); i++ {
				gap := starts[i] - starts[i-1]
				sum += gap
				if gap < every*9/10 || gap > every {
					t.Fatalf("target %s: interval %v", id, gap)
				}
			}
			if mean := sum / time.Duration(len(starts)-1); mean < every*92/100 || mean > every*98/100 {
				t.Errorf("target %s: mean interval %v", id, mean)
			}
			if d.updates[id] != len(starts) {
				t.Errorf("target %s: %d probes, %d reports", id, len(starts), d.updates[id])
			}
		}
		for i, k := range slots {
			if k != 1 {
				t.Errorf("slot %d of the first interval has %d first probes", i, k)
			}
		}
		if s := p.Stats(); s.MaxLag != 0 || s.Skipped != 0 || s.Targets != n {
			t.Errorf("%+v", s)
		}
	})
}

// With long intervals the first probes do not wait for them.
func TestProberFirstTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		p := d.prober()
		defer p.Close()
		p.Set(many(10, &model.Check{Every: time.Hour, Timeout: time.Second}))
		time.Sleep(firstWithin)
		synctest.Wait()
		if s := p.Stats(); s.Started != 10 {
			t.Errorf("%+v", s)
		}
	})
}

// A probe that hangs delays nobody; one of the turns of its own target waits for its end,
// the others are skipped.
func TestProberSkips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		d.block["0"] = 3500 * time.Millisecond
		p := d.prober()
		defer p.Close()
		p.Set(many(2, &model.Check{Every: time.Second, Timeout: time.Second}))
		time.Sleep(8700 * time.Millisecond)
		synctest.Wait()
		if got := fmt.Sprint(d.start["0"]); got != "[0s 3.5s 7s]" {
			t.Errorf("the one that hangs: %s", got)
		}
		if got := fmt.Sprint(d.start["1"]); got != "[500ms 1.5s 2.5s 3.5s 4.5s 5.5s 6.5s 7.5s 8.5s]" {
			t.Errorf("the other: %s", got)
		}
		if s := p.Stats(); s.Skipped != 4 || s.InFlight != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What stops answering is known to be bad within Fall × Every and the time of a probe,
// whatever the jitter, and also where a probe that waits in vain takes all of the interval.
func TestProberBound(t *testing.T) {
	for _, timeout := range []time.Duration{10 * time.Millisecond, 500 * time.Millisecond, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			const n, fall, every, death = 200, 3, time.Second, 4321 * time.Millisecond
			begin := time.Now()
			probe := func(ctx context.Context, _ Target) Result {
				if time.Since(begin) < death {
					return Result{OK: true, At: time.Now()}
				}
				time.Sleep(timeout)
				return Result{At: time.Now()}
			}
			known := map[string]time.Duration{}
			bad := map[string]int{}
			report := func(u Update) {
				if u.Result.OK {
					return
				}
				if bad[u.ID]++; bad[u.ID] == fall {
					known[u.ID] = u.Result.At.Sub(begin) - death
				}
			}
			p := NewProber(report, Options{Probe: probe, Rand: rand.New(rand.NewPCG(1, 2))})
			p.Set(many(n, &model.Check{Every: every, Timeout: timeout, Fall: fall, Jitter: 0.5}))
			time.Sleep(20 * time.Second)
			p.Close()
			if len(known) != n {
				t.Errorf("timeout %v: %d of %d were found bad", timeout, len(known), n)
			}
			for id, took := range known {
				if took > fall*every+timeout {
					t.Errorf("timeout %v: target %s was found bad after %v", timeout, id, took)
				}
			}
		})
	}
}

func TestProberSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		p := d.prober()
		defer p.Close()
		check := model.Check{Every: time.Second, Timeout: time.Second, Status: []model.CodeRange{{Lo: 200, Hi: 204}}}
		set := many(4, &check)
		p.Set(set)
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		equal := check
		equal.Status = []model.CodeRange{{Lo: 200, Hi: 204}}
		other := check
		other.Every = 10 * time.Second
		next := []Target{set[0], set[1], set[2], set[0]} // 3 goes, 0 is there twice
		next[0].Check = &equal
		next[1].Check = &other
		next[2].Port++
		next[3].Port++
		p.Set(next)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for id, want := range map[string]string{
			"0": "[0s 1s 2s]",        // keeps its turns
			"1": "[250ms 900ms]",     // begins anew
			"2": "[500ms 1.4s 2.4s]", // begins anew, half an interval later
			"3": "[750ms]",           // is gone
		} {
			if got := fmt.Sprint(d.start[id]); got != want {
				t.Errorf("target %s: %s, want %s", id, got, want)
			}
		}
		p.Set(nil)
		before := p.Stats()
		time.Sleep(time.Minute)
		synctest.Wait()
		if after := p.Stats(); after != before || after.Targets != 0 {
			t.Errorf("without targets: %+v, then %+v", before, after)
		}
	})
}

// A target that is given up ends its probe and reports no more, nor does one that has
// changed, nor anything after Close.
func TestProberGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		for _, id := range []string{"0", "1", "2"} {
			d.block[id] = time.Hour
		}
		p := d.prober()
		check := &model.Check{Every: time.Second, Timeout: time.Second}
		set := many(3, check)
		p.Set(set)
		time.Sleep(time.Second)
		synctest.Wait()
		changed := set[1]
		changed.Port++
		p.Set([]Target{changed, set[2]})
		synctest.Wait()
		if s := p.Stats(); s.InFlight != 2 { // the one that stayed, and the new first one
			t.Errorf("%+v", s)
		}
		p.Close()
		p.Close()
		p.Set(set)
		if s := p.Stats(); len(d.updates) != 0 || s.InFlight != 0 || s.Targets != 0 {
			t.Errorf("%v, %+v", d.updates, s)
		}
	})
}

// After the process was stopped for a while nobody is asked twice in a row or all at once.
func TestProberAfterAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		p := d.prober()
		defer p.Close()
		const n, every = 100, time.Second
		p.Set(many(n, &model.Check{Every: every, Timeout: every}))
		time.Sleep(every)
		synctest.Wait()
		p.mu.Lock() // every turn lies 30 s back, as after a SIGSTOP
		for _, j := range p.turns {
			j.turn = j.turn.Add(-30 * time.Second)
		}
		before := p.stats.Started
		p.mu.Unlock()
		p.wake <- struct{}{}
		synctest.Wait()
		if burst := p.Stats().Started - before; burst > n/20 {
			t.Errorf("%d probes at once", burst)
		}
		time.Sleep(every)
		synctest.Wait()
		if got := p.Stats().Started - before; got < n || got > n*21/10 {
			t.Errorf("%d probes in the second after", got)
		}
	})
}

// Set, results and Close at once; for the race detector.
func TestProberConcurrent(t *testing.T) {
	check := &model.Check{Every: time.Millisecond, Timeout: time.Millisecond}
	var current sync.Map
	p := NewProber(func(u Update) { current.Store(u.ID, u.Result) },
		Options{Probe: func(context.Context, Target) Result { return Result{OK: true, At: time.Now()} }})
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for i := range 200 {
				p.Set(many((i*7+k)%50, check))
				p.Stats()
			}
		})
	}
	wg.Wait()
	p.Set(many(5, check))
	for deadline := time.Now().Add(long); ; {
		if _, ok := current.Load("4"); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no result")
		}
		time.Sleep(time.Millisecond)
	}
	p.Close()
	if s := p.Stats(); s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}
