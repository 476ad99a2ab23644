package binding

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/conntrack"
	"weir/internal/model"
)

// fakeKernel tells of connections that the test begins and ends.
type fakeKernel struct {
	mu     sync.Mutex
	queue  []event
	lose   bool
	open   []conntrack.Flow
	opened int
}

type event struct {
	conntrack.Flow
	ended bool
}

func (k *fakeKernel) begin(f conntrack.Flow, heard bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = append(k.open, f)
	if heard {
		k.queue = append(k.queue, event{f, false})
	}
}

func (k *fakeKernel) end(f conntrack.Flow, heard bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = slices.DeleteFunc(k.open, func(o conntrack.Flow) bool { return connOf(&o) == connOf(&f) })
	if heard {
		k.queue = append(k.queue, event{f, true})
	}
}

func (k *fakeKernel) overflow() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lose = true
}

// Next implements Source.
func (k *fakeKernel) Next(deadline time.Time, fn func(conntrack.Flow, bool)) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded // as conntrack.Events: without a look
	}
	for {
		k.mu.Lock()
		lose, queue := k.lose, k.queue
		k.lose, k.queue = false, nil
		k.mu.Unlock()
		for _, e := range queue {
			fn(e.Flow, e.ended)
		}
		switch {
		case lose:
			return conntrack.ErrLost
		case len(queue) > 0:
			return nil
		case time.Now().After(deadline):
			return os.ErrDeadlineExceeded
		}
		time.Sleep(time.Millisecond)
	}
}

// Close implements Source.
func (k *fakeKernel) Close() error { return nil }

// Dump implements Table.
func (k *fakeKernel) Dump(_ context.Context, _ conntrack.Filter, fn func(conntrack.Flow) bool) error {
	k.mu.Lock()
	open := slices.Clone(k.open)
	k.mu.Unlock()
	for _, f := range open {
		if !fn(f) {
			return nil
		}
	}
	return nil
}

// logging starts a logger, and returns what stops it.
func logging(t *testing.T, k *fakeKernel, cfg *model.Config) (*Logger, func()) {
	t.Helper()
	l := NewLogger(k, slog.New(slog.NewTextHandler(io.Discard, nil)))
	l.Listen = func() (Source, error) { k.opened++; return k, nil }
	l.Set(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return l, stop
}

// lines reads the lines of files that are about events.
func lines(t *testing.T, events []string, paths ...string) []Line {
	t.Helper()
	var out []Line
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for text := range strings.Lines(string(b)) {
			l, err := ParseLine([]byte(text))
			if err != nil {
				t.Fatalf("%s: %q: %v", p, text, err)
			}
			if events == nil || slices.Contains(events, l.Event) {
				out = append(out, l)
			}
		}
	}
	return out
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func has(t *testing.T, path, event, inside string) bool {
	t.Helper()
	return slices.ContainsFunc(lines(t, []string{event}, path), func(l Line) bool { return inside == "" || l.Inside == inside })
}

func webConfig(path string) *model.Config {
	return &model.Config{Bindings: model.Bindings{File: path}, Egress: []*model.Pool{pool("web", func(p *model.Pool) {
		p.Addresses = []model.AddrRange{addrs("198.51.100.0", "198.51.100.5")}
	})}}
}

func web(n int) conntrack.Flow {
	return flow(model.TCP, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(40000+n)).String(),
		netip.AddrPortFrom(netip.MustParseAddr("198.51.100.3"), uint16(1024+n)).String(), "203.0.113.9:443")
}

func inside(n int) string { f := web(n); return f.Orig.Src.String() }

// TestLoggerLosesNoEnd: connections that begin and end while weir runs, while it does not, and
// while events are lost, have an end each; and one whose end the kernel does not tell gets it
// from a comparison.
func TestLoggerLosesNoEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "bindings.jsonl")
	k := &fakeKernel{}
	k.begin(web(0), false) // before any weir
	l, stop := logging(t, k, webConfig(path))
	until(t, "what was open before", func() bool { return has(t, path, Open, inside(0)) })
	for n := 1; n <= 4; n++ {
		k.begin(web(n), true)
	}
	k.end(web(1), true)
	until(t, "an end", func() bool { return has(t, path, End, inside(1)) })
	k.end(web(2), false)
	k.begin(web(5), false)
	k.overflow()
	until(t, "an end that was lost", func() bool {
		return has(t, path, End, inside(2)) && has(t, path, Lost, "") && has(t, path, Open, inside(5))
	})
	if s := l.Status(); s == nil || s.Lost != 1 || s.To != path || s.Failed != 0 {
		t.Errorf("status %+v", s)
	}
	stop()
	if all := lines(t, nil, path); all[len(all)-1].Event != Stop {
		t.Errorf("the last line is %s", all[len(all)-1].String())
	}
	k.end(web(3), false)
	k.begin(web(6), false)
	_, stop = logging(t, k, webConfig(path))
	until(t, "what went while no weir ran", func() bool { return has(t, path, End, inside(3)) && has(t, path, Open, inside(6)) })
	k.end(web(4), true)
	until(t, "an end of a connection from before", func() bool { return has(t, path, End, inside(4)) })
	stop()
	for _, e := range lines(t, []string{End}, path) {
		known := e.Inside != inside(0)
		if known == e.Start.IsZero() {
			t.Errorf("the start of %s", e.String())
		}
		if heard := e.Inside == inside(1) || e.Inside == inside(4); heard != e.After.IsZero() {
			t.Errorf("whether the end was heard: %s", e.String())
		}
	}
	if n := len(lines(t, []string{Open}, path)); n < 3 {
		t.Errorf("%d lines of what is open", n)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

// TestLoggerRotates moves the file away, and cuts it off where it is, while connections are
// open: each file says what is.
func TestLoggerRotates(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bindings.jsonl")
	k := &fakeKernel{}
	_, stop := logging(t, k, webConfig(path))
	k.begin(web(1), true)
	until(t, "a start", func() bool { return has(t, path, Start, inside(1)) })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	until(t, "a new file", func() bool { return has(t, path, Open, inside(1)) })
	if all := lines(t, nil, path); all[0].Event != All || all[0].Lines != 1 || all[1].Start.IsZero() {
		t.Errorf("a file begins with %s, %s", all[0].String(), all[1].String())
	}
	k.begin(web(2), true)
	until(t, "a start in the new file", func() bool { return has(t, path, Start, inside(2)) })
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	until(t, "the list after a cut", func() bool { return has(t, path, Open, inside(1)) && has(t, path, Open, inside(2)) })
	k.end(web(1), true)
	until(t, "an end", func() bool { return has(t, path, End, inside(1)) })
	stop()
	told, err := Who(context.Background(), []string{path, path + ".1"}, Question{Outside: web(1).Reply.Dst, At: time.Now()})
	if err != nil || len(told.Answers) != 0 {
		t.Errorf("%+v %v", told, err)
	}
}

// TestLoggerCannotWrite takes the place away where the log is, and gives it back.
func TestLoggerCannotWrite(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "bindings.jsonl")
	k := &fakeKernel{}
	l, _ := logging(t, k, webConfig(path))
	k.begin(web(1), true)
	until(t, "a start", func() bool { return has(t, path, Start, inside(1)) })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no directory can be there
		t.Fatal(err)
	}
	until(t, "trouble", func() bool { s := l.Status(); return s != nil && s.Error != "" })
	for n := 2; n < 6; n++ {
		k.begin(web(n), true)
	}
	until(t, "lines that cannot be written", func() bool { return l.Status().Failed >= 4 })
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	until(t, "that it is told, and what is open", func() bool {
		return has(t, path, Failed, "") && has(t, path, Open, inside(5)) && l.Status().Error == ""
	})
	if f := lines(t, []string{Failed}, path); f[0].Lines < 4 || f[0].After.IsZero() {
		t.Errorf("%s", f[0].String())
	}
}

// TestLoggerListensOnlyWhenAsked: without a pool that logs the kernel makes no events.
func TestLoggerListensOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bindings.jsonl")
	k := &fakeKernel{}
	none := webConfig(path)
	none.Egress[0].Log = false
	l, stop := logging(t, k, none)
	time.Sleep(50 * time.Millisecond)
	if l.Status() != nil {
		t.Errorf("%+v", l.Status())
	}
	l.Set(webConfig(path))
	k.begin(web(1), true)
	until(t, "a start", func() bool { return has(t, path, Start, inside(1)) })
	l.Set(none)
	k.end(web(1), true)
	until(t, "the end of the last", func() bool { return has(t, path, End, inside(1)) && has(t, path, Stop, "") })
	stop()
	if k.opened != 1 {
		t.Errorf("listened %d times", k.opened)
	}
}

// TestSyslog reads what a syslog would get.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	listen := func() net.PacketConn {
		c, err := net.ListenPacket("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := listen()
	s, err := openSyslog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	f := web(1)
	line := connOf(&f).line(noon, Start, "web")
	send := func() (int, error) { s.put(&line, line.Append(nil)); return s.flush() }
	if n, err := send(); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	b := make([]byte, 2048)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b[:n])
	if !strings.HasPrefix(got, "<30>1 2026-11-21T12:00:00.123456Z ") || !strings.Contains(got, " bindings - {") {
		t.Errorf("%q", got)
	}
	var back Line
	if err := json.Unmarshal([]byte(got[strings.Index(got, "{"):]), &back); err != nil || back.Inside != inside(1) {
		t.Errorf("%v %q", err, got)
	}
	c.Close()
	os.Remove(path)
	if n, err := send(); n != 1 || err == nil {
		t.Errorf("without a syslog: %d %v", n, err)
	}
	c = listen()
	defer c.Close()
	if n, err := send(); n != 0 || err != nil {
		t.Errorf("with another one: %d %v", n, err)
	}
}
