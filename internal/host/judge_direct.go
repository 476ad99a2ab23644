package host

import (
	"fmt"
	"net/netip"
	"slices"

	"weir/internal/model"
)

// direct sees that services with direct return have their devices, and their backends on a
// segment of the box.
func (j *judge) direct() {
	devices := map[string]bool{}
	for _, s := range j.n.cfg.DirectServices() {
		for _, dev := range s.In {
			devices[dev] = true
		}
	}
	for _, dev := range keys(devices) {
		id := j.broken(dev, false)
		said := slices.ContainsFunc(j.out, func(f Finding) bool { return f.ID == id && f.Subject == dev })
		if id == "" || id == IPv6Disabled || said {
			continue
		}
		f := Finding{ID: id, Severity: Error, Subject: dev, Means: "no clients of direct return come in by it"}
		deviceWords(&f, id, dev)
		j.add(f, withIn(dev))
	}
	for i, r := range j.f.Routes {
		a := j.n.Backends[i]
		if r == nil || !j.n.direct[a] {
			continue
		}
		var found string
		switch {
		case r.Way == Local:
			found = fmt.Sprintf("backend %s is this box itself", a)
		case r.Way != Forwarded:
			continue // said of the route
		case len(r.Hops) != 1:
			found = fmt.Sprintf("backend %s is behind several next hops", a)
		case r.Hops[0].Gateway.IsValid():
			found = fmt.Sprintf("backend %s is behind the router %s", a, r.Hops[0].Gateway)
		default:
			continue
		}
		j.add(Finding{ID: NotOnSegment, Severity: Error, Subject: a.String(), Found: found,
			Means: "direct return reaches backends on a segment of this box alone: its share of the packets is dropped"}, withDirect(a))
	}
}

func withIn(dev string) func(s *model.Service) bool {
	return func(s *model.Service) bool { return slices.Contains(s.In, dev) }
}

func withDirect(a netip.Addr) func(s *model.Service) bool {
	backend := withBackend(map[netip.Addr]bool{a: true})
	return func(s *model.Service) bool { return s.Direct() && backend(s) }
}
