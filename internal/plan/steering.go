package plan

import (
	"net/netip"
	"slices"

	"weir/internal/flow"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// steerHooks is where steered packets are met. Those of the box itself never see prerouting.
var steerHooks = []hook{
	{"steer", "filter", ruleset.Prerouting, -150,
		"new connections of steered services are asked about: conntrack knows them since -200, and nothing is translated yet", nil, true},
	{"steer-keep", "filter", ruleset.Prerouting, -140,
		"what comes back goes on with the next base chain, so the answer gets to the connection here", nil, true},
	{"steer-out", "filter", ruleset.Output, -150,
		"new connections of the box itself are asked about", nil, true},
	{"steer-keep-out", "filter", ruleset.Output, -140,
		"and their answers kept", nil, true},
}

// marksSpec: the mark of an answer, to the chain that gives it to the connection. One rule
// can not copy it: nft's bitwise took one register and constants until Linux 6.13.
var marksSpec = setSpec{Name: "steered-marks", Key: ruleset.Types{ruleset.MarkBits}, Verdict: true}

// steeredSpec: listeners of steered services, to the chain that asks their queues.
func steeredSpec(f model.Family) setSpec {
	return setSpec{Name: "steered" + digit(f), Key: listenerKey(f), Verdict: true}
}

// steeredEndsSpec: listeners of TCP of steered services, to the chain that asks about a FIN or
// RST that conntrack knows no connection of (package pickup).
func steeredEndsSpec(f model.Family) setSpec {
	return setSpec{Name: "steered-ends" + digit(f), Key: listenerKey(f), Verdict: true}
}

// memberSpec: the mark of a connection of a steered service (and where the backend's port
// follows from the listener's, that), to the backend.
func (p *Pool) memberSpec() setSpec {
	spec := setSpec{Name: "members/" + p.Service.Name + "/" + p.Family.String(),
		Key: ruleset.Types{ruleset.MarkBits}, Data: ruleset.Types{ruleset.AddrType(p.Family)}}
	if p.kind == kindPerPort {
		spec.Key = append(spec.Key, ruleset.Port)
	}
	if p.kind != kindAddr {
		spec.Data = append(spec.Data, ruleset.Port)
	}
	return spec
}

func queueChain(s *model.Service) string { return "queue/" + s.Name }
func endsChain(s *model.Service) string  { return "ends/" + s.Name }

// steerSlots returns the table from which the kernel chooses when nobody answers: that of
// the default target, as package steer makes it.
func (p *Pool) steerSlots() []int32 {
	var members []flow.Member
	var index []int32
	some, at := false, int32(0)
	for i, b := range p.Service.Backends {
		if b.Family() != p.Family {
			continue
		}
		if p.Service.DefaultMember(i) {
			members, index = append(members, flow.Member{ID: b.ID(), Weight: b.Weight}), append(index, at)
			some = some || b.Weight > 0
		}
		at++
	}
	if !some {
		return nil
	}
	slots := flow.Maglev(members, flow.TableSize(len(members)))
	for i := range slots {
		slots[i] = index[slots[i]]
	}
	return slots
}

// steer adds what a steered service has beside a pool's slots and chains.
func (u *unit) steer(p *Pool, m *Marks) {
	s := u.service
	u.listeners(steeredSpec(p.Family), p.Family, func(model.Listen) string { return queueChain(s) })
	port, _ := onePort(s, p.Family)
	ports := []portIn{{port: port, listen: model.Port(port)}}
	if p.kind == kindPerPort {
		ports = portsOf(s, p.Family)
	}
	part := &ruleset.Part{}
	for _, b := range p.Backends {
		for _, q := range ports {
			key, data := ruleset.AppendMark(nil, m.Members[b.ID()]), ruleset.AppendAddr(nil, b.Addr)
			if p.kind == kindPerPort {
				key = ruleset.AppendPort(key, q.port)
			}
			if p.kind != kindAddr {
				data = ruleset.AppendPort(data, p.Target(b, q.listen, q.port))
			}
			part.Elems = append(part.Elems, ruleset.Element{Key: string(key), Data: string(data)})
		}
	}
	u.parts = append(u.parts, setPart{spec: p.memberSpec(), part: part})
	var ends twins
	for _, l := range s.Listen {
		if l.Family() == p.Family && l.Proto == model.TCP {
			e := listenElement(l, netip.Addr{})
			e.Jump = ruleset.Jump{Chain: endsChain(s), Goto: true}
			ends.add(l, e)
		}
	}
	u.addTwins(steeredEndsSpec(p.Family), &ends)
	if p.Family == s.Families()[0] {
		u.chains = append(u.chains, queueChains(s, m)...)
	}
}

// queueChains ask the service's queues.
func queueChains(s *model.Service, m *Marks) []*ruleset.Chain {
	q := s.Steering.Queues
	ask := ruleset.Rule{Comment: "which backend?", Stmts: []ruleset.Stmt{ruleset.Queue{First: q.First, Last: q.Last, Bypass: true}}}
	chains := []*ruleset.Chain{{Name: queueChain(s), Rules: []ruleset.Rule{ask}}}
	if slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return l.Proto == model.TCP }) {
		chains = append(chains, &ruleset.Chain{Name: endsChain(s), Rules: []ruleset.Rule{
			{Comment: "of no known connection", Stmts: []ruleset.Stmt{ruleset.SetMark{Mark: m.packet(), Value: m.Kernel}}}, ask}})
	}
	return chains
}

// steerChain is chain for a steered service: the connection's mark says the backend, if
// somebody gave it one.
func (p *Pool) steerChain(proto model.Proto, seed uint32, m *Marks) *ruleset.Chain {
	s := p.Service
	c := &ruleset.Chain{Name: poolChain(s, p.Family, proto)}
	rule := p.ruleFor(c, proto)
	if resets(s, proto) {
		rule("its backend went down", resetStmts(p.Family)...)
	}
	rule("nobody to choose in its target", ruleset.MarkIs{Mark: m.conn(), Value: m.None}, refusal(s.WhenAllDown, proto))
	key := ruleset.Key{m.conn()}
	if p.kind == kindPerPort {
		key = append(key, ruleset.DPort)
	}
	rule("chosen by rules", ruleset.DNAT{Family: p.Family, To: ruleset.MapGet{Key: key, Map: p.memberSpec().Name}, WithPort: p.kind != kindAddr})
	unasked := ruleset.MarkIs{Mark: m.conn()}
	switch s.Steering.Absent {
	case model.AbsentDrop:
		rule("nobody answers", unasked, ruleset.Verdict{Kind: ruleset.DropPacket})
	case model.AbsentAccept:
		rule("nobody answers", unasked, ruleset.Verdict{Kind: ruleset.AcceptPacket})
	}
	// Also for a mark whose backend has gone since it was given.
	if len(p.Slots) == 0 {
		rule("nothing to choose from", refusal(s.WhenAllDown, proto))
		return c
	}
	rule("not to be asked about again", ruleset.SetMark{Mark: m.conn(), Value: m.Kernel})
	key = ruleset.Key{p.choice(seed)}
	if p.kind == kindPerPort {
		key = append(key, ruleset.DPort)
	}
	rule(s.Balance.String(), ruleset.DNAT{Family: p.Family, To: ruleset.MapGet{Key: key, Map: p.SlotMap}, WithPort: p.kind != kindAddr})
	return c
}

// setParts returns the elements of sets that are not of one service.
func (m *Marks) setParts() []setPart {
	if m == nil || len(m.kept) == 0 {
		return nil
	}
	part := &ruleset.Part{}
	for _, mark := range m.kept {
		part.Elems = append(part.Elems, ruleset.Element{Key: string(ruleset.AppendMark(nil, mark)),
			Jump: ruleset.Jump{Chain: keepChain(mark), Goto: true}})
	}
	return []setPart{{spec: marksSpec, part: part}}
}

// steerChains returns the chains that are not of one service.
func steerChains(u usage, m *Marks) []*ruleset.Chain {
	if m == nil || len(m.kept) == 0 {
		return nil
	}
	rules := map[string][]ruleset.Rule{}
	unasked := ruleset.MarkIs{Mark: m.conn()}
	chosen := ruleset.MarkIs{Mark: m.packet(), Not: true}
	keep := []ruleset.Rule{{Comment: "keep the answer", Stmts: []ruleset.Stmt{
		unasked, ruleset.VMap{Key: ruleset.Key{m.packet()}, Map: marksSpec.Name}}}}
	find := eachSteered(u, steeredSpec, "find the steered service", func(f model.Family) []ruleset.Stmt {
		return []ruleset.Stmt{unasked, ruleset.IsFamily(f)}
	})
	ends := eachSteered(u, steeredEndsSpec, "the end of an unknown connection", func(f model.Family) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.CtState{States: ruleset.Invalid}, ruleset.IsFamily(f), ruleset.IsProto(model.TCP), ruleset.TCPFlags(ruleset.FIN | ruleset.RST)}
	})
	rules["steer"] = append(slices.Clip(find), ends...)
	rules["steer-keep"], rules["steer-out"], rules["steer-keep-out"] = keep, find, keep
	if len(ends) > 0 {
		clean := ruleset.SetMark{Mark: m.packet()}
		rules["steer-keep"] = append(slices.Clip(keep), ruleset.Rule{Comment: "nobody took it", Stmts: []ruleset.Stmt{
			ruleset.CtState{States: ruleset.Invalid}, ruleset.MarkIs{Mark: m.packet(), Value: m.Kernel}, clean}})
		rules["steer-out"] = append([]ruleset.Rule{{Comment: "sent on by weir, which has chosen", Stmts: []ruleset.Stmt{
			chosen, ruleset.Verdict{Kind: ruleset.AcceptPacket}}}}, find...)
		rules["steer-keep-out"] = append(slices.Clip(keep),
			ruleset.Rule{Comment: "sent on, and still of no connection", Stmts: []ruleset.Stmt{
				ruleset.CtState{States: ruleset.Invalid}, chosen, ruleset.Verdict{Kind: ruleset.DropPacket}}},
			ruleset.Rule{Comment: "the connection has it", Stmts: []ruleset.Stmt{chosen, clean}})
	}
	var chains []*ruleset.Chain
	for _, h := range steerHooks {
		chains = append(chains, &ruleset.Chain{Name: h.name, Base: &ruleset.Base{Type: h.typ, Hook: h.hook, Priority: h.priority}, Rules: rules[h.name]})
	}
	for _, mark := range m.kept {
		chains = append(chains, &ruleset.Chain{Name: keepChain(mark), Rules: []ruleset.Rule{
			{Comment: "the connection has it", Stmts: []ruleset.Stmt{ruleset.SetMark{Mark: m.conn(), Value: mark}}},
			{Comment: "the packet needs it no more", Stmts: []ruleset.Stmt{ruleset.SetMark{Mark: m.packet()}}}}})
	}
	return chains
}

// eachSteered returns a rule for each set of listeners that is in use, behind those matches.
func eachSteered(u usage, spec func(model.Family) setSpec, words string, match func(model.Family) []ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		for _, s := range []setSpec{spec(f), spec(f).twin()} {
			if u[s.Name] != nil {
				rules = append(rules, ruleset.Rule{Comment: words, Stmts: append(match(f), ruleset.VMap{Key: askedKey(f), Map: s.Name})})
			}
		}
	}
	return rules
}
