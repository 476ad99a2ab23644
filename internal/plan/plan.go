// Package plan turns a model into a ruleset: which kernel objects make the kernel do
// what the configuration says. It is a pure function; give it the plan before and it
// reuses what has not changed, so that a change costs what it changes.
//
// The work per packet is a fixed number of look-ups however many services there are:
// a verdict map finds the service of a new connection and goes to its pool's chain, one
// rule there chooses a slot, and a map shared by the pools of a group tells the backend
// of the slot. Everything that is counted is counted by one look-up in a set that the
// packets fill themselves.
package plan

import (
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// TableName is the name of the table that holds weir's rules.
const TableName = "weir"

// Plan is a ruleset and where it comes from.
type Plan struct {
	Config  *model.Config
	Ruleset *ruleset.Ruleset
	Pools   []*Pool // in the order of the services, IPv4 before IPv6
	Blocks  *Blocks // nil where nothing is blocked; see WithBlocks

	marks   *Marks    // of steered services; nil without any
	edge    *edgePlan // nil where the configuration says nothing of the edge
	egress  []*egressUnit
	hygiene []setPart // of the pools
	units   map[*model.Service]*unit
	places  []place // of the services, in order
	base    []*ruleset.Chain
	sets    usage
}

// Build returns the plan of cfg. prev may be nil; chains and parts of services whose
// *model.Service, place and seed are the same in prev are taken from there.
func Build(cfg *model.Config, prev *Plan) *Plan {
	n := len(cfg.Services)
	p := &Plan{Config: cfg, Pools: make([]*Pool, 0, n), units: make(map[*model.Service]*unit, n),
		places: prev.samePlaces(cfg)}
	if p.places == nil {
		p.places = places(cfg.Services)
	}
	p.marks = prev.sameMarks(cfg)
	a := newAssembly(n, prev)
	for i, place := range p.places {
		s := cfg.Services[i]
		u := prev.reuse(s, place, p)
		if u == nil {
			u = newUnit(s, place, cfg.HashSeed, p.marks)
			u.floods()
			u.admit(cfg.Edge.Dropping())
		}
		p.units[s] = u
		p.Pools = append(p.Pools, u.pools...)
		a.add(u)
	}
	p.edge = prev.sameEdge(cfg.Edge)
	a.addParts(p.edge.setParts())
	p.egress = p.egressUnits(prev)
	for _, u := range p.egress {
		a.addParts(u.parts)
		a.chains = append(a.chains, u.chains...)
	}
	p.hygiene = prev.hygieneParts(cfg.Egress)
	a.addParts(p.hygiene)
	a.addParts(p.marks.setParts())
	p.sets = a.use
	p.base = slices.Concat(baseChains(p.sets, p.egress), edgeChains(p.sets, p.edge), hygieneChains(p.sets))
	p.base = append(p.base, steerChains(p.sets, p.marks)...)
	if len(cfg.Mirrors) > 0 {
		leaveOutCopies(p.base)
	}
	if prev != nil {
		for i, c := range p.base {
			p.base[i] = sameChain(prev.base, c)
		}
	}
	table := &ruleset.Table{Family: ruleset.Inet, Name: TableName, Timeouts: allTimeouts(cfg.Egress)}
	table.Sets = a.finish()
	table.Chains = append(slices.Clip(p.base), a.chains...)
	p.Ruleset = &ruleset.Ruleset{Tables: []*ruleset.Table{table}}
	if t := p.directTable(prev); t != nil {
		p.Ruleset.Tables = append(p.Ruleset.Tables, t)
	}
	p.Ruleset.Tables = append(p.Ruleset.Tables, p.steerTables(prev)...)
	if len(cfg.Mirrors) > 0 {
		p.Ruleset.Tables = append(p.Ruleset.Tables, mirrorTables(cfg, prev.ruleset())...)
	}
	return p
}

// sameChain returns the chain among olds that equals c, or c.
func sameChain(olds []*ruleset.Chain, c *ruleset.Chain) *ruleset.Chain {
	for _, o := range olds {
		if o.Name == c.Name && slices.Equal(o.Fingerprints(), c.Fingerprints()) {
			return o
		}
	}
	return c
}

// samePlaces returns the places of the plan if the services of cfg have the same names,
// on which alone they depend, and nil if not.
func (p *Plan) samePlaces(cfg *model.Config) []place {
	same := func(a, b *model.Service) bool { return a == b || a.Name == b.Name }
	if p == nil || !slices.EqualFunc(p.Config.Services, cfg.Services, same) {
		return nil
	}
	return p.places
}

// sameMarks returns the marks of cfg, those of the plan where they are the same.
func (p *Plan) sameMarks(cfg *model.Config) *Marks {
	m := newMarks(cfg)
	if p != nil && p.marks.Equal(m) {
		return p.marks
	}
	return m
}

func (p *Plan) reuse(s *model.Service, pl place, next *Plan) *unit {
	cfg := next.Config
	if p == nil || p.Config.HashSeed != cfg.HashSeed || p.Config.Edge.Dropping() != cfg.Edge.Dropping() ||
		s.Steered() && p.marks != next.marks {
		return nil
	}
	if u := p.units[s]; u != nil && u.place == pl {
		return u
	}
	return nil
}

// usage is what the services need from the rules that are shared by all: which sets have
// elements, and the protocols of the listeners in them.
type usage map[string]*gathered

// gathered is a set to which services bring their parts.
type gathered struct {
	*ruleset.Set
	protos []model.Proto // of the listeners in it, where its elements are listeners
}

// protos returns the protocols of the listeners in the sets of those names, in a fixed
// order.
func (u usage) protos(names ...string) []model.Proto {
	var out []model.Proto
	for _, p := range []model.Proto{model.TCP, model.UDP, model.SCTP} {
		if slices.ContainsFunc(names, func(n string) bool { return u[n] != nil && slices.Contains(u[n].protos, p) }) {
			out = append(out, p)
		}
	}
	return out
}

// served returns the protocols that services of family f listen on.
func (u usage) served(f model.Family) []model.Proto {
	spec := servicesSpec(f)
	return u.protos(spec.Name, spec.twin().Name)
}

// closes reports whether the end of a connection matters to some service.
func (u usage) closes() bool {
	for _, f := range families {
		if spec := closedSpec(f); u[spec.Name] != nil || u[spec.twin().Name] != nil {
			return true
		}
	}
	return false
}

// assembly collects the units' parts into sets.
type assembly struct {
	chains  []*ruleset.Chain
	sources map[string]bool // chains that several services share
	use     usage
	prev    usage // of the plan before
}

func newAssembly(services int, prev *Plan) *assembly {
	a := &assembly{
		chains:  make([]*ruleset.Chain, 0, services),
		sources: map[string]bool{},
		use:     usage{},
	}
	if prev != nil {
		a.prev = prev.sets
	}
	return a
}

// set returns the set of that declaration, which it makes at the first call.
func (a *assembly) set(spec *setSpec) *gathered {
	g := a.use[spec.Name]
	if g == nil {
		g = &gathered{Set: spec.set()}
		if old := a.prev[spec.Name]; old != nil {
			g.Parts = make([]*ruleset.Part, 0, len(old.Parts)+1)
		}
		a.use[spec.Name] = g
	}
	return g
}

func (a *assembly) add(u *unit) {
	a.addParts(u.parts)
	a.chains = append(a.chains, u.chains...)
	for _, c := range u.shared {
		if !a.sources[c.Name] {
			a.sources[c.Name] = true
			a.chains = append(a.chains, c)
		}
	}
}

func (a *assembly) addParts(parts []setPart) {
	for i := range parts {
		sp := &parts[i]
		if len(sp.part.Elems) == 0 && sp.spec.Size == 0 {
			continue // no rule looks there
		}
		g := a.set(&sp.spec)
		for _, p := range sp.protos {
			if !slices.Contains(g.protos, p) {
				g.protos = append(g.protos, p)
			}
		}
		if len(sp.part.Elems) > 0 {
			g.Parts = append(g.Parts, sp.part)
		}
	}
}

// finish adds the counted sets and returns all sets by name. One that the plan before had
// with the same parts is taken from there.
func (a *assembly) finish() []*ruleset.Set {
	for _, f := range families {
		if len(a.use.served(f)) > 0 {
			requests, replies := trafficSpecs(f)
			for _, spec := range []setSpec{connectionsSpec(f), requests, replies} {
				a.set(&spec)
			}
		}
	}
	return a.sorted()
}

// sorted returns the sets by name, those that are as before as they were.
func (a *assembly) sorted() []*ruleset.Set {
	out := make([]*ruleset.Set, 0, len(a.use))
	for name, g := range a.use {
		if old := a.prev[name]; old != nil && slices.Equal(old.Parts, g.Parts) && old.SameSpec(g.Set) {
			g.Set = old.Set
		}
		out = append(out, g.Set)
	}
	slices.SortFunc(out, func(x, y *ruleset.Set) int { return compareNames(x.Name, y.Name) })
	return out
}
