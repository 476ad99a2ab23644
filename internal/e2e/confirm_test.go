package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// confirmSite is a site with two backends; only is the configuration in which one of them
// gets everything.
func confirmSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t, 1, 2)
	s.serve("tcp", s.Backends, 7)
	t.Cleanup(func() { s.killGuards() })
	return s
}

func only(h *lab.Host) string {
	return services(service("web", listenOn(1, "7/tcp"), backendList(on("", h)...)))
}

// served reports whether a host answers in both families.
func (s *site) served(h *lab.Host) bool {
	for _, f := range families {
		a, err := try(s.t, s.Clients[0], "tcp", s.port(), target(f, 1, 7))
		if err != nil || a.id != h.Name {
			return false
		}
	}
	return true
}

// refuses reports whether nobody answers, in both families.
func (s *site) refuses() bool {
	for _, f := range families {
		if _, err := try(s.t, s.Clients[0], "tcp", s.port(), target(f, 1, 7)); err == nil {
			return false
		}
	}
	return true
}

// guards returns the processes that would go back at this site.
func (s *site) guards() (pids []int) {
	s.t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(s.t, err)
	for _, path := range list {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "\x00guard\x00") || !strings.Contains(string(text), s.dir+"/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		check(s.t, err)
		pids = append(pids, pid)
	}
	return pids
}

// killGuards kills them all, and waits until they are gone.
func (s *site) killGuards() (killed int) {
	s.t.Helper()
	for _, pid := range s.guards() {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	await(s.t, "the guards are gone", func() bool { return len(s.guards()) == 0 })
	return killed
}

// applyConfirm applies a configuration until it is confirmed, and returns when it goes back.
func (s *site) applyConfirm(text string, within time.Duration) time.Time {
	s.t.Helper()
	s.write(text)
	var out struct {
		Applied bool
		Waiting *engine.Waiting
	}
	s.mustJSON(&out, "apply", "--confirm", within.String())
	if !out.Applied || out.Waiting == nil || out.Waiting.File != s.config || out.Waiting.By == nil || int(out.Waiting.By.UID) != os.Getuid() {
		s.t.Fatalf("weir apply --confirm says %+v, waiting %+v", out, out.Waiting)
	}
	return out.Waiting.Deadline
}

// until waits for a time.
func until(at time.Time) {
	for time.Now().Before(at) {
		time.Sleep(10 * time.Millisecond)
	}
}

// wantNothingWaits wants weir confirm to find nothing.
func (s *site) wantNothingWaits() {
	s.t.Helper()
	if r := s.weir("confirm"); r.code != 1 || !strings.Contains(r.stderr, "nothing to confirm") {
		s.t.Errorf("weir confirm: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
}

// wantRefused wants a command to be refused while a change waits.
func (s *site) wantRefused(args ...string) {
	s.t.Helper()
	if r := s.weir(args...); r.code != 1 || !strings.Contains(r.stderr, "waits for its confirmation") {
		s.t.Errorf("weir %v while a change waits: exit code %d, %s%s", args, r.code, r.stdout, r.stderr)
	}
}

// confirmed is what holds with and without a running weir.
func (s *site) confirmed(t *testing.T) {
	a, b := s.Backends[0], s.Backends[1]
	s.wantNothingWaits()
	s.applyConfirm(only(b), time.Minute)
	s.among(t, "waiting", 2, b)
	if len(s.guards()) == 0 {
		t.Error("nobody would go back if all else is killed")
	}
	if text := s.must("status"); !strings.Contains(text, "not confirmed yet: "+s.config) {
		t.Errorf("weir status:\n%s", text)
	}
	s.wantRefused("apply")
	s.write("services: nonsense\n")
	if r := s.weir("apply", "--confirm", "2s"); r.code != 2 || !strings.Contains(r.stderr, "weir.yaml:1:11") {
		t.Errorf("a wrong file: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.write(only(b))
	if out := s.must("confirm"); out != "confirmed: "+s.config+"\n" {
		t.Errorf("weir confirm says %q", out)
	}
	s.wantNothingWaits()
	await(t, "the guard is gone", func() bool { return len(s.guards()) == 0 })
	s.among(t, "confirmed", 2, b)

	// A wrong file leaves nothing that waits.
	s.write("services: nonsense\n")
	if r := s.weir("apply", "--confirm", "2s"); r.code != 2 {
		t.Errorf("a wrong file: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.wantNothingWaits()

	// Another takes its place; both go back to what was confirmed.
	first := s.applyConfirm(only(a), 2*time.Second)
	s.among(t, "waiting", 2, a)
	second := s.applyConfirm(services(), 4*time.Second)
	if !s.refuses() {
		t.Error("a service that is not in the file answers")
	}
	until(first.Add(500 * time.Millisecond))
	if time.Now().Before(second) && !s.refuses() {
		t.Error("it went back when the time of the one before was over")
	}
	s.goesBack(t, second, b)
	if text := s.must("status"); !strings.Contains(text, "was not confirmed: "+s.config) {
		t.Errorf("weir status:\n%s", text)
	}
	s.wantNothingWaits()
}

// goesBack waits until a host answers, which must be once the time is over and not before.
func (s *site) goesBack(t *testing.T, at time.Time, h *lab.Host) {
	t.Helper()
	await(t, "it goes back", func() bool { return s.served(h) })
	if early := time.Until(at); early > 0 {
		t.Errorf("it went back %s early", early)
	}
	s.among(t, "gone back", 2, h)
	await(t, "the guard is gone", func() bool { return len(s.guards()) == 0 })
}

// TestConfirmElsewhere: what waits in one namespace is neither confirmed nor taken back in
// another that was given the same file by mistake.
func TestConfirmElsewhere(t *testing.T) {
	t.Parallel()
	s, other := confirmSite(t), confirmSite(t)
	dir := other.dir
	other.dir = s.dir
	s.apply(only(s.Backends[0]))
	at := s.applyConfirm(only(s.Backends[1]), 3*time.Second)
	other.write(only(other.Backends[1]))
	for _, c := range [][]string{{"apply"}, {"apply", "--confirm", "1m"}, {"confirm"}} {
		if r := other.weir(c...); r.code != 1 || !strings.Contains(r.stderr, "another network namespace") {
			t.Errorf("weir %v elsewhere: exit code %d, %s%s", c, r.code, r.stdout, r.stderr)
		}
	}
	if !other.refuses() {
		t.Error("something was applied elsewhere")
	}
	s.goesBack(t, at, s.Backends[0])
	other.must("apply")
	other.among(t, "elsewhere", 2, other.Backends[1])
	s.among(t, "here", 2, s.Backends[0])
	other.dir = dir
}

func TestConfirmAlone(t *testing.T) {
	t.Parallel()
	s := confirmSite(t)
	// The first of all goes back to nothing.
	at := s.applyConfirm(only(s.Backends[0]), 2*time.Second)
	s.among(t, "the first", 2, s.Backends[0])
	await(t, "it goes back", s.refuses)
	if time.Now().Before(at) {
		t.Error("it went back early")
	}
	await(t, "the guard is gone", func() bool { return len(s.guards()) == 0 })
	if out := s.must("clear"); !strings.HasPrefix(out, "there was nothing") {
		t.Errorf("weir clear after it went back to nothing says %q", out)
	}
	s.apply(only(s.Backends[0]))
	s.confirmed(t)
	// What the kernel refuses, half-way too, is not left there, and nothing waits.
	s.write(services(service("web", listenOn(1, "7/tcp"), backendList(on("", s.Backends[0])...), "assign: nosuch0")))
	if r := s.weir("apply", "--confirm", "1m"); r.code != 1 || !strings.Contains(r.stderr, "nosuch0") {
		t.Errorf("with a device that is not there: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.wantNothingWaits()
	s.among(t, "refused", 2, s.Backends[1])
	// Over rules of which nobody knows where they come from it is not begun.
	check(t, os.RemoveAll(filepath.Join(s.dir, "state.config")))
	s.write(only(s.Backends[0]))
	gen := s.generation()
	if r := s.weir("apply", "--confirm", "1m"); r.code != 1 || !strings.Contains(r.stderr, "without --confirm") || s.generation() != gen {
		t.Errorf("with nothing to go back to: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.must("clear")
}

// TestConfirmAloneKilled kills the guard too, and lets the next weir go back.
func TestConfirmAloneKilled(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"apply", "confirm", "run", "refused apply"} {
		t.Run(next, func(t *testing.T) {
			t.Parallel()
			s := confirmSite(t)
			a, b := s.Backends[0], s.Backends[1]
			s.apply(only(a))
			at := s.applyConfirm(only(b), 3*time.Second)
			if s.killGuards() == 0 {
				t.Fatal("there was no guard")
			}
			s.among(t, "killed", 2, b)
			if next == "refused apply" {
				s.wantRefused("apply") // and somebody goes back again
				s.goesBack(t, at, a)
				return
			}
			until(at.Add(silence))
			s.among(t, "nobody is left to go back", 2, b)
			switch next {
			case "apply":
				s.write("services: nonsense\n") // so it is seen that it went back first
				if r := s.weir("apply"); r.code != 2 || !strings.Contains(r.stderr, "went back first") {
					t.Errorf("weir apply: exit code %d, %s%s", r.code, r.stdout, r.stderr)
				}
				s.among(t, "apply", 2, a)
			case "confirm":
				if r := s.weir("confirm"); r.code != 1 || !strings.Contains(r.stderr, "over") {
					t.Errorf("weir confirm: exit code %d, %s%s", r.code, r.stdout, r.stderr)
				}
				s.goesBack(t, at, a)
			case "run":
				s.start()
				s.among(t, "weir run", 2, a)
				if !strings.Contains(s.log.String(), "not confirmed in time") {
					t.Errorf("weir run does not say that it went back:\n%s", s.log)
				}
				s.stop()
			}
		})
	}
}

func TestConfirmRunning(t *testing.T) {
	t.Parallel()
	s := confirmSite(t)
	a, b := s.Backends[0], s.Backends[1]
	s.write(only(a))
	s.start()
	s.confirmed(t)
	// The file has the text that was not confirmed: neither SIGHUP nor a start takes it.
	before := s.refusals()
	check(t, s.run.Signal(syscall.SIGHUP))
	await(t, "SIGHUP is refused", func() bool { return s.refusals() == before+1 })
	s.among(t, "SIGHUP", 2, b)
	s.run.Kill()
	s.start()
	s.among(t, "started again", 2, b)
	if !strings.Contains(s.log.String(), "not confirmed in time") {
		t.Errorf("weir run does not say that it does not take the file:\n%s", s.log)
	}
	// Without --confirm it is a reload, as is said.
	if out := s.must("apply"); !strings.HasPrefix(out, "applied: ") || !s.refuses() {
		t.Errorf("weir apply: %q", out)
	}
	s.write(only(a))
	s.must("apply")
	s.among(t, "applied", 2, a)
	if out := s.must("apply"); out != "nothing to change\n" {
		t.Errorf("weir apply says %q", out)
	}
	s.applyConfirm(only(b), time.Minute)
	s.wantRefused("reload")
	s.must("confirm")
	kinds := map[string]bool{}
	for _, e := range s.events(0) {
		kinds[e.Kind] = true
		if (e.Kind == "apply" || e.Kind == "confirm") && (e.By == nil || int(e.By.UID) != os.Getuid()) {
			t.Errorf("nobody said %+v", e)
		}
	}
	if !kinds["apply"] || !kinds["confirm"] || !kinds["reload"] {
		t.Errorf("events of kinds %v", kinds)
	}
	other := filepath.Join(s.dir, "other.yaml")
	check(t, os.WriteFile(other, []byte(only(a)), 0o600))
	if r := s.weir("apply", "--config", other); r.code != 1 || !strings.Contains(r.stderr, s.config) {
		t.Errorf("weir apply of another file than that of the running weir: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.among(t, "at last", 2, b)
	s.stop()
}

// TestConfirmRunningKilled kills the weir that waits, with SIGKILL.
func TestConfirmRunningKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                string
		guard, again, after bool // the guard lives; weir is started again, after the time is over
	}{
		{"started again before", true, true, false},
		{"started again before, without the guard", false, true, false},
		{"started again after", true, true, true},
		{"started again after, without the guard", false, true, true},
		{"not started again", true, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := confirmSite(t)
			a, b := s.Backends[0], s.Backends[1]
			s.write(only(a))
			s.start()
			at := s.applyConfirm(only(b), 4*time.Second)
			s.among(t, "waiting", 2, b)
			s.run.Kill()
			if !c.guard && s.killGuards() == 0 {
				t.Fatal("there was no guard")
			}
			s.among(t, "killed", 2, b)
			if c.again && !c.after {
				s.start()
				if time.Now().Before(at.Add(-time.Second)) {
					s.among(t, "started before", 2, b)
				} else {
					t.Log("the machine is too busy to look before the time is over")
				}
			}
			if c.after && !c.guard {
				until(at.Add(silence))
				s.among(t, "nobody is left to go back", 2, b)
				s.start()
				s.among(t, "started after", 2, a)
			}
			s.goesBack(t, at, a)
			if c.after && c.guard && c.again {
				s.start()
				s.among(t, "started after", 2, a)
			}
			if c.again {
				if !strings.Contains(s.log.String(), "not confirmed in time") {
					t.Errorf("weir run does not say what it does:\n%s", s.log)
				}
				s.stop()
			}
		})
	}
}

// TestGuardKnowsWords: a guard that goes back in place of a killed weir gives nothing to a
// backend that was drained.
func TestGuardKnowsWords(t *testing.T) {
	t.Parallel()
	s := confirmSite(t)
	a, b := s.Backends[0], s.Backends[1]
	s.write(services(service("web", listenOn(1, "7/tcp"), backendList(on("", a, b)...))))
	s.start()
	s.each("drain", "web", a)
	at := s.applyConfirm(services(), 3*time.Second)
	s.run.Kill()
	if !s.refuses() {
		t.Error("a service that is not in the file answers")
	}
	s.goesBack(t, at, b)
	s.among(t, "gone back", 6, b)
}

// TestConfirmHangUp ends the session of the one who applies, with all that belongs to it.
func TestConfirmHangUp(t *testing.T) {
	t.Parallel()
	s := confirmSite(t)
	a, b := s.Backends[0], s.Backends[1]
	s.apply(only(a))
	s.write(only(b))
	// A shell as sshd starts one, which is hung up as soon as the rules are there.
	script := fmt.Sprintf("%s --config %s --state %s apply --confirm 3s; kill -HUP 0; sleep 60", binary, s.config, filepath.Join(s.dir, "state.json"))
	p, err := s.Gateway.Start(s.Gateway.Command("sh", "-c", script))
	check(t, err)
	await(t, "the session is gone", func() bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	eachFamily(t, func(t *testing.T, f model.Family) {
		if got := s.ask(t, s.Clients[0], "tcp", target(f, 1, 7)); got.id != b.Name && got.id != a.Name {
			t.Errorf("answered by %s", got.id)
		}
	})
	if len(s.guards()) == 0 && !s.served(a) {
		t.Error("nobody goes back")
	}
	await(t, "it goes back", func() bool { return s.served(a) })
	s.wantNothingWaits()
}
