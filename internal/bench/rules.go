package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/internal/config"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// backendsPerService is the size of every service here.
const backendsPerService = 10

// Ports of every service and every backend.
const (
	listenPort  = 80
	backendPort = 8080
)

// The networks that the addresses are counted up from. Clients have their own, so that no
// packet of the generator meets an address of a gateway.
var (
	vips     = netip.MustParsePrefix("198.18.0.0/15")
	backends = netip.MustParsePrefix("10.0.0.0/8")
	clients  = netip.MustParsePrefix("203.0.113.0/24")
)

// nth returns the n-th address of an IPv4 network.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}

// listenAddr is the address that service i listens on.
func listenAddr(i int) netip.Addr { return nth(vips, i+1) }

// newModel returns the services that everything here is measured with: round-robin over
// ten backends, which see the gateway as their client. It is what the iptables rules of
// rulesOf do, and no more than weir's defaults.
func newModel(services int) *model.Config {
	cfg := &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask}
	for i := range services {
		s := &model.Service{
			Name:   fmt.Sprintf("service-%05d", i),
			Listen: []model.Listen{{Addr: listenAddr(i), Proto: model.TCP, Ports: model.Port(listenPort)}},
			Source: model.SourceNAT{Mode: model.SourceMasquerade},
		}
		for j := range backendsPerService {
			s.Backends = append(s.Backends, model.Backend{
				Addr: nth(backends, 16*i+j+1), Ports: model.Port(backendPort), Weight: 1})
		}
		cfg.Services = append(cfg.Services, s)
	}
	return cfg
}

// The backends of a service that changes are about: one gets another address, one is
// taken out and put back as by a health check.
const replacedBackend, checkedBackend = 3, 4

// edited returns cfg with one service changed. It shares all others with cfg, as whoever
// changes a live model does.
func edited(cfg *model.Config, service int, edit func(*model.Service)) *model.Config {
	next := *cfg
	next.Services = slices.Clone(cfg.Services)
	s := *cfg.Services[service]
	s.Backends = slices.Clone(s.Backends)
	edit(&s)
	next.Services[service] = &s
	return &next
}

// replaced returns cfg with one backend of one service at another address, or back at
// its first.
func replaced(cfg *model.Config, service int) *model.Config {
	return edited(cfg, service, func(s *model.Service) {
		b := &s.Backends[replacedBackend]
		b.Addr = netip.AddrFrom4(toggleBit(b.Addr.As4()))
	})
}

// toggleBit leads to an address that no other backend has: services are 16 apart, and
// their backends take the first ten.
func toggleBit(a [4]byte) [4]byte {
	a[3] ^= 8
	return a
}

// withWeight returns cfg with another weight of one backend.
func withWeight(cfg *model.Config, service, weight int) *model.Config {
	return edited(cfg, service, func(s *model.Service) { s.Backends[checkedBackend].Weight = weight })
}

// texts is one state of the services in everybody's own words.
type texts struct {
	weir, nft    []byte
	chains, flat []byte // iptables, two layouts
}

// textsOf writes cfg for everybody.
func textsOf(cfg *model.Config) texts {
	return texts{
		weir: config.Marshal(cfg), nft: []byte(plan.Build(cfg, nil).Ruleset.String()),
		chains: iptablesRules(cfg, true), flat: iptablesRules(cfg, false),
	}
}

// deltaText is what turns one state into another, for nft -f.
func deltaText(from, to *model.Config) []byte {
	have := plan.Build(from, nil)
	return []byte(ruleset.Diff(have.Ruleset, plan.Build(to, have).Ruleset).String())
}

// iptablesRules writes cfg for iptables-restore: a run of rules per service that give
// every n-th of what is left to the next backend, and masquerading. With chains set each
// service has a chain of its own, so that a packet passes one rule per service and not
// ten; without, all rules stand in PREROUTING, as in the how-tos.
func iptablesRules(cfg *model.Config, chains bool) []byte {
	var b strings.Builder
	b.WriteString("*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n")
	if chains {
		for _, s := range cfg.Services {
			fmt.Fprintf(&b, ":%s - [0:0]\n", s.Name)
		}
	}
	for _, s := range cfg.Services {
		l := s.Listen[0]
		match := fmt.Sprintf("-A PREROUTING -d %s/32 -p tcp -m tcp --dport %s", l.Addr, l.Ports)
		if chains {
			fmt.Fprintf(&b, "%s -j %s\n", match, s.Name)
			match = fmt.Sprintf("-A %s -p tcp", s.Name)
		}
		left := 0
		for _, be := range s.Backends {
			left += be.Weight
		}
		for _, be := range s.Backends {
			if be.Weight == 0 {
				continue
			}
			b.WriteString(match)
			if left > 1 {
				fmt.Fprintf(&b, " -m statistic --mode nth --every %d --packet 0", left)
			}
			fmt.Fprintf(&b, " -j DNAT --to-destination %s\n", be.ID())
			left--
		}
	}
	b.WriteString("-A POSTROUTING -j MASQUERADE\nCOMMIT\n")
	return []byte(b.String())
}

// millis returns d in milliseconds.
func millis(d time.Duration) float64 { return d.Seconds() * 1000 }
