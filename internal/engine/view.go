package engine

import (
	"context"
	"slices"
	"time"

	"weir/internal/egress"
	"weir/internal/health"
	"weir/internal/host"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/state"
)

// View is what a Loop knows at one time. Whoever got it may keep it.
type View struct {
	Config   *model.Config              // as loaded last
	Backends map[string][]state.Backend // by service, in the order of the configuration
	Words    map[Member]state.Word      // what operators said
	Checks   map[Member]Health          // of the backends that are asked
	Health   map[Member]state.Health    // what follows from the checks, where anything does
	Applied  bool                       // the kernel does all that; else it is tried again. Blocklists: see Behind
	Last     Outcome                    // of the last step
	Pending  string                     // the id of the change that waits, "": none
	Waiting  *Waiting                   // the change that waits for its confirmation
	Rejected *Rejected                  // the one that was not confirmed last
	Findings []host.Finding             // what is wrong on the box; nil: not known
	Lists    []lists.Status             // the blocklists
	Said     []lists.Block              // what operators blocked
	Blocks   *plan.Blocks               // what of them is in the kernel; nil: nothing is
	Behind   bool                       // the kernel has not the blocklists yet: they are on their way, or tried again

	Pools  []*model.Pool  // egress pools with what is known of them
	Drains []AddressDrain // addresses of pools that operators drain
	Alarms []egress.Alarm // what of pools is full or nearly so

	Steering map[string]SteeringStatus // of the steered services that are answered for

	plan *plan.Plan // the last that was applied; nil before the first
}

// View waits until the loop has tried to apply what it was told before, and returns what
// it knows then.
func (l *Loop) View(ctx context.Context) (View, error) {
	v := View{Backends: map[string][]state.Backend{}, Checks: map[Member]Health{}}
	err := l.Do(ctx, func() {
		v.Config, v.Words, v.Applied = l.file, l.roster.Words(), !l.pending
		v.Health, v.Last = l.roster.Found(), l.last
		if l.book.Pending != nil {
			v.Pending = l.book.Pending.ID
		}
		v.Waiting, v.Rejected = NewWaiting(l.book.Pending, l.Clock()), NewRejected(l.book.Rejected)
		v.Findings = l.findings // replaced, never changed
		for _, s := range l.file.Services {
			v.Backends[s.Name] = slices.Clone(l.roster.Backends(s))
		}
		for m, t := range l.trackers {
			v.Checks[m] = Health{true, t.Snapshot()}
		}
		v.plan = l.Engine.Plan()
		v.Pools, v.Drains, v.Alarms = l.withPools(l.file).Egress, l.addressDrains(), l.usage.Alarms
		if l.Engine.Steering != nil {
			v.Steering = l.Engine.Steering.Status()
		}
		if l.fencer != nil {
			v.Lists, v.Said = l.Lists.Status(), l.Lists.Blocks()
			v.Blocks = l.fencer.fence.Blocks()
			var last Outcome
			v.Behind, last = l.fencer.behind()
			v.Last = v.Last.with(last)
		}
	})
	return v, err
}

// Reached reports whether the kernel does all that is wanted, blocklists among it.
func (v *View) Reached() bool { return v.Applied && !v.Behind }

// Status returns v with the kernel's counters, and with the live connections, as far as
// they are known. name picks one service; "" is all of them, and one that v does not have
// gives a status without services.
func (v *View) Status(ctx context.Context, k Counters, live map[Member]int, name string) (Status, error) {
	cfg := *v.Config
	if name != "" {
		cfg.Services = slices.DeleteFunc(slices.Clone(cfg.Services), func(s *model.Service) bool { return s.Name != name })
	}
	st, err := newStatus(&cfg), error(nil)
	if v.plan != nil {
		st, err = readStatus(ctx, k, &cfg, v.plan)
	} else {
		st.Loaded = true // as far as was asked
	}
	st.readTables(&cfg)
	if name != "" {
		st.Edge, st.Leaks = nil, nil
	}
	st.Waiting, st.Rejected = v.Waiting, v.Rejected
	applied := v.Reached()
	st.Findings, st.Applied, st.Lists = v.Findings, &applied, v.Lists
	st.Egress = egressAlarms(v.Alarms)
	for i, s := range cfg.Services {
		v.describe(s, live, st.Services[i].Backends)
		if steering, ok := v.Steering[s.Name]; ok && s.Steered() {
			st.Services[i].Steering = &steering
		}
	}
	return st, err
}

// describe adds to a service's backends what is known beyond the counters.
func (v *View) describe(s *model.Service, live map[Member]int, out []BackendStatus) {
	states := v.Backends[s.Name]
	if len(states) != len(out) {
		return // the first step is still to come
	}
	sum := map[model.Family]int{}
	for i, b := range s.Backends {
		sum[b.Family()] += states[i].Weight
	}
	for i, b := range s.Backends {
		m, o := Member{s.Name, b.ID()}, &out[i]
		o.State, o.Reason, o.Since = string(states[i].State), states[i].Reason, states[i].Since
		if w := v.Words[m].Weight; w != nil {
			o.Weight = *w
		}
		o.Share = 0
		if n := sum[b.Family()]; n > 0 {
			o.Share = float64(states[i].Weight) / float64(n)
		}
		if live != nil && !s.Direct() { // of whose connections nobody knows here
			n := live[m]
			o.Active = &n
		}
		if c, ok := v.Checks[m]; ok && !c.Last.At.IsZero() {
			o.Check = checkStatus(c.Last)
		}
	}
}

func checkStatus(r health.Result) *CheckStatus {
	return &CheckStatus{OK: r.OK, Void: r.Void, Detail: r.Detail, At: r.At,
		LatencyMS: float64(r.Latency.Round(time.Microsecond)) / float64(time.Millisecond)}
}
