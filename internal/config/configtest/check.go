package configtest

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"weir/internal/model"
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// Check says what is wrong with a model that should be valid: it looks at the rules of
// package model one by one, the slow and plain way, and shares nothing with the reader.
func Check(cfg *model.Config) error {
	if cfg.MarkMask == 0 {
		return fmt.Errorf("no mark mask")
	}
	names := map[string]bool{}
	var all []model.Listen
	for _, s := range cfg.Services {
		if !nameForm.MatchString(s.Name) || names[s.Name] {
			return fmt.Errorf("name %q is bad or there twice", s.Name)
		}
		names[s.Name] = true
		if err := checkService(s); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
		all = append(all, s.Listen...)
	}
	if err := checkSteering(cfg); err != nil {
		return err
	}
	if err := checkEdge(cfg.Edge); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	if err := checkEgress(cfg); err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.Addr == b.Addr && a.Proto == b.Proto && a.Ports.Overlaps(b.Ports) {
				return fmt.Errorf("%s overlaps %s", a, b)
			}
		}
	}
	return nil
}

func checkService(s *model.Service) error {
	if len(s.Listen) == 0 {
		return fmt.Errorf("listens nowhere")
	}
	if s.Sticky != 0 && (s.Sticky < time.Second || s.Sticky > 24*time.Hour || s.Sticky%time.Millisecond != 0) {
		return fmt.Errorf("sticky %s", s.Sticky)
	}
	if len(s.Assign) > 15 {
		return fmt.Errorf("assign %q", s.Assign)
	}
	for _, l := range s.Listen {
		if err := checkAddr(l.Addr); err != nil {
			return fmt.Errorf("listen %s: %w", l, err)
		}
		if l.Ports.Lo == 0 || l.Ports.Hi < l.Ports.Lo || l.Proto != model.TCP && l.Proto != model.UDP && l.Proto != model.SCTP {
			return fmt.Errorf("listen %s", l)
		}
	}
	if err := checkFloods(s); err != nil {
		return err
	}
	if s.Local() {
		bare := model.Service{Name: s.Name, Listen: s.Listen, Assign: s.Assign, Forward: s.Forward, Untracked: s.Untracked, Limits: s.Limits, SynProxy: s.SynProxy}
		if !s.Equal(&bare) {
			return fmt.Errorf("is local and has more than that")
		}
		return nil
	}
	if err := checkDirect(s); err != nil {
		return err
	}
	if err := checkBackends(s); err != nil {
		return err
	}
	if err := checkFamilies(s); err != nil {
		return err
	}
	if err := checkHealth(s); err != nil {
		return err
	}
	return checkPortSlots(s)
}

// checkPortSlots walks over every port of every listener, and counts what the kernel
// would hold for a family whose backends are reached on different ports.
func checkPortSlots(s *model.Service) error {
	for _, f := range s.Families() {
		begin := map[int]int{} // port to the first port of its range
		twice := false
		for _, l := range s.Listen {
			for p := int(l.Ports.Lo); l.Family() == f && p <= int(l.Ports.Hi); p++ {
				lo, ok := begin[p]
				twice = twice || ok && lo != int(l.Ports.Lo)
				begin[p] = int(l.Ports.Lo)
			}
		}
		var weights []int
		forms := map[string]bool{}
		for _, b := range s.Backends {
			if b.Family() == f {
				weights = append(weights, b.Weight)
				forms[[]string{"kept", "one", "range"}[min(b.Ports.Len(), 2)]] = true
			}
		}
		switch {
		case forms["range"] && twice:
			return fmt.Errorf("a port of %s has two meanings", f)
		case !forms["range"] && (len(forms) < 2 || len(begin) == 1):
			continue
		}
		slots := shares(weights)
		if s.Balance == model.Maglev || s.Balance == model.Source {
			slots = tableSize(len(weights))
		}
		if slots*len(begin) > 262144 {
			return fmt.Errorf("%d slots for each of %d ports", slots, len(begin))
		}
	}
	return nil
}

// shares returns the sum of the weights, divided by all that they have in common.
func shares(weights []int) int {
	sum, common := 0, 1
	for _, w := range weights {
		sum += w
	}
	for d := 2; d <= model.MaxWeight; d++ {
		if !slices.ContainsFunc(weights, func(w int) bool { return w%d != 0 }) {
			common = d
		}
	}
	return sum / common
}

// tableSize returns the size of a Maglev table for n backends: the largest prime below a
// power of two, at least 1024, that is no less than 100 for each.
func tableSize(n int) int {
	for power := 1024; ; power *= 2 {
		p := power - 1
		for d := 2; d*d <= p; d++ {
			if p%d == 0 {
				p, d = p-1, 1
			}
		}
		if p >= 100*n {
			return p
		}
	}
}

func checkBackends(s *model.Service) error {
	if s.MaxConnections < 0 || s.MaxConnections > model.MaxConnections {
		return fmt.Errorf("max_connections %d", s.MaxConnections)
	}
	ids := map[string]bool{}
	for _, b := range s.Backends {
		if err := checkAddr(b.Addr); err != nil {
			return fmt.Errorf("backend %s: %w", b.ID(), err)
		}
		if ids[b.ID()] || b.Weight < 0 || b.Weight > model.MaxWeight || b.Ports.Hi < b.Ports.Lo || b.Ports.Hi > 0 && b.Ports.Lo == 0 {
			return fmt.Errorf("backend %s with weight %d is bad or there twice", b.ID(), b.Weight)
		}
		if b.MaxConnections < 0 || b.MaxConnections > model.MaxConnections {
			return fmt.Errorf("backend %s with max_connections %d", b.ID(), b.MaxConnections)
		}
		ids[b.ID()] = true
		for _, l := range s.Listen {
			if n := b.Ports.Len(); n > 1 && (n != l.Ports.Len() || n > model.MaxTranslatedPorts) {
				return fmt.Errorf("backend %s does not fit listen %s", b.ID(), l)
			}
			if b.Addr == l.Addr && (b.Ports.IsZero() || b.Ports.Overlaps(l.Ports)) {
				return fmt.Errorf("backend %s is listen %s", b.ID(), l)
			}
		}
	}
	return nil
}

func checkFamilies(s *model.Service) error {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		listens, backends, weight := 0, 0, 0
		for _, l := range s.Listen {
			if l.Family() == f {
				listens++
			}
		}
		for _, b := range s.Backends {
			if b.Family() == f {
				backends++
				weight += b.Weight
			}
		}
		if a := s.Source.Addr(f); a.IsValid() {
			if err := checkAddr(a); err != nil {
				return fmt.Errorf("source %s: %w", a, err)
			}
		}
		wants := s.Source.Mode == model.SourceAddress && listens > 0
		switch {
		case listens == 0 && backends > 0:
			return fmt.Errorf("backends of %s without listen", f)
		case listens > 0 && len(s.Backends) > 0 && weight == 0:
			return fmt.Errorf("no weight for %s", f)
		case s.Source.Addr(f).IsValid() != wants:
			return fmt.Errorf("source address of %s", f)
		}
	}
	return nil
}

func checkAddr(a netip.Addr) error {
	switch {
	case !a.IsValid(), a.Is4In6(), a.Zone() != "", a.IsUnspecified(), a.IsMulticast(), a.IsLoopback():
		return fmt.Errorf("address %s", a)
	}
	return nil
}
