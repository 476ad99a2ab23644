package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/engine"
)

// applyReport is the JSON of `weir apply`.
type applyReport struct {
	Changed  bool     `json:"changed"`
	Summary  string   `json:"summary"`
	ReadMS   float64  `json:"read_ms"`
	PlanMS   float64  `json:"plan_ms"`
	CommitMS float64  `json:"commit_ms"`
	Added    []string `json:"addresses_added"`
	Removed  []string `json:"addresses_removed"`
	Warnings []string `json:"warnings"`
}

func (e *env) applyCmd() *cobra.Command {
	var lockMeOut bool
	c := &cobra.Command{
		Use:   "apply",
		Short: "Make the kernel do what the configuration says, once, and exit",
		RunE:  func(c *cobra.Command, _ []string) error { return e.apply(c.Context(), lockMeOut) },
	}
	addLockFlag(c.Flags(), &lockMeOut)
	return c
}

func (e *env) apply(ctx context.Context, lockMeOut bool) error {
	defer e.progress("applying " + e.config)()
	cfg, err := config.Load(e.config)
	if err != nil {
		return err
	}
	if err := (guard{lockMeOut, sshSession()}).check(e.config, cfg); err != nil {
		return err
	}
	k, err := openKernel(true)
	if err != nil {
		return err
	}
	defer k.close()
	rep, err := k.Apply(ctx, cfg)
	if err != nil {
		return needsRights(err)
	}
	out := newApplyReport(rep)
	out.Warnings = append(out.Warnings, forwarding(cfg)...)
	return e.print(out, func() error {
		for _, w := range out.Warnings {
			fmt.Fprintln(e.stderr, "weir: warning:", w)
		}
		if !out.Changed {
			_, err := fmt.Fprintln(e.stdout, "nothing to change")
			return err
		}
		_, err := fmt.Fprintf(e.stdout, "applied: %s\n", out.Summary)
		return err
	})
}

func newApplyReport(rep engine.Report) applyReport {
	out := applyReport{Summary: rep.Delta.Summary(), Added: []string{}, Removed: []string{}, Warnings: []string{},
		ReadMS:   rep.Read.Seconds() * 1000,
		PlanMS:   rep.Plan.Seconds() * 1000,
		CommitMS: rep.Commit.Seconds() * 1000,
	}
	var words []string
	if !rep.Delta.Empty() {
		words = append(words, out.Summary)
	}
	for _, w := range rep.Addresses.Added {
		out.Added = append(out.Added, w.Addr.String()+" on "+w.Dev)
	}
	for _, h := range rep.Addresses.Removed {
		out.Removed = append(out.Removed, h.Prefix.Addr().String()+" on "+h.Dev)
	}
	if len(out.Added) > 0 {
		words = append(words, "addresses added: "+strings.Join(out.Added, ", "))
	}
	if len(out.Removed) > 0 {
		words = append(words, "addresses removed: "+strings.Join(out.Removed, ", "))
	}
	for _, h := range rep.Addresses.Foreign {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%s is on %s already, put there by somebody else: it stays as it is, also when weir goes",
			h.Prefix.Addr(), h.Dev))
	}
	for _, d := range slices.Compact(rep.Addresses.Down) {
		out.Warnings = append(out.Warnings, fmt.Sprintf("device %s is down", d))
	}
	out.Changed = len(words) > 0
	out.Summary = strings.Join(words, "; ")
	return out
}

// clearReport is the JSON of `weir clear`.
type clearReport struct {
	Removed bool `json:"removed"`
}

func (e *env) clearCmd() *cobra.Command {
	return &cobra.Command{
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
}
