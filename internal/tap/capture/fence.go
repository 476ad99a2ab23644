package capture

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

// fencePriority is where the fence stands in prerouting: before blocklists (-450), before
// fragments are gathered (-400) and before conntrack (-200), so that none of them is
// troubled by copies. It is not the ingress of the device, because that would also stop
// what belongs to bridges, VLANs and containers on top of it.
const fencePriority = -1000

// Fence drops what comes in by a device and is not for this box. It stands as long as the
// process that made it, however that ends: the kernel takes the table away with the socket.
type Fence struct{ conn *nft.Conn }

// TableName returns the name of the table, of family inet, that is the fence of a device.
func TableName(device string) string { return "weir-tap/" + device }

// fenceTable returns the table. What the box's routes call local, broadcast, anycast or
// multicast is for the box.
func fenceTable(device string) *ruleset.Table {
	var own []ruleset.Element
	for _, k := range []ruleset.RouteKind{ruleset.RouteLocal, ruleset.RouteBroadcast, ruleset.RouteAnycast, ruleset.RouteMulticast} {
		own = append(own, ruleset.Element{Key: string(ruleset.AppendRouteKind(nil, k))})
	}
	return &ruleset.Table{
		Family: ruleset.Inet, Name: TableName(device), Owned: true,
		Sets: []*ruleset.Set{{Name: "own", Key: ruleset.Types{ruleset.RouteType}, Size: len(own), Parts: []*ruleset.Part{{Elems: own}}}},
		Chains: []*ruleset.Chain{{
			Name: "copies", Base: &ruleset.Base{Type: "filter", Hook: ruleset.Prerouting, Priority: fencePriority},
			Rules: []ruleset.Rule{{Comment: "copies end here", Stmts: []ruleset.Stmt{
				ruleset.InDevice{Name: device},
				ruleset.NotInSet{Key: ruleset.Key{ruleset.FibDaddrType}, Set: "own"},
				ruleset.Verdict{Kind: ruleset.DropPacket},
			}}},
		}},
	}
}

// fenceTries is how often a fence is put up when others change the ruleset meanwhile.
const fenceTries = 20

// NewFence puts up the fence of a device in the network namespace of the calling thread. It
// needs CAP_NET_ADMIN and Linux 5.12.
func NewFence(ctx context.Context, device string) (*Fence, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	delta := ruleset.Diff(&ruleset.Ruleset{}, &ruleset.Ruleset{Tables: []*ruleset.Table{fenceTable(device)}})
	for range fenceTries {
		if _, err = conn.Apply(ctx, delta, 0); !errors.Is(err, nft.ErrStale) {
			break
		}
	}
	if err != nil {
		conn.Close()
		return nil, fenceError(device, err)
	}
	return &Fence{conn}, nil
}

// fenceError says what a refusal means, of somebody who may change rules.
func fenceError(device string, err error) error {
	table := "inet " + TableName(device)
	switch {
	case errors.Is(err, unix.EPERM): // nft_table_lookup: it is another's
		return fmt.Errorf("another weir tap looks at %s already: table %s is its own", device, table)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("table %s is there, and no weir tap's; type: nft delete table %s", table, table)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the kernel has no tables that go with their process; that needs Linux 5.12", err)
	}
	return fmt.Errorf("copies can't be kept from being routed on: %w", err)
}

// Close takes the fence away.
func (f *Fence) Close() error { return f.conn.Close() }
