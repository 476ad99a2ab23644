package plan

import (
	"net/netip"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// listenElement returns the element by which l is known, with further after it in the
// key if that is valid.
func listenElement(l model.Listen, further netip.Addr) ruleset.Element {
	key := func(port uint16) string {
		b := ruleset.AppendAddr(make([]byte, 0, 40), l.Addr)
		b = ruleset.AppendByte(b, uint8(l.Proto))
		b = ruleset.AppendPort(b, port)
		if further.IsValid() {
			b = ruleset.AppendAddr(b, further)
		}
		return string(b)
	}
	e := ruleset.Element{Key: key(l.Ports.Lo)}
	if !l.Ports.Single() {
		e.KeyEnd = key(l.Ports.Hi)
	}
	return e
}

// chain returns the chain that gives a new connection of the pool its backend.
func (p *Pool) chain(proto model.Proto, seed uint32) *ruleset.Chain {
	s := p.Service
	c := &ruleset.Chain{Name: poolChain(s, p.Family, proto)}
	rule := p.ruleFor(c, proto)
	if resets(s, proto) {
		rule("its backend went down", resetStmts(p.Family)...)
	}
	if len(p.Slots) == 0 {
		rule("nothing to choose from", refusal(s.WhenAllDown, proto))
		return c
	}
	for _, l := range serviceLimit(s) {
		rule(l.words+" is full", l.isFull(), refusal(s.WhenAllDown, proto))
		c.Rules = append(c.Rules, l.over(ruleset.Verdict{Kind: ruleset.GotoChain, Chain: overChain(s, p.Family, proto)}), l.last())
	}
	if s.Sticky > 0 {
		dnat := ruleset.DNAT{Family: p.Family, To: ruleset.MapGet{Key: p.clientKey(ruleset.DPort), Map: p.StickyMap}}
		switch {
		case p.port != 0:
			dnat.Port = ruleset.FixedPort(p.port)
		case p.kind != kindAddr:
			dnat.WithPort = true
		}
		rule("a client that is known", dnat)
	}
	key := ruleset.Key{p.choice(seed)}
	if p.kind == kindPerPort {
		key = append(key, ruleset.DPort)
	}
	rule(s.Balance.String(), ruleset.DNAT{
		Family: p.Family, To: ruleset.MapGet{Key: key, Map: p.SlotMap}, WithPort: p.kind != kindAddr})
	return c
}

// ruleFor returns what appends to c a rule for packets of the pool's family and of proto.
func (p *Pool) ruleFor(c *ruleset.Chain, proto model.Proto) func(words string, stmts ...ruleset.Stmt) {
	return func(words string, stmts ...ruleset.Stmt) {
		match := []ruleset.Stmt{ruleset.IsFamily(p.Family), ruleset.IsProto(proto)}
		c.Rules = append(c.Rules, ruleset.Rule{Comment: words, Stmts: append(match, stmts...)})
	}
}

// choice is the expression that gives the slot of a new connection.
func (p *Pool) choice(seed uint32) ruleset.Expr {
	n := uint32(len(p.Slots))
	switch p.Service.Balance {
	case model.Random:
		return ruleset.Numgen{Random: true, Mod: n, Offset: p.Base}
	case model.Maglev, model.Source:
		return ruleset.Hash{Key: p.hashKey(), Mod: n, Seed: seed, Offset: p.Base}
	}
	return ruleset.Numgen{Mod: n, Offset: p.Base}
}

// hashKey is what a hash of the pool is over.
func (p *Pool) hashKey() ruleset.Key {
	if p.Service.Balance == model.Source {
		return ruleset.Key{ruleset.Saddr(p.Family)}
	}
	return ruleset.Key{ruleset.Saddr(p.Family), ruleset.SPort}
}

// clientKey is the key under which a sticky client is remembered. Where the backend's
// port follows from the listener's, the listener's port belongs to it (in the middle: nft
// 1.0 fails over a port behind an IPv6 address).
func (p *Pool) clientKey(port ruleset.Field) ruleset.Key {
	key := ruleset.Key{ruleset.Const(p.Base)}
	if p.kind == kindPerPort {
		key = append(key, port)
	}
	return append(key, ruleset.Saddr(p.Family))
}

// learnChain remembers which backend a client got, once that is settled: its address and
// port are then the packet's destination.
func (p *Pool) learnChain(proto model.Proto) *ruleset.Chain {
	var data ruleset.Expr = ruleset.Daddr(p.Family)
	if p.kind != kindAddr && p.port == 0 {
		data = ruleset.Concat{ruleset.Daddr(p.Family), ruleset.DPort}
	}
	return &ruleset.Chain{Name: learnChain(p.Service, p.Family, proto),
		Rules: []ruleset.Rule{{Comment: "remember the client", Stmts: []ruleset.Stmt{
			ruleset.IsFamily(p.Family), ruleset.IsProto(proto),
			ruleset.Update{Set: p.StickyMap, Key: p.clientKey(ruleset.CtOrigDPort), Data: data,
				Timeout: p.Service.Sticky}}}}}
}

func refusal(a model.AllDown, proto model.Proto) ruleset.Stmt {
	if a == model.Drop {
		return ruleset.Verdict{Kind: ruleset.DropPacket}
	}
	return ruleset.RejectWith{TCPReset: proto == model.TCP}
}
