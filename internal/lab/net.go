package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by what is asked of a closed Net.
var ErrClosed = errors.New("lab: network is closed")

// Net is one network: its hosts and all that was started in them. It is safe for
// concurrent use.
type Net struct {
	mu       sync.Mutex
	closed   bool
	hosts    []*Host
	procs    map[*Process]struct{}
	closers  map[io.Closer]struct{} // servers, captures and the like
	switches int
}

// New returns an empty network. The process must have been started by Isolate or
// Main, else the error is ErrNotInside.
func New() (*Net, error) {
	if !Inside() {
		return nil, ErrNotInside
	}
	if err := prepare(); err != nil {
		return nil, err
	}
	if _, err := home(); err != nil {
		return nil, err
	}
	return &Net{procs: map[*Process]struct{}{}, closers: map[io.Closer]struct{}{}}, nil
}

// home is the namespace of the process, to which threads return. It is looked up
// before the first host exists, while no thread can be elsewhere, and never closed:
// the way back is always there.
var home = sync.OnceValues(func() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lab: network namespace of this process: %w", err)
	}
	return f, nil
})

// Close ends every process, server and capture that was started in the network and
// waits for them, then lets the namespaces go. Closing twice is fine.
func (n *Net) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	procs, closers, hosts := n.procs, n.closers, n.hosts
	n.procs, n.closers, n.hosts = nil, nil, nil
	n.mu.Unlock()

	var errs []error
	for p := range procs {
		p.Kill()
	}
	for c := range closers {
		errs = append(errs, c.Close())
	}
	for _, h := range slices.Backward(hosts) {
		h.close()
	}
	return errors.Join(errs...)
}

// own registers something that Close closes; it fails when the network is closed.
func (n *Net) own(c io.Closer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	n.closers[c] = struct{}{}
	return nil
}

func (n *Net) disown(c io.Closer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.closers, c)
}

// onOwnThread runs fn on a goroutine locked to a thread that is not the main one.
// fn decides whether the thread lives on: if it does not unlock, the thread ends
// with it. The main thread is avoided because Go cannot end it, and because what
// the kernel shows of "the process" (/proc/self, nsenter -t) is the main thread.
func onOwnThread(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn()
			return
		}
		// Hold the main thread until another is found, so that it is not this one again.
		found := make(chan struct{})
		onOwnThread(func() { close(found); fn() })
		<-found
		runtime.UnlockOSThread()
	}()
}
