package vip

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
)

func TestMain(m *testing.M) {
	oneProcessor()
	os.Exit(lab.Main(m))
}

// oneProcessor keeps this thread, and the processes it starts, on one processor. A veth
// device hands a frame over on the processor that sent it, so this keeps frames in order,
// and a frame that marks the end of what was sent comes last.
func oneProcessor() {
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return
	}
	for cpu := range 1024 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		fmt.Fprintln(os.Stderr, "tests of the order of frames may fail:", err)
	}
}

// needKernel skips a test that has no namespace of its own. In CI that is a failure.
func needKernel(t testing.TB) {
	t.Helper()
	lab.Require(t)
}
