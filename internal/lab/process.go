package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runTimeout bounds a command of Run.
const runTimeout = time.Minute

// Process is a program that runs on a host. It and all it started (its process
// group) end at the latest with the Net.
type Process struct {
	cmd  *exec.Cmd
	host *Host
	done chan struct{}
	err  error // of Wait; set before done is closed

	mu    sync.Mutex
	ended bool // the leader has ended: its id may belong to somebody else soon
}

// Command prepares a program, to be started with Start.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command(name, args...)
}

// Start starts cmd on the host. The Process waits for it: do not call cmd.Wait. It
// gets a process group of its own, so that Ctrl-C at a terminal does not reach it:
// the lab ends it.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL // the keeper's life is the host's
	cmd.SysProcAttr.Setpgid = true
	p := &Process{cmd: cmd, host: h, done: make(chan struct{})}
	if err := h.onKeeper(cmd.Start); err != nil {
		return nil, fmt.Errorf("lab: %s: start %s: %w", h.Name, cmd.Path, err)
	}
	go p.wait()
	n := h.net
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.procs[p] = struct{}{}
	}
	n.mu.Unlock()
	if closed {
		p.Kill()
		return nil, ErrClosed
	}
	return p, nil
}

// onKeeper runs fn on the host's keeper thread.
func (h *Host) onKeeper(fn func() error) error {
	errc := make(chan error, 1)
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return ErrClosed
	}
	h.starts <- func() { errc <- fn() }
	return <-errc
}

// wait ends the group when its leader has ended, before the leader is reaped: until
// then nobody else can have its id.
func (p *Process) wait() {
	pid := p.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	p.mu.Lock()
	_ = unix.Kill(-pid, unix.SIGKILL)
	p.ended = true
	p.mu.Unlock()
	p.err = p.cmd.Wait()
	p.host.net.mu.Lock()
	delete(p.host.net.procs, p)
	p.host.net.mu.Unlock()
	close(p.done)
}

// PID returns the process id of the program.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns what exec.Cmd.Wait returned. Any number may
// wait.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the program alone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the program and its process group with SIGKILL and waits for the end.
func (p *Process) Kill() {
	p.mu.Lock()
	if !p.ended {
		_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	}
	p.mu.Unlock()
	<-p.done
}

// Run runs a program on the host to its end, at most a minute, and returns what it
// wrote to standard output and error. The error names the command and ends with
// that output.
func (h *Host) Run(name string, args ...string) (string, error) {
	cmd := h.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := h.Start(cmd)
	if err != nil {
		return "", err
	}
	timer := time.NewTimer(runTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		err = p.err
	case <-timer.C:
		p.Kill()
		err = fmt.Errorf("did not end within %s", runTimeout)
	}
	if err != nil {
		line := strings.Join(append([]string{name}, args...), " ")
		err = fmt.Errorf("lab: %s: %s: %w: %s", h.Name, line, err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
}
