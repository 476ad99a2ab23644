package api_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/engine"
)

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

// TestSocketMode looks at the file's mode with an umask that would take nothing away.
func TestSocketMode(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	dir := t.TempDir()
	path := filepath.Join(dir, "weir.sock")
	for _, c := range []struct {
		group int
		want  fs.FileMode
	}{{api.NoGroup, 0o600}, {os.Getegid(), 0o660}} {
		l, err := api.Listen(path, c.group)
		if err != nil {
			t.Fatal(err)
		}
		if got := mode(t, path); got != c.want|fs.ModeSocket {
			t.Errorf("group %d: mode %v, want %v", c.group, got, c.want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// TestSocketIsNeverOpen watches every name below the directory while sockets come and go:
// none may ever be one that others can connect to.
func TestSocketIsNeverOpen(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	dir := t.TempDir()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, p := range []string{"weir.sock", ".weir.sock", ".weir.sock/s"} {
				info, err := os.Lstat(filepath.Join(dir, p))
				// What is inside the directory cannot be reached by others.
				if err == nil && p != ".weir.sock/s" && info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s was seen with mode %v", p, info.Mode())
					return
				}
			}
			runtime.Gosched()
		}
	})
	for range 300 {
		l, err := api.Listen(filepath.Join(dir, "weir.sock"), api.NoGroup)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	close(stop)
	wg.Wait()
}

// TestStaleSocket starts over one that a killed weir left, also half-made.
func TestStaleSocket(t *testing.T) {
	f := newFake()
	path := filepath.Join(t.TempDir(), "weir.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := os.MkdirAll(filepath.Join(filepath.Dir(path), ".weir.sock"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := api.NewClient(path)
	if _, err := c.Version(t.Context()); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("with a dead socket: %v", err)
	}
	l, err := api.Listen(path, api.NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	stop := serveOn(t, f, l)
	if v, err := c.Version(t.Context()); err != nil || v.Version != "1.2.3" {
		t.Errorf("%+v, %v", v, err)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := c.Version(t.Context()); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// TestOtherUser has another user connect.
func TestOtherUser(t *testing.T) {
	if path := os.Getenv("WEIR_TEST_SOCKET"); path != "" {
		_, err := api.NewClient(path).Version(t.Context())
		fmt.Printf("said: %v\n", err)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	path, _ := serve(t, newFake())
	for d := filepath.Dir(path); d != "/"; d = filepath.Dir(d) {
		if mode(t, d)&0o001 == 0 { // go's own directories of tests are 0700
			if !strings.HasPrefix(d, os.TempDir()) {
				t.Skipf("%s is closed to others", d)
			}
			if err := os.Chmod(d, 0o711); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The binary lies where others may not look; they get it as a file of their own.
	exe := filepath.Join(filepath.Dir(path), "test")
	text, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestOtherUser$")
	cmd.Dir = "/"
	cmd.Env = []string{"WEIR_TEST_SOCKET=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "said: ") || !strings.Contains(string(out), "permission denied") {
		t.Errorf("another user: %v\n%s", err, out)
	}
}

func TestLongPath(t *testing.T) {
	_, err := api.Listen("/"+strings.Repeat("a", 110), api.NoGroup)
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
}

// TestFollow sees events as they come, what was missed before, and the end of weir.
func TestFollow(t *testing.T) {
	f := newFake()
	path, stop := serve(t, f)
	add := func(s string) { f.journal.Add(engine.Event{At: epoch, Kind: "error", Message: s}) }
	add("one")
	add("two")
	got := make(chan engine.Event, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- api.NewClient(path).Events(context.Background(), 1, true, func(e engine.Event) error {
			got <- e
			return nil
		})
	}()
	next := func() engine.Event {
		t.Helper()
		select {
		case e := <-got:
			return e
		case err := <-ended:
			t.Fatalf("the stream ended: %v", err)
		case <-time.After(10 * time.Second):
			t.Fatal("no event")
		}
		return engine.Event{}
	}
	if e := next(); e.Seq != 2 || e.Message != "two" {
		t.Errorf("%+v", e)
	}
	for i := range uint64(5) {
		add("more")
		if e := next(); e.Seq != 3+i {
			t.Errorf("%+v, want number %d", e, 3+i)
		}
	}
	stop()
	select {
	case <-ended: // an end or an error, by how far the server got
	case <-time.After(10 * time.Second):
		t.Error("the stream outlives weir")
	}
}

// TestFollowersAreBounded fills all places; those who leave make room.
func TestFollowersAreBounded(t *testing.T) {
	f := newFake()
	f.journal.Add(engine.Event{At: epoch, Kind: "error"})
	path, _ := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	begun := make(chan struct{}, 64)
	for range 64 {
		wg.Go(func() {
			_ = api.NewClient(path).Events(ctx, 0, true, func(engine.Event) error {
				begun <- struct{}{}
				return nil
			})
		})
	}
	for range 64 {
		select {
		case <-begun:
		case <-time.After(10 * time.Second):
			t.Fatal("not all can follow")
		}
	}
	one := func() error {
		enough := errors.New("enough")
		err := api.NewClient(path).Events(t.Context(), 0, true, func(engine.Event) error { return enough })
		if errors.Is(err, enough) {
			return nil
		}
		return err
	}
	var said *api.Error
	if err := one(); !errors.As(err, &said) || said.Code != 503 {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	wg.Wait()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		err := one()
		if err == nil {
			return
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("nobody makes room: %v", err)
		}
	}
}

// TestCancelledClient sees that weir does not work on for somebody who has gone, and that
// it ends while somebody waits.
func TestCancelledClient(t *testing.T) {
	f := newFake()
	f.stuck = make(chan struct{})
	path, stop := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() {
		_, err := api.NewClient(path).Drain(ctx, "web", "10.1.1.1", 0)
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() {
		_, err := api.NewClient(path).Status(context.WithoutCancel(ctx), "")
		ended <- err
	}()
	if _, err := api.NewClient(path).Version(t.Context()); err != nil {
		t.Errorf("somebody who waits is in the way: %v", err)
	}
	stop()
	if err := <-ended; err == nil {
		t.Error("an answer from nowhere")
	}
	if w := f.word("web", "10.1.1.1:8080"); w.Admin != "" {
		t.Errorf("done for somebody who has gone: %+v", w)
	}
}
