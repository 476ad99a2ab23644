package api_test

import (
	"context"
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
	"weir/internal/engine"
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
	applied bool
	reload  error         // what ReloadNow says
	say     error         // what Say says
	stuck   chan struct{} // View waits until it is closed; nil: not at all
	journal *engine.Journal
	refuses bool // no word may be taken
}

func backendAt(text string, weight int) model.Backend {
	if a, err := netip.ParseAddr(text); err == nil {
		return model.Backend{Addr: a, Weight: weight}
	}
	ap := netip.MustParseAddrPort(text)
	return model.Backend{Addr: ap.Addr(), Ports: model.Port(ap.Port()), Weight: weight}
}

func newFake() *fake {
	dns := backendAt("10.1.2.1:53", 1)
	dns.Ports.Hi = 54
	return &fake{applied: true, words: map[engine.Member]state.Word{}, journal: engine.NewJournal(), cfg: &model.Config{Services: []*model.Service{
		{Name: "web", Backends: []model.Backend{backendAt("10.1.1.1:8080", 2), backendAt("10.1.1.2:8080", 1),
			backendAt("10.1.1.2:8081", 1), backendAt("[2001:db8:1::1]:8080", 1)}},
		{Name: "dns", Backends: []model.Backend{dns, backendAt("2001:db8:2::1", 1)}},
	}}}
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
		Checks: map[engine.Member]engine.Health{}, Applied: f.applied}
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

func (f *fake) Say(_ context.Context, m engine.Member, change func(state.Word) state.Word, words string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.say != nil {
		return f.say
	}
	w := change(f.words[m])
	w.At = epoch
	f.words[m] = w
	f.journal.Add(engine.Event{At: epoch, Kind: "operator", Service: m.Service, Backend: m.Backend, Message: words})
	return nil
}

func (f *fake) word(service, backend string) state.Word {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.words[engine.Member{Service: service, Backend: backend}]
}

func (f *fake) ReloadNow(context.Context, api.ReloadRequest) error { return f.reload }

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
