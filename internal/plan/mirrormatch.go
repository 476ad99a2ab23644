package plan

import (
	"net/netip"
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// matchSets adds the sets that match looks into.
func (t *mirrorTable) matchSets(m *model.Mirror) {
	x := &m.Match
	if len(x.Devices) > 0 {
		var keys []string
		for _, d := range x.Devices {
			keys = append(keys, string(ruleset.AppendDevice(nil, d)))
		}
		t.fill(setSpec{Name: mirrorChain(m, "devices"), Key: ruleset.Types{ruleset.IfName}}, keys)
	}
	for name, list := range map[string][]netip.Prefix{"from": x.From, "to": x.To} {
		if len(list) > 0 {
			t.fillSpans(mirrorChain(m, name), ruleset.Types{ruleset.AddrType(t.f)}, spanElements("", prefixSpans(list, t.f)))
		}
	}
	if len(x.Ports) > 0 {
		var elems []ruleset.Element
		for _, p := range portedOf(x) {
			for _, r := range x.Ports {
				elems = append(elems, portElement(ruleset.AppendByte(nil, uint8(p)), r))
			}
		}
		t.fillSpans(mirrorChain(m, "ports"), ruleset.Types{ruleset.Protocol, ruleset.Port}, elems)
	}
	if s := t.cfg.Service(x.Service); s != nil {
		var elems []ruleset.Element
		for _, l := range s.Listen {
			if l.Family() == t.f {
				elems = append(elems, portElement(ruleset.AppendByte(ruleset.AppendAddr(nil, l.Addr), uint8(l.Proto)), l.Ports))
			}
		}
		t.fillSpans(mirrorChain(m, "listeners"), listenerKey(t.f), elems)
	}
}

// portedOf returns the protocols that ports are of.
func portedOf(x *model.MirrorMatch) []model.Proto {
	if x.Proto != 0 {
		return []model.Proto{x.Proto}
	}
	return portedProtos
}

// portElement returns the element of all of before, and ports. Its end is given in any case: the
// kernel takes no single keys in sets whose keys are several ranges.
func portElement(before []byte, r model.PortRange) ruleset.Element {
	el := ruleset.Element{Key: string(ruleset.AppendPort(slices.Clip(before), r.Lo))}
	if r.Hi != r.Lo {
		el.KeyEnd = string(ruleset.AppendPort(slices.Clip(before), r.Hi))
	}
	return el
}

// matches is what a packet of that side must be: one of those.
func (t *mirrorTable) matches(m *model.Mirror, s side) [][]ruleset.Stmt {
	x := &m.Match
	client, server, port := ruleset.Saddr(t.f), ruleset.Daddr(t.f), ruleset.DPort
	// The device on the side that is looked at: in for client, out for backend.
	device := ruleset.IIFName
	if (s == requestSide) == m.Backend {
		device = ruleset.OIFName
	}
	if s == answerSide {
		client, server, port = server, client, ruleset.SPort
	}
	var out []ruleset.Stmt
	look := func(set string, key ...ruleset.Expr) {
		out = append(out, ruleset.InSet{Key: key, Set: mirrorChain(m, set)})
	}
	if len(x.Devices) > 0 {
		look("devices", device)
	}
	if x.Proto != 0 && len(x.Ports) == 0 {
		out = append(out, ruleset.IsProto(x.Proto))
	}
	if len(x.Ports) > 0 {
		look("ports", ruleset.L4Proto, port)
	}
	if len(x.From) > 0 {
		look("from", client)
	}
	if len(x.To) > 0 {
		look("to", server)
	}
	if service := t.cfg.Service(x.Service); service != nil {
		if m.Backend && !service.Local() {
			return t.askedFor(m, service, out)
		}
		look("listeners", server, ruleset.L4Proto, port)
	}
	return [][]ruleset.Stmt{out}
}

// askedFor is match for connections that asked for a listener of the service. The protocol is
// matched because nft knows the type of a connection's port only then.
func (t *mirrorTable) askedFor(m *model.Mirror, s *model.Service, match []ruleset.Stmt) (out [][]ruleset.Stmt) {
	for _, p := range portedProtos {
		if slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return l.Proto == p && l.Family() == t.f }) {
			out = append(out, append(slices.Clone(match), ruleset.IsProto(p), ruleset.Translated{},
				ruleset.InSet{Key: listenedKey(t.f), Set: mirrorChain(m, "listeners")}))
		}
	}
	return out
}

// sampleRules choose flows: by the hash of client and server, so that both sides of one agree.
func (t *mirrorTable) sampleRules(m *model.Mirror, s side) []ruleset.Rule {
	key := ruleset.Key{ruleset.Saddr(t.f), ruleset.Daddr(t.f), ruleset.SPort, ruleset.DPort}
	if s == answerSide {
		key = ruleset.Key{ruleset.Daddr(t.f), ruleset.Saddr(t.f), ruleset.DPort, ruleset.SPort}
	}
	chosen := func(key ruleset.Key) ruleset.Below {
		return ruleset.Below{Expr: ruleset.Hash{Key: key, Mod: m.Of, Seed: t.cfg.HashSeed}, N: m.Take}
	}
	ported := ruleset.InSet{Key: ruleset.Key{ruleset.L4Proto}, Set: setPorted}
	found := ruleset.Verdict{Kind: ruleset.GotoChain, Chain: mirrorChain(m, "copy")}
	return []ruleset.Rule{
		{Comment: "by addresses and ports", Stmts: []ruleset.Stmt{ported, chosen(key), found}},
		{Comment: "not in the sample", Stmts: []ruleset.Stmt{ported, ruleset.Verdict{Kind: ruleset.ReturnBack}}},
		{Comment: "what has no ports: by addresses", Stmts: []ruleset.Stmt{chosen(key[:2]), found}},
	}
}
