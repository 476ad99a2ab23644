package api_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/internal/api"
	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// epoch is when everything happens that a fake says.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fake is a weir without a kernel.
type fake struct {
	mu      sync.Mutex
	cfg     *model.Config
	words   map[engine.Member]state.Word
	health  map[engine.Member]state.Health
	applied bool
	reload  error         // what ReloadNow says
	say     error         // what Say says
	stuck   chan struct{} // View waits until it is closed; nil: not at all
	journal *engine.Journal
	waiting *engine.Waiting
	blocks  []lists.Block
	drains  []engine.AddressDrain
	refuses bool              // no word may be taken
	by      *state.Operator   // who said the last word
	asked   api.ReloadRequest // by the last request to load
}

func backendAt(text string, weight int) model.Backend {
	if a, err := netip.ParseAddr(text); err == nil {
		return model.Backend{Addr: a, Weight: weight}
	}
	ap := netip.MustParseAddrPort(text)
	return model.Backend{Addr: ap.Addr(), Ports: model.Port(ap.Port()), Weight: weight}
}

// edge is the access policy of a fake.
var edge = &model.Edge{Drop: true, Management: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, Open: []*model.OpenRule{
	{Name: "ssh", Box: true, From: []netip.Prefix{netip.MustParsePrefix("203.0.112.0/23")}, Traffic: []model.Traffic{{Proto: model.TCP, Ports: model.Port(22)}}}}}

func newFake() *fake {
	dns := backendAt("10.1.2.1:53", 1)
	dns.Ports.Hi = 54
	return &fake{applied: true, words: map[engine.Member]state.Word{}, journal: engine.NewJournal(), cfg: &model.Config{Edge: edge, Services: []*model.Service{
		{Name: "web", Backends: []model.Backend{backendAt("10.1.1.1:8080", 2), backendAt("10.1.1.2:8080", 1),
			backendAt("10.1.1.2:8081", 1), backendAt("[2001:db8:1::1]:8080", 1)}},
		{Name: "dns", Backends: []model.Backend{dns, backendAt("2001:db8:2::1", 1)}},
	}, Egress: []*model.Pool{{Name: "apis", Addresses: []model.AddrRange{{Lo: netip.MustParseAddr("198.51.100.1"), Hi: netip.MustParseAddr("198.51.100.2")}}}}}}
}

func (f *fake) View(ctx context.Context) (engine.View, error) {
	if f.stuck != nil {
		select {
		case <-f.stuck:
		case <-ctx.Done():
			return engine.View{}, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v := engine.View{Config: f.cfg, Backends: map[string][]state.Backend{}, Words: map[engine.Member]state.Word{},
		Checks: map[engine.Member]engine.Health{}, Health: f.health, Applied: f.applied, Waiting: f.waiting, Lists: []lists.Status{listed}, Said: f.blocks,
		Last: engine.Outcome{Changed: true, Summary: "1 rule replaced", Added: []string{}, Removed: []string{}, Warnings: []string{"device eth9 is down"}}}
	for m, w := range f.words {
		v.Words[m] = w
	}
	for _, s := range f.cfg.Services {
		var in []state.Input
		for _, b := range s.Backends {
			in = append(in, state.Input{Word: f.words[engine.Member{Service: s.Name, Backend: b.ID()}], Connections: 3})
		}
		v.Backends[s.Name], _ = state.Decide(s, in, epoch)
	}
	return v, nil
}

func (f *fake) Status(_ context.Context, v engine.View, service string) (engine.Status, error) {
	st := engine.Status{Loaded: true, Services: []engine.ServiceStatus{}}
	for _, s := range v.Config.Services {
		if service == "" || service == s.Name {
			st.Services = append(st.Services, engine.ServiceStatus{Name: s.Name, Listen: []string{}, Backends: []engine.BackendStatus{{
				Address: s.Backends[0].ID(), State: "up", Since: epoch,
				Check: &engine.CheckStatus{OK: true, Detail: "HTTP <200>", LatencyMS: 0.5, At: epoch}}}})
		}
	}
	return st, nil
}

func (f *fake) Offenders(_ context.Context, v engine.View, service string) ([]engine.Offender, error) {
	out := []engine.Offender{}
	for _, s := range v.Config.Services {
		if service == "" || service == s.Name {
			out = append(out, engine.Offender{Source: "203.0.113.9", Service: s.Name, Limit: "packets 5/second burst 5 per source",
				Over: engine.Passed{Packets: 7, Bytes: 420}, LastSeen: epoch, Expires: epoch.Add(10 * time.Minute)})
		}
	}
	return out, nil
}

func (f *fake) Say(_ context.Context, by *state.Operator, m engine.Member, change func(state.Word) state.Word, words string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.say != nil {
		return f.say
	}
	f.words[m] = change(f.words[m]).After(f.words[m], epoch, nil)
	f.by = by
	f.journal.Add(engine.Event{At: epoch, Kind: "operator", Service: m.Service, Backend: m.Backend, Message: words})
	return nil
}

func (f *fake) word(service, backend string) state.Word {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.words[engine.Member{Service: service, Backend: backend}]
}

// said returns who said the last word, and forgets it.
func (f *fake) said() *state.Operator {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := f.by
	f.by = nil
	return by
}

// session returns what the last request to load said of its session.
func (f *fake) session() api.ReloadRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fake) ReloadNow(_ context.Context, _ *state.Operator, r api.ReloadRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = r
	return f.reload
}

func (f *fake) Apply(_ context.Context, by *state.Operator, r api.ApplyRequest) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = r.ReloadRequest
	switch {
	case f.reload != nil:
		return nil, f.reload
	case r.File != "" && r.File != "/etc/weir/weir.yaml":
		return nil, &api.Error{Code: 409, Message: "the weir that runs here has another file"}
	case f.waiting != nil && r.Confirm == 0:
		return nil, fmt.Errorf("%w: it is so", engine.ErrWaiting)
	}
	f.by = by
	if r.Confirm > 0 {
		f.waiting = &engine.Waiting{File: "/etc/weir/weir.yaml", At: epoch, Deadline: epoch.Add(r.Confirm), Left: r.Confirm.Seconds(), By: &state.Operator{UID: 7, User: "alice", PID: 8}}
	}
	return []string{"the fake forwards nothing"}, nil
}

func (f *fake) Confirm(_ context.Context, by *state.Operator) (keep.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		return keep.Config{}, engine.ErrNothing
	}
	c := keep.Config{File: f.waiting.File, At: f.waiting.At}
	f.by, f.waiting = by, nil
	return c, nil
}

func (f *fake) Since(seq uint64) ([]engine.Event, <-chan struct{}) { return f.journal.Since(seq) }

// serve has a server answer for f until the test ends or stop is called, and returns its
// socket.
func serve(t *testing.T, f *fake) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "weir.sock")
	l, err := api.Listen(path, api.NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	return path, serveOn(t, f, l)
}

func serveOn(t *testing.T, f *fake, l net.Listener) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := api.New(f, "1.2.3", slog.New(slog.NewTextHandler(io.Discard, nil)))
	go func() { done <- server.Serve(ctx, l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Serve ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("Serve does not end with its context")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// The blocklists of a fake: crawlers, of which operators may block what is not documentation
// of somebody else.

func (f *fake) Block(_ context.Context, by *state.Operator, b lists.Block) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.Prefix == netip.MustParsePrefix("198.51.100.1/32") {
		return &api.Error{Code: 409, Message: "198.51.100.1 is a gateway"}
	}
	f.by = by
	b.At, b.By = epoch, ""
	if !b.Until.IsZero() {
		b.Until = epoch.Add(time.Hour)
	}
	f.blocks = append(f.blocks, b)
	return nil
}

func (f *fake) Unblock(_ context.Context, by *state.Operator, p netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.by = by
	for i, b := range f.blocks {
		if b.Prefix == p {
			f.blocks = append(f.blocks[:i:i], f.blocks[i+1:]...)
			return nil
		}
	}
	return &api.Error{Code: 404, Message: "no operator has blocked " + p.String()}
}

func (f *fake) Accept(_ context.Context, by *state.Operator, list string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.by = by
	if list != "crawlers" {
		return &api.Error{Code: 404, Message: "there is no such blocklist"}
	}
	return nil
}

func (f *fake) Top(_ context.Context, n int, list string) (api.Top, error) {
	hits := []engine.Hit{
		{Entry: netip.MustParsePrefix("192.0.2.0/24"), Lists: []string{"crawlers"}, Action: "drop", Packets: 9, Bytes: 540, LastChange: epoch},
		{Entry: netip.MustParsePrefix("2001:db8::7/128"), Lists: []string{"crawlers"}, Action: "count", Packets: 1, Bytes: 60},
	}
	return api.Top{Entries: hits[:min(n, 2)], All: 2, At: epoch}, nil
}

func (f *fake) Why(_ context.Context, a netip.Addr) (api.Why, error) {
	var said lists.Answer
	if p := netip.MustParsePrefix("192.0.2.0/24"); p.Contains(a) {
		said.Action, said.Entry = blocklist.Drop, blocklist.Entry{Prefix: p}
		said.Matches = []blocklist.Match{{List: "crawlers", Action: blocklist.Drop, Entry: "192.0.2.0/24", File: "c.txt", Line: 3, Note: "SBL1", Since: epoch, SinceAtMost: true}}
	}
	out := api.NewWhy(a, said, []lists.Status{listed})
	if said.Action == blocklist.Drop {
		out.Packets, out.Bytes, out.LastChange = 9, 540, epoch
	}
	return out, nil
}

// listed is the blocklist of a fake.
var listed = lists.Status{Name: "crawlers", Action: "drop", InUse: true, Entries: 2, ReadAt: epoch, Files: []blocklist.File{{Name: "c.txt", Lines: 3, Entries: 2, Skipped: 1}},
	Counts: blocklist.Counts{Entries: 2, Skipped: 1}, Skipped: []string{"c.txt:1: \"x\" is no entry"}}

func (f *fake) Egress(_ context.Context, v engine.View, pool string) (engine.EgressStatus, error) {
	st := engine.EgressStatus{At: epoch, Dump: engine.DumpStatus{At: epoch, TookMS: 1.5}, Pools: []engine.EgressPool{}}
	for _, p := range v.Config.Egress {
		use := engine.EgressUse{Address: p.Addresses[0].Lo, Protocol: "tcp", Destination: netip.MustParseAddrPort("203.0.113.1:443"), InUse: 81, Ports: 100, Percent: 81, NewPerSecond: 10}
		full := 95.0
		use.FullIn = &full
		st.Pools = append(st.Pools, engine.EgressPool{Name: p.Name, Spread: "flow", WhenFull: "spill", Level: "warning", Connections: 83, NewTotal: 500,
			Addresses:    []engine.EgressAddress{{Address: p.Addresses[0].Lo, State: state.Up, Ports: 100, InUse: 81, Percent: 81, Busiest: &use, Connections: 83, NewPerSecond: 10, FullIn: &full}},
			Destinations: []engine.EgressUse{use}})
	}
	v.Drains = f.drains
	return v.Egress(st, pool), nil
}

func (f *fake) DrainAddress(_ context.Context, by *state.Operator, a netip.Addr, until time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a == netip.MustParseAddr("198.51.100.9") {
		return &api.Error{Code: 404, Message: "no egress pool has that address"}
	}
	f.drains = []engine.AddressDrain{{Address: a, Word: state.Word{Admin: state.Drain, At: epoch}}}
	return nil
}

func (f *fake) EnableAddress(_ context.Context, by *state.Operator, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drains = nil
	return nil
}
