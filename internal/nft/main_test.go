package nft

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// netns is a network namespace that a test runs in.
type netns struct {
	tb testing.TB
	*Conn
}

// namespace moves the test into a fresh network namespace and connects to it. The thread
// is not given back and ends with the test, and the namespace with it.
func namespace(tb testing.TB) netns {
	tb.Helper()
	lab.Require(tb)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatal("new network namespace:", err)
	}
	c, err := Open()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return netns{tb, c}
}

// missing skips the test where something is missing; in CI that is a failure.
func missing(tb testing.TB, is bool, what string) {
	tb.Helper()
	switch {
	case !is:
	case os.Getenv("CI") == "true":
		tb.Fatal(what)
	default:
		tb.Skip(what)
	}
}

// nft runs the nft program in the test's namespace.
func (n netns) nft(stdin string, args ...string) string {
	n.tb.Helper()
	out, err := n.tryNft(stdin, args...)
	if err != nil {
		n.tb.Fatalf("nft %s: %v\n%s\n%s", strings.Join(args, " "), err, out, numbered(stdin))
	}
	return out
}

func (n netns) tryNft(stdin string, args ...string) (string, error) {
	n.tb.Helper()
	_, err := exec.LookPath("nft")
	missing(n.tb, err != nil, "nft is not installed")
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func numbered(s string) string {
	var b strings.Builder
	for i, line := range strings.Split(s, "\n") {
		fmt.Fprintf(&b, "%4d %s\n", i+1, line)
	}
	return b.String()
}
