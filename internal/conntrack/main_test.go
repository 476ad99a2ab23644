package conntrack

import (
	"os"
	"os/exec"
	"testing"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// needKernel skips a test that has no namespace of its own or no nft to load rules
// with. In CI that is a failure.
func needKernel(t testing.TB) {
	t.Helper()
	lab.Require(t)
	if _, err := exec.LookPath("nft"); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("nft is not installed")
	}
	t.Skip("nft is not installed")
}
