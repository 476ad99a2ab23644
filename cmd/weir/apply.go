package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/keep"
)

func (e *env) applyCmd() *cobra.Command {
	var within time.Duration
	var lockMeOut bool
	c := &cobra.Command{
		Use:   "apply",
		Short: "Make the kernel do what the configuration says, once, and exit",
		Long: `Make the kernel do what the configuration says, once, and exit. Where weir run is at work
it is that one which takes its file, as on weir reload.

With --confirm the change goes back by itself to the last confirmed configuration, unless
weir confirm is said within that time: also when this session is cut, and when a weir is
killed meanwhile. Until then only another apply --confirm is taken. What would cut off your
SSH session is refused with --confirm too.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("confirm") && (within < keep.MinWithin || within > keep.MaxWithin) {
				return usageError{fmt.Errorf("--confirm %s is not allowed; want a time from 1s to 24h, such as 60s or 5m", within)}
			}
			return e.apply(c.Context(), within, here(lockMeOut))
		},
	}
	c.Flags().DurationVar(&within, "confirm", 0, "go back after that `TIME` unless weir confirm is said")
	e.stateFlag(c)
	addLockFlag(c.Flags(), &lockMeOut)
	return c
}

func (e *env) apply(ctx context.Context, within time.Duration, who api.ReloadRequest) error {
	defer e.progress("applying " + e.config)()
	file, err := filepath.Abs(e.config)
	if err != nil {
		return err
	}
	var out api.Applied
	err = ask(func(w *api.Client) (err error) {
		out, err = w.Apply(ctx, api.ApplyRequest{ReloadRequest: who, Confirm: within, File: file})
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		out, err = e.applyAlone(ctx, within, who)
	}
	if err != nil {
		return conflict(err)
	}
	return e.print(out, func() error { return e.printApplied(out) })
}

func (e *env) printApplied(out api.Applied) error {
	for _, w := range out.Warnings {
		fmt.Fprintln(e.stderr, "weir: warning:", w)
	}
	words := "nothing to change"
	switch {
	case !out.Applied:
		words = "taken"
		e.pending(false)
	case out.Changed:
		words = "applied: " + out.Summary
	}
	if _, err := fmt.Fprintln(e.stdout, words); err != nil {
		return err
	}
	if out.Waiting == nil {
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, "goes back at %s unless it is confirmed: weir confirm\n", out.Waiting.Deadline.Local().Format(time.DateTime))
	return err
}

// applyAlone is apply where no weir runs.
func (e *env) applyAlone(ctx context.Context, within time.Duration, who api.ReloadRequest) (api.Applied, error) {
	var out api.Applied
	f, bad := e.readConfig()
	if bad == nil {
		bad = lockout(who).check(e.config, f.Config)
	}
	if bad == nil {
		bad = checkCollectors(e.config, f.Config)
	}
	if bad != nil && !e.overdue() {
		return out, bad
	}
	b, err := e.openBook("")
	if err != nil {
		return out, errors.Join(bad, err)
	}
	defer b.close()
	if err := errors.Join(b.due(ctx), bad); err != nil {
		for _, w := range b.warnings {
			fmt.Fprintln(e.stderr, "weir: warning:", w)
		}
		return out, err
	}
	if p := b.rec.Pending; p != nil && within == 0 {
		// If the guard was killed, there is one again.
		return out, errors.Join(engine.WaitingError(p, keep.Now()), startGuard(e.state, p.ID))
	}
	var rep engine.Report
	if within == 0 {
		rep, err = b.apply(ctx, f)
	} else {
		rep, err = b.propose(ctx, f, within)
	}
	if err != nil {
		return out, err
	}
	out = api.Applied{Outcome: rep.Outcome(), Applied: true, Waiting: engine.NewWaiting(b.rec.Pending, keep.Now())}
	out.Warnings = append(out.Warnings, append(b.warnings, listWarnings(b.lists.Status())...)...)
	out.Warnings = append(out.Warnings, warnings(f.Config)...)
	return out, nil
}

// readConfig reads the configuration.
func (e *env) readConfig() (engine.File, error) {
	cfg, text, err := config.Read(e.config)
	if err != nil {
		return engine.File{}, err
	}
	path, err := filepath.Abs(e.config)
	return engine.File{Path: path, Text: text, Config: cfg}, err
}

// clearReport is the JSON of `weir clear`.
type clearReport struct {
	Removed bool `json:"removed"`
}

func (e *env) clearCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "clear",
		Short: "Remove everything that is weir's from the kernel, and nothing else",
		RunE: func(c *cobra.Command, _ []string) error {
			defer e.progress("removing what is weir's")()
			k, err := openKernel(true)
			if err != nil {
				return err
			}
			defer k.close()
			removed, err := k.Clear(c.Context())
			if err != nil {
				return needsRights(err)
			}
			if err := e.forget(); err != nil {
				fmt.Fprintln(e.stderr, "weir: warning: what weir remembers of the configuration stays:", err)
			}
			return e.print(clearReport{removed}, func() error {
				words := "there was nothing of weir's"
				if removed {
					words = "removed all that was weir's"
				}
				_, err := fmt.Fprintln(e.stdout, words)
				return err
			})
		},
	}
	e.stateFlag(c)
	return c
}
