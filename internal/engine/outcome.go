package engine

import (
	"fmt"
	"slices"
	"strings"
)

// Outcome is what a step did, in words. Its JSON form is part of weir's interface.
type Outcome struct {
	Changed  bool     `json:"changed"`
	Summary  string   `json:"summary"`
	ReadMS   float64  `json:"read_ms"`
	PlanMS   float64  `json:"plan_ms"`
	CommitMS float64  `json:"commit_ms"`
	Added    []string `json:"addresses_added"`
	Removed  []string `json:"addresses_removed"`
	Warnings []string `json:"warnings"`
}

// Outcome returns r in words.
func (rep Report) Outcome() Outcome {
	out := Outcome{Summary: rep.Delta.Summary(), Added: []string{}, Removed: []string{}, Warnings: []string{},
		ReadMS:   rep.Read.Seconds() * 1000,
		PlanMS:   rep.Plan.Seconds() * 1000,
		CommitMS: rep.Commit.Seconds() * 1000,
	}
	var words []string
	if !rep.Delta.Empty() {
		words = append(words, out.Summary)
	}
	for _, w := range rep.Addresses.Added {
		out.Added = append(out.Added, w.Addr.String()+" on "+w.Dev)
	}
	for _, h := range rep.Addresses.Removed {
		out.Removed = append(out.Removed, h.Prefix.Addr().String()+" on "+h.Dev)
	}
	if len(out.Added) > 0 {
		words = append(words, "addresses added: "+strings.Join(out.Added, ", "))
	}
	if len(out.Removed) > 0 {
		words = append(words, "addresses removed: "+strings.Join(out.Removed, ", "))
	}
	words = append(words, rep.Tunnels.words()...)
	for _, h := range rep.Addresses.Foreign {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%s is on %s already, put there by somebody else: it stays as it is, also when weir goes",
			h.Prefix.Addr(), h.Dev))
	}
	for _, d := range slices.Compact(rep.Addresses.Down) {
		out.Warnings = append(out.Warnings, fmt.Sprintf("device %s is down", d))
	}
	out.Changed = len(words) > 0
	out.Summary = strings.Join(words, "; ")
	return out
}

// with returns out with what was done to the blocklists beside it.
func (out Outcome) with(lists Outcome) Outcome {
	if lists.Summary != "" {
		if out.Summary != "" {
			out.Summary += "; "
		}
		out.Summary += lists.Summary
	}
	out.Changed = out.Changed || lists.Changed
	out.ReadMS, out.PlanMS, out.CommitMS = out.ReadMS+lists.ReadMS, out.PlanMS+lists.PlanMS, out.CommitMS+lists.CommitMS
	out.Warnings = append(slices.Clip(out.Warnings), lists.Warnings...)
	return out
}
