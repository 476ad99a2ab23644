package engine

import (
	"net/netip"
	"testing"
)

// TestUnsent: what found no route is told without what is on its way, and never gets smaller while
// the counters go on.
func TestUnsent(t *testing.T) {
	var u unsent
	a, b := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("2001:db8::9")
	for _, c := range []struct {
		of               netip.Addr
		made, sent, want uint64
	}{
		{a, 10, 10, 0}, {a, 20, 15, 5}, {b, 7, 9, 0},
		{a, 30, 28, 5}, // some were sent between the two looks
		{a, 40, 30, 10}, {a, 40, 50, 10},
		{a, 3, 3, 0}, // the table came anew
		{a, 9, 8, 1}, {b, 9, 9, 0},
	} {
		if got := u.of(c.of, c.made, c.sent); got != c.want {
			t.Errorf("%d made and %d sent to %s: %d, want %d", c.made, c.sent, c.of, got, c.want)
		}
	}
}
