package nft

import (
	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// egressFixture returns what egress pools need.
func egressFixture() (sets []*rs.Set, chains []*rs.Chain) {
	ports := model.PortRange{Lo: 1024, Hi: 65535}
	for _, f := range families {
		pool := "pool" + f.suffix
		sets = append(sets, &rs.Set{Name: pool, Key: rs.Types{rs.Integer}, Data: rs.Types{f.addr},
			Parts: part(kv(pack(uint32(0)), pack(f.server1)), kv(pack(uint32(1)), pack(f.server2)))},
			&rs.Set{Name: "clients" + f.suffix, Key: rs.Types{f.addr}, Data: rs.Types{f.addr}, Parts: part(kv(pack(f.vip), pack(f.server1)))})
		give := func(proto model.Proto, key rs.Expr, name string, p model.PortRange) rs.Rule {
			return rule("", rs.IsFamily(f.Family), rs.IsProto(proto), rs.SNAT{Family: f.Family, Via: rs.MapGet{Key: rs.Key{key}, Map: name}, Ports: p})
		}
		chains = append(chains, &rs.Chain{Name: "egress/" + f.suffix, Rules: []rs.Rule{
			give(model.TCP, rs.Numgen{Mod: 2}, pool, ports),
			give(model.UDP, rs.Hash{Key: rs.Key{f.saddr, f.daddr}, Mod: 2, Seed: 7}, pool, model.Port(5000)),
			give(model.TCP, f.saddr, "clients"+f.suffix, ports),
			rule("", rs.IsFamily(f.Family), rs.SNAT{Family: f.Family, Via: rs.MapGet{Key: rs.Key{rs.Numgen{Mod: 2}}, Map: pool}}),
			rule("", rs.IsFamily(f.Family), rs.IsProto(model.TCP), rs.Masquerade{Ports: ports}),
			rule("", rs.IsFamily(f.Family), rs.IsProto(model.UDP), rs.Masquerade{Ports: model.Port(5000)}),
		}})
	}
	return sets, append(chains, &rs.Chain{Name: "egress-new", Base: &rs.Base{Type: "filter", Hook: rs.Postrouting, Priority: 110}, Rules: []rs.Rule{
		rule("first", rs.FirstSNAT{}, rs.Verdict{Kind: rs.AcceptPacket})}})
}
