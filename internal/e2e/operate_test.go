package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// backendStatus returns what `weir status` says of one backend.
func (s *site) backendStatus(service, address string) engine.BackendStatus {
	s.t.Helper()
	for _, b := range s.status(service).Backends {
		if b.Address == address {
			return b
		}
	}
	s.t.Fatalf("%s has no backend %s in its status", service, address)
	return engine.BackendStatus{}
}

// awaitStates waits until a host is in a state in both families.
func (s *site) awaitStates(service string, h *lab.Host, state string) {
	s.t.Helper()
	await(s.t, h.Name+" is "+state, func() bool {
		n := 0
		for _, b := range s.status(service).Backends {
			if b.State == state && (b.Address == h.V4.String() || b.Address == h.V6.String()) {
				n++
			}
		}
		return n == len(families)
	})
}

// events returns what happened after a number.
func (s *site) events(since uint64) []engine.Event {
	s.t.Helper()
	var out []engine.Event
	for line := range strings.Lines(s.must("events", "--since", fmt.Sprint(since), "-o", "json")) {
		var e engine.Event
		check(s.t, json.Unmarshal([]byte(line), &e))
		out = append(out, e)
	}
	return out
}

// wantEvents wants an event of each kind and words for a host in both families.
func (s *site) wantEvents(h *lab.Host, kind, words string) {
	s.t.Helper()
	list := s.events(0)
	for _, f := range families {
		if !slices.ContainsFunc(list, func(e engine.Event) bool {
			return e.Kind == kind && e.Backend == addrOf(h, f).String() && strings.Contains(e.From+" "+e.To+" "+e.Message, words)
		}) {
			s.t.Errorf("no event %s %q of %s in %+v", kind, words, addrOf(h, f), list)
		}
	}
}

// each says something of a host in both families.
func (s *site) each(word, service string, h *lab.Host, more ...string) {
	s.t.Helper()
	for _, f := range families {
		s.must(append([]string{word, service, addrOf(h, f).String()}, more...)...)
	}
}

// among asks n times in each family; only these hosts may answer, and all must.
func (s *site) among(t *testing.T, when string, n int, hosts ...*lab.Host) {
	t.Helper()
	eachFamily(t, func(t *testing.T, f model.Family) {
		got := tally(s.askMany(t, s.Clients[0], "tcp", target(f, 1, 7), n))
		for _, h := range hosts {
			if got[h.Name] == 0 {
				t.Errorf("%s: %s answers none of %d: %v", when, h.Name, n, got)
			}
			delete(got, h.Name)
		}
		if len(got) > 0 {
			t.Errorf("%s: others answer too: %v", when, got)
		}
	})
}

// target is a port of vip n.
func target(f model.Family, n int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(vip(f, n), port)
}

// checkedService is service web on both families with a quick check.
func (s *site) checkedService() string {
	return services(service("web", listenOn(1, "7/tcp", "7/udp"), backendList(on("", s.Backends...)...),
		"check: {tcp: true, port: 7, every: 100ms, timeout: 90ms, rise: 2, fall: 3}", "on_down: reset"))
}

// checkedSite is a site on which weir runs with that service, and the TCP servers of its
// backends.
func checkedSite(t *testing.T, backends int) (*site, []*lab.Server) {
	t.Helper()
	s := newSite(t, 1, backends)
	s.serve("udp", s.Backends, 7)
	servers := s.serve("tcp", s.Backends, 7)
	s.write(s.checkedService())
	s.start()
	return s, servers
}

// targets are the addresses of service web.
func targets() []string {
	var out []string
	for _, f := range families {
		out = append(out, target(f, 1, 7).String())
	}
	return out
}

// TestCheckTakesOut closes a backend's server and starts it again, under load: only what
// was on its way there when it died may fail, and nothing once weir has noticed.
func TestCheckTakesOut(t *testing.T) {
	t.Parallel()
	s, servers := checkedSite(t, 3)
	sick := s.Backends[1]
	for _, h := range s.Backends {
		s.awaitStates("web", h, "up")
	}
	await(t, "all are checked", func() bool {
		return !slices.ContainsFunc(s.status("web").Backends, func(b engine.BackendStatus) bool { return b.Check == nil })
	})
	s.among(t, "at first", 9, s.Backends...)
	check(t, servers[1].Close())
	s.awaitStates("web", sick, "down")
	load, err := lab.StartLoad(t.Context(), lab.LoadSpec{Host: s.Clients[0], Network: "tcp", Targets: targets(), Rate: 200, Reset: true, Count: 400})
	check(t, err)
	res := load.Wait()
	if res.Failed > 0 || res.ByBackend[sick.Name] > 0 {
		t.Errorf("with one down: %s", res)
	}
	b := s.backendStatus("web", sick.V4.String())
	if b.Check == nil || b.Check.OK || b.Reason == "" || time.Since(b.Since) > time.Minute || b.Share != 0 {
		t.Errorf("a backend that is down: %+v, check %+v", b, b.Check)
	}
	if text := s.must("status", "web"); !strings.Contains(text, " down ") || !strings.Contains(text, "check failed") {
		t.Errorf("weir status:\n%s", text)
	} else {
		t.Logf("\n%s", text)
	}
	// It comes back in the middle of the load.
	load, err = lab.StartLoad(t.Context(), lab.LoadSpec{Host: s.Clients[0], Network: "tcp", Targets: targets(), Rate: 200, Reset: true, Duration: time.Minute})
	check(t, err)
	s.serve("tcp", s.Backends[1:2], 7)
	s.awaitStates("web", sick, "up")
	s.among(t, "at last", 9, s.Backends...)
	load.Stop()
	if res = load.Wait(); res.Failed > 0 || res.ByBackend[sick.Name] == 0 {
		t.Errorf("while it comes back: %s", res)
	}
	s.wantEvents(sick, "state", "up down")
	s.wantEvents(sick, "state", "down up")
	s.stop()
}

// TestDrain drains a backend under load and while it has long connections: they finish,
// weir sees them end, and neither its death nor a reload changes what the operator said.
func TestDrain(t *testing.T) {
	t.Parallel()
	s, _ := checkedSite(t, 2)
	leaves, stays := s.Backends[0], s.Backends[1]
	var open []*talk
	for _, f := range families {
		for found := false; !found; {
			k := s.talk(t, s.Clients[0], target(f, 1, 7))
			found = k.ask(t) == leaves.Name
			open = append(open, k)
		}
	}
	var ids []string
	for _, k := range open {
		ids = append(ids, k.ask(t))
	}
	still := func(when string) {
		t.Helper()
		for i, k := range open {
			if got := k.ask(t); got != ids[i] {
				t.Errorf("%s: a connection of %s is answered by %s", when, ids[i], got)
			}
		}
	}
	load, err := lab.StartLoad(t.Context(), lab.LoadSpec{Host: s.Clients[0], Network: "tcp", Targets: targets(), Rate: 200, Reset: true, Duration: time.Minute})
	check(t, err)
	await(t, "the load reaches it", func() bool { return load.Snapshot().ByBackend[leaves.Name] > 20 })
	s.each("drain", "web", leaves, "--deadline", "1h")
	s.among(t, "draining", 6, stays)
	drained := load.Snapshot().ByBackend
	await(t, "the load goes on", func() bool { return load.Snapshot().ByBackend[stays.Name] > drained[stays.Name]+100 })
	still("draining")
	load.Stop()
	// One that had its backend chosen before may have been answered after the look.
	if res := load.Wait(); res.Failed > 0 || res.ByBackend[leaves.Name] > drained[leaves.Name]+2 {
		t.Errorf("around the drain: %s; before its end %v", res, drained)
	}
	await(t, "the connections are counted", func() bool {
		b := s.backendStatus("web", leaves.V4.String())
		return b.State == "draining" && b.Active != nil && *b.Active >= 1 && strings.Contains(b.Reason, "connection")
	})

	s.run.Kill()
	still("without a weir")
	s.start()
	if b := s.backendStatus("web", leaves.V4.String()); b.State != "draining" {
		t.Errorf("after a restart it is %s (%s)", b.State, b.Reason)
	}
	s.among(t, "after a restart", 6, stays)
	if out := s.must("reload"); !strings.HasPrefix(out, "taken: 1 service, 4 backends") {
		t.Errorf("weir reload says %q", out)
	}
	s.among(t, "after a reload", 6, stays)
	still("after a reload")

	for _, k := range open {
		check(t, k.Close())
	}
	s.awaitStates("web", leaves, "drained")
	s.wantEvents(leaves, "state", "draining drained")

	s.each("enable", "web", leaves)
	s.among(t, "enabled", 6, leaves, stays)
	s.wantEvents(leaves, "operator", "enable")
	s.wantEvents(leaves, "state", "drained up")
	s.stop()
}

// TestOperator disables, enables and weighs backends, and says things that are wrong.
func TestOperator(t *testing.T) {
	t.Parallel()
	s, _ := checkedSite(t, 2)
	a, b := s.Backends[0], s.Backends[1]
	s.each("disable", "web", a)
	s.among(t, "disabled", 4, b)
	if st := s.backendStatus("web", a.V6.String()); st.State != "disabled" || st.Check != nil || st.Share != 0 {
		t.Errorf("disabled: %+v", st)
	}
	s.each("enable", "web", a)
	s.among(t, "enabled", 4, a, b)
	s.each("weight", "web", a, "3")
	s.each("weight", "web", b, "1")
	for range 2 {
		eachFamily(t, func(t *testing.T, f model.Family) {
			got := tally(s.askMany(t, s.Clients[0], "tcp", target(f, 1, 7), 8))
			if got[a.Name] != 6 || got[b.Name] != 2 {
				t.Errorf("weights 3 and 1: %v", got)
			}
		})
		if st := s.backendStatus("web", a.V4.String()); st.Weight != 3 || st.Share != 0.75 {
			t.Errorf("weight 3: %+v", st)
		}
		s.run.Kill()
		s.start()
	}
	s.each("weight", "web", a, "file")
	s.each("weight", "web", b, "file")
	if st := s.backendStatus("web", a.V4.String()); st.Weight != 1 || st.Share != 0.5 {
		t.Errorf("weight of the file: %+v", st)
	}
	s.wantEvents(a, "operator", "weight as in the file")
	for _, e := range s.events(0) {
		if e.Kind == "operator" && (e.By == nil || int(e.By.UID) != os.Getuid() || e.By.PID <= 0) {
			t.Errorf("nobody said %q: %+v", e.Message, e.By)
		}
	}

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"drain", "nobody", "10.1.1.1"}, "there is no service \"nobody\"; there are: web"},
		{[]string{"drain", "web", "192.0.2.99"}, "has no backend \"192.0.2.99\"; it has: " + a.V4.String()},
		{[]string{"status", "nobody"}, "there is no service \"nobody\""},
	} {
		if r := s.weir(c.args...); r.code != 2 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("weir %v: exit code %d, %s%s", c.args, r.code, r.stdout, r.stderr)
		}
	}
	s.write("services: nonsense\n")
	if r := s.weir("reload"); r.code != 2 || !strings.Contains(r.stderr, "weir.yaml:1:11") {
		t.Errorf("weir reload of a wrong file: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.among(t, "with a wrong file", 4, a, b)

	said := logFile(filepath.Join(s.dir, "events"))
	out, err := os.Create(string(said))
	check(t, err)
	defer out.Close()
	cmd := s.Gateway.Command(binary, "events", "--follow")
	cmd.Stdout, cmd.Stderr = out, out
	follower, err := s.Gateway.Start(cmd)
	check(t, err)
	await(t, "what was is told", func() bool { return strings.Contains(said.String(), "configuration not taken") })
	s.must("drain", "web", b.V6.String())
	await(t, "what comes is told", func() bool { return strings.Contains(said.String(), b.V6.String()+": up -> drain") })
	s.stop()
	select {
	case <-follower.Done():
	case <-time.After(patience):
		t.Error("weir events --follow outlives weir")
	}
	if text := said.String(); !strings.Contains(text, "weir has stopped") {
		t.Errorf("weir events --follow ended with\n%s", text)
	}
	if r := s.weir("drain", "web", a.V4.String()); r.code != 1 || !strings.Contains(r.stderr, "weir run") {
		t.Errorf("without a weir: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
}

// TestStateFile starts weir over a file of words that makes no sense, and where none can
// be kept: it runs, and says so.
func TestStateFile(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serve("tcp", s.Backends, 7)
	s.write(s.checkedService())
	path := filepath.Join(s.dir, "state.json")
	check(t, os.WriteFile(path, []byte(`{"version": 1, "words": [{"service": "web", "back`), 0o600))
	s.start()
	s.among(t, "with a broken file", 2, s.Backends...)
	if !strings.Contains(s.log.String(), "state.json.bad") {
		t.Errorf("the log does not say where the file is:\n%s", s.log)
	}
	if text, err := os.ReadFile(path + ".bad"); err != nil || !strings.HasSuffix(string(text), `"back`) {
		t.Errorf("the broken file: %q, %v", text, err)
	}
	s.each("disable", "web", s.Backends[0])
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "disable") {
		t.Errorf("the new file: %q, %v", text, err)
	}
	s.stop()
	check(t, os.Remove(path))
	check(t, os.Remove(path+".bad"))
	check(t, os.Mkdir(path, 0o700)) // neither a file nor to be replaced by one
	check(t, os.WriteFile(path+".bad", nil, 0o600))
	s.start()
	s.among(t, "without a file", 2, s.Backends...)
	if log := s.log.String(); !strings.Contains(log, "will be lost") {
		t.Errorf("the log does not say that nothing is kept:\n%s", log)
	}
	s.must("disable", "web", s.Backends[0].V4.String())
	s.must("enable", "web", s.Backends[0].V4.String())
	s.stop()
}

// TestRestartKnowsWhoIsDown: a weir that starts again sends nobody to a backend that was
// down before, not even until the checks have found out anew.
func TestRestartKnowsWhoIsDown(t *testing.T) {
	t.Parallel()
	s, servers := checkedSite(t, 2)
	sick := s.Backends[1]
	check(t, servers[1].Close())
	s.awaitStates("web", sick, "down")
	await(t, "it is written down", func() bool {
		text, err := os.ReadFile(filepath.Join(s.dir, "state.json"))
		return err == nil && strings.Count(string(text), `"reason"`) == 2 // one for each family
	})
	s.run.Kill()
	<-s.run.Done()
	gen := s.generation()
	s.start()
	load, err := lab.StartLoad(t.Context(), lab.LoadSpec{Host: s.Clients[0], Network: "tcp", Targets: targets(), Rate: 200, Reset: true, Count: 100})
	check(t, err)
	if res := load.Wait(); res.Failed > 0 || res.ByBackend[sick.Name] > 0 {
		t.Errorf("after a restart with one down: %s", res)
	}
	if now := s.generation(); now != gen {
		t.Errorf("the restart moved the kernel's rules from generation %d to %d", gen, now)
	}
	s.stop()
}
