// Package engine is the only loop in weir: it makes the kernel do what a model says, and
// keeps it so.
//
// Every reason to act (a first start, a reload, somebody else's hand in the kernel) takes
// the same way: new model, new plan, delta against what the kernel is known to hold,
// one commit. What the kernel holds is read once, and again only when it may have
// changed behind weir's back; the generation of the rules, which the kernel counts up
// with every commit of anybody, tells when.
package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
	"weir/internal/vip"
)

// Kernel is the part of the kernel's packet filter that is weir's. Implementations:
// nft.Conn, and nftfake.Kernel in tests.
type Kernel interface {
	// Read returns the tables of that list that exist, and the generation at which
	// they were so. Rules are known by the fingerprints in their comments; one that
	// claims to be a rule of expect and is not comes back without.
	Read(ctx context.Context, tables []nft.TableRef, expect *ruleset.Ruleset) (*ruleset.Ruleset, uint32, error)
	// Apply commits d in one transaction if the generation is still gen, and returns
	// the new one. nft.ErrStale says that nothing was done because it is not;
	// nft.ErrUncertain that it may have been done, so that only Read can tell. Any
	// other error says that nothing was done.
	Apply(ctx context.Context, d *ruleset.Delta, gen uint32) (uint32, error)
	// Generation returns the current generation.
	Generation() (uint32, error)
	// CarryRules makes rules of d that are loaded again begin with what they have counted.
	CarryRules(ctx context.Context, d *ruleset.Delta) error
	Counters
	BlockCounters
	// DeleteElements deletes elements of a map that packets fill. One that has gone
	// meanwhile is not an error.
	DeleteElements(ctx context.Context, t nft.TableRef, s *ruleset.Set, elems []ruleset.Element) error
	// AddElements puts elements into a set that packets could fill, for a time, and
	// returns the generation after it. One that is there already is not an error.
	AddElements(ctx context.Context, t nft.TableRef, s *ruleset.Set, elems []ruleset.Element, timeout time.Duration) (uint32, error)
}

// Addresses holds the services' addresses on devices. Implementation: vip.Keeper.
type Addresses interface {
	Sync(ctx context.Context, want []vip.Want) (vip.Report, error)
	Announce(ctx context.Context, dev string, addrs []netip.Addr) <-chan error
}

// Tables is the list of tables that are weir's; no other is ever read or touched. The first
// is that of the services.
var Tables = append(ruleTables[:len(ruleTables):len(ruleTables)], BlocksTable)

// ruleTables are all but that of the blocklists, which a Fence may look after.
var ruleTables = []nft.TableRef{{Family: ruleset.Inet, Name: plan.TableName}, DirectTable, SteerTable(model.IPv4), SteerTable(model.IPv6),
	MirrorsTable(model.IPv4), MirrorsTable(model.IPv6)}

// DirectTable sends packets on where they come in. It is there where a service has backends
// that answer clients themselves.
var DirectTable = nft.TableRef{Family: ruleset.Netdev, Name: plan.TableName}

// SteerTable sends steered packets on to backends that answer clients themselves. It is there where
// a service has such for the family.
func SteerTable(f model.Family) nft.TableRef {
	return nft.TableRef{Family: ruleset.TableFamily(f), Name: plan.TableName}
}

// BlocksTable holds the blocklists. It is there where something is blocked.
var BlocksTable = nft.TableRef{Family: ruleset.Inet, Name: plan.BlocksTableName}

// Engine brings a network namespace to what a model says. Its methods must not be called
// at the same time.
type Engine struct {
	Kernel    Kernel
	Addresses Addresses // nil: addresses are not weir's business
	Tunnels   Tunnels   // nil: tunnels are not weir's business
	Wires     Wires     // nil: the box is taken for what services with direct return need
	// Blocked is what blocklists come to, for the next Apply; nil: nothing is blocked.
	Blocked *blocklist.Compiled
	// NoTimeouts says that the kernel has no ct timeouts: those of pools are left out.
	NoTimeouts bool
	// Steering answers for steered services; nil: nobody does.
	Steering Steerers

	// MirrorEnds is when mirrors end that end by themselves, for the next Apply; nil: what the
	// kernel knows of them stays, and the others begin.
	MirrorEnds map[string]time.Time

	plan *plan.Plan       // what is wanted
	have *ruleset.Ruleset // what the kernel holds; nil when that is not known
	gen  uint32           // the generation at which it did; guarded by turns
	// turns are those of this engine and of its fence.
	turns turns
	fence *Fence // it looks after the blocklists; nil: this engine does
	left  bool   // a change may have left something in the kernel that nobody meets
}

// tables are those that the engine looks after.
func (e *Engine) tables() []nft.TableRef {
	if e.fence != nil {
		return ruleTables
	}
	return Tables
}

// Report is what a step did.
type Report struct {
	Delta     *ruleset.Delta
	Moves     []plan.Move
	Addresses vip.Report
	Tunnels   TunnelReport
	Forgotten int           // sticky clients whose backend went
	Read      time.Duration // time to read what was there; 0 if it was known
	Plan      time.Duration
	Commit    time.Duration
	Left      bool // of a repair: what there was to do may be what a change of weir's own left

	left error // why it left something
}

// attempts bounds how often a step starts again because somebody else committed rules
// between its look at the kernel and its own commit.
const attempts = 20

// Apply makes the kernel do what cfg says. When the commit fails the kernel is as it was,
// and so is what Plan returns. Sticky clients and addresses follow the rules, so that
// nobody is drawn here before the rules know what to do: an error of theirs (a device
// that is not there) comes when the rules are in, and Apply again does what is missing.
func (e *Engine) Apply(ctx context.Context, cfg *model.Config) (Report, error) {
	start := time.Now()
	var rep Report
	if e.plan != nil {
		cfg.Reuse(e.plan.Config)
	}
	next, err := e.build(ctx, cfg)
	if err != nil {
		return rep, err
	}
	rep.Plan = time.Since(start)
	if e.Steering != nil {
		if err := e.Steering.Prepare(next); err != nil {
			return rep, err
		}
	}
	if err := e.commit(ctx, next, &rep); err != nil {
		return rep, err
	}
	old := e.plan
	e.plan = next
	if e.Steering != nil {
		e.Steering.Take(next)
	}
	n, err := e.forget(ctx, old)
	rep.Forgotten = n
	return rep, errors.Join(rep.left, err, e.switches(ctx), e.devices(ctx, &rep))
}

// Repair makes the kernel do again what it did after the last Apply, if it does not. The
// report's delta is empty when nothing had to be done.
func (e *Engine) Repair(ctx context.Context) (Report, error) {
	var rep Report
	same, err := e.turns.current(e.Kernel, &e.gen)
	if err != nil {
		return rep, err
	}
	if e.have != nil && same {
		rep.Delta = &ruleset.Delta{}
		return rep, e.devices(ctx, &rep)
	}
	e.have, rep.Left = nil, e.left
	if err := e.commitAs(ctx, e.plan, readAgain(e.plan.Ruleset), &rep); err != nil {
		return rep, err
	}
	return rep, errors.Join(rep.left, e.switches(ctx), e.devices(ctx, &rep))
}

// Plan returns the plan that was applied last, nil before the first.
func (e *Engine) Plan() *plan.Plan { return e.plan }

// Known reports whether the engine knows what the kernel holds. It does not after a commit
// that failed.
func (e *Engine) Known() bool { return e.have != nil }

// Moved tells the engine that somebody committed rules at generation gen that touch none
// of weir's tables, so that nothing has to be read again.
func (e *Engine) Moved(gen uint32) {
	if e.have != nil {
		e.turns.moved(&e.gen, gen)
	}
}

// PlanOf returns the plan of cfg as Apply would make it.
func (e *Engine) PlanOf(ctx context.Context, cfg *model.Config) (*plan.Plan, error) {
	return e.build(ctx, cfg)
}

// Preview returns what Apply would do to the rules, and does nothing.
func (e *Engine) Preview(ctx context.Context, cfg *model.Config) (*plan.Plan, *ruleset.Delta, error) {
	next, err := e.build(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	have, _, err := e.Kernel.Read(ctx, Tables, next.Ruleset)
	if err != nil {
		return nil, nil, err
	}
	return next, ruleset.Diff(have, next.Ruleset), nil
}

// commit brings the kernel's rules to those of next.
func (e *Engine) commit(ctx context.Context, next *plan.Plan, rep *Report) error {
	return e.commitAs(ctx, next, next.Ruleset, rep)
}

// commitAs is commit where what there is, if that is not known, is read with expect.
func (e *Engine) commitAs(ctx context.Context, next *plan.Plan, expect *ruleset.Ruleset, rep *Report) error {
	var err error
	for range attempts {
		if e.have == nil {
			start := time.Now()
			have, gen, err := e.Kernel.Read(ctx, e.tables(), expect)
			if err != nil {
				return fmt.Errorf("read the rules: %w", err)
			}
			e.have = have
			e.turns.set(&e.gen, gen)
			rep.Read += time.Since(start)
		}
		d := ruleset.Diff(e.have, next.Ruleset)
		if rep.left == nil { // else it is what was left that is to go
			rep.Delta, rep.Moves = d, next.Moves(d)
		}
		if d.Empty() {
			e.have, e.left, rep.left = next.Ruleset, false, nil
			return nil
		}
		start := time.Now()
		if err := SettleCounts(ctx, e.Kernel, d, next.Blocks); err != nil {
			// Somebody may have taken sets away: without them there is nothing to read.
			e.have = nil
			return fmt.Errorf("read the counters of blocklists: %w", err)
		}
		var changed bool
		changed, err = e.steps(ctx, d.Steps())
		rep.Commit = time.Since(start)
		if err == nil {
			e.have, rep.left = next.Ruleset, nil
			return nil
		}
		e.have = nil // whatever went wrong, look again before the next try
		if changed {
			rep.left = fmt.Errorf("the rules are in force, but not all that they replace is gone: %w", err)
		}
		again := errors.Is(err, nft.ErrStale) || errors.Is(err, nft.ErrUncertain)
		switch {
		case again && ctx.Err() == nil:
		case rep.left != nil:
			return nil
		case again:
			return ctx.Err()
		default:
			return fmt.Errorf("commit the rules: %w", err)
		}
	}
	if rep.left != nil {
		return nil
	}
	return fmt.Errorf("commit the rules: others changed theirs %d times meanwhile: %w", attempts, err)
}

// forget deletes what sticky maps remember of backends that take no new connections any
// more. old is the plan before, nil after a start, when what is there is from a weir
// that may have been killed half-way through.
func (e *Engine) forget(ctx context.Context, old *plan.Plan) (int, error) {
	forgotten := 0
	var errs []error
	for _, s := range e.plan.StickyChanges(old) {
		var gone []ruleset.Element
		err := e.Kernel.Elements(ctx, Tables[0], s.Map, func(el nft.Elem) bool {
			if s.Gone(el.Key, el.Data) {
				gone = append(gone, el.Element)
			}
			return true
		})
		if err == nil && len(gone) > 0 {
			err = e.Kernel.DeleteElements(ctx, Tables[0], s.Map, gone)
			forgotten += len(gone)
		}
		errs = append(errs, err)
	}
	return forgotten, errors.Join(errs...)
}

// addresses brings the devices' addresses to what the plan wants, and announces the new.
func (e *Engine) addresses(ctx context.Context, rep *Report) error {
	if e.Addresses == nil {
		return nil
	}
	var err error
	rep.Addresses, err = e.Addresses.Sync(ctx, WantedAddresses(e.plan.Config))
	fresh := map[string][]netip.Addr{}
	for _, w := range rep.Addresses.Added {
		fresh[w.Dev] = append(fresh[w.Dev], w.Addr)
	}
	for dev, addrs := range fresh {
		e.Addresses.Announce(ctx, dev, addrs)
	}
	return err
}

// WantedAddresses returns the addresses that weir holds for the services and pools that say so.
func WantedAddresses(cfg *model.Config) []vip.Want {
	var want []vip.Want
	for _, s := range cfg.Services {
		if s.Assign == "" {
			continue
		}
		for _, l := range s.Listen {
			want = append(want, vip.Want{Dev: s.Assign, Addr: l.Addr})
		}
	}
	for _, p := range cfg.Egress {
		if p.Assign == "" {
			continue
		}
		for _, a := range append(p.Addrs(model.IPv4), p.Addrs(model.IPv6)...) {
			want = append(want, vip.Want{Dev: p.Assign, Addr: a})
		}
	}
	return want
}

// Clear removes everything that is weir's from the kernel. It reports whether there was
// anything.
func (e *Engine) Clear(ctx context.Context) (bool, error) {
	empty := &plan.Plan{Config: &model.Config{}, Ruleset: &ruleset.Ruleset{}}
	var rep Report
	e.have = nil
	if err := e.commit(ctx, empty, &rep); err != nil {
		return false, err
	}
	e.plan = empty
	err := e.devices(ctx, &rep)
	return !rep.Delta.Empty() || len(rep.Addresses.Removed)+len(rep.Tunnels.Removed) > 0, err
}
