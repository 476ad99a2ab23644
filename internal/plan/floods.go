package plan

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// A limit is a bucket of tokens for each source, in a set that packets fill. Buckets of all
// services are in the same sets, under a number that follows from the service's name and
// from the limit, because an element keeps the rate that it was made with. So a reload
// finds them as they were, and a limit that changes begins anew.
//
// New connections are counted where conntrack's first packet of one passes anyway: at the
// head of the service's chain, or in input for a service of the box. Packets, and SYNs that
// conntrack does not see, are counted before it, behind one look-up for all services.
//
// Whoever is over the limit goes to a chain of the limit that counts, remembers who it was,
// and refuses. A set that is full has no bucket for a source that comes new. It passes, and
// is counted in unchecked: a source can be forged, and whoever fills the set with forged
// ones must not lock out the others.

const (
	// bucketsSize bounds the sources of one family that have a bucket. A bucket stays as
	// long as it takes to be full again, so these are those of a few seconds.
	bucketsSize = 1 << 18
	// offendersSize bounds the sources of one family that are remembered.
	offendersSize = 1 << 16
	// offenderFor is how long a source is remembered after its last packet over a limit.
	offenderFor = 10 * time.Minute
	// ratesSize bounds the limits, of all services, that are counted.
	ratesSize = 1 << 16
)

var rateKey = ruleset.Types{ruleset.Integer, ruleset.Integer}

func sourceRateKey(f model.Family) ruleset.Types {
	return append(slices.Clip(rateKey), ruleset.AddrType(f))
}

// bucketsSpec: limit and source to the bucket.
func bucketsSpec(f model.Family) setSpec {
	return setSpec{Name: "buckets" + digit(f), Key: sourceRateKey(f), Timeout: true, Size: bucketsSize}
}

// sharedBucketsSpec: limits that all sources share.
func sharedBucketsSpec() setSpec {
	return setSpec{Name: "buckets", Key: rateKey, Timeout: true, Size: ratesSize}
}

// offendersSpec: limit and source that was over it.
func offendersSpec(f model.Family) setSpec {
	return setSpec{Name: "offenders" + digit(f), Key: sourceRateKey(f), Timeout: true, Counter: true, Size: offendersSize}
}

var (
	// overRateSpec: limits to what was over them.
	overRateSpec = setSpec{Name: "over-rate", Key: rateKey, Counter: true, Size: ratesSize}
	// uncheckedSpec: limits to what passed because there was no room for a bucket.
	uncheckedSpec = setSpec{Name: "unchecked", Key: rateKey, Counter: true, Size: ratesSize}
)

// ratesSpec: listeners with something to count before conntrack, to the chain that
// does it.
func ratesSpec(f model.Family) setSpec {
	return setSpec{Name: "rates" + digit(f), Key: listenerKey(f), Verdict: true}
}

// ratesNewSpec: listeners of the box whose new connections are limited.
func ratesNewSpec(f model.Family) setSpec {
	return setSpec{Name: "rates-new" + digit(f), Key: listenerKey(f), Verdict: true}
}

func rateChainName(s *model.Service, f model.Family) string {
	return "rate/" + s.Name + "/" + f.String()
}

func rateNewChain(s *model.Service, f model.Family) string { return rateChainName(s, f) + "/new" }

// limitChain asks the i-th limit.
func limitChain(s *model.Service, f model.Family, i int) string {
	return fmt.Sprintf("%s/%d", rateChainName(s, f), i+1)
}

// overRateChain refuses what is over the i-th limit.
func overRateChain(s *model.Service, f model.Family, i int) string {
	return fmt.Sprintf("over/%s/%s/%d", s.Name, f, i+1)
}

// rateID is the number of a limit: 64 bits out of its words and the service's name, so
// that it is the same in every plan and on every node.
func rateID(s *model.Service, l model.Limit) ruleset.Key { return limitID(s, l, "") }

// limitID is rateID with something to tell sets apart: buckets have numbers of their own,
// because elements of an earlier release, which match the other way round, may still be there.
func limitID(s *model.Service, l model.Limit, of string) ruleset.Key {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%t%s", s.Name, l, l.Reject, of)
	sum := mix(h.Sum64())
	return ruleset.Key{ruleset.Const(uint32(sum >> 32)), ruleset.Const(uint32(sum))}
}

// rateUse is a limit of one service in one family.
type rateUse struct {
	model.Limit
	service *model.Service
	family  model.Family
	i       int // its place in the service's list
}

// bucket returns the set and key of the packet's bucket.
func (l rateUse) bucket() (set string, key ruleset.Key) {
	id := limitID(l.service, l.Limit, "bucket")
	if l.Whole {
		return sharedBucketsSpec().Name, id
	}
	return bucketsSpec(l.family).Name, append(id, ruleset.MaskedSaddr(l.family, l.Bits(l.family)))
}

func (l rateUse) sourceKey(of model.Limit) ruleset.Key {
	return append(rateID(l.service, l.Limit), ruleset.MaskedSaddr(l.family, of.Bits(l.family)))
}

// ask is the rule that asks the limit. match is what comes first.
func (l rateUse) ask(match ...ruleset.Stmt) ruleset.Rule {
	return ruleset.Rule{Comment: fmt.Sprintf("limit %d of %s", l.i+1, l.service.Name), Stmts: append(slices.Clip(match),
		ruleset.Verdict{Kind: ruleset.JumpTo, Chain: limitChain(l.service, l.family, l.i)})}
}

// limit is the chain that takes a token. Most packets find one, and are done with one
// look-up; of the others, those that have a bucket are over the limit. Whether there is one
// is asked by rules that match if there is none: a look-up that finds an element asks its
// limit again (nft_lookup.c). That of the counting ends its rule if it finds no room.
func (l rateUse) limit() *ruleset.Chain {
	set, key := l.bucket()
	none := ruleset.NotInSet{Set: set, Key: key}
	back := ruleset.Verdict{Kind: ruleset.ReturnBack}
	return &ruleset.Chain{Name: limitChain(l.service, l.family, l.i), Rules: []ruleset.Rule{
		{Comment: l.String(), Stmts: []ruleset.Stmt{ruleset.IsFamily(l.family),
			ruleset.RateUnder{Set: set, Key: key, Rate: uint32(l.Rate), Unit: l.Unit, Burst: uint32(l.Burst),
				Timeout: (l.Refill() + 2*time.Second - 1).Truncate(time.Second)}, back}},
		{Comment: "no room to count", Stmts: []ruleset.Stmt{ruleset.IsFamily(l.family), none,
			ruleset.Update{Set: uncheckedSpec.Name, Key: rateID(l.service, l.Limit)}}},
		{Comment: "it passes", Stmts: []ruleset.Stmt{ruleset.IsFamily(l.family), none, back}},
		{Comment: "over it", Stmts: []ruleset.Stmt{
			ruleset.Verdict{Kind: ruleset.GotoChain, Chain: overRateChain(l.service, l.family, l.i)}}},
	}}
}

// over is the chain for what is over the limit.
func (l rateUse) over() *ruleset.Chain {
	who := l.Limit
	if l.Whole {
		who = model.NewLimit()
	}
	c := &ruleset.Chain{Name: overRateChain(l.service, l.family, l.i), Rules: []ruleset.Rule{
		{Comment: l.String(), Stmts: []ruleset.Stmt{ruleset.Update{Set: overRateSpec.Name, Key: rateID(l.service, l.Limit)}}},
		{Comment: "remember who", Stmts: []ruleset.Stmt{ruleset.IsFamily(l.family),
			ruleset.Update{Set: offendersSpec(l.family).Name, Key: l.sourceKey(who), Timeout: offenderFor}}},
	}}
	last := drop
	if !l.Reject {
		c.Rules = append(c.Rules, ruleset.Rule{Comment: "over the limit", Stmts: []ruleset.Stmt{last}})
		return c
	}
	for _, p := range protosOf(l.service, l.family) {
		c.Rules = append(c.Rules, ruleset.Rule{Comment: "over the limit",
			Stmts: []ruleset.Stmt{ruleset.IsProto(p), ruleset.RejectWith{TCPReset: p == model.TCP}}})
	}
	return c
}

// floods adds what the service's limits and its SYN proxy need.
func (u *unit) floods() {
	s := u.service
	for _, f := range s.Families() {
		var early, fresh []ruleset.Rule
		head := map[model.Proto][]ruleset.Rule{}
		if s.SynProxy {
			head[model.TCP] = u.synProxy(f)
		}
		for i, l := range s.Limits {
			use := rateUse{l, s, f, i}
			u.chains = append(u.chains, use.limit(), use.over())
			switch {
			case l.Counts == model.Packets:
				early = append(early, use.ask())
			case s.Untracked:
				early = append(early, use.ask(ruleset.IsProto(model.TCP), ruleset.IsSYN{}))
			case s.Local():
				fresh = append(fresh, use.ask())
			default:
				for _, p := range protosOf(s, f) {
					head[p] = append(head[p], use.ask())
				}
			}
		}
		for p, rules := range head {
			u.atHead(f, p, rules)
		}
		u.rateChain(ratesSpec(f), f, rateChainName(s, f), early)
		u.rateChain(ratesNewSpec(f), f, rateNewChain(s, f), fresh)
	}
	if len(s.Limits) > 0 {
		for _, spec := range u.rateSets() {
			u.parts = append(u.parts, setPart{spec: spec, part: &ruleset.Part{}})
		}
	}
}

// rateSets returns the sets that the service's limits fill.
func (u *unit) rateSets() []setSpec {
	out := []setSpec{overRateSpec, uncheckedSpec}
	for _, f := range u.service.Families() {
		out = append(out, offendersSpec(f))
	}
	for _, l := range u.service.Limits {
		if l.Whole {
			out = append(out, sharedBucketsSpec())
			continue
		}
		for _, f := range u.service.Families() {
			out = append(out, bucketsSpec(f))
		}
	}
	slices.SortFunc(out, func(a, b setSpec) int { return compareNames(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b setSpec) bool { return a.Name == b.Name })
}

// rateChain adds a chain of rules, if there are any, and the listeners that lead there.
func (u *unit) rateChain(spec setSpec, f model.Family, name string, rules []ruleset.Rule) {
	if len(rules) == 0 {
		return
	}
	u.chains = append(u.chains, &ruleset.Chain{Name: name, Rules: rules})
	var t twins
	for _, l := range u.service.Listen {
		if l.Family() == f {
			e := listenElement(l, netip.Addr{})
			e.Jump = ruleset.Jump{Chain: name}
			t.add(l, e)
		}
	}
	u.addTwins(spec, &t)
}

// atHead puts rules before the choice of a backend, behind the one that answers late
// packets of connections that were cut off.
func (u *unit) atHead(f model.Family, p model.Proto, rules []ruleset.Rule) {
	if len(rules) == 0 {
		return
	}
	at := 0
	if resets(u.service, p) {
		at = 1
	}
	name := poolChain(u.service, f, p)
	c := u.chains[slices.IndexFunc(u.chains, func(c *ruleset.Chain) bool { return c.Name == name })]
	c.Rules = slices.Insert(c.Rules, at, rules...)
}

// floodHooks is where limits are asked beside the chains of the services, and where SYN
// proxies answer.
var floodHooks = []edgeHook{
	{"rate-new", "nat", ruleset.Input, 90,
		"new connections to the box's own services, before they are counted at 100",
		func(u usage, _ *edgePlan) []ruleset.Rule { return rateRules(u, ratesNewSpec) }},
	{"local-new-out", "nat", ruleset.Output, -90,
		"those from the box itself, and from SYN proxies in their clients' names: they leave by lo, and are no news any more when they come in",
		func(u usage, _ *edgePlan) []ruleset.Rule {
			lo := ruleset.OnLoopback{Out: true}
			return append(rateRules(u, ratesNewSpec, lo),
				inEither(u, localNew, askedKey, "new connection to a listener of the box", []ruleset.Stmt{lo})...)
		}},
	{"syn-proxy-in", "filter", ruleset.Input, -10,
		"before anybody filters, at 0: nothing there knows the packets of clients that are not proved yet",
		func(u usage, _ *edgePlan) []ruleset.Rule { return proxyRules(u) }},
	{"syn-proxy-forward", "filter", ruleset.Forward, -10,
		"the same where the listener's address is no address of the box",
		func(u usage, _ *edgePlan) []ruleset.Rule { return proxyRules(u) }},
}

// rateRules looks up the chain that asks a listener's limits, and comes back.
func rateRules(u usage, spec func(model.Family) setSpec, match ...ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		for _, s := range []setSpec{spec(f), spec(f).twin()} {
			if u[s.Name] != nil {
				rules = append(rules, ruleset.Rule{Comment: "limits of the service", Stmts: append(slices.Clip(match),
					ruleset.IsFamily(f), ruleset.VMap{Key: askedKey(f), Map: s.Name})})
			}
		}
	}
	return rules
}

// early is the rules before conntrack.
func early(u usage) []ruleset.Rule {
	rules := append(findInvalidFlags(u), rateRules(u, ratesSpec)...)
	return append(append(rules, proxyUntracked(u)...), keepFromConntrack(u)...)
}

// LimitAt is a limit of a service.
type LimitAt struct {
	Service string
	I       int // its place in the service's list
	model.Limit
}

// Limits returns the limits by the first eight bytes of the keys of the elements that
// belong to them.
func (p *Plan) Limits() map[string]LimitAt {
	out := map[string]LimitAt{}
	for _, s := range p.Config.Services {
		for i, l := range s.Limits {
			var key []byte
			for _, e := range rateID(s, l) {
				key = binary.NativeEndian.AppendUint32(key, e.(ruleset.Numgen).Offset)
			}
			out[string(key)] = LimitAt{s.Name, i, l}
		}
	}
	return out
}

// LimitKeyLen is the length of the keys of Limits.
const LimitKeyLen = 8

// LimitCounts returns the sets that count, by limit, what was over it and what passed
// without being asked; nil where no service has a limit.
func (p *Plan) LimitCounts() (over, unchecked *ruleset.Set) {
	t := p.Ruleset.Tables[0]
	return t.Set(overRateSpec.Name), t.Set(uncheckedSpec.Name)
}

// Offenders returns the sets of the sources that were over a limit.
func (p *Plan) Offenders() []*ruleset.Set {
	var out []*ruleset.Set
	for _, f := range families {
		if s := p.Ruleset.Tables[0].Set(offendersSpec(f).Name); s != nil {
			out = append(out, s)
		}
	}
	return out
}

// OffenderSource reads the source in the key of an element of such a set: the prefix that
// the limit counts by, or a single address (IPv4) and a /64 where all sources share it.
func OffenderSource(l model.Limit, key string) netip.Prefix {
	if l.Whole {
		l = model.NewLimit()
	}
	addr, ok := netip.AddrFromSlice([]byte(key[LimitKeyLen:]))
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addr, l.Bits(model.FamilyOf(addr)))
}
