package host

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"

	"weir/internal/model"
)

// Needs is what a configuration asks of a box.
type Needs struct {
	// Backends are the addresses that packets go to, sorted, each once. Facts.Routes is in
	// the same order.
	Backends []netip.Addr
	Assigned []Held       // what weir holds for services, sorted
	Listens  []netip.Addr // listen addresses that weir does not hold, sorted
	Sources  []netip.Addr // fixed source addresses, sorted

	cfg         *model.Config
	nat, direct map[netip.Addr]bool // backends of services that translate, and that do not
}

// Held is an address on a device.
type Held struct {
	Dev  string
	Addr netip.Addr
}

// NeedsOf returns what cfg asks of a box.
func NeedsOf(cfg *model.Config) *Needs {
	n := &Needs{cfg: cfg, nat: map[netip.Addr]bool{}, direct: map[netip.Addr]bool{}}
	for _, s := range cfg.Services {
		for _, b := range s.Backends {
			if s.Direct() {
				n.direct[b.Addr] = true
			} else {
				n.nat[b.Addr] = true
			}
			n.Backends = append(n.Backends, b.Addr)
			if a := s.Source.Addr(b.Family()); s.Source.Mode == model.SourceAddress && a.IsValid() {
				n.Sources = append(n.Sources, a)
			}
		}
		for _, l := range s.Listen {
			if s.Assign != "" {
				n.Assigned = append(n.Assigned, Held{s.Assign, l.Addr})
			} else {
				n.Listens = append(n.Listens, l.Addr)
			}
		}
	}
	for _, p := range cfg.Egress {
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			for _, a := range p.Addrs(f) {
				if p.Assign != "" {
					n.Assigned = append(n.Assigned, Held{p.Assign, a})
				}
			}
		}
	}
	slices.SortFunc(n.Assigned, func(a, b Held) int { return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Addr.Compare(b.Addr)) })
	n.Assigned = slices.Compact(n.Assigned)
	for _, list := range []*[]netip.Addr{&n.Backends, &n.Listens, &n.Sources} {
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	return n
}

// Within returns the stretch of Backends that lies in p.
func (n *Needs) Within(p netip.Prefix) (from, to int) {
	p = p.Masked()
	from, _ = slices.BinarySearchFunc(n.Backends, p.Addr(), netip.Addr.Compare)
	return from, from + sort.Search(len(n.Backends)-from, func(i int) bool { return !p.Contains(n.Backends[from+i]) })
}

// users returns, as a finding has them, the services that any of the tests is true of.
func (n *Needs) users(test func(s *model.Service) bool) (names []string, more int) {
	names = []string{}
	for _, s := range n.cfg.Services {
		switch {
		case !test(s):
		case len(names) < MaxServices:
			names = append(names, s.Name)
		default:
			more++
		}
	}
	return names, more
}

// withBackend is a test for services that have one of the addresses.
func withBackend(addrs map[netip.Addr]bool) func(s *model.Service) bool {
	return func(s *model.Service) bool {
		return slices.ContainsFunc(s.Backends, func(b model.Backend) bool { return addrs[b.Addr] })
	}
}

// withListen is a test for services that listen on one of the addresses.
func withListen(addrs map[netip.Addr]bool) func(s *model.Service) bool {
	return func(s *model.Service) bool {
		return slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return addrs[l.Addr] })
	}
}

func withAssign(dev string) func(s *model.Service) bool {
	return func(s *model.Service) bool { return s.Assign == dev }
}

func withSource(a netip.Addr) func(s *model.Service) bool {
	return func(s *model.Service) bool {
		return s.Source.Mode == model.SourceAddress && (s.Source.V4 == a || s.Source.V6 == a)
	}
}
