package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/lists"
	"weir/internal/model"
)

// checkReport is the JSON of `weir check`.
type checkReport struct {
	File     string        `json:"file"`
	Valid    bool          `json:"valid"`
	Services int           `json:"services"`
	Backends int           `json:"backends"`
	Pools    int           `json:"pools"` // of egress
	Errors   config.Errors `json:"errors"`
	// Lists are the blocklists, as their files are now.
	Lists []lists.Status `json:"blocklists,omitempty"`
}

func (e *env) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and say all that is wrong with it",
		Long: `Check the configuration and say all that is wrong with it. Blocklists are read, too: what
is wrong with one is a warning, unless the list is strict. The kernel is not looked at.`,
		RunE: func(*cobra.Command, []string) error {
			rep := checkReport{File: e.config, Errors: config.Errors{}}
			cfg, err := config.Load(e.config)
			if err != nil {
				if e.output != "json" || !errors.As(err, &rep.Errors) {
					return err
				}
				return errors.Join(e.print(rep, nil), exitCode(exitUsage))
			}
			rep.Valid, rep.Services, rep.Pools = true, len(cfg.Services), len(cfg.Egress)
			e.warnHidden(cfg)
			for _, s := range cfg.Services {
				rep.Backends += len(s.Backends)
			}
			var bad error
			if len(cfg.Blocklists) > 0 {
				defer e.progress("reading the blocklists")()
				rep.Lists = e.fileLists(cfg).Status()
				bad = e.checkLists(cfg, &rep)
			}
			return errors.Join(e.print(rep, func() error { return e.printCheck(rep) }), bad)
		},
	}
}

// warnHidden tells of pools that never get a connection.
func (e *env) warnHidden(cfg *model.Config) {
	if e.output == "json" {
		return
	}
	hidden := cfg.Hidden()
	for _, p := range cfg.Egress {
		if before := hidden[p]; before != nil {
			fmt.Fprintf(e.stderr, "weir: warning: egress pool %s never gets a connection: pool %s before it matches all that it matches\n", p.Name, before.Name)
		}
	}
}

// checkLists says what is wrong with blocklists. It is an error where a strict one is not
// good.
func (e *env) checkLists(cfg *model.Config, rep *checkReport) error {
	for i, l := range cfg.Blocklists {
		if l.Strict && rep.Lists[i].Problem != "" {
			rep.Valid = false
		}
	}
	if e.output != "json" {
		for _, s := range rep.Lists {
			if s.Problem != "" {
				fmt.Fprintf(e.stderr, "weir: warning: blocklist %s is not good: %s\n", s.Name, s.Problem)
			}
			for _, line := range s.Skipped {
				fmt.Fprintf(e.stderr, "weir: warning: blocklist %s: skipped: %s\n", s.Name, line)
			}
		}
	}
	if !rep.Valid {
		return exitCode(exitUsage)
	}
	return nil
}

func (e *env) printCheck(rep checkReport) error {
	for _, s := range rep.Lists {
		if !s.InUse {
			continue
		}
		fmt.Fprintf(e.stdout, "blocklist %s: %s", s.Name, entriesText(s.Entries))
		for _, n := range []struct {
			n    int
			what string
		}{{s.Counts.Skipped, "skipped"}, {s.Counts.Duplicates, "duplicate"}, {s.Counts.Inside, "inside others"}, {s.Counts.Masked, "with host bits"}} {
			if n.n > 0 {
				fmt.Fprintf(e.stdout, ", %d %s", n.n, n.what)
			}
		}
		fmt.Fprintln(e.stdout)
	}
	word := "good"
	if !rep.Valid {
		word = "a strict blocklist is not good"
	}
	counts := plural(rep.Services, "service") + ", " + plural(rep.Backends, "backend")
	if rep.Pools > 0 {
		counts += ", " + plural(rep.Pools, "egress pool")
	}
	_, err := fmt.Fprintf(e.stdout, "%s: %s: %s\n", e.config, counts, word)
	return err
}

func (e *env) schemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration, for editors",
		RunE: func(*cobra.Command, []string) error {
			_, err := e.stdout.Write(config.Schema())
			return err
		},
	}
}
