package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/state"
)

func (e *env) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status [SERVICE]",
		Short: "Show services and backends: state, reason, last check, connections, packets, bytes",
		Long: `Show services and backends with their state and what they got. A running weir says what
it knows: what is wrong on the box, and of each backend the state, since when and why, the
last check, and the connections that are open. Without one the counters are read from the
kernel, for the services of the configuration file.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("status takes one service, found %d words", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return e.status(c.Context(), args) },
	}
}

func (e *env) status(ctx context.Context, args []string) error {
	defer e.progress("reading the counters")()
	service := strings.Join(args, "")
	var st engine.Status
	err := ask(func(w *api.Client) (err error) {
		st, err = w.Status(ctx, service)
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		st, err = e.counters(ctx, service)
	}
	if err != nil {
		return err
	}
	return e.print(st, func() error { return e.printStatus(st, time.Now()) })
}

// counters is the status without a running weir.
func (e *env) counters(ctx context.Context, service string) (engine.Status, error) {
	cfg, err := config.Load(e.config)
	if err != nil {
		return engine.Status{}, err
	}
	k, err := openKernel(false)
	if err != nil {
		return engine.Status{}, err
	}
	defer k.close()
	st, err := engine.ReadStatus(ctx, k.conn, plan.Build(cfg, nil))
	if err != nil {
		return st, needsRights(err)
	}
	if rec, err := keep.Beside(e.state).Read(); err == nil && !rec.Place.Elsewhere(keep.Here()) {
		st.Waiting, st.Rejected = engine.NewWaiting(rec.Pending, keep.Now()), engine.NewRejected(rec.Rejected)
	}
	if service != "" {
		return st, pick(&st, service)
	}
	return st, nil
}

func pick(st *engine.Status, name string) error {
	for _, s := range st.Services {
		if s.Name == name {
			st.Services, st.Edge = []engine.ServiceStatus{s}, nil
			return nil
		}
	}
	return usageError{fmt.Errorf("there is no service %q in the configuration", name)}
}

// statusWidth is what a line of the status has room for, in characters.
const statusWidth = 120

// printStatus writes a table with a row for each backend and, where a running weir told
// more than numbers, a line below it.
func (e *env) printStatus(st engine.Status, now time.Time) error {
	if !st.Loaded {
		fmt.Fprintln(e.stdout, "weir's rules are not in the kernel (weir apply, weir run)")
	}
	e.printWaiting(st, now)
	if st.Applied != nil && !*st.Applied {
		fmt.Fprintln(e.stdout, "the kernel does not do all of this yet (weir events says what is in the way)")
	}
	for _, f := range st.Findings {
		fmt.Fprintf(e.stdout, "%s: %s\n", f.Severity, f)
	}
	for _, a := range st.Egress {
		fmt.Fprintf(e.stdout, "%s: egress pool %s: %s\n", a.Level, a.Pool, a.Message)
	}
	for _, l := range st.Leaks {
		fmt.Fprintf(e.stdout, "private sources that did not leave by %s: %d packets from %s\n", l.Out, l.Packets, l.In)
	}
	for _, w := range bindingWarnings(st.Bindings) {
		fmt.Fprintln(e.stdout, w)
	}
	for _, w := range listWarnings(st.Lists) {
		fmt.Fprintf(e.stdout, "error: %s\n", w)
	}
	var rows [][]string
	var notes []string // one for each row
	row := func(service, backend, state, weight, share, active string, t engine.Traffic, note string) {
		rows = append(rows, []string{service, backend, state, weight, share, strconv.FormatUint(t.NewConnections, 10), active,
			strconv.FormatUint(t.PacketsIn, 10), bytesText(t.BytesIn),
			strconv.FormatUint(t.PacketsOut, 10), bytesText(t.BytesOut)})
		notes = append(notes, note)
	}
	for _, s := range st.Services {
		active, known, first := 0, false, len(rows)
		for _, b := range s.Backends {
			state, open := "-", "-"
			if b.State != "" {
				state = b.State
			}
			if b.Active != nil {
				known, active, open = true, active+*b.Active, strconv.Itoa(*b.Active)
			}
			open = ofMost(open, b.MaxConnections)
			row(s.Name, b.Address, state, strconv.Itoa(b.Weight), fmt.Sprintf("%.0f%%", 100*b.Share), open, b.Traffic, note(b, now))
		}
		for _, l := range s.Listeners {
			row(s.Name, l.Listen, s.Forward, "-", "-", "-", l.Traffic, "")
		}
		if s.Former != (engine.Traffic{}) {
			row(s.Name, "(former)", "-", "-", "-", "-", s.Former, "")
		}
		open := "-"
		if known {
			open = strconv.Itoa(active)
		}
		open = ofMost(open, s.MaxConnections)
		row(s.Name, "total", "-", "-", "-", open, s.Total, "")
		if s.Track == "none" { // without conntrack nobody knows what is new
			unknown := []int{5}
			if s.Forward == model.ForwardDirect.String() { // and answers do not come by
				unknown = []int{5, 9, 10}
			}
			for _, r := range rows[first:] {
				for _, i := range unknown {
					r[i] = "-"
				}
			}
		}
	}
	err := e.table("SERVICE BACKEND STATE WEIGHT SHARE NEW ACTIVE PACKETS-IN BYTES-IN PACKETS-OUT BYTES-OUT", rows, notes)
	if err == nil {
		err = e.printSteering(st)
	}
	if err == nil {
		err = e.printLimits(st)
	}
	if err != nil || st.Edge == nil {
		return err
	}
	return e.printEdge(st.Edge)
}

// printEdge writes what the access policy let pass and dropped.
func (e *env) printEdge(st *engine.EdgeStatus) error {
	fmt.Fprintf(e.stdout, "\nedge: policy %s, invalid flags %s\n", st.Policy, st.InvalidFlags)
	var rows [][]string
	row := func(what, by string, p engine.Passed) {
		rows = append(rows, []string{what, by, strconv.FormatUint(p.Packets, 10), bytesText(p.Bytes)})
	}
	if st.Policy == "drop" {
		row("let in", "management", st.Management)
		for _, o := range st.Open {
			row("let through", o.Name, o.Passed)
		}
	}
	for _, d := range st.Dropped {
		where := "in by " + d.In
		if d.Out != "" {
			where += ", out by " + d.Out
		}
		row("dropped", where, d.Passed)
	}
	for _, d := range st.BadFlags {
		row("dropped", "in by "+d.In+", flags "+d.Flags, d.Passed)
	}
	return e.table("EDGE BY PACKETS BYTES", rows, make([]string, len(rows)))
}

// printWaiting tells of changes that are not confirmed.
func (e *env) printWaiting(st engine.Status, now time.Time) {
	who := func(file string, at time.Time, by *state.Operator) string {
		words := fmt.Sprintf("%s, taken %s ago", file, age(now, at))
		if by != nil {
			words += " by " + by.String()
		}
		return words
	}
	if w := st.Waiting; w != nil {
		words := "its time is over, and nobody has gone back yet"
		if w.Left > 0 {
			words = fmt.Sprintf("goes back in %s (weir confirm keeps it)", time.Duration(w.Left*float64(time.Second)).Round(time.Second))
		}
		fmt.Fprintf(e.stdout, "not confirmed yet: %s, %s\n", who(w.File, w.At, w.By), words)
	}
	if r := st.Rejected; r != nil {
		fmt.Fprintf(e.stdout, "was not confirmed: %s, went back; that text is not taken until it changes, or weir reload or weir apply says so\n",
			who(r.File, r.At, r.By))
	}
}

// ofMost adds the limit of connections, where there is one: 12/100.
func ofMost(open string, most int) string {
	if most == 0 {
		return open
	}
	return open + "/" + strconv.Itoa(most)
}

// full reports whether a backend has as many connections as it takes.
func full(b engine.BackendStatus) bool {
	return b.MaxConnections > 0 && b.Active != nil && *b.Active >= b.MaxConnections
}

// note says in a line why a backend is as it is, and how its last check ended.
func note(b engine.BackendStatus, now time.Time) string {
	var parts []string
	if !b.Since.IsZero() {
		part := "for " + age(now, b.Since)
		if b.Reason != "" {
			part += ": " + b.Reason
		}
		parts = append(parts, part)
	} else if b.Reason != "" {
		parts = append(parts, b.Reason)
	}
	if full(b) {
		parts = append(parts, "full")
	}
	if c := b.Check; c != nil {
		word := "failed"
		switch {
		case c.OK:
			word = "ok"
		case c.Void:
			word = "could not be done"
		}
		part := fmt.Sprintf("check %s %s ago in %.1f ms", word, age(now, c.At), c.LatencyMS)
		if c.Detail != "" && !strings.HasSuffix(b.Reason, c.Detail) { // it is said already
			part += ": " + c.Detail
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return ""
	}
	line := []rune("    " + strings.Join(parts, "; "))
	if len(line) > statusWidth {
		line = append(line[:statusWidth-1], '…')
	}
	return string(line)
}

// age is how long ago something was, in one or two units.
func age(now, then time.Time) string {
	d := max(now.Sub(then), 0)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// bytesText returns n in the largest binary unit of which there is at least one.
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatUint(n, 10)
	}
	f, u := float64(n), -1
	for f >= 1024 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%.1f%ci", f, units[u])
}
