package ruleset

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"weir/internal/model"
)

// program is a small ruleset for the semantics of chains: each chain is a line of words.
// A word is a verdict (accept, drop, return, jump:X, goto:X), a mark that is only
// recorded (any other word), or "no" for a match that fails.
func program(base Base, chains map[string]string) *Ruleset {
	t := &Table{Family: Inet, Name: "weir"}
	for _, name := range sortedKeys(chains) {
		c := &Chain{Name: name}
		if name == "base" {
			c.Base = &base
		}
		for _, w := range strings.Fields(chains[name]) {
			c.Rules = append(c.Rules, programRule(w))
		}
		t.Chains = append(t.Chains, c)
	}
	return &Ruleset{Tables: []*Table{t}}
}

func programRule(w string) Rule {
	kind, chain, _ := strings.Cut(w, ":")
	switch VerdictKind(kind) {
	case AcceptPacket, DropPacket, ReturnBack, JumpTo, GotoChain:
		return Rule{Stmts: []Stmt{Verdict{VerdictKind(kind), chain}}}
	}
	if kind == "no" {
		return Rule{Stmts: []Stmt{IsProto(model.SCTP), Verdict{Kind: DropPacket}}}
	}
	return Rule{Comment: w}
}

// marks returns the marks that the packet passed.
func marks(tr Trace) string {
	var out []string
	for _, s := range tr.Steps {
		if s.Rule == "" && strings.HasSuffix(s.Words, ": ") {
			out = append(out, strings.TrimSuffix(s.Words, ": "))
		}
	}
	return strings.Join(out, " ")
}

func TestEvalChains(t *testing.T) {
	for _, c := range []struct {
		name    string
		chains  map[string]string
		want    string
		verdict Outcome
	}{
		{"end is accept", map[string]string{"base": "a b"}, "a b", Accepted},
		{"a failed match goes on", map[string]string{"base": "a no b"}, "a b", Accepted},
		{"accept ends", map[string]string{"base": "a accept b"}, "a", Accepted},
		{"drop ends", map[string]string{"base": "a drop b"}, "a", Dropped},
		{"return in a base chain", map[string]string{"base": "a return b"}, "a", Accepted},
		{"jump comes back at the end", map[string]string{"base": "a jump:x b", "x": "c"}, "a c b", Accepted},
		{"jump comes back by return", map[string]string{"base": "a jump:x b", "x": "c return d"}, "a c b", Accepted},
		{"goto does not come back", map[string]string{"base": "a goto:x b", "x": "c"}, "a c", Accepted},
		{"return after goto", map[string]string{"base": "a goto:x b", "x": "return c"}, "a", Accepted},
		{"jump, goto, end: back to the jump", map[string]string{"base": "a jump:x b", "x": "c goto:y d", "y": "e"}, "a c e b", Accepted},
		{"jump, goto, return: back to the jump", map[string]string{"base": "a jump:x b", "x": "goto:y d", "y": "e return f"}, "a e b", Accepted},
		{"accept deep inside ends all", map[string]string{"base": "a jump:x b", "x": "jump:y c", "y": "d accept"}, "a d", Accepted},
		{"drop deep inside ends all", map[string]string{"base": "a jump:x b", "x": "goto:y c", "y": "d drop"}, "a d", Dropped},
		{"jump twice", map[string]string{"base": "jump:x a jump:x", "x": "b"}, "b a b", Accepted},
		{"a loop drops", map[string]string{"base": "jump:x a", "x": "goto:x"}, "", Dropped},
		{"a chain that is not there drops", map[string]string{"base": "a jump:x b"}, "a", Dropped},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := program(Base{Type: "filter", Hook: Prerouting, Priority: 0}, c.chains).
				Eval(packet("203.0.113.9:1", "198.51.100.10:80", model.TCP), nil)
			mustEqual(t, "marks", marks(tr), c.want)
			mustEqual(t, "verdict", tr.Verdict, c.verdict)
		})
	}
}

// One hook: conntrack, filter chains and translation have their places by priority, and
// of the nat chains those after the first decision are not asked.
func TestEvalPriorities(t *testing.T) {
	set := &Set{Name: "m", Key: Types{Integer}, Data: Types{IPv4Addr}, Parts: []*Part{
		part(Element{Key: keyOf(uint32(0)), Data: keyOf("10.0.0.1")}, Element{Key: keyOf(uint32(1)), Data: keyOf("10.0.0.2")})}}
	dnat := func(n uint32) Stmt { return DNAT{Family: model.IPv4, To: MapGet{Key{Const(n)}, "m"}} }
	base := func(name, typ string, prio int, stmts ...Stmt) *Chain {
		return &Chain{Name: name, Base: &Base{Type: typ, Hook: Prerouting, Priority: prio}, Rules: []Rule{{Stmts: stmts}}}
	}
	r := &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir", Sets: []*Set{set}, Chains: []*Chain{
		base("late", "filter", -99, StatusDNAT{}, Verdict{Kind: AcceptPacket}),
		base("second", "nat", -90, dnat(1)),
		base("early", "filter", -101, StatusDNAT{}, Verdict{Kind: DropPacket}),
		base("first", "nat", -110, dnat(0)),
		base("accepting", "nat", -120, Verdict{Kind: AcceptPacket}),
		base("raw", "filter", -300, Match{CtDirection, 0}, Verdict{Kind: DropPacket}),
	}}}}
	tr := r.Eval(packet("203.0.113.9:1", "198.51.100.10:80", model.TCP), nil)
	mustEnd(t, tr, Accepted, "10.0.0.1:80", "")
	var got []string
	for _, s := range tr.Steps {
		got = append(got, fmt.Sprintf("%s:%v", s.Chain, s.Matched))
	}
	mustEqual(t, "order", strings.Join(got, " "),
		"raw:false early:false accepting:true first:true late:true")
}

// A packet has no fields of the other family: the rule ends, as nft's own check has it.
func TestEvalFieldsOfOtherFamily(t *testing.T) {
	p4 := packet("203.0.113.9:1", "198.51.100.10:80", model.TCP)
	p6 := packet("[2001:db8::9]:1", "[2001:db8::10]:80", model.TCP)
	for _, f := range []struct{ v4, v6 Field }{
		{IPSaddr, IP6Saddr}, {IPDaddr, IP6Daddr}, {CtOrigDaddr4, CtOrigDaddr6}, {CtReplySaddr4, CtReplySaddr6},
	} {
		for _, c := range []struct {
			p    Packet
			f    Field
			want bool
		}{{p4, f.v4, true}, {p4, f.v6, false}, {p6, f.v4, false}, {p6, f.v6, true}} {
			r := &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir",
				Sets: []*Set{{Name: "s", Key: Types{c.f.Type()}, Dynamic: true}},
				Chains: []*Chain{{Name: "c", Base: &Base{Type: "filter", Hook: Prerouting, Priority: 0},
					Rules: []Rule{{Stmts: []Stmt{Update{Set: "s", Key: Key{c.f}}}}}}}}}}
			tr := r.Eval(c.p, nil)
			mustEqual(t, fmt.Sprintf("%s of %s", Key{c.f}, c.p.Src), len(tr.Updates) == 1, c.want)
		}
	}
}

// A set of ranges finds what comparing every element finds.
func TestEvalRangeLookup(t *testing.T) {
	set := &Set{Name: "r", Key: listener4, Range: true, Parts: []*Part{{}, {}}}
	for i := range 40 {
		addr := fmt.Sprintf("198.51.100.%d", i%7)
		e := Element{Key: keyOf(addr, model.TCP, 100*i), KeyEnd: keyOf(addr, model.TCP, 100*i+i)}
		if i%5 == 0 {
			e.KeyEnd = ""
		}
		set.Parts[i%2].Elems = append(set.Parts[i%2].Elems, e)
	}
	x, hits := &setIndex{set: set}, 0
	for port := range 4100 {
		for i := range 8 {
			key := keyOf(fmt.Sprintf("198.51.100.%d", i), model.TCP, port)
			var want *Element
			for _, p := range set.Parts {
				for j := range p.Elems {
					if set.Key.holds(&p.Elems[j], key) {
						want = &p.Elems[j]
					}
				}
			}
			if got := x.lookup(key); got != want {
				t.Fatalf("port %d, address %d: got %v, want %v", port, i, got, want)
			} else if got != nil {
				hits++
			}
		}
	}
	// Elements 0, 5, 10 … hold one port, element i of the others i+1.
	want := 0
	for i := range 40 {
		if i%5 == 0 {
			want++
		} else {
			want += i + 1
		}
	}
	mustEqual(t, "ports found", hits, want)
}

// A packet of a connection that conntrack has forgotten meets the rules of a new one.
func TestEvalLatePackets(t *testing.T) {
	ev := NewEvaluator(fixture())
	client, vip := "203.0.113.9:40000", "198.51.100.10:84"
	cut := &Env{Dynamic: func(set, key string) (string, bool) {
		return "", set == "resets4" && key == keyOf("203.0.113.9", 40000, "198.51.100.10", 84)
	}}
	late := packet(client, vip, model.TCP)
	late.Late = true
	mustEnd(t, ev.Eval(late, cut), RejectedReset, "", "")
	mustEnd(t, ev.Eval(late, nil), Accepted, "10.1.3.1:84", "")
	mustEnd(t, ev.Eval(packet(client, vip, model.TCP), cut), Accepted, "10.1.3.1:84", "")

	// What the box sends the client in the listener's name is not for conntrack, to
	// which it is invalid.
	nudge := Packet{Src: addrPortOf(vip), Dst: addrPortOf(client), Proto: model.TCP, Local: true, Late: true}
	for env, want := range map[*Env]string{cut: "early", nil: "early output"} {
		var chains []string
		for _, s := range ev.Eval(nudge, env).Steps {
			if s.Hook == Output && !slices.Contains(chains, s.Chain) {
				chains = append(chains, s.Chain)
			}
		}
		mustEqual(t, "chains", strings.Join(chains, " "), want)
	}
}
