package nft

import (
	"time"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// floodFixture returns what limits of rates and SYN proxies need.
func floodFixture() (sets []*rs.Set, chains []*rs.Chain) {
	for _, f := range families {
		key := rs.Types{rs.Integer, rs.Integer, f.addr}
		sets = append(sets,
			&rs.Set{Name: "buckets" + f.suffix, Key: key, Dynamic: true, Timeout: true, Size: 1000},
			&rs.Set{Name: "offenders" + f.suffix, Key: key, Dynamic: true, Timeout: true, Counter: true, Size: 1000})
		bits := map[model.Family]int{model.IPv4: 24, model.IPv6: 64}[f.Family]
		by := func(bits int) rs.Key {
			return rs.Key{rs.Const(7), rs.Const(1 << 31), rs.MaskedSaddr(f.Family, bits)}
		}
		under := rs.RateUnder{Set: "buckets" + f.suffix, Key: by(bits), Rate: 50, Unit: time.Second, Burst: 100, Timeout: 2 * time.Second}
		hourly := rs.RateUnder{Set: "buckets" + f.suffix, Key: by(8 * f.addr.Size()), Rate: 10, Unit: time.Hour, Burst: 1, Timeout: time.Hour}
		chains = append(chains, &rs.Chain{Name: "over/" + f.suffix, Rules: []rs.Rule{
			rule("under", rs.IsFamily(f.Family), under, rs.Verdict{Kind: rs.GotoChain, Chain: "offender/" + f.suffix}),
			rule("no room", rs.IsFamily(f.Family), rs.NotInSet{Key: by(bits), Set: "buckets" + f.suffix}, rs.Verdict{Kind: rs.ReturnBack}),
			rule("SYN", rs.IsFamily(f.Family), rs.IsProto(model.TCP), rs.IsSYN{}, hourly, rs.Verdict{Kind: rs.DropPacket}),
		}}, &rs.Chain{Name: "offender/" + f.suffix, Rules: []rs.Rule{
			rule("who", rs.IsFamily(f.Family), rs.Update{Set: "offenders" + f.suffix, Key: by(bits), Timeout: 10 * time.Minute}),
			rule("", rs.Update{Set: "over", Key: rs.Key{rs.Const(7), rs.Const(1 << 31)}}),
			rule("", rs.Verdict{Kind: rs.DropPacket}),
		}})
	}
	sets = append(sets, &rs.Set{Name: "over", Key: rs.Types{rs.Integer, rs.Integer}, Dynamic: true, Counter: true, Size: 1000})
	chains = append(chains, &rs.Chain{Name: "proxy", Base: &rs.Base{Type: "filter", Hook: rs.Forward, Priority: -10}, Rules: []rs.Rule{
		rule("", rs.CtState{States: rs.Invalid | rs.Untracked}, rs.IsProto(model.TCP), rs.SynProxy{MSS: 1460, WScale: 7}),
		rule("", rs.CtState{States: rs.New}, rs.IsProto(model.TCP), rs.NoSYN{}, rs.SynProxy{MSS: 1440, WScale: 7}),
	}})
	return sets, chains
}
