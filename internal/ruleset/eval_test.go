package ruleset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"weir/internal/flow"
	"weir/internal/model"
)

func packet(src, dst string, p model.Proto) Packet {
	return Packet{Src: addrPortOf(src), Dst: addrPortOf(dst), Proto: p}
}

// mustEnd checks what became of a packet; "" stands for no translation.
func mustEnd(t *testing.T, tr Trace, verdict Outcome, dnat, snat string) {
	t.Helper()
	text := func(valid bool, v fmt.Stringer) string {
		if !valid {
			return ""
		}
		return v.String()
	}
	got := fmt.Sprintf("%s dnat %q snat %q", tr.Verdict, text(tr.DNAT.IsValid(), tr.DNAT), text(tr.SNAT.IsValid(), tr.SNAT))
	want := fmt.Sprintf("%s dnat %q snat %q", verdict, dnat, snat)
	if got != want {
		t.Fatalf("got  %s\nwant %s\n%s", got, want, steps(tr))
	}
}

func steps(tr Trace) string {
	var b strings.Builder
	for _, s := range tr.Steps {
		mark := "-"
		if s.Matched {
			mark = "+"
		}
		fmt.Fprintf(&b, "%s %s %s: %s\n    %s\n    [%s]\n", mark, s.Hook, s.Chain, s.Rule, s.Words, s.Detail)
	}
	return b.String()
}

func TestEvalServices(t *testing.T) {
	own := func(a netip.Addr) bool { return a == addrOf("10.1.3.1") }
	ev := NewEvaluator(fixture())
	for _, c := range []struct {
		name       string
		p          Packet
		verdict    Outcome
		dnat, snat string
	}{
		{"a service", packet("203.0.113.9:40000", "198.51.100.10:80", model.TCP), Accepted, "10.1.1.1:8080", ""},
		{"from the box itself", Packet{Src: addrPortOf("192.0.2.7:40000"), Dst: addrPortOf("198.51.100.10:80"), Proto: model.TCP, Local: true}, Accepted, "10.1.1.1:8080", ""},
		{"IPv6", packet("[2001:db8::9]:40000", "[2001:db8::10]:80", model.TCP), Accepted, "[2001:db8:1::1]:8080", ""},
		{"IPv6, other port", packet("[2001:db8::9]:40000", "[2001:db8::10]:81", model.TCP), Accepted, "", ""},
		{"another address", packet("203.0.113.9:40000", "198.51.100.11:80", model.TCP), Accepted, "", ""},
		{"another protocol", packet("203.0.113.9:40000", "198.51.100.10:80", model.UDP), Accepted, "", ""},
		{"first port of a range", packet("203.0.113.9:40000", "198.51.100.10:8000", model.TCP), Accepted, "10.1.3.1:8000", "192.0.2.1"},
		{"last port of a range", packet("203.0.113.9:40000", "198.51.100.10:8010", model.TCP), Accepted, "10.1.3.1:8010", "192.0.2.1"},
		{"below the range", packet("203.0.113.9:40000", "198.51.100.10:7999", model.TCP), Accepted, "", ""},
		{"above the range", packet("203.0.113.9:40000", "198.51.100.10:8011", model.TCP), Accepted, "", ""},
		{"range, wrong protocol", packet("203.0.113.9:40000", "198.51.100.10:8005", model.UDP), Accepted, "", ""},
		{"backend on the box: no source translation in input", Packet{Src: addrPortOf("203.0.113.9:40000"), Dst: addrPortOf("198.51.100.10:8000"), Proto: model.TCP, ToLocal: own}, Accepted, "10.1.3.1:8000", ""},
		{"no backend, TCP", packet("203.0.113.9:40000", "198.51.100.10:82", model.TCP), RejectedReset, "", ""},
		{"no backend, UDP", packet("203.0.113.9:40000", "198.51.100.10:82", model.UDP), RejectedICMP, "", ""},
		{"no backend, drop", packet("203.0.113.9:40000", "198.51.100.10:83", model.UDP), Dropped, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := ev.Eval(c.p, nil)
			mustEnd(t, tr, c.verdict, c.dnat, c.snat)
			if c.dnat != "" {
				mustEqual(t, "destination as it leaves", tr.Dst, addrPortOf(c.dnat))
				mustEqual(t, "who answers", tr.Conn.ReplySrc, addrPortOf(c.dnat))
			}
			mustEqual(t, "Ruleset.Eval agrees", steps(fixture().Eval(c.p, nil)), steps(tr))
		})
	}
}

func TestEvalHooks(t *testing.T) {
	r := &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir"}}}
	for _, h := range []Hook{Postrouting, Forward, Input, Output, Prerouting} {
		for _, prio := range []int{50, -300, 0} {
			r.Tables[0].Chains = append(r.Tables[0].Chains, &Chain{
				Name: fmt.Sprintf("%s%+d", h, prio), Base: &Base{Type: "filter", Hook: h, Priority: prio}, Rules: []Rule{{}}})
		}
	}
	for _, c := range []struct {
		local, toLocal bool
		want           []Hook
	}{
		{false, false, []Hook{Prerouting, Forward, Postrouting}},
		{false, true, []Hook{Prerouting, Input}},
		{true, false, []Hook{Output, Postrouting}},
		{true, true, []Hook{Output, Postrouting, Prerouting, Input}}, // over the loopback device
	} {
		p := packet("203.0.113.9:40000", "198.51.100.10:80", model.TCP)
		p.Local, p.ToLocal = c.local, func(netip.Addr) bool { return c.toLocal }
		var got, want []string
		for _, s := range r.Eval(p, nil).Steps {
			got = append(got, s.Chain)
		}
		for _, h := range c.want {
			for _, prio := range []int{-300, 0, 50} {
				want = append(want, fmt.Sprintf("%s%+d", h, prio))
			}
		}
		mustEqual(t, fmt.Sprintf("local %v, to local %v", c.local, c.toLocal), strings.Join(got, " "), strings.Join(want, " "))
	}
}

func TestEvalRoundRobin(t *testing.T) {
	ev, state := NewEvaluator(fixture()), &State{}
	for i := range 6 {
		tr := ev.Eval(packet(fmt.Sprintf("203.0.113.9:%d", 40000+i), "198.51.100.10:80", model.TCP), state.Env())
		mustEnd(t, tr, Accepted, []string{"10.1.1.1:8080", "10.1.1.2:8080"}[i%2], "")
	}
	// The counter belongs to the rule: another service starts at its own beginning.
	mustEnd(t, ev.Eval(packet("203.0.113.9:40000", "198.51.100.10:81", model.TCP), state.Env()), Accepted, "10.1.4.1:9090", "")
}

func TestEvalMaglevIsFlow(t *testing.T) {
	ev, table, seen := NewEvaluator(fixture()), dnsTable(), map[string]int{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(rng.Uint32())}), uint16(rng.Uint32()))
		slot := flow.Choose(flow.KeySourcePort(new([flow.KeySize]byte), src.Addr(), src.Port()), seed, dnsMod, 0)
		tr := ev.Eval(Packet{Src: src, Dst: addrPortOf("198.51.100.10:53"), Proto: model.UDP}, nil)
		mustEnd(t, tr, Accepted, table[slot], "")
		mustEqual(t, "the slot in words", strings.Contains(steps(tr), fmt.Sprintf("slot %d (%d) of map addrport4/00", slot, dnsBase+slot)), true)
		seen[table[slot]]++
	}
	mustEqual(t, "backends seen", len(seen), 3)
}

// A field that stands alone is hashed without its padding.
func TestEvalHashOfOneField(t *testing.T) {
	set := &Set{Name: "m", Key: Types{Integer}, Data: Types{IPv4Addr}, Parts: []*Part{{}}}
	for i := range uint32(64) {
		set.Parts[0].Elems = append(set.Parts[0].Elems, Element{Key: keyOf(i), Data: keyOf(fmt.Sprintf("10.0.0.%d", i))})
	}
	ev := func(f Field) *Evaluator {
		return NewEvaluator(&Ruleset{Tables: []*Table{{Family: Inet, Name: "weir", Sets: []*Set{set}, Chains: []*Chain{{
			Name: "p", Base: &Base{Type: "nat", Hook: Prerouting, Priority: -100},
			Rules: []Rule{{Stmts: []Stmt{DNAT{Family: model.IPv4, To: MapGet{Key{Hash{Key{f}, 64, seed, 0}}, "m"}}}}},
		}}}}})
	}
	p := packet("203.0.113.9:40000", "198.51.100.10:80", model.TCP)
	slot := flow.Choose([]byte{203, 0, 113, 9}, seed, 64, 0)
	mustEnd(t, ev(IPSaddr).Eval(p, nil), Accepted, fmt.Sprintf("10.0.0.%d:80", slot), "")
	slot = flow.Choose([]byte{40000 >> 8, 40000 & 255}, seed, 64, 0)
	mustEnd(t, ev(SPort).Eval(p, nil), Accepted, fmt.Sprintf("10.0.0.%d:80", slot), "")
}

func TestEvalSticky(t *testing.T) {
	ev, state := NewEvaluator(fixture()), &State{}
	connect := func(client, want string) Trace {
		t.Helper()
		tr := ev.Eval(packet(client, "198.51.100.10:81", model.TCP), state.Env())
		mustEnd(t, tr, Accepted, want, "")
		state.Keep(tr)
		return tr
	}
	connect("203.0.113.1:40000", "10.1.4.1:9090")
	connect("203.0.113.2:40000", "10.1.4.2:9091")
	connect("203.0.113.2:40001", "10.1.4.2:9091") // a known client does not advance the counter
	connect("203.0.113.1:40001", "10.1.4.1:9090")
	tr := connect("203.0.113.1:40002", "10.1.4.1:9090")
	renewed := 0
	for _, u := range tr.Updates {
		if strings.HasPrefix(u.Set, "sticky-") {
			mustEqual(t, "renewed "+u.Set, u.Renewed, true)
			renewed++
		}
	}
	mustEqual(t, "sticky maps renewed", renewed, 2)
	for _, set := range []string{"sticky-addr4/00", "sticky-port4/00"} {
		state.Forget(set, keyOf(uint32(stkBase), "203.0.113.1"))
	}
	connect("203.0.113.3:40000", "10.1.4.1:9090")
	connect("203.0.113.1:40003", "10.1.4.2:9091") // forgotten: balanced anew
}

// TestEvalLimit: two connections are taken, the second fills the flag, so that the third is
// refused without being counted; after an end, the next is taken.
func TestEvalLimit(t *testing.T) {
	ev, state := NewEvaluator(fixture()), &State{}
	connect := func(port int, verdict Outcome, dnat string, counts int) Trace {
		t.Helper()
		tr := ev.Eval(packet(fmt.Sprintf("203.0.113.1:%d", port), "198.51.100.10:85", model.TCP), state.Env())
		mustEnd(t, tr, verdict, dnat, "")
		mustEqual(t, "counts", len(tr.Counts), counts)
		state.Keep(tr)
		return tr
	}
	connect(40000, Accepted, "10.1.1.1:8080", 2)
	second := connect(40001, Accepted, "10.1.1.1:8080", 2)
	connect(40002, RejectedReset, "", 0)
	state.Forget("full", keyOf(uint32(7), uint32(8))) // the flag ran out
	connect(40003, Dropped, "", 1)
	connect(40004, RejectedReset, "", 0)
	state.Close(second)
	state.Forget("full", keyOf(uint32(7), uint32(8)))
	connect(40005, Accepted, "10.1.1.1:8080", 2)
	connect(40006, RejectedReset, "", 0)
	for range 5 { // without a state, no limit is reached
		mustEnd(t, ev.Eval(packet("203.0.113.1:1", "198.51.100.10:85", model.TCP), nil), Accepted, "10.1.1.1:8080", "")
	}
}

// What a packet's own update added, its later look-ups find; an update keeps data that is there.
func TestEvalUpdateIsSeen(t *testing.T) {
	m := &Set{Name: "m", Key: Types{IPv4Addr}, Data: Types{IPv4Addr}, Dynamic: true}
	table := &Table{Family: Inet, Name: "weir", Sets: []*Set{m}, Chains: []*Chain{{
		Name: "p", Base: &Base{Type: "nat", Hook: Prerouting, Priority: -100},
		Rules: []Rule{
			{Stmts: []Stmt{Update{Set: "m", Key: Key{IPSaddr}, Data: IPDaddr}}},
			{Stmts: []Stmt{Update{Set: "m", Key: Key{IPSaddr}, Data: IPSaddr}}},
			{Stmts: []Stmt{InSet{Key{IPDaddr}, "m"}, Verdict{Kind: DropPacket}}},
			{Stmts: []Stmt{DNAT{Family: model.IPv4, To: MapGet{Key{IPSaddr}, "m"}}}},
		}}}}
	r := &Ruleset{Tables: []*Table{table}}
	p := packet("203.0.113.9:1", "198.51.100.10:80", model.TCP)
	tr := r.Eval(p, nil)
	mustEnd(t, tr, Accepted, "198.51.100.10:80", "")
	mustEqual(t, "DNAT to the same is no translation", (&walk{conn: tr.Conn}).status()&statusDstNAT, 0)
	state := &State{}
	state.Keep(Trace{Updates: []ElemUpdate{{Set: "m", Key: keyOf("203.0.113.9"), Data: keyOf("10.0.0.7")}}})
	mustEnd(t, r.Eval(p, state.Env()), Accepted, "10.0.0.7:80", "")
	state.Keep(Trace{Updates: []ElemUpdate{{Set: "m", Key: keyOf("198.51.100.10"), Data: keyOf("10.0.0.7")}}})
	mustEnd(t, r.Eval(p, state.Env()), Dropped, "", "")
}

func TestEvalHairpin(t *testing.T) {
	ev := NewEvaluator(fixture())
	for client, want := range map[string]bool{"10.1.1.1:40000": true, "10.1.1.2:40000": true, "10.1.1.3:40000": false} {
		tr := ev.Eval(packet(client, "198.51.100.10:80", model.TCP), nil)
		mustEnd(t, tr, Accepted, "10.1.1.1:8080", "")
		mustEqual(t, client+" is masqueraded", tr.Masquerade, want)
	}
}

// An established connection follows its first packet, there and back, without a look at
// the nat chains.
func TestEvalEstablished(t *testing.T) {
	ev, client, listener := NewEvaluator(fixture()), "203.0.113.9:40000", "198.51.100.10:8003"
	first := ev.Eval(packet(client, listener, model.TCP), nil)
	mustEnd(t, first, Accepted, "10.1.3.1:8003", "192.0.2.1")

	next := packet(client, listener, model.TCP)
	next.Conn = &first.Conn
	tr := ev.Eval(next, nil)
	mustEnd(t, tr, Accepted, "10.1.3.1:8003", "192.0.2.1")
	mustEqual(t, "updates of a request", updated(tr), "requests4")

	back := packet("10.1.3.1:8003", "192.0.2.1:40000", model.TCP)
	back.Conn, back.Reply = &first.Conn, true
	tr = ev.Eval(back, nil)
	mustEqual(t, "source of the answer", tr.Src, addrPortOf(listener))
	mustEqual(t, "destination of the answer", tr.Dst, addrPortOf(client))
	mustEqual(t, "updates of an answer", updated(tr), "replies4")

	mustEqual(t, "updates of the first packet", updated(first), "requests4 connections4")
	for _, s := range tr.Steps {
		if s.Chain == "prerouting" || s.Chain == "postrouting" {
			t.Errorf("nat chain %s was asked for an established connection", s.Chain)
		}
	}
}

func updated(tr Trace) string {
	var names []string
	for _, u := range tr.Updates {
		names = append(names, u.Set)
	}
	return strings.Join(names, " ")
}

func TestEvalTraceGolden(t *testing.T) {
	ev := NewEvaluator(fixture())
	var b strings.Builder
	for _, p := range []Packet{
		packet("203.0.113.9:40000", "198.51.100.10:80", model.TCP),
		packet("203.0.113.9:40000", "198.51.100.10:53", model.UDP),
		packet("10.1.1.2:40000", "198.51.100.10:80", model.TCP),
		packet("203.0.113.9:40000", "198.51.100.10:81", model.TCP),
		packet("203.0.113.9:40000", "198.51.100.10:8001", model.TCP),
		packet("203.0.113.9:40000", "198.51.100.10:82", model.TCP),
		packet("203.0.113.9:40000", "192.0.2.200:80", model.TCP),
	} {
		tr := ev.Eval(p, nil)
		fmt.Fprintf(&b, "%s -> %s/%s: %s\n%s\n", p.Src, p.Dst, p.Proto, tr.Verdict, steps(tr))
	}
	golden(t, "traces.txt", b.String())
}

func BenchmarkEval(b *testing.B) {
	ev := NewEvaluator(fixture())
	p := packet("203.0.113.9:40000", "198.51.100.10:80", model.TCP)
	b.ReportAllocs()
	for b.Loop() {
		ev.Eval(p, nil)
	}
}
