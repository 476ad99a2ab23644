package plan

import (
	"net/netip"
	"slices"
	"strings"

	"weir/internal/flow"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// Pool is the backends of one family of a service and the slots through which new
// connections reach them.
type Pool struct {
	Service *model.Service
	Family  model.Family
	// Backends are the service's backends of this family, in file order.
	Backends []model.Backend
	// Slots holds for each slot the index of its backend in Backends. A pool without
	// slots has nothing to choose from.
	Slots []int32
	// SlotMap is the name of the map that holds the slots; their keys start at Base.
	SlotMap string
	Base    uint32
	// StickyMap is the name of the map that remembers clients, "" when the service is not
	// sticky, or its backends have limits and a set for each backend. Its keys start with Base, its data with the backend's address.
	StickyMap string

	// port is the one port on which all backends are reached, 0 if there is none: then
	// what remembers a client must remember the port as well.
	port uint16

	kind  kind // of no meaning with ForwardDirect
	group int
	slots setSpec // the declaration of SlotMap

	direct *ruleset.Part // with ForwardDirect: the slots
}

// setPart is a service's share of a set.
type setPart struct {
	spec   setSpec
	part   *ruleset.Part
	protos []model.Proto // of the listeners in it, where its elements are listeners
}

// unit is what one service brings to the ruleset. It is immutable.
type unit struct {
	service *model.Service
	place   place
	pools   []*Pool
	parts   []setPart
	chains  []*ruleset.Chain
	shared  []*ruleset.Chain // chains that are the same in every service that has them
}

func newUnit(s *model.Service, pl place, seed uint32, marks *Marks) *unit {
	u := &unit{service: s, place: pl, parts: make([]setPart, 0, 4)}
	if s.Local() {
		return u // admit adds what there is
	}
	if s.Direct() {
		u.direct()
		return u
	}
	for _, f := range s.Families() {
		p := newPool(s, f, pl)
		u.pools = append(u.pools, p)
		u.slots(p)
		u.remember(p)
		if s.Steered() {
			u.steer(p, marks)
		}
		for _, proto := range protosOf(s, f) {
			if s.Steered() {
				u.chains = append(u.chains, p.steerChain(proto, seed, marks))
				continue
			}
			if spills(s) && len(p.Slots) > 0 {
				u.limited(p, proto, seed)
				continue
			}
			u.chains = append(u.chains, p.chain(proto, seed))
			if len(p.Slots) > 0 {
				u.chains = append(u.chains, p.overChains(proto)...)
			}
			if p.StickyMap != "" {
				u.chains = append(u.chains, p.learnChain(proto))
			}
		}
		if slices.ContainsFunc(protosOf(s, f), func(p model.Proto) bool { return resets(s, p) }) {
			u.parts = append(u.parts, setPart{spec: resetsSpec(f), part: &ruleset.Part{}})
		}
		u.listeners(servicesSpec(f), f, func(l model.Listen) string { return poolChain(s, f, l.Proto) })
		if p.StickyMap != "" {
			u.listeners(learnSpec(f), f, func(l model.Listen) string { return learnChain(s, f, l.Proto) })
		}
		u.source(f)
	}
	u.limits()
	return u
}

// remember adds the sets that hold the clients of a sticky service.
func (u *unit) remember(p *Pool) {
	if p.StickyMap != "" {
		u.parts = append(u.parts, setPart{spec: p.stickySpec(), part: &ruleset.Part{}})
		return
	}
	if u.service.Sticky > 0 {
		for _, i := range p.chosen() {
			u.parts = append(u.parts, setPart{spec: rememberSpec(u.service, p.Backends[i]), part: &ruleset.Part{}})
		}
	}
}

func poolChain(s *model.Service, f model.Family, p model.Proto) string {
	return "service/" + s.Name + "/" + f.String() + "/" + p.String()
}

func learnChain(s *model.Service, f model.Family, p model.Proto) string {
	return "learn/" + s.Name + "/" + f.String() + "/" + p.String()
}

// protosOf returns the protocols s listens on in family f, in file order.
func protosOf(s *model.Service, f model.Family) []model.Proto {
	var out []model.Proto
	for _, l := range s.Listen {
		if l.Family() == f && !slices.Contains(out, l.Proto) {
			out = append(out, l.Proto)
		}
	}
	return out
}

// backendsOf returns the backends of family f: the service's own list where that is all.
func backendsOf(s *model.Service, f model.Family) []model.Backend {
	other := func(b model.Backend) bool { return b.Family() != f }
	if !slices.ContainsFunc(s.Backends, other) {
		return slices.Clip(s.Backends)
	}
	return slices.DeleteFunc(slices.Clone(s.Backends), other)
}

func newPool(s *model.Service, f model.Family, pl place) *Pool {
	p := &Pool{Service: s, Family: f, Base: pl.base, group: pl.group, Backends: backendsOf(s, f)}
	p.kind = kindOf(s, f, p.Backends)
	p.slots = slotsSpec(p.kind, f, pl.group)
	p.SlotMap = p.slots.Name
	if p.kind == kindAddrPort {
		p.port = p.commonPort()
	}
	if s.Sticky > 0 && !spills(s) {
		p.StickyMap = p.stickySpec().Name
	}
	switch {
	case s.Steered():
		p.Slots = p.steerSlots()
	case s.Balance == model.Maglev, s.Balance == model.Source:
		members := make([]flow.Member, len(p.Backends))
		for i, b := range p.Backends {
			members[i] = flow.Member{ID: b.ID(), Weight: b.Weight}
		}
		if slices.ContainsFunc(p.Backends, func(b model.Backend) bool { return b.Weight > 0 }) {
			p.Slots = flow.Maglev(members, flow.TableSize(len(members)))
		}
	default:
		weights := make([]int, len(p.Backends))
		for i, b := range p.Backends {
			weights[i] = b.Weight
		}
		p.Slots = flow.Slots(fit(weights, p.mostSlots()))
	}
	return p
}

// mostSlots bounds the slots of a pool: they must fit into the service's stretch of the
// map, and a file that config lets pass stays below. Weights that an operator or a slow
// start sets may have no common divisor any more.
func (p *Pool) mostSlots() int {
	if p.kind == kindPerPort {
		return max(1<<18/max(len(portsOf(p.Service, p.Family)), 1), len(p.Backends))
	}
	return max(1<<16, len(p.Backends))
}

// fit returns weights whose slots are at most most, in about the same proportions: exact
// ones where they fit.
func fit(weights []int, most int) []int {
	for {
		sum, g := 0, 0
		for _, w := range weights {
			sum, g = sum+w, gcd(w, g)
		}
		if g == 0 || sum/g <= most {
			return weights
		}
		half := make([]int, len(weights))
		for i, w := range weights {
			half[i] = (w + 1) / 2
		}
		weights = half
	}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (p *Pool) stickySpec() setSpec {
	return stickySpec(p.kind, p.Family, p.group, p.kind != kindAddr && p.port == 0)
}

// commonPort returns the port on which all backends of a kindAddrPort pool are reached,
// or 0 if they differ.
func (p *Pool) commonPort() uint16 {
	listen, _ := onePort(p.Service, p.Family)
	var port uint16
	for _, b := range p.Backends {
		q := p.Target(b, model.Port(listen), listen)
		if port != 0 && port != q {
			return 0
		}
		port = q
	}
	return port
}

// kindOf finds the cheapest form in which the slots can say where to go.
func kindOf(s *model.Service, f model.Family, backends []model.Backend) kind {
	var kept, fixed, ranges bool
	for _, b := range backends {
		kept = kept || b.Ports.IsZero()
		fixed = fixed || b.Ports.Single()
		ranges = ranges || b.Ports.Len() > 1
	}
	switch {
	case ranges:
		return kindPerPort
	case !fixed:
		return kindAddr
	case !kept:
		return kindAddrPort
	}
	if _, one := onePort(s, f); one {
		return kindAddrPort
	}
	return kindPerPort
}

// onePort returns the port of all listeners of family f, if it is one and the same.
func onePort(s *model.Service, f model.Family) (uint16, bool) {
	var port uint16
	for _, l := range s.Listen {
		if l.Family() != f {
			continue
		}
		if !l.Ports.Single() || port != 0 && port != l.Ports.Lo {
			return 0, false
		}
		port = l.Ports.Lo
	}
	return port, port != 0
}

// Target returns the port on which b gets a connection to port of the listener's range.
func (p *Pool) Target(b model.Backend, listen model.PortRange, port uint16) uint16 {
	switch {
	case b.Ports.IsZero():
		return port
	case b.Ports.Len() > 1:
		return b.Ports.Lo + (port - listen.Lo)
	}
	return b.Ports.Lo
}

// slots adds the pool's slots to its group's map. All keys and data are cut out of one
// string, so that a hundred thousand of them are few allocations.
func (u *unit) slots(p *Pool) {
	port, _ := onePort(p.Service, p.Family)
	ports := []portIn{{port: port, listen: model.Port(port)}}
	if p.kind == kindPerPort {
		ports = portsOf(p.Service, p.Family)
	}
	keyLen := p.slots.Key.Len()
	size := keyLen + p.slots.Data.Len()
	buf := make([]byte, 0, len(p.Slots)*len(ports)*size)
	for i, bi := range p.Slots {
		b := p.Backends[bi]
		for _, q := range ports {
			buf = ruleset.AppendInteger(buf, p.Base+uint32(i))
			if p.kind == kindPerPort {
				buf = ruleset.AppendPort(buf, q.port)
			}
			buf = ruleset.AppendAddr(buf, b.Addr)
			if p.kind != kindAddr {
				buf = ruleset.AppendPort(buf, p.Target(b, q.listen, q.port))
			}
		}
	}
	all := string(buf)
	elems := make([]ruleset.Element, len(all)/size)
	for i := range elems {
		e := all[i*size : (i+1)*size]
		elems[i] = ruleset.Element{Key: e[:keyLen], Data: e[keyLen:]}
	}
	u.parts = append(u.parts, setPart{spec: p.slots, part: &ruleset.Part{Elems: elems}})
}

// portIn is one port of a listener.
type portIn struct {
	port   uint16
	listen model.PortRange
}

// portsOf returns every port that s listens on in family f, once.
func portsOf(s *model.Service, f model.Family) []portIn {
	var out []portIn
	seen := map[uint16]bool{}
	for _, l := range s.Listen {
		if l.Family() != f {
			continue
		}
		for q := int(l.Ports.Lo); q <= int(l.Ports.Hi); q++ {
			if !seen[uint16(q)] {
				seen[uint16(q)] = true
				out = append(out, portIn{uint16(q), l.Ports})
			}
		}
	}
	return out
}

// twins collects elements that begin with a listener: for a set, and for its twin where
// the listener has a range of ports.
type twins struct {
	elems  [2][]ruleset.Element
	protos [2][]model.Proto
}

func (t *twins) add(l model.Listen, e ruleset.Element) {
	i := 0
	if e.KeyEnd != "" {
		i = 1
	}
	t.elems[i] = append(t.elems[i], e)
	if !slices.Contains(t.protos[i], l.Proto) {
		t.protos[i] = append(t.protos[i], l.Proto)
	}
}

func (u *unit) addTwins(spec setSpec, t *twins) {
	for i, s := range []setSpec{spec, spec.twin()} {
		if len(t.elems[i]) > 0 {
			u.parts = append(u.parts, setPart{s, &ruleset.Part{Elems: t.elems[i]}, t.protos[i]})
		}
	}
}

// listeners adds the listeners of family f to the verdict map of spec, or to its twin.
func (u *unit) listeners(spec setSpec, f model.Family, chain func(model.Listen) string) {
	var t twins
	for _, l := range u.service.Listen {
		if l.Family() == f {
			e := listenElement(l, netip.Addr{})
			e.Jump = ruleset.Jump{Chain: chain(l), Goto: true}
			t.add(l, e)
		}
	}
	u.addTwins(spec, &t)
}

// source adds what the service's connections get as their source.
func (u *unit) source(f model.Family) {
	switch s := u.service; s.Source.Mode {
	case model.SourceMasquerade:
		u.translate(f, "source/masquerade", ruleset.Masquerade{})
	case model.SourceAddress:
		addr := s.Source.Addr(f)
		name := "source/" + strings.ReplaceAll(addr.String(), ":", "_")
		u.translate(f, name, ruleset.IsFamily(f), ruleset.SNAT{Family: f, To: addr})
	case model.SourcePool:
		u.listeners(sourceSpec(f), f, func(model.Listen) string { return egressChain(s.Source.Pool, f) })
	case model.SourceKeep:
		u.hairpin(f)
	}
}

func (u *unit) translate(f model.Family, chain string, stmts ...ruleset.Stmt) {
	u.listeners(sourceSpec(f), f, func(model.Listen) string { return chain })
	u.shared = append(u.shared, &ruleset.Chain{Name: chain,
		Rules: []ruleset.Rule{{Comment: "source", Stmts: stmts}}})
}

// hairpin adds the pairs of listener and backend by which a backend that calls its own
// service is known.
func (u *unit) hairpin(f model.Family) {
	var addrs []netip.Addr // two backends may share one
	seen := make(map[netip.Addr]bool, len(u.service.Backends))
	for _, b := range u.service.Backends {
		if b.Family() == f && !seen[b.Addr] {
			seen[b.Addr] = true
			addrs = append(addrs, b.Addr)
		}
	}
	var t twins
	for _, l := range u.service.Listen {
		for _, a := range addrs {
			if l.Family() == f {
				t.add(l, listenElement(l, a))
			}
		}
	}
	u.addTwins(hairpinSpec(f), &t)
}
