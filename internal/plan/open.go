package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Open rules become elements of sets, so that a packet costs a look-up for each shape of
// rule, however many rules there are. A shape is which keys a rule has: rules that say
// `in` and `ports` share one set, those that say `from` and `ports` another. The kernel
// takes no two ranges in a set that overlap; rules of one shape that do are put on several
// sets, one above the other, as few as can be.

// shape is the form of an open rule's elements.
type shape struct {
	box                        bool
	in, out, from, to, traffic bool
	family                     model.Family // 0 where no address is looked at
	// device is the one by which packets leave, where the whole would be too long for the
	// kernel's registers and each device has a set of its own.
	device string
}

func (s shape) fields() []ruleset.Field {
	var out []ruleset.Field
	if s.in {
		out = append(out, ruleset.IIFName)
	}
	if s.out && s.device == "" {
		out = append(out, ruleset.OIFName)
	}
	if s.from {
		out = append(out, ruleset.Saddr(s.family))
	}
	if s.to {
		out = append(out, ruleset.Daddr(s.family))
	}
	if s.traffic {
		out = append(out, ruleset.L4Proto, ruleset.DPort)
	}
	if len(out) == 0 && s.device == "" {
		out = append(out, ruleset.L4Proto) // any: a set must have a key
	}
	return out
}

// all reports whether the shape says nothing at all.
func (s shape) all() bool { return !s.in && !s.out && !s.from && !s.to && !s.traffic }

// name is the name of the set of the shape's elements.
func (s shape) name() string {
	words := []string{}
	for _, w := range []struct {
		has  bool
		word string
	}{{s.in, "in"}, {s.out, "out"}, {s.from, "from"}, {s.to, "to"}, {s.traffic, "ports"}} {
		if w.has {
			words = append(words, w.word)
		}
	}
	name := "open-forward/"
	if s.box {
		name = "open-box/"
	}
	if len(words) == 0 {
		words = []string{"all"}
	}
	name += strings.Join(words, ".")
	if s.family != 0 {
		name += digit(s.family)
	}
	return name
}

// opening is one element and the rule that it belongs to.
type opening struct {
	ruleset.Element
	rule int
}

// openSet is one set of openings, and how it is looked at.
type openSet struct {
	shape shape
	spec  setSpec
	elems []opening
}

// openSets returns the sets of the open rules of e, in the order in which packets meet
// them.
func openSets(e *model.Edge) []openSet {
	shapes := map[shape][]opening{}
	for i, r := range e.Open {
		for _, s := range shapesOf(r) {
			for _, el := range s.elements(r) {
				shapes[s] = append(shapes[s], opening{el, i})
			}
		}
	}
	order := make([]shape, 0, len(shapes))
	for s := range shapes {
		order = append(order, s)
	}
	slices.SortFunc(order, func(a, b shape) int {
		return cmp.Or(strings.Compare(a.name(), b.name()), strings.Compare(a.device, b.device))
	})
	var out []openSet
	number := map[string]int{} // of sets with that name
	for _, s := range order {
		for _, elems := range layers(s, shapes[s]) {
			o := openSet{shape: s, spec: s.spec(), elems: elems}
			if n := number[s.name()]; n > 0 {
				o.spec.Name += fmt.Sprintf("/%d", n)
			}
			number[s.name()]++
			out = append(out, o)
		}
	}
	return out
}

func (s shape) spec() setSpec {
	spec := setSpec{Name: s.name(), Counter: true}
	for _, f := range s.fields() {
		spec.Key = append(spec.Key, f.Type())
	}
	spec.Range = s.from || s.to || s.traffic || s.all()
	return spec
}

// shapesOf returns the shapes of a rule: one, or one for each family and device.
func shapesOf(r *model.OpenRule) []shape {
	s := shape{box: r.Box, in: len(r.In) > 0, out: len(r.Out) > 0, from: len(r.From) > 0, to: len(r.To) > 0, traffic: len(r.Traffic) > 0}
	out := []shape{s}
	if s.from || s.to {
		out = nil
		for _, f := range r.Families() {
			s.family = f
			out = append(out, s)
		}
	}
	if s.in && s.out && s.from && s.to && s.traffic {
		all := out
		out = nil
		for _, s := range all {
			for _, d := range r.Out {
				s.device = d
				out = append(out, s)
			}
		}
	}
	return out
}

// span is the first and the last value of a field.
type span struct{ lo, hi string }

// elements returns the elements of a rule in the shape: every combination of what it says.
func (s shape) elements(r *model.OpenRule) []ruleset.Element {
	all := []span{{}}
	extend := func(with []span) {
		next := make([]span, 0, len(all)*len(with))
		for _, a := range all {
			for _, w := range with {
				next = append(next, span{a.lo + w.lo, a.hi + w.hi})
			}
		}
		all = next
	}
	if s.in {
		extend(deviceSpans(r.In))
	}
	if s.out && s.device == "" {
		extend(deviceSpans(r.Out))
	}
	if s.from {
		extend(prefixSpans(r.From, s.family))
	}
	if s.to {
		extend(prefixSpans(r.To, s.family))
	}
	if s.traffic {
		extend(trafficSpans(r.Traffic))
	}
	if s.all() {
		extend([]span{{string(ruleset.AppendByte(nil, 0)), string(ruleset.AppendByte(nil, 255))}})
	}
	out := make([]ruleset.Element, len(all))
	for i, a := range all {
		out[i] = ruleset.Element{Key: a.lo}
		if a.hi != a.lo {
			out[i].KeyEnd = a.hi
		}
	}
	return out
}

func deviceSpans(list []string) []span {
	out := make([]span, len(list))
	for i, d := range list {
		v := string(ruleset.AppendDevice(nil, d))
		out[i] = span{v, v}
	}
	return out
}

func prefixSpans(list []netip.Prefix, f model.Family) []span {
	var out []span
	for _, p := range list {
		if model.FamilyOf(p.Addr()) == f {
			out = append(out, span{string(ruleset.AppendAddr(nil, p.Addr())), string(ruleset.AppendAddr(nil, lastAddr(p)))})
		}
	}
	return out
}

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func trafficSpans(list []model.Traffic) []span {
	out := make([]span, len(list))
	for i, t := range list {
		if t.Ports.IsZero() {
			t.Ports.Hi = 1<<16 - 1 // what stands there, in a protocol without ports, does not matter
		}
		proto := ruleset.AppendByte(nil, uint8(t.Proto))
		at := func(port uint16) string { return string(ruleset.AppendPort(proto[:4:4], port)) }
		out[i] = span{at(t.Ports.Lo), at(t.Ports.Hi)}
	}
	return out
}

func (o *opening) end() string { return cmp.Or(o.KeyEnd, o.Key) }

// layers spreads elements over as few sets as can be found at one go, so that no two of a
// set overlap. It sweeps over the field in which elements differ most: what overlaps an
// element is then among the few that reach it.
func layers(s shape, elems []opening) [][]opening {
	at, size := s.sweep()
	lo := func(o *opening) string { return o.Key[at : at+size] }
	hi := func(o *opening) string { return o.end()[at : at+size] }
	slices.SortFunc(elems, func(a, b opening) int {
		return cmp.Or(strings.Compare(lo(&a), lo(&b)), strings.Compare(hi(&b), hi(&a)),
			strings.Compare(a.Key, b.Key), strings.Compare(b.end(), a.end()), a.rule-b.rule)
	})
	type seated struct {
		*opening
		layer int
	}
	var active []seated
	var out [][]opening
	var taken []bool
	types := s.spec().Key
	for i := range elems {
		e := &elems[i]
		active = slices.DeleteFunc(active, func(a seated) bool { return hi(a.opening) < lo(e) })
		taken = append(taken[:0], make([]bool, len(out)+1)...)
		for _, a := range active {
			if overlap(types, a.opening, e) {
				taken[a.layer] = true
			}
		}
		layer := slices.Index(taken, false)
		if layer == len(out) {
			out = append(out, nil)
		}
		out[layer] = append(out[layer], *e)
		active = append(active, seated{e, layer})
	}
	return out
}

// sweep returns the place of the field to sweep over: an address where there is one.
func (s shape) sweep() (at, size int) {
	fields := s.fields()
	for i, f := range fields {
		if size = f.Type().Padded(); f == ruleset.IPSaddr || f == ruleset.IP6Saddr || f == ruleset.IPDaddr || f == ruleset.IP6Daddr {
			return at, size
		}
		if i < len(fields)-1 {
			at += size
		}
	}
	return at, size
}

// overlap reports whether some packet is in both.
func overlap(types ruleset.Types, a, b *opening) bool {
	at := 0
	for _, t := range types {
		to := at + t.Padded()
		if a.Key[at:to] > b.end()[at:to] || b.Key[at:to] > a.end()[at:to] {
			return false
		}
		at = to
	}
	return true
}

// rule returns the rule that looks into the set.
func (o *openSet) rule() ruleset.Rule {
	var stmts []ruleset.Stmt
	if o.shape.device != "" {
		stmts = append(stmts, ruleset.OutDevice{Name: o.shape.device})
	}
	if o.shape.family != 0 {
		stmts = append(stmts, ruleset.IsFamily(o.shape.family))
	}
	var key ruleset.Key
	for _, f := range o.shape.fields() {
		key = append(key, f)
	}
	return ruleset.Rule{Comment: openWords, Stmts: append(stmts,
		ruleset.InSet{Key: key, Set: o.spec.Name}, ruleset.Verdict{Kind: ruleset.AcceptPacket})}
}

// openWords is the comment of the rules that look at open rules.
const openWords = "open rules"
