package proof

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// build builds weir for a test and returns its path.
func build(tb testing.TB) string {
	path := filepath.Join(tb.TempDir(), "weir")
	cmd := exec.Command("go", "build", "-o", path, "weir/cmd/weir")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build weir: %v\n%s", err, out)
	}
	return path
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
