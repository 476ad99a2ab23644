package plan

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// A service of whose backends one has a limit of connections has a chain for each backend,
// `try/NAME/…`, that takes the connection or comes back. The kernel counts a
// connection before it compares, and what is counted stays so while the connection lives,
// wherever it went. So nothing may be counted with a backend that does not get it:
//
//   - whoever is full is in the set `full`, and is not asked at all;
//   - the connection that fills a backend is counted twice, against the limit and against
//     one less: the second says that it was the last one, and puts the backend into `full`;
//   - one that is over the limit all the same (two at once, or the element of `full` had
//     run out) can go to nobody else. It puts all that are full into `full`, and is refused
//     if that is all of them, else dropped: a TCP client asks again a second later. Either
//     ends its being counted.
//
// A limit of the service alone is counted in the service's chain: whoever passes is placed.
//
// The end of a TCP connection takes the backend out of `full`; for all others, and for
// what ends without a packet, the element runs out.
const (
	// fullFor is how long an element of full holds without a word. At its end one new
	// connection finds out, and comes a second later where only some backends are full.
	fullFor = 10 * time.Second
	// fullNoMore makes an element run out at once: the kernel rounds up to its tick. A
	// delete would do, but kernels before 6.5 lose memory over it.
	fullNoMore = time.Millisecond
	// limitsSize bounds the sets `limits` (two elements for a limit) and `full` (one).
	limitsSize = 1 << 18
	// ringTries is how many backends are tried round the ring. The kernel looks at all
	// elements of a map for each rule that binds it, so that they must not be too many.
	ringTries = 64
)

// The times that conntrack gives a TCP connection to go on (nf_conntrack_proto_tcp.c) tell
// its state: 10 s after a reset, 30 s and 60 s with one side closed, 120 s when both are.
const (
	closingBelow  = 121 * time.Second
	resetBelow    = 11 * time.Second
	halfOpenBelow = 61 * time.Second
)

// Names of what limits bring.
const (
	setLimits = "limits"
	setFull   = "full"
)

var countKey = ruleset.Types{ruleset.Integer, ruleset.Integer}

// limitsSpec: what has a limit, to the connections that are counted with it; packets
// fill it.
func limitsSpec() setSpec { return setSpec{Name: setLimits, Key: countKey, Size: limitsSize} }

// fullSpec: what is full.
func fullSpec() setSpec {
	return setSpec{Name: setFull, Key: countKey, Size: limitsSize, Timeout: true}
}

// picksSpec: slot to the chain of its backend, for one group and protocol.
func picksSpec(f model.Family, p model.Proto, group int) setSpec {
	return setSpec{Name: fmt.Sprintf("picks%d/%03x/%s", f, group, p),
		Key: ruleset.Types{ruleset.Integer}, Verdict: true}
}

// spillSpec: the backends in a ring, twice round, to their chains.
func spillSpec(f model.Family, p model.Proto, group int) setSpec {
	return setSpec{Name: fmt.Sprintf("spill%d/%03x/%s", f, group, p),
		Key: ruleset.Types{ruleset.Integer}, Verdict: true}
}

// closedSpec: listener and backend of services with limits, to the chain that takes the
// backend out of full.
func closedSpec(f model.Family) setSpec {
	return setSpec{Name: "closed" + digit(f), Key: append(listenerKey(f), ruleset.AddrType(f)), Verdict: true}
}

// rememberSpec: the clients of a sticky service that a backend serves.
func rememberSpec(s *model.Service, b model.Backend) setSpec {
	return setSpec{Name: "sticky/" + s.Name + "/" + idName(b), Key: ruleset.Types{ruleset.AddrType(b.Family())},
		Timeout: true, Size: stickySize}
}

// idName is a backend's identity as a part of a name that nft takes.
func idName(b model.Backend) string {
	name := addrName(b.Addr)
	if !b.Ports.IsZero() {
		name += "/" + b.Ports.String()
	}
	return name
}

func addrName(a netip.Addr) string { return strings.ReplaceAll(a.String(), ":", "_") }

// limit is a number of connections, and by what it is known in the kernel. The number is
// a part of that, because an element that counts keeps the limit it was made with.
type limit struct {
	most  int
	name  string // of who has the limit
	words string // whose limit it is
}

// backendLimit returns the limit of a backend that has one.
func backendLimit(s *model.Service, b model.Backend) limit {
	return limit{b.MaxConnections, s.Name + "/" + idName(b), "the backend"}
}

// serviceLimit returns the limit of the service, or nothing.
func serviceLimit(s *model.Service) []limit {
	if s.MaxConnections == 0 {
		return nil
	}
	return []limit{{s.MaxConnections, s.Name, "the service"}}
}

// key is 64 bits out of the names alone, so that they are the same in every plan.
func (l limit) key(what string) ruleset.Key {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%d\x00%s", l.name, l.most, what)
	sum := mix(h.Sum64())
	return ruleset.Key{ruleset.Const(uint32(sum >> 32)), ruleset.Const(uint32(sum))}
}

// full is the key under which the limit's holder is in full.
func (l limit) full() ruleset.Key { return l.key("limit") }

func (l limit) isFull() ruleset.Stmt { return ruleset.InSet{Key: l.full(), Set: setFull} }

func (l limit) fill(d time.Duration) ruleset.Stmt {
	return ruleset.Update{Set: setFull, Key: l.full(), Timeout: d}
}

// over counts the connection against the limit.
func (l limit) over(then ...ruleset.Stmt) ruleset.Rule {
	count := ruleset.CountOver{Set: setLimits, Key: l.key("limit"), Limit: uint32(l.most)}
	return ruleset.Rule{Comment: fmt.Sprintf("%s takes %d at a time", l.words, l.most),
		Stmts: append([]ruleset.Stmt{count}, then...)}
}

// last counts it against one less: whoever is over is the last that is taken.
func (l limit) last() ruleset.Rule {
	return ruleset.Rule{Comment: l.words + " is full with this one", Stmts: []ruleset.Stmt{
		ruleset.CountOver{Set: setLimits, Key: l.key("last"), Limit: uint32(l.most - 1)}, l.fill(fullFor)}}
}

// ended is the rule that takes the limit's holder out of full.
func (l limit) ended() ruleset.Rule {
	return ruleset.Rule{Comment: l.words + " has room again", Stmts: []ruleset.Stmt{l.isFull(), l.fill(fullNoMore)}}
}

func tryChain(s *model.Service, b model.Backend, p model.Proto) string {
	return "try/" + s.Name + "/" + p.String() + "/" + idName(b)
}

func fullChain(s *model.Service, b model.Backend, p model.Proto) string {
	return "full/" + s.Name + "/" + p.String() + "/" + idName(b)
}

func probeChain(s *model.Service, b model.Backend, p model.Proto) string {
	return "probe/" + s.Name + "/" + p.String() + "/" + idName(b)
}

// overChain is where a connection goes that is one too many for the service; fullChain
// and then probeAllChain, for a backend.
func overChain(s *model.Service, f model.Family, p model.Proto) string {
	return "full/" + s.Name + "/" + f.String() + "/" + p.String()
}

func probeAllChain(s *model.Service, f model.Family, p model.Proto) string {
	return "probe/" + s.Name + "/" + f.String() + "/" + p.String()
}

// spills reports whether a backend of s may be full, so that others get its share.
func spills(s *model.Service) bool {
	return slices.ContainsFunc(s.Backends, func(b model.Backend) bool { return b.MaxConnections > 0 })
}

// limits adds what the service's limits need beside its pools' chains.
func (u *unit) limits() {
	s := u.service
	if !s.Limited() {
		return
	}
	for _, spec := range []setSpec{limitsSpec(), fullSpec()} {
		u.parts = append(u.parts, setPart{spec: spec, part: &ruleset.Part{}})
	}
	for _, f := range s.Families() {
		u.closed(f)
	}
}

// closed adds the pairs of listener and backend by which the end of a connection is known,
// and for each address of a backend the chain that sees to it.
func (u *unit) closed(f model.Family) {
	s := u.service
	var addrs []netip.Addr
	chains := map[netip.Addr]*ruleset.Chain{}
	for _, b := range backendsOf(s, f) {
		c := chains[b.Addr]
		if c == nil {
			c = &ruleset.Chain{Name: "closed/" + s.Name + "/" + addrName(b.Addr)}
			for _, l := range serviceLimit(s) {
				c.Rules = append(c.Rules, l.ended())
			}
			chains[b.Addr], addrs = c, append(addrs, b.Addr)
		}
		if b.MaxConnections > 0 {
			c.Rules = append(c.Rules, backendLimit(s, b).ended())
		}
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return len(chains[a].Rules) == 0 })
	var t twins
	for _, l := range s.Listen {
		if l.Family() != f || l.Proto != model.TCP {
			continue
		}
		for _, a := range addrs {
			e := listenElement(l, a)
			e.Jump = ruleset.Jump{Chain: chains[a].Name, Goto: true}
			t.add(l, e)
		}
	}
	if len(t.elems[0])+len(t.elems[1]) == 0 {
		return
	}
	for _, a := range addrs {
		u.chains = append(u.chains, chains[a])
	}
	u.addTwins(closedSpec(f), &t)
}

// limited adds the chain of a pool with limits, its backends' chains, and the maps that
// lead to them.
func (u *unit) limited(p *Pool, proto model.Proto, seed uint32) {
	picks, spill := picksSpec(p.Family, proto, p.group), spillSpec(p.Family, proto, p.group)
	u.chains = append(u.chains, p.limitedChain(proto, seed, picks.Name, spill.Name))
	first := map[int32]int{} // slot of each backend
	elems := make([]ruleset.Element, len(p.Slots))
	for i, bi := range p.Slots {
		if _, seen := first[bi]; !seen {
			first[bi] = i
		}
		elems[i] = p.lead(i, p.Backends[bi], proto)
	}
	u.parts = append(u.parts, setPart{spec: picks, part: &ruleset.Part{Elems: elems}})
	some := p.chosen()
	for _, bi := range some {
		u.chains = append(u.chains, p.tryChain(p.Backends[bi], proto, uint32(first[bi])))
	}
	u.chains = append(append(u.chains, p.overChains(proto)...), p.probeChains(some, proto)...)
	if n := len(some); n > 1 {
		ring := make([]ruleset.Element, 2*n-1)
		for i := range ring {
			ring[i] = p.lead(i, p.Backends[some[i%n]], proto)
		}
		u.parts = append(u.parts, setPart{spec: spill, part: &ruleset.Part{Elems: ring}})
	}
}

// lead is the element that leads from number i of the pool's stretch to a backend.
func (p *Pool) lead(i int, b model.Backend, proto model.Proto) ruleset.Element {
	return ruleset.Element{Key: string(ruleset.AppendInteger(nil, p.Base+uint32(i))),
		Jump: ruleset.Jump{Chain: tryChain(p.Service, b, proto)}}
}

// chosen returns the backends that have slots, in file order.
func (p *Pool) chosen() []int32 {
	has := make([]bool, len(p.Backends))
	for _, i := range p.Slots {
		has[i] = true
	}
	var out []int32
	for i := range has {
		if has[i] {
			out = append(out, int32(i))
		}
	}
	return out
}

// limitedChain tries backends until one takes the connection: the one that a sticky
// client had, the choice, a second choice, and then each from some place in the ring on.
func (p *Pool) limitedChain(proto model.Proto, seed uint32, picks, spill string) *ruleset.Chain {
	s := p.Service
	c := &ruleset.Chain{Name: poolChain(s, p.Family, proto)}
	rule := p.ruleFor(c, proto)
	refuse := refusal(s.WhenAllDown, proto)
	for _, l := range serviceLimit(s) {
		rule(l.words+" is full", l.isFull(), refuse)
	}
	some := p.chosen()
	if s.Sticky > 0 {
		for _, i := range some {
			b := p.Backends[i]
			rule("a client that is known", ruleset.InSet{Key: ruleset.Key{ruleset.Saddr(p.Family)}, Set: rememberSpec(s, b).Name},
				ruleset.Verdict{Kind: ruleset.JumpTo, Chain: tryChain(s, b, proto)})
		}
	}
	rule(s.Balance.String(), ruleset.VMap{Key: ruleset.Key{p.choice(seed)}, Map: picks})
	if n := uint32(len(some)); n > 1 {
		rule("that one is full: a second choice", ruleset.VMap{Key: ruleset.Key{p.secondChoice(seed)}, Map: picks})
		for i := range min(n, ringTries) {
			at := ruleset.Hash{Key: p.hashKey(), Mod: n, Seed: ^seed, Offset: p.Base + i}
			rule("that one too: any that has room", ruleset.VMap{Key: ruleset.Key{at}, Map: spill})
		}
		if n > ringTries {
			for _, i := range some {
				rule("those too: the first that has room", ruleset.Verdict{Kind: ruleset.JumpTo, Chain: tryChain(s, p.Backends[i], proto)})
			}
		}
	}
	rule("all are full", refuse)
	return c
}

// secondChoice is as good as the first, and independent of it; with a hash, a client's
// second backend is always the same, too.
func (p *Pool) secondChoice(seed uint32) ruleset.Expr {
	switch e := p.choice(seed).(type) {
	case ruleset.Hash:
		e.Seed = seed + 1
		return e
	case ruleset.Numgen:
		e.Random = true
		return e
	}
	panic("plan: a choice is a hash or a number")
}

// tryChain takes the connection for a backend, or comes back.
func (p *Pool) tryChain(b model.Backend, proto model.Proto, slot uint32) *ruleset.Chain {
	s := p.Service
	c := &ruleset.Chain{Name: tryChain(s, b, proto)}
	all := serviceLimit(s)
	to := slices.Repeat([]string{overChain(s, p.Family, proto)}, len(all))
	if b.MaxConnections > 0 {
		l := backendLimit(s, b)
		all, to = append(all, l), append(to, fullChain(s, b, proto))
		c.Rules = append(c.Rules, ruleset.Rule{Comment: "the backend is full", Stmts: []ruleset.Stmt{
			l.isFull(), ruleset.Verdict{Kind: ruleset.ReturnBack}}})
	}
	for i, l := range all { // the service first, as who is too many for that is refused
		c.Rules = append(c.Rules, l.over(ruleset.Verdict{Kind: ruleset.GotoChain, Chain: to[i]}))
	}
	for _, l := range all {
		c.Rules = append(c.Rules, l.last())
	}
	rule := p.ruleFor(c, proto)
	if s.Sticky > 0 {
		rule("remember the client", ruleset.Update{Set: rememberSpec(s, b).Name,
			Key: ruleset.Key{ruleset.Saddr(p.Family)}, Timeout: s.Sticky})
	}
	key := ruleset.Key{ruleset.Const(p.Base + slot)}
	if p.kind == kindPerPort {
		key = append(key, ruleset.DPort)
	}
	rule("the backend takes it", ruleset.DNAT{
		Family: p.Family, To: ruleset.MapGet{Key: key, Map: p.SlotMap}, WithPort: p.kind != kindAddr})
	return c
}

// overChains end a connection that was counted with a service that was full.
func (p *Pool) overChains(proto model.Proto) []*ruleset.Chain {
	s := p.Service
	var out []*ruleset.Chain
	for _, l := range serviceLimit(s) {
		c := &ruleset.Chain{Name: overChain(s, p.Family, proto), Rules: []ruleset.Rule{
			{Comment: l.words + " is full", Stmts: []ruleset.Stmt{l.fill(fullFor)}}}}
		p.ruleFor(c, proto)("one too many", refusal(s.WhenAllDown, proto))
		out = append(out, c)
	}
	return out
}

// probeChains end a connection that was counted with a backend that was full: no other may
// get it any more. All that are full are known as such from then on.
func (p *Pool) probeChains(some []int32, proto model.Proto) []*ruleset.Chain {
	s := p.Service
	var out []*ruleset.Chain
	all := &ruleset.Chain{Name: probeAllChain(s, p.Family, proto)}
	drop := ruleset.Verdict{Kind: ruleset.DropPacket}
	last, why := refusal(s.WhenAllDown, proto), "all are full"
	for _, i := range some {
		b := p.Backends[i]
		if b.MaxConnections == 0 {
			last, why = drop, "others have room: it may come again"
			continue
		}
		l, back := backendLimit(s, b), ruleset.Verdict{Kind: ruleset.ReturnBack}
		probe := &ruleset.Chain{Name: probeChain(s, b, proto), Rules: []ruleset.Rule{
			{Comment: "the backend is full", Stmts: []ruleset.Stmt{l.isFull(), back}},
			l.over(l.fill(fullFor), back),
			{Comment: "it has room: the connection may come again", Stmts: []ruleset.Stmt{drop}},
		}}
		full := &ruleset.Chain{Name: fullChain(s, b, proto), Rules: []ruleset.Rule{
			{Comment: "the backend is full", Stmts: []ruleset.Stmt{l.fill(fullFor)}},
			{Comment: "are all?", Stmts: []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.GotoChain, Chain: all.Name}}},
		}}
		all.Rules = append(all.Rules, ruleset.Rule{Comment: "is it full", Stmts: []ruleset.Stmt{
			ruleset.Verdict{Kind: ruleset.JumpTo, Chain: probe.Name}}})
		out = append(out, full, probe)
	}
	p.ruleFor(all, proto)(why, last)
	return append(out, all)
}

// closingRules look at the packets of TCP connections near their end: the first rules let
// those go that are not the last.
func closingRules(u usage, reply bool) []ruleset.Rule {
	tcp := ruleset.IsProto(model.TCP)
	back := ruleset.Verdict{Kind: ruleset.ReturnBack}
	rules := []ruleset.Rule{
		{Comment: "it begins, or one side closes", Stmts: []ruleset.Stmt{tcp, ruleset.FIN | ruleset.SYN, back}},
		{Comment: "the other side is open still", Stmts: []ruleset.Stmt{
			ruleset.Expires{AtLeast: true, Time: resetBelow}, ruleset.Expires{Time: halfOpenBelow}, back}},
	}
	return append(rules, eachListener(u, closedSpec, "a connection ended", func(f model.Family, set string) []ruleset.Stmt {
		backend := ruleset.Daddr(f)
		if reply {
			backend = ruleset.Saddr(f)
		}
		return []ruleset.Stmt{ruleset.VMap{Key: append(listenedKey(f), backend), Map: set}}
	})...)
}
