package engine

import (
	"context"
	"slices"
	"sync"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

// turns lets those who share a Kernel, each with a table of its own, commit one after the
// other, and keeps the generation at which each of them knows its table: what the one commits
// is nothing that another has to read again.
type turns struct {
	mu   sync.Mutex
	gens []*uint32 // of all who take part, once there are several
}

// commit applies d if the generation is still *own, and moves that and, if they were there
// too, those of the others.
func (t *turns) commit(ctx context.Context, k Kernel, own *uint32, d *ruleset.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := *own
	gen, err := k.Apply(ctx, d, was)
	if err != nil {
		return err
	}
	for _, g := range t.gens {
		if *g == was {
			*g = gen
		}
	}
	*own = gen
	return nil
}

// moved follows a commit that made generation gen and does not concern the owner. Nobody waits
// for that: while a commit is on its way it is left out, and the owner reads again.
func (t *turns) moved(own *uint32, gen uint32) {
	if !t.mu.TryLock() {
		return
	}
	defer t.mu.Unlock()
	if gen == *own+1 {
		*own = gen
	}
}

// set notes at which generation the owner has read its table.
func (t *turns) set(own *uint32, gen uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*own = gen
}

// current reports whether the kernel's generation is *own, or cannot be known, because a commit
// is on its way.
func (t *turns) current(k Kernel, own *uint32) (bool, error) {
	if !t.mu.TryLock() {
		return true, nil
	}
	defer t.mu.Unlock()
	gen, err := k.Generation()
	return gen == *own, err
}

// foreign reports whether the commit touched no table of weir's, for certain. Whoever looks
// after a table that it did not touch has nothing to read again.
func (l *Loop) foreign(e nft.Event) bool {
	if e.Lost || len(e.Tables) == 0 || len(e.Tables) >= eventTables {
		return false
	}
	rules := slices.ContainsFunc(e.Tables, func(t nft.TableRef) bool { return slices.Contains(ruleTables, t) })
	blocks := slices.Contains(e.Tables, BlocksTable)
	if !rules && (l.fencer != nil || !blocks) {
		l.Engine.Moved(e.Gen)
	}
	if !blocks && l.fencer != nil {
		l.fencer.fence.Moved(e.Gen)
	}
	return !rules && !blocks
}
