package flow

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSlots(t *testing.T) {
	for _, tc := range []struct {
		weights []int
		want    []int32
	}{
		{nil, []int32{}},
		{[]int{0, 0}, []int32{}},
		{[]int{-1}, []int32{}},
		{[]int{7}, []int32{0}},
		{[]int{1, 1}, []int32{0, 1}},
		{[]int{64, 64, 64}, []int32{0, 1, 2}},
		{[]int{2, 1}, []int32{0, 0, 1}},
		{[]int{0, 4, -2, 2}, []int32{1, 1, 3}},
		{[]int{3, 1, 1, 1}, []int32{0, 1, 0, 2, 0, 3}},
		{[]int{5, 1, 1}, []int32{0, 0, 0, 1, 0, 0, 2}},
		{[]int{2, 3}, []int32{1, 0, 1, 0, 1}},
		{[]int{1, 2, 5}, []int32{2, 1, 2, 2, 2, 0, 1, 2}},
	} {
		if diff := cmp.Diff(tc.want, Slots(tc.weights)); diff != "" {
			t.Errorf("Slots(%v) (-want +got):\n%s", tc.weights, diff)
		}
	}
}

func TestSlotsAreFairAndSmooth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(-1, 256), 0, 40).Draw(t, "weights")
		if rapid.Bool().Draw(t, "few weights") {
			weights = rapid.SliceOfN(rapid.SampledFrom([]int{0, 2, 4, 6, 100}), 0, 40).Draw(t, "weights")
		}
		checkSlots(t, weights, Slots(weights))
	})
}

// checkSlots holds one round to what Slots promises.
func checkSlots(t *rapid.T, weights []int, slots []int32) {
	divisor := 0
	for _, w := range weights {
		if w > 0 {
			divisor = gcd(divisor, w)
		}
	}
	n := len(slots)
	count := make([]int, len(weights))
	places := make([][]int, len(weights))
	for at, i := range slots {
		count[i]++
		places[i] = append(places[i], at)
		for j, w := range weights {
			exact := float64(at+1) * float64(max(w, 0)/divisor) / float64(n)
			if math.Abs(float64(count[j])-exact) >= 1 {
				t.Fatalf("after %d of %d slots index %d has %d, its share is %.3f", at+1, n, j, count[j], exact)
			}
		}
	}
	for i, w := range weights {
		if divisor == 0 || w <= 0 {
			if count[i] != 0 {
				t.Fatalf("index %d of weight %d has %d slots", i, w, count[i])
			}
			continue
		}
		if count[i] != w/divisor {
			t.Fatalf("index %d of weight %d/%d has %d slots", i, w, divisor, count[i])
		}
		for k, at := range places[i] {
			next := places[i][(k+1)%len(places[i])]
			if next <= at {
				next += n
			}
			if float64(next-at) >= 2*float64(n)/float64(count[i])+1 {
				t.Fatalf("index %d has %d of %d slots but waits %d after slot %d", i, count[i], n, next-at, at)
			}
		}
	}
}

func gcd(a, b int) int {
	if b == 0 {
		return a
	}
	return gcd(b, a%b)
}

func BenchmarkSlots(b *testing.B) {
	weights := make([]int, 1000)
	for i := range weights {
		weights[i] = 1 + i%256
	}
	for b.Loop() {
		Slots(weights)
	}
}
