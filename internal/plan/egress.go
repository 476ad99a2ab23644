package plan

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"weir/internal/flow"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// A pool has a rule in postrouting for each device by which connections leave, which sends
// those that it matches to the pool's chain of the family, egress/NAME/ip. That chain takes an
// address out of the map egress4/NAME, by number: in turn, or by a hash over a table in which
// each address owns slots (flow.Rendezvous). The port is the kernel's choice among a range
// that the rule names. Ports that somebody listens on cut the range into several; then the
// chain first chooses one of these, in proportion to their lengths, and a chain for each
// takes the address.

const (
	// triedFor is for how long the first packet of a connection is remembered, so that the
	// second, if the kernel could not take the first into its table, gets another address: a
	// SYN is sent again after 1 and 3 s, a question to a name server after 5.
	triedFor  = 10 * time.Second
	triedSize = 1 << 18
	// newFor is for how long a source and destination are counted after a new connection.
	newFor  = 10 * time.Minute
	newSize = 1 << 16
	// maxSections bounds the ranges into which ports that are taken cut those of a pool: of
	// more, the longest are handed out.
	maxSections = 64
	// maxShares is the most slots for the choice of such a range.
	maxShares = 1024
)

// egressUnit is what one pool brings.
type egressUnit struct {
	pool   *model.Pool
	seed   uint32
	ports  []model.PortRange // that are handed out: not empty but where all are taken
	chains []*ruleset.Chain
	parts  []setPart
	rules  []ruleset.Rule // of postrouting

	tables []egressTable // of a stable pool; with thousands of addresses they take some seconds
	known  []egressTable // of the plan before
}

// egressCounts are what connections of pools are counted in, by egressID.
var (
	egressMatchedSpec = setSpec{Name: "egress-matched", Key: rateKey, Counter: true, Size: model.MaxPools * 16}
	egressSpilledSpec = setSpec{Name: "egress-spilled", Key: rateKey, Counter: true, Size: model.MaxPools * 16}
)

// egressNewSpec: new connections by source after translation, protocol and destination.
func egressNewSpec(f model.Family) setSpec {
	return setSpec{Name: "egress-new" + digit(f), Counter: true, Timeout: true, Size: newSize,
		Key: ruleset.Types{ruleset.AddrType(f), ruleset.Protocol, ruleset.AddrType(f), ruleset.Port}}
}

// egressTriedSpec: connections of which a stable pool has seen a first packet; egressAgainSpec:
// a second one too.
func egressTriedSpec(f model.Family) setSpec {
	return setSpec{Name: "egress-tried" + digit(f), Timeout: true, Size: triedSize,
		Key: ruleset.Types{ruleset.AddrType(f), ruleset.Protocol, ruleset.Port, ruleset.AddrType(f), ruleset.Port}}
}

func egressAgainSpec(f model.Family) setSpec {
	spec := egressTriedSpec(f)
	spec.Name = "egress-again" + digit(f)
	return spec
}

func egressTriedKey(f model.Family) ruleset.Key {
	return ruleset.Key{ruleset.Saddr(f), ruleset.L4Proto, ruleset.SPort, ruleset.Daddr(f), ruleset.DPort}
}

// egressID is the number of a pool: 64 bits out of its name, so that it is the same in every
// plan and on every node.
func egressID(name string) ruleset.Key {
	h := fnv.New64a()
	h.Write([]byte(name))
	sum := mix(h.Sum64())
	return ruleset.Key{ruleset.Const(uint32(sum >> 32)), ruleset.Const(uint32(sum))}
}

// egressChain gives connections of family f a source out of the pool.
func egressChain(name string, f model.Family) string { return "egress/" + name + "/" + f.String() }

// egressUnits returns the units of the pools; those of the plan before that are the same.
func (p *Plan) egressUnits(prev *Plan) []*egressUnit {
	var out []*egressUnit
	for _, pool := range p.Config.Egress {
		ports := openPorts(pool, p.Config.Services)
		var u *egressUnit
		if prev != nil {
			i := slices.IndexFunc(prev.egress, func(u *egressUnit) bool { return u.pool == pool })
			if i >= 0 && prev.egress[i].seed == p.Config.HashSeed && slices.Equal(prev.egress[i].ports, ports) {
				u = prev.egress[i]
			}
		}
		if u == nil {
			u = newEgressUnit(pool, p.Config.HashSeed, ports, prev.tablesOf(pool.Name))
		}
		out = append(out, u)
	}
	return out
}

// tablesOf returns the tables that the plan made for the pool of that name.
func (p *Plan) tablesOf(name string) []egressTable {
	if p == nil {
		return nil
	}
	for _, u := range p.egress {
		if u.pool.Name == name {
			return u.tables
		}
	}
	return nil
}

func newEgressUnit(pool *model.Pool, seed uint32, ports []model.PortRange, known []egressTable) *egressUnit {
	u := &egressUnit{pool: pool, seed: seed, ports: ports, known: known}
	u.empty(egressMatchedSpec)
	for _, f := range families {
		if !pool.Has(f) {
			continue
		}
		u.empty(egressNewSpec(f))
		u.family(f)
		u.remember(f)
	}
	for _, f := range pool.Families() {
		u.dispatch(f)
	}
	u.known = nil
	return u
}

// empty adds a set that packets fill.
func (u *egressUnit) empty(spec setSpec) {
	u.parts = append(u.parts, setPart{spec: spec, part: &ruleset.Part{}})
}

func (u *egressUnit) addSet(spec setSpec, elems []ruleset.Element) {
	u.parts = append(u.parts, setPart{spec: spec, part: &ruleset.Part{Elems: elems}})
}

// dispatch adds the rules that know the pool's connections.
func (u *egressUnit) dispatch(f model.Family) {
	p := u.pool
	s := shape{in: len(p.In) > 0, from: len(p.From) > 0, to: len(p.To) > 0, traffic: len(p.Traffic) > 0, family: f}
	// A refusal that the box sends is the first packet of a connection to this chain, too.
	match := []ruleset.Stmt{ruleset.Match{Field: ruleset.CtDirection}, ruleset.IsFamily(f)}
	if !s.all() {
		spec := s.spec()
		spec.Name, spec.Counter = "egress-match"+digit(f)+"/"+p.Name, false
		u.addSet(spec, s.elements(&model.OpenRule{In: p.In, From: p.From, To: p.To, Traffic: p.Traffic}))
		var key ruleset.Key
		for _, f := range s.fields() {
			key = append(key, f)
		}
		match = append(match, ruleset.InSet{Key: key, Set: spec.Name})
	}
	var except []ruleset.Stmt
	if to := (shape{to: true, family: f}); len(prefixSpans(p.Except, f)) > 0 {
		spec := to.spec()
		spec.Name, spec.Counter = "egress-except"+digit(f)+"/"+p.Name, false
		u.addSet(spec, to.elements(&model.OpenRule{To: p.Except}))
		except = []ruleset.Stmt{ruleset.InSet{Key: ruleset.Key{ruleset.Daddr(f)}, Set: spec.Name}, ruleset.Verdict{Kind: ruleset.AcceptPacket}}
	}
	for _, out := range p.Out {
		all := append([]ruleset.Stmt{ruleset.OutDevice{Name: out}}, match...)
		if except != nil {
			u.rules = append(u.rules, ruleset.Rule{Comment: "pool " + p.Name + ": except", Stmts: append(slices.Clip(all), except...)})
		}
		u.rules = append(u.rules, ruleset.Rule{Comment: "pool " + p.Name,
			Stmts: append(all, ruleset.Verdict{Kind: ruleset.GotoChain, Chain: egressChain(p.Name, f)})})
	}
}

// openPorts returns the ports that a pool hands out: its own without those that are taken, and
// for masquerade, whose addresses nobody knows, without those on which services listen.
func openPorts(p *model.Pool, services []*model.Service) []model.PortRange {
	var closed []model.PortRange
	for _, t := range p.Taken {
		has := !t.Addr.IsValid() || p.Masquerade || slices.ContainsFunc(p.Addresses, func(r model.AddrRange) bool {
			return r.Lo.Is4() == t.Addr.Is4() && !t.Addr.Less(r.Lo) && !r.Hi.Less(t.Addr)
		})
		if has {
			closed = append(closed, model.Port(t.Port))
		}
	}
	if p.Masquerade {
		for _, s := range services {
			for _, l := range s.Listen {
				if l.Proto == model.TCP || l.Proto == model.UDP {
					closed = append(closed, l.Ports)
				}
			}
		}
	}
	return cutPorts(p.Ports, closed)
}

// cutPorts returns the parts of the ranges that are not closed.
func cutPorts(ranges, closed []model.PortRange) []model.PortRange {
	slices.SortFunc(closed, func(a, b model.PortRange) int { return cmp.Compare(a.Lo, b.Lo) })
	var out []model.PortRange
	for _, r := range ranges {
		lo := int(r.Lo)
		for _, c := range closed {
			if int(c.Hi) < lo || c.Lo > r.Hi {
				continue
			}
			if int(c.Lo) > lo {
				out = append(out, model.PortRange{Lo: uint16(lo), Hi: c.Lo - 1})
			}
			lo = int(c.Hi) + 1
		}
		if lo <= int(r.Hi) {
			out = append(out, model.PortRange{Lo: uint16(lo), Hi: r.Hi})
		}
	}
	return out
}

// longest returns the maxSections longest of the ranges.
func longest(ranges []model.PortRange) []model.PortRange {
	if len(ranges) <= maxSections {
		return ranges
	}
	out := slices.SortedStableFunc(slices.Values(ranges), func(a, b model.PortRange) int { return cmp.Compare(b.Len(), a.Len()) })[:maxSections]
	slices.SortFunc(out, func(a, b model.PortRange) int { return cmp.Compare(a.Lo, b.Lo) })
	return out
}

// shares returns which range each slot of the choice among several stands for: in proportion
// to their lengths. Of one that would get less than half a slot no port is handed out.
func shares(ranges []model.PortRange) []int32 {
	weights := make([]int, len(ranges))
	total := 0
	for i, r := range ranges {
		weights[i] = r.Len()
		total += r.Len()
	}
	if slots := flow.Slots(weights); len(slots) <= maxShares {
		return slots
	}
	for i, w := range weights {
		weights[i] = (w*maxShares + total/2) / total
	}
	return flow.Slots(weights)
}

// EgressCounts returns the sets that count the connections of the pools, and those that got
// another address because theirs had no port left, by the keys of EgressKeys; nil where no
// pool is.
func (p *Plan) EgressCounts() (matched, spilled *ruleset.Set) {
	t := p.Ruleset.Tables[0]
	return t.Set(egressMatchedSpec.Name), t.Set(egressSpilledSpec.Name)
}

// EgressKeys returns the names of the pools by the keys of the elements that count for them.
func (p *Plan) EgressKeys() map[string]string {
	out := map[string]string{}
	for _, pool := range p.Config.Egress {
		var key []byte
		for _, e := range egressID(pool.Name) {
			key = binary.NativeEndian.AppendUint32(key, e.(ruleset.Numgen).Offset)
		}
		out[string(key)] = pool.Name
	}
	return out
}

// EgressNew returns the set that counts new connections of family f by their source after
// translation, protocol and destination; nil where no pool is. See EgressTuple.
func (p *Plan) EgressNew(f model.Family) *ruleset.Set {
	return p.Ruleset.Tables[0].Set(egressNewSpec(f).Name)
}

// EgressTuple is what new connections are counted by.
type EgressTuple struct {
	Source netip.Addr
	Proto  model.Proto
	To     netip.AddrPort
}

// ReadEgressTuple reads the key of an element of such a set.
func ReadEgressTuple(f model.Family, key string) EgressTuple {
	n := ruleset.AddrType(f).Size()
	src, _ := netip.AddrFromSlice([]byte(key[:n]))
	dst, _ := netip.AddrFromSlice([]byte(key[n+4 : 2*n+4]))
	port := uint16(key[2*n+4])<<8 | uint16(key[2*n+5])
	return EgressTuple{src, model.Proto(key[n]), netip.AddrPortFrom(dst, port)}
}

// egressNewRules count the first packets of TCP and UDP connections that leave with another
// source.
func egressNewRules(u usage) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		spec := egressNewSpec(f)
		if u[spec.Name] == nil {
			continue
		}
		for _, p := range portProtos {
			rules = append(rules, ruleset.Rule{Comment: "new connection with another source", Stmts: []ruleset.Stmt{
				ruleset.IsFamily(f), ruleset.IsProto(p), ruleset.FirstSNAT{}, ruleset.Update{Set: spec.Name, Timeout: newFor,
					Key: ruleset.Key{ruleset.Saddr(f), ruleset.L4Proto, ruleset.Daddr(f), ruleset.DPort}}}})
		}
	}
	return rules
}

// portProtos are the protocols whose ports pools hand out.
var portProtos = []model.Proto{model.TCP, model.UDP}
