package plan_test

import (
	"fmt"
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

// TestStepsMeetNobody draws two configurations and goes from one to the other in steps. What
// packets meet after the first step is what they met before, and after the second what they
// meet in the end. What is done with a packet before and in the end is done all the time: also
// where it keeps to the rules of before and finds the elements of afterwards, and where
// elements of sets of ranges come into force after all the rest.
func TestStepsMeetNobody(t *testing.T) {
	prepared, withdrawn, cleared := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		a, b, hooks := twoConfigs(t)
		was, will := plan.Build(a, nil), plan.Build(b, nil)
		s := ruleset.Diff(was.Ruleset, will.Ruleset).Steps()
		if !s.Prepare.Empty() {
			prepared++
		}
		if !s.Clear.Empty() {
			cleared++
		}
		first := applied(was.Ruleset, s.Prepare)
		if d := ruleset.Diff(applied(first, s.Prepare.Undo()), was.Ruleset); !d.Empty() {
			t.Fatalf("what was prepared and taken back leaves something to do:\n%s", d)
		}
		change := applied(first, s.Change)
		second := applied(change, s.Withdraw)
		third := applied(second, s.Clear)
		if d := ruleset.Diff(third, will.Ruleset); !d.Empty() {
			t.Fatalf("the steps leave something to do:\n%s", d)
		}
		c := stepCheck{T: t, was: ruleset.NewEvaluator(was.Ruleset), will: ruleset.NewEvaluator(will.Ruleset)}
		if !s.Withdraw.Empty() {
			withdrawn++
		}
		firstly, secondly := ruleset.NewEvaluator(first), ruleset.NewEvaluator(second)
		between := map[string]*ruleset.Evaluator{}
		if hooks && split(s, ruleset.Inet) {
			ranges, others := func(s *ruleset.Set) bool { return s.Range }, func(s *ruleset.Set) bool { return !s.Range }
			for words, rs := range map[string]*ruleset.Ruleset{
				"with the change": change,
				"with the rules of before and the elements of afterwards":             mixed(first, change, func(*ruleset.Set) bool { return true }),
				"with the rules of before, and the elements of afterwards but ranges": mixed(first, change, others),
				"with the rules of afterwards, and without its ranges":                mixed(change, first, ranges),
				"while elements are withdrawn":                                        mixed(change, second, others),
			} {
				between[words] = ruleset.NewEvaluator(rs)
			}
			if lastSingle(s) {
				delete(between, "with the rules of afterwards, and without its ranges")
			}
		}
		for range 30 {
			p := c.packet(a, b)
			c.same("after the first step", firstly, c.was, p)
			c.same("before what is left", secondly, c.will, p)
			for words, ev := range between {
				c.always(words, ev, p)
			}
		}
	})
	t.Logf("%d changes were prepared, %d withdrew something, %d cleared", prepared, withdrawn, cleared)
	if prepared == 0 || cleared == 0 {
		t.Error("the draws try nothing")
	}
}

// TestStepsWithdraw: a port that becomes a range, beside another range, is a single key until
// the range is in force, as few draws have it.
func TestStepsWithdraw(t *testing.T) {
	build := func(ports model.PortRange) *ruleset.Ruleset {
		one, other, third := service(0), service(1), service(2)
		one.Listen[0].Ports = ports
		other.Listen[0].Ports = model.PortRange{Lo: 8000, Hi: 8010}
		return plan.Build(&model.Config{HashSeed: 1, Services: []*model.Service{one, other, third}}, nil).Ruleset
	}
	s := ruleset.Diff(build(model.Port(80)), build(model.PortRange{Lo: 80, Hi: 90})).Steps()
	for words, d := range map[string]*ruleset.Delta{"Change": s.Change, "Withdraw": s.Withdraw} {
		if d.Empty() {
			t.Errorf("%s has nothing to do", words)
		}
	}
	for _, td := range s.Change.Tables {
		for _, ch := range td.DelElems {
			t.Errorf("the change takes %d elements of %s away", len(ch.Elems), ch.Set.Name)
		}
	}
}

// twoConfigs draws configurations. alone says that they differ in nothing but what one hook
// looks at: a packet that is on its way from one to the next meets the one as it was and
// the other as it will be, whatever a commit does.
func twoConfigs(t *rapid.T) (a, b *model.Config, alone bool) {
	opts := &configtest.Options{Steering: rapid.Bool().Draw(t, "steering")}
	kind := rapid.SampledFrom([]string{"everything", "services", "edge", "egress"}).Draw(t, "what changes")
	if kind == "services" {
		opts.NoEdge, opts.NoEgress, opts.NoLocal = true, true, true
	}
	a = configtest.RandomModel(t, opts)
	other := configtest.RandomModel(t, opts)
	switch kind {
	case "edge":
		c := *a
		c.Edge = other.Edge
		return a, &c, true
	case "egress":
		n, c := *a, *a
		n.Services, c.Services = nil, nil
		c.Egress = gives(t, a.Egress, other.Egress)
		return &n, &c, true
	}
	b = mutate(t, a)
	if rapid.Bool().Draw(t, "all others") {
		b = other
	}
	return a, b, kind == "services"
}

// gives returns pools that match what those of a match, and give what those of b give.
func gives(t *rapid.T, a, b []*model.Pool) []*model.Pool {
	out := slices.Clone(a)
	for i, p := range a {
		c := *p
		if i < len(b) && slices.Equal(p.Families(), b[i].Families()) && p.Block == 0 && b[i].Block == 0 {
			o := b[i]
			c.Masquerade, c.Addresses, c.Ports, c.Spread, c.Spill, c.Timeouts, c.Assign = o.Masquerade, o.Addresses, o.Ports, o.Spread, o.Spill, o.Timeouts, o.Assign
		}
		for _, f := range c.Families() {
			if all := c.Addrs(f); len(all) > 1 && rapid.Bool().Draw(t, "drain") {
				c.Drained = append(c.Drained, all[0])
			}
		}
		out[i] = &c
	}
	return out
}

// split reports whether the table of that family is not changed as a whole: it comes or goes,
// or a set of it has another kind of keys or data under the same name.
func split(s ruleset.Steps, f ruleset.Family) bool {
	return !slices.ContainsFunc(s.Change.Tables, func(td *ruleset.TableDelta) bool {
		return td.Table.Family == f && (td.Create || td.Delete || len(td.DelSets) > 0)
	})
}

// lastSingle reports whether a set of single keys goes while its twin of ranges stays and gets
// elements: the rules that look there last are gone before these are in force.
func lastSingle(s ruleset.Steps) bool {
	return slices.ContainsFunc(s.Clear.Tables, func(td *ruleset.TableDelta) bool {
		return slices.ContainsFunc(td.DelSets, func(o *ruleset.Set) bool { return td.Table.Set(o.Name+"r") != nil })
	})
}

// mixed returns rs with the elements of other in those sets that both have and that are in.
func mixed(rs, other *ruleset.Ruleset, in func(*ruleset.Set) bool) *ruleset.Ruleset {
	out := &ruleset.Ruleset{}
	for _, t := range rs.Tables {
		c := *t
		c.Sets = nil
		for _, s := range t.Sets {
			if o := other.Table(t.Family, t.Name); o != nil && o.Set(s.Name) != nil && in(s) {
				s = o.Set(s.Name)
			}
			c.Sets = append(c.Sets, s)
		}
		// Chains that an element leads to are there, though without rules.
		if o := other.Table(t.Family, t.Name); o != nil {
			c.Chains = slices.Clone(t.Chains)
			for _, n := range o.Chains {
				if t.Chain(n.Name) == nil {
					c.Chains = append(c.Chains, &ruleset.Chain{Name: n.Name})
				}
			}
		}
		out.Tables = append(out.Tables, &c)
	}
	return out
}

// applied returns what a delta makes of a ruleset.
func applied(rs *ruleset.Ruleset, d *ruleset.Delta) *ruleset.Ruleset {
	out := &ruleset.Ruleset{Tables: slices.Clone(rs.Tables)}
	for _, td := range d.Tables {
		of := func(t *ruleset.Table) bool { return t.Family == td.Table.Family && t.Name == td.Table.Name }
		old := out.Table(td.Table.Family, td.Table.Name)
		out.Tables = slices.DeleteFunc(out.Tables, of)
		if td.Delete {
			continue
		}
		if old == nil {
			old = &ruleset.Table{Family: td.Table.Family, Name: td.Table.Name}
		}
		out.Tables = append(out.Tables, appliedTo(old, td))
	}
	return out
}

func appliedTo(old *ruleset.Table, td *ruleset.TableDelta) *ruleset.Table {
	t := &ruleset.Table{Family: old.Family, Name: old.Name}
	has := func(list []*ruleset.Chain, name string) bool {
		return slices.ContainsFunc(list, func(c *ruleset.Chain) bool { return c.Name == name })
	}
	rules := map[string][]ruleset.Rule{}
	for _, c := range td.AddRules {
		rules[c.Name] = c.Rules
	}
	for _, c := range old.Chains {
		if has(td.DelChains, c.Name) {
			continue
		}
		n := &ruleset.Chain{Name: c.Name, Base: c.Base, Rules: c.Rules}
		if has(td.Flush, c.Name) {
			n.Rules = nil
		}
		n.Rules = append(slices.Clip(n.Rules), rules[c.Name]...)
		t.Chains = append(t.Chains, n)
	}
	for _, c := range td.AddChains {
		t.Chains = append(t.Chains, &ruleset.Chain{Name: c.Name, Base: c.Base, Rules: rules[c.Name]})
	}
	t.Timeouts = slices.DeleteFunc(slices.Clone(old.Timeouts), func(o *ruleset.Timeouts) bool {
		return slices.ContainsFunc(td.DelTimeouts, func(d *ruleset.Timeouts) bool { return d.Name == o.Name })
	})
	t.Timeouts = append(t.Timeouts, td.AddTimeouts...)
	sets := slices.DeleteFunc(slices.Clone(old.Sets), func(s *ruleset.Set) bool {
		return slices.ContainsFunc(td.DelSets, func(d *ruleset.Set) bool { return d.Name == s.Name })
	})
	for _, s := range td.AddSets {
		c := *s
		c.Parts = nil
		sets = append(sets, &c)
	}
	type id struct{ key, end string }
	for _, s := range sets {
		elems := map[id]ruleset.Element{}
		var order []id
		put := func(e ruleset.Element) {
			if _, there := elems[id{e.Key, e.KeyEnd}]; !there {
				order = append(order, id{e.Key, e.KeyEnd})
			}
			elems[id{e.Key, e.KeyEnd}] = e
		}
		for _, p := range s.Parts {
			for _, e := range p.Elems {
				put(e)
			}
		}
		for _, ch := range td.DelElems {
			if ch.Set.Name == s.Name {
				for _, e := range ch.Elems {
					delete(elems, id{e.Key, e.KeyEnd})
				}
			}
		}
		for _, ch := range td.AddElems {
			if ch.Set.Name == s.Name {
				for _, e := range ch.Elems {
					put(e)
				}
			}
		}
		c := *s
		c.Parts = nil
		part := &ruleset.Part{}
		for _, k := range order {
			if e, ok := elems[k]; ok {
				part.Elems = append(part.Elems, e)
				delete(elems, k)
			}
		}
		if len(part.Elems) > 0 {
			c.Parts = []*ruleset.Part{part}
		}
		t.Sets = append(t.Sets, &c)
	}
	return t
}

type stepCheck struct {
	*rapid.T
	was, will *ruleset.Evaluator
}

// way is what a packet meets, apart from how that came about.
type way struct {
	verdict    ruleset.Outcome
	dst, src   netip.AddrPort
	snat       netip.Addr
	masquerade bool
	fwd        netip.Addr
	proxied    bool
	mark       uint32
}

func wayOf(t ruleset.Trace) way {
	return way{t.Verdict, t.Dst, t.Src, t.SNAT, t.Masquerade, t.Fwd, t.Proxied, t.ConnMark}
}

// stepPacket is a packet and the numbers that the kernel draws for it.
type stepPacket struct {
	ruleset.Packet
	drawn uint32
}

func (p stepPacket) through(ev *ruleset.Evaluator) ruleset.Trace {
	return ev.Eval(p.Packet, &ruleset.Env{Next: func(_ *ruleset.Rule, n ruleset.Numgen) uint32 { return p.drawn % n.Mod }})
}

func (c stepCheck) same(when string, ev, want *ruleset.Evaluator, p stepPacket) {
	c.Helper()
	got := p.through(ev)
	if w := p.through(want); wayOf(got) != wayOf(w) {
		c.Fatalf("%s a packet %+v is treated otherwise:\n%+v\nand not\n%+v", when, p, got, w)
	}
}

// always wants a packet to be treated as before and as afterwards, if that is the same, and not
// by chance: what becomes, or ceases to be, a listener may meet its service as it was.
func (c stepCheck) always(when string, ev *ruleset.Evaluator, p stepPacket) {
	c.Helper()
	trace := p.through(ev)
	was, will := p.through(c.was), p.through(c.will)
	if served(was) == served(will) && wayOf(was).loose(wayOf(will)) && !wayOf(trace).loose(wayOf(was)) {
		c.Fatalf("%s a packet %+v is treated in another way:\n%v\nbefore\n%v\nafterwards\n%v", when, p, words(trace), words(was), words(will))
	}
}

func words(t ruleset.Trace) string {
	out := fmt.Sprintf("%+v\n", wayOf(t))
	for _, s := range t.Steps {
		out += fmt.Sprintf("  %t %s %s: %s | %s\n", s.Matched, s.Hook, s.Chain, s.Rule, s.Detail)
	}
	return out
}

// served reports whether a packet met a service.
func served(t ruleset.Trace) bool {
	return slices.ContainsFunc(t.Steps, func(s ruleset.Step) bool { return strings.HasPrefix(s.Chain, "service/") })
}

// loose compares but for which backend, or which address of a pool; and but for the source where
// services differ, since another hook gives that.
func (w way) loose(o way) bool {
	return w.verdict == o.verdict && w.proxied == o.proxied && inside(w.dst.Addr()) == inside(o.dst.Addr()) &&
		(inside(w.dst.Addr()) || w.snat.IsValid() == o.snat.IsValid() && w.masquerade == o.masquerade)
}

// inside reports whether an address is that of a backend.
func inside(a netip.Addr) bool {
	return netip.MustParsePrefix("10.0.0.0/8").Contains(a) || netip.MustParsePrefix("2001:db8:2::/64").Contains(a)
}

// packet draws the first packet of a connection to, or near to, a listener of either.
func (c stepCheck) packet(a, b *model.Config) stepPacket {
	services := append(slices.Clone(a.Services), b.Services...)
	if len(services) == 0 {
		return c.leaving(a, b)
	}
	s := rapid.SampledFrom(services).Draw(c.T, "service")
	l := rapid.SampledFrom(s.Listen).Draw(c.T, "listener")
	port := uint16(rapid.IntRange(int(l.Ports.Lo), int(l.Ports.Hi)).Draw(c.T, "port"))
	p := ruleset.Packet{Proto: l.Proto, Dst: netip.AddrPortFrom(l.Addr, port), In: rapid.SampledFrom([]string{"eth0", "eth1", "wan.100"}).Draw(c.T, "in"),
		Out: rapid.SampledFrom([]string{"eth0", "eth1", "wan.100"}).Draw(c.T, "out"), Local: rapid.IntRange(0, 5).Draw(c.T, "local") == 0}
	src := netip.MustParseAddr("203.0.113.1")
	if l.Family() == model.IPv6 {
		src = netip.MustParseAddr("2001:db8:c::1")
	}
	if rapid.IntRange(0, 5).Draw(c.T, "a backend's own") == 0 && len(s.Backends) > 0 {
		if b := rapid.SampledFrom(s.Backends).Draw(c.T, "backend"); b.Family() == l.Family() {
			src = b.Addr
		}
	}
	p.Src = netip.AddrPortFrom(src, rapid.Uint16Min(1).Draw(c.T, "source port"))
	return stepPacket{p, rapid.Uint32().Draw(c.T, "drawn")}
}

// leaving draws the first packet of a connection that a pool of either may be for.
func (c stepCheck) leaving(a, b *model.Config) stepPacket {
	dev := []string{"eth0", "eth1", "wan.100"}
	p := ruleset.Packet{Proto: rapid.SampledFrom([]model.Proto{model.TCP, model.UDP, model.SCTP}).Draw(c.T, "protocol"),
		In: rapid.SampledFrom(dev).Draw(c.T, "in"), Out: rapid.SampledFrom(dev).Draw(c.T, "out")}
	src, dst := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.9")
	if rapid.Bool().Draw(c.T, "ip6") {
		src, dst = netip.MustParseAddr("2001:db8:c::1"), netip.MustParseAddr("2001:db8:9::9")
	}
	pools := append(slices.Clone(a.Egress), b.Egress...)
	if len(pools) > 0 {
		pool := rapid.SampledFrom(pools).Draw(c.T, "pool")
		for _, x := range pool.From {
			if x.Addr().Is4() == src.Is4() && rapid.Bool().Draw(c.T, "from") {
				src = x.Addr()
			}
		}
		for _, x := range pool.To {
			if x.Addr().Is4() == src.Is4() && rapid.Bool().Draw(c.T, "to") {
				dst = x.Addr()
			}
		}
	}
	p.Src = netip.AddrPortFrom(src, rapid.Uint16Min(1).Draw(c.T, "source port"))
	p.Dst = netip.AddrPortFrom(dst, rapid.SampledFrom([]uint16{53, 80, 443, 8000}).Draw(c.T, "port"))
	return stepPacket{p, rapid.Uint32().Draw(c.T, "drawn")}
}
