package engine_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/host"
	"weir/internal/model"
	"weir/internal/vip"
)

// box is a Host in the test's hands.
type box struct {
	sets     chan *model.Config
	findings chan []host.Finding
}

func newBox() *box {
	return &box{make(chan *model.Config, 10), make(chan []host.Finding)}
}

func (b *box) Set(cfg *model.Config)           { b.sets <- cfg }
func (b *box) Findings() <-chan []host.Finding { return b.findings }

// addresses is an Addresses in the test's hands.
type addresses struct {
	mu  sync.Mutex
	rep vip.Report
	err error
}

func (a *addresses) Sync(context.Context, []vip.Want) (vip.Report, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	rep := a.rep
	a.rep = vip.Report{}
	return rep, a.err
}

func (a *addresses) Announce(context.Context, string, []netip.Addr) <-chan error { return nil }

func (a *addresses) set(rep vip.Report, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rep, a.err = rep, err
}

func finding(id, subject string, s host.Severity) host.Finding {
	return host.Finding{ID: id, Subject: subject, Severity: s, Found: subject + " is wrong", Services: []string{}, Fix: "mend " + subject}
}

// hostLive is a loop with a box.
func hostLive(t *testing.T) (*live, *box, *addresses) {
	t.Helper()
	b, a := newBox(), &addresses{}
	l := startLiveWith(t, web(1), engine.Memory{}, func(loop *engine.Loop) { loop.Host, loop.Engine.Addresses = b, a })
	return l, b, a
}

// TestFindingsAreToldOnce sends a loop lists of findings: it tells of each that appears,
// gets worse and goes, once, and its status has those there are.
func TestFindingsAreToldOnce(t *testing.T) {
	l, b, _ := hostLive(t)
	if cfg := <-b.sets; len(cfg.Services) != 1 {
		t.Errorf("set %+v", cfg)
	}
	view := func() engine.View {
		v, err := l.loop.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := view(); v.Findings != nil {
		t.Errorf("knows of the box before it was looked at: %+v", v.Findings)
	}
	one, two, worse := finding("x", "one", host.Error), finding("y", "two", host.Warning), finding("y", "two", host.Error)
	for _, step := range []struct {
		list []host.Finding
		want []string
	}{
		{nil, nil},
		{[]host.Finding{one, two}, []string{"x one ok error", "y two ok warning"}},
		{[]host.Finding{one, two}, nil},
		{[]host.Finding{one, worse}, []string{"y two warning error"}},
		{[]host.Finding{worse}, []string{"x one error ok"}},
		{nil, []string{"y two error ok"}},
	} {
		before, _ := l.loop.Journal.Since(0)
		b.findings <- step.list
		v := view()
		if v.Findings == nil || !slices.EqualFunc(v.Findings, step.list, host.Finding.Same) {
			t.Errorf("view has %+v, want %+v", v.Findings, step.list)
		}
		after, _ := l.loop.Journal.Since(uint64(len(before)))
		var got []string
		for _, e := range after {
			got = append(got, strings.Join([]string{e.Finding, e.Subject, e.From, e.To}, " "))
			if e.Kind != "host" || !strings.Contains(e.Message, e.Subject+" is wrong") {
				t.Errorf("event %+v", e)
			}
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("told %q, want %q", got, step.want)
		}
	}
}

// TestReloadSetsTheBox reloads, also a file that is wrong.
func TestReloadSetsTheBox(t *testing.T) {
	l, b, _ := hostLive(t)
	<-b.sets
	l.file(web(1, 1), nil)
	l.rig.reload <- struct{}{}
	if cfg := <-b.sets; len(cfg.Services[0].Backends) != 2 {
		t.Errorf("set %+v", cfg.Services[0])
	}
	l.file(nil, errors.New("wrong"))
	l.rig.reload <- struct{}{}
	if _, err := l.loop.View(ctx); err != nil || len(b.sets) != 0 {
		t.Errorf("a file that was refused is watched for (%v)", err)
	}
}

// TestAddressesPutBackAreTold has addresses come back, and a failure that lasts.
func TestAddressesPutBackAreTold(t *testing.T) {
	l, _, a := hostLive(t)
	events := func(kind string) (out []string) {
		list, _ := l.loop.Journal.Since(0)
		for _, e := range list {
			if e.Kind == kind {
				out = append(out, e.Message)
			}
		}
		return out
	}
	until := func(what string, cond func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !cond(); {
			if time.Now().After(deadline) {
				t.Fatalf("%s: never; repairs %q, errors %q", what, events("repair"), events("error"))
			}
			l.clock.advance(time.Second)
			time.Sleep(time.Millisecond)
		}
	}
	a.set(vip.Report{Added: []vip.Want{{Dev: "eth0", Addr: netip.MustParseAddr("203.0.113.7")}}}, nil)
	until("told of the address", func() bool { return len(events("repair")) == 1 })
	if got := events("repair")[0]; !strings.Contains(got, "203.0.113.7 on eth0") {
		t.Errorf("told %q", got)
	}
	a.set(vip.Report{}, unix.EPERM)
	until("told of the failure", func() bool { return len(events("error")) > 0 })
	for range 5 { // it goes on failing
		for range 3 {
			l.clock.advance(time.Second)
		}
		if _, err := l.loop.View(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := events("error"); len(got) != 1 || !strings.Contains(got[0], "operation not permitted") {
		t.Errorf("told %q", got)
	}
}

// TestRepairWhileAChangeWaits flushes the rules while a change that the kernel refuses
// waits for its next try, and has the box mended: the try comes at once.
func TestRepairWhileAChangeWaits(t *testing.T) {
	l, b, a := hostLive(t)
	<-b.sets
	b.findings <- []host.Finding{finding(host.DeviceMissing, "eth9", host.Error)}
	a.set(vip.Report{}, vip.ErrNoDevice)
	l.file(web(2), nil)
	l.rig.reload <- struct{}{}
	failed := func() bool {
		list, _ := l.loop.Journal.Since(0)
		return slices.ContainsFunc(list, func(e engine.Event) bool { return e.Kind == "error" })
	}
	for deadline := time.Now().Add(10 * time.Second); !failed(); {
		if time.Now().After(deadline) {
			t.Fatal("the change does not fail")
		}
		time.Sleep(time.Millisecond)
	}
	for range 8 { // the pause has become long by then
		l.clock.advance(10 * time.Second)
		if _, err := l.loop.View(ctx); err != nil {
			t.Fatal(err)
		}
	}
	l.k.Flush()
	if holdsNow(l.k, web(2)) {
		t.Fatal("the flush did nothing")
	}
	for deadline := time.Now().Add(10 * time.Second); !holdsNow(l.k, web(2)); {
		if time.Now().After(deadline) {
			t.Fatal("nothing is put back while a change waits")
		}
		l.clock.advance(100 * time.Millisecond)
		time.Sleep(time.Millisecond)
	}
	a.set(vip.Report{}, nil)
	b.findings <- nil
	v, err := l.loop.View(ctx) // waits for a step that is due
	for deadline := time.Now().Add(10 * time.Second); err == nil && !v.Applied; v, err = l.loop.View(ctx) {
		if time.Now().After(deadline) {
			t.Fatal("the change waits on, with nothing in the way")
		}
	}
}
