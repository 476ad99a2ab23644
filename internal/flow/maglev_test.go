package flow

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Table 1 of the paper: three backends, a table of 7, before and after B1 leaves.
func TestFillPaperTable1(t *testing.T) {
	offsets, skips := []uint32{3, 0, 3}, []uint32{4, 2, 1}
	for _, tc := range []struct {
		weights []int
		want    []int32
	}{
		{[]int{1, 1, 1}, []int32{1, 0, 1, 0, 2, 2, 0}},
		{[]int{1, 0, 1}, []int32{0, 0, 0, 0, 2, 2, 2}},
		{[]int{0, -1, 0}, []int32{-1, -1, -1, -1, -1, -1, -1}},
	} {
		if diff := cmp.Diff(tc.want, Fill(offsets, skips, tc.weights, 7)); diff != "" {
			t.Errorf("weights %v (-want +got):\n%s", tc.weights, diff)
		}
	}
}

// What an ID hashes to and how turns are taken must never change: nodes of different
// versions share flows. The numbers were made with sha256sum and by hand:
//
//	printf 'weir maglev 1\0''10.1.1.1:8080' | sha256sum
func TestMaglevIsStable(t *testing.T) {
	for _, tc := range []struct {
		id           string
		offset, skip uint32
	}{
		{"10.1.1.1:8080", 6, 9},
		{"10.1.1.2:8080", 1, 2},
		{"[2001:db8::1]:8080", 0, 4},
	} {
		if offset, skip := permutation(tc.id, 11); offset != tc.offset || skip != tc.skip {
			t.Errorf("permutation(%s, 11) = %d, %d, want %d, %d", tc.id, offset, skip, tc.offset, tc.skip)
		}
	}
	members := []Member{{"10.1.1.1:8080", 2}, {"10.1.1.2:8080", 1}, {"[2001:db8::1]:8080", 1}}
	want := []int32{2, 1, 0, 1, 0, 1, 0, 0, 2, 0, 2}
	if diff := cmp.Diff(want, Maglev(members, 11)); diff != "" {
		t.Errorf("table changed (-want +got):\n%s", diff)
	}
}

func TestMaglevEmpty(t *testing.T) {
	for _, members := range [][]Member{nil, {{"a", 0}}, {{"a", 0}, {"b", -3}}} {
		for slot, i := range Maglev(members, 101) {
			if i != -1 {
				t.Fatalf("%v: slot %d has member %d", members, slot, i)
			}
		}
	}
}

// Bad arguments must stop at once rather than walk for ever.
func TestMaglevPanics(t *testing.T) {
	one, large := []int{1}, int64(1<<32+15) // a prime
	for name, f := range map[string]func(){
		"m 0":       func() { Maglev(nil, 0) },
		"m 1":       func() { Maglev(nil, 1) },
		"m even":    func() { Maglev(nil, 1024) },
		"m square":  func() { Fill([]uint32{0}, []uint32{1}, one, 49) },
		"offset":    func() { Fill([]uint32{7}, []uint32{1}, one, 7) },
		"skip 0":    func() { Fill([]uint32{0}, []uint32{0}, one, 7) },
		"skip m":    func() { Fill([]uint32{0}, []uint32{7}, one, 7) },
		"many":      func() { TableSize(10486) },
		"lengths":   func() { Fill(nil, nil, one, 7) },
		"too large": func() { Maglev(nil, int(large)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func TestTableSize(t *testing.T) {
	last := 0
	for n := 0; n <= 10485; n++ {
		m := TableSize(n)
		if m < 100*n || m < last || !big.NewInt(int64(m)).ProbablyPrime(0) {
			t.Fatalf("TableSize(%d) = %d", n, m)
		}
		if n > 10 && m > 205*n {
			t.Fatalf("TableSize(%d) = %d is twice as large as it need be", n, m)
		}
		last = m
	}
	for n, want := range map[int]int{0: 1021, 10: 1021, 11: 2039, 20: 2039, 21: 4093, 10485: 1048573} {
		if got := TableSize(n); got != want {
			t.Errorf("TableSize(%d) = %d, want %d", n, got, want)
		}
	}
}

// drawMembers draws up to limit members of weights up to maxWeight, unlike IDs, at
// least one with weight.
func drawMembers(t *rapid.T, limit, maxWeight int) []Member {
	ids := rapid.SliceOfNDistinct(rapid.StringN(0, 20, -1), 1, limit, rapid.ID[string]).Draw(t, "ids")
	weight := rapid.IntRange(0, maxWeight)
	if rapid.Bool().Draw(t, "few weights") {
		weight = rapid.SampledFrom([]int{0, 1, maxWeight})
	}
	members := make([]Member, len(ids))
	for i, id := range ids {
		members[i] = Member{id, weight.Draw(t, "weight")}
	}
	members[0].Weight = max(members[0].Weight, 1)
	return members
}

// owners returns the table with IDs in the place of indices.
func owners(members []Member, m int) []string {
	table := Maglev(members, m)
	ids := make([]string, len(table))
	for slot, i := range table {
		ids[slot] = members[i].ID
	}
	return ids
}

func TestMaglevIgnoresOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := drawMembers(t, 30, 256)
		m := TableSize(len(members))
		shuffled := rapid.Permutation(members).Draw(t, "shuffled")
		if diff := cmp.Diff(owners(members, m), owners(shuffled, m)); diff != "" {
			t.Fatalf("another order, another table (-in order +shuffled):\n%s", diff)
		}
	})
}

// checkShares holds a table to its promise: within 1 % and one slot of the exact
// share, at least one slot for each that has weight, none for the others.
func checkShares(members []Member, table []int32) error {
	total := 0
	for _, m := range members {
		total += m.Weight
	}
	count := make([]int, len(members))
	for _, i := range table {
		count[i]++
	}
	for i, m := range members {
		exact := float64(len(table)) * float64(m.Weight) / float64(total)
		switch {
		case (m.Weight > 0) != (count[i] > 0):
			return fmt.Errorf("member %d of weight %d has %d slots", i, m.Weight, count[i])
		case math.Abs(float64(count[i])-exact) > 0.01*exact+1:
			return fmt.Errorf("member %d of weight %d has %d slots, its share is %.2f", i, m.Weight, count[i], exact)
		}
	}
	return nil
}

func TestMaglevShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := drawMembers(t, 40, 256)
		if err := checkShares(members, Maglev(members, TableSize(len(members)))); err != nil {
			t.Fatal(err)
		}
	})
}

// The hard cases: many light beside few heavy, and the reverse, at a band's end.
func TestMaglevSharesAtTheLimits(t *testing.T) {
	for _, tc := range []struct{ light, heavy, heavyWeight int }{
		{1, 1, 256}, {10, 0, 1}, {9, 1, 256}, {19, 1, 100}, {1, 19, 256}, {80, 1, 256}, {1, 80, 256},
		{40, 41, 256}, {40, 41, 2}, {70, 11, 3}, {655, 0, 1}, {654, 1, 256}, {300, 355, 256}, {1, 654, 256},
	} {
		var members []Member
		for range tc.light {
			members = append(members, Member{fmt.Sprint("m", len(members)), 1})
		}
		for range tc.heavy {
			members = append(members, Member{fmt.Sprint("m", len(members)), tc.heavyWeight})
		}
		if err := checkShares(members, Maglev(members, TableSize(len(members)))); err != nil {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

// When one of n equal members leaves, its slots must move; the paper (section 5.3)
// accepts that a few of the others' move too, the fewer the larger the table. With
// 100 slots and more for each, that is some 3 % of the table where the band is full.
func TestMaglevDisruption(t *testing.T) {
	const rounds = 20
	for _, n := range []int{2, 3, 5, 10, 20, 40, 81, 327} {
		m := TableSize(n)
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		sum, worst := 0.0, 0.0
		for round := range rounds {
			members := make([]Member, n)
			for i := range members {
				members[i] = Member{fmt.Sprintf("10.%d.%d.%d:80", round, i/250, i%250), 1}
			}
			gone := rng.IntN(n)
			before := owners(members, m)
			after := owners(slices.Delete(slices.Clone(members), gone, gone+1), m)
			moved := 0
			for slot, id := range before {
				if id != after[slot] && id != members[gone].ID {
					moved++
				}
			}
			share := float64(moved) / float64(m)
			sum, worst = sum+share, max(worst, share)
		}
		t.Logf("%d members, M %d: %.2f %% of the table moves needlessly, %.2f %% at worst", n, m, 100*sum/rounds, 100*worst)
		if sum/rounds > 0.03 || worst > 0.05 {
			t.Errorf("%d members, M %d: more moves than should", n, m)
		}
	}
}

func BenchmarkMaglev(b *testing.B) {
	for _, tc := range []struct {
		name   string
		weight func(i int) int
	}{
		{"equal", func(int) int { return 1 }},
		{"one-heavy", func(i int) int { return 1 + 255*(1-min(i, 1)) }},
		{"mixed", func(i int) int { return 1 + i%256 }},
	} {
		b.Run(tc.name, func(b *testing.B) {
			members := make([]Member, 1000)
			for i := range members {
				members[i] = Member{fmt.Sprintf("10.1.%d.%d:8080", i/250, i%250), tc.weight(i)}
			}
			b.ReportAllocs()
			for b.Loop() {
				Maglev(members, TableSize(len(members)))
			}
		})
	}
}
