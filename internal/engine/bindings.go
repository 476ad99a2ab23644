package engine

import (
	"slices"

	"weir/internal/binding"
	"weir/internal/model"
)

// Bindings logs which client had which address and port of a pool. Implementation:
// binding.Logger.
type Bindings interface {
	// Set says which pools there are in the kernel now. It does not wait.
	Set(cfg *model.Config)
	// Status returns how the log fares; nil: nothing is logged.
	Status() *binding.Status
}

// bind tells the log of bindings what the kernel does.
func (l *Loop) bind() {
	if l.Bindings != nil && l.Engine.Plan() != nil {
		l.Bindings.Set(l.Engine.Plan().Config)
	}
}

// bearable returns cfg without what the kernel cannot do and that is no reason to do nothing:
// the times of pools.
func (e *Engine) bearable(cfg *model.Config) *model.Config {
	if !e.NoTimeouts || !slices.ContainsFunc(cfg.Egress, func(p *model.Pool) bool { return len(p.Timeouts) > 0 }) {
		return cfg
	}
	out := *cfg
	out.Egress = slices.Clone(cfg.Egress)
	for i, p := range out.Egress {
		if len(p.Timeouts) > 0 {
			without := *p
			without.Timeouts = nil
			out.Egress[i] = &without
		}
	}
	return &out
}
