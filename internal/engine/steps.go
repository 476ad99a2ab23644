package engine

import (
	"context"
	"errors"
	"fmt"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

// steps commits the steps of a change in one turn, each if the generation is still that of
// the one before. It reports whether the change is in force; then an error tells that something
// of before is still there beside it.
func (e *Engine) steps(ctx context.Context, s ruleset.Steps) (changed bool, err error) {
	e.turns.mu.Lock()
	defer e.turns.mu.Unlock()
	before := e.left
	e.left = false
	defer func() { e.left = e.left || before && !changed }()
	if err := e.step(ctx, s.Prepare); err != nil {
		return false, err
	}
	if err := e.step(ctx, s.Change); err != nil {
		return false, e.undo(ctx, s.Prepare, err)
	}
	for _, d := range []*ruleset.Delta{s.Withdraw, s.Clear} {
		e.settle(d)
		if err := e.step(ctx, d); err != nil {
			e.left = true
			return true, err
		}
	}
	return true, nil
}

// settle waits until no packet is under way by rules from before the last step, where d takes
// away what they look for.
func (e *Engine) settle(d *ruleset.Delta) {
	if k, ok := e.Kernel.(interface{ Settle() }); ok && !d.Empty() {
		k.Settle()
	}
}

func (e *Engine) step(ctx context.Context, d *ruleset.Delta) error {
	if d.Empty() {
		return nil
	}
	if err := e.Kernel.CarryRules(ctx, d); err != nil {
		return fmt.Errorf("read the counters of rules: %w", err)
	}
	return e.turns.apply(ctx, e.Kernel, &e.gen, d)
}

// undo takes back what was prepared for a change that did not come about because of why. Where
// it is not known whether it did, the next look at the kernel tells what to do.
func (e *Engine) undo(ctx context.Context, prepared *ruleset.Delta, why error) error {
	if prepared.Empty() {
		return why
	}
	if errors.Is(why, nft.ErrUncertain) {
		e.left = true
		return why
	}
	// Whatever others did meanwhile: it is there, and nobody uses it.
	if _, err := e.Kernel.Apply(context.WithoutCancel(ctx), prepared.Undo(), 0); err != nil {
		e.left = true
		return fmt.Errorf("%w (what was prepared for it could not be taken back, and does no harm: %w)", why, err)
	}
	return why
}
