package lab

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// UnavailableError says that the kernel refused the namespaces, what stands in the
// way and what would change that.
type UnavailableError struct {
	Missing string // what is missing, in words
	Fix     string // what to do about it, a command where there is one
	Err     error  // the kernel's answer
}

// Error returns the three in one line.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("lab: cannot make namespaces: %s (%v); %s", e.Missing, e.Err, e.Fix)
}

// Unwrap returns the kernel's answer.
func (e *UnavailableError) Unwrap() error { return e.Err }

// privileged reports whether this process can make and run network namespaces
// without a user namespace around them.
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&header, &data[0]) != nil {
		return false
	}
	for _, c := range []uint{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}

func readProcSys(key string) (string, bool) {
	b, err := os.ReadFile("/proc/sys/" + key)
	return strings.TrimSpace(string(b)), err == nil
}

// obstacles are the switches that forbid namespaces, the most likely first. The
// first two that are absent on a kernel are Debian's and Ubuntu's own.
var obstacles = []struct{ key, bad, missing, good string }{
	{"kernel/unprivileged_userns_clone", "0", "unprivileged user namespaces are switched off", "1"},
	{"kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts unprivileged user namespaces", "0"},
	{"user/max_user_namespaces", "0", "the number of user namespaces is limited to 0", "15000"},
	{"user/max_net_namespaces", "0", "the number of network namespaces is limited to 0", "15000"},
	{"user/max_mnt_namespaces", "0", "the number of mount namespaces is limited to 0", "15000"},
}

// explain turns the refusal of the kernel into an *UnavailableError.
func explain(err error, read func(key string) (string, bool)) error {
	e := &UnavailableError{
		Missing: "the kernel refused, and no switch in /proc/sys says why",
		Fix: "run it as root; in a container, the container needs --cap-add SYS_ADMIN --cap-add NET_ADMIN, " +
			"or a seccomp profile that allows user namespaces",
		Err: err,
	}
	if _, statErr := os.Stat("/proc/self/ns/user"); statErr != nil && !privileged() {
		e.Missing, e.Fix = "this kernel has no user namespaces (CONFIG_USER_NS)", "run it as root"
		return e
	}
	for _, o := range obstacles {
		if v, ok := read(o.key); ok && v == o.bad {
			key := strings.ReplaceAll(o.key, "/", ".")
			e.Missing = fmt.Sprintf("%s (%s=%s)", o.missing, key, v)
			e.Fix = fmt.Sprintf("run it as root, or allow it: sudo sysctl -w %s=%s", key, o.good)
			return e
		}
	}
	return e
}
