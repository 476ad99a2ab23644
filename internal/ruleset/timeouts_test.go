package ruleset

import (
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/model"
)

func timesOf(name string, states ...Lasting) *Timeouts {
	return &Timeouts{Name: name, Proto: model.TCP, States: states}
}

func withTimeouts(chains []*Chain, times ...*Timeouts) *Ruleset {
	return &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir", Chains: chains, Timeouts: times}}}
}

// TestTimeoutsDiff: objects come before the rules that name them and go after them; one with
// other times is replaced, and the rules that name it, and no others, are loaded again.
func TestTimeoutsDiff(t *testing.T) {
	short, long := Lasting{"time_wait", 10 * time.Second}, Lasting{"time_wait", 20 * time.Second}
	user := &Chain{Name: "user", Rules: []Rule{{Stmts: []Stmt{IsProto(model.TCP), SetTimeouts{"x"}}}}}
	other := &Chain{Name: "other", Rules: []Rule{{Stmts: []Stmt{IsProto(model.TCP)}}}}
	all := []*Chain{user, other}
	want := withTimeouts(all, timesOf("x", short))
	text := Diff(&Ruleset{}, want).String()
	if a, b := strings.Index(text, "add ct timeout inet weir x { protocol tcp; l3proto inet; policy = { time_wait : 10 }; }\n"),
		strings.Index(text, "add rule inet weir user"); a < 0 || b < a {
		t.Errorf("comes:\n%s", text)
	}
	mustEqual(t, "the same again", Diff(want, withTimeouts(all, timesOf("x", short))).Summary(), "no change")
	read := withTimeouts(all, timesOf("x", Lasting{"close", time.Second}, short))
	mustEqual(t, "as the kernel gives it, with all states", Diff(read, want).Summary(), "no change")

	d := Diff(want, withTimeouts(all, timesOf("x", long)))
	text = d.String()
	first, gone, come, last := strings.Index(text, "flush chain inet weir user\n"), strings.Index(text, "delete ct timeout inet weir x\n"),
		strings.Index(text, "add ct timeout inet weir x {"), strings.Index(text, "add rule inet weir user")
	if !slices.IsSorted([]int{0, first, gone, come, last}) || gone <= 0 || strings.Contains(text, "other") {
		t.Errorf("is replaced:\n%s", text)
	}
	mustEqual(t, "in words", d.Summary(), "1 ct timeout added, 1 ct timeout deleted")
	mustEqual(t, "goes", Diff(want, withTimeouts([]*Chain{other})).Summary(), "1 ct timeout deleted, 1 chain deleted, 1 rule deleted")
}

// TestHygieneStatements evaluates them for packets that they are about, and others.
func TestHygieneStatements(t *testing.T) {
	base := func(hook Hook, priority int, s ...Stmt) *Chain {
		return &Chain{Name: string(hook), Base: &Base{Type: "filter", Hook: hook, Priority: priority},
			Rules: []Rule{{Stmts: append(s, Verdict{Kind: DropPacket})}}}
	}
	tcp := Packet{Proto: model.TCP, Src: addrPortOf("10.0.0.1:1000"), Dst: addrPortOf("203.0.113.1:80")}
	local := tcp
	local.Local = true
	known := tcp
	known.Conn = &Conn{tcp.Src, tcp.Dst, tcp.Dst, addrPortOf("198.51.100.1:2000")}
	snat := &Chain{Name: "nat", Base: &Base{Type: "nat", Hook: Postrouting, Priority: 100}, Rules: []Rule{{Stmts: []Stmt{SNAT{Family: model.IPv4, To: addrOf("198.51.100.1")}}}}}
	for _, c := range []struct {
		what   string
		chains []*Chain
		p      Packet
		want   Outcome
	}{
		{"untranslated", []*Chain{base(Postrouting, 110, SourceKept{})}, tcp, Dropped},
		{"translated", []*Chain{snat, base(Postrouting, 110, SourceKept{})}, tcp, Accepted},
		{"translated before", []*Chain{base(Postrouting, 110, SourceKept{})}, known, Accepted},
		{"before conntrack", []*Chain{base(Prerouting, -300, SourceKept{})}, tcp, Accepted},
		{"forwarded", []*Chain{base(Postrouting, 110, CameIn{})}, tcp, Dropped},
		{"its own", []*Chain{base(Postrouting, 110, CameIn{})}, local, Accepted},
		{"clamped", []*Chain{base(Forward, -150, IsProto(model.TCP), ClampMSS{})}, tcp, Dropped},
		{"timed", []*Chain{base(Postrouting, 110, SetTimeouts{"x"})}, tcp, Dropped},
		{"timed by what is not there", []*Chain{base(Postrouting, 110, SetTimeouts{"y"})}, tcp, Accepted},
	} {
		r := withTimeouts(c.chains, timesOf("x", Lasting{"close", time.Second}))
		mustEqual(t, c.what, NewEvaluator(r).Eval(c.p, nil).Verdict, c.want)
	}
}
