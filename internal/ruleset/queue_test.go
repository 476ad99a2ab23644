package ruleset

import (
	"net/netip"
	"slices"
	"testing"

	"weir/internal/model"
)

// TestMarkTexts holds the words of nft.
func TestMarkTexts(t *testing.T) {
	conn, packet := Mark{Conn: true, Mask: 0x0fff0000}, Mark{Mask: 0x0fff0000}
	for want, s := range map[string]Stmt{
		"ct mark & 0x0fff0000 == 0x00000000":                MarkIs{Mark: conn},
		"meta mark & 0x0fff0000 != 0x00010000":              MarkIs{Mark: packet, Not: true, Value: 0x10000},
		"ct mark set ct mark & 0xf000ffff | 0x00010000":     SetMark{Mark: conn, Value: 0x10000},
		"meta mark set meta mark & 0xf000ffff | 0x0fff0000": SetMark{Mark: packet, Value: 0x0fff0000},
		"ct mark set ct mark & 0xf000ffff":                  SetMark{Mark: conn},
		"meta mark & 0x0fff0000 vmap @marks":                VMap{Key: Key{packet}, Map: "marks"},
		"queue to 0":                                        Queue{},
		"queue flags bypass to 7":                           Queue{First: 7, Last: 7, Bypass: true},
		"queue flags fanout to 1-3":                         Queue{First: 1, Last: 3, Fanout: true},
		"queue flags bypass,fanout to 0-65534":              Queue{Last: 65534, Bypass: true, Fanout: true},
	} {
		if got := stmtText(s); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := (Types{MarkBits}).Text(string(AppendMark(nil, 0x10000)), ""); got != "0x00010000" {
		t.Error(got)
	}
}

// TestQueueEval follows packets through a queue, and what is chosen there through the marks.
func TestQueueEval(t *testing.T) {
	conn, packet := Mark{Conn: true, Mask: 0x0fff0000}, Mark{Mask: 0x0fff0000}
	key := func(v uint32) string { return string(AppendMark(nil, v)) }
	r := &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir",
		Sets: []*Set{
			{Name: "marks", Key: Types{MarkBits}, Verdict: true, Parts: []*Part{{Elems: []Element{{Key: key(0x10000), Jump: Jump{Chain: "mark/1", Goto: true}}}}}},
			{Name: "to", Key: Types{MarkBits}, Data: Types{IPv4Addr}, Parts: []*Part{{Elems: []Element{{Key: key(0x10000), Data: keyOf("10.1.1.1")}}}}},
		},
		Chains: []*Chain{
			{Name: "mark/1", Rules: []Rule{{Comment: "save", Stmts: []Stmt{SetMark{conn, 0x10000}}}}},
			{Name: "early", Base: &Base{Type: "filter", Hook: Prerouting, Priority: -300}, Rules: []Rule{
				{Comment: "early", Stmts: []Stmt{MarkIs{Mark: conn}}}}},
			{Name: "steer", Base: &Base{Type: "filter", Hook: Prerouting, Priority: -150}, Rules: []Rule{
				{Comment: "ask", Stmts: []Stmt{MarkIs{Mark: conn}, Queue{Bypass: true}}},
				{Comment: "known", Stmts: []Stmt{MarkIs{Mark: conn, Not: true}}}}},
			{Name: "save", Base: &Base{Type: "filter", Hook: Prerouting, Priority: -140}, Rules: []Rule{
				{Comment: "look", Stmts: []Stmt{MarkIs{Mark: conn}, VMap{Key{packet}, "marks"}}}}},
			{Name: "nat", Base: &Base{Type: "nat", Hook: Prerouting, Priority: -100}, Rules: []Rule{
				{Comment: "to", Stmts: []Stmt{DNAT{Family: model.IPv4, To: MapGet{Key{conn}, "to"}}}}}},
		}}}}
	answer := func(a Answer) *Env {
		return &Env{Queued: func(q Queue, p Packet, mark uint32) Answer {
			if q != (Queue{Bypass: true}) || p.Dst.Port() != 80 || mark != 0xa0000001 {
				t.Errorf("asked about %+v %+v 0x%x", q, p, mark)
			}
			return a
		}}
	}
	p := Packet{Src: netip.MustParseAddrPort("203.0.113.9:1024"), Dst: netip.MustParseAddrPort("198.51.100.10:80"), Proto: model.TCP,
		Mark: 0xa0000001, ConnMark: 0xb0000002}
	known := p
	known.ConnMark |= 0x10000
	for _, c := range []struct {
		name       string
		p          Packet
		env        *Env
		matched    []string
		verdict    Outcome
		queued     bool
		mark, conn uint32
		dnat       string
	}{
		{"chosen", p, answer(Answer{Mark: 0xa0010001, Words: "rule 1"}), []string{"ask", "look", "save", "to"}, Accepted, true, 0xa0010001, 0xb0010002, "10.1.1.1:80"},
		{"dropped", p, answer(Answer{Drop: true}), []string{"ask"}, Dropped, true, 0xa0000001, 0xb0000002, "invalid AddrPort"},
		{"nobody knows", p, nil, []string{"ask"}, Accepted, true, 0xa0000001, 0xb0000002, "invalid AddrPort"},
		{"known", known, nil, []string{"known", "to"}, Accepted, false, 0xa0000001, 0xb0010002, "10.1.1.1:80"},
	} {
		trace := r.Eval(c.p, c.env)
		var matched []string
		for _, s := range trace.Steps {
			if s.Matched {
				matched = append(matched, s.Comment)
			}
		}
		if !slices.Equal(matched, c.matched) || trace.Verdict != c.verdict || trace.Queued != c.queued ||
			trace.Mark != c.mark || trace.ConnMark != c.conn || trace.DNAT.String() != c.dnat {
			t.Errorf("%s: %v, %s, queued %t, marks 0x%x 0x%x, to %s", c.name, matched, trace.Verdict, trace.Queued, trace.Mark, trace.ConnMark, trace.DNAT)
		}
	}
}
