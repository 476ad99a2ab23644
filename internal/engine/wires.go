package engine

import (
	"context"
	"fmt"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
)

// Wires sees what the box has for services whose backends answer clients themselves.
// Implementation: segment.Keeper.
type Wires interface {
	// See returns the devices, and those on whose segments the backends are.
	See(cfg *model.Config) (*model.Wires, error)
	// Refresh has the kernel resolve the backends' link-layer addresses, and confirm those
	// that it knows. It does not wait for answers.
	Refresh(w *model.Wires) error
}

// wired completes cfg with what the box has for it.
func (e *Engine) wired(cfg *model.Config) error {
	if e.Wires == nil || len(cfg.DirectServices()) == 0 {
		return nil
	}
	w, err := e.Wires.See(cfg)
	if err != nil {
		return fmt.Errorf("look for the segments of backends: %w", err)
	}
	cfg.Wires = w
	if e.plan != nil && !w.Equal(e.plan.Config.Wires) {
		e.have = nil // what hung on a device that went, went with it
	}
	return nil
}

// Rewired keeps the neighbours of the plan fresh, and reports whether the box has something
// else now than what was planned with.
func (e *Engine) Rewired() (bool, error) {
	if e.Wires == nil || e.plan == nil || len(e.plan.Config.DirectServices()) == 0 {
		return false, nil
	}
	w, err := e.Wires.See(e.plan.Config)
	if err != nil {
		return false, err
	}
	return !w.Equal(e.plan.Config.Wires), e.Wires.Refresh(w)
}

// rewire looks after the wires once in a while.
func (l *Loop) rewire() {
	changed, err := l.Engine.Rewired()
	if changed {
		l.pending = true
		l.Log.Info("the devices or segments of direct return changed")
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != l.wireErr && text != "" {
		l.Log.Warn("neighbours of direct return are not looked after", "error", text)
	}
	l.wireErr = text
}

// RuleCounters reads what rules have counted. Implementation: nft.Conn.
type RuleCounters interface {
	RuleCounters(ctx context.Context, t nft.TableRef) (map[string]nft.Counter, error)
}

// readDirect adds what was sent to backends that answer clients themselves.
func (st *Status) readDirect(ctx context.Context, k RuleCounters, cfg *model.Config) error {
	used := map[nft.TableRef]bool{}
	for _, s := range cfg.DirectServices() {
		if !s.Steered() {
			used[DirectTable] = true
			continue
		}
		for _, f := range s.Families() {
			used[SteerTable(f)] = true
		}
	}
	for table := range used {
		counts, err := k.RuleCounters(ctx, table)
		if err != nil {
			return err
		}
		plan.DirectCounters(cfg, func(chain string, service, backend int) {
			st.credit(spot{service, backend}, traffic(plan.Requests, counts[chain]))
		})
	}
	return nil
}
