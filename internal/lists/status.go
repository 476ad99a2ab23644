package lists

import (
	"net/netip"
	"slices"
	"time"

	"weir/internal/blocklist"
)

// Status is what is known of one list. Its JSON form is part of weir's interface.
type Status struct {
	Name    string           `json:"name"`
	Action  string           `json:"action"`
	InUse   bool             `json:"in_use"`
	Entries int              `json:"entries"`           // in use
	Size    blocklist.Size   `json:"size"`              // of what is in use
	Counts  blocklist.Counts `json:"counts"`            // of what was read
	Files   []blocklist.File `json:"files"`             // that were read
	ReadAt  time.Time        `json:"read_at,omitzero"`  // when what is in use was read
	Problem string           `json:"problem,omitempty"` // why what was read last is not in use
	Skipped []string         `json:"skipped,omitempty"` // the first lines that were left out, and why
}

// Status returns what is known of all lists, those of the configuration in its order, then
// that of the operators, if there is one.
func (k *Keeper) Status() []Status { return slices.Clone(k.shown.Load().status) }

func (k *Keeper) status() []Status {
	out := []Status{}
	for _, s := range k.lists {
		st := Status{Name: s.decl.Name, Action: s.decl.Action.String(), Files: []blocklist.File{}, Problem: s.problem}
		if s.cuts != "" {
			st.Problem = s.cuts
		}
		if st.Problem == "" {
			st.Problem = k.guard
		}
		if l := s.inUse(); l != nil {
			st.fill(l)
			st.ReadAt = s.goodAt
		}
		out = append(out, st)
	}
	if k.operator != nil {
		st := Status{Name: Operator, Action: blocklist.Drop.String(), Problem: k.guard}
		st.fill(k.operator)
		st.Files = []blocklist.File{}
		out = append(out, st)
	}
	return out
}

func (st *Status) fill(l *blocklist.List) {
	st.InUse, st.Entries, st.Size, st.Counts = true, l.Len(), l.Size(), l.Counts
	st.Files = append(st.Files, l.Files...)
	for _, p := range l.Problems {
		st.Skipped = append(st.Skipped, p.Error())
	}
}

// Answer is why packets from an address meet what they meet.
type Answer struct {
	blocklist.Answer
	Block *Block // what an operator said of it, the most specific; nil: nothing
}

// Lookup returns what the lists say of an address.
func (k *Keeper) Lookup(a netip.Addr) Answer {
	v := k.shown.Load()
	out := Answer{Answer: v.compiled.Lookup(a)}
	for i, b := range v.blocks {
		if b.Prefix.Contains(a) && (out.Block == nil || b.Prefix.Bits() > out.Block.Prefix.Bits()) {
			out.Block = &v.blocks[i]
		}
		for j := range out.Matches {
			if m := &out.Matches[j]; m.List == Operator && m.Entry == b.Text() {
				m.Since = b.At
			}
		}
	}
	return out
}
