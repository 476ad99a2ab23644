package configtest

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"weir/internal/model"
	"weir/internal/steer/match"
)

// steering adds steered services, with queues and marks that fit.
func (g *generator) steering(cfg *model.Config) {
	n := g.upTo(0, 2, "steered services")
	if n > 0 {
		cfg.MarkMask |= 0x3f00 // for 61 backends
	}
	next := uint16(g.upTo(0, 60000, "first queue"))
	for i := range n {
		s := g.steered(i)
		s.Steering.Queues = model.QueueRange{First: next, Last: next + uint16(g.upTo(0, 3, "more queues"))}
		next = s.Steering.Queues.Last + uint16(g.upTo(1, 3, "gap"))
		cfg.Services = append(cfg.Services, s)
	}
}

func (g *generator) steered(i int) *model.Service {
	s := &model.Service{Name: fmt.Sprintf("steered-%d", i), Balance: pick(g, []model.Balance{model.Maglev, model.Source}, "balance"),
		WhenAllDown: pick(g, []model.AllDown{model.Reject, model.Drop}, "when all down")}
	length := g.upTo(1, 3, "listen range")
	for range g.upTo(1, 3, "listen entries") {
		s.Listen = append(s.Listen, g.listen(length))
	}
	if g.flip("steered directly") {
		s.Forward, s.Untracked, s.WhenAllDown, s.In = model.ForwardDirect, true, model.Drop, []string{"eth0", "eth1"}[:g.upTo(1, 2, "devices")]
		g.backends(s, true, length)
		s.Backends = withoutPorts(s.Backends)
	} else {
		g.source(s)
		g.backends(s, true, length)
	}
	st := &model.Steering{Absent: model.Absent(g.upTo(0, 2, "absent"))}
	s.Steering = st
	for t := range g.upTo(1, 3, "targets") {
		st.Targets = append(st.Targets, model.SteerTarget{Name: fmt.Sprintf("t%d", t)})
	}
	// Members are numbered in the order in which they come; the first target has all of them.
	for b := range s.Backends {
		st.Targets[0].Members = append(st.Targets[0].Members, b)
	}
	for t := 1; t < len(st.Targets); t++ {
		st.Targets[t].Members = rapid.Permutation(st.Targets[0].Members).Draw(g.t, "members")[:g.upTo(1, len(s.Backends), "number")]
	}
	for r := range g.upTo(0, 4, "rules") {
		st.Rules = append(st.Rules, g.steerRule(r, len(st.Targets)))
	}
	return s
}

// withoutPorts returns the backends without ports, each address once, with some weight.
func withoutPorts(list []model.Backend) []model.Backend {
	var out []model.Backend
	for _, b := range list {
		b.Ports, b.Weight = model.PortRange{}, max(1, b.Weight)
		if !slices.ContainsFunc(out, func(o model.Backend) bool { return o.Addr == b.Addr }) {
			out = append(out, b)
		}
	}
	return out
}

var conditionPool = []string{"udp[8:4] & 0xffffff00 = 0x494e5600", "tcp[12:2] & 0x01ff = 0x0002", "ip[8:1] != 1 and udp[0:2] = 5060", "sctp[0:8] = 1"}

func (g *generator) steerRule(i, targets int) model.SteerRule {
	r := model.SteerRule{Name: fmt.Sprintf("rules[%d]", i), To: g.upTo(0, targets-1, "to"), Priority: g.upTo(0, 3, "priority")}
	if g.flip("named") {
		r.Name = fmt.Sprintf("rule-%d", i)
	}
	if g.flip("has protocols") {
		r.Protos = []model.Proto{model.UDP, model.TCP}[:g.upTo(1, 2, "protocols")]
	}
	if g.flip("has sources") {
		r.Sources = g.prefixes(g.o.Families)
	}
	if g.flip("has destinations") {
		r.Destinations = g.prefixes(g.o.Families)
	}
	if g.flip("has source ports") {
		r.SourcePorts = []model.PortRange{{Lo: 1024, Hi: 65535}, {Lo: 53, Hi: 53}}[:g.upTo(1, 2, "source ports")]
	}
	if g.flip("has ports") {
		r.Ports = []model.PortRange{{Lo: 80, Hi: 80}, {Lo: 81, Hi: 90}}[:g.upTo(1, 2, "ports")]
	}
	if g.flip("has bytes") {
		r.Bytes, _ = match.Parse(pick(g, conditionPool, "bytes"))
	}
	return r
}

// steeringText writes the steered services.
func (w *writer) steeringText() string {
	text := "steering:\n"
	for _, s := range w.cfg.Services {
		if s.Steered() {
			text += "  - {" + strings.Join(rapid.Permutation(w.steeredKeys(s)).Draw(w.t, "steering keys"), ", ") + "}\n"
		}
	}
	return text
}

func (w *writer) steeredKeys(s *model.Service) []string {
	st := s.Steering
	keys := []string{"name: " + w.scalar(s.Name), "listen: " + w.scalars(w.listen(s.Listen)),
		fmt.Sprintf("queues: %d-%d", st.Queues.First, st.Queues.Last)}
	optional := func(isDefault bool, key, value string) {
		if !isDefault || w.flip("say "+key) {
			keys = append(keys, key+": "+value)
		}
	}
	if s.Direct() {
		keys = append(keys, "forward: direct", "in: "+w.scalars(s.In))
		optional(true, "packets", "all")
	} else {
		optional(true, "packets", "first")
		optional(true, "forward", "nat")
	}
	optional(s.Balance == model.Maglev, "balance", w.scalar(s.Balance.String()))
	optional(s.WhenAllDown == model.Reject || s.Direct() && s.WhenAllDown == model.Drop, "when_all_down", w.scalar(s.WhenAllDown.String()))
	if !s.Direct() {
		optional(s.Source.Mode == model.SourceKeep, "source", w.sourceText(s))
	}
	optional(st.Absent == model.AbsentHash, "when_absent", w.scalar(st.Absent.String()))
	optional(st.Default == 0, "default", w.scalar(st.Targets[st.Default].Name))
	var targets, rules []string
	for _, t := range st.Targets {
		var members []model.Backend
		for _, i := range t.Members {
			members = append(members, s.Backends[i])
		}
		targets = append(targets, t.Name+": "+w.backends(members))
	}
	keys = append(keys, "targets: {"+strings.Join(targets, ", ")+"}")
	for i, r := range st.Rules {
		rules = append(rules, "{"+strings.Join(rapid.Permutation(w.steerRuleKeys(st, i, r)).Draw(w.t, "rule keys"), ", ")+"}")
	}
	if len(rules) > 0 || w.flip("say rules") {
		keys = append(keys, "rules: ["+strings.Join(rules, ", ")+"]")
	}
	return keys
}

func (w *writer) steerRuleKeys(st *model.Steering, i int, r model.SteerRule) []string {
	keys := []string{"to: " + w.scalar(st.Targets[r.To].Name)}
	if r.Name != fmt.Sprintf("rules[%d]", i) {
		keys = append(keys, "name: "+w.scalar(r.Name))
	}
	if r.Priority != 0 || w.flip("say priority") {
		keys = append(keys, fmt.Sprintf("priority: %d", r.Priority))
	}
	lists := []struct {
		key   string
		items []string
	}{{"protocols", words(r.Protos)}, {"source_ports", words(r.SourcePorts)}, {"destination_ports", words(r.Ports)}}
	for _, l := range lists {
		if len(l.items) > 0 {
			keys = append(keys, l.key+": "+w.scalars(l.items))
		}
	}
	if len(r.Sources) > 0 {
		keys = append(keys, "sources: "+w.prefixText(r.Sources))
	}
	if len(r.Destinations) > 0 {
		keys = append(keys, "destinations: "+w.prefixText(r.Destinations))
	}
	if len(r.Bytes) > 0 {
		keys = append(keys, fmt.Sprintf("bytes: %q", r.Bytes))
	}
	return keys
}

func words[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// checkSteering is Check for the steered services.
func checkSteering(cfg *model.Config) error {
	members := map[string]bool{}
	queues := map[int]bool{}
	for _, s := range cfg.Services {
		if s.Steering == nil {
			continue
		}
		for q := int(s.Steering.Queues.First); q <= int(s.Steering.Queues.Last); q++ {
			if queues[q] {
				return fmt.Errorf("queue %d is there twice", q)
			}
			queues[q] = true
		}
		for i, b := range s.Backends {
			members[b.ID()] = true
			if !slices.ContainsFunc(s.Steering.Targets, func(t model.SteerTarget) bool { return slices.Contains(t.Members, i) }) {
				return fmt.Errorf("backend %s is in no target of %s", b.ID(), s.Name)
			}
		}
		if err := checkSteered(s); err != nil {
			return fmt.Errorf("steering %s: %w", s.Name, err)
		}
	}
	if len(members) > 0 && len(members)+2 >= 1<<bits.OnesCount32(cfg.MarkMask) {
		return fmt.Errorf("%d marks in 0x%x", len(members), cfg.MarkMask)
	}
	return nil
}

func checkSteered(s *model.Service) error {
	st := s.Steering
	if s.Local() || s.Balance != model.Maglev && s.Balance != model.Source || st.Queues.Last < st.Queues.First {
		return fmt.Errorf("forward %s, balance %s, queues %v", s.Forward, s.Balance, st.Queues)
	}
	for _, f := range s.Families() {
		if !slices.ContainsFunc(st.Targets[st.Default].Members, func(i int) bool { return s.Backends[i].Family() == f && s.Backends[i].Weight > 0 }) {
			return fmt.Errorf("the default target has nobody of %s", f)
		}
	}
	names := map[string]bool{"default": true}
	for _, r := range st.Rules {
		if names[r.Name] || r.To < 0 || r.To >= len(st.Targets) || r.Priority < 0 {
			return fmt.Errorf("rule %+v", r)
		}
		names[r.Name] = true
	}
	for _, t := range st.Targets {
		if len(t.Members) == 0 || slices.Max(t.Members) >= len(s.Backends) || slices.Min(t.Members) < 0 {
			return fmt.Errorf("target %+v", t)
		}
	}
	return nil
}
