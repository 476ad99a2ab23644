package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"weir/internal/blocklist"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// stageSize is how many entries of blocklists come or go in one transaction: the kernel takes
// others' only when one is done. Eight thousand take it some 25 ms.
const stageSize = 1 << 13

// Fence brings the table of blocklists to what lists say, beside the Engine that it is of, so
// that a large list keeps nobody waiting. Its methods, but for Blocks and Moved, must not be
// called at the same time.
type Fence struct {
	kernel Kernel
	turns  *turns
	blocks atomic.Pointer[plan.Blocks] // what the kernel was brought to last; nil: nothing yet

	have *ruleset.Ruleset // what the kernel holds; nil when that is not known
	gen  uint32           // guarded by turns
}

// errOvertaken says that something newer is wanted.
var errOvertaken = errors.New("other blocklists are wanted by now")

// Fence makes e leave the table of blocklists to what it returns. It is to be called before
// anything is applied.
func (e *Engine) Fence() *Fence {
	if e.fence == nil {
		e.fence = &Fence{kernel: e.Kernel, turns: &e.turns}
		e.turns.gens = []*uint32{&e.gen, &e.fence.gen}
	}
	return e.fence
}

// Blocks returns what the kernel was brought to last, nil before the first time.
func (f *Fence) Blocks() *plan.Blocks { return f.blocks.Load() }

// Moved is Engine.Moved for the table of blocklists.
func (f *Fence) Moved(gen uint32) { f.turns.moved(&f.gen, gen) }

// Apply makes the kernel do what c says, in as many transactions as that takes (plan.Stages).
// It ends early, with errOvertaken, when newer reports that something else is wanted; the next
// Apply goes on from there. When the kernel refuses something, what was in force before is
// there again, as far as the kernel takes that.
func (f *Fence) Apply(ctx context.Context, c *blocklist.Compiled, newer func() bool) (Report, error) {
	start := time.Now()
	var rep Report
	before := f.blocks.Load()
	next, err := planBlocks(ctx, f.kernel, c, before)
	if err != nil {
		return rep, err
	}
	rep.Plan = time.Since(start)
	err = f.reach(ctx, next, rulesetOf(next), newer, &rep)
	switch {
	case err == nil:
		f.blocks.Store(next)
	case f.have != nil && before != nil && !errors.Is(err, errOvertaken) && ctx.Err() == nil:
		var back Report
		if again := f.reach(ctx, before, rulesetOf(before), nil, &back); again != nil {
			f.have = nil
			err = fmt.Errorf("%w; and those before are not all there: %w", err, again)
		}
	case !errors.Is(err, errOvertaken):
		f.have = nil // look again before the next try
	}
	return rep, err
}

// Repair makes the kernel do again what it did after the last Apply, if it does not.
func (f *Fence) Repair(ctx context.Context) (Report, error) {
	rep := Report{Delta: &ruleset.Delta{}}
	blocks := f.blocks.Load()
	same, err := f.turns.current(f.kernel, &f.gen)
	if err != nil || blocks == nil || f.have != nil && same {
		return rep, err
	}
	f.have = nil
	return rep, f.reach(ctx, blocks, readAgain(rulesetOf(blocks)), nil, &rep)
}

func rulesetOf(b *plan.Blocks) *ruleset.Ruleset {
	r := &ruleset.Ruleset{}
	if t := b.Table(); t != nil {
		r.Tables = []*ruleset.Table{t}
	}
	return r
}

// reach brings the kernel to what next says. What there is, if that is not known, is read
// with expect.
func (f *Fence) reach(ctx context.Context, next *plan.Blocks, expect *ruleset.Ruleset, newer func() bool, rep *Report) error {
	var err error
	for range attempts {
		if f.have == nil {
			start := time.Now()
			if err = f.read(ctx, expect); err != nil {
				return fmt.Errorf("read the blocklists: %w", err)
			}
			rep.Read += time.Since(start)
		}
		want := rulesetOf(next)
		d := ruleset.Diff(f.have, want)
		rep.Delta = d
		if d.Empty() {
			f.have = want
			return nil
		}
		start := time.Now()
		if err := SettleCounts(ctx, f.kernel, d, next); err != nil {
			f.have = nil // somebody may have taken elements away
			return fmt.Errorf("read the counters of blocklists: %w", err)
		}
		err = f.walk(ctx, plan.NewStages(f.have.Table(BlocksTable.Family, BlocksTable.Name), next, d, stageSize), newer)
		rep.Commit += time.Since(start)
		switch {
		case err == nil:
			f.have = want
			return nil
		case errors.Is(err, errOvertaken), ctx.Err() != nil:
			return err
		case !errors.Is(err, nft.ErrStale) && !errors.Is(err, nft.ErrUncertain):
			return fmt.Errorf("commit the blocklists: %w", err)
		}
		f.have = nil
	}
	return fmt.Errorf("commit the blocklists: others changed their rules %d times meanwhile: %w", attempts, err)
}

func (f *Fence) read(ctx context.Context, expect *ruleset.Ruleset) error {
	have, gen, err := f.kernel.Read(ctx, []nft.TableRef{BlocksTable}, expect)
	if err == nil {
		f.have = have
		f.turns.set(&f.gen, gen)
	}
	return err
}

// walk commits one stage after the other. When it fails, have is what the kernel holds then,
// or nil.
func (f *Fence) walk(ctx context.Context, s *plan.Stages, newer func() bool) error {
	failed := 0
	for i := 0; i < len(s.Deltas); {
		if i > 0 && newer != nil && newer() {
			f.have = tables(s.At(i))
			return errOvertaken
		}
		err := f.turns.commit(ctx, f.kernel, &f.gen, s.Deltas[i])
		if err == nil {
			i, failed = i+1, 0
			continue
		}
		if i == 0 || errors.Is(err, nft.ErrUncertain) {
			f.have = nil
			return err
		}
		at := tables(s.At(i))
		if !errors.Is(err, nft.ErrStale) {
			f.have = at // nothing was done
			return err
		}
		// Somebody has committed something: go on if that was elsewhere.
		if failed++; failed > attempts || !f.still(ctx, at) {
			f.have = nil
			return err
		}
	}
	return nil
}

// still reads the table again and reports whether it is as it was left on the way.
func (f *Fence) still(ctx context.Context, at *ruleset.Ruleset) bool {
	return f.read(ctx, at) == nil && ruleset.Diff(f.have, at).Empty()
}

func tables(t *ruleset.Table) *ruleset.Ruleset {
	if t == nil {
		return &ruleset.Ruleset{}
	}
	return &ruleset.Ruleset{Tables: []*ruleset.Table{t}}
}
