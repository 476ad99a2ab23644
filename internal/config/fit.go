package config

import (
	"cmp"
	"fmt"
	"slices"

	"weir/internal/flow"
	"weir/internal/model"
)

// Limits of a service in one family.
const (
	// maxSlots is the largest number of slots with balance round-robin or random: the sum
	// of the weights divided by what they have in common.
	maxSlots = 65536
	// maxPortSlots is the largest number of slots times listen ports, where every port
	// needs slots of its own. It bounds what the kernel holds for one service.
	maxPortSlots = 262144
)

// check compares the parts of a service with each other. All of them are right alone.
func (r *serviceReader) check() {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		r.checkFamily(f)
	}
	r.checkSource()
	r.checkPorts()
	r.checkLoops()
}

// familyName is the name of a family for people.
func familyName(f model.Family) string {
	if f == model.IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// checkFamily holds the listen addresses and the backends of family f together.
func (r *serviceReader) checkFamily(f model.Family) {
	var first *listenAt
	for i := range r.listenAt {
		if r.listenAt[i].Family() == f {
			first = &r.listenAt[i]
			break
		}
	}
	n, sum, gcd := 0, 0, 0
	for i, b := range r.s.Backends {
		if b.Family() != f {
			continue
		}
		if first == nil {
			p := r.backendAt[i]
			r.add(p.at, p.w, b.ID(), fmt.Sprintf("%s is an %s backend, but the service listens on no %s address", b.ID(), familyName(f), familyName(f)))
			continue
		}
		n++
		sum += b.Weight
		gcd = greatestDivisor(gcd, b.Weight)
	}
	switch {
	case first == nil || len(r.s.Backends) == 0:
	case n == 0:
		r.add(first.at, first.where(), first.Addr.String(), fmt.Sprintf("the service listens on %s, but has no %s backend", first.Addr, familyName(f)))
	case sum == 0:
		r.add(first.at, r.w.in(r.group()), "", fmt.Sprintf("all %s backends have weight 0; at least one must have more, or write backends: []", familyName(f)))
	case sum/gcd > maxSlots && !r.hashed():
		r.add(first.at, r.w.in(r.group()), "", fmt.Sprintf("the weights of the %s backends add up to %d shares; balance %s takes up to %d; use smaller weights, or multiples of one number", familyName(f), sum/gcd, r.s.Balance, maxSlots))
	case r.hashed():
		r.checkPortSlots(f, first, flow.TableSize(n))
	default:
		r.checkPortSlots(f, first, sum/gcd)
	}
}

// group is the key that holds the backends.
func (r *serviceReader) group() string {
	if r.s.Steered() {
		return "targets"
	}
	return "backends"
}

// hashed reports whether the balance chooses by a table of fixed size.
func (r *serviceReader) hashed() bool {
	return r.s.Balance == model.Maglev || r.s.Balance == model.Source
}

// checkPortSlots checks what holds where the port that a backend is reached on depends on
// both the backend and the port of the connection: the kernel then has each of the slots
// once for every port. first is the first listen entry of the family.
func (r *serviceReader) checkPortSlots(f model.Family, first *listenAt, slots int) {
	var kept, fixed, ranges bool
	for _, b := range r.s.Backends {
		if b.Family() == f {
			kept = kept || b.Ports.IsZero()
			fixed = fixed || b.Ports.Single()
			ranges = ranges || b.Ports.Len() > 1
		}
	}
	ports := r.listenPorts(f, ranges)
	if !ranges && (!kept || !fixed || ports == 1) || slots*ports <= maxPortSlots {
		return
	}
	change := "use fewer listen ports, smaller weights, or backends that keep the port"
	switch {
	case r.s.Steered():
		change = "use fewer listen ports or backends, or backends that keep the port"
	case r.hashed():
		change = "use fewer listen ports or backends, balance round-robin, or backends that keep the port"
	}
	r.add(first.at, r.w.in(r.group()), "", fmt.Sprintf("the ports of the %s backends depend on the listen port, so balance %s needs %d slots for each of %d listen ports, %d in all; allowed: up to %d; %s",
		familyName(f), r.s.Balance, slots, ports, slots*ports, maxPortSlots, change))
}

// listenPorts returns the number of different ports the service listens on in a family,
// whatever the address and protocol. Where they are translated, ranges must not overlap
// unless they are the same: a port's place in its range says what it becomes.
func (r *serviceReader) listenPorts(f model.Family, translated bool) int {
	var list []*listenAt
	for i := range r.listenAt {
		if r.listenAt[i].Family() == f {
			list = append(list, &r.listenAt[i])
		}
	}
	slices.SortFunc(list, func(a, b *listenAt) int {
		return cmp.Or(cmp.Compare(a.Ports.Lo, b.Ports.Lo), cmp.Compare(a.Ports.Hi, b.Ports.Hi), a.at.Compare(b.at))
	})
	ports, end := 0, 0 // end: the highest port so far
	for i, l := range list {
		ports += max(0, int(l.Ports.Hi)-max(end, int(l.Ports.Lo)-1))
		end = max(end, int(l.Ports.Hi))
		if !translated || i == 0 || l.Ports == list[i-1].Ports || !l.Ports.Overlaps(list[i-1].Ports) {
			continue
		}
		a, b := list[i-1], l
		if a.at.Compare(b.at) > 0 {
			a, b = b, a
		}
		r.add(b.at, b.where(), b.Listen.String(), fmt.Sprintf("the ports of %s overlap those of %s in line %d without being the same, so the port ranges of the backends would mean two things; give them the same range, or a service of its own", b.Listen, a.Listen, a.at.Line))
	}
	return ports
}

func greatestDivisor(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// checkSource wants a fixed source address for exactly the families of listen.
func (r *serviceReader) checkSource() {
	if r.s.Source.Mode != model.SourceAddress {
		return
	}
	families := r.s.Families()
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		listens, has := slices.Contains(families, f), r.s.Source.Addr(f).IsValid()
		switch {
		case listens && !has:
			r.add(r.sourceAt.at, r.sourceAt.w, "", fmt.Sprintf("no %s source address, but the service listens on an %s address; want a list with one for each family", familyName(f), familyName(f)))
		case has && !listens:
			r.add(r.sourceAt.at, r.sourceAt.w, r.s.Source.Addr(f).String(), fmt.Sprintf("%s is an %s source address, but the service listens on no %s address", r.s.Source.Addr(f), familyName(f), familyName(f)))
		}
	}
}

// checkPorts wants the port range of a backend as long as every listen range.
func (r *serviceReader) checkPorts() {
	first := r.listenAt[0]
	odd := slices.IndexFunc(r.listenAt, func(l listenAt) bool { return l.Ports.Len() != first.Ports.Len() })
	for i, b := range r.s.Backends {
		n := b.Ports.Len()
		if n < 2 {
			continue // the connection's port is kept, or all go to one
		}
		p := r.backendAt[i]
		if n > model.MaxTranslatedPorts {
			r.add(p.at, p.w, b.ID(), fmt.Sprintf("port range %s has %d ports; allowed: up to %d, or no port to keep that of the connection", b.Ports, n, model.MaxTranslatedPorts))
			continue
		}
		l := first
		if n == first.Ports.Len() && odd >= 0 {
			l = r.listenAt[odd]
		}
		if l.Ports.Len() != n {
			r.add(p.at, p.w, b.ID(), fmt.Sprintf("port range %s has %d ports, but listen %s in line %d has %d; the lengths must be the same", b.Ports, n, l.Listen, l.at.Line, l.Ports.Len()))
		}
	}
}

// checkLoops refuses a backend that is the service itself.
func (r *serviceReader) checkLoops() {
	for i, b := range r.s.Backends {
		for _, l := range r.listenAt {
			if l.Addr == b.Addr && (b.Ports.IsZero() || b.Ports.Overlaps(l.Ports)) {
				p := r.backendAt[i]
				r.add(p.at, p.w, b.ID(), fmt.Sprintf("backend %s is the service's own listen address %s of line %d: packets would go round", b.ID(), l.Listen, l.at.Line))
				break
			}
		}
	}
}
