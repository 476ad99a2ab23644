package proof

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReloadUnderLoad loads a hundred other files while traffic flows. Servers that a
// file leaves out stay up, so that what they have open can go on.
func TestReloadUnderLoad(tt *testing.T) {
	const reloads, lasts = 100, 30 * time.Second
	t := newTown(tt)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	t.write(t.even())
	t.start()
	l := t.startLoad()
	changed := 0
	var slowest time.Duration
	for range reloads {
		t.write(t.random(r))
		before, start := t.generation(), time.Now()
		t.reload()
		slowest = max(slowest, time.Since(start))
		if t.generation() != before {
			changed++
		}
		l.more(int(l.rate * lasts.Seconds() / reloads))
	}
	res := l.stop()
	tt.Logf("seed %d: %d reloads, %d of them changed the kernel's rules, slowest %s", seed, reloads, changed, slowest)
	l.flawless(res)
	if n := strings.Count(t.log.String(), `msg="configuration taken"`); n != reloads || strings.Contains(t.log.String(), "level=ERROR") {
		tt.Errorf("%d of %d files were loaded:\n%s", n, reloads, t.log)
	}
	if changed < reloads*9/10 { // now and then two files in a row mean the same
		tt.Errorf("%d of %d reloads changed something", changed, reloads)
	}
	if t.differs() {
		tt.Error("the kernel does not hold what the last file says")
	}
	clients, kernel := res.Opened+res.Failed+res.Long.Opened+res.Long.Failed, t.counted()
	tt.Logf("clients opened %d connections, the kernel counted %d", clients, kernel)
	// A pair of listener and backend that comes new while the kernel's table grows can find no
	// place, and that packet is not counted (net/netfilter/nft_set_hash.c, nft_rhash_update).
	if missed := clients - kernel; missed < 0 || missed > clients/5000 {
		tt.Errorf("clients opened %d connections, but the kernel counted %d", clients, kernel)
	}
}

// killUnderLoad kills weir and starts it again while traffic flows.
func killUnderLoad(tt *testing.T) (saw string) {
	t := newTown(tt)
	t.write(t.even())
	t.start()
	l := t.startLoad()
	l.more(int(l.rate))
	gen := t.generation()

	check(tt, t.weir.Signal(unix.SIGKILL))
	<-t.weir.Done()
	begun := l.sofar()
	l.more(int(2 * l.rate))
	dead := l.sofar()
	tt.Logf("while weir was dead: %d answered, %d failed", dead.Opened-begun.Opened, dead.Failed-begun.Failed)

	out, err := t.Gateway.Run(t.binary, "plan", "--config", t.config)
	if err != nil || out != "nothing to change\n" {
		tt.Errorf("weir plan after the kill: %v, %s", err, out)
	}
	t.log = &safeBuffer{}
	t.start()
	l.more(int(l.rate))
	res := l.stop()
	l.flawless(res)
	if now := t.generation(); now != gen {
		tt.Errorf("the restart committed something: generation %d became %d\n%s", gen, now, t.log)
	}
	tt.Logf("after the restart: %s", regexp.MustCompile(`msg=applied .*`).FindString(t.log.String()))
	clients, kernel := res.Opened+res.Failed+res.Long.Opened+res.Long.Failed, t.counted()
	if clients != kernel {
		tt.Errorf("clients opened %d connections, but the kernel counted %d: counters did not survive", clients, kernel)
	}
	return fmt.Sprintf("%s; %d were opened while no weir ran", ofAll(res), dead.Opened-begun.Opened)
}

// Bounds of the repair after somebody else's flush.
const (
	repairAim   = 2 * time.Second // what weir promises
	repairBound = 5 * time.Second // what no machine is slow enough for
)

// flushUnderLoad lets another tool flush all rules while traffic flows. New
// connections must fail then; those that are open are in the kernel's table of
// connections, not in the rules, and go on when translation is back. But an answer that
// is on its way while there are no rules reaches the client with the server's own
// address, and the client resets what it does not know: the server has lost the
// connection, and the client finds out at its next question, or by its timeout. So a
// few of the long ones may break.
func flushUnderLoad(tt *testing.T) (saw string) {
	tool(tt, "nft")
	t := newTown(tt)
	t.write(t.even())
	t.start()
	l := t.startLoad()
	l.more(int(l.rate))
	before, gen := l.sofar(), t.generation()
	if before.Failed+before.Long.Failed+before.Long.Broken > 0 {
		tt.Fatalf("before the flush: %s", before)
	}

	start := time.Now()
	must(t.Gateway.Run("nft", "flush", "ruleset"))(tt)
	until(tt, patience, "flush", func() bool { return t.generation() != gen })
	until(tt, repairBound, "repair", func() bool { return !t.differs() })
	took := time.Since(start)
	word := "within"
	if took > repairAim {
		word = "NOT within"
	}
	tt.Logf("put back after %s, %s the aim of %s", took.Round(time.Millisecond), word, repairAim)

	// What was begun without rules has its time to fail; then traffic must be as before.
	l.more(int(6 * l.rate))
	settled := l.sofar()
	l.more(int(l.rate))
	res := l.stop()
	tt.Logf("clients saw: %s", res)
	tt.Logf("during the flush: %d failed; of %d long connections %d broke", settled.Failed, res.Long.Opened, res.Long.Broken)
	if res.Long.Broken > res.Long.Opened/10 {
		tt.Errorf("%d of %d long connections broke: %v", res.Long.Broken, res.Long.Opened, res.Errors)
	}
	if res.Failed > settled.Failed {
		tt.Errorf("%d connections failed long after the repair", res.Failed-settled.Failed)
	}
	if !strings.Contains(t.log.String(), "put back") {
		tt.Errorf("weir does not tell of the repair:\n%s", t.log)
	}
	return fmt.Sprintf("%s; rules were back after %d ms", ofAll(res), took.Milliseconds())
}
