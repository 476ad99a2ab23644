package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/conntrack"
	"weir/internal/egress"
	"weir/internal/engine"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/sockets"
	"weir/internal/state"
)

func (e *env) egressCmd() *cobra.Command {
	var watch bool
	var top int
	c := &cobra.Command{
		Use:   "egress [POOL]",
		Short: "Show egress pools: ports in use, when they will be full, failures",
		Long: `Show what the addresses of egress pools have in use. A port of an address is used up for
one destination (protocol, address and port) alone, so an address is as full as it is for
its busiest one; below are the fullest of all. Without a running weir it is read from the
kernel, for the pools of the configuration file; then drains and totals are not known.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("egress takes one pool, found %d words", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if top < 0 {
				return usageError{fmt.Errorf("--top %d is not allowed; want a number from 0", top)}
			}
			return e.egress(c.Context(), strings.Join(args, ""), top, watch)
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "show it again every second, until interrupted; with -o json a line each time")
	c.Flags().IntVar(&top, "top", 10, "the `N` fullest destinations of each pool")
	c.AddCommand(e.egressDrainCmd(), e.egressEnableCmd(), e.egressSizeCmd(), e.egressWhoCmd())
	return c
}

func (e *env) egress(ctx context.Context, pool string, top int, watch bool) error {
	look, done, err := e.egressLook(ctx, pool)
	if err != nil {
		return err
	}
	defer done()
	for {
		st, err := look()
		if err != nil {
			return err
		}
		if err := e.printEgress(st, top, watch); err != nil || !watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// egressLook returns what looks at the pools: a running weir, or else the kernel.
func (e *env) egressLook(ctx context.Context, pool string) (look func() (engine.EgressStatus, error), done func(), err error) {
	var st engine.EgressStatus
	remote := func() error {
		defer e.progress("looking at the connection table")()
		return ask(func(w *api.Client) (err error) {
			st, err = w.Egress(ctx, pool)
			return err
		})
	}
	err = remote()
	if !errors.Is(err, api.ErrNotRunning) {
		first := true
		return func() (engine.EgressStatus, error) {
			if !first {
				err = remote()
			}
			first = false
			return st, err
		}, func() {}, err
	}
	return e.egressHere(ctx, pool)
}

// egressHere looks without a running weir. The first look takes a second, for rates.
func (e *env) egressHere(ctx context.Context, pool string) (look func() (engine.EgressStatus, error), done func(), err error) {
	cfg, err := config.Load(e.config)
	if err != nil {
		return nil, nil, err
	}
	if pool != "" && cfg.Pool(pool) == nil {
		return nil, nil, usageError{fmt.Errorf("there is no egress pool %q in the configuration", pool)}
	}
	meter, done, err := openMeter(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, needsRights(err)
	}
	meter.Applied(plan.Build(cfg, nil))
	first := true
	return func() (engine.EgressStatus, error) {
		if len(cfg.Egress) > 0 {
			meter.Look(ctx, !first)
		}
		if first && len(cfg.Egress) > 0 {
			first = false
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			meter.Look(ctx, true)
		}
		st := meter.Status()
		if pool != "" {
			st.Pools = []engine.EgressPool{*st.Pool(pool)}
		}
		return st, nil
	}, done, nil
}

// openMeter returns a meter with connections of its own, and what closes them.
func openMeter(log *slog.Logger) (*engine.Meter, func(), error) {
	counters, err := nft.Open()
	if err != nil {
		return nil, nil, err
	}
	flows, err := conntrack.Open()
	if err != nil {
		counters.Close()
		return nil, nil, err
	}
	look, err := sockets.Open()
	if err != nil {
		counters.Close()
		flows.Close()
		return nil, nil, err
	}
	done := func() {
		counters.Close()
		flows.Close()
		look.Close()
	}
	return &engine.Meter{Flows: flows, Counters: counters, Sockets: look, Log: log}, done, nil
}

func (e *env) printEgress(st engine.EgressStatus, top int, watch bool) error {
	for i := range st.Pools {
		p := &st.Pools[i]
		if n := min(top, len(p.Destinations)); n < len(p.Destinations) {
			p.LeftOut += len(p.Destinations) - n
			p.Destinations = p.Destinations[:n]
		}
	}
	if watch && e.output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(st)
	}
	return e.print(st, func() error {
		if f, ok := e.stdout.(*os.File); ok && watch && terminal(f) {
			fmt.Fprint(e.stdout, "\x1b[H\x1b[2J")
		}
		return e.egressText(st)
	})
}

// terminal reports whether f is one.
func terminal(f *os.File) bool {
	s, err := f.Stat()
	return err == nil && s.Mode()&os.ModeCharDevice != 0
}

func (e *env) egressText(st engine.EgressStatus) error {
	for _, p := range st.Problems {
		fmt.Fprintf(e.stdout, "warning: %s\n", p)
	}
	if len(st.Pools) == 0 {
		_, err := fmt.Fprintln(e.stdout, "there are no egress pools")
		return err
	}
	var rows [][]string
	var notes []string
	for _, p := range st.Pools {
		for _, a := range p.Addresses {
			avoided := "-"
			if a.Relieved > 0 {
				avoided = plural(a.Relieved, "destination")
			}
			rows = append(rows, []string{p.Name, a.Address.String(), string(a.State), strconv.Itoa(a.InUse), strconv.Itoa(a.Ports), percent(a.Percent),
				perSecond(a.NewPerSecond), seconds(a.FullIn), strconv.Itoa(a.Connections), avoided})
			notes = append(notes, drainNote(a, st.At))
		}
	}
	if err := e.table("POOL ADDRESS STATE IN-USE PORTS USED NEW/S FULL-IN CONNECTIONS AVOIDED", rows, notes); err != nil {
		return err
	}
	for _, p := range st.Pools {
		fmt.Fprintf(e.stdout, "\n%s\n", poolLine(p, st.Running))
		if err := e.egressUses(p); err != nil {
			return err
		}
	}
	return e.egressFailures(st)
}

func poolLine(p engine.EgressPool, running bool) string {
	words := fmt.Sprintf("%s: spread %s, when full %s: %s, %s new a second", p.Name, p.Spread, p.WhenFull, plural(p.Connections, "connection"), perSecond(p.NewPerSecond))
	if p.Level != egress.OK {
		words = string(p.Level) + ": " + words
	}
	if running {
		words += fmt.Sprintf("; %d since weir began to count, %d got another address than theirs", p.NewTotal, p.Spilled)
	}
	if p.Hold > 0 {
		words += fmt.Sprintf("; each is remembered for %.1f s", p.Hold)
	}
	if b := p.Bears; b != nil && b.Factor > 0 {
		words += fmt.Sprintf("; bears %.1f times of it", b.Factor)
	}
	return words
}

func (e *env) egressUses(p engine.EgressPool) error {
	var rows [][]string
	for _, u := range p.Destinations {
		inUse := strconv.Itoa(u.InUse)
		if u.MaybeMore > 0 {
			inUse += "+"
		}
		rows = append(rows, []string{u.Protocol, u.Destination.String(), u.Address.String(), inUse, strconv.Itoa(u.Ports), percent(u.Percent),
			perSecond(u.NewPerSecond), seconds(u.FullIn), yesNo(u.NearFull)})
	}
	if len(rows) == 0 {
		return nil
	}
	err := e.table("PROTOCOL DESTINATION ADDRESS IN-USE PORTS USED NEW/S FULL-IN NEAR-FULL", rows, make([]string, len(rows)))
	if err == nil && p.LeftOut > 0 {
		_, err = fmt.Fprintf(e.stdout, "and %d more\n", p.LeftOut)
	}
	return err
}

func (e *env) egressFailures(st engine.EgressStatus) error {
	if old := st.At.Sub(st.Dump.At); old > 2*time.Second {
		fmt.Fprintf(e.stdout, "\nports in use are of %s ago: to look at the connection table took %.0f ms\n", age(st.At, st.Dump.At), st.Dump.TookMS)
	}
	f := st.Failures
	if !st.Running {
		return nil
	}
	if f.InsertFailed == 0 && f.TableFull == 0 {
		_, err := fmt.Fprintln(e.stdout, "\nkernel: no connection failed since weir began to count")
		return err
	}
	fmt.Fprintf(e.stdout, "\nkernel: %s could not be entered since weir began to count, of pools or of others: %d while a pool was nearly full, %d in races, %d unknown\n",
		plural(int(f.InsertFailed), "connection"), f.Exhaustion, f.Race, f.Unknown)
	if f.TableFull > 0 {
		fmt.Fprintf(e.stdout, "kernel: %d packets were dropped while the connection table was full\n", f.TableFull)
	}
	return nil
}

func drainNote(a engine.EgressAddress, now time.Time) string {
	if a.State == state.Up {
		return ""
	}
	note := fmt.Sprintf("    for %s: %s", age(now, a.Since), a.Reason)
	switch {
	case a.State == state.Drained:
		note = fmt.Sprintf("    free for %s: %s", age(now, a.Since), a.Reason)
	case !a.Until.IsZero():
		note += fmt.Sprintf("; %s left, which end in %s", plural(a.Connections, "connection"), age(a.Until, now))
	default:
		note += fmt.Sprintf("; %s left", plural(a.Connections, "connection"))
	}
	return note
}

func percent(f float64) string { return fmt.Sprintf("%.0f%%", f) }

func perSecond(f float64) string { return fmt.Sprintf("%.1f", f) }

func yesNo(is bool) string {
	if is {
		return "yes"
	}
	return "-"
}

// seconds is a time in words; nil is none.
func seconds(s *float64) string {
	switch {
	case s == nil:
		return "-"
	case *s == 0:
		return "now"
	}
	now := time.Time{}
	return age(now.Add(time.Duration(min(*s, 1e8)*float64(time.Second))), now)
}

// wantsAddress wants one argument.
func wantsAddress(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("it is: weir egress %s; found %s", c.Use, plural(len(args), "word"))}
	}
	return nil
}

func (e *env) egressDrainCmd() *cobra.Command {
	var deadline time.Duration
	c := &cobra.Command{
		Use:   "drain ADDRESS",
		Short: "Give an address of a pool no new connections; those that are open go on",
		Long: `Give an address of a pool no new connections; those that are open go on, until they end
or the deadline is over: then the kernel forgets them. When none is left the address is
free, which weir egress and weir events say. It survives restarts of weir; weir egress
enable takes it back. The last address of a pool (of its family) cannot be drained.`,
		Args: wantsAddress,
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("deadline") && deadline <= 0 {
				return usageError{fmt.Errorf("--deadline %s is not allowed; want a time such as 10m", deadline)}
			}
			return e.egressWord(func(w *api.Client) (api.EgressWord, error) { return w.DrainAddress(c.Context(), args[0], deadline) })
		},
	}
	c.Flags().DurationVar(&deadline, "deadline", 0, "end what is open after that `TIME`, such as 10m")
	return c
}

func (e *env) egressEnableCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "enable ADDRESS",
		Short: "Take weir egress drain back",
		Args:  wantsAddress,
		RunE: func(c *cobra.Command, args []string) error {
			return e.egressWord(func(w *api.Client) (api.EgressWord, error) { return w.EnableAddress(c.Context(), args[0]) })
		},
	}
}

// egressWord has weir take a word of an address, and prints what became of it.
func (e *env) egressWord(word func(*api.Client) (api.EgressWord, error)) error {
	defer e.progress("waiting for weir")()
	return conflict(ask(func(w *api.Client) error {
		a, err := word(w)
		if err != nil {
			return err
		}
		return e.print(a, func() error {
			_, err := fmt.Fprintf(e.stdout, "%s %s: %s, %s\n", a.Pool, a.Address, a.State, plural(a.Connections, "connection"))
			e.pending(a.Applied)
			return err
		})
	}))
}
