package engine

import (
	"context"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// BlockCounters reads what the elements of blocklists have counted. Implementation: nft.Conn.
type BlockCounters interface {
	// Counts calls each with what elements of set have counted, each element once: those of
	// pieces that are there, or all that there are. A set that is not there is an error that
	// unwraps to ENOENT.
	Counts(ctx context.Context, t nft.TableRef, set *ruleset.Set, pieces []*ruleset.Packed,
		each func(key string, n ruleset.Count)) error
	// Declarations returns the sets of a table without their elements; none where there is no
	// such table.
	Declarations(ctx context.Context, t nft.TableRef) ([]*ruleset.Set, error)
}

// build plans cfg with what is blocked. At the first time it looks how the blocks lie in the
// kernel, so that what fits well enough stays, with its counters.
func (e *Engine) build(ctx context.Context, cfg *model.Config) (*plan.Plan, error) {
	if err := e.wired(cfg); err != nil {
		return nil, err
	}
	if e.fence != nil {
		return plan.Build(e.bearable(cfg), e.plan), nil
	}
	var prev *plan.Blocks
	if e.plan != nil {
		prev = e.plan.Blocks
	}
	blocks, err := planBlocks(ctx, e.Kernel, e.Blocked, prev)
	if err != nil {
		return nil, err
	}
	return plan.Build(e.bearable(cfg), e.plan).WithBlocks(blocks), nil
}

func planBlocks(ctx context.Context, k Kernel, c *blocklist.Compiled, prev *plan.Blocks) (*plan.Blocks, error) {
	if prev == nil && c != nil {
		sets, err := k.Declarations(ctx, BlocksTable)
		if err != nil {
			return nil, err
		}
		prev = &plan.Blocks{Layout: plan.ReadBlocksLayout(sets)}
	}
	return plan.NewBlocks(c, prev), nil
}

// maxLook is how many elements of blocklists are read one by one to see whether somebody
// changed them: a dump takes a time in proportion to their square.
const maxLook = 1 << 14

// readAgain returns what is expected of rules that somebody may have changed: the marker of
// the blocks proves nothing then, and is only believed where there are very many.
func readAgain(r *ruleset.Ruleset) *ruleset.Ruleset {
	t := r.Table(BlocksTable.Family, BlocksTable.Name)
	if t == nil {
		return r
	}
	n := 0
	for _, s := range t.Sets {
		n += s.Len()
	}
	if n > maxLook {
		return r
	}
	return r.Unmarked()
}

// lostCounts reports whether counters of blocklists begin anew with d.
func lostCounts(d *ruleset.Delta) bool {
	for _, td := range d.Tables {
		kept := map[string]bool{}
		for _, ch := range td.AddElems {
			kept[ch.Set.Name] = ch.Counts != nil
		}
		for _, s := range td.AddSets {
			if of, ok := plan.ParseEntrySet(s.Name); ok && of.Hits && td.Table.Name == BlocksTable.Name && !kept[s.Name] {
				return true
			}
		}
	}
	return false
}
