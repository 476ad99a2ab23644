package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"weir/internal/flow"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// egressFamily makes the chains of one family of a pool.
type egressFamily struct {
	*egressUnit
	family model.Family
	addrs  []netip.Addr // that new connections get
	slots  []netip.Addr // the content of the map egress4/NAME, as far as it is made
}

// family adds the chains and sets that give connections of family f their source.
func (u *egressUnit) family(f model.Family) {
	e := &egressFamily{egressUnit: u, family: f}
	name := egressChain(u.pool.Name, f)
	count := ruleset.Rule{Comment: "connection of the pool", Stmts: []ruleset.Stmt{
		ruleset.Update{Set: egressMatchedSpec.Name, Key: egressID(u.pool.Name)}}}
	switch p := u.pool; {
	case p.Masquerade:
		e.chain(name, []ruleset.Rule{count}, func(ports model.PortRange) ruleset.Stmt { return ruleset.Masquerade{Ports: ports} })
		return
	case p.Block > 0:
		e.blocks(name, count)
		return
	}
	e.addrs = slices.DeleteFunc(u.pool.Addrs(f), func(a netip.Addr) bool { return slices.Contains(u.pool.Drained, a) })
	if len(e.addrs) == 0 {
		u.chains = append(u.chains, &ruleset.Chain{Name: name, Rules: []ruleset.Rule{count, nothingLeft("all addresses are drained")}})
		return
	}
	own, next := e.choice(e.addrs, e.pool.Spill)
	head := []ruleset.Rule{count}
	if next != nil {
		head = append(head, e.spill(name, next)...)
	}
	head = append(head, e.relief(name)...)
	e.chain(name, head, e.via(own))
	e.addSet(e.slotsSpec(), e.slotElements())
}

func nothingLeft(words string) ruleset.Rule {
	return ruleset.Rule{Comment: words, Stmts: []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.DropPacket}}}
}

func (e *egressFamily) slotsSpec() setSpec {
	return setSpec{Name: "egress" + digit(e.family) + "/" + e.pool.Name, Key: ruleset.Types{ruleset.Integer},
		Data: ruleset.Types{ruleset.AddrType(e.family)}}
}

func (e *egressFamily) slotElements() []ruleset.Element {
	out := make([]ruleset.Element, len(e.slots))
	for i, a := range e.slots {
		out[i] = ruleset.Element{Key: string(ruleset.AppendInteger(nil, uint32(i))), Data: string(ruleset.AppendAddr(nil, a))}
	}
	return out
}

// place puts addresses at the end of the map and returns the number of the first.
func (e *egressFamily) place(addrs []netip.Addr) uint32 {
	at := uint32(len(e.slots))
	e.slots = append(e.slots, addrs...)
	return at
}

// choice returns the expression for one of addrs, as the pool spreads connections, and where
// it is asked for, that of the next best in a stable pool; nil where there is none.
func (e *egressFamily) choice(addrs []netip.Addr, withNext bool) (own, next ruleset.Expr) {
	if e.pool.Spread == model.SpreadFlow {
		return e.inTurn(addrs), nil
	}
	// The size is that for all addresses, drained or not: another would move all clients.
	table, second := e.table(addrs, egressSlots(len(e.pool.Addrs(e.family))))
	own = e.hashed(table)
	if withNext && second != nil {
		next = e.hashed(second)
	}
	return own, next
}

func (e *egressFamily) hashed(table []netip.Addr) ruleset.Expr {
	key := ruleset.Key{ruleset.Saddr(e.family)}
	if e.pool.Spread == model.SpreadClientDestination {
		key = append(key, ruleset.Daddr(e.family))
	}
	return ruleset.Hash{Key: key, Mod: uint32(len(table)), Seed: e.seed, Offset: e.place(table)}
}

func (e *egressFamily) inTurn(addrs []netip.Addr) ruleset.Expr {
	return ruleset.Numgen{Mod: uint32(len(addrs)), Offset: e.place(addrs)}
}

// egressSlots returns the size of the table of a stable pool of n addresses: 400 slots and
// more for each, so that shares differ by 5 %, and fewer from 164 addresses on. Another size
// moves all clients, so it is the same for up to 10 addresses, up to 20, 40, 81, and above.
func egressSlots(n int) int { return flow.TableSize(max(40, min(4*n, 655))) }

// egressTable is what EgressTable returned.
type egressTable struct{ addrs, table, next []netip.Addr }

// table is EgressTable that looks first at what the pool had before.
func (u *egressUnit) table(addrs []netip.Addr, slots int) (table, next []netip.Addr) {
	for _, t := range u.known {
		if len(t.table) == slots && slices.Equal(t.addrs, addrs) {
			u.tables = append(u.tables, t)
			return t.table, t.next
		}
	}
	table, next = EgressTable(addrs, slots)
	u.tables = append(u.tables, egressTable{addrs, table, next})
	return table, next
}

// EgressTable returns which address each slot of a stable pool stands for, and which one comes
// next where that has no port left; nil where there is no other.
func EgressTable(addrs []netip.Addr, slots int) (table, next []netip.Addr) {
	ids := make([]string, len(addrs))
	for i, a := range addrs {
		ids[i] = a.String()
	}
	first, second := flow.Rendezvous(ids, slots)
	of := func(owners []int32) []netip.Addr {
		out := make([]netip.Addr, len(owners))
		for slot, owner := range owners {
			out[slot] = addrs[owner]
		}
		return out
	}
	if len(addrs) == 1 {
		return of(first), nil
	}
	return of(first), of(second)
}

// via returns what translates to the address of that slot.
func (e *egressFamily) via(slot ruleset.Expr) func(model.PortRange) ruleset.Stmt {
	to := ruleset.MapGet{Key: ruleset.Key{slot}, Map: e.slotsSpec().Name}
	return func(ports model.PortRange) ruleset.Stmt {
		return ruleset.SNAT{Family: e.family, Via: to, Ports: ports}
	}
}

// chain adds a chain that begins with head and gives each connection a source: to makes the
// statement for a range of ports, or for none.
func (e *egressFamily) chain(name string, head []ruleset.Rule, to func(model.PortRange) ruleset.Stmt) {
	c := &ruleset.Chain{Name: name, Rules: slices.Clip(head)}
	e.chains = append(e.chains, c)
	c.Rules = append(c.Rules, e.portRules(name, e.ports, to)...)
	c.Rules = append(c.Rules, ruleset.Rule{Comment: "no ports", Stmts: []ruleset.Stmt{ruleset.IsFamily(e.family), to(model.PortRange{})}})
}

// portRules return the rules for TCP and UDP in the chain: one for each where ports is one
// range, else a choice among chains that are added.
func (e *egressFamily) portRules(name string, ports []model.PortRange, to func(model.PortRange) ruleset.Stmt) []ruleset.Rule {
	switch ports = longest(ports); len(ports) {
	case 0:
		return e.eachPortProto("all ports are taken", ruleset.Verdict{Kind: ruleset.DropPacket})
	case 1:
		return e.eachPortProto(e.pool.Spread.String(), to(ports[0]))
	}
	spec := setSpec{Name: "egress-ports/" + name[len("egress/"):], Key: ruleset.Types{ruleset.Integer}, Verdict: true}
	slots := shares(ports)
	elems := make([]ruleset.Element, len(slots))
	used := make([]bool, len(ports))
	for i, s := range slots {
		used[s] = true
		elems[i] = ruleset.Element{Key: string(ruleset.AppendInteger(nil, uint32(i))),
			Jump: ruleset.Jump{Chain: name + "/" + ports[s].String(), Goto: true}}
	}
	e.addSet(spec, elems)
	for i, r := range ports {
		if used[i] {
			e.chains = append(e.chains, &ruleset.Chain{Name: name + "/" + r.String(), Rules: e.eachPortProto(e.pool.Spread.String(), to(r))})
		}
	}
	return e.eachPortProto("which ports", ruleset.VMap{Key: ruleset.Key{ruleset.Numgen{Mod: uint32(len(slots))}}, Map: spec.Name})
}

// spill returns the rules by which a stable pool gives another address to a connection whose
// own had no port left: the kernel could not take it into its table, so that its second packet
// is again the first. The second attempt gets the address that comes next for it, those after
// that all addresses in turn.
func (e *egressFamily) spill(name string, next ruleset.Expr) []ruleset.Rule {
	tried, again := egressTriedSpec(e.family), egressAgainSpec(e.family)
	e.empty(tried)
	e.empty(again)
	e.empty(egressSpilledSpec)
	spilled, inTurn := name+"/spill", name+"/spill/in-turn"
	count := ruleset.Rule{Comment: "its address had no port left", Stmts: []ruleset.Stmt{
		ruleset.Update{Set: egressSpilledSpec.Name, Key: egressID(e.pool.Name)}}}
	head := append([]ruleset.Rule{count}, e.remember(tried)...)
	head = append(append(head, e.ifTried(again, inTurn)...), e.remember(again)...)
	e.chain(spilled, head, e.via(next))
	e.chain(inTurn, e.remember(again), e.via(e.inTurn(e.addrs)))
	return append(e.ifTried(tried, spilled), e.remember(tried)...)
}

// ifTried sends connections that are in the set to the chain.
func (e *egressFamily) ifTried(set setSpec, chain string) []ruleset.Rule {
	return e.eachPortProto("not its first attempt", ruleset.InSet{Key: egressTriedKey(e.family), Set: set.Name},
		ruleset.Verdict{Kind: ruleset.GotoChain, Chain: chain})
}

// remember puts a connection into the set.
func (e *egressFamily) remember(set setSpec) []ruleset.Rule {
	return e.eachPortProto("remember the attempt", ruleset.Update{Set: set.Name, Key: egressTriedKey(e.family), Timeout: triedFor})
}

// eachPortProto returns a rule for TCP and one for UDP.
func (e *egressFamily) eachPortProto(words string, stmts ...ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, p := range portProtos {
		rules = append(rules, ruleset.Rule{Comment: words,
			Stmts: append([]ruleset.Stmt{ruleset.IsFamily(e.family), ruleset.IsProto(p)}, stmts...)})
	}
	return rules
}

// relief returns the rules that send connections to some destinations past addresses which
// have no port left for them.
func (e *egressFamily) relief(name string) []ruleset.Rule {
	if !e.pool.Spill {
		return nil
	}
	spec := setSpec{Name: "egress-relief" + digit(e.family) + "/" + e.pool.Name, Verdict: true,
		Key: ruleset.Types{ruleset.Protocol, ruleset.AddrType(e.family), ruleset.Port}}
	var elems []ruleset.Element
	var done [][]netip.Addr // what the chains so far give
	for _, r := range e.pool.Relief {
		if model.FamilyOf(r.To.Addr()) != e.family {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(e.addrs), func(a netip.Addr) bool { return slices.Contains(r.Without, a) })
		if len(rest) == 0 || len(rest) == len(e.addrs) {
			continue
		}
		i := slices.IndexFunc(done, func(o []netip.Addr) bool { return slices.Equal(o, rest) })
		if i < 0 {
			i = len(done)
			done = append(done, rest)
			own, _ := e.choice(rest, false)
			e.chain(fmt.Sprintf("%s/relief%d", name, i), nil, e.via(own))
		}
		key := ruleset.AppendPort(ruleset.AppendAddr(ruleset.AppendByte(nil, uint8(r.Proto)), r.To.Addr()), r.To.Port())
		elems = append(elems, ruleset.Element{Key: string(key), Jump: ruleset.Jump{Chain: fmt.Sprintf("%s/relief%d", name, i), Goto: true}})
	}
	if len(elems) == 0 {
		return nil
	}
	e.addSet(spec, elems)
	return []ruleset.Rule{{Comment: "an address without room for this destination", Stmts: []ruleset.Stmt{ruleset.IsFamily(e.family),
		ruleset.VMap{Key: ruleset.Key{ruleset.L4Proto, ruleset.Daddr(e.family), ruleset.DPort}, Map: spec.Name}}}}
}

// blocks adds the chains of a pool that gives each client a block of ports: the client leads
// to the chain of the block, and there, or without ports at once, to its address.
func (e *egressFamily) blocks(name string, count ruleset.Rule) {
	f, p := e.family, e.pool
	addr := ruleset.AddrType(f)
	clients := setSpec{Name: "egress-clients" + digit(f) + "/" + p.Name, Key: ruleset.Types{addr}, Data: ruleset.Types{addr}}
	blocks := setSpec{Name: "egress-blocks" + digit(f) + "/" + p.Name, Key: ruleset.Types{addr}, Verdict: true}
	chainOf := func(r model.PortRange) string { return name + "/" + r.String() }
	var addrs, jumps []ruleset.Element
	used := map[model.PortRange]bool{}
	for i := range p.Clients(f) {
		client, _ := p.Client(f, i)
		b, ok := p.BlockOf(client)
		if !ok {
			continue
		}
		key := string(ruleset.AppendAddr(nil, client))
		used[b.Ports] = true
		addrs = append(addrs, ruleset.Element{Key: key, Data: string(ruleset.AppendAddr(nil, b.Addr))})
		jumps = append(jumps, ruleset.Element{Key: key, Jump: ruleset.Jump{Chain: chainOf(b.Ports), Goto: true}})
	}
	if len(addrs) == 0 {
		e.chains = append(e.chains, &ruleset.Chain{Name: name, Rules: []ruleset.Rule{count, nothingLeft("no client has a block")}})
		return
	}
	e.addSet(clients, addrs)
	e.addSet(blocks, jumps)
	own := func(ports model.PortRange) ruleset.Stmt {
		return ruleset.SNAT{Family: f, Via: ruleset.MapGet{Key: ruleset.Key{ruleset.Saddr(f)}, Map: clients.Name}, Ports: ports}
	}
	rules := []ruleset.Rule{count}
	rules = append(rules, e.eachPortProto("the client's block", ruleset.VMap{Key: ruleset.Key{ruleset.Saddr(f)}, Map: blocks.Name})...)
	rules = append(rules, ruleset.Rule{Comment: "no ports", Stmts: []ruleset.Stmt{ruleset.IsFamily(f), own(model.PortRange{})}},
		nothingLeft("no block for the client"))
	e.chains = append(e.chains, &ruleset.Chain{Name: name, Rules: rules})
	for _, r := range p.Blocks() {
		if used[r] {
			c := &ruleset.Chain{Name: chainOf(r)}
			e.chains = append(e.chains, c)
			c.Rules = e.portRules(c.Name, within(e.ports, r), own)
		}
	}
}

// within returns the parts of the ranges that are in r.
func within(ranges []model.PortRange, r model.PortRange) []model.PortRange {
	var out []model.PortRange
	for _, o := range ranges {
		if o.Overlaps(r) {
			out = append(out, model.PortRange{Lo: max(o.Lo, r.Lo), Hi: min(o.Hi, r.Hi)})
		}
	}
	return out
}
