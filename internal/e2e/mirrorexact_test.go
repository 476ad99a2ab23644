package e2e

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// TestMirrorExact counts copies at the collector: a limit lets through what a bucket of tokens
// does for packets at these times, to 1 %, and a sample of a tenth of flows is those that the
// hash says.
func TestMirrorExact(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	got := copies(t, s.Backends[2], lab.HostDev, true)
	const match = "match: {protocol: udp, direction: requests, port: 7}"
	s.apply(s.mirrored("limit: 1000/second", match))
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		b := bucket{rate: 1000, size: 100, tokens: 100}
		packet := lab.UDPPacket(netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port()), target, []byte("?\n"))
		packets := 0
		for start := time.Now(); time.Since(start) < 2*time.Second; packets++ {
			b.take(time.Now())
			check(t, s.Clients[0].SendIP(packet))
		}
		quiet(t, got)
		if n := got.count(to(target)); math.Abs(float64(n-b.taken)) > float64(b.taken)/100 {
			t.Errorf("%d copies of %d packets, want %d", n, packets, b.taken)
		}
	})
	s.apply(s.mirrored("sample: 1/10", match))
	eachFamily(t, func(t *testing.T, f model.Family) {
		target := netip.AddrPortFrom(vip(f, 1), 7)
		before := got.count(to(target))
		chosen := map[netip.AddrPort]bool{}
		for range 2000 {
			client := netip.AddrPortFrom(addrOf(s.Clients[0], f), s.port())
			check(t, s.Clients[0].SendIP(lab.UDPPacket(client, target, []byte("?\n"))))
			b := ruleset.AppendPort(ruleset.AppendPort(ruleset.AppendAddr(ruleset.AppendAddr(nil, client.Addr()), target.Addr()), client.Port()), 7)
			if flow.Choose(b, model.DefaultHashSeed, 10, 0) < 1 {
				chosen[client] = true
			}
		}
		await(t, "copies of the flows that are chosen", func() bool { return got.count(to(target))-before >= len(chosen) })
		quiet(t, got)
		if n := got.count(to(target)) - before; n != len(chosen) || n < 100 || n > 300 {
			t.Errorf("%d copies of 2000 flows, want %d", n, len(chosen))
		}
	})
}

// bucket is tokens that come at a rate, and are taken one by one.
type bucket struct {
	rate, size, tokens float64
	last               time.Time
	taken              int
}

func (b *bucket) take(now time.Time) {
	if !b.last.IsZero() {
		b.tokens = min(b.size, b.tokens+b.rate*now.Sub(b.last).Seconds())
	}
	b.last = now
	if b.tokens >= 1 {
		b.tokens--
		b.taken++
	}
}
