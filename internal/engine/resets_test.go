package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/conntrack"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/nft/nftfake"
	"weir/internal/nudge"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// diary writes down what a cutter does, in order.
type diary struct {
	lines  []string
	refuse error
	left   int
}

func (d *diary) Refuse(_ context.Context, s []plan.Stream) ([]plan.Stream, error) {
	for _, s := range s {
		d.lines = append(d.lines, fmt.Sprintf("refuse %s > %s", s.Client, s.Listen))
	}
	if d.refuse != nil {
		return nil, d.refuse
	}
	return s, nil
}

func (d *diary) remove(_ context.Context, f conntrack.Flow) (bool, error) {
	d.lines = append(d.lines, fmt.Sprintf("remove %d", f.ID))
	return true, nil
}

func (d *diary) Send(pairs []nudge.Pair) int {
	for _, p := range pairs {
		d.lines = append(d.lines, fmt.Sprintf("nudge %s > %s", p.From, p.To))
	}
	return d.left
}

func flow(id uint32, proto model.Proto, state uint8) conntrack.Flow {
	f := conntrack.Flow{ID: id, Proto: proto, TCPState: state}
	f.Orig.Src = netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), uint16(id))
	f.Orig.Dst = netip.MustParseAddrPort("198.51.100.10:80")
	return f
}

// TestCutter: connections are refused, removed, and their clients nudged, in this order;
// and they are removed whatever fails.
func TestCutter(t *testing.T) {
	ctx := context.Background()
	reset, keep := &model.Service{OnDown: model.Reset}, &model.Service{}
	d := &diary{}
	run := func(want ...string) (int, error) {
		t.Helper()
		c := &cutter{refuse: d.Refuse, remove: d.remove, nudges: d}
		for i, state := range []uint8{1, 2, 3, 5, 6, 7} {
			c.add(ctx, reset, flow(uint32(i+1), model.TCP, state))
		}
		c.add(ctx, reset, flow(7, model.UDP, 0))
		c.add(ctx, keep, flow(8, model.TCP, 3))
		c.flush(ctx)
		if !slices.Equal(d.lines, want) {
			t.Errorf("%q, want %q", d.lines, want)
		}
		d.lines = nil
		return c.ended, errors.Join(c.errs...)
	}
	const client, listener = "203.0.113.9:", "198.51.100.10:80"
	var refused, removed, nudged []string
	for _, id := range []int{2, 3, 4} {
		refused = append(refused, fmt.Sprintf("refuse %s%d > %s", client, id, listener))
		nudged = append(nudged, fmt.Sprintf("nudge %s > %s%d", listener, client, id))
	}
	for id := range 8 {
		removed = append(removed, fmt.Sprintf("remove %d", id+1))
	}
	if n, err := run(slices.Concat(refused, removed, nudged)...); n != 8 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	d.left = 2
	if n, err := run(slices.Concat(refused, removed, nudged)...); n != 8 || err == nil {
		t.Errorf("with clients left out: %d, %v", n, err)
	}
	d.refuse = unix.ENFILE
	if n, err := run(slices.Concat(refused, removed)...); n != 8 || !errors.Is(err, unix.ENFILE) {
		t.Errorf("with a set that is full: %d, %v", n, err)
	}
	c := &cutter{remove: d.remove}
	for id := range uint32(2*cutAtOnce + 1) {
		c.add(ctx, reset, flow(id, model.TCP, 3))
	}
	if len(c.flows) != 1 || c.ended != 2*cutAtOnce {
		t.Errorf("%d ended, %d wait", c.ended, len(c.flows))
	}
}

// TestRefuse fills the set without making the engine read its rules again, and tells by it
// who is silent.
func TestRefuse(t *testing.T) {
	ctx, k := context.Background(), nftfake.New()
	e := &Engine{Kernel: k}
	cfg := &model.Config{Services: []*model.Service{{Name: "web", OnDown: model.Reset,
		Listen:   []model.Listen{{Addr: netip.MustParseAddr("198.51.100.10"), Proto: model.TCP, Ports: model.Port(80)}},
		Backends: []model.Backend{{Addr: netip.MustParseAddr("10.1.1.1"), Weight: 1}}}}}
	if _, err := e.Apply(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	var streams []plan.Stream
	var pairs []nudge.Pair
	listen := netip.MustParseAddrPort("198.51.100.10:80")
	for port := range uint16(3) {
		s := plan.Stream{Client: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 40000+port), Listen: listen}
		streams, pairs = append(streams, s), append(pairs, nudge.Pair{From: s.Listen, To: s.Client})
	}
	v6 := plan.Stream{Client: netip.MustParseAddrPort("[2001:db8::9]:1"), Listen: netip.MustParseAddrPort("[2001:db8::10]:80")}
	done, err := e.Refuse(ctx, append(slices.Clone(streams), v6))
	if err != nil || !slices.Equal(done, streams) {
		t.Fatalf("%v, %v", done, err)
	}
	if rep, err := e.Repair(ctx); err != nil || rep.Read != 0 || !rep.Delta.Empty() {
		t.Errorf("the next look at the rules: %+v, %v", rep, err)
	}
	// One has answered, one has not; of the third nothing is known any more.
	for i, packets := range []uint64{2, 1} {
		k.Put(Tables[0], "resets4", nft.Elem{Element: ruleset.Element{Key: streams[i].Key()}, Counter: nft.Counter{Packets: packets}})
	}
	if err := k.DeleteElements(ctx, Tables[0], plan.ResetSet(model.IPv4), []ruleset.Element{{Key: streams[2].Key()}}); err != nil {
		t.Fatal(err)
	}
	if got, err := Silent(ctx, k, pairs, 1); err != nil || !slices.Equal(got, pairs[1:2]) {
		t.Errorf("silent: %v, %v", got, err)
	}
	many := make([]plan.Stream, 1<<16+1)
	for i := range many {
		many[i] = plan.Stream{Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 16), 1}), uint16(i)), Listen: listen}
	}
	if done, err := e.Refuse(ctx, many); !errors.Is(err, unix.ENFILE) || len(done) > 0 {
		t.Errorf("more than there is room for: %d, %v", len(done), err)
	}
}
