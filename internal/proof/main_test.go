package proof

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(runner{m})) }

// runner gives the tests a place for the weir that they share.
type runner struct{ m *testing.M }

// Run implements what lab.Main wants.
func (r runner) Run() int {
	dir, err := os.MkdirTemp("", "weir-proof-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	weirPath = filepath.Join(dir, "weir")
	return r.m.Run()
}

var weirPath string

// built builds weir for the first test that wants it.
var built = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-o", weirPath, "weir/cmd/weir")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build weir: %w\n%s", err, out)
	}
	return nil
})

// build returns the path of a weir.
func build(tb testing.TB) string {
	check(tb, built())
	return weirPath
}

// check ends the test if err is not nil.
func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// must returns v of a call that has to work.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		check(tb, err)
		return v
	}
}

// tool skips the test where a program is missing; in CI that is a failure.
func tool(tb testing.TB, name string) {
	tb.Helper()
	_, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		tb.Fatal(err)
	default:
		tb.Skip(err)
	}
}
