package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/flow"
	"weir/internal/lists"
	"weir/internal/plan"
)

func (e *env) whyCmd() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "why ADDRESS",
		Short: "Say whether packets from an address are blocked, by which entry of which list",
		Long: `Say whether packets from an address are blocked, by which entry of which list, and since when
it is listed: since weir run or apply took a list that has the entry. What was there when weir
read the list for the first time is listed since then "or before". Then what else applies to the
address: management and open rules of the access policy that it matches, and limits that it was
over within the last ten minutes. With --to it says instead what a new connection from there
to that service meets, as weir explain does: blocklists, the access policy, limits as they are
configured, the service and its backend.`,
		Example: `  weir why 192.0.2.7 --to 198.51.100.10:80/tcp`,
		Args:    oneArg("an address"),
		RunE: func(c *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			if err != nil || a.Zone() != "" {
				return usageError{fmt.Errorf("%q is not an address; want one such as 192.0.2.7", args[0])}
			}
			a = a.Unmap()
			if to == "" {
				return e.showWhy(c.Context(), a, nil)
			}
			t, err := flow.ParseTuple(netip.AddrPortFrom(a, whyPort).String(), to)
			if err != nil {
				return usageError{err}
			}
			return e.showWhy(c.Context(), a, &t)
		},
	}
	e.stateFlag(c)
	c.Flags().StringVar(&to, "to", "", "what a new connection to `ADDRESS:PORT/PROTOCOL` meets, too")
	return c
}

// whyPort is the client's port in what --to asks: the first that Linux gives to clients.
const whyPort = 32768

// whyReport is the JSON of `weir why`.
type whyReport struct {
	api.Why
	Next *explainReport `json:"next,omitempty"` // of a new connection to --to
}

func (e *env) showWhy(ctx context.Context, a netip.Addr, to *flow.Tuple) error {
	defer e.progress("looking")()
	var out whyReport
	err := ask(func(w *api.Client) (err error) {
		out.Why, err = w.Why(ctx, a)
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		err = e.alone(ctx, func(k *kernel, keeper *lists.Keeper, p *plan.Plan) error {
			n, _, err := (&engine.Hits{Kernel: k.conn}).Count(ctx, p.Blocks, a)
			if err != nil {
				return err
			}
			over, err := engine.ReadOffenders(ctx, k.conn, p, "", time.Now())
			out.Why = api.NewWhy(a, keeper.Lookup(a), keeper.Status())
			out.Packets, out.Bytes = n.Packets, n.Bytes
			out.AddSource(p.Config, over)
			return err
		})
	}
	if err != nil {
		return err
	}
	if to != nil {
		next, err := e.follow(ctx, *to, explainOptions{})
		if err != nil {
			return err
		}
		out.Next = &next
	}
	return e.print(out, func() error {
		if err := e.printWhy(out.Why, time.Now()); err != nil {
			return err
		}
		if out.Next == nil {
			return e.printSource(out.Why, time.Now())
		}
		fmt.Fprintf(e.stdout, "a new connection from %s to %s:\n", to.Src, to.Dst)
		return e.printExplain(*out.Next)
	})
}

// outcomes are what becomes of packets, by the action.
var outcomes = map[string]string{"drop": "dropped", "reject": "refused", "count": "let through, and counted,"}

func (e *env) printWhy(out api.Why, now time.Time) error {
	switch {
	case out.Action != "none":
		words := fmt.Sprintf("%s is %s by %s", out.Address, outcomes[out.Action], out.Entry)
		words += fmt.Sprintf(": %d packets, %s bytes", out.Packets, bytesText(out.Bytes))
		if !out.LastChange.IsZero() {
			words += ", the last " + age(now, out.LastChange) + " ago"
		}
		fmt.Fprintln(e.stdout, words)
	case len(out.Allow) > 0:
		fmt.Fprintf(e.stdout, "%s is let through: allow has %s\n", out.Address, lists.Block{Prefix: out.Allow[0]}.Text())
	case len(out.Matches) > 0: // an exception of a list
		fmt.Fprintf(e.stdout, "%s is let through\n", out.Address)
	default:
		_, err := fmt.Fprintf(e.stdout, "%s is not in any list\n", out.Address)
		return err
	}
	if out.Block != nil {
		fmt.Fprintln(e.stdout, "  operator:", blockText(*out.Block, now))
	}
	for i, m := range out.Matches {
		if m.List == lists.Operator {
			continue
		}
		words := fmt.Sprintf("  list %s (%s): %s, %s:%d", m.List, m.Action, m.Entry, m.File, m.Line)
		if m.Exception {
			words += ", an exception"
		}
		if m.Note != "" {
			words += ", " + m.Note
		}
		if !m.Since.IsZero() {
			words += ", " + listed(now, m.Since, m.SinceAtMost)
		}
		if i == 0 && !out.ReadAt.IsZero() {
			words += ", read " + age(now, out.ReadAt) + " ago"
		}
		fmt.Fprintln(e.stdout, words)
	}
	return nil
}

// listed says since when an entry is listed.
func listed(now, since time.Time, orBefore bool) string {
	words := "listed " + age(now, since) + " ago"
	if orBefore {
		words += " or before"
	}
	return words
}

// maxRules is how many open rules printSource names.
const maxRules = 8

// printSource writes what else applies to an address.
func (e *env) printSource(out api.Why, now time.Time) error {
	for i, line := range sourceLines(out, now) {
		if i == 0 {
			words := "what else applies to it:"
			if out.Action == "drop" || out.Action == "reject" {
				words = "if it were not blocked:"
			}
			fmt.Fprintln(e.stdout, words)
		}
		if _, err := fmt.Fprintln(e.stdout, "  "+line); err != nil {
			return err
		}
	}
	return nil
}

func sourceLines(out api.Why, now time.Time) (lines []string) {
	if p := out.Edge; p != nil && p.Policy == "drop" {
		if p.Management != "" {
			lines = append(lines, "management has "+bare(p.Management)+": it always reaches the box")
		}
		for i, r := range p.Open {
			if i == maxRules {
				lines = append(lines, fmt.Sprintf("and %d more open rules (weir why -o json shows all)", len(p.Open)-i))
				break
			}
			lines = append(lines, "open "+ruleText(r))
		}
		if p.Management == "" && len(p.Open) == 0 {
			lines = append(lines, "policy drop, and no open rule is for its address")
		}
	}
	for _, o := range out.OverLimits {
		lines = append(lines, fmt.Sprintf("over a limit of %s (%s): %s was refused %d packets, %s bytes, the last %s ago",
			o.Service, o.Limit, o.Source, o.Over.Packets, bytesText(o.Over.Bytes), age(now, o.LastSeen)))
	}
	return lines
}

// ruleText says which packets an open rule is for.
func ruleText(r api.SourceRule) string {
	words := r.Name + ": from " + bare(r.From)
	if len(r.In) > 0 {
		words += " by " + strings.Join(r.In, ",")
	}
	switch {
	case r.Box:
		words += " to the box"
	case len(r.To) > 0:
		for i, p := range r.To {
			words += []string{" to ", ", "}[min(i, 1)] + bare(p.String())
		}
	default:
		words += " through the box"
	}
	if len(r.Out) > 0 {
		words += " by " + strings.Join(r.Out, ",")
	}
	if len(r.Traffic) > 0 {
		words += ", " + strings.Join(r.Traffic, " ")
	}
	return words
}

// bare returns a prefix as people write it: a single address without its length.
func bare(text string) string {
	if p, err := netip.ParsePrefix(text); err == nil {
		return lists.Block{Prefix: p}.Text()
	}
	return text
}
