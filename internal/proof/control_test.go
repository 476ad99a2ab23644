package proof

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/state"
)

// shortDir is a directory of the test's own whose name is short enough for a socket.
func shortDir(tb testing.TB) string {
	dir := must(os.MkdirTemp("", "weir-town-"))(tb)
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// quick is a check that finds out soon. Its probes have all of the interval, for a machine
// with other work.
func quick() *model.Check {
	return &model.Check{Kind: model.CheckTCP, Every: 200 * time.Millisecond, Timeout: 200 * time.Millisecond,
		Rise: 2, Fall: 3, Jitter: model.DefaultCheckJitter}
}

// checked is the service web of all servers, alike, with a check.
func (t *town) checked(c *model.Check) *model.Service {
	weights := make([]int, len(t.Backends))
	for i := range weights {
		weights[i] = 1
	}
	s := t.service(model.RoundRobin, weights)
	s.Check = c
	return s
}

// api returns a client of the weir that runs.
func (t *town) api() *api.Client {
	var ns unix.Stat_t
	check(t.tb, unix.Stat(t.Gateway.NetnsPath(), &ns))
	return api.NewClient(filepath.Join("/run/weir", fmt.Sprintf("net-%d.sock", ns.Ino)))
}

// ids are a backend's names in the service web, one of each family.
func (t *town) ids(i int) []string {
	var out []string
	for _, a := range []netip.Addr{t.Backends[i].V4, t.Backends[i].V6} {
		out = append(out, netip.AddrPortFrom(a, backendPort).String())
	}
	return out
}

// say calls one of the API's words for a backend, in both families.
func (t *town) say(i int, word func(service, backend string) (api.Backend, error)) {
	t.tb.Helper()
	for _, id := range t.ids(i) {
		if b := must(word("web", id))(t.tb); !b.Applied {
			t.tb.Errorf("what was said of %s is not applied: %+v", id, b)
		}
	}
}

func (t *town) drain(i int) {
	t.say(i, func(s, b string) (api.Backend, error) { return t.api().Drain(t.tb.Context(), s, b, 0) })
}

func (t *town) disable(i int) {
	t.say(i, func(s, b string) (api.Backend, error) { return t.api().Disable(t.tb.Context(), s, b) })
}

func (t *town) enable(i int) {
	t.say(i, func(s, b string) (api.Backend, error) { return t.api().Enable(t.tb.Context(), s, b) })
}

// status returns what is said of a backend, in both families.
func (t *town) status(i int) (out []engine.BackendStatus) {
	t.tb.Helper()
	st := must(t.api().Status(t.tb.Context(), "web"))(t.tb)
	for _, b := range st.Services[0].Backends {
		for _, id := range t.ids(i) {
			if b.Address == id || b.Address+fmt.Sprintf(":%d", backendPort) == id {
				out = append(out, b)
			}
		}
	}
	return out
}

// is reports whether a backend is in a state in both families.
func (t *town) is(i int, want state.Name) bool {
	t.tb.Helper()
	list := t.status(i)
	return len(list) == 2 && !slices.ContainsFunc(list, func(b engine.BackendStatus) bool { return b.State != string(want) })
}

// awaitIs waits until it is.
func (t *town) awaitIs(want state.Name, backends ...int) {
	t.tb.Helper()
	for _, i := range backends {
		until(t.tb, patience, fmt.Sprintf("state %s of backend %d", want, i+1), func() bool {
			is := t.is(i, want)
			if !is {
				time.Sleep(10 * look) // each look costs weir a look at all connections
			}
			return is
		})
	}
}

// checkedOnce waits until every backend was asked at least once.
func (t *town) checkedOnce() {
	t.tb.Helper()
	until(t.tb, patience, "check of everybody", func() bool {
		st := must(t.api().Status(t.tb.Context(), "web"))(t.tb)
		return !slices.ContainsFunc(st.Services[0].Backends, func(b engine.BackendStatus) bool { return b.Check == nil })
	})
}

// transitions counts the changes of a backend's state so far.
func (t *town) transitions(i int) (n int) {
	t.tb.Helper()
	check(t.tb, t.api().Events(t.tb.Context(), 0, false, func(e engine.Event) error {
		if e.Kind == "state" && slices.Contains(t.ids(i), e.Backend) {
			n++
		}
		return nil
	}))
	return n
}

// arrivals watches the connections that clients open to a backend.
func (t *town) arrivals(i int) *lab.Arrivals {
	a := must(t.Backends[i].Arrivals(lab.HostDev, backendPort, lab.ClientNet4, lab.ClientNet6))(t.tb)
	t.tb.Cleanup(func() { a.Close() })
	return a
}

// silence makes a backend drop all that reaches it, as a host that hangs.
func (t *town) silence(i int) {
	t.tb.Helper()
	must(t.Backends[i].Run("nft", "table inet silence { chain in { type filter hook prerouting priority -300; policy drop; }; }"))(t.tb)
}

// duration is a time that can be set from outside.
func duration(tb testing.TB, name string, usual time.Duration) time.Duration {
	v := os.Getenv(name)
	if v == "" {
		return usual
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		tb.Fatalf("%s=%q: want a time such as 60s", name, v)
	}
	return d
}

// usage is what weir has taken so far.
type usage struct {
	rss  int64 // KiB, now
	cpu  time.Duration
	when time.Time
}

func (t *town) usage() usage {
	t.tb.Helper()
	const tick = 10 * time.Millisecond // USER_HZ
	u := usage{when: time.Now()}
	status := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", t.weir.PID())))(t.tb))
	_, rest, _ := strings.Cut(status, "VmRSS:")
	fmt.Sscan(rest, &u.rss)
	stat := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.weir.PID())))(t.tb))
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	var user, system int64
	fmt.Sscan(fields[11]+" "+fields[12], &user, &system) // proc_pid_stat(5), from its third field
	u.cpu = time.Duration(user+system) * tick
	return u
}

// share is the part of a processor that was taken since before.
func (u usage) share(before usage) float64 {
	return float64(u.cpu-before.cpu) / float64(u.when.Sub(before.when))
}
