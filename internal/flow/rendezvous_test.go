package flow

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func ids(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("192.0.2.%d", i)
	}
	return out
}

// TestRendezvousMovesOnlyWhatMust takes a member away: its slots alone change hands, and go to
// who came second there.
func TestRendezvousMovesOnlyWhatMust(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := ids(rapid.IntRange(2, 20).Draw(t, "members"))
		gone := rapid.IntRange(0, len(all)-1).Draw(t, "gone")
		rest := slices.Delete(slices.Clone(all), gone, gone+1)
		m := rapid.IntRange(1, 500).Draw(t, "slots")
		before, second := Rendezvous(all, m)
		after, _ := Rendezvous(rest, m)
		for slot := range before {
			want := before[slot]
			if int(want) == gone {
				want = second[slot]
			}
			if got := rest[after[slot]]; got != all[want] {
				t.Fatalf("slot %d goes from %s to %s, want %s", slot, all[before[slot]], got, all[want])
			}
		}
	})
}

func TestRendezvousOrder(t *testing.T) {
	list := ids(7)
	a, _ := Rendezvous(list, 300)
	back := slices.Clone(list)
	slices.Reverse(back)
	b, _ := Rendezvous(back, 300)
	for i := range a {
		if list[a[i]] != back[b[i]] {
			t.Fatalf("slot %d: %s, and in another order %s", i, list[a[i]], back[b[i]])
		}
	}
}

func TestRendezvousShares(t *testing.T) {
	for _, n := range []int{1, 2, 6, 10} {
		const m = 4093
		first, second := Rendezvous(ids(n), m)
		count := make([]float64, n)
		for slot, i := range first {
			count[i]++
			if n == 1 && second[slot] != -1 || n > 1 && second[slot] == i {
				t.Fatalf("slot %d belongs to %d, and next to %d", slot, i, second[slot])
			}
		}
		share := float64(m) / float64(n)
		for i, c := range count {
			if math.Abs(c-share) > 5*math.Sqrt(share) {
				t.Errorf("member %d of %d has %.0f slots, want about %.0f", i, n, c, share)
			}
		}
	}
}

// TestRendezvousGolden holds the table itself: another version must make the same.
func TestRendezvousGolden(t *testing.T) {
	first, second := Rendezvous(ids(4), 16)
	if got, want := fmt.Sprint(first, second), goldenRendezvous; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if first, second := Rendezvous(nil, 16); first != nil || second != nil {
		t.Error("a table of nobody")
	}
}

const goldenRendezvous = "[3 0 2 3 0 1 1 0 2 3 3 2 1 2 0 0] [2 3 3 0 1 0 2 1 1 1 2 1 0 3 3 3]"
