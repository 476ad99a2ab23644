package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// stateFlag adds --state to a command that works with what weir remembers.
func (e *env) stateFlag(c *cobra.Command) {
	c.Flags().StringVar(&e.state, "state", stateFile(), "`FILE` that keeps what operators say across restarts; configurations are kept beside it")
}

// parseKept reads a configuration that was kept.
func parseKept(name, text string) (*model.Config, error) { return config.Parse(name, []byte(text)) }

// book is a kernel, locked, and what weir remembers of configurations, for a command that
// works where no weir runs.
type book struct {
	*kernel
	store    *keep.Store
	rec      keep.Record
	state    string
	warnings []string
	lists    *lists.Keeper
}

// openBook opens both. who is as of lockNamespace.
func (e *env) openBook(who string) (*book, error) {
	b := &book{store: keep.Beside(e.state), state: e.state}
	var err error
	if b.kernel, err = openKernelAs(true, who); err != nil {
		return nil, err
	}
	known, err := engine.LoadMemory(e.state)
	if err != nil {
		b.warnings = append(b.warnings, fmt.Sprintf("what operators blocked is not known: %v", err))
	}
	b.lists = openLists(e.config, e.state, known.Blocks, nil)
	if b.rec, err = b.store.Read(); err != nil {
		b.warnings = append(b.warnings, fmt.Sprintf("what configuration was confirmed last is not known: %v", err))
		if aside, err := b.store.Aside(); err == nil {
			b.warnings = append(b.warnings, "it is kept as "+aside)
		}
	}
	if b.rec.Place.Elsewhere(keep.Here()) {
		if b.rec.Pending != nil {
			b.close()
			return nil, elsewhere(b.store)
		}
		b.rec = keep.Record{} // what is confirmed there is nothing to go back to here
	}
	return b, nil
}

// elsewhere says that a change waits in another network namespace.
func elsewhere(s *keep.Store) error {
	return fmt.Errorf("%s tells of a change that waits in another network namespace: give each a file of its own, --state FILE", s.Dir())
}

// overdue reports whether a change waits whose time is over.
func (e *env) overdue() bool {
	rec, err := keep.Beside(e.state).Read()
	return err == nil && rec.Pending != nil && rec.Pending.Left(keep.Now()) <= 0
}

// due goes back first, if a change waits whose time is over.
func (b *book) due(ctx context.Context) error {
	p := b.rec.Pending
	if p == nil || p.Left(keep.Now()) > 0 {
		return nil
	}
	b.warnings = append(b.warnings, fmt.Sprintf("%s of %s was not confirmed in time: went back first", p.File, p.At.Format(time.DateTime)))
	return b.back(ctx)
}

// back goes back to the last confirmed configuration, in place of the weir that took the
// change, if there was one: with what it knew.
func (b *book) back(ctx context.Context) error {
	var known engine.Memory
	if b.rec.Pending.Running {
		if m, err := engine.LoadMemory(b.state); err == nil {
			known = m
		}
	}
	if err := b.restore(ctx, known); err != nil {
		return fmt.Errorf("go back to the last confirmed configuration: %w", err)
	}
	b.rec.Back()
	return b.store.Write(b.rec, "")
}

// Apply is Engine.Apply with the blocklists of cfg.
func (b *book) Apply(ctx context.Context, cfg *model.Config) (engine.Report, error) {
	b.lists.Take(cfg)
	b.Blocked = b.lists.Compiled()
	return b.kernel.Apply(ctx, cfg)
}

// restore makes the kernel do what the last confirmed configuration says.
func (b *book) restore(ctx context.Context, known engine.Memory) error {
	if b.rec.Confirmed == nil {
		_, err := b.Clear(ctx)
		return needsRights(err)
	}
	text, err := b.store.Text(*b.rec.Confirmed)
	if err != nil {
		return err
	}
	cfg, err := parseKept(b.rec.Confirmed.File, text)
	if err != nil {
		return err
	}
	_, err = b.Apply(ctx, engine.EffectivePools(engine.Effective(cfg, known.Known(), time.Now()), known.KnownPools(cfg)))
	return needsRights(err)
}

// apply applies a file that needs no confirmation.
func (b *book) apply(ctx context.Context, f engine.File) (engine.Report, error) {
	rep, err := b.Apply(ctx, f.Config)
	if err != nil {
		return rep, needsRights(err)
	}
	if c := b.rec.Confirmed; c != nil && c.Sum == keep.Sum(f.Text) && b.rec.Rejected == nil {
		return rep, nil
	}
	b.rec.Take(stamp(f))
	if err := b.store.Write(b.rec, f.Text); err != nil {
		b.warnings = append(b.warnings, fmt.Sprintf("the configuration could not be written down; weir apply --confirm is not possible until it can: %v", err))
	}
	return rep, nil
}

// propose applies a file that goes back unless it is confirmed. What is needed to go back,
// and who does it, is there before the kernel is told.
func (b *book) propose(ctx context.Context, f engine.File, within time.Duration) (engine.Report, error) {
	var none engine.Report
	if b.rec.Confirmed == nil {
		have, _, err := b.Kernel.Read(ctx, engine.Tables, &ruleset.Ruleset{})
		if err != nil {
			return none, needsRights(err)
		}
		if len(have.Tables) > 0 {
			return none, fmt.Errorf("%w: the kernel has weir's rules already, and no weir wrote down of what configuration; "+
				"weir apply that one once without --confirm", engine.ErrNotKept)
		}
	}
	before := b.rec
	b.rec.Propose(stamp(f), within, keep.Now())
	if err := b.store.Write(b.rec, f.Text); err != nil {
		return none, fmt.Errorf("%w: %w", engine.ErrNotKept, err)
	}
	if err := startGuard(b.state, b.rec.Pending.ID); err != nil {
		b.rec = before
		return none, errors.Join(fmt.Errorf("nothing was changed: nobody would go back: %w", err), b.store.Write(b.rec, ""))
	}
	rep, err := b.Apply(ctx, f.Config)
	if err == nil {
		return rep, nil
	}
	if gone := b.restore(ctx, engine.Memory{}); gone != nil {
		return rep, fmt.Errorf("%w; and the last confirmed configuration could not be applied again, which is tried when the time is over: %w", needsRights(err), gone)
	}
	b.rec = before
	b.rec.Pending = nil
	return rep, errors.Join(fmt.Errorf("%w (the last confirmed configuration holds)", needsRights(err)), b.store.Write(b.rec, ""))
}

// stamp describes a file for the record.
func stamp(f engine.File) keep.Config {
	return keep.Config{File: f.Path, Sum: keep.Sum(f.Text), At: time.Now().Round(0), By: whoami()}
}

// forget removes what is remembered of configurations, once nothing is applied any more.
func (e *env) forget() error {
	store := keep.Beside(e.state)
	if rec, err := store.Read(); err == nil && (rec.Empty() || rec.Place.Elsewhere(keep.Here())) {
		return nil
	}
	return store.Write(keep.Record{}, "")
}
