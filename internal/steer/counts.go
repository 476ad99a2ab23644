package steer

import "sync/atomic"

// line is the number that one worker counts, alone on two cache lines, since processors fetch
// them in pairs: workers on other cores write beside it all the time.
type line struct {
	n atomic.Uint64
	_ [120]byte
}

// tally is one number in as many lines as there are workers.
type tally []line

func (t tally) add(worker int) { t[worker%len(t)].n.Add(1) }

func (t tally) sum() uint64 {
	n := uint64(0)
	for i := range t {
		n += t[i].n.Load()
	}
	return n
}

// counts are the tallies of a set, by the indices of its configuration.
type counts struct {
	rules, targets []tally
	members        [][]tally
	unmatched      tally // no rule, or no IP
	nobody         tally // a target without a member
	named          map[countName]tally
}

// countName is what a number is known by from set to set.
type countName struct{ kind, name, member string }

func newCounts(cfg *Config, before *Set) *counts {
	c := &counts{named: map[countName]tally{}}
	get := func(kind, name, member string) tally {
		k := countName{kind, name, member}
		t := c.named[k]
		if before != nil && t == nil {
			t = before.counts.named[k]
		}
		if len(t) < cfg.Workers {
			t = make(tally, cfg.Workers)
			if before != nil && before.counts.named[k] != nil {
				t[0].n.Store(before.counts.named[k].sum())
			}
		}
		c.named[k] = t
		return t
	}
	c.unmatched, c.nobody = get("unmatched", "", ""), get("nobody", "", "")
	for i := range cfg.Rules {
		c.rules = append(c.rules, get("rule", cfg.Rules[i].Name, ""))
	}
	for i := range cfg.Targets {
		t := &cfg.Targets[i]
		c.targets = append(c.targets, get("target", t.Name, ""))
		var members []tally
		for _, m := range t.Members {
			members = append(members, get("member", t.Name, m.ID))
		}
		c.members = append(c.members, members)
	}
	return c
}

func (c *counts) count(worker int, choice Choice) {
	if choice.Rule < 0 {
		c.unmatched.add(worker)
		return
	}
	c.rules[choice.Rule].add(worker)
	c.targets[choice.Target].add(worker)
	if choice.Member < 0 {
		c.nobody.add(worker)
		return
	}
	c.members[choice.Target][choice.Member].add(worker)
}

// Counts are packets that were asked about.
type Counts struct {
	Rules, Targets []uint64   // by the indices of the configuration
	Members        [][]uint64 // by those of target and member
	Unmatched      uint64     // that no rule wanted
	Nobody         uint64     // whose target had no member with weight
}

// Counts returns what was counted under the names of the set, by sets before it too. Numbers that
// are being counted may be in it or not.
func (s *Set) Counts() Counts {
	sums := func(list []tally) []uint64 {
		out := make([]uint64, len(list))
		for i, t := range list {
			out[i] = t.sum()
		}
		return out
	}
	c := Counts{Rules: sums(s.counts.rules), Targets: sums(s.counts.targets),
		Unmatched: s.counts.unmatched.sum(), Nobody: s.counts.nobody.sum()}
	for _, list := range s.counts.members {
		c.Members = append(c.Members, sums(list))
	}
	return c
}
