package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/model"
)

// client returns a client of the weir that runs in this network namespace.
func client() (*api.Client, error) {
	path, err := namespaceFile("sock")
	if err != nil {
		return nil, err
	}
	return api.NewClient(path), nil
}

// ask calls fn with a client of the weir that runs in this network namespace.
func ask(fn func(*api.Client) error) error {
	w, err := client()
	if err != nil {
		return err
	}
	err = fn(w)
	var said *api.Error
	switch {
	case errors.Is(err, api.ErrNotRunning):
		return fmt.Errorf("%w: start it with `weir run`, or `systemctl start weir`", err)
	case !errors.As(err, &said):
		return err
	case len(said.Errors) > 0:
		return said.Errors
	case said.Code < http.StatusInternalServerError:
		return usageError{err}
	}
	return err
}

// effective returns cfg with the weights that the weir which runs in this network namespace
// would give its backends, and whether there is one.
func (e *env) effective(ctx context.Context, cfg *model.Config) (*model.Config, bool) {
	w, err := client()
	if err != nil {
		return cfg, false
	}
	known, err := w.Backends(ctx)
	if err == nil {
		return engine.EffectivePools(engine.Effective(cfg, known.Backends, time.Now()), known.Pools), true
	}
	if !errors.Is(err, api.ErrNotRunning) {
		fmt.Fprintf(e.stderr, "weir: warning: the weights are those of the file; the running weir cannot be asked: %v\n", err)
	}
	return cfg, false
}

const backendHelp = `
BACKEND is as weir status shows it (10.1.1.2:8080, "[2001:db8::2]:8080"), or its address
alone where the service has it once. What is said here survives restarts of weir.`

// backendArgs wants a service, a backend and perhaps more.
func backendArgs(more ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 2+len(more) {
			return usageError{fmt.Errorf("it is: weir %s; found %s", c.Use, plural(len(args), "word"))}
		}
		return nil
	}
}

func (e *env) drainCmd() *cobra.Command {
	var deadline time.Duration
	c := &cobra.Command{
		Use:   "drain SERVICE BACKEND",
		Short: "Give a backend no new connections; those that are open go on",
		Long:  "Give a backend no new connections; those that are open go on, until they end or the\ndeadline is over. `weir enable` takes it back.\n" + backendHelp,
		Args:  backendArgs(),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("deadline") && deadline <= 0 {
				return usageError{fmt.Errorf("--deadline %s is not allowed; want a time such as 10m", deadline)}
			}
			return e.say(func(w *api.Client) (api.Backend, error) { return w.Drain(c.Context(), args[0], args[1], deadline) })
		},
	}
	c.Flags().DurationVar(&deadline, "deadline", 0, "end what is open after that `TIME`, such as 10m")
	return c
}

func (e *env) disableCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "disable SERVICE BACKEND",
		Short: "Take a backend out at once, and do not check it any more",
		Long: "Take a backend out at once, and do not check it any more. UDP flows move to others, TCP\n" +
			"connections are left to themselves. `weir enable` takes it back.\n" + backendHelp,
		Args: backendArgs(),
		RunE: func(c *cobra.Command, args []string) error {
			return e.say(func(w *api.Client) (api.Backend, error) { return w.Disable(c.Context(), args[0], args[1]) })
		},
	}
}

func (e *env) enableCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "enable SERVICE BACKEND",
		Short: "Take drain or disable back; a weight stays",
		Long:  "Take drain or disable back; a weight that was said with `weir weight` stays.\n" + backendHelp,
		Args:  backendArgs(),
		RunE: func(c *cobra.Command, args []string) error {
			return e.say(func(w *api.Client) (api.Backend, error) { return w.Enable(c.Context(), args[0], args[1]) })
		},
	}
}

func (e *env) weightCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "weight SERVICE BACKEND N|file",
		Short: "Give a backend another weight than the file's; file takes it back",
		Long:  "Give a backend another weight than the file's; `file` takes it back.\n" + backendHelp,
		Args:  backendArgs("weight"),
		RunE: func(c *cobra.Command, args []string) error {
			weight, err := parseWeight(args[2])
			if err != nil {
				return err
			}
			return e.say(func(w *api.Client) (api.Backend, error) { return w.Weight(c.Context(), args[0], args[1], weight) })
		},
	}
}

// parseWeight reads a weight; nil is that of the file.
func parseWeight(word string) (*int, error) {
	if word == "file" {
		return nil, nil
	}
	n, err := strconv.Atoi(word)
	if err != nil || n < 0 || n > model.MaxWeight {
		return nil, usageError{fmt.Errorf("weight %q is not allowed; allowed: 0 to %d, or file", word, model.MaxWeight)}
	}
	return &n, nil
}

// say has weir take a word of a backend, and prints what became of it.
func (e *env) say(word func(*api.Client) (api.Backend, error)) error {
	defer e.progress("waiting for weir")()
	return ask(func(w *api.Client) error {
		b, err := word(w)
		if err != nil {
			return err
		}
		return e.print(b, func() error {
			text := fmt.Sprintf("%s %s: %s, weight %d", b.Service, b.Backend, b.State, b.Weight)
			if b.Reason != "" {
				text += " (" + b.Reason + ")"
			}
			_, err := fmt.Fprintln(e.stdout, text)
			e.pending(b.Applied)
			return err
		})
	})
}

// pending warns where the kernel does not follow yet.
func (e *env) pending(applied bool) {
	if !applied {
		fmt.Fprintln(e.stderr, "weir: warning: taken, but the kernel does not do so yet; weir tries again (weir events says what is in the way)")
	}
}

func (e *env) reloadCmd() *cobra.Command {
	var lockMeOut bool
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the running weir load its configuration again",
		Long: `Have the running weir load its configuration again: the file that weir run was given.
One with mistakes is refused with all of them (exit code 2), and the last good one stays.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.reload(c.Context(), lockMeOut) },
	}
	addLockFlag(c.Flags(), &lockMeOut)
	return c
}

func (e *env) reload(ctx context.Context, lockMeOut bool) error {
	defer e.progress("waiting for weir")()
	return conflict(ask(func(w *api.Client) error {
		r, err := w.Reload(ctx, here(lockMeOut))
		if err != nil {
			return err
		}
		return e.print(r, func() error {
			_, err := fmt.Fprintf(e.stdout, "taken: %s, %s\n", plural(r.Services, "service"), plural(r.Backends, "backend"))
			e.pending(r.Applied)
			return err
		})
	}))
}
