// Package configtest makes random valid configurations for property tests: as models,
// and as texts in every form the language has.
//
// All addresses are from the ranges for documentation and tests (RFC 5737, RFC 3849,
// RFC 2544) or from 10.0.0.0/8: clients may be anything else.
package configtest

import (
	"fmt"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// Options narrows what RandomModel makes. The zero value allows everything.
type Options struct {
	MaxServices int             // 0: 5
	MaxBackends int             // of one service; 0: 6
	MaxRange    int             // longest listen range in ports; 0: 20
	Families    []model.Family  // empty: both
	Protos      []model.Proto   // empty: TCP, UDP and SCTP
	Balances    []model.Balance // empty: all
	Limits      []int           // of connections; empty: 1, 2, 1000 and the largest
	NoEmpty     bool            // every service has backends
	NoSticky    bool
	NoAssign    bool     // no interfaces either
	NoHealth    bool     // no checks, no backups, and nothing else about health
	NoLocal     bool     // no services of the box itself
	NoEdge      bool     // no access policy
	NoFloods    bool     // no limits of rates, and no SYN proxy
	NoEgress    bool     // no egress pools
	Steering    bool     // services that weir itself steers, behind the others
	Devices     []string // that an access policy names; empty: eth0, eth1 and wan.100
}

func or[T any](v, def []T) []T {
	if len(v) > 0 {
		return v
	}
	return def
}

func (o *Options) fill() Options {
	var f Options
	if o != nil {
		f = *o
	}
	for _, d := range []struct {
		v   *int
		def int
	}{{&f.MaxServices, 5}, {&f.MaxBackends, 6}, {&f.MaxRange, 20}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	f.Families = or(f.Families, []model.Family{model.IPv4, model.IPv6})
	f.Devices = or(f.Devices, []string{"eth0", "eth1", "wan.100"})
	f.Protos = or(f.Protos, []model.Proto{model.TCP, model.UDP, model.SCTP})
	f.Limits = or(f.Limits, []int{1, 2, 1000, model.MaxConnections})
	f.Balances = or(f.Balances, []model.Balance{model.RoundRobin, model.Random, model.Maglev, model.Source})
	return f
}

// RandomModel makes a valid configuration with at least one service. opts may be nil.
// Listen addresses are from 198.51.100.0/24 and 2001:db8:1::/64, and services share
// them; backends are from 10.1.0.0/16 and 2001:db8:2::/64; fixed source addresses from
// 192.0.2.0/24 and 2001:db8:3::/64.
func RandomModel(t *rapid.T, opts *Options) *model.Config {
	g := &generator{t: t, o: opts.fill()}
	cfg := &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask, Bindings: model.DefaultBindings()}
	if g.flip("own seed") {
		cfg.HashSeed = rapid.Uint32().Draw(t, "hash seed")
	}
	if g.flip("own mask") {
		cfg.MarkMask = rapid.Uint32Min(1).Draw(t, "mark mask")
	}
	if !g.o.NoAssign {
		cfg.Interfaces = g.interfaces()
	}
	cfg.Blocklists, cfg.Allow = g.blocklists(), g.allow()
	if !g.o.NoEdge {
		cfg.Edge = g.edge()
	}
	n := g.upTo(1, g.o.MaxServices, "services")
	for i := range n {
		cfg.Services = append(cfg.Services, g.service(i))
	}
	if !g.o.NoEgress {
		cfg.Egress, cfg.Bindings = g.egress(), g.bindings()
		g.lend(cfg)
	}
	if g.o.Steering {
		g.steering(cfg)
	}
	return cfg
}

type generator struct {
	t     *rapid.T
	o     Options
	taken []model.Listen
	fresh int // addresses that only one listen entry has
}

func (g *generator) upTo(lo, hi int, label string) int {
	return rapid.IntRange(lo, hi).Draw(g.t, label)
}

func (g *generator) flip(label string) bool { return rapid.Bool().Draw(g.t, label) }

func pick[T any](g *generator, from []T, label string) T {
	return rapid.SampledFrom(from).Draw(g.t, label)
}

func (g *generator) interfaces() map[string][]string {
	var out map[string][]string
	for _, group := range []string{"outside", "inside"} {
		if !g.flip(group) {
			continue
		}
		if out == nil {
			out = map[string][]string{}
		}
		for i := range g.upTo(1, 3, "devices") {
			out[group] = append(out[group], fmt.Sprintf("eth%d", i))
		}
	}
	return out
}

func (g *generator) service(i int) *model.Service {
	s := &model.Service{
		Name:        fmt.Sprintf("%s%d", rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9_.-]{0,8}`).Draw(g.t, "name"), i),
		Balance:     pick(g, g.o.Balances, "balance"),
		WhenAllDown: pick(g, g.allDown(), "when all down"),
	}
	if !g.o.NoSticky && g.flip("has sticky") {
		s.Sticky = time.Duration(g.upTo(1000, 86_400_000, "sticky")) * time.Millisecond
	}
	if !g.o.NoAssign {
		s.Assign = pick(g, []string{"", "eth0", "eth1", "wan.100"}, "assign")
	}
	length := g.upTo(1, g.o.MaxRange, "listen range")
	same := g.flip("all ranges of one length")
	for range g.upTo(1, 4, "listen entries") {
		if !same {
			length = g.upTo(1, g.o.MaxRange, "listen range")
		}
		s.Listen = append(s.Listen, g.listen(length))
	}
	if !g.o.NoLocal && g.upTo(0, 4, "local") == 4 {
		g.local(s)
		g.floods(s)
		return s
	}
	g.floods(s)
	g.source(s)
	if g.o.NoEmpty || g.upTo(0, 9, "empty") > 0 {
		g.backends(s, same, length)
	}
	if !g.o.NoHealth {
		g.health(s)
	}
	if g.upTo(0, 3, "limited") == 0 {
		g.limits(s)
	}
	return s
}

func (g *generator) allDown() []model.AllDown {
	if g.o.NoHealth {
		return []model.AllDown{model.Reject, model.Drop}
	}
	return []model.AllDown{model.Reject, model.Drop, model.FailOpen}
}

// listen makes an entry that overlaps none before it: on an address that others have
// too when that goes well, else on one of its own.
func (g *generator) listen(length int) model.Listen {
	lo := uint16(rapid.OneOf(rapid.IntRange(78, 90), rapid.IntRange(1, 65535-length+1)).Draw(g.t, "port"))
	l := model.Listen{
		Proto: pick(g, g.o.Protos, "proto"),
		Ports: model.PortRange{Lo: lo, Hi: lo + uint16(length-1)},
	}
	f := pick(g, g.o.Families, "family")
	l.Addr = address(f, 1, uint16(g.upTo(1, 3, "listen address")))
	for _, o := range g.taken {
		if o.Addr == l.Addr && o.Proto == l.Proto && o.Ports.Overlaps(l.Ports) {
			g.fresh++
			l.Addr = address(f, 1, uint16(10+g.fresh))
			break
		}
	}
	g.taken = append(g.taken, l)
	return l
}

// address returns number n of net 1 (listen), 2 (backends) or 3 (source).
func address(f model.Family, net byte, n uint16) netip.Addr {
	if f == model.IPv6 {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, net, 14: byte(n >> 8), 15: byte(n)})
	}
	switch net {
	case 1:
		if n > 255 {
			return netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})
		}
		return netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
	case 2:
		return netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
}

func (g *generator) source(s *model.Service) {
	s.Source.Mode = pick(g, []model.SourceMode{model.SourceKeep, model.SourceMasquerade, model.SourceAddress}, "source")
	if s.Source.Mode != model.SourceAddress {
		return
	}
	for _, f := range s.Families() {
		a := address(f, 3, uint16(g.upTo(1, 254, "source address")))
		if f == model.IPv4 {
			s.Source.V4 = a
		} else {
			s.Source.V6 = a
		}
	}
}

// backends gives every family of the service at least one backend with weight.
func (g *generator) backends(s *model.Service, same bool, length int) {
	seen := map[string]bool{}
	families := s.Families()
	n := g.upTo(1, max(1, g.o.MaxBackends/len(families)), "backends")
	same = same && !skewed(s.Listen)
	keep := slotsPerPort(s, n) > 262144/portsOf(s.Listen)
	// n backends never need more slots than the reader allows
	most := min(model.MaxWeight, 65536/n)
	for _, f := range families {
		last, weight := -1, 0
		for range n {
			b := model.Backend{Addr: address(f, 2, uint16(g.upTo(1, max(4, 2*n), "backend"))), Weight: 1}
			if !keep {
				b.Ports = g.backendPorts(same, length)
			}
			if g.flip("weighted") {
				b.Weight = g.upTo(0, most, "weight")
			}
			if seen[b.ID()] {
				continue
			}
			seen[b.ID()] = true
			weight += b.Weight
			s.Backends = append(s.Backends, b)
			last = len(s.Backends) - 1
		}
		if weight == 0 {
			s.Backends[last].Weight = 1
		}
	}
}

// limits gives the service and some of its backends limits of connections.
func (g *generator) limits(s *model.Service) {
	if g.flip("limited as a whole") {
		s.MaxConnections = pick(g, g.o.Limits, "limit")
	}
	for i := range s.Backends {
		if g.upTo(0, 2, "limited backend") > 0 {
			s.Backends[i].MaxConnections = pick(g, g.o.Limits, "limit")
		}
	}
}

// skewed reports whether listen ranges overlap without being the same, so that they can
// not be translated.
func skewed(list []model.Listen) bool {
	for i, a := range list {
		for _, b := range list[:i] {
			if a.Ports != b.Ports && a.Ports.Overlaps(b.Ports) {
				return true
			}
		}
	}
	return false
}

// slotsPerPort and portsOf return no less than the slots and ports that the service will
// need in one family with n backends.
func slotsPerPort(s *model.Service, n int) int {
	if s.Balance == model.Maglev || s.Balance == model.Source {
		return tableSize(n)
	}
	return n * model.MaxWeight
}

func portsOf(list []model.Listen) (n int) {
	for _, l := range list {
		n += l.Ports.Len()
	}
	return n
}

func (g *generator) backendPorts(same bool, length int) model.PortRange {
	switch kind := g.upTo(0, 2, "backend port"); {
	case kind == 1, kind == 2 && !same:
		return model.Port(uint16(g.upTo(1, 65535, "port")))
	case kind == 2:
		lo := uint16(g.upTo(1, 65535-length+1, "port"))
		return model.PortRange{Lo: lo, Hi: lo + uint16(length-1)}
	}
	return model.PortRange{}
}
