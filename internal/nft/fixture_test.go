package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// pack makes register layout of addresses (string), ports (int), protocols and integers.
func pack(fields ...any) string {
	var b []byte
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			b = rs.AppendAddr(b, netip.MustParseAddr(f))
		case int:
			b = rs.AppendPort(b, uint16(f))
		case model.Proto:
			b = rs.AppendByte(b, uint8(f))
		case uint32:
			b = rs.AppendInteger(b, f)
		default:
			panic(fmt.Sprintf("pack: %T", f))
		}
	}
	return string(b)
}

func part(e ...rs.Element) []*rs.Part { return []*rs.Part{{Elems: e}} }

// packed packs keys, whose verdicts are the jumps in turn.
func packed(jumps []rs.Jump, keys ...string) []*rs.Packed {
	slices.Sort(keys)
	p := rs.NewPacker(len(keys[0]), jumps, nil)
	for i, k := range keys {
		p.Add([]byte(k), uint8(i%max(len(jumps), 1)))
	}
	return p.Pieces()
}

func kv(key, data string) rs.Element { return rs.Element{Key: key, Data: data} }

func goTo(key, chain string) rs.Element {
	return rs.Element{Key: key, Jump: rs.Jump{Chain: chain, Goto: true}}
}

func jumpRange(lo, hi, chain string) rs.Element {
	return rs.Element{Key: lo, KeyEnd: hi, Jump: rs.Jump{Chain: chain}}
}

// family is what the fixture needs of one address family.
type family struct {
	model.Family
	addr                   rs.Type
	saddr, daddr           rs.Field
	ctOrig, ctReply        rs.Field
	vip, server1, server2  string
	suffix                 string
	nothingLike, oneBefore string // two adjacent addresses
}

var families = []family{
	{model.IPv4, rs.IPv4Addr, rs.IPSaddr, rs.IPDaddr, rs.CtOrigDaddr4, rs.CtReplySaddr4,
		"198.51.100.10", "10.1.1.1", "10.1.1.2", "4", "203.0.113.8", "203.0.113.7"},
	{model.IPv6, rs.IPv6Addr, rs.IP6Saddr, rs.IP6Daddr, rs.CtOrigDaddr6, rs.CtReplySaddr6,
		"2001:db8::10", "2001:db8:1::1", "2001:db8:1::2", "6", "2001:db8:2::8", "2001:db8:2::7"},
}

// full returns a ruleset with every statement, field and kind of set, in both families.
func full() *rs.Ruleset {
	t := &rs.Table{Family: rs.Inet, Name: "weir"}
	for _, f := range families {
		t.Sets = append(t.Sets, f.sets()...)
		t.Chains = append(t.Chains, f.chains()...)
	}
	t.Sets = append(t.Sets,
		&rs.Set{Name: "ports", Key: rs.Types{rs.Port}, Range: true, Parts: part(
			rs.Element{Key: pack(80), KeyEnd: pack(90)}, rs.Element{Key: pack(91), KeyEnd: pack(99)},
			rs.Element{Key: pack(0), KeyEnd: pack(5)}, rs.Element{Key: pack(7)},
			rs.Element{Key: pack(65000), KeyEnd: pack(65535)})},
		&rs.Set{Name: "protocols", Key: rs.Types{rs.Protocol}, Counter: true, Parts: part(
			rs.Element{Key: pack(model.TCP)}, rs.Element{Key: pack(model.UDP)})},
		&rs.Set{Name: "integer", Key: rs.Types{rs.Integer}, Data: rs.Types{rs.Integer}, Parts: part(
			kv(pack(uint32(1)), pack(uint32(0xfffffffe))))},
		&rs.Set{Name: "verdicts", Key: rs.Types{rs.Integer}, Verdict: true, Parts: part(
			goTo(pack(uint32(7)), "odd"))},
		&rs.Set{Name: "limits", Key: rs.Types{rs.Integer, rs.Integer}, Dynamic: true, Size: 100},
		&rs.Set{Name: "full", Key: rs.Types{rs.Integer, rs.Integer}, Dynamic: true, Timeout: true, Size: 100},
		&rs.Set{Name: "empty", Key: rs.Types{rs.Port}, Data: rs.Types{rs.Protocol}, Size: 3},
	)
	v4 := families[0] // with IPv6 addresses nft 1.0.6 aborts here
	t.Chains = append(t.Chains, &rs.Chain{Name: "learn", Rules: []rs.Rule{
		rule("learn both", rs.IsFamily(v4.Family), rs.IsProto(model.TCP), rs.Update{Set: "sticky-both4", Timeout: time.Hour,
			Key: rs.Key{rs.Const(9 << 20), rs.CtOrigDPort, v4.saddr}, Data: rs.Concat{v4.daddr, rs.DPort}})}})
	t.Chains = append(t.Chains, limited()...)
	sets, chains := edgeFixture()
	floodSets, floodChains := floodFixture()
	markSets, markChains := markFixture()
	fibSets, fibChains := fibFixture()
	t.Sets = slices.Concat(t.Sets, sets, floodSets, markSets, fibSets)
	t.Chains = slices.Concat(t.Chains, bases(), chains, floodChains, markChains, fibChains)
	times, hygieneChains := hygieneFixture()
	t.Timeouts, t.Chains = times, append(t.Chains, hygieneChains...)
	poolSets, poolChains := egressFixture()
	t.Sets, t.Chains = append(t.Sets, poolSets...), append(t.Chains, poolChains...)
	return &rs.Ruleset{Tables: []*rs.Table{t}}
}

func limited() []*rs.Chain {
	key := rs.Key{rs.Const(7), rs.Const(1 << 31)}
	return []*rs.Chain{{Name: "limited", Rules: []rs.Rule{
		rule("full", rs.InSet{Key: key, Set: "full"}, rs.Verdict{Kind: rs.ReturnBack}),
		rule("over", rs.CountOver{Set: "limits", Key: key, Limit: 100}, rs.Verdict{Kind: rs.DropPacket}),
		rule("near", rs.CountOver{Set: "limits", Key: rs.Key{rs.Const(8), rs.Const(1 << 31)}},
			rs.Update{Set: "full", Key: key, Timeout: 10 * time.Second}),
		rule("end", rs.Update{Set: "full", Key: key, Timeout: time.Millisecond}),
		rule("closing", rs.IsProto(model.TCP), rs.Expires{Time: 121 * time.Second}, rs.FIN|rs.SYN, rs.Verdict{Kind: rs.ReturnBack}),
		rule("closing", rs.Expires{AtLeast: true, Time: 11 * time.Second}, rs.Expires{Time: 61500 * time.Millisecond}, rs.Verdict{Kind: rs.ReturnBack}),
		rule("reset", rs.IsProto(model.TCP), rs.RST),
	}}}
}

func (f family) sets() []*rs.Set {
	listener := rs.Types{f.addr, rs.Protocol, rs.Port}
	backend := rs.Types{f.addr, rs.Protocol, rs.Port, f.addr, rs.Port}
	return []*rs.Set{
		{Name: "services" + f.suffix, Key: listener, Verdict: true, Parts: part(
			goTo(pack(f.vip, model.TCP, 80), "service/web/"+f.suffix),
			goTo(pack(f.vip, model.SCTP, 80), "service/web/"+f.suffix))},
		{Name: "ranges" + f.suffix, Key: listener, Verdict: true, Range: true, Size: 200, Counter: true, Parts: part(
			jumpRange(pack(f.vip, model.UDP, 8000), pack(f.vip, model.UDP, 8010), "service/web/"+f.suffix),
			jumpRange(pack(f.vip, model.UDP, 9000), "", "service/web/"+f.suffix))},
		{Name: "slots" + f.suffix, Key: rs.Types{rs.Integer}, Data: rs.Types{f.addr, rs.Port}, Counter: true, Parts: part(
			kv(pack(uint32(0)), pack(f.server1, 8080)), kv(pack(uint32(1<<20)), pack(f.server1, 8080)),
			kv(pack(uint32(1<<20+1)), pack(f.server2, 81)))},
		{Name: "addr" + f.suffix, Key: rs.Types{rs.Integer, f.addr}, Data: rs.Types{f.addr}, Parts: part(
			kv(pack(uint32(3), f.vip), pack(f.server2)))},
		{Name: "port" + f.suffix, Key: rs.Types{f.addr, rs.Integer}, Data: rs.Types{rs.Port}, Parts: part(
			kv(pack(f.vip, uint32(5)), pack(90)))},
		{Name: "hairpin" + f.suffix, Key: rs.Types{f.addr, f.addr}, Parts: part(
			rs.Element{Key: pack(f.server1, f.server2)})},
		{Name: "blocked" + f.suffix, Key: rs.Types{f.addr}, Range: true, Counter: true, Parts: part(
			rs.Element{Key: pack(f.oneBefore)},
			rs.Element{Key: pack(f.nothingLike), KeyEnd: pack(f.nothingLike)[:len(pack(f.nothingLike))-1] + "\xff"})},
		{Name: "sticky-addr" + f.suffix, Key: rs.Types{rs.Integer, f.addr}, Data: rs.Types{f.addr},
			Dynamic: true, Timeout: true, Size: 65536},
		{Name: "sticky-port" + f.suffix, Key: rs.Types{rs.Integer, f.addr}, Data: rs.Types{rs.Port},
			Dynamic: true, Timeout: true, Size: 65536},
		{Name: "sticky-both" + f.suffix, Key: rs.Types{rs.Integer, rs.Port, f.addr}, Data: rs.Types{f.addr, rs.Port},
			Dynamic: true, Timeout: true, Size: 65536},
		{Name: "connections" + f.suffix, Key: backend, Dynamic: true, Counter: true, Size: 65536},
		{Name: "replies" + f.suffix, Key: backend, Dynamic: true, Counter: true, Timeout: true, Size: 1000},
		{Name: "resets" + f.suffix, Key: rs.Types{f.addr, rs.Port, f.addr, rs.Port}, Dynamic: true, Timeout: true, Size: 1000},
		{Name: "entries" + f.suffix, Key: rs.Types{f.addr}, Verdict: true, Counter: true, Size: 64, Packed: packed(
			[]rs.Jump{{Plain: rs.PlainDrop}, {Plain: rs.PlainAccept}, {Plain: rs.PlainContinue}, {Plain: rs.PlainReturn},
				{Chain: "refuse", Goto: true}, {Chain: "refuse"}},
			pack(f.oneBefore), pack(f.nothingLike), pack(f.server1), pack(f.server2), pack(f.vip))},
		{Name: "plain" + f.suffix, Key: rs.Types{f.addr}, Size: 16, Packed: packed(nil, pack(f.vip), pack(f.server1))},
	}
}

func rule(comment string, s ...rs.Stmt) rs.Rule { return rs.Rule{Comment: comment, Stmts: s} }

func (f family) chains() []*rs.Chain {
	is := func(p model.Proto, more ...rs.Stmt) []rs.Stmt {
		return append([]rs.Stmt{rs.IsFamily(f.Family), rs.IsProto(p)}, more...)
	}
	slots, addr, port := "slots"+f.suffix, "addr"+f.suffix, "port"+f.suffix
	both := func(e rs.Expr) rs.DNAT {
		return rs.DNAT{Family: f.Family, WithPort: true, To: rs.MapGet{Key: rs.Key{e}, Map: slots}}
	}
	sticky := rs.Key{rs.Const(9 << 20), f.saddr}
	served := rs.Key{f.ctOrig, rs.L4Proto, rs.CtOrigDPort, f.ctReply, rs.CtReplySPort}
	return []*rs.Chain{
		{Name: "service/web/" + f.suffix, Rules: []rs.Rule{
			rule("round-robin", is(model.TCP, both(rs.Numgen{Mod: 2, Offset: 1 << 20}))...),
			rule("random", is(model.UDP, both(rs.Numgen{Random: true, Mod: 2}))...),
			rule("maglev", is(model.SCTP, both(rs.Hash{Key: rs.Key{f.saddr, rs.SPort}, Mod: 251, Seed: 0x5eed, Offset: 1 << 20}))...),
			rule("source", is(model.TCP, both(rs.Hash{Key: rs.Key{f.saddr}, Mod: 251}))...),
			rule("source port alone", is(model.TCP, both(rs.Hash{Key: rs.Key{rs.SPort}, Mod: 2, Seed: 1}))...),
			rule("", rs.IsFamily(f.Family), rs.DNAT{Family: f.Family, To: rs.MapGet{Key: rs.Key{rs.Numgen{Mod: 1, Offset: 3}, f.daddr}, Map: addr}}),
			rule("two maps", is(model.TCP, rs.DNAT{Family: f.Family,
				To:   rs.MapGet{Key: rs.Key{rs.Const(3), f.daddr}, Map: addr},
				Port: rs.MapGet{Key: rs.Key{f.daddr, rs.Const(5)}, Map: port}})...),
			rule("known", is(model.TCP, rs.DNAT{Family: f.Family,
				To:   rs.MapGet{Key: sticky, Map: "sticky-addr" + f.suffix},
				Port: rs.MapGet{Key: sticky, Map: "sticky-port" + f.suffix}})...),
			rule("fixed port", is(model.TCP, rs.DNAT{Family: f.Family,
				To: rs.MapGet{Key: rs.Key{rs.Const(3), f.daddr}, Map: addr}, Port: rs.FixedPort(8080)})...),
			rule("cut off", is(model.TCP, rs.NoSYN{}, rs.InSet{Key: rs.Key{f.saddr, rs.SPort, f.daddr, rs.DPort},
				Set: "resets" + f.suffix}, rs.RejectWith{TCPReset: true})...),
		}},
		{Name: "count/" + f.suffix, Rules: []rs.Rule{
			rule("count", is(model.TCP, rs.Update{Set: "connections" + f.suffix, Key: served})...),
			rule("count", is(model.TCP, rs.Update{Set: "replies" + f.suffix, Key: served, Timeout: time.Hour})...),
			rule("learn", is(model.TCP,
				rs.Update{Set: "sticky-addr" + f.suffix, Key: sticky, Data: f.daddr, Timeout: 10 * time.Minute},
				rs.Update{Set: "sticky-port" + f.suffix, Key: sticky, Data: rs.DPort, Timeout: 1500 * time.Millisecond})...),
			rule("", is(model.TCP, rs.InSet{Key: rs.Key{f.ctOrig, f.saddr}, Set: "hairpin" + f.suffix}, rs.Masquerade{})...),
			rule("", rs.SNAT{Family: f.Family, To: netip.MustParseAddr(f.vip)}),
		}},
		{Name: "find/" + f.suffix, Rules: []rs.Rule{
			rule("exact", rs.IsFamily(f.Family), rs.VMap{Key: rs.Key{f.daddr, rs.L4Proto, rs.DPort}, Map: "services" + f.suffix}),
			rule("range", rs.IsFamily(f.Family), rs.VMap{Key: rs.Key{f.daddr, rs.L4Proto, rs.DPort}, Map: "ranges" + f.suffix}),
			rule("", rs.IsFamily(f.Family), rs.InSet{Key: rs.Key{f.saddr}, Set: "blocked" + f.suffix}, rs.Verdict{Kind: rs.DropPacket}),
			rule("", rs.IsFamily(f.Family), rs.VMap{Key: rs.Source(f.Family, 21), Map: "entries" + f.suffix}),
			rule("", rs.IsFamily(f.Family), rs.VMap{Key: rs.Source(f.Family, 0), Map: "entries" + f.suffix}),
			rule("", rs.IsFamily(f.Family), rs.InSet{Key: rs.Source(f.Family, 8*f.addr.Size()), Set: "plain" + f.suffix}, rs.Verdict{Kind: rs.DropPacket}),
		}},
	}
}

func bases() []*rs.Chain {
	var find []rs.Rule
	for _, f := range families {
		find = append(find, rule("find the service, and the words are many here; a hundred at most", rs.Verdict{Kind: rs.JumpTo, Chain: "find/" + f.suffix}))
	}
	return []*rs.Chain{
		{Name: "odd", Rules: []rs.Rule{
			rule("", rs.Match{Field: rs.CtDirection, Value: 1}, rs.Verdict{Kind: rs.ReturnBack}),
			rule("", rs.IsProto(model.TCP), rs.InSet{Key: rs.Key{rs.CtOrigDPort}, Set: "ports"}, rs.Verdict{Kind: rs.DropPacket}),
			rule("", rs.InSet{Key: rs.Key{rs.L4Proto}, Set: "protocols"}, rs.Verdict{Kind: rs.AcceptPacket}),
			rule("", rs.VMap{Key: rs.Key{rs.Numgen{Random: true, Mod: 9}}, Map: "verdicts"}),
			rule("", rs.NotLoopback{}, rs.Verdict{Kind: rs.ReturnBack}),
		}},
		{Name: "refuse", Rules: []rs.Rule{
			rule("", rs.IsProto(model.TCP), rs.RejectWith{TCPReset: true}),
			rule("", rs.RejectWith{}),
			rule("", rs.RejectWith{Prohibited: true}),
		}},
		{Name: "nothing"},
		{Name: "early", Base: &rs.Base{Type: "filter", Hook: rs.Output, Priority: -300}, Rules: []rs.Rule{
			rule("not for conntrack", rs.IsProto(model.TCP), rs.NoSYN{}, rs.Notrack{})}},
		{Name: "prerouting", Base: &rs.Base{Type: "nat", Hook: rs.Prerouting, Priority: -100}, Rules: find},
		{Name: "output", Base: &rs.Base{Type: "nat", Hook: rs.Output, Priority: -100}, Rules: slices.Clone(find)},
		{Name: "input", Base: &rs.Base{Type: "filter", Hook: rs.Input, Priority: 10}, Rules: []rs.Rule{
			rule("", rs.StatusDNAT{}, rs.Verdict{Kind: rs.AcceptPacket}),
			rule("", rs.Verdict{Kind: rs.GotoChain, Chain: "refuse"})}},
		{Name: "forward", Base: &rs.Base{Type: "filter", Hook: rs.Forward, Priority: -5}},
		{Name: "postrouting", Base: &rs.Base{Type: "nat", Hook: rs.Postrouting, Priority: 100}, Rules: []rs.Rule{
			rule("", rs.StatusDNAT{}, rs.Masquerade{})}},
	}
}
