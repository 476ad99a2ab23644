package ruleset

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"weir/internal/model"
)

// The ruleset that most tests share: a service of every kind, in the layout that the
// plan makes.

const (
	vip = "198.51.100.10"

	seed    = 0x77656972
	webBase = 1 << 20 // slots of service n start at n << 20
	dnsBase = 2 << 20
	dnsMod  = 211
	stkBase = 3 << 20
)

func addrOf(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPortOf(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// keyOf makes register layout of addresses (string), ports (int), protocols and slot
// numbers (uint32).
func keyOf(fields ...any) string {
	var b []byte
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			b = AppendAddr(b, addrOf(f))
		case int:
			b = AppendPort(b, uint16(f))
		case model.Proto:
			b = AppendByte(b, uint8(f))
		case uint32:
			b = AppendInteger(b, f)
		default:
			panic("keyOf: type")
		}
	}
	return string(b)
}

func part(elems ...Element) *Part { return &Part{Elems: elems} }

func to(addr string, p model.Proto, port int, chain string) Element {
	return Element{Key: keyOf(addr, p, port), Jump: Jump{Chain: chain, Goto: true}}
}

func rangeTo(addr string, p model.Proto, lo, hi int, chain string) Element {
	e := to(addr, p, lo, chain)
	e.KeyEnd = keyOf(addr, p, hi)
	return e
}

// slots returns map elements base+i → backends[i].
func slots(base uint32, backends ...string) *Part {
	p := &Part{}
	for i, b := range backends {
		ap := addrPortOf(b)
		p.Elems = append(p.Elems, Element{
			Key: keyOf(base + uint32(i)), Data: keyOf(ap.Addr().String(), int(ap.Port())),
		})
	}
	return p
}

// dnsTable is which backend has which slot of the service that hashes.
func dnsTable() []string {
	out := make([]string, dnsMod)
	for i := range out {
		out[i] = []string{"10.1.2.1:8080", "10.1.2.2:8080", "10.1.2.3:8080"}[(i*7+i/3)%3]
	}
	return out
}

var (
	listener4 = Types{IPv4Addr, Protocol, Port}
	listener6 = Types{IPv6Addr, Protocol, Port}
	backend4  = Types{IPv4Addr, Protocol, Port, IPv4Addr, Port}
	tcp4      = []Stmt{IsFamily(model.IPv4), IsProto(model.TCP)}
	udp4      = []Stmt{IsFamily(model.IPv4), IsProto(model.UDP)}
	asked4    = Key{IPDaddr, L4Proto, DPort}
	asked6    = Key{IP6Daddr, L4Proto, DPort}
	listened4 = Key{CtOrigDaddr4, L4Proto, CtOrigDPort}
	served4   = Key{CtOrigDaddr4, L4Proto, CtOrigDPort, CtReplySaddr4, CtReplySPort}
	limited   = Key{Const(7), Const(8)}
	sticky4   = Key{Const(stkBase), IPSaddr}
)

func fixtureSets() []*Set {
	counted := func(name string) *Set {
		return &Set{Name: name, Key: backend4, Dynamic: true, Counter: true, Size: 65536}
	}
	sticky := func(name string, data Type) *Set {
		return &Set{Name: name, Key: Types{Integer, IPv4Addr}, Data: Types{data}, Dynamic: true, Timeout: true, Size: 65536}
	}
	return []*Set{
		{Name: "services4", Key: listener4, Verdict: true, Parts: []*Part{
			part(to(vip, model.TCP, 80, "service/web/ip/tcp")),
			part(to(vip, model.UDP, 53, "service/dns/ip/udp")),
			part(to(vip, model.TCP, 84, "service/cut/ip/tcp")),
			part(to(vip, model.TCP, 81, "service/stk/ip/tcp")),
			part(to(vip, model.TCP, 85, "service/limited/ip/tcp")),
			part(to(vip, model.TCP, 82, "service/down/ip/tcp"),
				to(vip, model.UDP, 82, "service/down/ip/udp"),
				to(vip, model.UDP, 83, "service/gone/ip/udp")),
		}},
		{Name: "services4r", Key: listener4, Verdict: true, Range: true, Parts: []*Part{
			part(rangeTo(vip, model.TCP, 8000, 8010, "service/rng/ip/tcp")),
		}},
		{Name: "services6", Key: listener6, Verdict: true, Parts: []*Part{
			part(to("2001:db8::10", model.TCP, 80, "service/web/ip6/tcp")),
		}},
		{Name: "learn4", Key: listener4, Verdict: true, Parts: []*Part{
			part(Element{Key: keyOf(vip, model.TCP, 81), Jump: Jump{Chain: "learn/stk/ip/tcp"}}),
		}},
		{Name: "source4r", Key: listener4, Verdict: true, Range: true, Parts: []*Part{
			part(rangeTo(vip, model.TCP, 8000, 8010, "source/rng/ip")),
		}},
		{Name: "hairpin4", Key: append(listener4[:3:3], IPv4Addr), Parts: []*Part{
			part(Element{Key: keyOf(vip, model.TCP, 80, "10.1.1.1")}, Element{Key: keyOf(vip, model.TCP, 80, "10.1.1.2")}),
		}},
		{Name: "addrport4/00", Key: Types{Integer}, Data: Types{IPv4Addr, Port}, Parts: []*Part{
			slots(webBase, "10.1.1.1:8080", "10.1.1.2:8080"),
			slots(dnsBase, dnsTable()...),
			slots(stkBase, "10.1.4.1:9090", "10.1.4.2:9091"),
		}},
		{Name: "addr4/00", Key: Types{Integer}, Data: Types{IPv4Addr}, Parts: []*Part{
			part(Element{Key: keyOf(uint32(webBase)), Data: keyOf("10.1.3.1")}),
		}},
		{Name: "addrport6/00", Key: Types{Integer}, Data: Types{IPv6Addr, Port}, Parts: []*Part{
			slots(0, "[2001:db8:1::1]:8080", "[2001:db8:1::2]:8080"),
		}},
		sticky("sticky-addr4/00", IPv4Addr), sticky("sticky-port4/00", Port),
		{Name: "limits", Key: Types{Integer, Integer}, Dynamic: true, Size: 65536},
		{Name: "full", Key: Types{Integer, Integer}, Dynamic: true, Timeout: true, Size: 65536},
		counted("connections4"), counted("requests4"),
		{Name: "resets4", Key: Types{IPv4Addr, Port, IPv4Addr, Port}, Dynamic: true, Timeout: true, Size: 1000},
		// nft 1.0 takes a GC interval for sets, not for maps.
		{Name: "replies4", Key: backend4, Dynamic: true, Counter: true, Timeout: true, Size: 65536},
	}
}

func rule(comment string, head []Stmt, more ...Stmt) Rule {
	return Rule{Stmts: append(slices.Clone(head), more...), Comment: comment}
}

func fixtureBases() []*Chain {
	find := []Rule{
		rule("find the service", nil, IsFamily(model.IPv4), VMap{asked4, "services4"}),
		rule("find the service", nil, IsFamily(model.IPv4), VMap{asked4, "services4r"}),
		rule("find the service", nil, IsFamily(model.IPv6), VMap{asked6, "services6"}),
	}
	count := []Rule{
		rule("", nil, StatusDNAT{}, Match{CtDirection, 0}, Verdict{GotoChain, "count-requests"}),
		rule("", nil, StatusDNAT{}, Verdict{GotoChain, "count-replies"}),
	}
	arrive := rule("", nil, StatusDNAT{}, Verdict{JumpTo, "new"})
	return []*Chain{
		{Name: "early", Base: &Base{"filter", Output, -300}, Rules: []Rule{
			rule("a nudge", tcp4, NoSYN{}, InSet{Key{IPDaddr, DPort, IPSaddr, SPort}, "resets4"}, Notrack{})}},
		{Name: "prerouting", Base: &Base{"nat", Prerouting, -100}, Rules: find},
		{Name: "output", Base: &Base{"nat", Output, -100}, Rules: find},
		{Name: "input", Base: &Base{"nat", Input, 100}, Rules: []Rule{arrive}},
		{Name: "postrouting", Base: &Base{"nat", Postrouting, 100}, Rules: []Rule{
			arrive, rule("", nil, StatusDNAT{}, Verdict{GotoChain, "leave"})}},
		{Name: "count-in", Base: &Base{"filter", Input, 99}, Rules: count},
		{Name: "count-post", Base: &Base{"filter", Postrouting, 99}, Rules: count},
	}
}

func fixtureChains() []*Chain {
	webSlot := MapGet{Key{Numgen{Mod: 2, Offset: webBase}}, "addrport4/00"}
	web6Slot := MapGet{Key{Numgen{Random: true, Mod: 2}}, "addrport6/00"}
	dnsSlot := MapGet{Key{Hash{Key{IPSaddr, SPort}, dnsMod, seed, dnsBase}}, "addrport4/00"}
	stkSlot := MapGet{Key{Numgen{Mod: 2, Offset: stkBase}}, "addrport4/00"}
	known := DNAT{Family: model.IPv4, To: MapGet{sticky4, "sticky-addr4/00"}, Port: MapGet{sticky4, "sticky-port4/00"}}
	pool := func(to MapGet) DNAT { return DNAT{Family: model.IPv4, WithPort: true, To: to} }
	return append(fixtureBases(),
		&Chain{Name: "new", Rules: []Rule{
			rule("count the connection", tcp4, Update{Set: "connections4", Key: served4}),
			rule("sticky", tcp4, VMap{listened4, "learn4"}),
		}},
		&Chain{Name: "leave", Rules: []Rule{
			rule("source", tcp4, VMap{listened4, "source4r"}),
			rule("a backend calls its own service", tcp4, InSet{append(listened4[:3:3], IPSaddr), "hairpin4"}, Masquerade{}),
		}},
		&Chain{Name: "count-requests", Rules: []Rule{
			rule("count the packet", tcp4, Update{Set: "requests4", Key: served4}),
			rule("", tcp4, Expires{false, 121 * time.Second}, Verdict{GotoChain, "closing"}),
		}},
		&Chain{Name: "count-replies", Rules: []Rule{rule("count the packet", tcp4, Update{Set: "replies4", Key: served4, Timeout: time.Hour})}},
		&Chain{Name: "source/rng/ip", Rules: []Rule{rule("", nil, SNAT{Family: model.IPv4, To: addrOf("192.0.2.1")})}},
		&Chain{Name: "learn/stk/ip/tcp", Rules: []Rule{rule("remember the client", tcp4,
			Update{"sticky-addr4/00", sticky4, IPDaddr, 10 * time.Minute},
			Update{"sticky-port4/00", sticky4, DPort, 10 * time.Minute})}},
		&Chain{Name: "service/limited/ip/tcp", Rules: []Rule{
			rule("", nil, Verdict{JumpTo, "try/limited"}),
			rule("all are full", tcp4, RejectWith{TCPReset: true}),
		}},
		&Chain{Name: "try/limited", Rules: []Rule{
			rule("it is full", nil, InSet{limited, "full"}, Verdict{Kind: ReturnBack}),
			rule("one more than it takes", nil, CountOver{"limits", limited, 2}, Update{"full", limited, nil, time.Minute}, Verdict{Kind: DropPacket}),
			rule("the last that it takes", nil, CountOver{"limits", Key{Const(7), Const(9)}, 1}, Update{"full", limited, nil, time.Minute}),
			rule("", tcp4, DNAT{Family: model.IPv4, WithPort: true, To: MapGet{Key{Const(webBase)}, "addrport4/00"}}),
		}},
		&Chain{Name: "closing", Rules: []Rule{
			rule("not its last packet", tcp4, FIN|SYN, Verdict{Kind: ReturnBack}),
			rule("it goes on", nil, Expires{true, 11 * time.Second}, Expires{false, 61 * time.Second}, Verdict{Kind: ReturnBack}),
			rule("it ended", nil, InSet{limited, "full"}, Update{"full", limited, nil, time.Millisecond}),
		}},
		&Chain{Name: "service/web/ip/tcp", Rules: []Rule{rule("round-robin", tcp4, pool(webSlot))}},
		&Chain{Name: "service/cut/ip/tcp", Rules: []Rule{
			rule("cut off", tcp4, NoSYN{}, InSet{Key{IPSaddr, SPort, IPDaddr, DPort}, "resets4"}, RejectWith{TCPReset: true}),
			rule("the port is kept", tcp4, DNAT{Family: model.IPv4, To: MapGet{Key{Const(webBase)}, "addr4/00"}}),
		}},
		&Chain{Name: "service/web/ip6/tcp", Rules: []Rule{rule("random", []Stmt{IsFamily(model.IPv6), IsProto(model.TCP)},
			DNAT{Family: model.IPv6, WithPort: true, To: web6Slot})}},
		&Chain{Name: "service/dns/ip/udp", Rules: []Rule{rule("maglev", udp4, pool(dnsSlot))}},
		&Chain{Name: "service/stk/ip/tcp", Rules: []Rule{
			rule("a client that is known", tcp4, known),
			rule("round-robin", tcp4, pool(stkSlot)),
		}},
		&Chain{Name: "service/rng/ip/tcp", Rules: []Rule{
			rule("the port is kept", tcp4, DNAT{Family: model.IPv4, To: MapGet{Key{Const(webBase)}, "addr4/00"}}),
		}},
		&Chain{Name: "service/down/ip/tcp", Rules: []Rule{rule("nothing to choose from", tcp4, RejectWith{TCPReset: true})}},
		&Chain{Name: "service/down/ip/udp", Rules: []Rule{rule("nothing to choose from", udp4, RejectWith{})}},
		&Chain{Name: "service/gone/ip/udp", Rules: []Rule{rule("nothing to choose from", udp4, Verdict{Kind: DropPacket})}},
	)
}

func fixture() *Ruleset {
	return &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir", Sets: fixtureSets(), Chains: fixtureChains()}}}
}

// mustEqual fails the test unless got is want.
func mustEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}
