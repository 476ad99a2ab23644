package model_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/model"
)

func blockPool(t *rapid.T) *model.Pool {
	p := &model.Pool{Block: rapid.IntRange(1, 600).Draw(t, "block")}
	p.From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("2001:db8:1::/126"), netip.MustParsePrefix("10.7.0.9/32"),
		netip.MustParsePrefix("10.3.0.0/30")}[:rapid.IntRange(1, 4).Draw(t, "prefixes")]
	p.Ports = []model.PortRange{{Lo: 1024, Hi: 2500}, {Lo: 3000, Hi: 3700}}[:rapid.IntRange(1, 2).Draw(t, "ranges")]
	for _, base := range []string{"192.0.2.0", "2001:db8::10"} {
		lo := netip.MustParseAddr(base)
		hi := lo
		for range rapid.IntRange(0, 30).Draw(t, "addresses") {
			hi = hi.Next()
		}
		p.Addresses = append(p.Addresses, model.AddrRange{Lo: lo, Hi: hi})
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		for _, a := range p.Addrs(f) {
			if rapid.IntRange(0, 5).Draw(t, "drained") == 0 {
				p.Drained = append(p.Drained, a)
			}
		}
	}
	return p
}

// TestBlocksAreABijection holds that no two clients share a port, that who has a port is found
// again, and that a drained address moves its own clients alone.
func TestBlocksAreABijection(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := blockPool(t)
		still := *p
		still.Drained = nil
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			room := len(p.Blocks()) * (len(p.Addrs(f)) - countOf(p.Drained, f))
			used, have := map[string]netip.Addr{}, 0
			for i := range p.Clients(f) {
				c, ok := p.Client(f, i)
				if !ok || !slices.ContainsFunc(p.From, func(n netip.Prefix) bool { return n.Contains(c) }) {
					t.Fatalf("client %d is %s", i, c)
				}
				if i >= len(p.Blocks())*len(p.Addrs(f)) {
					break // no configuration has more clients than blocks
				}
				b, ok := p.BlockOf(c)
				if !ok {
					continue
				}
				have++
				if key := fmt.Sprint(b.Addr, b.Ports); used[key].IsValid() {
					t.Fatalf("%s and %s have %s", used[key], c, key)
				} else {
					used[key] = c
				}
				if b.Ports.Len() != p.Block || b.Client != c || slices.Contains(p.Drained, b.Addr) {
					t.Fatalf("%s has %+v", c, b)
				}
				before, _ := still.BlockOf(c)
				if !slices.Contains(p.Drained, before.Addr) && before != b {
					t.Fatalf("%s moves from %+v to %+v without need", c, before, b)
				}
				for _, port := range []uint16{b.Ports.Lo, b.Ports.Hi} {
					if back, ok := p.ClientOf(b.Addr, port); !ok || back != b {
						t.Fatalf("%s has %+v; port %d is of %+v", c, b, port, back)
					}
				}
			}
			if clients := min(p.Clients(f), len(p.Blocks())*len(p.Addrs(f))); have < min(clients, room) {
				t.Fatalf("%d of %d clients have a block, and %d are free", have, clients, room)
			}
		}
	})
}

func countOf(list []netip.Addr, f model.Family) (n int) {
	for _, a := range list {
		if model.FamilyOf(a) == f {
			n++
		}
	}
	return n
}

func TestBlockOfNobody(t *testing.T) {
	p := &model.Pool{Block: 100, Ports: []model.PortRange{{Lo: 1000, Hi: 1299}}, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/31")},
		Addresses: []model.AddrRange{{Lo: netip.MustParseAddr("192.0.2.1"), Hi: netip.MustParseAddr("192.0.2.1")}}}
	if b, ok := p.BlockOf(netip.MustParseAddr("10.0.0.2")); ok {
		t.Errorf("%+v", b)
	}
	for _, c := range []struct {
		addr string
		port uint16
	}{{"192.0.2.1", 999}, {"192.0.2.1", 1200}, {"192.0.2.2", 1000}, {"2001:db8::1", 1000}} {
		if b, ok := p.ClientOf(netip.MustParseAddr(c.addr), c.port); ok {
			t.Errorf("%s:%d is of %+v", c.addr, c.port, b)
		}
	}
}
