package nft

import (
	"cmp"
	"context"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

const hooked = `table inet fw {
	chain forward { type filter hook forward priority filter; policy drop; }
	chain input { type filter hook input priority filter; policy drop; ct state established accept; tcp dport 22 accept; }
	chain regular { drop; }
}
table ip filter {
	chain FORWARD { type filter hook forward priority filter; policy accept; }
	chain nat { type nat hook prerouting priority dstnat; }
}
table ip6 filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; drop; }
}
table inet asleep {
	flags dormant
	chain forward { type filter hook forward priority filter; policy drop; }
}
table bridge b {
	chain forward { type filter hook forward priority filter; policy drop; }
}
table arp a {
	chain input { type filter hook input priority filter; policy drop; }
}
`

// TestHooks reads everybody's chains: those of the IP families that are awake, with what
// they do to a packet that no rule of theirs decides.
func TestHooks(t *testing.T) {
	n := namespace(t)
	n.nft(hooked, "-f", "-")
	n.make(full())
	got, err := n.Hooks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	got = slices.DeleteFunc(got, func(h Hook) bool {
		if h.Table == (TableRef{"inet", "weir"}) {
			own++
			return true
		}
		return false
	})
	if own == 0 {
		t.Error("weir's own chains are missing")
	}
	slices.SortFunc(got, func(a, b Hook) int {
		return cmp.Or(cmp.Compare(a.Table.String(), b.Table.String()), cmp.Compare(a.Chain, b.Chain))
	})
	want := []Hook{
		{TableRef{"inet", "fw"}, "forward", "forward", true, 0},
		{TableRef{"inet", "fw"}, "input", "input", true, 2},
		{TableRef{"ip", "filter"}, "FORWARD", "forward", false, 0},
		{TableRef{"ip", "filter"}, "nat", "prerouting", false, 0},
		{TableRef{"ip6", "filter"}, "FORWARD", "forward", true, 1},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
