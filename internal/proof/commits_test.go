package proof

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/ruleset"
)

// Where the flood goes, and what a flood is.
var floodVIP = map[model.Family]netip.AddrPort{
	model.IPv4: netip.MustParseAddrPort("198.51.100.10:53"),
	model.IPv6: netip.MustParseAddrPort("[2001:db8:1::10]:53"),
}

// floodService is a service of UDP in both families with so many backends, the first of
// them number from.
func floodService(name string, balance model.Balance, from, backends int) *model.Service {
	s := &model.Service{Name: name, Balance: balance}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		s.Listen = append(s.Listen, model.Listen{Addr: floodVIP[f].Addr(), Proto: model.UDP, Ports: model.Port(floodVIP[f].Port())})
		for i := range backends {
			s.Backends = append(s.Backends, model.Backend{Addr: floodBackend(f, from+i), Ports: model.Port(8080), Weight: 1})
		}
	}
	return s
}

func floodBackend(f model.Family, i int) netip.Addr {
	if f == model.IPv4 {
		return netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)})
	}
	a := netip.MustParseAddr("2001:db8:2::").As16()
	a[15] = byte(i + 1)
	return netip.AddrFrom16(a)
}

// floodPairs are configurations between which weir goes to and fro. Whatever is in force, a
// packet to the listener is one for some backend.
func floodPairs() map[string][2]*model.Config {
	f := floodService
	pair := func(a, b *model.Service) [2]*model.Config { return [2]*model.Config{newConfig(a), newConfig(b)} }
	kept := func(s *model.Service) *model.Service {
		for i := range s.Backends {
			s.Backends[i].Ports = model.PortRange{}
		}
		return s
	}
	ranged := func(s *model.Service, lo, hi uint16) *model.Service {
		for i := range s.Listen {
			s.Listen[i].Ports = model.PortRange{Lo: lo, Hi: hi}
		}
		return s
	}
	beside := func(a, b *model.Service) [2]*model.Config {
		other := f("other", model.RoundRobin, 50, 2)
		for i := range other.Listen {
			other.Listen[i].Ports = model.PortRange{Lo: uint16(1000 * (i + 1)), Hi: uint16(1000*(i+1) + 5)}
		}
		single := f("single", model.RoundRobin, 60, 2)
		for i := range single.Listen {
			single.Listen[i].Ports = model.Port(7)
		}
		return [2]*model.Config{newConfig(a, other, single), newConfig(b, other, single)}
	}
	limited := func(s *model.Service) *model.Service {
		for i := range s.Backends {
			s.Backends[i].MaxConnections = 1 << 20
		}
		return s
	}
	return map[string][2]*model.Config{
		"fewer backends":     pair(f("web", model.RoundRobin, 0, 16), f("web", model.RoundRobin, 0, 3)),
		"fewer, at random":   pair(f("web", model.Random, 0, 16), f("web", model.Random, 0, 3)),
		"other backends":     pair(f("web", model.Maglev, 0, 8), f("web", model.Maglev, 100, 8)),
		"a larger table":     pair(f("web", model.Maglev, 0, 8), f("web", model.Source, 0, 12)),
		"ports are kept":     pair(f("web", model.RoundRobin, 0, 8), kept(f("web", model.RoundRobin, 0, 8))),
		"another name":       pair(f("web", model.RoundRobin, 0, 8), f("shop", model.RoundRobin, 100, 8)),
		"a range":            pair(ranged(f("web", model.RoundRobin, 0, 8), 50, 60), f("web", model.RoundRobin, 0, 8)),
		"another range":      pair(ranged(f("web", model.RoundRobin, 0, 8), 50, 60), ranged(f("shop", model.RoundRobin, 100, 8), 53, 54)),
		"a range beside":     beside(ranged(f("web", model.RoundRobin, 0, 8), 50, 60), f("shop", model.RoundRobin, 100, 8)),
		"limits":             pair(limited(f("web", model.RoundRobin, 0, 8)), f("web", model.RoundRobin, 0, 8)),
		"other limited ones": pair(limited(f("web", model.RoundRobin, 0, 8)), limited(f("web", model.RoundRobin, 100, 4))),
	}
}

// TestNoPacketMeetsHalfAChange floods a service with first packets of connections while weir
// changes it, to and fro, many times: none of them may leave untranslated, or be lost.
func TestNoPacketMeetsHalfAChange(tt *testing.T) {
	for name, pair := range floodPairs() {
		// Without steps nearly each flood meets a change half done. A single packet of a million is
		// looked at twice: whatever else a machine loses is not lost again.
		tt.Run(name, func(tt *testing.T) {
			if words := floodWhile(tt, pair); words != "" {
				tt.Log(words, "; once more")
				if words := floodWhile(tt, pair); words != "" {
					tt.Error(words)
				}
			}
		})
	}
}

// Bounds of one flood.
const (
	floodChanges = 300
	floodLasts   = 3 * time.Second
)

// floodWhile returns what happened to packets that should not have, "" for nothing.
func floodWhile(tt *testing.T, pair [2]*model.Config) string {
	w := newWire(tt)
	for _, tap := range w.taps {
		tap.Close()
	}
	gw := w.hosts[atGateway]
	check(tt, gw.Sysctl("net.netfilter.nf_conntrack_udp_timeout", "1"))
	check(tt, gw.Sysctl("net.netfilter.nf_conntrack_checksum", "0"))
	table := countDestinations()
	must(w.kernel.Apply(tt.Context(), ruleset.Diff(&ruleset.Ruleset{}, &ruleset.Ruleset{Tables: []*ruleset.Table{table}}), 0))(tt)

	e := &engine.Engine{Kernel: w.kernel}
	must(e.Apply(tt.Context(), pair[0]))(tt)
	var stop atomic.Bool
	done := make(chan int)
	go func() { done <- w.flood(&stop) }()
	start := time.Now()
	first, changes := must(w.kernel.Generation())(tt), 0
	for ; changes < floodChanges && time.Since(start) < floodLasts; changes++ {
		must(e.Apply(tt.Context(), pair[(changes+1)%2]))(tt)
	}
	transactions, took := must(w.kernel.Generation())(tt)-first, time.Since(start)
	stop.Store(true)
	sent := <-done

	came, left := w.destinations(tt, table, "came"), w.destinations(tt, table, "left")
	total, seen, astray := 0, 0, 0
	for _, n := range came {
		total += n
	}
	good := map[netip.Addr]bool{}
	for _, cfg := range pair {
		for _, s := range cfg.Services {
			for _, b := range s.Backends {
				good[b.Addr] = true
			}
		}
	}
	var odd []string
	for dst, n := range left {
		seen += n
		if !good[dst.Addr()] {
			astray += n
			odd = append(odd, fmt.Sprintf("%d to %s", n, dst))
		}
	}
	tt.Logf("%d packets sent, %d came, in %s (%.0f/s), %d changes, %d transactions: %d astray, %d lost %v", sent, total, took.Round(time.Millisecond),
		float64(total)/took.Seconds(), changes, transactions, astray, total-seen, odd)
	if astray > 0 || total != seen {
		return fmt.Sprintf("%d packets went astray (%v), %d were lost", astray, odd, total-seen)
	}
	return ""
}

var seenTable = nft.TableRef{Family: ruleset.Inet, Name: "proof"}

// countDestinations is a table that counts where packets of the flood want to go, and where
// they go.
func countDestinations() *ruleset.Table {
	t := &ruleset.Table{Family: seenTable.Family, Name: seenTable.Name}
	chain := func(name string, base ruleset.Base) {
		c := &ruleset.Chain{Name: name, Base: &base}
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			set := fmt.Sprintf("%s%d", name, f)
			t.Sets = append(t.Sets, &ruleset.Set{Name: set, Dynamic: true, Counter: true, Size: 1024,
				Key: ruleset.Types{ruleset.AddrType(f), ruleset.Port}})
			c.Rules = append(c.Rules, ruleset.Rule{Comment: "count it", Stmts: []ruleset.Stmt{ruleset.IsFamily(f), ruleset.IsProto(model.UDP),
				ruleset.Update{Set: set, Key: ruleset.Key{ruleset.Daddr(f), ruleset.DPort}}}})
		}
		t.Chains = append(t.Chains, c)
	}
	chain("came", ruleset.Base{Type: "filter", Hook: ruleset.Prerouting, Priority: -150})
	chain("left", ruleset.Base{Type: "filter", Hook: ruleset.Postrouting, Priority: 150})
	return t
}

func (w *wire) destinations(tb testing.TB, t *ruleset.Table, chain string) map[netip.AddrPort]int {
	out := map[netip.AddrPort]int{}
	for _, s := range t.Sets {
		if !strings.HasPrefix(s.Name, chain) {
			continue
		}
		check(tb, w.kernel.Elements(tb.Context(), seenTable, s, func(e nft.Elem) bool {
			key := []byte(e.Key)
			n := len(key) - 4
			a, _ := netip.AddrFromSlice(key[:n])
			out[netip.AddrPortFrom(a, binary.BigEndian.Uint16(key[n:]))] += int(e.Counter.Packets)
			return true
		}))
	}
	return out
}

// flood sends first packets of connections, each from another port or address, from a thread
// of its own until it is told to stop. It returns how many.
func (w *wire) flood(stop *atomic.Bool) (sent int) {
	runtime.LockOSThread() // and ends with the goroutine
	type stream struct {
		fd   int
		pkt  []byte
		to   unix.Sockaddr
		head int
	}
	var streams []stream
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		src := netip.MustParseAddrPort("203.0.113.1:1024")
		head := 20
		var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(floodVIP[model.IPv4].Addr().AsSlice())}
		if f == model.IPv6 {
			src, head = netip.MustParseAddrPort("[2001:db8:c::1]:1024"), 40
			to = &unix.SockaddrInet6{Addr: floodVIP[f].Addr().As16()}
		}
		streams = append(streams, stream{w.raw[atClient][f], lab.UDPPacket(src, floodVIP[f], []byte("hello")), to, head})
	}
	for !stop.Load() {
		for i := range streams {
			s := &streams[i]
			n := sent / 2
			binary.BigEndian.PutUint16(s.pkt[s.head:], uint16(1024+n%60000))
			last := 15 // of the source address
			if i == 1 {
				last = 23
			}
			s.pkt[last] = byte(1 + n/60000%200)
			if unix.Sendto(s.fd, s.pkt, 0, s.to) == nil {
				sent++
			}
		}
	}
	return sent
}
