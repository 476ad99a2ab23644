package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// runtimeDir is where weir keeps what lives as long as the machine runs: the directory
// that systemd made for it (RuntimeDirectory=weir), or /run/weir.
func runtimeDir() string {
	if dir := os.Getenv("RUNTIME_DIRECTORY"); dir != "" {
		return dir
	}
	return "/run/weir"
}

// namespaceFile returns the path of a runtime file of the network namespace that weir
// runs in: there may be one weir in each.
func namespaceFile(suffix string) (string, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("find the network namespace: %w", err)
	}
	return filepath.Join(runtimeDir(), fmt.Sprintf("net-%d.%s", ns.Ino, suffix)), nil
}

// A guard that goes back has the lock for a moment, and is waited for.
const (
	lockGuard = "guard"
	lockLook  = 20 * time.Millisecond
)

// lockPatience returns how long to wait for a lock that somebody has: it may be a command
// that is about to end, or a guard that has not said so yet.
func lockPatience(f *os.File) time.Duration {
	who := make([]byte, len(lockGuard))
	if n, _ := f.ReadAt(who, 0); string(who[:n]) == lockGuard {
		return 10 * time.Second
	}
	return 100 * time.Millisecond
}

// markLock writes into the lock who has it.
func markLock(f *os.File, who string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(who), 0)
	return err
}

// lockNamespace makes sure that one weir at a time changes a network namespace. The lock
// is gone with the process, however it ends. who is lockGuard, or "" for anybody else.
func lockNamespace(who string) (*os.File, error) {
	path, err := namespaceFile("lock")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, needsRights(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, needsRights(err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for start := time.Now(); errors.Is(err, unix.EWOULDBLOCK) && time.Since(start) < lockPatience(f); {
		time.Sleep(lockLook)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = markLock(f, who)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.New("another weir is at work in this network namespace (is `weir run` active? " +
				"then `weir reload` has it load the file again; or stop it first)")
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}
