package host

import (
	"fmt"
	"net/netip"
	"strings"

	"weir/internal/model"
)

// trouble is a device that something needs and that does not work.
type trouble struct {
	id, dev  string
	backends map[netip.Addr]bool
	assigned bool
}

// lossKey groups backends that lost the same way.
type lossKey struct {
	way     Way
	now     bool // there is a way, but only by default
	subject netip.Prefix
	last    *Route
}

// ways sees that packets find the backends, and their devices work.
func (j *judge) ways() {
	troubles := map[string]*trouble{}
	note := func(id, dev string) *trouble {
		t := troubles[id+" "+dev]
		if t == nil {
			t = &trouble{id: id, dev: dev, backends: map[netip.Addr]bool{}}
			troubles[id+" "+dev] = t
		}
		return t
	}
	for _, h := range j.n.Assigned {
		if id := j.broken(h.Dev, h.Addr.Is6()); id != "" {
			note(id, h.Dev).assigned = true
		}
	}
	lost := map[lossKey][]netip.Addr{}
	var byDefault [2][]netip.Addr
	for i, r := range j.f.Routes {
		if r == nil || r.Way == Local {
			continue
		}
		a, last := j.n.Backends[i], j.last(i)
		if dev, id := j.blame(a, r, last); id != "" {
			note(id, dev).backends[a] = true
			continue
		}
		switch {
		case !r.usable():
			lost[lossKey{r.Way, false, subject(a, last), last}] = append(lost[lossKey{r.Way, false, subject(a, last), last}], a)
		case r.Dst.Bits() > 0:
		case last != nil && last.usable() && last.Dst.Bits() > 0:
			lost[lossKey{r.Way, true, subject(a, last), last}] = append(lost[lossKey{r.Way, true, subject(a, last), last}], a)
		case a.IsPrivate():
			at := 0
			if a.Is6() {
				at = 1
			}
			byDefault[at] = append(byDefault[at], a)
		}
	}
	for _, k := range keys(troubles) {
		j.device(troubles[k])
	}
	j.losses(lost)
	for at, addrs := range byDefault {
		if len(addrs) > 0 {
			j.add(Finding{ID: ByDefault, Severity: Info, Subject: []string{"0.0.0.0/0", "::/0"}[at], Found: "only the default route leads to " + listed(addrs),
				Means: "which is right where the default router knows these private addresses"}, withBackend(set(addrs)))
		}
	}
}

func (j *judge) last(i int) *Route {
	if i < len(j.f.Last) {
		return j.f.Last[i]
	}
	return nil
}

// blame returns the device that keeps packets from a backend, if it is one: of the route
// that there is, of the route that there was, or one that is down and is on the backend's
// segment.
func (j *judge) blame(a netip.Addr, now, last *Route) (dev, id string) {
	if now.usable() {
		if dev, id := j.hops(now, a.Is6()); id != "" {
			return dev, id
		}
		if now.Dst.Bits() > 0 {
			return "", ""
		}
	}
	if last != nil && last.Dst.Bits() > 0 || last != nil && !now.usable() {
		return j.hops(last, a.Is6())
	}
	for _, h := range j.segments {
		if h.Prefix.Contains(a) {
			if id := j.broken(h.Dev, false); id == DeviceDown {
				return h.Dev, id
			}
		}
	}
	return "", ""
}

// hops returns what is wrong with the devices of a route, none of which works; id is ""
// if one does.
func (j *judge) hops(r *Route, v6 bool) (dev, id string) {
	for _, h := range r.Hops {
		this := j.broken(h.Dev, v6)
		if this == "" {
			return "", ""
		}
		dev, id = h.Dev, this
	}
	return dev, id
}

// broken says what is wrong with a device, "" if nothing is.
func (j *judge) broken(dev string, v6 bool) string {
	l := j.links[dev]
	switch {
	case l == nil:
		return DeviceMissing
	case !l.Up:
		return DeviceDown
	case v6 && l.Disabled6 == 1:
		return IPv6Disabled
	case !l.Carrier:
		return NoCarrier
	}
	return ""
}

func (j *judge) device(t *trouble) {
	f := Finding{ID: t.id, Severity: Error, Subject: t.dev}
	deviceWords(&f, t.id, t.dev)
	var means []string
	if len(t.backends) > 0 {
		means = append(means, "packets do not reach backends by it")
	}
	if t.assigned {
		means = append(means, "clients do not reach the addresses on it")
	}
	f.Means = strings.Join(means, ", and ")
	j.add(f, func(s *model.Service) bool { return t.assigned && withAssign(t.dev)(s) || withBackend(t.backends)(s) })
}

// deviceWords says of a device what broken found.
func deviceWords(f *Finding, id, dev string) {
	switch id {
	case DeviceMissing:
		f.Found = "there is no device " + dev
	case DeviceDown:
		f.Found, f.Fix = "device "+dev+" is down", "ip link set dev "+Word(dev)+" up"
	case IPv6Disabled:
		key := deviceKey(6, dev, "disable_ipv6")
		f.Found, f.Fix = key+" is 1", "sysctl -w "+Word(key)+"=0"
	case NoCarrier:
		f.Found = "device " + dev + " has no carrier: look at the cable, or at what is at its other end"
	}
}

// subject is the network that a loss is told of: that of the route that went, else the
// neighbourhood of the backend.
func subject(a netip.Addr, last *Route) netip.Prefix {
	if last != nil && last.Dst.IsValid() && last.Dst.Bits() > 0 {
		return last.Dst
	}
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// maxLosses is how many networks are told of one by one, in each family.
const maxLosses = 16

func (j *judge) losses(lost map[lossKey][]netip.Addr) {
	count := map[bool]int{}
	for k := range lost {
		count[k.subject.Addr().Is6()]++
	}
	merged := map[lossKey][]netip.Addr{}
	for k, addrs := range lost {
		if v6 := k.subject.Addr().Is6(); count[v6] > maxLosses {
			all, _ := k.subject.Addr().Prefix(0)
			k = lossKey{k.way, k.now, all, nil}
		}
		merged[k] = append(merged[k], addrs...)
	}
	for k, addrs := range merged {
		j.loss(k, addrs)
	}
}

var wayWords = map[Way]string{
	Unroutable: "there is no route to ", Unreachable: "an unreachable route leads to ",
	Prohibited: "a prohibit route leads to ", Blackholed: "a blackhole route leads to ",
}

func (j *judge) loss(k lossKey, addrs []netip.Addr) {
	sortAddrs(addrs)
	f := Finding{ID: NoRoute, Severity: Error, Subject: k.subject.String(), Found: wayWords[k.way] + listed(addrs),
		Means: "packets to the backends end here"}
	switch {
	case k.now:
		f.ID, f.Severity = RouteLost, Warning
		f.Found = fmt.Sprintf("the route to %s went: only the default route leads to %s", k.subject, listed(addrs))
		f.Means = "packets to the backends go where they did not before; if they should, type weir reload"
		f.Fix = j.restore(k.last)
	case k.way == Unroutable:
		f.Fix = j.restore(k.last)
	default:
		f.Means += fmt.Sprintf("; ip route show match %s lists the routes", addrs[0])
	}
	j.add(f, withBackend(set(addrs)))
}

// restore returns the command that brings a route back, "" where it is not known.
func (j *judge) restore(last *Route) string {
	if last == nil || last.Way != Forwarded || len(last.Hops) == 0 {
		return ""
	}
	var cmds []string
	onLink := len(last.Hops) == 1 && !last.Hops[0].Gateway.IsValid()
	if dev := last.Hops[0].Dev; last.Own.IsValid() && !j.held[Held{dev, last.Own.Addr()}] {
		cmds = append(cmds, fmt.Sprintf("ip addr add %s dev %s", last.Own, Word(dev)))
		if onLink && last.Own.Masked() == last.Dst {
			return cmds[0] // the address brings the route
		}
	}
	route := "ip route add " + last.Dst.String()
	for _, h := range last.Hops {
		if len(last.Hops) > 1 {
			route += " nexthop"
		}
		if h.Gateway.IsValid() {
			if h.Gateway.Is6() && last.Dst.Addr().Is4() {
				route += " via inet6 " + h.Gateway.String()
			} else {
				route += " via " + h.Gateway.String()
			}
		}
		route += " dev " + Word(h.Dev)
	}
	return strings.Join(append(cmds, route), " && ")
}

// filters looks for devices where strict reverse-path filtering (RFC 3704) drops packets
// of services: what comes in by a device by which the way back does not lead.
func (j *judge) filters() {
	type cause struct{ found, means string }
	causes := map[string]cause{}
	if best, ok := j.best(model.IPv4); ok && j.uses(model.IPv4) {
		for _, d := range j.f.Defaults {
			if d.Family == model.IPv4 && d.Metric > best.Metric && j.strict(d.Dev) {
				causes[d.Dev] = cause{"has a default route that is not the best one",
					fmt.Sprintf("clients that come in by %s are dropped, for the way back to them is by %s", d.Dev, best.Dev)}
			}
		}
	}
	for _, h := range j.segments {
		if !h.Prefix.Addr().Is4() || !j.strict(h.Dev) {
			continue
		}
		from, to := j.n.Within(h.Prefix)
		for i := from; i < to && i < len(j.f.Routes); i++ {
			if r := j.f.Routes[i]; r != nil && r.Way == Forwarded && len(r.Hops) == 1 && r.Hops[0].Dev != h.Dev {
				causes[h.Dev] = cause{"is on a segment of backends that are reached by " + r.Hops[0].Dev,
					"answers of backends that come in by " + h.Dev + " are dropped"}
				break
			}
		}
	}
	for _, dev := range keys(causes) {
		key := deviceKey(4, dev, "rp_filter")
		j.add(Finding{ID: RPFilter, Severity: Warning, Subject: key, Found: fmt.Sprintf("reverse-path filtering is strict on %s, which %s", dev, causes[dev].found),
			Means: causes[dev].means, Fix: "sysctl -w " + Word(key) + "=2"}, nil)
	}
}

// strict reports whether a device that is up filters strictly. The larger of the two
// sysctls counts (IN_DEV_RPFILTER), so 2 on the device is loose whatever the box says.
func (j *judge) strict(dev string) bool {
	l := j.links[dev]
	return l != nil && l.Up && !l.Loop && max(l.RPFilter, j.f.RPFilterAll) == 1
}

// best returns the default route that packets take.
func (j *judge) best(f model.Family) (best Default, ok bool) {
	for _, d := range j.f.Defaults {
		if d.Family == f && (!ok || d.Metric < best.Metric) {
			best, ok = d, true
		}
	}
	return best, ok
}

// uses reports whether any service listens in a family.
func (j *judge) uses(f model.Family) bool {
	for _, s := range j.n.cfg.Services {
		for _, l := range s.Listen {
			if l.Family() == f && !s.Direct() {
				return true
			}
		}
	}
	return false
}

// advertised looks for default routes that came by router advertisement over a device
// that takes none any more, because it forwards: they expire.
func (j *judge) advertised() {
	for _, d := range j.f.Defaults {
		if l := j.links[d.Dev]; d.RA && l != nil && l.AcceptRA == 1 && l.Forward6 == 1 && j.uses(model.IPv6) {
			key := deviceKey(6, d.Dev, "accept_ra")
			j.add(Finding{ID: AcceptRA, Severity: Warning, Subject: key, Found: key + " is 1, which means no more advertisements while the device forwards",
				Means: "the default route by " + d.Dev + " came by one, and will expire", Fix: "sysctl -w " + Word(key) + "=2"}, nil)
		}
	}
}
