package ruleset

// State remembers from packet to packet what the kernel does: where each counting
// numgen stands, and what dynamic sets and maps hold. It knows no time: nothing runs out
// until [State.Forget]. The zero value is a ruleset just loaded.
type State struct {
	next map[numgenKey]uint32
	dyn  map[dynKey]string
	open map[dynKey]int // connections that are counted
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
		Counted: func(set, key string) int { return s.open[dynKey{set, key}] },
	}
}

// Keep takes over the elements that t's rules added, and counts the connection where they
// did: as open, until [State.Close], unless it was refused.
func (s *State) Keep(t Trace) {
	if s.dyn == nil {
		s.dyn = map[dynKey]string{}
	}
	for _, u := range t.Updates {
		s.dyn[dynKey{u.Set, u.Key}] = u.Data
	}
	if t.Verdict != Accepted {
		return
	}
	if s.open == nil {
		s.open = map[dynKey]int{}
	}
	for _, c := range t.Counts {
		s.open[dynKey{c.Set, c.Key}]++
	}
}

// Close takes a connection that Keep counted out of the count.
func (s *State) Close(t Trace) {
	for _, c := range t.Counts {
		s.open[dynKey{c.Set, c.Key}]--
	}
}

// Forget removes an element, as its timeout would.
func (s *State) Forget(set, key string) { delete(s.dyn, dynKey{set, key}) }
