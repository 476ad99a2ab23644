package flow

import (
	"fmt"
	"testing"
)

// TestMaglevPaperSetting measures what section 5.3 of the paper does: a thousand backends, a
// part of which goes, and the table's slots that change though their owner stays, for the two
// sizes of its figure.
func TestMaglevPaperSetting(t *testing.T) {
	if testing.Short() {
		t.Skip("fills large tables")
	}
	const n = 1000
	members := make([]Member, n)
	for i := range members {
		members[i] = Member{fmt.Sprintf("10.0.%d.%d:80", i/250, i%250), 1}
	}
	for _, m := range []int{65537, 655373} {
		before := Maglev(members, m)
		last := 0.0
		for _, gone := range []int{1, 10, 50} {
			left := append([]Member(nil), members...)
			for i := range gone {
				left[i*n/gone].Weight = 0
			}
			moved, others := 0, 0
			for slot, i := range Maglev(left, m) {
				if left[before[slot]].Weight == 0 {
					continue
				}
				others++
				if i != before[slot] {
					moved++
				}
			}
			share := float64(moved) / float64(others)
			t.Logf("M %d, %d of %d gone: %.2f %% of the others' slots change", m, gone, n, 100*share)
			if share < last || share > 0.25 {
				t.Errorf("M %d, %d gone: %.2f %%, after %.2f %%", m, gone, 100*share, 100*last)
			}
			last = share
		}
	}
}
