package proof

import (
	"slices"
	"testing"
	"time"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/plan"
	"weir/internal/state"
)

// commitTime is what weir may take to act on what the last check found.
const commitTime = 50 * time.Millisecond

// On a machine with other work a process waits for its turn: as many backends may die until
// one is out within the promised time, and if none is, no later than busy beyond it. (That
// checks come when they must is for TestProberBound of package health, without a machine.)
const (
	tries = 3
	busy  = time.Second
)

// TestDeadBackend lets a backend die under load, in two ways, and looks when the last new
// connection gets there: at most fall × every later where connections are refused, and one
// timeout later where nobody answers. All that fails was on its way there; where nobody
// answered, the clients' next try gets another backend, and only what was open fails.
func TestDeadBackend(tt *testing.T) {
	c := quick()
	for _, way := range []struct {
		name  string
		bound time.Duration
		again bool // clients try again
		die   func(t *town, i int)
	}{
		{"killed", time.Duration(c.Fall)*c.Every + commitTime, false, func(t *town, i int) { check(t.tb, t.servers[i].Close()) }},
		{"silent", time.Duration(c.Fall)*c.Every + c.Timeout + commitTime, true, (*town).silence},
	} {
		tt.Run(way.name, func(tt *testing.T) {
			tool(tt, "nft")
			t := newTown(tt)
			t.write(newConfig(t.checked(c)))
			t.start()
			t.checkedOnce()
			l := t.startLoadOf(0, clientsWait)
			l.more(int(l.rate / 2))
			best := time.Hour
			for i := 0; i < tries && best > way.bound; i++ {
				best = min(best, t.watchDeath(l, i, way.again, way.die))
				tt.Logf("the last new connection came at best %s after the death, promised are %s", best.Round(time.Millisecond), way.bound)
			}
			if best > way.bound+busy {
				tt.Errorf("no backend of %d was out within %s and %s", tries, way.bound, busy)
			}
			l.reached(l.stop())
		})
	}
}

// clientsWait is how long clients wait for an answer: their first packet is sent again after
// a second.
const clientsWait = 2500 * time.Millisecond

// watchDeath lets a backend die and returns how long it got new connections.
func (t *town) watchDeath(l *load, i int, again bool, die func(*town, int)) time.Duration {
	t.tb.Helper()
	a := t.arrivals(i)
	until(t.tb, patience, "new connections", func() bool { return !a.Last().IsZero() })
	before, start := l.sofar().Failed, time.Now()
	die(t, i)
	t.awaitIs(state.Down, i)
	wait := time.Duration(0)
	if again {
		wait = clientsWait
	}
	l.finish(wait)
	settled := l.sofar().Failed
	l.more(int(l.rate / 2))
	lost, went := settled-before, a.Since(start)
	t.tb.Logf("%d connections failed, %d went to the dead backend", lost, went)
	// Beside those there are the ones that were open when it died: its share of all that may be.
	most := went + len(l.runs)*256/len(t.Backends)
	if again {
		most = 16 + went/2 // none where the machine has nothing else to do
	}
	if lost > most || went == 0 {
		t.tb.Errorf("%d connections failed, of %d that went to the dead backend", lost, went)
	}
	if now := l.sofar().Failed; now > settled {
		t.tb.Errorf("%d connections failed when it was long out", now-settled)
	}
	return a.Last().Sub(start)
}

// TestHundredDrains drains a backend and takes it back a hundred times under load, while
// 200 long connections to it go on. Nothing may fail; and when at last the long ones end
// by themselves, the drain is done.
func TestHundredDrains(tt *testing.T) {
	const drains, long = 100, 200
	t := newTown(tt)
	t.write(newConfig(t.checked(quick())))
	t.start()
	t.checkedOnce()
	for i := 1; i < len(t.Backends); i++ {
		t.drain(i)
	}
	open := must(lab.StartLoad(tt.Context(), lab.LoadSpec{Host: t.Clients[0], Network: "tcp",
		Targets: []string{vip4 + ":80", "[" + vip6 + "]:80"}, NoShort: true, Long: long, LongEvery: 200 * time.Millisecond}))(tt)
	for i := 1; i < len(t.Backends); i++ {
		t.enable(i)
	}
	l := t.startLoadOf(0, 0)
	// The kernel counts, for an answer may be long on its way to a busy client.
	counters := plan.Build(must(config.Load(t.config))(tt), nil)
	opened := func() (n uint64) {
		for _, b := range must(engine.ReadStatus(tt.Context(), t.kernel, counters))(tt).Services[0].Backends {
			if slices.Contains(t.ids(0), b.Address) {
				n += b.NewConnections
			}
		}
		return n
	}
	slowest := time.Duration(0)
	for n := range drains {
		begun := time.Now()
		t.drain(0)
		slowest = max(slowest, time.Since(begun))
		was := opened()
		l.more(int(l.rate / 25))
		if more := opened() - was; more > 0 {
			tt.Errorf("drain %d: %d new connections went there all the same", n+1, more)
		}
		t.enable(0)
		until(tt, patience, "new connections after a drain", func() bool { return opened() > was })
	}
	l.flawless(l.stop())
	t.drain(0)
	until(tt, patience, "count of what is left", func() bool {
		list, left := t.status(0), 0
		for _, b := range list {
			if b.State == string(state.Draining) && b.Active != nil {
				left += *b.Active
			}
		}
		return left >= long
	})
	answers := open.Snapshot().Long.Answers
	until(tt, patience, "answer on each of them", func() bool { return open.Snapshot().Long.Answers >= answers+long })
	res := open.Stop()
	tt.Logf("%d drains, the slowest took %s in two families; %s", drains, slowest.Round(time.Millisecond), res)
	if res.Long.Opened != long || res.Long.Failed > 0 || res.Long.Broken > 0 {
		tt.Errorf("long connections: %s", res)
	}
	t.awaitIs(state.Drained, 0)
}

// TestAllDownAllUp kills every server and starts them again under load: clients are refused
// meanwhile, at once, and nothing fails afterwards.
func TestAllDownAllUp(tt *testing.T) {
	t := newTown(tt)
	t.write(newConfig(t.checked(quick())))
	t.start()
	t.checkedOnce()
	l := t.startLoadOf(0, 0)
	l.more(int(l.rate / 4))
	if res := l.sofar(); res.Failed > 0 {
		tt.Fatalf("before: %s", res)
	}
	all := []int{0, 1, 2, 3}
	for _, i := range all {
		check(tt, t.servers[i].Close())
	}
	t.awaitIs(state.Down, all...)
	served := func() (n int) {
		for _, s := range t.servers {
			n += int(s.Requests())
		}
		return n
	}
	before, was := l.sofar(), served()
	l.more(int(l.rate / 4))
	refused := l.sofar()
	if refused.Failed == before.Failed || refused.Errors["read: timeout"]+refused.Errors["dial: timeout"] > 0 {
		tt.Errorf("while all are down: %s", refused)
	}
	if now := served(); now != was {
		tt.Errorf("while all were down %d were answered", now-was)
	}
	for _, i := range all {
		t.serve(i)
	}
	t.awaitIs(state.Up, all...)
	l.finish(0)
	up := l.sofar()
	l.more(int(l.rate / 2))
	res := l.stop()
	if res.Failed > up.Failed {
		tt.Errorf("%d failed when all were up again: %s", res.Failed-up.Failed, res)
	}
	tt.Logf("%s", res)
	for _, i := range all {
		if n := t.transitions(i); n != 4 { // of two families
			tt.Errorf("backend %d changed %d times, want 4", i+1, n)
		}
	}
}

// TestFlapping has one server come and go five times a second under load, for
// WEIR_PROOF_FLAP. It is held down soon; from then on nothing fails and nothing changes, and
// weir takes no more memory and processor than before.
func TestFlapping(tt *testing.T) {
	lasts := duration(tt, "WEIR_PROOF_FLAP", 8*time.Second)
	t := newTown(tt)
	c := quick()
	c.Every, c.Timeout, c.Rise, c.Fall = 100*time.Millisecond, 100*time.Millisecond, 1, 1
	t.write(newConfig(t.checked(c)))
	t.start()
	t.checkedOnce()
	l := t.startLoadOf(0, 0)
	l.more(int(l.rate / 2))
	a, start := t.arrivals(0), time.Now()
	stop, flapped := make(chan struct{}), make(chan int)
	go func() { flapped <- t.flap(0, stop) }()
	until(tt, patience, "hold", func() bool { return t.held(0) })
	l.finish(0)
	held, changes, used := l.sofar(), t.transitions(0), t.usage()
	if went := a.Since(start); held.Failed > went {
		tt.Errorf("%d failed, only %d went to the one that flaps", held.Failed, went)
	}
	mid := used
	for time.Since(start) < lasts {
		l.more(int(l.rate / 2))
		if mid == used && time.Since(start) > lasts/2 {
			mid = t.usage()
		}
	}
	end := t.usage()
	close(stop)
	cycles := <-flapped
	res := l.stop()
	tt.Logf("%d cycles in %s: %d changes of state in two families, %d failed before it was held and %d after; RSS %d, %d, %d KiB; processor %.1f %%, then %.1f %%",
		cycles, time.Since(start).Round(time.Second), t.transitions(0), held.Failed, res.Failed-held.Failed,
		used.rss, mid.rss, end.rss, 100*mid.share(used), 100*end.share(mid))
	l.reached(res)
	if now := t.transitions(0); now != changes || changes > 2*(2*3+1) {
		tt.Errorf("%d changes of state, and %d when it was held", now, changes)
	}
	if res.Failed > held.Failed {
		tt.Errorf("%d connections failed while it was held: %v", res.Failed-held.Failed, res.Errors)
	}
	if end.rss > used.rss+16<<10 || end.share(mid) > 0.75 {
		tt.Errorf("weir grew from %d to %d KiB, and took %.2f of a processor", used.rss, end.rss, end.share(mid))
	}
	if rate := float64(cycles) / lasts.Seconds(); rate < 0.5 {
		tt.Errorf("only %.1f cycles a second", rate)
	}
}

// flap lets a server come and go until stop is closed, and returns how often it went.
func (t *town) flap(i int, stop <-chan struct{}) (cycles int) {
	half := time.NewTicker(100 * time.Millisecond)
	defer half.Stop()
	for {
		_ = t.servers[i].Close()
		cycles++
		<-half.C
		b := t.Backends[i]
		s, err := lab.EchoTCP(b, b.Name, t.ids(i)...)
		if err != nil {
			t.tb.Error(err)
			return cycles
		}
		t.servers[i] = s
		select {
		case <-stop:
			return cycles
		case <-half.C:
		}
	}
}

// held reports whether a backend is kept down because it flaps.
func (t *town) held(i int) bool {
	n := 0
	for _, b := range t.status(i) {
		if b.State == string(state.Down) && len(b.Reason) > 5 && b.Reason[:5] == "flaps" {
			n++
		}
	}
	return n == 2 // families
}
