package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/keep"
)

// The guard is a process of its own that goes back when the time of a change is over and no
// weir runs that does. It holds nothing but the name of the change: what there is to do is
// in the record, and whoever has the lock of the namespace does it.

// guardLook is how often the guard looks whether the change still waits.
const guardLook = time.Second

// guardPatience is how many looks in a row may fail; then there is no record any more.
const guardPatience = 60

// guardWords is what the guard says, on descriptor 3, when it is there.
const guardWords = "here\n"

func (e *env) guardCmd() *cobra.Command {
	var id string
	c := &cobra.Command{
		Use:    "guard",
		Short:  "Go back when the time of a change is over (weir starts it by itself)",
		Hidden: true,
		RunE:   func(c *cobra.Command, _ []string) error { return e.guard(c.Context(), id) },
	}
	c.Flags().StringVar(&id, "id", "", "the change")
	e.stateFlag(c)
	return c
}

// startGuard starts the guard of a change, in a session of its own: what ends this one does
// not end it. It returns once the guard is there.
func startGuard(state, id string) error {
	state, err := filepath.Abs(state)
	if err != nil {
		return err
	}
	said, says, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	// Not os.Executable: the file may have been replaced since.
	cmd := exec.Command("/proc/self/exe", "guard", "--state", state, "--id", id)
	cmd.Args[0], cmd.Dir, cmd.ExtraFiles = os.Args[0], "/", []*os.File{says}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	says.Close()
	if err != nil {
		return fmt.Errorf("start the guard: %w", err)
	}
	go func() { _ = cmd.Wait() }() // if it ends before this process does
	_ = said.SetReadDeadline(time.Now().Add(10 * time.Second))
	text, err := io.ReadAll(io.LimitReader(said, 4096))
	if string(text) != guardWords {
		return fmt.Errorf("start the guard: it did not come up: %s", errors.Join(err, errors.New(string(text))))
	}
	return nil
}

// guard waits until the change is confirmed, replaced or taken back; when its time is over
// and nobody else does it, it takes it back.
func (e *env) guard(ctx context.Context, id string) error {
	signal.Ignore(syscall.SIGHUP)
	store := keep.Beside(e.state)
	rec, err := store.Read()
	report := os.NewFile(3, "report")
	if err != nil {
		fmt.Fprint(report, err)
		report.Close()
		return err
	}
	fmt.Fprint(report, guardWords)
	report.Close()
	failed := 0 // looks in a row
	for rec.Pending != nil && rec.Pending.ID == id && failed < guardPatience {
		wait := min(guardLook, rec.Pending.Left(keep.Now()))
		if wait <= 0 {
			_ = e.takeBack(ctx, id) // the record tells whether it is done
			wait = guardLook / 4
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		next, e := store.Read()
		if err = e; err != nil {
			failed++
			continue
		}
		rec, failed = next, 0
	}
	return err
}

// takeBack goes back, unless somebody else is at work in this namespace.
func (e *env) takeBack(ctx context.Context, id string) error {
	b, err := e.openBook(lockGuard)
	if err != nil {
		return err
	}
	defer b.close()
	if b.rec.Pending == nil || b.rec.Pending.ID != id {
		return nil
	}
	return b.back(ctx)
}
