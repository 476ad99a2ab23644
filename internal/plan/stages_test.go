package plan

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// TestStages goes from lists to others in transactions of a few elements: after each of them
// an address that both block is blocked, and one that neither blocks is not; none is larger
// than it may be, but for that which changes what leads to the entries; and the last gives
// the table that is wanted.
func TestStages(t *testing.T) {
	split := 0
	rapid.Check(t, func(t *rapid.T) {
		lists, near := randomLists(t)
		more, nearer := randomLists(t)
		var from *Blocks
		have := &ruleset.Ruleset{}
		if rapid.Bool().Draw(t, "there is one") {
			from = NewBlocks(compiled(t, lists), nil)
			have = rulesetOf(from)
		}
		if rapid.Bool().Draw(t, "much stays") {
			for a, l := range lists {
				more[a] = append(more[a], l...)
			}
		}
		to := NewBlocks(compiled(t, more), from)
		d := ruleset.Diff(have, rulesetOf(to))
		most := max(1, changed(d)/rapid.IntRange(1, 9).Draw(t, "stages"))
		var fromTable *ruleset.Table
		if from != nil {
			fromTable = from.table
		}
		s := NewStages(fromTable, to, d, most)
		if len(s.Deltas) > 1 {
			split++
		}
		before := ruleset.NewEvaluator(have)
		after := ruleset.NewEvaluator(rulesetOf(to))
		for i := range len(s.Deltas) + 1 {
			table := s.At(i)
			if i > 0 && i < len(s.Deltas) {
				if n := changed(s.Deltas[i]); n > most && i != s.switched-1 {
					t.Fatalf("stage %d of %d has %d elements", i, len(s.Deltas), n)
				}
				if slices.Equal(table.Chain(chainContent).Fingerprints(), to.table.Chain(chainContent).Fingerprints()) {
					t.Fatal("the marker says on the way that it has come to the end")
				}
			}
			now := &ruleset.Ruleset{}
			if table != nil {
				now.Tables = []*ruleset.Table{table}
			}
			ev := ruleset.NewEvaluator(now)
			for _, a := range append(near, nearer...) {
				if !a.IsValid() {
					continue
				}
				was, is, will := meets(before, a), meets(ev, a), meets(after, a)
				if was && will && !is || !was && !will && is {
					t.Fatalf("%s after %d of %d stages: blocked %t; before %t, in the end %t", a, i, len(s.Deltas), is, was, will)
				}
			}
			if rest := ruleset.Diff(now, rulesetOf(to)); i == len(s.Deltas) && !rest.Empty() {
				t.Fatalf("in the end there is to do: %s", rest)
			}
		}
	})
	if split == 0 {
		t.Error("nothing was split")
	}
}

// meets reports whether packets from an address are blocked.
func meets(ev *ruleset.Evaluator, a netip.Addr) bool {
	dst := netip.MustParseAddrPort("203.0.113.250:80")
	if a.Is6() {
		dst = netip.MustParseAddrPort("[2001:db8:ffff::1]:80")
	}
	got := ev.Eval(ruleset.Packet{Src: netip.AddrPortFrom(a, 1000), Dst: dst, Proto: model.TCP}, nil)
	return got.Verdict != ruleset.Accepted
}

// TestSmallChangeIsOne: what is small, and what cannot be split, is one transaction.
func TestSmallChangeIsOne(t *testing.T) {
	from := NewBlocks(compiled(t, map[blocklist.Action][]string{blocklist.Drop: mixed(40, 1)}), nil)
	for name, lines := range map[string][]string{"small": mixed(41, 1), "a larger set": mixed(4000, 1)} {
		to := NewBlocks(compiled(t, map[blocklist.Action][]string{blocklist.Drop: lines}), from)
		d := ruleset.Diff(rulesetOf(from), rulesetOf(to))
		s := NewStages(from.table, to, d, 100)
		if len(s.Deltas) != 1 || s.Deltas[0] != d {
			t.Errorf("%s: %d transactions", name, len(s.Deltas))
		}
	}
}
