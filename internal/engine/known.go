package engine

import (
	"cmp"
	"slices"
	"time"

	"weir/internal/model"
	"weir/internal/state"
)

// Known is what a running weir knows of a backend beyond its configuration, as far as that
// decides what new connections it takes. Its JSON form is part of weir's interface.
type Known struct {
	Service string       `json:"service"`
	Backend string       `json:"backend"`         // its identity
	Word    *state.Word  `json:"word,omitempty"`  // what an operator said
	Check   *KnownHealth `json:"check,omitempty"` // what the checks found
}

// KnownHealth is a state.Health.
type KnownHealth struct {
	Down   bool      `json:"down"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since,omitzero"`
	CameUp bool      `json:"came_up"` // it has been down before: slow_start applies
}

// Known returns what is known of backends, of those alone of whom anything is. There are
// words of backends that the configuration does not name.
func (v *View) Known() []Known {
	members := map[Member]Known{}
	for m, w := range v.Words {
		if w == (state.Word{}) {
			continue // taken back
		}
		members[m] = Known{Service: m.Service, Backend: m.Backend, Word: &w}
	}
	for m, h := range v.Health {
		k := members[m]
		k.Service, k.Backend, k.Check = m.Service, m.Backend, &KnownHealth{h.Down, h.Reason, h.Since, h.CameUp}
		members[m] = k
	}
	out := make([]Known, 0, len(members))
	for _, k := range members {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b Known) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	return out
}

// Known returns what is known from before.
func (m Memory) Known() []Known {
	v := View{Words: m.Words, Health: m.Down}
	return v.Known()
}

// Effective returns cfg with the weights that a weir which knows that would give its
// backends if it loaded cfg now.
func Effective(cfg *model.Config, known []Known, now time.Time) *model.Config {
	words := map[Member]state.Word{}
	for _, k := range known {
		if k.Word != nil {
			words[Member{k.Service, k.Backend}] = *k.Word
		}
	}
	r := NewRoster(words)
	r.Load(cfg)
	for _, k := range known {
		m := Member{k.Service, k.Backend}
		if s, b, ok := find(cfg, m); ok && k.Check != nil && watched(r, s, m, b) != nil {
			r.Health(m, state.Health{Down: k.Check.Down, Reason: k.Check.Reason, Since: k.Check.Since, CameUp: k.Check.CameUp})
		}
	}
	out, _ := r.Effective(now)
	return out
}

// watched returns how a backend is asked; nil: it is not, and nothing of its health counts.
func watched(r *Roster, s *model.Service, m Member, b model.Backend) *model.Check {
	if r.Admin(m) == state.Disable {
		return nil
	}
	return s.CheckOf(b)
}
