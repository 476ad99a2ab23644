package nft

import (
	"context"
	"net/netip"
	"testing"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// direct is a table of the family netdev with all that direct return uses, on the device lo,
// which every namespace has. Its rules of IPv6 differ in nothing but the family.
func direct() *rs.Ruleset {
	t := &rs.Table{Family: rs.Netdev, Name: "weir"}
	base := &rs.Chain{Name: "ingress/lo", Base: &rs.Base{Type: "filter", Hook: rs.Ingress, Priority: 0, Device: "lo"}}
	t.Chains = append(t.Chains, base)
	for f, d := range map[model.Family]struct{ vip, server string }{
		model.IPv4: {"198.51.100.10", "10.1.1.1"}, model.IPv6: {"2001:db8:f::10", "2001:db8:1::1"},
	} {
		service, backend := "service/"+f.String(), "backend/"+f.String()
		key := rs.AppendPort(rs.AppendByte(rs.AppendAddr(nil, netip.MustParseAddr(d.vip)), uint8(model.TCP)), 80)
		listen := &rs.Set{Name: "listen/" + f.String(), Key: rs.Types{rs.AddrType(f), rs.Protocol, rs.Port}, Verdict: true, Size: 1024,
			Parts: []*rs.Part{{Elems: []rs.Element{{Key: string(key), Jump: rs.Jump{Chain: service, Goto: true}}}}}}
		slots := &rs.Set{Name: "slots/" + f.String(), Key: rs.Types{rs.Integer}, Verdict: true, Size: 14, Parts: []*rs.Part{{}}}
		for i := range 7 {
			slots.Parts[0].Elems = append(slots.Parts[0].Elems, rs.Element{Key: string(rs.AppendInteger(nil, uint32(i))), Jump: rs.Jump{Chain: backend, Goto: true}})
		}
		t.Sets = append(t.Sets, listen, slots)
		base.Rules = append(base.Rules, rs.Rule{Comment: "find", Stmts: []rs.Stmt{rs.IsEther{Family: f}, rs.ToThisHost{}, rs.Whole{Family: f},
			rs.VMap{Key: rs.Key{rs.Daddr(f), rs.L4Proto, rs.DPort}, Map: listen.Name}}})
		t.Chains = append(t.Chains,
			&rs.Chain{Name: service, Rules: []rs.Rule{{Comment: "choose", Stmts: []rs.Stmt{rs.IsEther{Family: f},
				rs.VMap{Key: rs.Key{rs.Hash{Key: rs.Key{rs.Saddr(f), rs.SPort}, Mod: 7, Seed: 1}}, Map: slots.Name}}}}},
			&rs.Chain{Name: backend, Rules: []rs.Rule{{Comment: "send", Stmts: []rs.Stmt{rs.Counting{},
				rs.Fwd{Family: f, To: netip.MustParseAddr(d.server), Device: "lo", Index: loopbackIndex}}}}})
	}
	return &rs.Ruleset{Tables: []*rs.Table{t}}
}

var directTable = []TableRef{{rs.Netdev, "weir"}}

func (n netns) directDelta(want *rs.Ruleset) (*rs.Delta, uint32) {
	n.tb.Helper()
	have, gen, err := n.Read(context.Background(), directTable, want)
	if err != nil {
		n.tb.Fatal(err)
	}
	return rs.Diff(have, want), gen
}

// TestDirect loads the table through the driver and as text: both are read back as what is
// wanted. A rule that somebody edits behind its comment is found, and so are a chain on
// another device and an element that leads elsewhere. Counters go on when rules come again.
func TestDirect(t *testing.T) {
	want := direct()
	apply := func(t *testing.T, n netns) {
		d, gen := n.directDelta(want)
		if err := n.CarryRules(context.Background(), d); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Apply(context.Background(), d, gen); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("driver", func(t *testing.T) {
		n := namespace(t)
		apply(t, n)
		if d, _ := n.directDelta(want); !d.Empty() {
			t.Errorf("the kernel differs from what was loaded by %s", d.Summary())
		}
	})
	t.Run("text", func(t *testing.T) {
		n := namespace(t)
		n.nft(want.String(), "-f", "-")
		if d, _ := n.directDelta(want); !d.Empty() {
			t.Errorf("the kernel differs from the text that was loaded by %s", d.Summary())
		}
	})
	for name, edit := range map[string]string{
		"address": "flush chain netdev weir backend/ip; add rule netdev weir backend/ip counter fwd ip to 10.1.1.9 device lo comment \"" + fullComment(want, "backend/ip") + "\"",
		"counter": "flush chain netdev weir backend/ip; add rule netdev weir backend/ip fwd ip to 10.1.1.1 device lo comment \"" + fullComment(want, "backend/ip") + "\"",
		"element": "delete element netdev weir slots/ip { 3 }; add element netdev weir slots/ip { 3 : drop }",
	} {
		t.Run("edited "+name, func(t *testing.T) {
			n := namespace(t)
			apply(t, n)
			n.nft(edit+"\n", "-f", "-")
			if d, _ := n.directDelta(want); d.Empty() {
				t.Error("nothing was noticed")
			}
			apply(t, n)
			if d, _ := n.directDelta(want); !d.Empty() {
				t.Errorf("it was not put right: %s", d.Summary())
			}
		})
	}
	t.Run("counters", func(t *testing.T) {
		n := namespace(t)
		apply(t, n)
		n.nft("flush chain netdev weir backend/ip; add rule netdev weir backend/ip counter packets 7 bytes 700 drop\n", "-f", "-")
		apply(t, n)
		got, err := n.RuleCounters(context.Background(), directTable[0])
		if err != nil || got["backend/ip"] != (Counter{Packets: 7, Bytes: 700}) || got["backend/ip6"] != (Counter{}) {
			t.Errorf("counters %v, %v", got, err)
		}
		if none, err := n.RuleCounters(context.Background(), TableRef{rs.Netdev, "other"}); err != nil || len(none) > 0 {
			t.Errorf("of a table that is not there: %v, %v", none, err)
		}
	})
}

// fullComment returns the comment of the only rule of a chain.
func fullComment(r *rs.Ruleset, chain string) string {
	return r.Tables[0].Chain(chain).Rules[0].FullComment()
}
