package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/state"
)

func (e *env) confirmCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "confirm",
		Short: "Keep the change of weir apply --confirm, which else goes back by itself",
		Long: `Keep the change of weir apply --confirm, which else goes back by itself. Exit code 1:
there is nothing to confirm, or its time was over.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.confirm(c.Context()) },
	}
	e.stateFlag(c)
	return c
}

func (e *env) confirm(ctx context.Context) error {
	defer e.progress("waiting for weir")()
	var out api.Confirmed
	err := ask(func(w *api.Client) (err error) {
		out, err = w.Confirm(ctx)
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		out, err = e.confirmAlone()
	}
	if err != nil {
		return conflict(err)
	}
	return e.print(out, func() error {
		_, err := fmt.Fprintf(e.stdout, "confirmed: %s\n", out.File)
		return err
	})
}

// confirmAlone is confirm where no weir runs.
func (e *env) confirmAlone() (api.Confirmed, error) {
	var out api.Confirmed
	store := keep.Beside(e.state)
	rec, err := store.Read()
	if err != nil {
		return out, needsRights(err)
	}
	if rec.Pending == nil {
		return out, engine.ErrNothing
	}
	lock, err := lockNamespace("")
	if err != nil {
		return out, err
	}
	defer lock.Close()
	if rec, err = store.Read(); err != nil {
		return out, err
	}
	switch p := rec.Pending; {
	case p == nil:
		return out, engine.ErrNothing
	case rec.Place.Elsewhere(keep.Here()):
		return out, elsewhere(store)
	case p.Left(keep.Now()) <= 0:
		err := fmt.Errorf("%w: the time of %s was over", engine.ErrNothing, p.File)
		// Whoever should have gone back is not there any more.
		return out, errors.Join(err, startGuard(e.state, p.ID))
	}
	rec.Confirm()
	if err := store.Write(rec, ""); err != nil {
		return out, fmt.Errorf("not confirmed, for that could not be written down: %w", err)
	}
	return api.Confirmed{File: rec.Confirmed.File, At: rec.Confirmed.At}, nil
}

// conflict makes what a running weir says of changes that wait an error that is no mistake
// on the command line.
func conflict(err error) error {
	var said *api.Error
	if errors.As(err, &said) && said.Code == http.StatusConflict {
		return said
	}
	return err
}

// whoami is who runs this command.
func whoami() *state.Operator {
	o := &state.Operator{UID: uint32(os.Getuid()), PID: int32(os.Getpid())}
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		o.User = u.Username
	}
	return o
}
