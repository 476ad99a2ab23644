package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/lab"
)

// demoCmd returns `weir demo` as a shell would start it: it makes namespaces of its own,
// and its files are where the test can look for them.
func demoCmd(t *testing.T, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	lab.Require(t)
	tmp = t.TempDir()
	cmd = exec.Command(binary, append([]string{"demo", "--step", "1s", "--rate", "100"}, args...)...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "WEIR_LAB") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, tmp
}

func leftovers(t *testing.T, tmp string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// TestDemo: all backends are served, no request fails, and copies show all that clients sent and
// got, through changes of the configuration too.
func TestDemo(t *testing.T) {
	cmd, tmp := demoCmd(t, "-o", "json")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	var res struct {
		Requests, Failed int
		Backends         map[string]int
		Tap              *struct {
			Packets, Lost, Flows, Connections, Retransmissions, Resets uint64

			P50 *float64 `json:"answer_p50_ms"`
		}
		Clients struct{ Packets, Connections, Retransmissions, Resets uint64 }
	}
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if res.Failed != 0 || res.Requests < 200 || len(res.Backends) != 3 {
		t.Errorf("%+v", res)
	}
	c := res.Clients
	switch got := res.Tap; { // a client may use a port again, so flows are some fewer
	case got == nil:
		t.Errorf("nobody looked at copies: %s", stderr.String())
	case c.Connections != uint64(res.Requests) || c.Packets < 5*c.Connections:
		t.Errorf("the clients counted %+v for %d requests", c, res.Requests)
	case got.Packets != c.Packets || got.Connections != c.Connections || got.Flows > c.Connections || got.Flows < c.Connections*9/10 || got.Lost != 0 || got.P50 == nil || *got.P50 <= 0:
		t.Errorf("copies show %+v, the clients counted %+v", *got, c)
	case got.Resets != c.Connections || c.Resets < c.Connections: // that is how they end
		t.Errorf("copies show %d resets, the clients sent %d", got.Resets, c.Resets)
	}
	leftovers(t, tmp)
}

// TestDemoInterrupted: on Ctrl-C, also while it is kept open, it ends and cleans up.
func TestDemoInterrupted(t *testing.T) {
	cmd, tmp := demoCmd(t, "--keep")
	cmd.SysProcAttr.Setpgid = true
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	seen := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			all.Write(buf[:n])
			if strings.Contains(all.String(), "stays open until Ctrl-C") && n > 0 {
				select {
				case seen <- all.String():
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-seen:
	case <-time.After(60 * time.Second):
		cmd.Process.Kill()
		t.Fatal("the demo did not come to the end of its steps")
	}
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		t.Fatal("the demo did not end")
	}
	leftovers(t, tmp)
}
