package nft

import (
	"context"
	"strings"
	"testing"
	"time"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

func lasting(state string, t time.Duration) rs.Lasting { return rs.Lasting{State: state, Time: t} }

// hygieneFixture returns what the hygiene of forwarded traffic needs.
func hygieneFixture() (times []*rs.Timeouts, chains []*rs.Chain) {
	times = []*rs.Timeouts{
		{Name: "timeouts/tcp", Proto: model.TCP, States: []rs.Lasting{lasting("established", time.Hour), lasting("time_wait", 10*time.Second)}},
		{Name: "timeouts/udp", Proto: model.UDP, States: []rs.Lasting{lasting("unreplied", 7*time.Second)}},
	}
	accept := rs.Verdict{Kind: rs.AcceptPacket}
	return times, []*rs.Chain{
		{Name: "clamp", Base: &rs.Base{Type: "filter", Hook: rs.Forward, Priority: -150}, Rules: []rs.Rule{
			rule("", rs.IsProto(model.TCP), rs.SYN, rs.InSet{Key: rs.Key{rs.OIFName}, Set: "by-device"}, rs.ClampMSS{})}},
		{Name: "remember", Base: &rs.Base{Type: "nat", Hook: rs.Postrouting, Priority: 101}, Rules: []rs.Rule{
			rule("", rs.IsProto(model.TCP), rs.SetTimeouts{Name: "timeouts/tcp"}),
			rule("", rs.IsProto(model.UDP), rs.SetTimeouts{Name: "timeouts/udp"}, accept)}},
		{Name: "leaks", Base: &rs.Base{Type: "filter", Hook: rs.Postrouting, Priority: 110}, Rules: []rs.Rule{
			rule("", rs.SourceKept{}, rs.CameIn{}, rs.Verdict{Kind: rs.DropPacket})}},
	}
}

// TestTimeoutsChange makes one, gives it other times under the same name, and takes it away,
// with rules that refer to it.
func TestTimeoutsChange(t *testing.T) {
	n := namespace(t)
	with := func(states ...rs.Lasting) *rs.Ruleset {
		want := table(nil, &rs.Chain{Name: "c", Rules: []rs.Rule{rule("", rs.IsProto(model.TCP), rs.SetTimeouts{Name: "x"})}},
			&rs.Chain{Name: "d", Rules: []rs.Rule{rule("", rs.IsProto(model.TCP))}})
		want.Tables[0].Timeouts = []*rs.Timeouts{{Name: "x", Proto: model.TCP, States: states}}
		return want
	}
	for _, want := range []*rs.Ruleset{with(lasting("time_wait", 10*time.Second)), with(lasting("time_wait", 11*time.Second)),
		with(lasting("time_wait", 11*time.Second), lasting("close", 3*time.Second)), table(nil, &rs.Chain{Name: "c"})} {
		have, _ := n.read(want)
		if d := rs.Diff(have, want); strings.Contains(d.String(), "flush chain inet weir d\n") && len(want.Tables[0].Timeouts) > 0 {
			t.Errorf("a chain that has nothing to do with it is loaded again:\n%s", d)
		}
		n.make(want)
		n.same(want)
	}
	n.make(with(lasting("time_wait", 10*time.Second)))
	for _, change := range []string{
		"flush chain inet weir c; delete ct timeout inet weir x; add ct timeout inet weir x { protocol tcp; l3proto inet; policy = { time_wait : 9 }; }",
		"flush chain inet weir c; delete ct timeout inet weir x; add ct timeout inet weir x { protocol tcp; l3proto ip; policy = { time_wait : 10 }; }",
		"add ct timeout inet weir mine { protocol udp; l3proto inet; policy = { replied : 9 }; }",
	} {
		n.nft(change, "-f", "-")
		want := with(lasting("time_wait", 10*time.Second))
		have, _ := n.read(want)
		if rs.Diff(have, want).Empty() {
			t.Errorf("%s: not seen", change)
		}
		n.make(want)
		n.same(want)
	}
}

func TestDeltaTextOfTimeoutsLoads(t *testing.T) {
	n := namespace(t)
	want := full()
	n.nft(rs.Diff(&rs.Ruleset{}, &rs.Ruleset{Tables: []*rs.Table{{Family: rs.Inet, Name: "weir", Timeouts: want.Tables[0].Timeouts}}}).String(), "-f", "-")
	have, _ := n.read(nil)
	if got := len(have.Tables[0].Timeouts); got != len(want.Tables[0].Timeouts) {
		t.Fatalf("%d objects", got)
	}
	n.nft(rs.Diff(have, &rs.Ruleset{Tables: []*rs.Table{{Family: rs.Inet, Name: "weir"}}}).String(), "-f", "-")
	if have, _ = n.read(nil); len(have.Tables[0].Timeouts) != 0 {
		t.Errorf("%d objects are left", len(have.Tables[0].Timeouts))
	}
}

func TestTimeoutsThatCanNotBe(t *testing.T) {
	for _, o := range []*rs.Timeouts{
		{Name: "none", Proto: model.TCP},
		{Name: "half", Proto: model.TCP, States: []rs.Lasting{lasting("close", 1500*time.Millisecond)}},
		{Name: "of udp", Proto: model.UDP, States: []rs.Lasting{lasting("close", time.Second)}},
	} {
		want := table(nil)
		want.Tables[0].Timeouts = []*rs.Timeouts{o}
		if _, err := Encode(rs.Diff(&rs.Ruleset{}, want), 1); err == nil || !strings.Contains(err.Error(), o.Name) {
			t.Errorf("%s: %v", o.Name, err)
		}
	}
}

func TestHasTimeouts(t *testing.T) {
	n := namespace(t)
	before, _ := n.Generation()
	has, err := n.HasTimeouts()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Apply(context.Background(), rs.Diff(&rs.Ruleset{}, func() *rs.Ruleset {
		r := table(nil)
		r.Tables[0].Timeouts, _ = hygieneFixture()
		return r
	}()), 0); (err == nil) != has {
		t.Errorf("said %t, and then %v", has, err)
	}
	if !has {
		t.Skip("this kernel has no ct timeouts")
	}
	if out := n.nft("", "list", "tables"); strings.Contains(out, "weir-try") || before == 0 {
		t.Errorf("something is left: %s", out)
	}
}
