package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
)

// pools sees that what leaves through egress pools gets out, and its answers back in.
func (j *judge) pools() {
	if len(j.n.cfg.Egress) == 0 {
		return
	}
	j.poolForwarding()
	j.poolDevices()
	j.poolFilters()
	j.poolAddresses()
	j.poolRoom()
	j.poolEvents()
}

// tell adds a finding about pools, unless one about the same thing is there already.
func (j *judge) tell(f Finding, pools []*model.Pool) {
	if slices.ContainsFunc(j.out, func(o Finding) bool { return o.Key() == f.Key() }) {
		return
	}
	f.Means += " (egress pool"
	if len(pools) > 1 {
		f.Means += "s"
	}
	names := make([]string, 0, MaxServices)
	for _, p := range pools[:min(len(pools), MaxServices)] {
		names = append(names, p.Name)
	}
	f.Means += " " + strings.Join(names, ", ")
	if more := len(pools) - len(names); more > 0 {
		f.Means += fmt.Sprintf(" and %d more", more)
	}
	f.Means += ")"
	j.add(f, nil)
}

// poolsThat returns the pools of which the test is true.
func (j *judge) poolsThat(test func(*model.Pool) bool) []*model.Pool {
	var out []*model.Pool
	for _, p := range j.n.cfg.Egress {
		if test(p) {
			out = append(out, p)
		}
	}
	return out
}

// forwards reports whether the pool is for packets that pass through, in that family.
func forwards(p *model.Pool, f model.Family) bool { return slices.Contains(p.Families(), f) }

func (j *judge) poolForwarding() {
	for _, k := range familyKeys {
		of := j.poolsThat(func(p *model.Pool) bool { return forwards(p, k.family) })
		value, known := j.f.Forward[k.family]
		if len(of) == 0 || !known {
			continue
		}
		if value == 0 {
			j.tell(Finding{ID: IPForward, Severity: Error, Subject: k.key, Found: k.key + " is 0",
				Means: "the kernel lets nothing through from one device to another", Fix: "sysctl -w " + k.key + "=1"}, of)
			continue
		}
		if k.family != model.IPv4 {
			continue // for IPv6 the devices' own sysctls decide about other things
		}
		for i := range j.f.Links {
			l := &j.f.Links[i]
			if l.Loop || !l.Up || l.Forward4 != 0 {
				continue
			}
			by := slices.DeleteFunc(slices.Clone(of), func(p *model.Pool) bool { return !j.entersBy(p, l.Name) })
			if len(by) > 0 {
				key := deviceKey(4, l.Name, "forwarding")
				j.tell(Finding{ID: IPForward, Severity: Error, Subject: key, Found: key + " is 0",
					Means: "the kernel forwards nothing that comes in by " + l.Name, Fix: "sysctl -w " + Word(key) + "=1"}, by)
			}
		}
	}
}

// entersBy reports whether packets of the pool's connections come in by a device: requests
// where the pool says so, or the clients are on its segment, and answers where they leave.
func (j *judge) entersBy(p *model.Pool, dev string) bool {
	if slices.Contains(p.Out, dev) || slices.Contains(p.In, dev) {
		return true
	}
	return len(p.In) == 0 && slices.ContainsFunc(j.segments, func(h HeldPrefix) bool {
		return h.Dev == dev && slices.ContainsFunc(p.From, h.Prefix.Masked().Overlaps)
	})
}

func (j *judge) poolDevices() {
	devs := map[string]bool{}
	for _, p := range j.n.cfg.Egress {
		for _, d := range p.Out {
			devs[d] = true
		}
	}
	for _, dev := range keys(devs) {
		of := j.poolsThat(func(p *model.Pool) bool { return slices.Contains(p.Out, dev) })
		id := j.broken(dev, false)
		if id == "" {
			continue
		}
		f := Finding{ID: id, Severity: Error, Subject: dev, Means: "no connection leaves by it"}
		switch id {
		case DeviceMissing:
			f.Found = "there is no device " + dev
		case DeviceDown:
			f.Found, f.Fix = "device "+dev+" is down", "ip link set dev "+Word(dev)+" up"
		default:
			f.Found = "device " + dev + " has no carrier: look at the cable, or at what is at its other end"
		}
		j.tell(f, of)
	}
}

// poolFilters looks for devices where strict reverse-path filtering (RFC 3704) drops answers:
// those that come in by a device by which the way back to the far side does not lead.
func (j *judge) poolFilters() {
	best, known := j.best(model.IPv4)
	if !known {
		return
	}
	type cause struct {
		found string
		of    []*model.Pool
	}
	causes := map[string]*cause{}
	note := func(dev, found string, p *model.Pool) {
		if !j.strict(dev) || dev == best.Dev {
			return
		}
		if causes[dev] == nil {
			causes[dev] = &cause{found: found}
		}
		if c := causes[dev]; !slices.Contains(c.of, p) {
			c.of = append(c.of, p)
		}
	}
	for _, p := range j.n.cfg.Egress {
		if !forwards(p, model.IPv4) || len(p.To) > 0 {
			continue // it may have routes of its own
		}
		for _, d := range p.Out {
			also := slices.ContainsFunc(j.f.Defaults, func(o Default) bool { return o.Family == model.IPv4 && o.Dev == d })
			if also || slices.Contains(p.Out, best.Dev) {
				note(d, "is not the device of the best default route", p)
			}
		}
		for _, h := range j.segments {
			if !slices.Contains(p.Out, h.Dev) && slices.ContainsFunc(p.Addresses, func(r model.AddrRange) bool { return within(h.Prefix, r) }) {
				note(h.Dev, "is on the segment of addresses with which connections leave by "+strings.Join(p.Out, ", "), p)
			}
		}
	}
	for _, dev := range keys(causes) {
		key := deviceKey(4, dev, "rp_filter")
		j.tell(Finding{ID: RPFilter, Severity: Warning, Subject: key, Found: fmt.Sprintf("reverse-path filtering is strict on %s, which %s", dev, causes[dev].found),
			Means: fmt.Sprintf("answers that come in by %s are dropped where the way back to their senders is by %s", dev, best.Dev),
			Fix:   "sysctl -w " + Word(key) + "=2"}, causes[dev].of)
	}
}

// within reports whether a range lies in a network.
func within(p netip.Prefix, r model.AddrRange) bool { return p.Contains(r.Lo) && p.Contains(r.Hi) }

// poolAddresses sees that answers to the pools' addresses come back here.
func (j *judge) poolAddresses() {
	for _, p := range j.n.cfg.Egress {
		if p.Assign != "" {
			continue // weir holds them: see assigned
		}
		silent := map[string][]netip.Addr{}
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			for _, a := range p.Addrs(f) {
				if dev := j.segment(a); dev != "" && !j.anywhere[a] {
					silent[dev] = append(silent[dev], a)
				}
			}
		}
		for _, dev := range keys(silent) {
			addrs := silent[dev]
			j.tell(Finding{ID: PoolUnheld, Severity: Warning, Subject: p.Name + " " + dev,
				Found: fmt.Sprintf("%s %s of the network of %s, and on no device", listed(addrs), are(addrs), dev),
				Means: "nobody answers for it there, so answers do not come back; assign: true has weir hold it",
				Fix:   fmt.Sprintf("ip addr add %s dev %s", netip.PrefixFrom(addrs[0], addrs[0].BitLen()), Word(dev))}, []*model.Pool{p})
		}
	}
}

// poolRoom compares the connection table with what the pools can hold for one destination.
func (j *judge) poolRoom() {
	const key = "net.netfilter.nf_conntrack_max"
	var small []*model.Pool
	most := 0
	for _, p := range j.n.cfg.Egress {
		n := 0
		for _, f := range p.Families() {
			n += len(p.Addrs(f)) * portsOf(p)
		}
		if j.f.Conntrack.Max > 0 && n > j.f.Conntrack.Max {
			small, most = append(small, p), max(most, n)
		}
	}
	if len(small) > 0 {
		j.tell(Finding{ID: PoolRoom, Severity: Info, Subject: key, Fix: fmt.Sprintf("sysctl -w %s=%d", key, 2*most),
			Found: fmt.Sprintf("the connection table has room for %d connections, and a pool for %d to one destination alone", j.f.Conntrack.Max, most),
			Means: "the table is full before the pool is"}, small)
	}
}

// portsOf returns how many ports each address of the pool has.
func portsOf(p *model.Pool) int {
	n := 0
	for _, r := range p.Ports {
		n += r.Len()
	}
	return n
}

// poolEvents sees that the log of bindings hears of connections.
func (j *judge) poolEvents() {
	const key = "net.netfilter.nf_conntrack_events"
	if of := j.poolsThat(func(p *model.Pool) bool { return p.Log }); len(of) > 0 && j.f.Conntrack.NoEvents {
		j.tell(Finding{ID: ConntrackEvents, Severity: Error, Subject: key, Found: key + " is 0",
			Means: "the kernel tells nobody of connections, and the log of bindings has only those that are found open", Fix: "sysctl -w " + key + "=1"}, of)
	}
}
