package plan

import (
	"net/netip"
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Steering with direct return: each packet is asked about, and sent on to the backend whose mark
// it comes back with. Devices have no queues (family netdev), and tables of both families can send
// nothing on, so there is a table for each of the families. Its rules are done with a packet before
// conntrack sees it.

// steerDirectHooks are the base chains of those tables.
var steerDirectHooks = []hook{
	{"ask", "filter", ruleset.Prerouting, -300,
		"packets of listeners are asked about: fragments have been put together (-400), and conntrack looks at -200", nil, true},
	{"send", "filter", ruleset.Prerouting, -290,
		"what comes back goes on with the next base chain, so they are sent on here, as do those that nobody took", nil, true},
}

// comesInSpec: device and listener, to a chain of its service.
func comesInSpec(chain string, f model.Family) setSpec {
	return setSpec{Name: chain, Key: append(ruleset.Types{ruleset.IfName}, listenerKey(f)...), Verdict: true}
}

// chosenSpec: the mark of a packet, to the chain of the backend; packets for nobody end there.
func chosenSpec(s *model.Service) setSpec {
	return setSpec{Name: "chosen/" + s.Name, Key: ruleset.Types{ruleset.MarkBits}, Verdict: true}
}

// steerTables returns the tables of the services that are steered with direct return, one for each
// family.
func (p *Plan) steerTables(prev *Plan) []*ruleset.Table {
	services := slices.DeleteFunc(p.Config.DirectServices(), func(s *model.Service) bool { return !s.Steered() })
	wires := p.Config.Wires
	if wires == nil {
		wires = p.Config.AssumedWires()
	}
	var out []*ruleset.Table
	for _, f := range families {
		a := newAssembly(len(services), nil)
		for _, s := range services {
			for _, pool := range p.units[s].pools {
				if pool.Family == f {
					a.steerDirect(pool, p.marks, p.Config.HashSeed, wires)
				}
			}
		}
		if len(a.chains) == 0 {
			continue
		}
		t := &ruleset.Table{Family: ruleset.TableFamily(f), Name: TableName, Chains: slices.Concat(steerDirectBase(a.use, f), a.chains)}
		if old := prev.tableOf(t.Family); old != nil {
			a.prev = usageOf(old)
			for i, c := range t.Chains {
				t.Chains[i] = sameChain(old.Chains, c)
			}
		}
		t.Sets = a.sorted()
		out = append(out, t)
	}
	return out
}

// steerDirectBase returns the chains in which packets find their service.
func steerDirectBase(u usage, f model.Family) []*ruleset.Chain {
	var out []*ruleset.Chain
	for _, h := range steerDirectHooks {
		c := &ruleset.Chain{Name: h.name, Base: &ruleset.Base{Type: h.typ, Hook: h.hook, Priority: h.priority}}
		spec := comesInSpec(h.name, f)
		for _, s := range []setSpec{spec, spec.twin()} {
			if u[s.Name] != nil {
				c.Rules = append(c.Rules, ruleset.Rule{Comment: "find the service", Stmts: []ruleset.Stmt{
					ruleset.ToThisHost{}, ruleset.VMap{Key: append(ruleset.Key{ruleset.IIFName}, askedKey(f)...), Map: s.Name}}})
			}
		}
		out = append(out, c)
	}
	return out
}

// steerDirect adds what a pool needs.
func (a *assembly) steerDirect(p *Pool, m *Marks, seed uint32, wires *model.Wires) {
	s := p.Service
	u := &unit{service: s}
	for _, h := range steerDirectHooks {
		chain := directChain(s, p.Family)
		if h.name == "ask" {
			chain = queueChain(s)
		}
		u.comesIn(comesInSpec(h.name, p.Family), p.Family, wires, chain)
	}
	chosen := &ruleset.Part{Elems: []ruleset.Element{{Key: string(ruleset.AppendMark(nil, m.None)), Jump: ruleset.Jump{Plain: ruleset.PlainDrop}}}}
	for _, b := range p.Backends {
		chosen.Elems = append(chosen.Elems, ruleset.Element{Key: string(ruleset.AppendMark(nil, m.Members[b.ID()])),
			Jump: ruleset.Jump{Chain: backendChain(s, b), Goto: true}})
	}
	u.parts = append(u.parts, setPart{spec: chosenSpec(s), part: chosen})
	if len(p.Slots) > 0 {
		u.parts = append(u.parts, setPart{spec: p.slots, part: p.direct})
	}
	a.addParts(u.parts)
	q := s.Steering.Queues
	a.chains = append(a.chains, &ruleset.Chain{Name: queueChain(s), Rules: []ruleset.Rule{{Comment: "which backend?",
		Stmts: []ruleset.Stmt{ruleset.Queue{First: q.First, Last: q.Last, Bypass: true}}}}},
		p.steerDirectChain(m, seed))
	backends := p.backendChains(wires, func(b model.Backend, dev string, index int) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.HopsLeft{Family: p.Family}, ruleset.Counting{}, ruleset.SetMark{Mark: m.packet()},
			ruleset.SendOn{To: b.Addr, Device: dev, Index: index}}
	})
	for _, c := range backends {
		c.Rules = append(c.Rules, ruleset.Rule{Comment: "it has come far enough", Stmts: []ruleset.Stmt{drop}})
	}
	a.chains = append(a.chains, backends...)
}

// comesIn adds the service's listeners on the devices by which its clients come in.
func (u *unit) comesIn(spec setSpec, f model.Family, wires *model.Wires, chain string) {
	var t twins
	for _, dev := range u.service.In {
		if _, there := wires.Devices[dev]; !there {
			continue
		}
		for _, l := range u.service.Listen {
			if l.Family() == f {
				e := listenElement(l, netip.Addr{})
				name := string(ruleset.AppendDevice(nil, dev))
				e.Key, e.Jump = name+e.Key, ruleset.Jump{Chain: chain, Goto: true}
				if e.KeyEnd != "" {
					e.KeyEnd = name + e.KeyEnd
				}
				t.add(l, e)
			}
		}
	}
	u.addTwins(spec, &t)
}

// steerDirectChain sends a packet to whom its mark says, or does what is to be done with one that
// nobody answered for. One whose backend has gone since takes the table.
func (p *Pool) steerDirectChain(m *Marks, seed uint32) *ruleset.Chain {
	s := p.Service
	c := &ruleset.Chain{Name: directChain(s, p.Family)}
	rule := func(words string, stmts ...ruleset.Stmt) {
		c.Rules = append(c.Rules, ruleset.Rule{Comment: words, Stmts: stmts})
	}
	rule("chosen by rules", ruleset.VMap{Key: ruleset.Key{m.packet()}, Map: chosenSpec(s).Name})
	unasked := ruleset.MarkIs{Mark: m.packet()}
	switch s.Steering.Absent {
	case model.AbsentDrop:
		rule("nobody answers", unasked, drop)
	case model.AbsentAccept:
		rule("nobody answers", unasked, accept)
	}
	if len(p.Slots) == 0 {
		rule("nothing to choose from", drop)
		return c
	}
	rule(s.Balance.String(), ruleset.VMap{Key: ruleset.Key{p.choice(seed)}, Map: p.SlotMap})
	return c
}

// setSentOn is, in a table of mirrors, the backends of steered services with direct return.
const setSentOn = "sent-on"

// steered fills setSentOn.
func (t *mirrorTable) steered() {
	var backends []string
	for _, s := range t.cfg.DirectServices() {
		for _, b := range s.Backends {
			if s.Steered() && b.Family() == t.f {
				backends = append(backends, string(ruleset.AppendAddr(nil, b.Addr)))
			}
		}
	}
	if len(backends) > 0 {
		t.fill(setSpec{Name: setSentOn, Key: ruleset.Types{ruleset.AddrType(t.f)}}, backends)
	}
}

// sentOn keeps mirrors from counting what is sent on there: it is a copy itself, of which the
// kernel makes no other. Like one, it is known by its neighbour and by being untracked.
func (t *mirrorTable) sentOn(h mirrorHook) []ruleset.Rule {
	if t.Set(setSentOn) == nil || h.hook != ruleset.Output && h.hook != ruleset.Postrouting {
		return nil
	}
	return []ruleset.Rule{{Comment: "nor of what is sent on by steering", Stmts: []ruleset.Stmt{ruleset.CtState{States: ruleset.Untracked},
		ruleset.InSet{Key: ruleset.Key{ruleset.NextHop(t.f)}, Set: setSentOn}, accept}}}
}
