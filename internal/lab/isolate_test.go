package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleEnv makes the test binary play another program: one that isolates itself.
const roleEnv = "LAB_TEST_ROLE"

const (
	roleExit = 7
	holdDev  = "held0"
)

// playRole is what a program that uses Isolate looks like.
func playRole(role string) int {
	inside, code, err := Isolate(os.Args[1:]...)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	if !inside {
		return code
	}
	switch role {
	case "network":
		if err := smallNetwork(os.Stdout); err != nil {
			fmt.Println("error:", err)
			return 1
		}
		return 0
	case "exit":
		return roleExit
	case "hold": // starts a process on a host and waits to be killed
		n, err := New()
		if err != nil {
			return 1
		}
		h, err := n.Host("h")
		if err != nil {
			return 1
		}
		if err := n.Link(End{Host: h, Name: holdDev}, End{Host: h, Name: "peer"}); err != nil {
			return 1
		}
		p, err := h.Start(h.Command("sleep", "60"))
		if err != nil {
			return 1
		}
		fmt.Println(os.Getpid(), p.PID(), h.EnterCommand())
		_, _ = io.Copy(io.Discard, os.Stdin)
		<-p.Done()
	}
	return 0
}

// smallNetwork shows that a lab works, to a test that cannot look inside.
func smallNetwork(out io.Writer) error {
	topo, err := Gateway(GatewayOptions{Clients: 1, Backends: 2})
	if err != nil {
		return err
	}
	defer topo.Net.Close()
	for i, b := range topo.Backends {
		if _, err := HTTPServer(b, fmt.Sprint("b", i), "0.0.0.0:80", "[::]:8080"); err != nil {
			return err
		}
		for _, addr := range []string{b.V4.String() + ":80", "[" + b.V6.String() + "]:8080"} {
			reply, err := topo.Clients[0].Ask("http", addr)
			if err != nil {
				return err
			}
			fmt.Fprintln(out, backendID(reply))
		}
	}
	if _, err := topo.Gateway.Run("nft", "add table inet t"); err != nil && !errors.Is(err, exec.ErrNotFound) {
		return err
	}
	if err := os.WriteFile("/run/lab-test", nil, 0o600); err != nil {
		return err
	}
	return nil
}

// roleCommand runs the test binary from a process that is not isolated as far as
// the binary can tell.
func roleCommand(t *testing.T, exe, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), exe)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, markEnv+"=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, roleEnv+"="+role)
	return cmd
}

const networkOutput = "b0\nb0\nb1\nb1\n"

func TestIsolateRunsANetwork(t *testing.T) {
	Require(t)
	cmd := roleCommand(t, "/proc/self/exe", "network")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil || string(out) != networkOutput {
		t.Fatalf("%v, output %q", err, out)
	}
	if _, err := os.Stat("/run/lab-test"); err == nil {
		t.Error("/run of the isolated process is not its own")
	}
}

// nobody is an id without any privilege.
var nobody = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}

// forNobody returns a copy of the test binary that nobody may run, or skips where
// this process cannot become nobody.
func forNobody(t *testing.T) (exe string) {
	t.Helper()
	Require(t)
	if InUserNamespace() {
		t.Skip("not root outside: the other tests run unprivileged already")
	}
	// The binary lies in a directory that others may not enter; /run is the lab's.
	exe = filepath.Join("/run", "lab.test")
	b, err := os.ReadFile("/proc/self/exe")
	check(t, err)
	check(t, os.WriteFile(exe, b, 0o755))
	t.Cleanup(func() { os.Remove(exe) })
	cmd := roleCommand(t, exe, "exit")
	cmd.Dir, cmd.SysProcAttr = "/", nobody
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != roleExit {
		if inCI() {
			t.Fatalf("%s", out)
		}
		t.Skipf("%s", out)
	}
	return exe
}

func TestIsolateUnprivileged(t *testing.T) {
	cmd := roleCommand(t, forNobody(t), "network")
	cmd.Dir, cmd.SysProcAttr, cmd.Stderr = "/", nobody, os.Stderr
	out, err := cmd.Output()
	if err != nil || string(out) != networkOutput {
		t.Fatalf("%v, output %q", err, out)
	}
}

// TestEnterCommand types the command outside, as root and as the user without
// privilege that started the lab.
func TestEnterCommand(t *testing.T) {
	if _, err := exec.LookPath("nsenter"); err != nil {
		if inCI() {
			t.Fatal(err)
		}
		t.Skip("nsenter is not installed")
	}
	run := func(t *testing.T, exe string, attr *syscall.SysProcAttr) {
		_, _, enter := startHold(t, exe, attr)
		cmd := exec.Command("sh", "-c", enter+" ip -br link")
		cmd.Dir, cmd.SysProcAttr = "/", attr
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), holdDev) {
			t.Errorf("%s: %v: %s", enter, err, out)
		}
	}
	t.Run("same user", func(t *testing.T) { Require(t); run(t, "/proc/self/exe", nil) })
	t.Run("nobody", func(t *testing.T) { run(t, forNobody(t), nobody) })
}

// startHold runs the role "hold" until the test ends, and returns the outer process,
// the ids of the inner one and of one on its host, and the host's enter command.
func startHold(t *testing.T, exe string, attr *syscall.SysProcAttr) (outer *exec.Cmd, pids [2]int, enter string) {
	t.Helper()
	outer = roleCommand(t, exe, "hold")
	outer.Dir, outer.SysProcAttr, outer.Stderr = "/", attr, os.Stderr
	stdin := must(outer.StdinPipe())(t)
	stdout := must(outer.StdoutPipe())(t)
	check(t, outer.Start())
	t.Cleanup(func() {
		stdin.Close()
		_ = outer.Process.Kill() // it may have ended
		_ = outer.Wait()
		for _, pid := range pids {
			waitGone(t, pid)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	check(t, err)
	_, err = fmt.Sscan(line, &pids[0], &pids[1])
	check(t, err)
	_, enter, _ = strings.Cut(strings.TrimSpace(line), " nsenter")
	return outer, pids, "nsenter" + enter
}

func TestIsolateExitCode(t *testing.T) {
	Require(t)
	var exit *exec.ExitError
	if err := roleCommand(t, "/proc/self/exe", "exit").Run(); !errors.As(err, &exit) || exit.ExitCode() != roleExit {
		t.Fatalf("got %v, want exit code %d", err, roleExit)
	}
}

// TestIsolateEnds kills or signals the outer process and sees that the inner one
// and what it started on a host go too.
func TestIsolateEnds(t *testing.T) {
	Require(t)
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, pids, _ := startHold(t, "/proc/self/exe", nil)
			check(t, cmd.Process.Signal(sig))
			err := cmd.Wait()
			if want := 128 + int(sig); sig != unix.SIGKILL && cmd.ProcessState.ExitCode() != want {
				t.Errorf("exit code %d (%v), want %d", cmd.ProcessState.ExitCode(), err, want)
			}
			for _, pid := range pids {
				waitGone(t, pid)
			}
		})
	}
}

// waitGone waits until a process has ended: it is gone, or nobody's zombie.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return
		}
		if _, after, ok := bytes.Cut(stat, []byte(") ")); ok && after[0] == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d still lives: %s", pid, stat)
		}
	}
}

func TestMarkAloneIsNotInside(t *testing.T) {
	m, err := here()
	check(t, err)
	for _, tc := range []struct {
		name, env string
	}{
		{"nothing", ""},
		{"words", "yes"},
		{"the very namespaces we are in", m.env() + "ready"},
		{"another network, the same mounts", mark{net: 1, mnt: m.mnt, state: "ready"}.env()},
		{"the same network, other mounts", mark{net: m.net, mnt: 1, state: "ready"}.env()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(markEnv, tc.env)
			if Inside() {
				t.Errorf("inside with %s=%q", markEnv, tc.env)
			}
			if n, err := New(); !errors.Is(err, ErrNotInside) {
				t.Errorf("New: %v, %v", n, err)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	refused := fmt.Errorf("fork/exec: %w", unix.EPERM)
	for _, tc := range []struct {
		name    string
		sysctls map[string]string
		want    []string
	}{
		{"debian", map[string]string{"kernel/unprivileged_userns_clone": "0"}, []string{"sysctl -w kernel.unprivileged_userns_clone=1"}},
		{"ubuntu", map[string]string{"kernel/unprivileged_userns_clone": "1", "kernel/apparmor_restrict_unprivileged_userns": "1"},
			[]string{"AppArmor", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"}},
		{"limit", map[string]string{"user/max_user_namespaces": "0"}, []string{"sysctl -w user.max_user_namespaces=15000"}},
		{"container", nil, []string{"--cap-add SYS_ADMIN"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := explain(refused, func(key string) (string, bool) { v, ok := tc.sysctls[key]; return v, ok })
			var u *UnavailableError
			if !errors.As(err, &u) || !errors.Is(err, unix.EPERM) {
				t.Fatalf("%v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q lacks %q", err, w)
				}
			}
		})
	}
}

type fakeM struct{ ran bool }

func (m *fakeM) Run() int { m.ran = true; return 3 }

func TestMainRunsInside(t *testing.T) {
	Require(t)
	m := &fakeM{}
	if code := mainTo(m, io.Discard); code != 3 || !m.ran {
		t.Errorf("code %d, ran %t", code, m.ran)
	}
}
