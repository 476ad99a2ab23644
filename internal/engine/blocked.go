package engine

import (
	"context"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// BlockCounters reads what the elements of blocklists have counted. Implementation: nft.Conn.
type BlockCounters interface {
	// Counts calls each with the keys of pieces and what the elements of set under them have
	// counted, in the order of the pieces, until it returns false. What is not there is left
	// out; a set that is not there is an error that unwraps to ENOENT.
	Counts(ctx context.Context, t nft.TableRef, set *ruleset.Set, pieces []*ruleset.Packed,
		each func(key string, n ruleset.Count) bool) error
}

// build plans cfg with what is blocked. At the first time it looks how the blocks lie in the
// kernel, so that what fits well enough stays, with its counters.
func (e *Engine) build(ctx context.Context, cfg *model.Config) (*plan.Plan, error) {
	var prev *plan.Blocks
	if e.plan != nil {
		prev = e.plan.Blocks
	}
	if prev == nil && e.Blocked != nil {
		sets, err := e.Kernel.Declarations(ctx, BlocksTable)
		if err != nil {
			return nil, err
		}
		prev = &plan.Blocks{Layout: plan.ReadBlocksLayout(sets)}
	}
	return plan.Build(e.bearable(cfg), e.plan).WithBlocks(plan.NewBlocks(e.Blocked, prev)), nil
}

// maxLook is how many elements of blocklists are read one by one to see whether somebody
// changed them: a dump takes a time in proportion to their square.
const maxLook = 1 << 14

// readAgain returns what is expected of rules that somebody may have changed: the marker of
// the blocks proves nothing then, and is only believed where there are very many.
func readAgain(p *plan.Plan) *ruleset.Ruleset {
	t := p.Ruleset.Table(BlocksTable.Family, BlocksTable.Name)
	if t == nil {
		return p.Ruleset
	}
	n := 0
	for _, s := range t.Sets {
		n += s.Len()
	}
	if n > maxLook {
		return p.Ruleset
	}
	return p.Ruleset.Unmarked()
}

// lostCounts reports whether counters of blocklists begin anew with d.
func lostCounts(d *ruleset.Delta) bool {
	for _, td := range d.Tables {
		for _, ch := range td.AddElems {
			if ch.Set.Counter && ch.Packed != nil && ch.Counts == nil {
				return true
			}
		}
	}
	return false
}
