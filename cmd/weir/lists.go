package main

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/host/look"
	"weir/internal/lists"
	"weir/internal/model"
)

// listsDir is where copies of the last good blocklists are kept, beside the state file.
func listsDir(state string) string {
	if state == "" {
		return ""
	}
	return strings.TrimSuffix(state, ".json") + ".lists"
}

// protected returns what of the box no blocklist may cut off.
func protected() ([]blocklist.Protected, error) {
	l, err := look.Open()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	own, err := l.Own()
	out := make([]blocklist.Protected, 0, len(own))
	for _, o := range own {
		out = append(out, blocklist.Protected{Prefix: netip.PrefixFrom(o.Addr.WithZone(""), o.Addr.BitLen()), What: o.What})
	}
	return out, err
}

// openLists returns the blocklists as weir run keeps them, of a configuration file.
func openLists(config, state string, blocks []lists.Block, log *slog.Logger) *lists.Keeper {
	return lists.New(lists.Options{Config: filepath.Clean(config), Dir: listsDir(state), Protected: protected, Log: log}, blocks)
}

// readLists returns the blocklists of cfg for a command that only looks: with what operators
// blocked, as the weir that runs here says or as is written down.
func (e *env) readLists(ctx context.Context, cfg *model.Config) *lists.Keeper {
	k := lists.New(lists.Options{Config: e.config, Dir: listsDir(e.state), Protected: protected, ReadOnly: true}, e.blocks(ctx))
	k.Take(cfg)
	return k
}

// keptLists returns what the last good blocklists came to whose files are kept.
func (e *env) keptLists() *blocklist.Compiled {
	var uses []blocklist.Use
	for _, l := range lists.Kept(lists.Options{Dir: listsDir(e.state)}) {
		uses = append(uses, blocklist.Use{List: l, Action: blocklist.Drop})
	}
	c, err := blocklist.Compile(uses, nil)
	if err != nil {
		return &blocklist.Compiled{}
	}
	return c
}

// fileLists returns the blocklists of cfg as their files are: whatever they were before, on
// this box or another.
func (e *env) fileLists(cfg *model.Config) *lists.Keeper {
	k := lists.New(lists.Options{Config: e.config}, nil)
	k.Take(cfg)
	return k
}

// blocks returns what operators blocked.
func (e *env) blocks(ctx context.Context) []lists.Block {
	if w, err := client(); err == nil {
		if b, err := w.Blocks(ctx); err == nil {
			return b.Operator
		}
	}
	known, err := engine.LoadMemory(e.state)
	if err != nil {
		return nil
	}
	return known.Blocks
}

// listWarnings returns what is wrong with blocklists, a line each.
func listWarnings(status []lists.Status) []string {
	var out []string
	for _, s := range status {
		if s.Problem == "" {
			continue
		}
		words := "not in use"
		if s.InUse {
			words = "the last good one is in use"
		}
		out = append(out, "blocklist "+s.Name+": "+words+": "+s.Problem)
	}
	return out
}
