package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"weir/internal/lab"
)

// retried returns how many SYNs the host sent again because nothing came back. That, and not
// a time, tells whether a client was answered at once: a loaded machine may take its time.
func retried(t *testing.T, h *lab.Host) int {
	t.Helper()
	n := -1
	err := h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		// The names are on one line, their values on the next.
		lines := strings.Split(string(text), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			values := strings.Fields(lines[i+1])
			for j, name := range strings.Fields(lines[i]) {
				if name == "TCPSynRetrans" && j < len(values) {
					n, err = strconv.Atoi(values[j])
				}
			}
		}
		return err
	})
	if err != nil || n < 0 {
		t.Fatalf("no number of repeated SYNs: %v", err)
	}
	return n
}

// wantNoRetry sees that no more SYNs than before were sent again.
func wantNoRetry(t *testing.T, what string, h *lab.Host, before int) {
	t.Helper()
	if n := retried(t, h) - before; n > 0 {
		t.Errorf("%s: %d SYNs had to be sent again", what, n)
	}
}
