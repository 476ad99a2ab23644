package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/host"
	"weir/internal/model"
)

// doctorReport is the JSON of `weir doctor`.
type doctorReport struct {
	OK       bool           `json:"ok"`       // no error and no warning
	Running  bool           `json:"running"`  // a weir runs here, and answers
	Findings []host.Finding `json:"findings"` // the worst first
	Checked  []checkedItem  `json:"checked"`
	Errors   config.Errors  `json:"errors"` // mistakes in the configuration
}

// checkedItem is something that was looked at, and how much of it there is.
type checkedItem struct {
	What  string `json:"what"`
	Count int    `json:"count"`
}

func (e *env) doctorCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check all that weir needs at once, and say what to type",
		Long: `Check the configuration, and all that it needs of this box: rights, forwarding, routes to
the backends, devices, addresses, reverse-path filtering, room in the connection table,
weir's rules and others' that may be in their way, the running weir and its backends. What
is wrong is said with what it means and, where there is one, the command that mends it.
Nothing is changed.

Exit codes: 0 nothing is wrong; 1 there are errors or warnings; 2 the configuration or the
command line is wrong.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.doctor(c.Context(), e.state) },
	}
	c.Flags().StringVar(&e.state, "state", stateFile(), "`FILE` in which weir run keeps what operators say")
	return c
}

func (e *env) doctor(ctx context.Context, state string) error {
	done := e.progress("looking at everything")
	rep, err := e.examine(ctx, state)
	done()
	if err != nil {
		if e.output != "json" || !errors.As(err, &rep.Errors) {
			return err
		}
		return errors.Join(e.print(rep, nil), exitCode(exitUsage))
	}
	if err := e.print(rep, func() error { return e.printDoctor(rep) }); err != nil {
		return err
	}
	if !rep.OK {
		return exitCode(exitFailed)
	}
	return nil
}

// examine looks at everything.
func (e *env) examine(ctx context.Context, state string) (doctorReport, error) {
	rep := doctorReport{Findings: []host.Finding{}, Checked: []checkedItem{}, Errors: config.Errors{}}
	cfg, err := config.Load(e.config)
	if err != nil {
		return rep, err
	}
	x := &examination{env: e, cfg: cfg, rep: &rep}
	x.count("services", len(cfg.Services))
	x.surroundings()
	x.rights()
	x.weir(ctx)
	x.filter(ctx)
	x.stateFile(state)
	for i := range rep.Findings {
		rep.Findings[i].Fix = e.ownCommand(rep.Findings[i].Fix)
	}
	host.Sort(rep.Findings)
	rep.OK = len(host.Serious(rep.Findings)) == 0
	return rep, nil
}

// ownCommand adds the configuration to a command of weir's.
func (e *env) ownCommand(fix string) string {
	if !strings.HasPrefix(strings.TrimPrefix(fix, "sudo "), "weir ") || e.config == defaultConfig {
		return fix
	}
	return strings.Replace(fix, "weir ", "weir --config "+host.Word(e.config)+" ", 1)
}

// printDoctor writes each finding in a few lines, and what was looked at.
func (e *env) printDoctor(rep doctorReport) error {
	var b strings.Builder
	count := map[host.Severity]int{}
	for _, f := range rep.Findings {
		count[f.Severity]++
		fmt.Fprintf(&b, "%-8s %s: %s\n", f.Severity, f.ID, f.Found)
		if words := f.Means + f.Concerns(); words != "" {
			fmt.Fprintf(&b, "         %s\n", strings.TrimSpace(words))
		}
		if f.Fix != "" {
			fmt.Fprintf(&b, "         fix: %s\n", f.Fix)
		}
	}
	var items []string
	for _, c := range rep.Checked {
		items = append(items, fmt.Sprintf("%s %d", c.What, c.Count))
	}
	fmt.Fprintf(&b, "checked: %s\n", strings.Join(items, ", "))
	switch {
	case rep.OK && count[host.Info] > 0:
		fmt.Fprintf(&b, "nothing is wrong; %s for information\n", plural(count[host.Info], "line"))
	case rep.OK:
		b.WriteString("nothing is wrong\n")
	default:
		fmt.Fprintf(&b, "%s, %s\n", plural(count[host.Error], "error"), plural(count[host.Warning], "warning"))
	}
	_, err := fmt.Fprint(e.stdout, b.String())
	return err
}

// familyUse says for a family whether some backends are on this box, and some elsewhere.
type familyUse struct{ here, elsewhere bool }

func usage(n *host.Needs, f *host.Facts) map[model.Family]familyUse {
	out := map[model.Family]familyUse{}
	for i, a := range n.Backends {
		u := out[model.FamilyOf(a)]
		if r := f.Routes[i]; r != nil && r.Way == host.Local {
			u.here = true
		} else {
			u.elsewhere = true
		}
		out[model.FamilyOf(a)] = u
	}
	return out
}
