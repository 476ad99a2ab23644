package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// markEnv marks a process that Isolate started. Its value is
// "<net> <mnt> <user> <state>": the inode numbers of the namespaces outside, and
// "new" until the inside is prepared. The numbers guard against a variable that was
// merely inherited: it does not count unless the first two really are others.
const markEnv = "WEIR_LAB"

// mark is the value of markEnv.
type mark struct {
	net, mnt, user uint64 // inode numbers of namespaces
	state          string // "new" or "ready"
}

func (m mark) env() string { return fmt.Sprintf("%d %d %d %s", m.net, m.mnt, m.user, m.state) }

func readMark() (m mark, ok bool) {
	_, err := fmt.Sscanf(os.Getenv(markEnv), "%d %d %d %s", &m.net, &m.mnt, &m.user, &m.state)
	return m, err == nil
}

// here returns the mark of the calling thread's namespaces.
func here() (m mark, err error) {
	for _, ns := range []struct {
		kind string
		ino  *uint64
	}{{"net", &m.net}, {"mnt", &m.mnt}, {"user", &m.user}} {
		var st unix.Stat_t
		err := unix.Stat("/proc/thread-self/ns/"+ns.kind, &st)
		if err != nil && ns.kind != "user" { // a kernel may do without user namespaces
			return m, fmt.Errorf("lab: %s namespace of this process: %w", ns.kind, err)
		}
		*ns.ino = st.Ino
	}
	return m, nil
}

// ErrNotInside is returned by New in a process that was not started by Isolate.
var ErrNotInside = errors.New("lab: not in namespaces of its own; call lab.Isolate (in tests lab.Main) first")

// Inside reports whether this process lives in namespaces that Isolate made.
func Inside() bool {
	out, ok := readMark()
	in, err := here()
	return ok && err == nil && in.net != out.net && in.mnt != out.mnt
}

// InUserNamespace reports whether Isolate needed a user namespace: root here is not root
// outside, so that BPF is refused and socket buffers have their limits.
func InUserNamespace() bool {
	out, ok := readMark()
	in, err := here()
	return ok && err == nil && in.user != out.user
}

// Isolate makes sure that the program runs in namespaces of its own. In a process
// that does already it prepares them once (lo up, a private empty /run) and returns
// inside == true; the caller goes on. Otherwise it runs the same binary with args
// in new network and mount namespaces (and a user namespace, as root inside, unless
// the caller may do without), waits for it and returns its exit code; the caller
// exits with it. A child ended by a signal gives 128 plus the signal's number.
//
// Standard input, output and error are the caller's. INT, TERM, HUP and QUIT are
// passed on. The child is killed when the calling process dies. The error is an
// *UnavailableError where namespaces are not permitted.
//
// /sys stays the one of outside: it shows the devices of whoever mounted it, and
// nothing in the lab reads it; a fresh one would hide what is mounted below it.
func Isolate(args ...string) (inside bool, code int, err error) {
	if Inside() {
		return true, 0, prepare()
	}
	code, err = reexec(args)
	return false, code, err
}

func reexec(args []string) (int, error) {
	out, err := here()
	if err != nil {
		return 1, err
	}
	out.state = "new"
	// Not os.Executable: the path may be gone, or hidden by the private /run.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), markEnv+"="+out.env())
	cmd.SysProcAttr = namespaceAttr()

	// The kernel sends Pdeathsig when the THREAD that started the child ends, so
	// this goroutine keeps its thread until the child is gone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 1, explain(err, readProcSys)
	}
	done := make(chan struct{})
	go forward(cmd.Process, signals, done)
	err = cmd.Wait()
	close(done)
	return exitCode(cmd.ProcessState, err)
}

// namespaceAttr says which namespaces the child gets. Without CAP_SYS_ADMIN they
// hang below a user namespace in which the caller's own id is root. Only one id is
// mapped, for more would need the setuid helpers newuidmap and newgidmap; a program
// that changes to another user cannot do so inside.
func namespaceAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	if !privileged() {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// forward passes signals on to the child. A SIGINT or SIGQUIT typed at the terminal
// reaches the whole foreground process group, the child too, and must not arrive
// there twice: a second Ctrl-C usually means "at once".
func forward(child *os.Process, signals <-chan os.Signal, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case sig := <-signals:
			if (sig == unix.SIGINT || sig == unix.SIGQUIT) && inForeground() {
				continue
			}
			_ = child.Signal(sig) // it may have ended meanwhile
		}
	}
}

// inForeground reports whether this process is in the foreground group of a
// terminal.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func exitCode(state *os.ProcessState, err error) (int, error) {
	if state == nil {
		return 1, fmt.Errorf("lab: wait for the isolated process: %w", err)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return state.ExitCode(), nil
}

// prepare makes the new namespaces usable. It runs once; children of the isolated
// process inherit the mark and find the work done.
func prepare() error {
	out, ok := readMark()
	if !ok || out.state != "new" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: make mounts private: %w", err)
	}
	if st, err := os.Stat("/run"); err == nil && st.IsDir() {
		if err := unix.Mount("lab", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("lab: private /run: %w", err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lab: set lo up: %w", err)
	}
	out.state = "ready"
	return os.Setenv(markEnv, out.env())
}

// whyNot is set by Main where isolation was not possible; Require reports it.
var whyNot error

// Main is for TestMain, with a *testing.M: it runs the tests in namespaces of their
// own and returns the exit code.
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
// Where namespaces are not permitted the tests run all the same, and those that
// call Require are skipped; with CI=true the whole run fails instead.
func Main(m interface{ Run() int }) int {
	return mainTo(m, os.Stderr)
}

func mainTo(m interface{ Run() int }, stderr io.Writer) int {
	inside, code, err := Isolate(os.Args[1:]...)
	var unavailable *UnavailableError
	switch {
	case errors.As(err, &unavailable) && !inCI():
		whyNot = err
		return m.Run()
	case err != nil:
		fmt.Fprintln(stderr, err)
		return 1
	case !inside:
		return code
	}
	return m.Run()
}

func inCI() bool { return strings.EqualFold(os.Getenv("CI"), "true") }

// Require skips the test where the lab is not available, and fails it there when
// CI=true. Tests that call New start with it.
func Require(t interface {
	Helper()
	Skipf(string, ...any)
	Fatalf(string, ...any)
}) {
	t.Helper()
	if Inside() {
		return
	}
	why := whyNot
	if why == nil {
		why = ErrNotInside
	}
	if inCI() {
		t.Fatalf("%v", why)
	}
	t.Skipf("%v", why)
}
