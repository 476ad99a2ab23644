package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/binding"
	"weir/internal/config"
	"weir/internal/model"
)

func (e *env) egressWhoCmd() *cobra.Command {
	var at, to string
	var files []string
	c := &cobra.Command{
		Use:   "who ADDRESS:PORT[/PROTOCOL]",
		Short: "Say which client had an address and port of a pool, by the log of bindings",
		Long: `Say which client had an address and a port of an egress pool at a time. It reads the log of
bindings, which pools with log: true write, and the files that it was rotated to, compressed
or not. Of a pool with block, the client follows from the port. If the log does not reach
back that far, or something is missing from it then, that is said. The exit code is 1 when
nobody is found.`,
		Example: `  weir egress who 198.51.100.3:40123 --at 2026-11-21T12:00:00Z
  weir egress who "[2001:db8::3]:40123/udp" --at "2026-11-21 13:00" --to "[2001:db8:9::1]:53" --log /backup/bindings.jsonl.7.gz`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("egress who takes one ADDRESS:PORT, found %d words", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			q, err := parseQuestion(args[0], to, at, time.Now())
			if err != nil {
				return usageError{err}
			}
			return e.egressWho(c.Context(), q, files)
		},
	}
	c.Flags().StringVar(&at, "at", "", "the `TIME`, such as 2026-11-21T12:00:00Z, or \"2026-11-21 13:00:00\" of this machine's zone (default now)")
	c.Flags().StringVar(&to, "to", "", "only connections to `ADDRESS[:PORT]`")
	c.Flags().StringArrayVar(&files, "log", nil, "a `FILE` of the log instead of those of the configuration; may be repeated")
	return c
}

// parseQuestion reads the words of the command line.
func parseQuestion(outside, to, at string, now time.Time) (binding.Question, error) {
	q := binding.Question{At: now}
	place, proto, named := strings.Cut(outside, "/")
	var err error
	if q.Outside, err = netip.ParseAddrPort(place); err != nil || q.Outside.Port() == 0 {
		return q, fmt.Errorf("%q is not ADDRESS:PORT, such as 198.51.100.3:40123 or [2001:db8::3]:40123/udp", outside)
	}
	q.Outside = netip.AddrPortFrom(q.Outside.Addr().Unmap(), q.Outside.Port())
	if named {
		var ok bool
		if q.Proto, ok = map[string]model.Proto{"tcp": model.TCP, "udp": model.UDP, "sctp": model.SCTP, "icmp": 1, "icmpv6": 58}[proto]; !ok {
			return q, fmt.Errorf("protocol %q is not known; want tcp, udp, sctp, icmp or icmpv6", proto)
		}
	}
	if to != "" {
		if q.To, err = netip.ParseAddrPort(to); err != nil {
			a, bad := netip.ParseAddr(to)
			if bad != nil {
				return q, fmt.Errorf("--to %q is not ADDRESS or ADDRESS:PORT", to)
			}
			q.To = netip.AddrPortFrom(a, 0)
		}
		q.To = netip.AddrPortFrom(q.To.Addr().Unmap(), q.To.Port())
	}
	if at != "" {
		if q.At, err = parseTime(at); err != nil {
			return q, err
		}
	}
	return q, nil
}

func parseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--at %q is not a time; want one such as 2026-11-21T12:00:00Z or \"2026-11-21 13:00:00\"", s)
}

// whoReport is the JSON of `weir egress who`.
type whoReport struct {
	Outside string    `json:"outside"`
	Proto   string    `json:"proto,omitempty"`
	To      string    `json:"to,omitempty"`
	At      time.Time `json:"at"`
	Files   []string  `json:"files"`
	// Reaches says that the log tells of that time.
	Reaches bool `json:"reaches"`
	binding.Told
}

func (e *env) egressWho(ctx context.Context, q binding.Question, files []string) error {
	defer e.progress("reading the log of bindings")()
	cfg, bad := config.Load(e.config)
	if len(files) == 0 {
		if bad != nil {
			return bad
		}
		if cfg.Bindings.To != model.BindingsFile {
			return usageError{fmt.Errorf("the log of bindings goes to %s: write it to a file and name that with --log", cfg.Bindings.To)}
		}
		var err error
		if files, err = binding.LogFiles(cfg.Bindings.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	told, err := binding.Who(ctx, files, q)
	if err != nil {
		return err
	}
	rep := whoReport{Outside: q.Outside.String(), At: q.At, Files: append([]string{}, files...), Reaches: told.Reaches(q.At), Told: told}
	if q.Proto != 0 {
		rep.Proto = binding.Protocol(q.Proto)
	}
	if q.To.IsValid() {
		rep.To = q.To.String()
	}
	if cfg != nil && bad == nil && !rep.Reaches {
		for _, p := range cfg.Egress {
			if a, ok := binding.BlockAnswer(p, q); ok {
				a.Configured = true
				rep.Answers = append(rep.Answers, a)
			}
		}
	}
	if err := e.print(rep, func() error { return e.printWho(rep) }); err != nil {
		return err
	}
	if len(rep.Answers) == 0 {
		return exitCode(exitFailed)
	}
	return nil
}

// whoTime is how times are shown: with the zone, for whom it is about may be elsewhere.
func whoTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func (e *env) printWho(rep whoReport) error {
	out := func(format string, args ...any) { fmt.Fprintf(e.stdout, format+"\n", args...) }
	switch {
	case len(rep.Files) == 0:
		out("there is no log of bindings (log: true of a pool writes one)")
	case rep.First.IsZero():
		out("there is nothing in the log of bindings")
	case !rep.Reaches:
		out("the log does not reach back that far: it begins at %s", whoTime(rep.First))
	case rep.At.After(rep.Last):
		out("the last line of the log is of %s", whoTime(rep.Last))
	}
	for _, g := range rep.Gaps {
		out("the log has a gap then, from %s to %s: %s", whoTime(g.From), whoTime(g.To), g.Why)
	}
	if len(rep.Answers) == 0 {
		out("nobody is found who had %s at %s", rep.Outside, whoTime(rep.At))
		return nil
	}
	var rows [][]string
	var notes []string
	for _, a := range rep.Answers {
		row, note := whoRow(a)
		if note != "" {
			note = "    " + note
		}
		rows, notes = append(rows, row), append(notes, note)
	}
	if err := e.table("CLIENT PROTOCOL TO POOL FROM UNTIL", rows, notes); err != nil {
		return err
	}
	if rep.More > 0 {
		out("and %d more; --to ADDRESS:PORT narrows it down", rep.More)
	}
	return nil
}

func whoRow(a binding.Answer) (row []string, note string) {
	or := func(s, other string) string {
		if s == "" {
			return other
		}
		return s
	}
	from, until := "before", "no end"
	if !a.Start.IsZero() {
		from = whoTime(a.Start)
	}
	if !a.End.IsZero() {
		until = whoTime(a.End)
	}
	var notes []string
	switch {
	case a.Block != "":
		from, until = "-", "-"
		words := "its ports are " + a.Block
		if a.Configured {
			words += ", by the configuration as it is now"
		} else if !a.Used {
			words += "; the log has not seen it use them by then"
		}
		notes = append(notes, words)
	case !a.EndAfter.IsZero():
		notes = append(notes, "it ended after "+whoTime(a.EndAfter)+", nobody heard when")
	}
	if a.Maybe {
		notes = append(notes, "it may not have been open at that time")
	}
	return []string{a.Inside, or(a.Proto, "any"), or(a.To, "any"), a.Pool, from, until}, strings.Join(notes, "; ")
}

// bindingWarnings returns what is wrong with the log of bindings, for the status.
func bindingWarnings(s *binding.Status) []string {
	var out []string
	if s == nil {
		return nil
	}
	if s.Error != "" {
		out = append(out, "error: "+s.Error)
	}
	if s.Lost > 0 || s.Failed > 0 {
		out = append(out, fmt.Sprintf("warning: the log of bindings (%s) has gaps since %s: events lost %d times, %d lines not written",
			s.To, whoTime(s.Since), s.Lost, s.Failed))
	}
	return out
}
