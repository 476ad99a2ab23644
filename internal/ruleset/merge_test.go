package ruleset

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMerge adds and takes away.
func TestMerge(t *testing.T) {
	pack := func(keys string) []*Packed {
		var out []*Packed
		for i := 0; i < len(keys); i += 2 {
			out = append(out, &Packed{Stride: 1, Keys: keys[i:min(i+2, len(keys))]})
		}
		return out
	}
	for _, c := range [][4]string{{"", "", "", ""}, {"ace", "", "", "ace"}, {"ace", "c", "bd", "abde"}, {"", "", "b", "b"}, {"ace", "ace", "", ""}, {"ac", "a", "a", "ac"}} {
		got := ""
		for _, p := range Merge(pack(c[0]), pack(c[1]), pack(c[2])) {
			got += p.Keys
		}
		if d := cmp.Diff(c[3], got); d != "" {
			t.Errorf("%q: %s", c, d)
		}
	}
}
