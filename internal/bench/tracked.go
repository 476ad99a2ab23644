package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

// trackedFile is the most connections that the kernel keeps of one namespace: one number for
// all of them, which may be written in the first alone.
const trackedFile = "/proc/sys/net/netfilter/nf_conntrack_max"

// raiseTracked raises the number in the file, where it is below want and may be written, and
// returns what puts it back. Until then the process outlives the signals that would end it;
// those who started others pass them on.
func raiseTracked(path string, want int, stderr io.Writer) (restore func()) {
	text, err := os.ReadFile(path)
	if err != nil {
		return func() {}
	}
	old := strings.TrimSpace(string(text))
	if have, err := strconv.Atoi(old); err != nil || have >= want {
		return func() {}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	raised := strconv.Itoa(want)
	if err := os.WriteFile(path, []byte(raised), 0o644); err != nil {
		signal.Stop(signals)
		return func() {}
	}
	return func() {
		defer signal.Stop(signals)
		now, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(now)) == raised { // else somebody else has changed it
			err = os.WriteFile(path, []byte(old), 0o644)
		}
		if err != nil {
			fmt.Fprintf(stderr, "bench: %s was %s and could not be put back: %v\n", path, old, err)
		}
	}
}
