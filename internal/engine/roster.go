package engine

import (
	"time"

	"weir/internal/model"
	"weir/internal/state"
)

// Member names a backend of a service.
type Member struct {
	Service string
	Backend string // model.Backend.ID
}

// Transition is a backend's change from one state to another.
type Transition struct {
	Member
	From, To state.Name
	Reason   string
	At       time.Time
}

// Roster is what is known of every backend, and which of them take new connections. It
// has no clock and no goroutine; Loop feeds it and asks it for the configuration that
// is to be planned.
type Roster struct {
	cfg    *model.Config
	names  map[string]*model.Service
	inputs map[Member]*state.Input // of those of whom anything is known
	seats  map[*model.Service]*seat
	dirty  map[*model.Service]bool
}

// seat is what was decided for one service.
type seat struct {
	members   []Member // of the backends, in order
	backends  []state.Backend
	effective *model.Service
	next      time.Time // when time alone may change it; zero: never
}

// NewRoster returns a roster in which words are what operators said before.
func NewRoster(words map[Member]state.Word) *Roster {
	r := &Roster{inputs: map[Member]*state.Input{}}
	for m, w := range words {
		r.inputs[m] = &state.Input{Word: w, Connections: state.NotCounted}
	}
	return r
}

// Load takes a new configuration. What is known of backends that it does not name is
// forgotten, but for the operators' words: a backend that comes back is as they said.
func (r *Roster) Load(cfg *model.Config) {
	old := r.seats
	r.cfg, r.seats, r.dirty = cfg, make(map[*model.Service]*seat, len(cfg.Services)), map[*model.Service]bool{}
	r.names = make(map[string]*model.Service, len(cfg.Services))
	for _, s := range cfg.Services {
		r.names[s.Name] = s
		st := old[s]
		if st == nil {
			st = newSeat(s)
			if r.says(st) {
				r.dirty[s] = true
			}
		}
		r.seats[s] = st
	}
	for m, in := range r.inputs {
		switch {
		case r.service(m) != nil:
		case in.Word == (state.Word{}):
			delete(r.inputs, m)
		default:
			*in = state.Input{Word: in.Word, Connections: state.NotCounted}
		}
	}
}

// newSeat returns the seat of a service of whose backends nothing is known.
func newSeat(s *model.Service) *seat {
	st := &seat{members: make([]Member, len(s.Backends)), effective: s}
	for i, b := range s.Backends {
		st.members[i] = Member{s.Name, b.ID()}
	}
	st.backends, st.next = state.Decide(s, make([]state.Input, len(s.Backends)), time.Time{})
	st.effective = state.Effective(s, st.backends)
	return st
}

// says reports whether anything is known of a service's backends.
func (r *Roster) says(st *seat) bool {
	for _, m := range st.members {
		if r.inputs[m] != nil {
			return true
		}
	}
	return false
}

// Knows reports whether the configuration names m.
func (r *Roster) Knows(m Member) bool { return r.service(m) != nil }

// service returns the service of m if it has that backend.
func (r *Roster) service(m Member) *model.Service {
	s := r.names[m.Service]
	if s == nil {
		return nil
	}
	for _, o := range r.seats[s].members {
		if o == m {
			return s
		}
	}
	return nil
}

// Say takes an operator's word; the zero Word takes back what was said. It reports
// whether there is such a backend.
func (r *Roster) Say(m Member, w state.Word) bool {
	return r.change(m, func(in *state.Input) {
		if in.Word.Admin != w.Admin {
			in.Connections = state.NotCounted // nobody looked at them until now
		}
		in.Word = w
	})
}

// Health takes what the checks found.
func (r *Roster) Health(m Member, h state.Health) bool {
	if in := r.inputs[m]; in == nil && h == (state.Health{}) || in != nil && in.Health == h {
		return true
	}
	return r.change(m, func(in *state.Input) { in.Health = h })
}

// Connections takes the number of live connections.
func (r *Roster) Connections(m Member, n int) bool {
	if in := r.inputs[m]; in != nil && in.Connections == n {
		return true
	}
	return r.change(m, func(in *state.Input) { in.Connections = n })
}

func (r *Roster) change(m Member, fn func(*state.Input)) bool {
	s := r.service(m)
	if s == nil {
		return false
	}
	if r.inputs[m] == nil {
		r.inputs[m] = &state.Input{Connections: state.NotCounted}
	}
	fn(r.inputs[m])
	r.dirty[s] = true
	return true
}

// Word returns what an operator said of m.
func (r *Roster) Word(m Member) state.Word {
	if in := r.inputs[m]; in != nil {
		return in.Word
	}
	return state.Word{}
}

// Admin returns whether an operator took m out.
func (r *Roster) Admin(m Member) state.Admin { return r.Word(m).Admin }

// Due reports whether the result of Effective may differ from the last one.
func (r *Roster) Due(now time.Time) bool {
	if len(r.dirty) > 0 {
		return true
	}
	for _, st := range r.seats {
		if !st.next.IsZero() && !now.Before(st.next) {
			return true
		}
	}
	return false
}

// Members returns the names of a service's backends, in their order.
func (r *Roster) Members(s *model.Service) []Member { return r.seats[s].members }

// Words returns what operators said and have not taken back.
func (r *Roster) Words() map[Member]state.Word {
	words := map[Member]state.Word{}
	for m, in := range r.inputs {
		if in.Word != (state.Word{}) {
			words[m] = in.Word
		}
	}
	return words
}

// Down returns the backends that the checks found to be down.
func (r *Roster) Down() map[Member]state.Health {
	down := map[Member]state.Health{}
	for m, in := range r.inputs {
		if in.Health.Down {
			down[m] = in.Health
		}
	}
	return down
}

// Found returns what the checks found, of those backends of which they found anything.
func (r *Roster) Found() map[Member]state.Health {
	found := map[Member]state.Health{}
	for m, in := range r.inputs {
		if in.Health != (state.Health{}) {
			found[m] = in.Health
		}
	}
	return found
}

// Draining returns the backends that finish their connections.
func (r *Roster) Draining() []Member {
	var out []Member
	for _, st := range r.seats {
		for i, b := range st.backends {
			if b.State == state.Draining {
				out = append(out, st.members[i])
			}
		}
	}
	return out
}

// Backends returns the states of a service's backends, in their order.
func (r *Roster) Backends(s *model.Service) []state.Backend {
	if st := r.seats[s]; st != nil {
		return st.backends
	}
	return nil
}

// Effective decides anew where something changed, and returns the configuration to plan
// and the states that changed on the way.
func (r *Roster) Effective(now time.Time) (*model.Config, []Transition) {
	var transitions []Transition
	cfg := *r.cfg
	cfg.Services = make([]*model.Service, len(r.cfg.Services))
	for i, s := range r.cfg.Services {
		st := r.seats[s]
		if r.dirty[s] || !st.next.IsZero() && !now.Before(st.next) {
			transitions = append(transitions, r.decide(s, st, now)...)
		}
		cfg.Services[i] = st.effective
	}
	clear(r.dirty)
	return &cfg, transitions
}

func (r *Roster) decide(s *model.Service, st *seat, now time.Time) []Transition {
	inputs := make([]state.Input, len(st.members))
	for i, m := range st.members {
		if in := r.inputs[m]; in != nil {
			inputs[i] = *in
		}
	}
	before, was := st.backends, st.effective
	var changed []Transition
	st.backends, st.next = state.Decide(s, inputs, now)
	for i, b := range st.backends {
		if before[i].State != b.State {
			changed = append(changed, Transition{st.members[i], before[i].State, b.State, b.Reason, now})
		}
	}
	if st.effective = state.Effective(s, st.backends); st.effective.Equal(was) {
		st.effective = was
	}
	return changed
}
