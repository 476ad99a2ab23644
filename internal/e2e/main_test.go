package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"weir/internal/lab"
)

// binary is the weir that the tests run.
var binary string

func TestMain(m *testing.M) { os.Exit(lab.Main(builder{m})) }

// builder builds weir before the tests, once, and only where they can use it.
type builder struct{ m *testing.M }

// Run implements what lab.Main wants.
func (b builder) Run() int {
	if !lab.Inside() {
		return b.m.Run() // every test skips, or fails in CI
	}
	dir, err := os.MkdirTemp("", "weir-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "weir")
	cmd := exec.Command("go", "build", "-o", binary, "weir/cmd/weir")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build weir: %v\n%s", err, out)
		return 1
	}
	return b.m.Run()
}

// needTool skips the test where a program is missing that it looks with, and fails it
// in CI.
func needTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
}
