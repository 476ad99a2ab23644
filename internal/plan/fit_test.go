package plan

import (
	"testing"

	"pgregory.net/rapid"
)

// TestFit: what fits is left alone; what does not gets fewer slots, nobody loses his last
// and nobody gets one for nothing.
func TestFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(0, 2560), 1, 40).Draw(t, "weights")
		most := rapid.IntRange(len(weights), 5000).Draw(t, "most")
		got := fit(weights, most)
		sum, g := 0, 0
		for i, w := range got {
			sum, g = sum+w, gcd(w, g)
			if (w == 0) != (weights[i] == 0) {
				t.Fatalf("weight %d became %d", weights[i], w)
			}
		}
		if g > 0 && sum/g > most {
			t.Fatalf("%v gives %d slots, at most %d", got, sum/g, most)
		}
	})
}
