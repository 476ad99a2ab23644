package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxExecs is how many commands run at once. Each takes a thread and a process; a
	// script that hangs must not take this machine down with its backend.
	maxExecs = 512
	// outputGrace is how long output is waited for after the command has ended: a
	// process that left its group may hold the pipe open.
	outputGrace = 100 * time.Millisecond
	// defaultPath is PATH when weir itself was started without one.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

var execSlots = make(chan struct{}, maxExecs)

// askExec runs the check's command: no shell, nothing of weir's environment but PATH, in
// a process group of its own, of which nothing is left when it returns. A command that
// cannot be started says nothing of the backend.
func askExec(ctx context.Context, t *Target) (string, error) {
	select {
	case execSlots <- struct{}{}:
		defer func() { <-execSlots }()
	default:
		return "", localError{fmt.Errorf("%d commands are running already", maxExecs)}
	}
	if len(t.Check.Args) == 0 {
		return "", localError{errors.New("no command")}
	}
	var out firstLine
	cmd := exec.Command(t.Check.Args[0], t.Check.Args[1:]...)
	cmd.Env = []string{
		"PATH=" + orElse(os.Getenv("PATH"), defaultPath),
		"WEIR_ADDRESS=" + t.Addr.String(),
		"WEIR_PORT=" + strconv.Itoa(int(t.port())),
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = outputGrace
	if err := cmd.Start(); err != nil {
		return "", localError{err}
	}
	err := waitGroup(ctx, cmd)
	if ctx.Err() != nil && err != nil {
		return "", ctx.Err()
	}
	return judgeExit(err, out.String())
}

// waitGroup waits for the command and kills its process group, at the latest when ctx
// ends. The group is only killed while its leader has not been reaped: until then its
// number cannot be another's.
func waitGroup(ctx context.Context, cmd *exec.Cmd) error {
	pid := cmd.Process.Pid
	kill := func() { unix.Kill(-pid, unix.SIGKILL) }
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { kill(); close(killed) })
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	if !stop() {
		<-killed
	}
	kill() // what it left running
	err := cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil // it ended well; who holds its output does not count
	}
	return err
}

func judgeExit(err error, line string) (string, error) {
	if err == nil {
		return orElse(line, "exit status 0"), nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return "", localError{err}
	}
	if line != "" {
		line = ": " + line
	}
	return "", errors.New(exit.String() + line)
}

// firstLine keeps the first line of what is written, as much of it as a Detail can show,
// and drops the rest.
type firstLine struct {
	line []byte
	done bool
}

func (f *firstLine) Write(p []byte) (int, error) {
	if !f.done {
		part, _, ended := bytes.Cut(p, []byte("\n"))
		f.line = append(f.line, part[:min(len(part), MaxDetail+1-len(f.line))]...)
		f.done = ended || len(f.line) > MaxDetail
	}
	return len(p), nil
}

func (f *firstLine) String() string { return string(f.line) }
