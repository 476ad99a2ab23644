package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"weir/internal/lab"
)

// TestOtherUser has another user of the machine speak to weir: nothing of it is heard.
func TestOtherUser(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	if lab.InUserNamespace() {
		t.Skip("only root can be somebody else")
	}
	s, _ := checkedSite(t, 2)
	a := s.Backends[0]
	dir, err := os.MkdirTemp("", "weir-other-") // the tests' own directories are closed to others
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	program, err := os.ReadFile(binary)
	check(t, err)
	path := filepath.Join(dir, "weir")
	check(t, os.WriteFile(path, program, 0o755))
	check(t, os.Chmod(path, 0o755)) // whatever the umask is
	for _, args := range [][]string{
		{"drain", "web", a.V4.String()}, {"disable", "web", a.V4.String()}, {"weight", "web", a.V4.String(), "5"},
		{"reload"}, {"events"},
	} {
		cmd := s.Gateway.Command(path, args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		p, err := s.Gateway.Start(cmd)
		check(t, err)
		_ = p.Wait() // the code says it
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(out.String(), "permission denied") {
			t.Errorf("weir %s as another user: exit code %d, %s", strings.Join(args, " "), code, &out)
		}
	}
	if b := s.backendStatus("web", a.V4.String()); b.State != "up" || b.Weight != 1 {
		t.Errorf("another user changed something: %+v", b)
	}
	s.among(t, "after another user", 4, s.Backends...)
	s.stop()
}
