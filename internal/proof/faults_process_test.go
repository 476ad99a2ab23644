package proof

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/config"
	"weir/internal/state"
)

// stopUnderLoad stops weir for WEIR_PROOF_STOP, in which a backend dies.
func stopUnderLoad(tt *testing.T) (saw string) {
	lasts := duration(tt, "WEIR_PROOF_STOP", 3*time.Second)
	t := newTown(tt)
	c := quick()
	t.write(newConfig(t.checked(c)))
	t.start()
	t.checkedOnce()
	l := t.startLoadOf(longEach, time.Second)
	l.more(int(l.rate / 2))
	a := t.arrivals(0)
	check(tt, t.weir.Signal(unix.SIGSTOP))
	stopped := time.Now()
	l.more(int(l.rate / 4))
	check(tt, t.servers[0].Close())
	for time.Since(stopped) < lasts {
		l.more(int(l.rate / 4))
	}
	asleep := l.sofar()
	check(tt, t.weir.Signal(unix.SIGCONT))
	woke := time.Now()
	t.awaitIs(state.Down, 0)
	took := a.Last().Sub(woke)
	// Where this machine keeps a process waiting, the promise alone would be too strict.
	promised := time.Duration(c.Fall+1)*c.Every + commitTime
	if took > promised+2*time.Second {
		tt.Errorf("the dead backend got connections for %s after weir went on; promised are %s", took, promised)
	}
	l.more(int(1.2 * l.rate))
	settled := l.sofar()
	l.more(int(l.rate / 2))
	res := l.stop()
	if res.Failed > settled.Failed || asleep.Failed == 0 {
		tt.Errorf("failed: %d when weir went on, %d after the backend was out, %d at last", asleep.Failed, settled.Failed, res.Failed)
	}
	for i := 1; i < len(t.Backends); i++ {
		if n := t.transitions(i); n > 0 {
			tt.Errorf("backend %d, which was well, changed its state %d times", i+1, n)
		}
	}
	// The long connections to the server that died went with it: about a quarter.
	if res.Long.Broken > len(t.Clients)*longEach/2 {
		tt.Errorf("long connections: %s", res)
	}
	return fmt.Sprintf("%s, all of the dead backend; stopped for %s, it had its last connection %d ms after weir went on",
		ofAll(res), lasts, took.Milliseconds())
}

// fullDisk keeps weir's state on a disk that is full, and then is not.
func fullDisk(tt *testing.T) (saw string) {
	t := newTown(tt)
	dir := filepath.Join(shortDir(tt), "disk")
	check(tt, os.Mkdir(dir, 0o700))
	check(tt, unix.Mount("disk", dir, "tmpfs", 0, "size=64k"))
	tt.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	t.state = filepath.Join(dir, "state.json")
	t.write(newConfig(t.checked(quick())))
	t.start()
	t.checkedOnce()
	l := t.startLoad()
	t.drain(1)
	good := must(os.ReadFile(t.state))(tt)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		tt.Fatalf("the disk is not full: %v", err)
	}
	t.enable(1)
	t.drain(2)
	l.more(int(l.rate / 2))
	t.drain(3)
	until(tt, patience, "more tries", func() bool { l.more(int(l.rate / 2)); return strings.Count(t.log.String(), "could not be saved") > 0 })
	l.more(int(1.5 * l.rate)) // and a try more
	if n := strings.Count(t.log.String(), "could not be saved"); n != 1 {
		tt.Errorf("it is said %d times that nothing could be saved", n)
	}
	if now := must(os.ReadFile(t.state))(tt); !bytes.Equal(now, good) {
		tt.Errorf("the state file changed on a full disk:\n%s\nwas\n%s", now, good)
	}
	if !t.is(2, state.Draining) || !t.is(3, state.Draining) || !t.is(1, state.Up) {
		tt.Errorf("what was said does not hold: %+v", t.status(2))
	}
	check(tt, os.Remove(ballast))
	until(tt, patience, "save", func() bool { return strings.Contains(t.log.String(), "is saved again") })
	t.weir.Kill()
	t.start()
	if !t.is(2, state.Draining) || !t.is(3, state.Draining) || !t.is(1, state.Up) {
		tt.Errorf("what was said on a full disk is forgotten: %+v", t.status(2))
	}
	if left, err := filepath.Glob(t.state + ".*"); err != nil || len(left) > 0 {
		tt.Errorf("left on the disk: %v, %v", left, err)
	}
	res := l.stop()
	l.flawless(res)
	return ofAll(res)
}

// fileCuts is about how many cuts of a file weir is told to load; config alone looks at all.
const fileCuts = 40

// halfFile has weir load what is left of a file that was cut.
func halfFile(tt *testing.T) (saw string) {
	t := newTown(tt)
	other := t.service(1, []int{1, 2, 3, 4})
	other.Name, other.Listen[0].Ports.Lo, other.Listen[0].Ports.Hi = "other", 81, 89
	other.Listen[1].Ports, other.Check = other.Listen[0].Ports, quick()
	t.write(newConfig(t.checked(quick()), other))
	t.start()
	t.checkedOnce()
	text := must(os.ReadFile(t.config))(tt)
	l := t.startLoad()
	gen, where := t.generation(), regexp.MustCompile(`weir\.yaml:\d+:\d+: `)
	complete, refused := 0, 0
	for cut := range text {
		check(tt, os.WriteFile(t.config, text[:cut], 0o600))
		_, err := config.Load(t.config)
		if err == nil {
			complete++
			continue
		}
		if !where.MatchString(err.Error()) {
			tt.Errorf("cut at %d: %v", cut, err)
		}
		if cut%(len(text)/fileCuts) != 0 {
			continue
		}
		refused++
		logged := len(t.log.String())
		t.reload()
		until(tt, patience, fmt.Sprintf("word of the cut at %d", cut), func() bool {
			said := t.log.String()[logged:]
			return strings.Contains(said, "configuration not taken") && where.MatchString(said)
		})
		if refused%10 == 0 {
			t.refuses(where)
		}
	}
	check(tt, os.WriteFile(t.config, text, 0o600))
	l.more(int(l.rate / 4))
	if now := t.generation(); now != gen || t.differs() {
		tt.Errorf("the rules moved from generation %d to %d", gen, now)
	}
	if refused < fileCuts/2 || complete > len(text)/4 {
		tt.Errorf("of %d cuts weir was told of %d, and %d are complete", len(text), refused, complete)
	}
	res := l.stop()
	l.flawless(res)
	tt.Logf("%d of %d cuts leave a complete configuration", complete, len(text))
	return fmt.Sprintf("%s, in %d refused loads", ofAll(res), refused)
}

// refuses runs `weir check` on the file, which is wrong.
func (t *town) refuses(where *regexp.Regexp) {
	t.tb.Helper()
	out, err := t.Gateway.Run(t.binary, "check", "--config", t.config)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !where.MatchString(out) {
		t.tb.Errorf("weir check: %v, %s", err, out)
	}
}
