package ruleset

// State remembers from packet to packet what the kernel does: where each counting
// numgen stands, and what dynamic sets and maps hold. It knows no time: nothing runs out
// until [State.Forget]. The zero value is a ruleset just loaded.
type State struct {
	next map[numgenKey]uint32
	dyn  map[dynKey]string
}

type numgenKey struct {
	rule *Rule
	n    Numgen
}

// Env returns what Eval needs to go on from the state; random numbers are counted too.
// The choice counts as soon as it is asked for; Keep adds what else Eval did.
func (s *State) Env() *Env {
	return &Env{
		Next: func(r *Rule, n Numgen) uint32 {
			if s.next == nil {
				s.next = map[numgenKey]uint32{}
			}
			k := numgenKey{r, n}
			v := s.next[k]
			s.next[k] = (v + 1) % n.Mod
			return v
		},
		Dynamic: func(set, key string) (string, bool) {
			data, ok := s.dyn[dynKey{set, key}]
			return data, ok
		},
	}
}

// Keep takes over the elements that t's rules added.
func (s *State) Keep(t Trace) {
	if s.dyn == nil {
		s.dyn = map[dynKey]string{}
	}
	for _, u := range t.Updates {
		s.dyn[dynKey{u.Set, u.Key}] = u.Data
	}
}

// Forget removes an element, as its timeout would.
func (s *State) Forget(set, key string) { delete(s.dyn, dynKey{set, key}) }
