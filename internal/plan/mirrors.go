package plan

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// MirrorsTableName is the name of the tables that make copies, one for each family: inet tables
// cannot (net/netfilter/nft_dup_ipv4.c).
const MirrorsTableName = "weir-mirrors"

// Chains and sets of mirrors.
const (
	chainCopiesIn  = "copies-in"  // copies that come in, and what is said of copies
	chainCopiesOut = "copies-out" // copies on their way out
	chainEarlyOut  = "early-out"  // of the table of services: packets of the box's own without conntrack
	chainLocalOut  = "local-out"  // and of the others
	chainEarly     = "early"      // packets before any translation
	chainLate      = "late"       // and after all of it

	setRunning    = "running"    // mirrors that end by themselves, until they do
	setMirrored   = "mirrored"   // counters of mirrors
	setRates      = "rates"      // tokens of limits
	setSent       = "sent"       // copies that found a route, by collector
	setReturned   = "returned"   // copies that came in again, by device
	setErrors     = "errors"     // ICMP errors about copies, which went nowhere
	setCollectors = "collectors" // their addresses
	setSegment    = "segment"    // destinations of packets that stay on one network
	setPorted     = "ported"     // protocols whose packets begin with two ports
)

// mirrorHook is a base chain of mirrors.
type mirrorHook struct {
	hook     ruleset.Hook
	priority int
	why      string
	chain    string
}

// mirrorHooks is where copies are made and recognised. Each packet meets one early and one late
// point: prerouting or output, and postrouting or input.
var mirrorHooks = []mirrorHook{
	{ruleset.Prerouting, -310, "before conntrack (-200) and its helpers' raw rules (-300) hear of a copy that comes in again; fragments are put together (-400)", chainCopiesIn},
	{ruleset.Output, -400, "before anything else of weir's sees a copy: here alone it is known by being untracked, which nothing else is before -300", chainCopiesOut},
	{ruleset.Prerouting, -150, "conntrack knows the connection (-200), nothing is translated yet (-100)", chainEarly},
	{ruleset.Output, -150, "the same for what the box sends", chainEarly},
	{ruleset.Postrouting, 310, "sources are translated (100), helpers are done (300)", chainLate},
	{ruleset.Input, 310, "the same for what the box gets", chainLate},
}

// A copy is told from those that others make (iptables TEE) by a packet mark: the original has
// it while it is copied, and gets back what it had. One that has a mark of its own keeps that.
const copyMark uint32 = 0x77656972

var (
	wholeMark = ruleset.Mark{Mask: 1<<32 - 1}
	hasMark   = ruleset.MarkIs{Mark: wholeMark, Not: true}
)

// What a mirror counts.
const (
	CopiesMade uint32 = iota // copies that the kernel was told to make
	CopiesOver               // packets left out because of the limit
)

// MirrorID returns the number of a mirror: 64 bits out of its name, so that it is the same in
// every plan.
func MirrorID(name string) ruleset.Key {
	h := fnv.New64a()
	h.Write([]byte(name))
	sum := mix(h.Sum64())
	return ruleset.Key{ruleset.Const(uint32(sum >> 32)), ruleset.Const(uint32(sum))}
}

var mirrorIDType = ruleset.Types{ruleset.Integer, ruleset.Integer}

// The sets that do not depend on the file.
var (
	// mirrorRatesSpec: limits to their tokens. Each change of a limit makes another element.
	mirrorRatesSpec = setSpec{Name: setRates, Key: mirrorIDType, Timeout: true, Size: 1024}
	runningSpec     = setSpec{Name: setRunning, Key: mirrorIDType, Timeout: true, Size: 4 * model.MaxMirrors}
	mirroredSpec    = setSpec{Name: setMirrored, Key: append(slices.Clip(mirrorIDType), ruleset.Integer), Counter: true, Size: 1024}
	returnedSpec    = setSpec{Name: setReturned, Key: ruleset.Types{ruleset.IfName}, Counter: true, Size: 1024}
	errorsSpec      = setSpec{Name: setErrors, Key: ruleset.Types{ruleset.Integer}, Counter: true, Size: 16}
)

// sentSpec: copies that found a route, by collector.
func sentSpec(f model.Family) setSpec {
	return setSpec{Name: setSent, Key: ruleset.Types{ruleset.AddrType(f)}, Counter: true, Size: 1024}
}

// MirrorSets are the sets that a reader of counters wants, of family f.
func MirrorSets(f model.Family) (mirrored, sent, returned, errors, running *ruleset.Set) {
	return mirroredSpec.set(), sentSpec(f).set(), returnedSpec.set(), errorsSpec.set(), runningSpec.set()
}

// ErrorTooBig and ErrorOther are the keys of the set errors.
const (
	ErrorTooBig uint32 = iota + 1
	ErrorOther
)

// MirrorKey returns the key of an element of the set running, or with more numbers of the set
// mirrored.
func MirrorKey(name string, more ...uint32) string {
	var b []byte
	for _, e := range MirrorID(name) {
		b = ruleset.AppendInteger(b, e.(ruleset.Numgen).Offset)
	}
	for _, n := range more {
		b = ruleset.AppendInteger(b, n)
	}
	return string(b)
}

// mirrorTables returns the tables that make the copies of cfg, one of a family at most.
func mirrorTables(cfg *model.Config, prev *ruleset.Ruleset) []*ruleset.Table {
	var out []*ruleset.Table
	for _, f := range families {
		var of []*model.Mirror
		for _, m := range cfg.Mirrors {
			if m.Collector(f).IsValid() {
				of = append(of, m)
			}
		}
		if len(of) > 0 {
			t := newMirrorTable(f, cfg, of)
			t.reuse(prev)
			out = append(out, t.Table)
		}
	}
	return out
}

// mirrorTable is a table while it is made.
type mirrorTable struct {
	*ruleset.Table
	f   model.Family
	cfg *model.Config
}

func newMirrorTable(f model.Family, cfg *model.Config, mirrors []*model.Mirror) *mirrorTable {
	t := &mirrorTable{&ruleset.Table{Family: ruleset.TableFamily(f), Name: MirrorsTableName, Copies: true}, f, cfg}
	for _, spec := range []setSpec{runningSpec, mirroredSpec, mirrorRatesSpec, sentSpec(f), returnedSpec, errorsSpec} {
		t.Sets = append(t.Sets, spec.set())
	}
	var collectors, ported []string
	for _, m := range mirrors {
		collectors = append(collectors, string(ruleset.AppendAddr(nil, m.Collector(f))))
		if m.VXLAN.ID != 0 && model.FamilyOf(m.VXLAN.Remote) == f {
			collectors = append(collectors, string(ruleset.AppendAddr(nil, m.VXLAN.Remote)))
		}
	}
	t.tunnels(mirrors)
	for _, p := range portedProtos {
		ported = append(ported, string(ruleset.AppendByte(nil, uint8(p))))
	}
	t.fill(setSpec{Name: setCollectors, Key: ruleset.Types{ruleset.AddrType(f)}}, collectors)
	t.fill(setSpec{Name: setPorted, Key: ruleset.Types{ruleset.Protocol}}, ported)
	t.fillSpans(setSegment, ruleset.Types{ruleset.AddrType(f)}, spanElements("", prefixSpans(segmentOnly, f)))
	t.steered()
	for _, h := range mirrorHooks {
		t.Chains = append(t.Chains, &ruleset.Chain{Name: h.chain + "/" + string(h.hook), Rules: t.baseRules(h, mirrors),
			Base: &ruleset.Base{Type: "filter", Hook: h.hook, Priority: h.priority}})
	}
	for _, m := range mirrors {
		t.mirror(m)
	}
	slices.SortFunc(t.Sets, func(a, b *ruleset.Set) int { return compareNames(a.Name, b.Name) })
	return t
}

// collector says that an address is one of those that get copies, or another end of a tunnel.
func collector(field ruleset.Field) ruleset.InSet {
	return ruleset.InSet{Key: ruleset.Key{field}, Set: setCollectors}
}

// segmentOnly is multicast, broadcast and link-local destinations. The kernel would send a copy of
// IPv6 multicast to the group, and loop it back to the box (ip6_finish_output2).
var segmentOnly = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10")}

var portedProtos = []model.Proto{model.TCP, model.UDP, model.SCTP}

// fill adds a set with those keys, each once.
func (t *mirrorTable) fill(spec setSpec, keys []string) {
	slices.Sort(keys)
	part := &ruleset.Part{}
	for _, k := range slices.Compact(keys) {
		part.Elems = append(part.Elems, ruleset.Element{Key: k})
	}
	s := spec.set()
	s.Parts = []*ruleset.Part{part}
	t.Sets = append(t.Sets, s)
}

// fillSpans adds a set of ranges.
func (t *mirrorTable) fillSpans(name string, key ruleset.Types, elems []ruleset.Element) {
	s := setSpec{Name: name, Key: key, Range: true}.set()
	s.Parts = []*ruleset.Part{{Elems: elems}}
	t.Sets = append(t.Sets, s)
}

// reuse takes chains that are the same from the plan before.
func (t *mirrorTable) reuse(prev *ruleset.Ruleset) {
	if prev == nil {
		return
	}
	old := prev.Table(t.Family, t.Name)
	if old == nil {
		return
	}
	for i, c := range t.Chains {
		t.Chains[i] = sameChain(old.Chains, c)
	}
}

func (t *mirrorTable) baseRules(h mirrorHook, mirrors []*model.Mirror) []ruleset.Rule {
	switch h.chain {
	case chainCopiesIn:
		return append([]ruleset.Rule{
			{Comment: "a copy that comes in again: count it", Stmts: []ruleset.Stmt{ruleset.IsCopy{Family: t.f},
				ruleset.Update{Set: setReturned, Key: ruleset.Key{ruleset.IIFName}}}},
			{Comment: "it is no packet of production", Stmts: []ruleset.Stmt{ruleset.IsCopy{Family: t.f}, drop}},
		}, append(t.tunnelIn(), t.errorRules()...)...)
	case chainCopiesOut:
		copied := func(words string, then ...ruleset.Stmt) ruleset.Rule {
			return ruleset.Rule{Comment: words, Stmts: append([]ruleset.Stmt{ruleset.CtState{States: ruleset.Untracked}, hasMark}, then...)}
		}
		return slices.Concat(t.errorRules(), t.tunnelOut(), []ruleset.Rule{
			copied("a copy: count it", collector(ruleset.NextHop(t.f)), ruleset.Update{Set: setSent, Key: ruleset.Key{ruleset.NextHop(t.f)}}),
			copied("mark it, to be known again", collector(ruleset.NextHop(t.f)), ruleset.MarkCopy{Family: t.f}, ruleset.SetMark{Mark: wholeMark}, accept),
		}, t.sentOn(h), []ruleset.Rule{
			copied("no way to the collector: who routes would send it where the original goes", drop)})
	}
	rules := []ruleset.Rule{
		{Comment: "no copy of a copy", Stmts: []ruleset.Stmt{ruleset.IsCopy{Family: t.f}, accept}},
	}
	rules = append(rules, t.sentOn(h)...)
	// What the box sends to itself passes all four points.
	if h.hook == ruleset.Prerouting || h.hook == ruleset.Postrouting {
		rules = append(rules, ruleset.Rule{Comment: "the box to itself: once is enough", Stmts: []ruleset.Stmt{
			ruleset.OnLoopback{Out: h.hook == ruleset.Postrouting}, accept}})
	}
	for _, m := range mirrors {
		if side := sideAt(m, h.chain); side.wanted(m) && !m.Off {
			rules = append(rules, ruleset.Rule{Comment: side.String() + " for " + m.Name,
				Stmts: []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.JumpTo, Chain: mirrorChain(m, side.String())}}})
		}
	}
	return rules
}

// errorRules keep errors about copies from whose packets were copied: to the sender they would
// be about a packet that arrived.
func (t *mirrorTable) errorRules() []ruleset.Rule {
	count := func(what uint32) ruleset.Update {
		return ruleset.Update{Set: setErrors, Key: ruleset.Key{ruleset.Const(what)}}
	}
	return []ruleset.Rule{
		{Comment: "a copy is too big for its way: count it", Stmts: []ruleset.Stmt{
			ruleset.AboutCopy{Family: t.f, TooBig: true}, count(ErrorTooBig), drop}},
		{Comment: "a copy does not arrive: count it", Stmts: []ruleset.Stmt{
			ruleset.AboutCopy{Family: t.f}, count(ErrorOther), drop}},
	}
}

// side is which packets of a conversation are meant.
type side bool

const (
	requestSide side = false
	answerSide  side = true
)

func (s side) String() string {
	return map[side]string{requestSide: "requests", answerSide: "answers"}[s]
}

func (s side) wanted(m *model.Mirror) bool {
	return s == requestSide && m.Match.Requests || s == answerSide && m.Match.Answers
}

// sideAt returns which packets look at a point as the mirror wants to see them.
func sideAt(m *model.Mirror, chain string) side { return side((chain == chainLate) != m.Backend) }

func mirrorChain(m *model.Mirror, what string) string { return "mirror/" + m.Name + "/" + what }

// mirror adds what a mirror needs for itself.
func (t *mirrorTable) mirror(m *model.Mirror) {
	t.matchSets(m)
	for _, s := range []side{requestSide, answerSide} {
		if s.wanted(m) {
			t.add(mirrorChain(m, s.String()), t.sideRules(m, s))
			if m.Sampled() && !m.Packets {
				t.add(mirrorChain(m, "sample-"+s.String()), t.sampleRules(m, s))
			}
		}
	}
	t.add(mirrorChain(m, "copy"), t.copyRules(m))
}

func (t *mirrorTable) add(name string, rules []ruleset.Rule) {
	t.Chains = append(t.Chains, &ruleset.Chain{Name: name, Rules: rules})
}

// sideRules find the packets of one side. Connections that are translated are told by conntrack,
// which is right about them; of the others all points see the same packet, so that what one of
// them copies as a request no other copies as an answer.
func (t *mirrorTable) sideRules(m *model.Mirror, s side) []ruleset.Rule {
	direction := func(of side) ruleset.Match {
		return ruleset.Match{Field: ruleset.CtDirection, Value: uint8(b2u(bool(of)))}
	}
	found := ruleset.Verdict{Kind: ruleset.GotoChain, Chain: mirrorChain(m, "copy")}
	if m.Sampled() && !m.Packets {
		found.Chain = mirrorChain(m, "sample-"+s.String())
	}
	back := ruleset.Verdict{Kind: ruleset.ReturnBack}
	rules := []ruleset.Rule{{Comment: "translated: the other way", Stmts: []ruleset.Stmt{ruleset.Translated{}, direction(!s), back}}}
	matches := t.matches(m, s)
	each := func(words string, before []ruleset.Stmt, matches [][]ruleset.Stmt, v ruleset.Verdict) {
		for _, match := range matches {
			rules = append(rules, ruleset.Rule{Comment: words, Stmts: slices.Concat(before, match, []ruleset.Stmt{v})})
		}
	}
	if s == answerSide && m.Match.Requests && len(m.Match.Devices) == 0 {
		each("translated: an answer", []ruleset.Stmt{ruleset.Translated{}}, matches, found)
		rules = append(rules, ruleset.Rule{Comment: "translated: another", Stmts: []ruleset.Stmt{ruleset.Translated{}, back}})
		each("a request is copied as such", nil, t.matches(m, requestSide), back)
	}
	each("copy it", nil, matches, found)
	return rules
}

func b2u(b bool) int {
	if b {
		return 1
	}
	return 0
}

// copyRules make the copy, unless the mirror has ended or has made enough.
func (t *mirrorTable) copyRules(m *model.Mirror) []ruleset.Rule {
	id, back := MirrorID(m.Name), ruleset.Verdict{Kind: ruleset.ReturnBack}
	count := func(what uint32) ruleset.Update {
		return ruleset.Update{Set: setMirrored, Key: append(slices.Clip(id), ruleset.Const(what))}
	}
	// These are asked last, for packets that would be copied: most are not.
	rules := []ruleset.Rule{
		{Comment: "no copy of what a collector sends", Stmts: []ruleset.Stmt{collector(ruleset.Saddr(t.f)), back}},
		{Comment: "or gets", Stmts: []ruleset.Stmt{collector(ruleset.Daddr(t.f)), back}},
		{Comment: "nor of what is for one network", Stmts: []ruleset.Stmt{
			ruleset.InSet{Key: ruleset.Key{ruleset.Daddr(t.f)}, Set: setSegment}, back}},
	}
	if m.For > 0 {
		rules = append(rules, ruleset.Rule{Comment: "it has ended", Stmts: []ruleset.Stmt{ruleset.NotInSet{Key: id, Set: setRunning}, back}})
	}
	if m.Sampled() && m.Packets {
		rules = append(rules, ruleset.Rule{Comment: "not in the sample", Stmts: []ruleset.Stmt{
			ruleset.Below{Expr: ruleset.Numgen{Mod: m.Of}, N: m.Take, AtLeast: true}, back}})
	}
	// Counting is a rule of its own: a set that is full must not keep the copy from being made.
	copied := []ruleset.Rule{{Comment: "count it", Stmts: []ruleset.Stmt{count(CopiesMade)}},
		{Comment: "the copy, which takes a mark along", Stmts: []ruleset.Stmt{ruleset.MarkIs{Mark: wholeMark},
			ruleset.SetMark{Mark: wholeMark, Value: copyMark}, ruleset.Dup{To: m.Collector(t.f)}, ruleset.SetMark{Mark: wholeMark}}},
		{Comment: "the copy of a packet that has one", Stmts: []ruleset.Stmt{hasMark, ruleset.Dup{To: m.Collector(t.f)}}}}
	if m.Rate == 0 {
		return append(rules, copied...)
	}
	under := mirrorChain(m, "under-limit")
	t.add(under, copied)
	return append(rules,
		ruleset.Rule{Comment: "not enough yet", Stmts: []ruleset.Stmt{rateOf(m), ruleset.Verdict{Kind: ruleset.GotoChain, Chain: under}}},
		ruleset.Rule{Comment: "enough: leave it out", Stmts: []ruleset.Stmt{count(CopiesOver)}})
}

// rateOf takes a token of the mirror's limit: a tenth of a unit's worth at once, for packets come
// in bursts. An element keeps the rate that it was made with, so that is a part of its key. It
// goes when no packet has come for as long as it takes to be full again.
func rateOf(m *model.Mirror) ruleset.RateUnder {
	burst := max(1, m.Rate/10)
	refill := m.Unit * time.Duration(burst) / time.Duration(m.Rate)
	return ruleset.RateUnder{Set: setRates, Key: MirrorID(m.Name + "\x00" + m.RateText()), Rate: uint32(m.Rate), Unit: m.Unit,
		Burst: uint32(burst), Timeout: (refill + 2*time.Second - 1).Truncate(time.Second)}
}

// ruleset returns the plan's rules; nil of no plan.
func (p *Plan) ruleset() *ruleset.Ruleset {
	if p == nil {
		return nil
	}
	return p.Ruleset
}

// leaveOutCopies keeps copies from being counted as packets of the box's own services: they pass
// output too, and are of no connection by which others are told apart.
func leaveOutCopies(chains []*ruleset.Chain) {
	for _, c := range chains {
		if c.Name != chainLocalOut && c.Name != chainEarlyOut {
			continue
		}
		var rules []ruleset.Rule
		for _, f := range families {
			rules = append(rules, ruleset.Rule{Comment: "a copy", Stmts: []ruleset.Stmt{ruleset.IsFamily(f), ruleset.IsCopy{Family: f}, accept}})
		}
		c.Rules = append(rules, c.Rules...)
	}
}
