package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/flow"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// Direct return: packets of clients are sent on where they come in, before routing and
// conntrack, in a table of the family netdev. The chain of a device finds the service, a
// chain of the service hashes the packet into a Maglev table, and what is found there leads
// to the chain of a backend, which counts it and sends it to the backend's link-layer
// address. So a backend that comes or goes changes elements alone.

// listenSpec: listener to the chain of its service, for packets that come in by a device.
func listenSpec(dev string, f model.Family) setSpec {
	return setSpec{Name: "listen" + digit(f) + "/" + deviceWord(dev), Key: listenerKey(f), Verdict: true}
}

// directSpec: slot to the chain of a backend. Each service has a map of its own, for its size
// is then a fixed one: that of the table, and as much again for the slots that come before
// those in whose place they are have gone.
func directSpec(s *model.Service, f model.Family, slots int) setSpec {
	return setSpec{Name: "direct" + digit(f) + "/" + s.Name, Key: ruleset.Types{ruleset.Integer}, Verdict: true, Room: 2 * slots}
}

// roomFor is the size of a map with n listeners: what rarely is another when some come or go,
// since a map of another size takes all rules, and what they have counted, with it.
func roomFor(n int) int {
	room := 1024
	for room < 4*n {
		room *= 2
	}
	return room
}

func isDirectMap(name string) bool {
	return strings.HasPrefix(name, "direct4/") || strings.HasPrefix(name, "direct6/")
}

// deviceWord returns a device's name as part of the name of a chain or set, for which nft
// takes fewer characters: others are written as their hexadecimal number.
func deviceWord(dev string) string {
	var b strings.Builder
	for _, c := range []byte(dev) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

func directChain(s *model.Service, f model.Family) string {
	return "service/" + s.Name + "/" + f.String()
}

func backendChain(s *model.Service, b model.Backend) string {
	return "backend/" + s.Name + "/" + idName(b)
}

// backendOf returns the backend's address out of the name of its chain.
func backendOf(chain string) netip.Addr {
	a, _ := netip.ParseAddr(strings.ReplaceAll(chain[strings.LastIndexByte(chain, '/')+1:], "_", ":"))
	return a
}

// direct gives the unit its pools. What they become in the kernel is in directTable.
func (u *unit) direct() {
	for _, f := range u.service.Families() {
		p := newPool(u.service, f, u.place)
		p.Base = 0
		p.slots = directSpec(u.service, f, flow.TableSize(len(p.Backends)))
		p.SlotMap = p.slots.Name
		u.pools = append(u.pools, p)
		elems := make([]ruleset.Element, len(p.Slots))
		for i, bi := range p.Slots {
			elems[i] = ruleset.Element{Key: string(ruleset.AppendInteger(nil, p.Base+uint32(i))),
				Jump: ruleset.Jump{Chain: backendChain(u.service, p.Backends[bi]), Goto: true}}
		}
		p.direct = &ruleset.Part{Elems: elems}
	}
}

// directTable returns the table of the services with ForwardDirect, nil where there are none.
func (p *Plan) directTable(prev *Plan) *ruleset.Table {
	services := slices.DeleteFunc(p.Config.DirectServices(), (*model.Service).Steered)
	if len(services) == 0 {
		return nil
	}
	wires := p.Config.Wires
	if wires == nil {
		wires = p.Config.AssumedWires()
	}
	a := newAssembly(len(services), nil)
	var chains []*ruleset.Chain
	for _, s := range services {
		for _, pool := range p.units[s].pools {
			if len(pool.Slots) > 0 {
				a.addParts([]setPart{{spec: pool.slots, part: pool.direct}})
			}
			chains = append(chains, pool.directChains(p.Config.HashSeed, wires)...)
		}
		for _, dev := range s.In {
			if _, there := wires.Devices[dev]; there {
				a.listenOn(s, dev)
			}
		}
	}
	t := &ruleset.Table{Family: ruleset.Netdev, Name: TableName}
	for _, dev := range ingressDevices(services) {
		if _, there := wires.Devices[dev]; there {
			t.Chains = append(t.Chains, ingress(a.use, dev))
		}
	}
	t.Chains = append(t.Chains, chains...)
	for name, g := range a.use {
		if strings.HasPrefix(name, "listen") && !g.Range {
			g.Size = roomFor(g.Len())
		}
	}
	if old := prev.tableOf(ruleset.Netdev); old != nil {
		a.prev = usageOf(old)
		for i, c := range t.Chains {
			t.Chains[i] = sameChain(old.Chains, c)
		}
	}
	t.Sets = a.sorted()
	return t
}

// tableOf returns weir's table of a family, nil where there is none.
func (p *Plan) tableOf(f ruleset.Family) *ruleset.Table {
	if p == nil {
		return nil
	}
	return p.Ruleset.Table(f, TableName)
}

// usageOf returns a table's sets by name.
func usageOf(t *ruleset.Table) usage {
	u := usage{}
	for _, s := range t.Sets {
		u[s.Name] = &gathered{Set: s}
	}
	return u
}

// ingressDevices returns the devices by which clients of any of the services come in, in
// the order of the file.
func ingressDevices(services []*model.Service) []string {
	var out []string
	for _, s := range services {
		for _, dev := range s.In {
			if !slices.Contains(out, dev) {
				out = append(out, dev)
			}
		}
	}
	return out
}

// listenOn adds the service's listeners to the maps of a device.
func (a *assembly) listenOn(s *model.Service, dev string) {
	u := &unit{service: s}
	for _, f := range s.Families() {
		u.listeners(listenSpec(dev, f), f, func(model.Listen) string { return directChain(s, f) })
	}
	a.addParts(u.parts)
}

// ingress is the chain in which a device's packets find their service.
func ingress(u usage, dev string) *ruleset.Chain {
	c := &ruleset.Chain{Name: "ingress/" + deviceWord(dev), Base: &ruleset.Base{Type: "filter", Hook: ruleset.Ingress, Device: dev}}
	for _, f := range families {
		for _, spec := range []setSpec{listenSpec(dev, f), listenSpec(dev, f).twin()} {
			if u[spec.Name] != nil {
				c.Rules = append(c.Rules, ruleset.Rule{Comment: "find the service", Stmts: []ruleset.Stmt{
					ruleset.IsEther{Family: f}, ruleset.ToThisHost{}, ruleset.Whole{Family: f}, ruleset.VMap{Key: askedKey(f), Map: spec.Name}}})
			}
		}
	}
	return c
}

// directChains returns the chain that chooses a backend for each packet of the pool, and
// those of the backends, which are there for all of them so that they go on counting.
func (p *Pool) directChains(seed uint32, wires *model.Wires) []*ruleset.Chain {
	s := p.Service
	c := &ruleset.Chain{Name: directChain(s, p.Family)}
	if len(p.Slots) == 0 {
		c.Rules = []ruleset.Rule{{Comment: "nothing to choose from", Stmts: []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.DropPacket}}}}
	} else {
		c.Rules = []ruleset.Rule{{Comment: s.Balance.String(), Stmts: []ruleset.Stmt{
			ruleset.IsEther{Family: p.Family}, ruleset.VMap{Key: ruleset.Key{p.choice(seed)}, Map: p.SlotMap}}}}
	}
	out := []*ruleset.Chain{c}
	return append(out, p.backendChains(wires, func(b model.Backend, dev string, index int) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.Counting{}, ruleset.Fwd{Family: p.Family, To: b.Addr, Device: dev, Index: index}}
	})...)
}

// backendChains returns the chains of the pool's backends, which do what send says.
func (p *Pool) backendChains(wires *model.Wires, send func(b model.Backend, dev string, index int) []ruleset.Stmt) []*ruleset.Chain {
	var out []*ruleset.Chain
	for _, b := range p.Backends {
		rule := ruleset.Rule{Comment: "no segment of this box has it", Stmts: []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.DropPacket}}}
		if dev, index, ok := wires.Way(b.Addr); ok {
			rule = ruleset.Rule{Comment: fmt.Sprintf("to the backend by device %d", index), Stmts: send(b, dev, index)}
		}
		out = append(out, &ruleset.Chain{Name: backendChain(p.Service, b), Rules: []ruleset.Rule{rule}})
	}
	return out
}

// DirectCounters calls each for every chain in which the packets to a backend with
// ForwardDirect are counted: the places of the service and the backend in cfg.
func DirectCounters(cfg *model.Config, each func(chain string, service, backend int)) {
	for i, s := range cfg.Services {
		for j, b := range s.Backends {
			if s.Direct() {
				each(backendChain(s, b), i, j)
			}
		}
	}
}
