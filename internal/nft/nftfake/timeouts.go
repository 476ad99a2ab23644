package nftfake

import (
	"slices"

	"weir/internal/ruleset"
)

func named(name string) func(*ruleset.Timeouts) bool {
	return func(o *ruleset.Timeouts) bool { return o.Name == name }
}

// timesOf returns the ct timeout objects that a rule names.
func timesOf(r *ruleset.Rule) []string {
	var names []string
	for _, s := range r.Stmts {
		if t, ok := s.(ruleset.SetTimeouts); ok {
			names = append(names, t.Name)
		}
	}
	return names
}

func (t *table) timesUsed(name string) bool {
	return slices.ContainsFunc(t.chains, func(c *chain) bool {
		return slices.ContainsFunc(c.rules, func(r rule) bool { return slices.Contains(timesOf(&r.Rule), name) })
	})
}
