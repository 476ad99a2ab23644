package ruleset

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"weir/internal/model"
)

func floodSet(name string, t ...Type) *Set {
	return &Set{Name: name, Key: append(Types{Integer, Integer}, t...), Dynamic: true, Timeout: true, Size: 100}
}

// TestFloodTexts holds the words of nft.
func TestFloodTexts(t *testing.T) {
	key := Key{Const(7), Const(9), MaskedSaddr(model.IPv4, 24)}
	for want, s := range map[string]Stmt{
		"update @b { numgen inc mod 1 offset 7 . numgen inc mod 1 offset 9 . ip saddr & 255.255.255.0 timeout 3s limit rate 50/second burst 100 packets }": RateUnder{Set: "b", Key: key, Rate: 50, Unit: time.Second, Burst: 100, Timeout: 3 * time.Second},
		"update @b { ip6 saddr & ffff:ffff:ffff:ff80:: timeout 3600s limit rate 1/hour burst 1 packets }":                                                  RateUnder{Set: "b", Key: Key{MaskedSaddr(model.IPv6, 57)}, Rate: 1, Unit: time.Hour, Burst: 1, Timeout: time.Hour},
		"update @b { ip saddr timeout 1s limit rate 2/minute burst 3 packets }":                                                                            RateUnder{Set: "b", Key: Key{MaskedSaddr(model.IPv4, 32)}, Rate: 2, Unit: time.Minute, Burst: 3, Timeout: time.Second},
		"ip saddr != @b": NotInSet{Key: Key{IPSaddr}, Set: "b"},
		"tcp flags & (fin | syn | rst | ack) == syn":             IsSYN{},
		"synproxy mss 1460 wscale 7 timestamp sack-perm":         SynProxy{MSS: 1460, WScale: 7},
		"ct state invalid,new,established,related,untracked":     CtState{Invalid | New | Established | Related | Untracked},
		"ip6 saddr & ffff:8000:: @b":                             InSet{Key: Key{MaskedSaddr(model.IPv6, 17)}, Set: "b"},
		"ip6 saddr & ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe @b": InSet{Key: Key{MaskedSaddr(model.IPv6, 127)}, Set: "b"},
	} {
		if got := stmtText(s); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestFloodEval follows packets through a limit and a SYN proxy.
func TestFloodEval(t *testing.T) {
	key := Key{Const(7), Const(9), MaskedSaddr(model.IPv4, 24)}
	r := &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir",
		Sets: []*Set{floodSet("buckets", IPv4Addr), floodSet("full")},
		Chains: []*Chain{
			{Name: "early", Base: &Base{Type: "filter", Hook: Prerouting, Priority: -300}, Rules: []Rule{
				{Comment: "SYN", Stmts: []Stmt{IsProto(model.TCP), IsSYN{}, Notrack{}}},
				{Comment: "rate", Stmts: []Stmt{IsFamily(model.IPv4), RateUnder{"buckets", key, 50, time.Second, 100, time.Second}, Verdict{Kind: ReturnBack}}},
				{Comment: "room", Stmts: []Stmt{IsFamily(model.IPv4), NotInSet{key, "buckets"}, Update{Set: "full", Key: key[:2]}}},
			}},
			{Name: "proxy", Base: &Base{Type: "filter", Hook: Forward, Priority: -10}, Rules: []Rule{
				{Comment: "proxy", Stmts: []Stmt{CtState{New | Untracked}, IsProto(model.TCP), SynProxy{1460, 7}}},
			}},
		}}}}
	packet := func(change func(*Packet)) Packet {
		p := Packet{Src: netip.MustParseAddrPort("203.0.113.9:1024"), Dst: netip.MustParseAddrPort("198.51.100.10:80"), Proto: model.TCP}
		change(&p)
		return p
	}
	conn := &Conn{OrigSrc: netip.MustParseAddrPort("203.0.113.9:1024"), OrigDst: netip.MustParseAddrPort("198.51.100.10:80"),
		ReplySrc: netip.MustParseAddrPort("198.51.100.10:80"), ReplyDst: netip.MustParseAddrPort("203.0.113.9:1024")}
	for _, c := range []struct {
		name    string
		p       Packet
		matched []string // comments of rules
		verdict Outcome
		proxied bool
	}{
		{"SYN", packet(func(*Packet) {}), []string{"SYN", "rate", "proxy"}, Accepted, true},
		{"late", packet(func(p *Packet) { p.Late = true }), []string{"rate", "proxy"}, Dropped, false},
		{"established", packet(func(p *Packet) { p.Conn = conn }), []string{"rate"}, Accepted, false},
		{"SYN and ACK", packet(func(p *Packet) { p.Flags = uint8(SYN | ACK) }), []string{"rate", "proxy"}, Dropped, false},
		{"flags say SYN", packet(func(p *Packet) { p.Flags = uint8(SYN | psh) }), []string{"SYN", "rate", "proxy"}, Accepted, true},
		{"UDP", packet(func(p *Packet) { p.Proto = model.UDP }), []string{"rate"}, Accepted, false},
	} {
		trace := r.Eval(c.p, nil)
		var matched []string
		for _, s := range trace.Steps {
			if s.Matched {
				matched = append(matched, s.Comment)
			}
		}
		if !slices.Equal(matched, c.matched) || trace.Verdict != c.verdict || trace.Proxied != c.proxied {
			t.Errorf("%s: %v matched, %s, proxied %t; want %v, %s, %t", c.name, matched, trace.Verdict, trace.Proxied, c.matched, c.verdict, c.proxied)
		}
		want := ElemUpdate{Set: "buckets", Key: string(AppendAddr(AppendInteger(AppendInteger(nil, 7), 9), netip.MustParseAddr("203.0.113.0")))}
		if !slices.Equal(trace.Updates, []ElemUpdate{want}) {
			t.Errorf("%s: updates %+v", c.name, trace.Updates)
		}
	}
}
