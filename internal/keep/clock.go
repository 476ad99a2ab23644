package keep

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the time by the clocks that a deadline is measured with.
type Clock struct {
	Wall      time.Time
	Boot      string        // /proc/sys/kernel/random/boot_id; "": not known
	SinceBoot time.Duration // CLOCK_BOOTTIME: it counts while the machine sleeps
}

var bootID = sync.OnceValue(func() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
})

// Here returns the network namespace of the calling thread.
func Here() Place {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return Place{}
	}
	return Place{Boot: bootID(), Net: ns.Ino}
}

// Now returns the time.
func Now() Clock {
	c := Clock{Wall: time.Now(), Boot: bootID()}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		c.Boot = "" // the wall clock must do
	}
	c.SinceBoot = time.Duration(ts.Nano())
	return c
}
