package nft

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	rs "weir/internal/ruleset"
)

// fibFixture returns what keeps packets for others from being forwarded.
func fibFixture() (sets []*rs.Set, chains []*rs.Chain) {
	kind := func(k rs.RouteKind) rs.Element { return rs.Element{Key: string(rs.AppendRouteKind(nil, k))} }
	return []*rs.Set{{Name: "own", Key: rs.Types{rs.RouteType}, Parts: part(kind(rs.RouteLocal), kind(rs.RouteBroadcast),
			kind(rs.RouteAnycast), kind(rs.RouteMulticast))}},
		[]*rs.Chain{{Name: "others", Base: &rs.Base{Type: "filter", Hook: rs.Prerouting, Priority: -1000}, Rules: []rs.Rule{
			rule("", rs.InDevice{Name: "eth1"}, rs.NotInSet{Key: rs.Key{rs.FibDaddrType}, Set: "own"}, rs.Verdict{Kind: rs.DropPacket}),
		}}}
}

// TestOwned makes a table that is bound to its connection: nobody else may change it, a
// second one of its name is refused, and it goes with the connection.
func TestOwned(t *testing.T) {
	n := namespace(t)
	sets, chains := fibFixture()
	d := rs.Diff(&rs.Ruleset{}, &rs.Ruleset{Tables: []*rs.Table{{Family: rs.Inet, Name: "weir", Owned: true, Sets: sets, Chains: chains}}})
	owner, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	if _, err := owner.Apply(context.Background(), d, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Apply(context.Background(), d, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("a second table of that name: %v", err)
	}
	if list := n.nft("", "list", "ruleset"); !strings.Contains(list, "fib daddr type != @own drop") {
		t.Errorf("nft lists\n%s", list)
	}
	if out, err := n.tryNft("", "delete", "table", "inet", "weir"); err == nil {
		t.Errorf("somebody else deleted it: %s", out)
	}
	n.nft("", "flush", "ruleset")
	if list := n.nft("", "list", "ruleset"); !strings.Contains(list, "chain others") {
		t.Errorf("after flush ruleset nft lists\n%s", list)
	}
	owner.Close()
	if list := n.nft("", "list", "ruleset"); list != "" {
		t.Errorf("after its owner has gone there is\n%s", list)
	}
}
