package plan

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Hygiene is what egress pools ask of traffic beside its translation: SYNs that announce no
// more than the path bears, private sources that stay inside, and for how long conntrack
// remembers connections.
//
// A private source leaks in two ways. A packet that conntrack calls invalid, or that a rule
// kept from it, is never translated: it is rejected in forward. Whether any other is
// translated, by whomever, is known behind all translation alone, where the kernel gives no
// answer any more: it is dropped there. Only what the box forwards is looked at. Its own packets
// have its own addresses, of which the one on the way to the next router may well be private.

// Chains of hygiene.
const (
	chainLeakRejected = "leak/rejected"
	chainLeakDropped  = "leak/dropped"
)

// privatePrefixes are addresses that mean nothing outside: RFC 1918, RFC 6598 and RFC 4193.
var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// clampSpec: devices of pools whose SYNs announce no more than the path bears.
var clampSpec = setSpec{Name: "clamp-mss", Key: ruleset.Types{ruleset.IfName}}

// leakedSpec counts private sources that did not leave, by the devices they came in by and
// would have left by.
var leakedSpec = setSpec{Name: "leaked", Key: ruleset.Types{ruleset.IfName, ruleset.IfName}, Counter: true, Size: edgeSize}

// leaksOutSpec: devices by which no private source of a family leaves.
func leaksOutSpec(f model.Family) setSpec {
	return setSpec{Name: "leaks-out" + digit(f), Key: ruleset.Types{ruleset.IfName}}
}

// privateSpec: private addresses of a family.
func privateSpec(f model.Family) setSpec {
	return setSpec{Name: "private" + digit(f), Key: ruleset.Types{ruleset.AddrType(f)}, Range: true}
}

// leaksExceptSpec: destinations to which private sources may leave, by device.
func leaksExceptSpec(f model.Family) setSpec {
	return setSpec{Name: "leaks-except" + digit(f), Key: ruleset.Types{ruleset.IfName, ruleset.AddrType(f)}, Range: true}
}

// hygieneHooks are there only if they have rules. Priorities are those of nft's words mangle
// (-150) and srcnat (100).
var hygieneHooks = []edgeHook{
	{"clamp-in", "filter", ruleset.Forward, -150,
		"SYNs that come in by a pool's device, once the way on is known", func(u usage, _ *edgePlan) []ruleset.Rule {
			return clampRules(u, ruleset.IIFName)
		}},
	{"clamp-out", "filter", ruleset.Postrouting, -150,
		"those that leave by one, the box's own too: after its translation in output, which may change the way", func(u usage, _ *edgePlan) []ruleset.Rule {
			return clampRules(u, ruleset.OIFName)
		}},
	{"leaks-invalid", "filter", ruleset.Forward, 10,
		"after the access policy, which counts what it drops itself", func(u usage, _ *edgePlan) []ruleset.Rule {
			return leakRules(u, "never translated", chainLeakRejected, ruleset.CtState{States: ruleset.Invalid | ruleset.Untracked})
		}},
	{"leaks", "filter", ruleset.Postrouting, 110,
		"behind all translation of sources, also other people's", func(u usage, _ *edgePlan) []ruleset.Rule {
			return leakRules(u, "not translated", chainLeakDropped, ruleset.SourceKept{},
				ruleset.Match{Field: ruleset.CtDirection}, ruleset.CameIn{})
		}},
}

func clampRules(u usage, device ruleset.Field) []ruleset.Rule {
	if u[clampSpec.Name] == nil {
		return nil
	}
	return []ruleset.Rule{{Comment: "no more than the path bears", Stmts: []ruleset.Stmt{ruleset.IsProto(model.TCP), ruleset.SYN,
		ruleset.InSet{Key: ruleset.Key{device}, Set: clampSpec.Name}, ruleset.ClampMSS{}}}}
}

// leakRules send private sources that match, and would leave, to a chain. Most packets of a
// pool are translated and fail the first statement.
func leakRules(u usage, words, chain string, match ...ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		if u[leaksOutSpec(f).Name] == nil {
			continue
		}
		stmts := append(slices.Clip(match), ruleset.IsFamily(f),
			ruleset.InSet{Key: ruleset.Key{ruleset.OIFName}, Set: leaksOutSpec(f).Name},
			ruleset.InSet{Key: ruleset.Key{ruleset.Saddr(f)}, Set: privateSpec(f).Name})
		if except := leaksExceptSpec(f).Name; u[except] != nil {
			stmts = append(stmts, ruleset.NotInSet{Key: ruleset.Key{ruleset.OIFName, ruleset.Daddr(f)}, Set: except})
		}
		rules = append(rules, ruleset.Rule{Comment: "a private source, " + words,
			Stmts: append(stmts, ruleset.Verdict{Kind: ruleset.GotoChain, Chain: chain})})
	}
	return rules
}

// leakChains count what does not leave, and refuse it.
func leakChains(u usage) []*ruleset.Chain {
	if u[leakedSpec.Name] == nil {
		return nil
	}
	chain := func(name, words string, s ruleset.Stmt) *ruleset.Chain {
		return &ruleset.Chain{Name: name, Rules: []ruleset.Rule{
			{Comment: "count it", Stmts: []ruleset.Stmt{ruleset.Update{Set: leakedSpec.Name, Key: ruleset.Key{ruleset.IIFName, ruleset.OIFName}}}},
			{Comment: words, Stmts: []ruleset.Stmt{s}}}}
	}
	return []*ruleset.Chain{
		chain(chainLeakRejected, "tell the sender", ruleset.RejectWith{Prohibited: true}),
		chain(chainLeakDropped, "no answer can be given here", drop),
	}
}

// hygieneChains returns the chains that pools need beside those that translate.
func hygieneChains(u usage) []*ruleset.Chain {
	var chains []*ruleset.Chain
	for _, h := range hygieneHooks {
		if rules := h.rules(u, nil); len(rules) > 0 {
			chains = append(chains, &ruleset.Chain{Name: h.name, Rules: rules,
				Base: &ruleset.Base{Type: h.typ, Hook: h.hook, Priority: h.priority}})
		}
	}
	return append(chains, leakChains(u)...)
}

// hygieneParts returns what the pools bring to the sets. A part that the plan before had is
// taken from there.
func (p *Plan) hygieneParts(pools []*model.Pool) []setPart {
	var out []setPart
	add := func(spec setSpec, elems []ruleset.Element) {
		part := &ruleset.Part{Elems: elems}
		if p != nil {
			if i := slices.IndexFunc(p.hygiene, func(o setPart) bool { return o.spec.Name == spec.Name }); i >= 0 && slices.Equal(p.hygiene[i].part.Elems, elems) {
				part = p.hygiene[i].part
			}
		}
		out = append(out, setPart{spec: spec, part: part})
	}
	add(clampSpec, deviceElements(poolDevices(pools, func(p *model.Pool) bool { return p.ClampMSS })))
	leaks := false
	for _, f := range families {
		devices := poolDevices(pools, func(p *model.Pool) bool { return !p.Leaks && slices.Contains(p.Families(), f) })
		if len(devices) == 0 {
			continue
		}
		leaks = true
		add(leaksOutSpec(f), deviceElements(devices))
		add(privateSpec(f), spanElements("", prefixSpans(privatePrefixes, f)))
		var except []ruleset.Element
		for _, d := range devices {
			except = append(except, spanElements(string(ruleset.AppendDevice(nil, d)), prefixSpans(exceptBy(pools, d), f))...)
		}
		add(leaksExceptSpec(f), except)
	}
	if leaks {
		add(leakedSpec, nil)
	}
	return out
}

// poolDevices returns the outgoing devices of those pools, sorted, each once.
func poolDevices(pools []*model.Pool, of func(*model.Pool) bool) []string {
	var out []string
	for _, p := range pools {
		if of(p) {
			out = append(out, p.Out...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// exceptBy returns the destinations that some pool of the device excepts, sorted, none within
// another.
func exceptBy(pools []*model.Pool, device string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range pools {
		if slices.Contains(p.Out, device) {
			all = append(all, p.Except...)
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range all {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

func deviceElements(names []string) []ruleset.Element {
	var out []ruleset.Element
	for _, n := range names {
		out = append(out, ruleset.Element{Key: string(ruleset.AppendDevice(nil, n))})
	}
	return out
}

// spanElements returns ranges behind a fixed beginning of the key.
func spanElements(head string, spans []span) []ruleset.Element {
	var out []ruleset.Element
	for _, s := range spans {
		e := ruleset.Element{Key: head + s.lo}
		if s.hi != s.lo {
			e.KeyEnd = head + s.hi
		}
		out = append(out, e)
	}
	return out
}

// poolTimeouts returns the objects of a pool: one for each protocol that it says times for.
// The name follows from the times, so that one that says others is another object, and pools
// that say the same share it.
func poolTimeouts(p *model.Pool) []*ruleset.Timeouts {
	var out []*ruleset.Timeouts
	for _, proto := range []model.Proto{model.TCP, model.UDP} {
		o := &ruleset.Timeouts{Proto: proto}
		h := fnv.New32a()
		for _, state := range ruleset.TimeoutStates(proto) {
			for _, x := range p.Timeouts {
				if x.Proto == proto && x.State == state {
					o.States = append(o.States, ruleset.Lasting{State: state, Time: x.Time})
					fmt.Fprintf(h, "%s %s\x00", state, x.Time)
				}
			}
		}
		if len(o.States) > 0 {
			o.Name = fmt.Sprintf("timeouts/%s/%08x", proto, h.Sum32())
			out = append(out, o)
		}
	}
	return out
}

// allTimeouts returns the objects of all pools, each once, in the order of their names.
func allTimeouts(pools []*model.Pool) []*ruleset.Timeouts {
	var out []*ruleset.Timeouts
	for _, p := range pools {
		out = append(out, poolTimeouts(p)...)
	}
	slices.SortFunc(out, func(a, b *ruleset.Timeouts) int { return compareNames(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b *ruleset.Timeouts) bool { return a.Name == b.Name })
}

// remember puts the rules that give a connection the pool's times before those that translate
// it, which end the chain.
func (u *egressUnit) remember(f model.Family) {
	var rules []ruleset.Rule
	for _, o := range poolTimeouts(u.pool) {
		rules = append(rules, ruleset.Rule{Comment: "for how long it is remembered",
			Stmts: []ruleset.Stmt{ruleset.IsProto(o.Proto), ruleset.SetTimeouts{Name: o.Name}}})
	}
	for _, c := range u.chains {
		if c.Name == egressChain(u.pool.Name, f) {
			c.Rules = append(rules, c.Rules...)
		}
	}
}
