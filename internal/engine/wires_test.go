package engine_test

import (
	"errors"
	"net/netip"
	"testing"

	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/nft/nftfake"
	"weir/internal/ruleset"
)

// wiredBox is what a test wants a box to have.
type wiredBox struct {
	wires     *model.Wires
	err       error
	refreshed int
}

func (b *wiredBox) See(*model.Config) (*model.Wires, error) { return b.wires, b.err }
func (b *wiredBox) Refresh(*model.Wires) error              { b.refreshed++; return nil }

// directWeb is web with direct return, clients coming in by eth1.
func directWeb(weights ...int) *model.Config {
	cfg := web(weights...)
	s := cfg.Services[0]
	s.Forward, s.In, s.Untracked, s.Balance, s.WhenAllDown = model.ForwardDirect, []string{"eth1"}, true, model.Maglev, model.Drop
	for i := range s.Backends {
		s.Backends[i].Ports = model.PortRange{}
	}
	return cfg
}

// TestWires sees that rules follow what the box has: devices by their index, and backends that
// are on no segment.
func TestWires(t *testing.T) {
	near, far := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("10.1.1.2")
	b := &wiredBox{wires: &model.Wires{Devices: map[string]int{"eth1": 3}, Ways: map[netip.Addr]string{near: "eth1", far: "eth1"}}}
	k := nftfake.New()
	e := &engine.Engine{Kernel: k, Wires: b}
	apply := func() ruleset.Delta {
		t.Helper()
		rep, err := e.Apply(ctx, directWeb(1, 1))
		if err != nil {
			t.Fatal(err)
		}
		return *rep.Delta
	}
	send := func(chain string) ruleset.Stmt {
		rules := e.Plan().Ruleset.Table(ruleset.Netdev, "weir").Chain(chain).Rules
		return rules[len(rules)-1].Stmts[len(rules[len(rules)-1].Stmts)-1]
	}
	if rewired, err := e.Rewired(); rewired || err != nil || b.refreshed != 0 {
		t.Errorf("before there is a plan: %v, %v, %d", rewired, err, b.refreshed)
	}
	apply()
	if got, want := send("backend/web/10.1.1.1"), (ruleset.Fwd{Family: model.IPv4, To: near, Device: "eth1", Index: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if rewired, err := e.Rewired(); rewired || err != nil || b.refreshed != 1 {
		t.Errorf("nothing changed: %v, %v, %d", rewired, err, b.refreshed)
	}
	if d := apply(); !d.Empty() {
		t.Errorf("nothing changed, and the delta is %s", d.Summary())
	}
	// The device is another one; a backend is behind a router now.
	b.wires = &model.Wires{Devices: map[string]int{"eth1": 4}, Ways: map[netip.Addr]string{near: "eth1"}}
	if rewired, _ := e.Rewired(); !rewired {
		t.Error("another device was not noticed")
	}
	apply()
	if got := send("backend/web/10.1.1.1").(ruleset.Fwd); got.Index != 4 {
		t.Errorf("%+v after the device came back with index 4", got)
	}
	if got := send("backend/web/10.1.1.2"); got != (ruleset.Verdict{Kind: ruleset.DropPacket}) {
		t.Errorf("%+v for a backend on no segment", got)
	}
	// Without the device there is no chain on it: the kernel takes none.
	b.wires = &model.Wires{}
	apply()
	if c := e.Plan().Ruleset.Table(ruleset.Netdev, "weir").Chain("ingress/eth1"); c != nil {
		t.Errorf("a chain on a device that is not there: %+v", c)
	}
	b.err = errors.New("no answer")
	if _, err := e.Apply(ctx, directWeb(1, 1)); !errors.Is(err, b.err) {
		t.Errorf("the box could not be looked at, and the error is %v", err)
	}
	b.err = nil
	if _, err := e.Apply(ctx, web(1, 1)); err != nil {
		t.Fatal(err)
	}
	if have, _, err := k.Read(ctx, engine.Tables, e.Plan().Ruleset); err != nil || have.Table(ruleset.Netdev, "weir") != nil {
		t.Errorf("the table is still there: %v", err)
	}
}
