package config

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
	"weir/internal/steer/match"
)

// steerReader is what the checks of a steered service need beside those of any service.
type steerReader struct {
	targets map[string]int   // name to index
	tos     []steerTo        // of rules and of default, until all targets are known
	names   map[string]int   // rules: name to line
	queues  place            // where the key is there
	count   int              // of queues whose numbers weir gives; 0: they are said
	listed  map[identity]int // line in which a backend was first given
	packets saidKey          // the key, where it is there
}

// steerTo is the name of a target, and where the index of it belongs.
type steerTo struct {
	index *int
	name  string
	place
}

// steeredAt is a steered service whose queues are to be numbered.
type steeredAt struct {
	s     *model.Service
	at    place
	count int
}

// steeringEntry reads one entry of steering.
func (d *decoder) steeringEntry(w where, n yaml.Node) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want an entry with the keys %s", describe(n), strings.Join(steeringAllowed, ", "))
		return
	}
	r := &serviceReader{decoder: d, w: w, at: n.Pos(), s: &model.Service{Balance: model.Maglev,
		Steering: &model.Steering{Queues: model.QueueRange{First: model.FirstQueue, Last: model.FirstQueue}}}}
	r.steer = steerReader{targets: map[string]int{}, names: map[string]int{}, listed: map[identity]int{}, count: 1,
		queues: place{n.Pos(), w}}
	var has struct{ name, listen, targets bool }
	for k, v := range n.Pairs() {
		r.said = append(r.said, saidKey{k.Text(), k.Pos(), r.w.in(k.Text()), v})
		switch w := r.w.in(k.Text()); k.Text() {
		case "name":
			has.name = true
			r.name(v, w)
		case "listen":
			has.listen = true
			r.listen(v, w)
		case "targets":
			has.targets = true
			r.steerTargets(v, w)
		default:
			r.steeringOption(k, v, w)
		}
	}
	r.missing(has.name, "name", "want a name, such as name: sip")
	r.missing(has.listen, "listen", `want an address, such as listen: "198.51.100.20:5060/udp"`)
	r.missing(has.targets, "targets", "want at least one group of backends, such as targets: {all: [10.1.1.1, 10.1.1.2]}")
	d.addListens(r.listenAt)
	r.resolveTargets()
	r.checkPackets()
	r.checkForward()
	if !r.broken {
		r.check()
		r.checkDefaultTarget()
		if !r.unsure {
			r.checkHealth()
		}
	}
	d.steered = append(d.steered, steeredAt{r.s, r.steer.queues, r.steer.count})
}

// steeringOption reads a key that has a default.
func (r *serviceReader) steeringOption(k, v yaml.Node, w where) {
	st := r.s.Steering
	switch key := k.Text(); key {
	case "packets":
		if _, ok := r.word(v, w, packetsWords); ok {
			r.steer.packets = saidKey{key, k.Pos(), w, v}
		}
	case "forward":
		i, ok := r.word(v, w, steerForwards)
		r.broken = r.broken || !ok
		if i == 1 {
			r.s.Forward = model.ForwardDirect
		}
	case "rules":
		r.steerRules(v, w)
	case "default":
		if s, ok := r.str(v, w, "the name of a target"+inQuotes); ok {
			r.steer.tos = append(r.steer.tos, steerTo{&st.Default, s, place{v.Pos(), w}})
		}
	case "when_absent":
		i, _ := r.word(v, w, model.AbsentNames())
		st.Absent = model.Absent(i)
	case "queues":
		r.steerQueues(v, w)
	case "balance":
		if i, ok := r.word(v, w, steerBalances); ok && i == 1 {
			r.s.Balance = model.Source
		}
	case "when_all_down":
		i, _ := r.word(v, w, steerDownWords)
		r.s.WhenAllDown = model.AllDown(i)
	case "source", "assign", "check", "slow_start", "on_down", "in":
		r.option(k, v, w)
	default:
		r.unknown(k, r.w, steeringAllowed)
	}
}

// checkPackets sees that which packets are asked about fits how they are forwarded: a choice is
// kept in the connection's mark, and conntrack sees translated connections alone.
func (r *serviceReader) checkPackets() {
	switch p := r.steer.packets; {
	case p.name == "":
	case r.s.Direct() && p.value.Text() == packetsWords[0]:
		r.add(p.value.Pos(), p.w, packetsWords[0], "nothing is remembered of connections with forward: direct, so weir must look at each packet; allowed: all")
	case !r.s.Direct() && p.value.Text() == packetsWords[1]:
		r.add(p.value.Pos(), p.w, packetsWords[1], "weir looks at each packet with forward: direct alone; a translated connection keeps its backend; allowed: first")
	}
}

// The words of keys, in the order of the model's constants.
var (
	steerForwards  = []string{model.ForwardNAT.String(), model.ForwardDirect.String()}
	packetsWords   = []string{"first", "all"}
	steerBalances  = []string{model.Maglev.String(), model.Source.String()}
	steerDownWords = []string{model.Reject.String(), model.Drop.String()}
)

const queuesForm = `a number of queues from 1 to 64, or their numbers, such as "100-103"`

// steerQueues reads how many queues there are, or which.
func (r *serviceReader) steerQueues(n yaml.Node, w where) {
	r.steer.queues = place{n.Pos(), w}
	if n.Kind() == yaml.Int {
		r.steer.count = max(1, int(r.number(n, w, 1, model.MaxQueues)))
		return
	}
	s, ok := r.str(n, w, queuesForm)
	if !ok {
		return
	}
	first, last, isRange := strings.Cut(s, "-")
	lo, err1 := strconv.ParseUint(first, 10, 16)
	hi, err2 := strconv.ParseUint(last, 10, 16)
	if !isRange || errors.Join(err1, err2) != nil || !digits(first, 5) || !digits(last, 5) || hi < lo || hi-lo >= model.MaxQueues {
		r.addf(n, w, "%s is not allowed; want %s", quote(s), queuesForm)
		return
	}
	r.steer.count = 0
	r.s.Steering.Queues = model.QueueRange{First: uint16(lo), Last: uint16(hi)}
}

// steerTargets reads the groups of backends.
func (r *serviceReader) steerTargets(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping || n.Len() == 0 {
		r.broken = true
		what := describe(n)
		if n.Kind() == yaml.Mapping {
			what = "a mapping without entries"
		}
		r.addf(n, w, "%s is not allowed; want at least one group of backends, such as {all: [10.1.1.1, 10.1.1.2]}", what)
		return
	}
	for k, v := range n.Pairs() {
		name := k.Text()
		w := r.w.in("targets." + name)
		if why := badName(name); why != "" {
			r.broken = true
			r.addf(k, r.w.in("targets"), "%s is not a name: %s", quote(name), why)
			continue
		}
		if v.Kind() != yaml.Sequence || v.Len() == 0 {
			r.broken = true
			r.addf(v, w, "%s is not allowed; want a list of backends, at least one", describeList(v))
			continue
		}
		if len(r.s.Backends)+v.Len() > model.MaxBackends {
			r.broken = true
			r.addf(v, w, "more than %d backends in all targets", model.MaxBackends)
			return
		}
		t := model.SteerTarget{Name: name}
		for j, c := range v.Items() {
			r.steerMember(&t, c, w.at(j))
		}
		r.steer.targets[name] = len(r.s.Steering.Targets)
		r.s.Steering.Targets = append(r.s.Steering.Targets, t)
	}
}

// describeList is describe for what should be a list with entries.
func describeList(n yaml.Node) string {
	if n.Kind() == yaml.Sequence {
		return "a list without entries"
	}
	return describe(n)
}

// steerMember reads a backend of a target. One that is in several has to be the same in all.
func (r *serviceReader) steerMember(t *model.SteerTarget, n yaml.Node, w where) {
	last := len(r.s.Backends)
	if r.backend(n, w); len(r.s.Backends) == last {
		return
	}
	b := r.s.Backends[last]
	id := identity{b.Addr, b.Ports}
	at := slices.IndexFunc(r.s.Backends[:last], func(o model.Backend) bool { return id == identity{o.Addr, o.Ports} })
	switch place := r.backendAt[last]; {
	case b.Backup:
		r.broken = true
		r.add(place.at, place.w, b.ID(), "a backend of steering is no backup; want another rule, or leave backup out")
	case b.MaxConnections != 0:
		r.broken = true
		r.add(place.at, place.w, b.ID(), "max_connections is not for backends of steering")
	case at < 0:
		r.steer.listed[id] = n.Pos().Line
		t.Members = append(t.Members, last)
		return
	case slices.Contains(t.Members, at):
		r.twin(at, last)
	case b.Weight != r.s.Backends[at].Weight || !b.Check.Equal(r.s.Backends[at].Check):
		r.broken = true
		r.add(place.at, place.w, b.ID(), fmt.Sprintf("backend %s has another weight or check than in line %d; it is the same backend, in each target", b.ID(), r.steer.listed[id]))
	default:
		t.Members = append(t.Members, at)
	}
	r.s.Backends, r.backendAt = r.s.Backends[:last], r.backendAt[:last]
	delete(r.checkAt, last)
}

// steerRules reads the rules.
func (r *serviceReader) steerRules(n yaml.Node, w where) {
	switch {
	case n.Kind() != yaml.Sequence:
		r.addf(n, w, "%s is not allowed; want a list of rules, such as [{sources: [10.0.0.0/8], to: inner}]", describe(n))
		return
	case n.Len() > model.MaxSteerRules:
		r.addf(n, w, "%d rules; allowed: up to %d", n.Len(), model.MaxSteerRules)
		return
	}
	r.s.Steering.Rules = make([]model.SteerRule, n.Len()) // tos point into it
	for j, c := range n.Items() {
		r.steerRule(&r.s.Steering.Rules[j], j, c, w.at(j))
	}
}

func (r *serviceReader) steerRule(rule *model.SteerRule, j int, n yaml.Node, w where) {
	rule.Name = fmt.Sprintf("rules[%d]", j)
	if n.Kind() != yaml.Mapping {
		r.addf(n, w, "%s is not allowed; want a rule with the keys %s", describe(n), strings.Join(steerRuleAllowed, ", "))
		return
	}
	to := false
	for k, v := range n.Pairs() {
		switch w := w.of(k.Text()); k.Text() {
		case "name":
			r.steerName(rule, v, w)
		case "priority":
			rule.Priority = int(r.number(v, w, 0, 65535))
		case "protocols":
			r.steerProtos(rule, v, w)
		case "sources":
			rule.Sources = r.prefixes(v, w)
		case "destinations":
			rule.Destinations = r.prefixes(v, w)
		case "source_ports":
			rule.SourcePorts = r.steerPorts(v, w)
		case "destination_ports":
			rule.Ports = r.steerPorts(v, w)
		case "bytes":
			r.steerBytes(rule, v, w)
		case "to":
			to = true
			if s, ok := r.str(v, w, "the name of a target"+inQuotes); ok {
				r.steer.tos = append(r.steer.tos, steerTo{&rule.To, s, place{v.Pos(), w}})
			}
		default:
			r.unknown(k, w.of(""), steerRuleAllowed)
		}
	}
	if !to {
		r.addf(n, w, "key to is missing; want the name of a target")
	}
}

func (r *serviceReader) steerName(rule *model.SteerRule, n yaml.Node, w where) {
	s, ok := r.str(n, w, "a name"+inQuotes)
	if !ok {
		return
	}
	switch line, why := r.steer.names[s], badName(s); {
	case why != "":
		r.addf(n, w, "%s is not a name: %s", quote(s), why)
	case s == defaultRule:
		r.addf(n, w, "%s stands for packets that no rule wants; want another name", quote(s))
	case line != 0:
		r.addf(n, w, "name %s is there twice; it was first given in line %d", quote(s), line)
	default:
		r.steer.names[s] = n.Pos().Line
		rule.Name = s
	}
}

// defaultRule names, in counters, what stands behind all rules.
const defaultRule = "default"

func (r *serviceReader) steerProtos(rule *model.SteerRule, n yaml.Node, w where) {
	r.oneOrEach(n, w, "tcp, udp, sctp", func(n yaml.Node, w where) {
		i, ok := r.word(n, w, []string{"tcp", "udp", "sctp"})
		switch {
		case !ok:
		case slices.Contains(rule.Protos, protos[i].proto):
			r.addf(n, w, "%s is there twice", n.Text())
		default:
			rule.Protos = append(rule.Protos, protos[i].proto)
		}
	})
}

const portsForm = `ports and ranges, such as 5060 or "1024-65535"`

// steerPorts reads ports and ranges, none of which is in another.
func (r *serviceReader) steerPorts(n yaml.Node, w where) []model.PortRange {
	var out []model.PortRange
	r.oneOrEach(n, w, portsForm, func(n yaml.Node, w where) {
		s := n.Text()
		if n.Kind() != yaml.Int {
			var ok bool
			if s, ok = r.str(n, w, portsForm); !ok {
				return
			}
		}
		p, why := parsePorts(s)
		if i := slices.IndexFunc(out, p.Overlaps); why == "" && i >= 0 {
			why = fmt.Sprintf("%s and %s of the same list overlap", p, out[i])
		}
		if why != "" {
			r.addf(n, w, "%s; want %s", why, portsForm)
			return
		}
		out = append(out, p)
	})
	return out
}

func (r *serviceReader) steerBytes(rule *model.SteerRule, n yaml.Node, w where) {
	s, ok := r.str(n, w, `conditions such as "udp[8:4] = 0x494e5649"`)
	if !ok {
		return
	}
	var err error
	var syntax *match.SyntaxError
	if rule.Bytes, err = match.Parse(s); errors.As(err, &syntax) {
		r.add(n.Inside(syntax.Column-1), w, s, syntax.Reason)
	}
}

// resolveTargets finds the targets that rules name.
func (r *serviceReader) resolveTargets() {
	for _, t := range r.steer.tos {
		i, ok := r.steer.targets[t.name]
		if !ok && len(r.s.Steering.Targets) > 0 {
			var names []string
			for _, o := range r.s.Steering.Targets {
				names = append(names, o.Name)
			}
			r.broken = true
			r.add(t.at, t.w, t.name, fmt.Sprintf("there is no target %s; allowed: %s", quote(t.name), strings.Join(names, ", ")))
		}
		*t.index = i
	}
}

// checkDefaultTarget wants backends of each family in the target for what no rule wants.
func (r *serviceReader) checkDefaultTarget() {
	t := r.s.Steering.Targets[r.s.Steering.Default]
	for _, f := range r.s.Families() {
		if !slices.ContainsFunc(t.Members, func(i int) bool { b := r.s.Backends[i]; return b.Family() == f && b.Weight > 0 }) {
			r.add(r.at, r.w.in("targets."+t.Name), "", fmt.Sprintf("target %s, which gets what no rule wants, has no %s backend with weight, but the service listens on %s", t.Name, familyName(f), familyName(f)))
		}
	}
}

// finishSteering numbers the queues, sees that the marks fit, and puts steered services
// behind the others.
func (d *decoder) finishSteering() {
	var taken []steeredAt
	for _, e := range d.steered {
		for _, o := range taken {
			if e.count == 0 && e.s.Steering.Queues.Overlaps(o.s.Steering.Queues) {
				q := o.s.Steering.Queues
				d.add(e.at.at, e.at.w, "", fmt.Sprintf("queues %d-%d are in use by %s", q.First, q.Last, o.s.Name))
			}
		}
		if e.count == 0 {
			taken = append(taken, e)
		}
	}
	for _, e := range d.steered {
		if e.count > 0 {
			e.s.Steering.Queues = freeQueues(taken, e.count)
			taken = append(taken, e)
		}
	}
	members := map[string]bool{}
	for _, e := range d.steered {
		for _, b := range e.s.Backends {
			members[b.ID()] = true
		}
		d.cfg.Services = append(d.cfg.Services, e.s)
	}
	// A mark for each, two beside them (nobody to choose, chosen by the kernel), and 0 for none.
	if have, want := bits.OnesCount32(d.cfg.MarkMask), bits.Len(uint(len(members)+model.SteerMarks)); len(members) > 0 && want > have {
		at := d.steered[0].at
		d.add(at.at, top("mark_mask"), "", fmt.Sprintf("%d backends of steering need %d bits of marks, and mark_mask 0x%08x has %d", len(members), want, d.cfg.MarkMask, have))
	}
}

// freeQueues returns the first stretch of queues that nobody has.
func freeQueues(taken []steeredAt, count int) model.QueueRange {
	q := model.QueueRange{First: model.FirstQueue, Last: model.FirstQueue + uint16(count) - 1}
	for {
		i := slices.IndexFunc(taken, func(o steeredAt) bool { return o.s.Steering.Queues.Overlaps(q) })
		if i < 0 {
			return q
		}
		q.First = taken[i].s.Steering.Queues.Last + 1
		q.Last = q.First + uint16(count) - 1
	}
}
