package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// leaving evaluates a connection that leaves by the pool's device.
func leaving(ev *ruleset.Evaluator, st *ruleset.State, proto model.Proto, src, dst netip.AddrPort, out string) ruleset.Trace {
	t := ev.Eval(ruleset.Packet{Src: src, Dst: dst, Proto: proto, Out: out}, st.Env())
	st.Keep(t)
	return t
}

// TestEgressGivesWhatIsFree draws pools with ports that are taken, addresses that are drained
// and destinations that are full, and holds what connections get.
func TestEgressGivesWhatIsFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := configtest.RandomModel(t, &configtest.Options{MaxServices: 1, NoEdge: true, NoHealth: true, NoFloods: true, NoLocal: true})
		if len(cfg.Egress) == 0 {
			return
		}
		p := *cfg.Egress[0]
		p.From, p.To, p.Except, p.In, p.Traffic = p.From[:len(p.From):len(p.From)], nil, nil, nil, nil
		for i, other := range cfg.Egress { // what takes no pool may leave
			q := *other
			q.Leaks = true
			cfg.Egress[i] = &q
		}
		p.Leaks = true
		cfg.Egress[0] = &p
		for range rapid.IntRange(0, 5).Draw(t, "taken") {
			r := rapid.SampledFrom(p.Ports).Draw(t, "range")
			taken := model.TakenPort{Port: uint16(rapid.IntRange(int(r.Lo), int(r.Hi)).Draw(t, "port"))}
			p.Taken = append(p.Taken, taken)
		}
		full := netip.MustParseAddrPort("203.0.113.77:443")
		addrs := p.Addrs(model.IPv4)
		if len(addrs) > 1 && rapid.Bool().Draw(t, "drained") {
			p.Drained = addrs[:1]
		}
		if len(addrs) > 2 && p.Block == 0 {
			p.Relief = []model.Relief{{Proto: model.TCP, To: full, Without: addrs[1:2]}}
		}
		ev, st := ruleset.NewEvaluator(plan.Build(cfg, nil).Ruleset), &ruleset.State{}
		for i := range 20 {
			src := netip.AddrPortFrom(clientOf(&p, i), uint16(40000+i))
			proto := []model.Proto{model.TCP, model.UDP, 1}[i%3]
			to := []netip.AddrPort{full, netip.MustParseAddrPort("203.0.113.78:443")}[i%2]
			if !src.IsValid() {
				return
			}
			tr := leaving(ev, st, proto, src, to, p.Out[0])
			hold(t, &p, proto, to == full, tr)
		}
	})
}

func clientOf(p *model.Pool, i int) netip.Addr {
	if len(p.From) == 0 {
		return netip.AddrFrom4([4]byte{10, 9, 8, byte(i)})
	}
	for _, f := range p.From {
		if f.Addr().Is4() {
			return f.Addr()
		}
	}
	return netip.Addr{}
}

func hold(t *rapid.T, p *model.Pool, proto model.Proto, full bool, tr ruleset.Trace) {
	ports := !tr.Ports.IsZero()
	switch {
	case !p.Has(model.IPv4):
		return // the connection is another pool's, or none's
	case tr.Verdict != ruleset.Accepted && (p.Block > 0 || len(p.Taken) > 0):
		return // all ports of the block or the pool are taken
	case tr.Verdict != ruleset.Accepted:
		t.Fatalf("%s: %v", tr.Verdict, tr.Steps)
	case !tr.Masquerade && !slices.Contains(p.Addrs(model.IPv4), tr.SNAT):
		t.Fatalf("source %s is not of the pool: %v", tr.SNAT, tr.Steps)
	case slices.Contains(p.Drained, tr.SNAT):
		t.Fatalf("%s is drained", tr.SNAT)
	case ports != (proto == model.TCP || proto == model.UDP):
		t.Fatalf("protocol %s gets ports %s", proto, tr.Ports)
	case ports && !slices.ContainsFunc(p.Ports, func(r model.PortRange) bool { return r.Lo <= tr.Ports.Lo && tr.Ports.Hi <= r.Hi }):
		t.Fatalf("ports %s are not of the pool", tr.Ports)
	case full && p.Spill && proto == model.TCP && len(p.Relief) > 0 && slices.Contains(p.Relief[0].Without, tr.SNAT):
		t.Fatalf("%s has no room for that destination", tr.SNAT)
	}
	for _, taken := range p.Taken {
		if tr.Ports.Contains(taken.Port) {
			t.Fatalf("ports %s have %d, on which somebody listens", tr.Ports, taken.Port)
		}
	}
}

// TestEgressSecondAttempt holds that a stable pool gives the second packet of a connection that
// was not taken into the table another address, and counts it.
func TestEgressSecondAttempt(t *testing.T) {
	p := build(t, `egress: [{name: out, out: eth1, addresses: 192.0.2.0/30, spread: client}]`, nil)
	ev, st := ruleset.NewEvaluator(p.Ruleset), &ruleset.State{}
	src, dst := netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("203.0.113.1:443")
	first := leaving(ev, st, model.TCP, src, dst, "eth1")
	second := leaving(ev, st, model.TCP, src, dst, "eth1")
	other := leaving(ev, st, model.TCP, netip.MustParseAddrPort("10.0.0.1:1001"), dst, "eth1")
	if first.SNAT == second.SNAT || first.SNAT != other.SNAT {
		t.Errorf("first %s, second %s, another connection %s", first.SNAT, second.SNAT, other.SNAT)
	}
	spilled := func(tr ruleset.Trace) bool {
		return slices.ContainsFunc(tr.Updates, func(u ruleset.ElemUpdate) bool { return u.Set == "egress-spilled" })
	}
	if spilled(first) || !spilled(second) || spilled(other) {
		t.Errorf("spilled: %t, %t, %t", spilled(first), spilled(second), spilled(other))
	}
	for key, name := range p.EgressKeys() {
		if name != "out" || !slices.ContainsFunc(first.Updates, func(u ruleset.ElemUpdate) bool { return u.Set == "egress-matched" && u.Key == key }) {
			t.Errorf("pool %s is not counted by its key", name)
		}
	}
	i := slices.IndexFunc(first.Updates, func(u ruleset.ElemUpdate) bool { return u.Set == "egress-new4" })
	if i < 0 {
		t.Fatalf("not counted: %v", first.Updates)
	}
	want := plan.EgressTuple{Source: first.SNAT, Proto: model.TCP, To: dst}
	if got := plan.ReadEgressTuple(model.IPv4, first.Updates[i].Key); got != want {
		t.Errorf("counted as %v, want %v", got, want)
	}
}

// TestEgressReuses holds that a plan whose pools have not changed takes over what the plan
// before made of them, and that a drained address moves its own clients alone.
func TestEgressReuses(t *testing.T) {
	const text = `egress: [{name: out, out: eth1, addresses: 192.0.2.0/30, spread: client}, {name: b, out: eth2, addresses: 192.0.2.8/30}]`
	a := build(t, text, nil)
	b := build(t, text, a)
	if d := ruleset.Diff(a.Ruleset, b.Ruleset); !d.Empty() {
		t.Errorf("the same file differs:\n%s", d)
	}
	cfg := *b.Config
	drained := *cfg.Egress[0]
	drained.Drained = drained.Addrs(model.IPv4)[2:3]
	cfg.Egress = []*model.Pool{&drained, cfg.Egress[1]}
	c := plan.Build(&cfg, b)
	if d := ruleset.Diff(b.Ruleset, c.Ruleset).String(); strings.Contains(d, "egress4/b") || strings.Contains(d, "set inet weir egress-") {
		t.Errorf("another pool changes:\n%s", d)
	}
	before, after := ruleset.NewEvaluator(b.Ruleset), ruleset.NewEvaluator(c.Ruleset)
	dst := netip.MustParseAddrPort("203.0.113.1:443")
	for i := range 200 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1000)
		x, y := leaving(before, &ruleset.State{}, model.TCP, src, dst, "eth1").SNAT, leaving(after, &ruleset.State{}, model.TCP, src, dst, "eth1").SNAT
		if x != y && x != drained.Drained[0] || y == drained.Drained[0] {
			t.Errorf("%s goes from %s to %s", src, x, y)
		}
	}
}
