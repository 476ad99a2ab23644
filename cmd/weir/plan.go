package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/conntrack"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// planReport is the JSON of `weir plan`.
type planReport struct {
	// Live says that the plan was compared with what the kernel holds.
	Live bool `json:"live"`
	// Running says that the weights are those that the running weir gives, by its checks
	// and by what operators said; else they are the file's.
	Running bool         `json:"running"`
	Changes bool         `json:"changes"`
	Summary string       `json:"summary"`
	Moves   []moveReport `json:"moves"`
	// Blocks is what changes of blocklists; in Text they are only with --full.
	Blocks *blocksReport `json:"blocks,omitempty"`
	// Text is nft syntax: the change, or the whole ruleset when weir's is not in the kernel.
	Text string `json:"text"`
}

// moveReport is what happens to the new connections of a service in one family.
type moveReport struct {
	Service string       `json:"service"`
	Family  string       `json:"family"`
	Slots   int          `json:"slots"`
	Moved   int          `json:"moved"`
	Added   int          `json:"added"`
	Removed int          `json:"removed"`
	Gone    []goneReport `json:"gone"`
	Text    string       `json:"-"`
}

// goneReport is a backend that gets no new connections any more.
type goneReport struct {
	Address string `json:"address"`
	// LiveConnections that keep going; -1 where they could not be counted.
	LiveConnections int `json:"live_connections"`
}

func (e *env) planCmd() *cobra.Command {
	var full bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what apply would do, and do nothing",
		Long: `Show what apply would do, as nft syntax. Where weir's rules are in the kernel already it
is the difference, with what it would move; otherwise, or with --full, the whole ruleset,
which ` + "`nft -f`" + ` takes as it is. Beside a running weir it is what that one would do: a backend
that is down or drained stays out.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.plan(c.Context(), full) },
	}
	e.stateFlag(c)
	c.Flags().BoolVar(&full, "full", false, "print the whole ruleset from the file alone")
	return c
}

func (e *env) plan(ctx context.Context, full bool) error {
	defer e.progress("planning " + e.config)()
	cfg, err := config.Load(e.config)
	if err != nil {
		return err
	}
	rep := planReport{Moves: []moveReport{}}
	if !full {
		cfg, rep.Running = e.effective(ctx, cfg)
	}
	p, delta, err := e.compare(ctx, cfg, full)
	if err != nil {
		return err
	}
	if delta != nil {
		rep.Live, rep.Changes, rep.Summary = true, !delta.Empty(), delta.Summary()
		rep.Blocks = reportBlocks(p.Blocks, delta, e.keptLists)
	}
	switch {
	case delta == nil:
		rep.Changes, rep.Text = true, p.Ruleset.String()
		rep.Summary = ruleset.Diff(&ruleset.Ruleset{}, p.Ruleset).Summary()
	case creates(delta):
		rep.Text = withoutBlocks(p.Ruleset).String()
	default:
		rep.Text = servicesOf(delta).String()
		rep.Moves = moves(ctx, p, delta)
	}
	return e.print(rep, func() error { return e.printPlan(rep) })
}

// compare returns the plan and, unless full is set or the kernel may not be looked at,
// the difference to what the kernel holds.
func (e *env) compare(ctx context.Context, cfg *model.Config, full bool) (*plan.Plan, *ruleset.Delta, error) {
	if full {
		blocks := plan.NewBlocks(e.fileLists(cfg).Compiled(), nil)
		return plan.Build(cfg, nil).WithBlocks(blocks), nil, nil
	}
	k, err := openKernel(false)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (weir plan --full needs no rights)", err)
	}
	defer k.close()
	keeper := e.readLists(ctx, cfg)
	for _, w := range listWarnings(keeper.Status()) {
		fmt.Fprintln(e.stderr, "weir: warning:", w)
	}
	k.Blocked = keeper.Compiled()
	p, delta, err := k.Preview(ctx, cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (weir plan --full needs no rights)", needsRights(err))
	}
	return p, delta, nil
}

func (e *env) printPlan(rep planReport) error {
	if !rep.Changes {
		_, err := fmt.Fprintln(e.stdout, "nothing to change")
		return err
	}
	if _, err := fmt.Fprint(e.stdout, rep.Text); err != nil {
		return err
	}
	rep.Blocks.print(e.stdout)
	for _, m := range rep.Moves {
		fmt.Fprintln(e.stdout, "#", m.Text)
		for _, g := range m.Gone {
			if g.LiveConnections >= 0 {
				fmt.Fprintf(e.stdout, "#   %s on %s keep going\n", plural(g.LiveConnections, "live connection"), g.Address)
			}
		}
	}
	_, err := fmt.Fprintln(e.stdout, "#", rep.Summary)
	return err
}

// moves says what delta moves, and counts the live connections of backends that go.
func moves(ctx context.Context, p *plan.Plan, delta *ruleset.Delta) []moveReport {
	out := []moveReport{}
	live := map[netip.Addr]int{}
	counted := false
	for _, m := range p.Moves(delta) {
		if len(m.Gone) > 0 && !counted {
			counted = countLive(ctx, live) == nil
		}
		r := moveReport{Service: m.Service, Family: m.Family.String(), Slots: m.Slots, Moved: m.Moved,
			Added: m.Added, Removed: m.Removed, Gone: []goneReport{}, Text: m.String()}
		for _, a := range m.Gone {
			g := goneReport{Address: a.String(), LiveConnections: -1}
			if counted {
				g.LiveConnections = live[a]
			}
			r.Gone = append(r.Gone, g)
		}
		out = append(out, r)
	}
	return slices.Clip(out)
}

// countLive counts the connections whose destination was translated, by backend.
func countLive(ctx context.Context, live map[netip.Addr]int) error {
	c, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	filter := conntrack.Filter{Status: conntrack.StatusDNAT, StatusMask: conntrack.StatusDNAT}
	return c.Dump(ctx, filter, func(f conntrack.Flow) bool {
		live[f.Reply.Src.Addr()]++
		return true
	})
}
