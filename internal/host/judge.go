package host

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
)

// judge is one judgement at work: the facts, indexed, and what was found so far.
type judge struct {
	n        *Needs
	f        *Facts
	links    map[string]*Link
	held     map[Held]bool
	anywhere map[netip.Addr]bool
	segments []HeldPrefix // those with more than one address
	out      []Finding
}

// Judge returns what is wrong on a box with these facts for these needs, the worst first.
func Judge(n *Needs, f *Facts) []Finding {
	j := &judge{n: n, f: f, links: map[string]*Link{}, held: map[Held]bool{}, anywhere: map[netip.Addr]bool{}}
	for i := range f.Links {
		j.links[f.Links[i].Name] = &f.Links[i]
	}
	for _, h := range f.Held {
		j.held[Held{h.Dev, h.Prefix.Addr()}] = true
		j.anywhere[h.Prefix.Addr()] = true
		if !h.Prefix.IsSingleIP() {
			j.segments = append(j.segments, h)
		}
	}
	j.forwarding()
	j.ways()
	j.direct()
	j.assigned()
	j.sources()
	j.listens()
	j.filters()
	j.advertised()
	j.conntrack()
	j.pools()
	j.pickUp()
	Sort(j.out)
	return j.out
}

func (j *judge) add(f Finding, test func(s *model.Service) bool) {
	f.Services = []string{}
	if test != nil {
		f.Services, f.More = j.n.users(test)
	}
	j.out = append(j.out, f)
}

// segment returns a device with an address in the network of a, "" where there is none.
func (j *judge) segment(a netip.Addr) string {
	for _, h := range j.segments {
		if h.Prefix.Contains(a) {
			return h.Dev
		}
	}
	return ""
}

// elsewhere reports whether the i-th backend is on another host, as far as is known.
func (j *judge) elsewhere(i int) bool {
	if i < len(j.f.Routes) && j.f.Routes[i] != nil {
		return j.f.Routes[i].Way != Local
	}
	return !j.anywhere[j.n.Backends[i]]
}

// familyKeys are the sysctls that let a family's packets through the box.
var familyKeys = []struct {
	family model.Family
	key    string
}{{model.IPv4, "net.ipv4.ip_forward"}, {model.IPv6, "net.ipv6.conf.all.forwarding"}}

// forwarding sees that packets to backends on other hosts, and their answers, get through.
func (j *judge) forwarding() {
	for _, k := range familyKeys {
		value, known := j.f.Forward[k.family]
		switch {
		case !known:
		case value == 0:
			if needed := j.others(k.family); len(needed) > 0 {
				j.add(Finding{ID: IPForward, Severity: Error, Subject: k.key, Found: k.key + " is 0",
					Means: "the kernel forwards nothing to backends on other hosts", Fix: "sysctl -w " + k.key + "=1"}, withBackend(needed))
			}
		case k.family == model.IPv4: // for IPv6 the devices' own sysctls decide about other things
			j.deviceForwarding()
		}
	}
}

// others returns the backends of a family that are on other hosts.
func (j *judge) others(f model.Family) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for i, a := range j.n.Backends {
		if model.FamilyOf(a) == f && j.n.nat[a] && j.elsewhere(i) {
			out[a] = true
		}
	}
	return out
}

// deviceForwarding looks at the devices by which clients and answers may come in. In IPv4
// it is the device of arrival whose sysctl counts (IN_DEV_FORWARD in ip_route_input_slow).
func (j *judge) deviceForwarding() {
	devs := map[string]bool{}
	for _, r := range j.routes() {
		for _, h := range r.Hops {
			devs[h.Dev] = r.Way == Forwarded && r.Dst.Addr().Is4() || devs[h.Dev]
		}
	}
	for _, h := range j.n.Assigned {
		devs[h.Dev] = h.Addr.Is4() || devs[h.Dev]
	}
	for _, d := range j.f.Defaults {
		devs[d.Dev] = d.Family == model.IPv4 || devs[d.Dev]
	}
	for dev, used := range devs {
		if l := j.links[dev]; used && l != nil && !l.Loop && l.Up && l.Forward4 == 0 {
			needed := j.others(model.IPv4)
			if len(needed) == 0 {
				return
			}
			key := deviceKey(4, dev, "forwarding")
			j.add(Finding{ID: IPForward, Severity: Error, Subject: key, Found: key + " is 0",
				Means: "the kernel forwards nothing that comes in by " + dev, Fix: "sysctl -w " + Word(key) + "=1"}, withBackend(needed))
		}
	}
}

// routes returns the routes to backends that are known, each once.
func (j *judge) routes() []*Route {
	var out []*Route
	seen := map[*Route]bool{nil: true}
	for _, r := range j.f.Routes {
		if !seen[r] {
			seen[r] = true
			out = append(out, r)
		}
	}
	return out
}

// assigned sees that the devices that are to hold addresses can, and do.
func (j *judge) assigned() {
	for at := 0; at < len(j.n.Assigned); {
		dev, from := j.n.Assigned[at].Dev, at
		var missing []netip.Addr
		v6 := false
		for ; at < len(j.n.Assigned) && j.n.Assigned[at].Dev == dev; at++ {
			v6 = v6 || j.n.Assigned[at].Addr.Is6()
			if !j.held[j.n.Assigned[at]] {
				missing = append(missing, j.n.Assigned[at].Addr)
			}
		}
		if len(missing) == 0 || at == from {
			continue
		}
		l := j.links[dev]
		if l == nil {
			continue // said of the device
		}
		if v6 && l.Disabled6 == 1 {
			missing = slices.DeleteFunc(missing, netip.Addr.Is6)
		}
		if !l.Up { // the kernel takes IPv6 addresses away with the device
			missing = slices.DeleteFunc(missing, netip.Addr.Is6)
		}
		if len(missing) > 0 {
			j.add(Finding{ID: AddressMissing, Severity: Error, Subject: dev, Found: fmt.Sprintf("%s %s not on %s", listed(missing), are(missing), dev),
				Means: "nobody answers for it there", Fix: "weir apply"}, withListen(set(missing)))
		}
	}
}

// sources sees that the answers to fixed source addresses come back here.
func (j *judge) sources() {
	weirs := map[netip.Addr]bool{}
	for _, h := range j.n.Assigned {
		weirs[h.Addr] = true
	}
	for i, a := range j.n.Sources {
		if weirs[a] || j.anywhere[a] || i < len(j.f.SourceRoutes) && j.f.SourceRoutes[i] != nil && j.f.SourceRoutes[i].Way == Local {
			continue
		}
		found := Finding{ID: SourceMissing, Severity: Info, Subject: a.String(), Found: "source address " + a.String() + " is on no device",
			Means: "backends' answers come back only if the network routes it to this box"}
		if dev := j.segment(a); dev != "" {
			found.Severity = Warning
			found.Means = "it is of the network of " + dev + ", where nobody answers for it: backends' answers do not come back"
			found.Fix = fmt.Sprintf("ip addr add %s dev %s", netip.PrefixFrom(a, a.BitLen()), Word(dev))
		}
		j.add(found, withSource(a))
	}
}

// listens looks for listen addresses of a segment of the box that nobody holds.
func (j *judge) listens() {
	lost := map[string][]netip.Addr{}
	for i, a := range j.n.Listens {
		if i >= len(j.f.ListenRoutes) || j.f.ListenRoutes[i] == nil || j.f.ListenRoutes[i].Way == Local || j.anywhere[a] {
			continue
		}
		if dev := j.segment(a); dev != "" {
			lost[dev] = append(lost[dev], a)
		}
	}
	for dev, addrs := range lost {
		j.add(Finding{ID: ListenUnheld, Severity: Info, Subject: dev,
			Found: fmt.Sprintf("listen address %s: of the network of %s, and on no device", listed(addrs), dev),
			Means: "clients of that network find it only if it is routed here; assign: " + dev + " has weir hold it"}, withListen(set(addrs)))
	}
}

// conntrack looks at the room in the connection table.
func (j *judge) conntrack() {
	const key = "net.netfilter.nf_conntrack_max"
	c := j.f.Conntrack
	if level := c.Fill(); level > 0 {
		f := Finding{ID: ConntrackFull, Severity: Warning, Subject: key, Fix: fmt.Sprintf("sysctl -w %s=%d", key, 2*c.Max),
			Found: fmt.Sprintf("the connection table is %d%% full or more (%s is %d)", level, key, c.Max),
			Means: "once it is full, new connections are dropped"}
		if level == FillError {
			f.Severity = Error
		}
		j.add(f, nil)
	}
	if want := c.Max / 4; c.Buckets > 0 && c.Buckets < want/2 {
		const key = "net.netfilter.nf_conntrack_buckets"
		j.add(Finding{ID: ConntrackSlow, Severity: Info, Subject: key, Fix: fmt.Sprintf("sysctl -w %s=%d", key, want),
			Found: fmt.Sprintf("%s is %d for %d connections", key, c.Buckets, c.Max),
			Means: "look-ups grow slow as the table fills"}, nil)
	}
}

// pickUp sees that TCP connections which another balancer with the same file had until now can
// go on here. conntrack has to take their packets for first ones, so that they are asked about
// and translated; it does not check their windows then (tcp_new in nf_conntrack_proto_tcp.c).
// It does check those of a connection that it knows: one that was here, went on elsewhere and
// comes back is far outside them.
func (j *judge) pickUp() {
	steersTCP := func(s *model.Service) bool {
		return s.Steered() && !s.Direct() && slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return l.Proto == model.TCP })
	}
	if names, _ := j.n.users(steersTCP); len(names) == 0 {
		return
	}
	for _, c := range []struct {
		id, key, means string
		value          int
	}{
		{TCPLoose, "net.netfilter.nf_conntrack_tcp_loose",
			"TCP connections that come here from another balancer with the same file, or that conntrack has forgotten, do not go on", j.f.TCPLoose},
		{TCPLiberal, "net.netfilter.nf_conntrack_tcp_be_liberal",
			"TCP connections that went on at another balancer with the same file and come back here may stand still", j.f.TCPLiberal},
	} {
		if c.value == 0 {
			j.add(Finding{ID: c.id, Severity: Info, Subject: c.key, Found: c.key + " is 0", Fix: "sysctl -w " + c.key + "=1", Means: c.means}, steersTCP)
		}
	}
}

// deviceKey returns a device's sysctl as sysctl(8) wants it: a dot in the name of the
// device is a slash there.
func deviceKey(family int, dev, key string) string {
	return fmt.Sprintf("net.ipv%d.conf.%s.%s", family, strings.ReplaceAll(dev, ".", "/"), key)
}

// Word returns s as a word of a shell's command line: the kernel takes nearly everything
// for the name of a device.
func Word(s string) string {
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@:/,+=", r) {
			return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
		}
	}
	return s
}

// listed returns "a", "a and b", "a, b and 3 more".
func listed(addrs []netip.Addr) string {
	switch n := len(addrs); {
	case n == 1:
		return addrs[0].String()
	case n == 2:
		return addrs[0].String() + " and " + addrs[1].String()
	default:
		return fmt.Sprintf("%s, %s and %d more", addrs[0], addrs[1], n-2)
	}
}

func are(addrs []netip.Addr) string {
	if len(addrs) == 1 {
		return "is"
	}
	return "are"
}

func set(addrs []netip.Addr) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		out[a] = true
	}
	return out
}

// keys returns the keys of m in order.
func keys[K cmp.Ordered, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func sortAddrs(addrs []netip.Addr) { slices.SortFunc(addrs, netip.Addr.Compare) }
