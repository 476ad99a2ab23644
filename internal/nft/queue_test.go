package nft

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	rs "weir/internal/ruleset"
)

// markFixture returns what rules do with marks.
func markFixture() (sets []*rs.Set, chains []*rs.Chain) {
	conn, packet := rs.Mark{Conn: true, Mask: 0x0fff0000}, rs.Mark{Mask: 0x0fff0000}
	key := func(v uint32) string { return string(rs.AppendMark(nil, v)) }
	sets = []*rs.Set{
		{Name: "marks", Key: rs.Types{rs.MarkBits}, Verdict: true, Parts: part(
			goTo(key(0x00010000), "mark/1"), goTo(key(0x0fff0000), "mark/2"))},
		{Name: "marked4", Key: rs.Types{rs.MarkBits}, Data: rs.Types{rs.IPv4Addr, rs.Port}, Parts: part(
			kv(key(0x00010000), pack("10.1.1.1", 80)))},
	}
	chains = []*rs.Chain{
		{Name: "mark/1", Rules: []rs.Rule{rule("", rs.SetMark{Mark: conn, Value: 0x00010000})}},
		{Name: "mark/2", Rules: []rs.Rule{rule("", rs.SetMark{Mark: packet, Value: 0x0fff0000}),
			rule("", rs.SetMark{Mark: rs.Mark{Mask: 1}}), rule("", rs.SetMark{Mark: rs.Mark{Conn: true, Mask: 1 << 31}})}},
		{Name: "save", Base: &rs.Base{Type: "filter", Hook: rs.Prerouting, Priority: -140}, Rules: []rs.Rule{
			rule("", rs.MarkIs{Mark: conn}, rs.VMap{Key: rs.Key{packet}, Map: "marks"}),
			rule("", rs.MarkIs{Mark: packet, Not: true, Value: 0x00010000}, rs.Verdict{Kind: rs.AcceptPacket})}},
		{Name: "marked", Base: &rs.Base{Type: "nat", Hook: rs.Prerouting, Priority: -101}, Rules: []rs.Rule{
			rule("", rs.IsFamily(families[0].Family), rs.IsProto(17), rs.DNAT{Family: families[0].Family, WithPort: true,
				To: rs.MapGet{Key: rs.Key{conn}, Map: "marked4"}})}},
	}
	return sets, chains
}

func queueFixture() *rs.Ruleset {
	zero := rs.MarkIs{Mark: rs.Mark{Conn: true, Mask: 0x0fff0000}}
	return &rs.Ruleset{Tables: []*rs.Table{{Family: rs.Inet, Name: "weir", Chains: []*rs.Chain{
		{Name: "steer", Base: &rs.Base{Type: "filter", Hook: rs.Prerouting, Priority: -150}, Rules: []rs.Rule{
			rule("one", zero, rs.IsProto(6), rs.Queue{First: 7, Last: 7}),
			rule("two", zero, rs.Queue{First: 258, Last: 259, Bypass: true}),
			rule("fan-out", rs.Queue{First: 0, Last: 65534, Bypass: true, Fanout: true}),
		}}}}}}
}

// TestQueue loads rules that give packets to user space in whichever form the kernel has,
// and reads them back as what they are.
func TestQueue(t *testing.T) {
	n := namespace(t)
	gen, err := n.Generation()
	if err != nil {
		t.Fatal(err)
	}
	want := queueFixture()
	_, err = n.Apply(context.Background(), rs.Diff(&rs.Ruleset{}, want), gen)
	missing(t, errors.Is(err, ErrNoQueue), "the kernel has no queue")
	if err != nil {
		t.Fatal(err)
	}
	n.same(want)
	form := n.Conn.queue
	if form == queueUnknown {
		t.Error("it is not known what the kernel has")
	}
	t.Logf("form %d", form)
	if after, _ := n.Generation(); after != next(gen) {
		t.Errorf("generation %d after %d: the question changed something", after, gen)
	}
	// Another queue, flag or order is not taken for what is wanted.
	for _, change := range []func(q *rs.Queue){
		func(q *rs.Queue) { q.Bypass = !q.Bypass }, func(q *rs.Queue) { q.Fanout = !q.Fanout }, func(q *rs.Queue) { q.Last++ },
		func(q *rs.Queue) { q.First, q.Last = q.First+1, q.Last+1 },
	} {
		var v verifier
		q := rs.Queue{First: 3, Last: 5, Bypass: true}
		r := rule("x", q)
		w := buf{queue: form}
		if err := w.exprs(want.Tables[0], &r, Counter{}); err != nil {
			t.Fatal(err)
		}
		ud := "\x00\x02x\x00"
		w.raw(unix.NFTA_RULE_USERDATA, ud)
		if !v.same(string(w.b), want.Tables[0], &r) {
			t.Error("a rule is not the same as itself")
		}
		change(&q)
		other := rule("x", q)
		if v.same(string(w.b), want.Tables[0], &other) {
			t.Errorf("%+v is taken for another", q)
		}
	}
}

// TestQueueForms: the two forms mean the same, and no other target does.
func TestQueueForms(t *testing.T) {
	for _, q := range []rs.Queue{{}, {First: 1, Last: 1}, {First: 2, Last: 300, Bypass: true}, {First: 9, Last: 9, Bypass: true, Fanout: true}} {
		r := rule("", q)
		native, xt := buf{queue: queueNative}, buf{queue: queueXT}
		for _, w := range []*buf{&native, &xt} {
			if err := w.exprs(&rs.Table{}, &r, Counter{}); err != nil {
				t.Fatal(err)
			}
		}
		a, okA := appendMeaning(nil, string(native.b))
		b, okB := appendMeaning(nil, string(xt.b))
		if !okA || !okB || string(a) != string(b) {
			t.Errorf("%+v: %q (%t) and %q (%t)", q, a, okA, b, okB)
		}
		if _, ok := appendMeaning(nil, strings.ReplaceAll(string(xt.b), "NFQUEUE", "NFLOGGE")); ok {
			t.Error("any target is taken for a queue")
		}
	}
	for _, q := range []rs.Queue{{First: 2, Last: 1}, {First: 0, Last: 65535}} {
		r := rule("", q)
		if err := new(buf).exprs(&rs.Table{}, &r, Counter{}); err == nil {
			t.Errorf("%+v can be written", q)
		}
	}
}

// TestProbe: to ask what the kernel has leaves nothing there.
func TestProbe(t *testing.T) {
	n := namespace(t)
	gen, _ := n.Generation()
	for _, form := range []queueForm{queueNative, queueXT} {
		if err := n.probeQueue(form); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
	if after, _ := n.Generation(); after != gen {
		t.Errorf("generation %d after %d", after, gen)
	}
	if got, _ := n.read(nil); len(got.Tables) != 0 {
		t.Error("the question left something")
	}
}
