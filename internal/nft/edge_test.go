package nft

import (
	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// edgeFixture returns what an access policy and untracked listeners need, of every kind.
func edgeFixture() (sets []*rs.Set, chains []*rs.Chain) {
	dev := func(name string) string { return string(rs.AppendDevice(nil, name)) }
	one := func(v uint8) rs.Element { return rs.Element{Key: string(rs.AppendByte(nil, v))} }
	var flags []rs.Element
	for _, v := range rs.InvalidFlags() {
		flags = append(flags, one(v))
	}
	sets = []*rs.Set{
		{Name: "flag-bytes", Key: rs.Types{rs.TCPFlagByte}, Parts: part(flags...)},
		{Name: "icmp-types", Key: rs.Types{rs.ICMPTypeByte}, Parts: part(one(3), one(8))},
		{Name: "icmpv6-types", Key: rs.Types{rs.ICMP6TypeByte}, Parts: part(one(1), one(135))},
		{Name: "by-device", Key: rs.Types{rs.IfName}, Counter: true, Parts: part(
			rs.Element{Key: dev("eth0")}, rs.Element{Key: dev("a-name-of-15-is")})},
		{Name: "dropped", Key: rs.Types{rs.IfName, rs.IfName}, Counter: true, Dynamic: true, Size: 4096},
		{Name: "odd-flags", Key: rs.Types{rs.IfName, rs.TCPFlagByte}, Counter: true, Dynamic: true, Size: 4096},
		{Name: "open4", Key: rs.Types{rs.IfName, rs.IPv4Addr, rs.Protocol, rs.Port}, Range: true, Counter: true, Parts: part(
			rs.Element{Key: dev("eth0") + pack("10.0.0.0", model.TCP, 22), KeyEnd: dev("eth0") + pack("10.255.255.255", model.TCP, 22)},
			rs.Element{Key: dev("eth1") + pack("10.0.0.0", model.UDP, 0), KeyEnd: dev("eth1") + pack("10.0.0.255", model.UDP, 65535)},
			rs.Element{Key: dev("eth1") + pack("10.0.1.0", model.UDP, 53)})},
		{Name: "open6", Key: rs.Types{rs.IfName, rs.IPv6Addr, rs.IPv6Addr, rs.Protocol, rs.Port}, Range: true, Counter: true, Parts: part(
			rs.Element{Key: dev("eth0") + pack("2001:db8::", "::", model.TCP, 22),
				KeyEnd: dev("eth0") + pack("2001:db8::ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", model.TCP, 22)})},
	}
	v4, v6 := families[0], families[1]
	accept := rs.Verdict{Kind: rs.AcceptPacket}
	chains = []*rs.Chain{
		{Name: "raw-out", Base: &rs.Base{Type: "filter", Hook: rs.Output, Priority: -300}, Rules: []rs.Rule{
			rule("", rs.OnLoopback{Out: true}, rs.Notrack{}, accept)}},
		{Name: "access", Base: &rs.Base{Type: "filter", Hook: rs.Forward, Priority: 0}, Rules: []rs.Rule{
			rule("", rs.CtState{States: rs.Established | rs.Related}, accept),
			rule("", rs.OnLoopback{}, accept),
			rule("", rs.IsProto(model.TCP), rs.InSet{Key: rs.Key{rs.TCPFlags}, Set: "flag-bytes"}, rs.Verdict{Kind: rs.DropPacket}),
			rule("", rs.IsProto(1), rs.InSet{Key: rs.Key{rs.ICMPType}, Set: "icmp-types"}, accept),
			rule("", rs.IsProto(58), rs.InSet{Key: rs.Key{rs.ICMP6Type}, Set: "icmpv6-types"}, accept),
			rule("", rs.InSet{Key: rs.Key{rs.IIFName}, Set: "by-device"}, accept),
			rule("", rs.IsFamily(v4.Family), rs.InSet{Key: rs.Key{rs.IIFName, v4.saddr, rs.L4Proto, rs.DPort}, Set: "open4"}, accept),
			rule("", rs.OutDevice{Name: "eth1"}, rs.IsFamily(v6.Family),
				rs.InSet{Key: rs.Key{rs.IIFName, v6.saddr, v6.daddr, rs.L4Proto, rs.DPort}, Set: "open6"}, accept),
			rule("", rs.IsProto(model.TCP), rs.Update{Set: "odd-flags", Key: rs.Key{rs.IIFName, rs.TCPFlags}}),
			rule("", rs.Update{Set: "dropped", Key: rs.Key{rs.IIFName, rs.OIFName}}),
			rule("", rs.Verdict{Kind: rs.DropPacket})}},
	}
	return sets, chains
}
