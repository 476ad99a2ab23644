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
	"weir/internal/lists"
	"weir/internal/plan"
)

func (e *env) blocksCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "blocks",
		Short: "Show the blocklists: entries, action, when they were read, what is wrong with them",
		Long: `Show the blocklists: entries, action, when they were read, lines that were skipped, and
what is wrong with them; then what operators blocked. Without a running weir the files are
read.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.showBlocks(c.Context()) },
	}
	e.stateFlag(c)
	for _, sub := range []*cobra.Command{e.topCmd(), e.acceptCmd()} {
		if sub.Args == nil {
			sub.Args = noArgs
		}
		c.AddCommand(sub)
	}
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("there is no command blocks %s; there are: blocks, blocks top, blocks accept LIST", args[0])}
		}
		return nil
	}
	return c
}

func (e *env) showBlocks(ctx context.Context) error {
	defer e.progress("reading the blocklists")()
	var out api.Blocks
	err := ask(func(w *api.Client) (err error) {
		out, err = w.Blocks(ctx)
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		var cfg, bad = config.Load(e.config)
		if bad != nil {
			return bad
		}
		k := e.readLists(ctx, cfg)
		out, err = api.Blocks{Lists: k.Status(), Operator: append([]lists.Block{}, k.Blocks()...)}, nil
	}
	if err != nil {
		return err
	}
	return e.print(out, func() error { return e.printBlocks(out, time.Now()) })
}

func (e *env) printBlocks(out api.Blocks, now time.Time) error {
	if out.Applied != nil && !*out.Applied {
		fmt.Fprintln(e.stdout, "the kernel does not do all of this yet (weir events says what is in the way)")
	}
	if len(out.Lists) == 0 {
		_, err := fmt.Fprintln(e.stdout, "there are no blocklists")
		return err
	}
	var rows [][]string
	var notes []string
	for _, l := range out.Lists {
		read, entries := "-", "-"
		if !l.ReadAt.IsZero() {
			read = age(now, l.ReadAt) + " ago"
		}
		if l.InUse {
			entries = strconv.Itoa(l.Entries)
		}
		rows = append(rows, []string{l.Name, l.Action, entries, read, strconv.Itoa(l.Counts.Skipped), strconv.Itoa(l.Counts.Duplicates), strconv.Itoa(l.Counts.Inside)})
		var note []string
		if l.Problem != "" {
			note = append(note, "    not taken: "+strings.ReplaceAll(l.Problem, "\n", "\n      "))
		}
		for i, s := range l.Skipped {
			if i == 3 {
				note = append(note, fmt.Sprintf("    and %d more lines (weir blocks -o json shows up to 20)", l.Counts.Skipped-i))
				break
			}
			note = append(note, "    skipped: "+s)
		}
		notes = append(notes, strings.Join(note, "\n"))
	}
	if err := e.table("LIST ACTION ENTRIES READ SKIPPED DOUBLE INSIDE", rows, notes); err != nil {
		return err
	}
	for _, b := range out.Operator {
		fmt.Fprintln(e.stdout, "operator:", blockText(b, now))
	}
	return nil
}

// blockText says what an operator blocked.
func blockText(b lists.Block, now time.Time) string {
	words := b.Text() + ", "
	if b.Until.IsZero() {
		words += "until it is unblocked"
	} else {
		words += "for another " + age(b.Until, now)
	}
	if b.Why != "" {
		words += ": " + b.Why
	}
	words += " [" + listed(now, b.At, false)
	if b.By != "" {
		words += " by " + b.By
	}
	return words + "]"
}

func (e *env) topCmd() *cobra.Command {
	var n int
	var list string
	c := &cobra.Command{
		Use:   "top",
		Short: "Show which entries of blocklists packets meet most",
		Long: `Show which entries of blocklists packets meet most, with what they have counted and when
that changed last. The counters go on when lists change and when weir starts again; the last
change is only known to a running weir.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if n < 1 || n > 10_000 {
				return usageError{fmt.Errorf("-n %d is not allowed; allowed: 1 to 10000", n)}
			}
			return e.showTop(c.Context(), n, list)
		},
	}
	c.Flags().IntVarP(&n, "number", "n", 20, "`HOW MANY` entries")
	c.Flags().StringVar(&list, "list", "", "entries of that `LIST` alone")
	e.stateFlag(c)
	return c
}

func (e *env) showTop(ctx context.Context, n int, list string) error {
	defer e.progress("reading the counters")()
	var out api.Top
	err := ask(func(w *api.Client) (err error) {
		out, err = w.Top(ctx, n, list)
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		err = e.alone(ctx, func(k *kernel, _ *lists.Keeper, p *plan.Plan) error {
			h := engine.Hits{Kernel: k.conn}
			err := h.Look(ctx, p.Blocks)
			out.Entries, out.All, out.At = h.Top(n, list)
			out.Uncounted = h.Uncounted().Packets
			return err
		})
	}
	if err != nil {
		return err
	}
	return e.print(out, func() error { return e.printTop(out, time.Now()) })
}

func (e *env) printTop(out api.Top, now time.Time) error {
	if out.All == 0 {
		_, err := fmt.Fprintln(e.stdout, "no packet has met an entry")
		return err
	}
	var rows [][]string
	for _, h := range out.Entries {
		last := "-"
		if !h.LastChange.IsZero() {
			last = age(now, h.LastChange) + " ago"
		}
		rows = append(rows, []string{lists.Block{Prefix: h.Entry}.Text(), h.Action, strconv.FormatUint(h.Packets, 10), bytesText(h.Bytes), last, strings.Join(h.Lists, ",")})
	}
	if err := e.table("ENTRY ACTION PACKETS BYTES LAST LISTS", rows, make([]string, len(rows))); err != nil {
		return err
	}
	if more := out.All - len(out.Entries); more > 0 {
		fmt.Fprintf(e.stdout, "and %d more\n", more)
	}
	if out.Uncounted > 0 {
		fmt.Fprintf(e.stdout, "no room to count %s that met entries\n", plural(int(out.Uncounted), "packet"))
	}
	return nil
}

// alone calls fn where no weir runs, with the kernel, the blocklists of the configuration
// file, and what is planned of it, as far as its blocklists lie in the kernel.
func (e *env) alone(ctx context.Context, fn func(*kernel, *lists.Keeper, *plan.Plan) error) error {
	cfg, err := config.Load(e.config)
	if err != nil {
		return err
	}
	k, err := openKernel(false)
	if err != nil {
		return err
	}
	defer k.close()
	keeper := e.readLists(ctx, cfg)
	k.Blocked = keeper.Compiled()
	p, err := k.PlanOf(ctx, cfg)
	if err != nil {
		return needsRights(err)
	}
	return needsRights(fn(k, keeper, p))
}

func (e *env) acceptCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "accept LIST",
		Short: "Take a blocklist however much it changed",
		Long: `Take a blocklist as its files are now, however much it changed against the last good one
(max_change). All other guards hold: no list may cut off the box itself, a gateway, or a
backend.`,
		Args: oneArg("a blocklist"),
		RunE: func(c *cobra.Command, args []string) error {
			defer e.progress("reading the list")()
			return conflict(ask(func(w *api.Client) error {
				s, err := w.AcceptList(c.Context(), args[0])
				if err != nil {
					return err
				}
				return e.print(s, func() error {
					_, err := fmt.Fprintf(e.stdout, "taken: %s, %s\n", s.Name, entriesText(s.Entries))
					return err
				})
			}))
		},
	}
}

func oneArg(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("%s takes %s, found %s", c.CommandPath(), what, plural(len(args), "word"))}
		}
		return nil
	}
}

func (e *env) blockCmd() *cobra.Command {
	var within time.Duration
	var why string
	c := &cobra.Command{
		Use:   "block ENTRY",
		Short: "Block an address or a prefix at once, for a time or until unblock",
		Long: `Block an address or a prefix at once: packets from it are dropped. It survives restarts of
weir. What the configuration allows, and what the box needs, cannot be blocked.`,
		Example: `  weir block 192.0.2.7 --for 1h --why "scraper"`,
		Args:    oneArg("an address or a prefix"),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("for") && within <= 0 {
				return usageError{fmt.Errorf("--for %s is not allowed; want a time such as 1h", within)}
			}
			if _, err := api.ParseEntry(args[0]); err != nil {
				return usageError{err}
			}
			defer e.progress("waiting for weir")()
			return conflict(ask(func(w *api.Client) error {
				b, err := w.Block(c.Context(), args[0], within, why)
				if err != nil {
					return err
				}
				words := "blocked: " + b.Entry
				if !b.Until.IsZero() {
					words += " until " + b.Until.Local().Format(time.DateTime)
				}
				return e.printBlocked(b, words)
			}))
		},
	}
	c.Flags().DurationVar(&within, "for", 0, "for that `TIME`, such as 1h; else until weir unblock")
	c.Flags().StringVar(&why, "why", "", "`REASON`, for others to read")
	return c
}

func (e *env) unblockCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "unblock ENTRY",
		Short: "Take weir block back",
		Long: `Take weir block back. What a list has is not let through by that: take it out of the list,
or write it into allow in the configuration.`,
		Args: oneArg("an address or a prefix"),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := api.ParseEntry(args[0]); err != nil {
				return usageError{err}
			}
			defer e.progress("waiting for weir")()
			return ask(func(w *api.Client) error {
				b, err := w.Unblock(c.Context(), args[0])
				if err != nil {
					return err
				}
				return e.printBlocked(b, "not blocked any more: "+b.Entry)
			})
		},
	}
}

func (e *env) printBlocked(b api.Blocked, words string) error {
	return e.print(b, func() error {
		_, err := fmt.Fprintln(e.stdout, words)
		e.pending(b.Applied)
		return err
	})
}
