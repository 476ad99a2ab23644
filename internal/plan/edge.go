package plan

import (
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Chains of the access policy.
const (
	chainEdgeIn       = "edge-in"
	chainEdgeForward  = "edge-forward"
	chainInvalidFlags = "invalid-flags"
)

// edgeSize bounds the pairs of devices, or of a device and TCP flags, for which drops are
// counted.
const edgeSize = 1 << 12

// edgeLocalSpec: the box's own listeners, which the policy lets packets to.
func edgeLocalSpec(f model.Family) setSpec {
	return setSpec{Name: "edge-local" + digit(f), Key: listenerKey(f)}
}

// edgeNATSpec: the other listeners, whose connections the policy lets through.
func edgeNATSpec(f model.Family) setSpec {
	return setSpec{Name: "edge-nat" + digit(f), Key: listenerKey(f)}
}

// managementSpec: from where the box is always reached.
func managementSpec(f model.Family) setSpec {
	return setSpec{Name: "management" + digit(f), Key: ruleset.Types{ruleset.AddrType(f)}, Range: true, Counter: true}
}

// The sets that do not depend on the file.
var (
	// ICMP that is always let in: destination unreachable (frag-needed is one of its codes),
	// time exceeded, parameter problem (RFC 792) and echo requests.
	boxICMP = setSpec{Name: "edge-icmp", Key: ruleset.Types{ruleset.ICMPTypeByte}}
	// The same for ICMPv6, with packet too big (RFC 4443), neighbour and router discovery
	// (RFC 4861, redirects excepted) and multicast listener discovery (RFC 2710, RFC 3810).
	boxICMPv6 = setSpec{Name: "edge-icmpv6", Key: ruleset.Types{ruleset.ICMP6TypeByte}}
	// What is let through: the errors.
	passICMP   = setSpec{Name: "edge-errors", Key: ruleset.Types{ruleset.ICMPTypeByte}}
	passICMPv6 = setSpec{Name: "edge-errorsv6", Key: ruleset.Types{ruleset.ICMP6TypeByte}}
	// dhcpSpec: source and destination port of answers to a DHCP client (RFC 2131, RFC 8415).
	dhcpSpec = setSpec{Name: "edge-dhcp", Key: ruleset.Types{ruleset.Port, ruleset.Port}}
	// flagsSpec: bytes of TCP flags that make no sense.
	flagsSpec = setSpec{Name: "invalid-flags", Key: ruleset.Types{ruleset.TCPFlagByte}}

	// Counters of what was dropped, which the packets fill.
	droppedIn      = setSpec{Name: "dropped-in", Key: ruleset.Types{ruleset.IfName}, Counter: true, Size: edgeSize}
	droppedForward = setSpec{Name: "dropped-forward", Key: ruleset.Types{ruleset.IfName, ruleset.IfName}, Counter: true, Size: edgeSize}
	droppedFlags   = setSpec{Name: "dropped-flags", Key: ruleset.Types{ruleset.IfName, ruleset.TCPFlagByte}, Counter: true, Size: edgeSize}
)

var (
	errorTypes   = []byte{3, 11, 12}
	errorTypesV6 = []byte{1, 2, 3, 4}
	boxTypes     = append([]byte{8}, errorTypes...)
	boxTypesV6   = append([]byte{128, 130, 131, 132, 133, 134, 135, 136, 143}, errorTypesV6...)
)

func byteElements(values []byte) *ruleset.Part {
	p := &ruleset.Part{}
	for _, v := range values {
		p.Elems = append(p.Elems, ruleset.Element{Key: string(ruleset.AppendByte(nil, v))})
	}
	return p
}

// edgePlan is what the policy brings. It is immutable.
type edgePlan struct {
	edge  *model.Edge
	parts []setPart
	open  []openSet
	rules map[openAt]int // index of the open rule of each element
}

// openAt is an element of a set of open rules.
type openAt struct{ set, key, end string }

// sameEdge returns what e brings, from the plan before where e is the same.
func (p *Plan) sameEdge(e *model.Edge) *edgePlan {
	switch {
	case e == nil:
		return nil
	case p != nil && p.edge != nil && p.edge.edge == e:
		return p.edge
	}
	return newEdgePlan(e)
}

func newEdgePlan(e *model.Edge) *edgePlan {
	ep := &edgePlan{edge: e, rules: map[openAt]int{}}
	add := func(spec setSpec, p *ruleset.Part) { ep.parts = append(ep.parts, setPart{spec: spec, part: p}) }
	if e.DropInvalidFlags {
		add(flagsSpec, byteElements(ruleset.InvalidFlags()))
		add(droppedFlags, &ruleset.Part{})
	}
	if !e.Drop {
		return ep
	}
	add(boxICMP, byteElements(boxTypes))
	add(boxICMPv6, byteElements(boxTypesV6))
	add(passICMP, byteElements(errorTypes))
	add(passICMPv6, byteElements(errorTypesV6))
	add(dhcpSpec, dhcpPorts())
	add(droppedIn, &ruleset.Part{})
	add(droppedForward, &ruleset.Part{})
	for _, f := range families {
		part := &ruleset.Part{}
		for _, s := range prefixSpans(e.Management, f) {
			el := ruleset.Element{Key: s.lo}
			if s.hi != s.lo {
				el.KeyEnd = s.hi
			}
			part.Elems = append(part.Elems, el)
		}
		add(managementSpec(f), part)
	}
	ep.open = openSets(e)
	for _, o := range ep.open {
		part := &ruleset.Part{}
		for _, el := range o.elems {
			part.Elems = append(part.Elems, el.Element)
			ep.rules[openAt{o.spec.Name, el.Key, el.KeyEnd}] = el.rule
		}
		add(o.spec, part)
	}
	return ep
}

func dhcpPorts() *ruleset.Part {
	p := &ruleset.Part{}
	for _, ports := range [][2]uint16{{67, 68}, {547, 546}} {
		p.Elems = append(p.Elems, ruleset.Element{
			Key: string(ruleset.AppendPort(ruleset.AppendPort(nil, ports[0]), ports[1]))})
	}
	return p
}

func (ep *edgePlan) setParts() []setPart {
	if ep == nil {
		return nil
	}
	return ep.parts
}

// edgeHook is a base chain that is there only if it has rules.
type edgeHook struct {
	name     string
	typ      string
	hook     ruleset.Hook
	priority int
	why      string
	rules    func(usage, *edgePlan) []ruleset.Rule
}

// edgeHooks is where packets are judged, and where those of the box's own services are
// counted. Priorities are those of nft's words raw (-300), filter (0) and srcnat (100).
var edgeHooks = []edgeHook{
	{"early", "filter", ruleset.Prerouting, -300,
		"after defragmentation (-400), so that ports are there, and before conntrack (-200)",
		func(u usage, _ *edgePlan) []ruleset.Rule { return early(u) }},
	{chainEarlyOut, "filter", ruleset.Output, -300,
		"the same for what the box sends",
		func(u usage, _ *edgePlan) []ruleset.Rule { return keepFromConntrackOut(u) }},
	{chainEdgeIn, "filter", ruleset.Input, 0,
		"where nft and iptables filter by custom: translation is done, nothing is counted yet", judgeIn},
	{chainEdgeForward, "filter", ruleset.Forward, 0,
		"the same for packets that pass through", judgeForward},
	{"local-in", "filter", ruleset.Input, 101,
		"packets to the box's own services, counted once they are let in: after limits, which chains of type nat ask at 100",
		func(u usage, _ *edgePlan) []ruleset.Rule {
			return inEither(u, localIn, askedKey, "to a listener of the box", nil)
		}},
	{"local-new", "nat", ruleset.Input, 100,
		"their new connections: chains of type nat see the first packet alone",
		func(u usage, _ *edgePlan) []ruleset.Rule {
			return inEither(u, localNew, askedKey, "new connection to a listener of the box", nil)
		}},
	{chainLocalOut, "filter", ruleset.Output, 99,
		"packets from the box's own services",
		func(u usage, _ *edgePlan) []ruleset.Rule {
			return inEither(u, localOut, answerKey, "from a listener of the box", nil)
		}},
}

// edgeChains returns the chains that the policy and the box's own services need.
func edgeChains(u usage, ep *edgePlan) []*ruleset.Chain {
	var chains []*ruleset.Chain
	for _, h := range slices.Concat(edgeHooks, floodHooks) {
		if rules := h.rules(u, ep); len(rules) > 0 {
			chains = append(chains, &ruleset.Chain{Name: h.name, Rules: rules,
				Base: &ruleset.Base{Type: h.typ, Hook: h.hook, Priority: h.priority}})
		}
	}
	if u[flagsSpec.Name] != nil {
		chains = append(chains, &ruleset.Chain{Name: chainInvalidFlags, Rules: []ruleset.Rule{
			{Comment: "count it", Stmts: []ruleset.Stmt{ruleset.IsProto(model.TCP),
				ruleset.Update{Set: droppedFlags.Name, Key: ruleset.Key{ruleset.IIFName, ruleset.TCPFlagBits}}}},
			{Comment: "no sender of good faith makes such flags", Stmts: []ruleset.Stmt{drop}}}})
	}
	return chains
}

var (
	accept = ruleset.Verdict{Kind: ruleset.AcceptPacket}
	drop   = ruleset.Verdict{Kind: ruleset.DropPacket}
)

func findInvalidFlags(u usage) []ruleset.Rule {
	if u[flagsSpec.Name] == nil {
		return nil
	}
	return []ruleset.Rule{{Comment: "flags that contradict each other", Stmts: []ruleset.Stmt{ruleset.IsProto(model.TCP),
		ruleset.InSet{Key: ruleset.Key{ruleset.TCPFlagBits}, Set: flagsSpec.Name},
		ruleset.Verdict{Kind: ruleset.GotoChain, Chain: chainInvalidFlags}}}}
}

// known accepts what belongs to a connection, first of all: it is most of the packets.
var known = ruleset.Rule{Comment: "belongs to a known connection",
	Stmts: []ruleset.Stmt{ruleset.CtState{States: ruleset.Established | ruleset.Related}, accept}}

// judgeIn is the policy for packets to the box.
func judgeIn(u usage, ep *edgePlan) []ruleset.Rule {
	if ep == nil || !ep.edge.Drop {
		return nil
	}
	rules := []ruleset.Rule{known,
		{Comment: "the box to itself", Stmts: []ruleset.Stmt{ruleset.OnLoopback{}, accept}}}
	rules = append(rules, inEither(u, edgeLocalSpec, askedKey, "a service of the box", nil, accept)...)
	rules = append(rules, icmpRules("ICMP that networks need", boxICMP, boxICMPv6)...)
	rules = append(rules, translatedRules(u)...)
	rules = append(rules, inEither(u, managementSpec, func(f model.Family) ruleset.Key {
		return ruleset.Key{ruleset.Saddr(f)}
	}, "management", nil, accept)...)
	rules = append(rules, ruleset.Rule{Comment: "DHCP answers", Stmts: []ruleset.Stmt{ruleset.IsProto(model.UDP),
		ruleset.InSet{Key: ruleset.Key{ruleset.SPort, ruleset.DPort}, Set: dhcpSpec.Name}, accept}})
	return append(append(rules, ep.openRules(true)...), dropRules(droppedIn, ruleset.IIFName)...)
}

// judgeForward is the policy for packets that pass through.
func judgeForward(u usage, ep *edgePlan) []ruleset.Rule {
	if ep == nil || !ep.edge.Drop {
		return nil
	}
	rules := append([]ruleset.Rule{known}, translatedRules(u)...)
	rules = append(rules, icmpRules("ICMP errors", passICMP, passICMPv6)...)
	return append(append(rules, ep.openRules(false)...), dropRules(droppedForward, ruleset.IIFName, ruleset.OIFName)...)
}

func (ep *edgePlan) openRules(box bool) []ruleset.Rule {
	var rules []ruleset.Rule
	for i := range ep.open {
		if o := &ep.open[i]; o.shape.box == box {
			rules = append(rules, o.rule())
		}
	}
	return rules
}

func icmpRules(words string, v4, v6 setSpec) []ruleset.Rule {
	rule := func(proto model.Proto, field ruleset.Field, set string) ruleset.Rule {
		return ruleset.Rule{Comment: words, Stmts: []ruleset.Stmt{ruleset.IsProto(proto),
			ruleset.InSet{Key: ruleset.Key{field}, Set: set}, accept}}
	}
	return []ruleset.Rule{rule(1, ruleset.ICMPType, v4.Name), rule(58, ruleset.ICMP6Type, v6.Name)}
}

// translatedRules let through what weir itself sends to a backend. What somebody else
// translated is not meant.
func translatedRules(u usage) []ruleset.Rule {
	rules := eachListener(u, edgeNATSpec, "a service", func(f model.Family, set string) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.StatusDNAT{}, ruleset.InSet{Key: listenedKey(f), Set: set}, accept}
	})
	return rules
}

// dropRules end a policy. Counting is a rule of its own: a set that is full must not let
// anything through.
func dropRules(count setSpec, by ...ruleset.Field) []ruleset.Rule {
	var key ruleset.Key
	for _, f := range by {
		key = append(key, f)
	}
	return []ruleset.Rule{
		{Comment: "count it", Stmts: []ruleset.Stmt{ruleset.Update{Set: count.Name, Key: key}}},
		{Comment: "nothing opens this: policy drop", Stmts: []ruleset.Stmt{drop}},
	}
}
