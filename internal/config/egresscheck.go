package config

import (
	"cmp"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
)

// defaults fills in what the pool does not say.
func (r *poolReader) defaults() {
	slices.SortFunc(r.Addresses, func(a, b model.AddrRange) int { return a.Lo.Compare(b.Lo) })
	slices.SortFunc(r.Ports, func(a, b model.PortRange) int { return cmp.Compare(a.Lo, b.Lo) })
	var joined []model.PortRange
	for _, p := range r.Ports {
		if n := len(joined); n > 0 && int(joined[n-1].Hi)+1 == int(p.Lo) {
			joined[n-1].Hi = p.Hi
			continue
		}
		joined = append(joined, p)
	}
	if r.Ports = joined; len(joined) == 0 {
		r.Ports = []model.PortRange{model.DefaultPoolPorts}
	}
	if _, has := r.keys["spread"]; r.Block > 0 && !has {
		r.Spread = model.SpreadClient
	}
	r.Spill = r.Block == 0 && (r.Spread == model.SpreadFlow || r.whenFull != 1)
}

// check holds the parts of a pool against each other. All of them are right alone.
func (r *poolReader) check() {
	clash := func(key, format string, args ...any) {
		p := r.keys[key]
		r.add(p.at, p.w, "", fmt.Sprintf(format, args...))
	}
	switch {
	case r.Masquerade && r.Block > 0:
		clash("block", "block needs addresses that are known; with masquerade they follow the device")
	case r.Masquerade && r.Spread != model.SpreadFlow:
		clash("spread", "there is nothing to spread over with addresses: masquerade, which is one address")
	case r.Masquerade && r.assign:
		clash("assign", "assign: true makes no sense with addresses: masquerade, which are on the device already")
	case r.Block > 0 && r.Spread != model.SpreadClient:
		clash("spread", "with block each client has its address and ports; want spread: client, or leave the key out")
	case r.Block > 0 && r.whenFull == 0:
		clash("when_full", "with block a client whose ports are in use gets no others; want when_full: fail, or leave the key out")
	case r.Spread == model.SpreadFlow && r.whenFull == 1:
		clash("when_full", "with spread: flow a connection never waits for one address; want when_full: spill, or leave the key out")
	case len(r.From) > 0 && len(r.To) > 0 && !slices.Equal(familiesOf(r.From), familiesOf(r.To)):
		clash("to", "from and to are not of the same families: no packet goes from an IPv4 to an IPv6 address; want prefixes of one family in both, or of both in both")
	default:
		r.checkFamilies()
	}
}

// checkFamilies holds addresses and clients of each family together.
func (r *poolReader) checkFamilies() {
	clients := 0
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		is := func(p netip.Prefix) bool { return model.FamilyOf(p.Addr()) == f }
		for _, m := range []struct {
			key  string
			list []netip.Prefix
		}{{"from", r.From}, {"to", r.To}} {
			if i := slices.IndexFunc(m.list, is); i >= 0 && !r.Has(f) {
				p := r.keys["addresses"]
				r.add(p.at, p.w, "", fmt.Sprintf("no %s address, but %s has %s; want addresses of both families, or other prefixes", familyName(f), m.key, m.list[i]))
				return
			}
		}
		n := r.countAddrs(f)
		if !n.IsInt64() || n.Int64() > model.MaxPoolAddresses {
			p := r.keys["addresses"]
			r.add(p.at, p.w, "", fmt.Sprintf("%s %s addresses; allowed: up to %d", n, familyName(f), model.MaxPoolAddresses))
			return
		}
		if r.Block > 0 && !r.checkBlocks(f, int(n.Int64()), &clients) {
			return
		}
	}
	if _, has := r.keys["from"]; r.Block > 0 && !has {
		p := r.keys["block"]
		r.add(p.at, p.w, "", "block needs the clients that get one; want from with their prefixes")
	}
}

// countAddrs returns the number of the pool's addresses of family f.
func (r *poolReader) countAddrs(f model.Family) *big.Int {
	sum := new(big.Int)
	for _, a := range r.Addresses {
		if model.FamilyOf(a.Lo) == f {
			lo, hi := new(big.Int).SetBytes(a.Lo.AsSlice()), new(big.Int).SetBytes(a.Hi.AsSlice())
			sum.Add(sum, hi.Sub(hi, lo)).Add(sum, big.NewInt(1))
		}
	}
	return sum
}

// checkBlocks wants a block for each client of family f. all counts the clients.
func (r *poolReader) checkBlocks(f model.Family, addrs int, all *int) bool {
	p := r.keys["block"]
	per := 0
	for _, q := range r.Ports {
		per += q.Len() / r.Block
	}
	if per == 0 {
		r.add(p.at, p.w, "", fmt.Sprintf("no range of ports holds %d; allowed here: up to %d", r.Block, longest(r.Ports)))
		return false
	}
	n := 0
	for _, c := range r.From {
		if model.FamilyOf(c.Addr()) != f {
			continue
		}
		if bits := c.Addr().BitLen() - c.Bits(); bits > 20 || n > model.MaxPoolClients {
			n = model.MaxPoolClients + 1
		} else {
			n += 1 << bits
		}
	}
	if *all += n; *all > model.MaxPoolClients {
		p = r.keys["from"]
		r.add(p.at, p.w, "", fmt.Sprintf("more than %d clients, each of which would have a block; allowed: up to %d addresses in from", model.MaxPoolClients, model.MaxPoolClients))
		return false
	}
	if n > addrs*per {
		r.add(p.at, p.w, "", fmt.Sprintf("%d %s clients in from, and only %d blocks of %d ports (addresses: %d, blocks on each: %d); want at least %d addresses, smaller blocks, or fewer clients",
			n, familyName(f), addrs*per, r.Block, addrs, per, (n+per-1)/per))
		return false
	}
	return true
}

func longest(list []model.PortRange) int {
	n := 0
	for _, p := range list {
		n = max(n, p.Len())
	}
	return n
}

// finishEgress checks what needs the whole file: the pools against each other and against
// the services.
func (d *decoder) finishEgress() {
	var all []poolAddrs
	for _, r := range d.pools.list {
		all = append(all, r.addrs...)
		r.resolveAssign()
	}
	slices.SortStableFunc(all, func(a, b poolAddrs) int { return a.Lo.Compare(b.Lo) })
	d.checkShared(all)
	d.checkVIPs(all)
	for _, u := range d.pools.uses {
		d.checkUse(u)
	}
}

// resolveAssign names the device that holds the pool's addresses.
func (r *poolReader) resolveAssign() {
	if !r.assign || r.bad {
		return
	}
	if len(r.Out) != 1 {
		p := r.keys["assign"]
		r.add(p.at, p.w, "true", fmt.Sprintf("assign: true puts the addresses on the device of out, and there are %d; want out with one device, or a pool for each", len(r.Out)))
		return
	}
	r.Assign = r.Out[0]
}

// checkShared finds addresses that two pools have. all is sorted; then a range can only
// overlap the one before it that reaches furthest.
func (d *decoder) checkShared(all []poolAddrs) {
	var far *poolAddrs
	for i := range all {
		a := &all[i]
		if far != nil && far.pool != a.pool && far.Lo.Is4() == a.Lo.Is4() && !far.Hi.Less(a.Lo) {
			first, second := far, a
			if first.at.Compare(second.at) > 0 {
				first, second = second, first
			}
			d.add(second.at, second.w, rangeText(second.AddrRange), fmt.Sprintf("%s overlaps %s of pool %s in line %d; an address belongs to one pool",
				rangeText(second.AddrRange), rangeText(first.AddrRange), first.pool.label(), first.at.Line))
		}
		if far == nil || far.Hi.Less(a.Hi) {
			far = a
		}
	}
}

// label is what people call the pool.
func (r *poolReader) label() string {
	return cmp.Or(r.Name, fmt.Sprintf("egress[%d]", r.w.i))
}

// checkVIPs finds pools that would hand out ports on which services listen. all is sorted.
func (d *decoder) checkVIPs(all []poolAddrs) {
	told := map[*poolReader]bool{}
	for i := range d.listens {
		l := &d.listens[i]
		if l.Proto != model.TCP && l.Proto != model.UDP {
			continue
		}
		at, found := slices.BinarySearchFunc(all, l.Addr, func(a poolAddrs, to netip.Addr) int { return a.Lo.Compare(to) })
		if !found {
			at--
		}
		if at < 0 || all[at].Lo.Is4() != l.Addr.Is4() || all[at].Hi.Less(l.Addr) {
			continue
		}
		a := &all[at]
		if told[a.pool] || !slices.ContainsFunc(a.pool.Ports, l.Ports.Overlaps) {
			continue
		}
		told[a.pool] = true
		d.add(a.at, a.w, rangeText(a.AddrRange), fmt.Sprintf("%s has the address on which service %s listens in line %d (%s), and the port is among the pool's; want other addresses, or ports without it",
			rangeText(a.AddrRange), cmp.Or(l.s.Name, fmt.Sprintf("services[%d]", l.i)), l.at.Line, l.Listen))
	}
}

// checkUse holds a service's source against the pools.
func (d *decoder) checkUse(u poolUse) {
	i := slices.IndexFunc(d.pools.list, func(r *poolReader) bool { return r.Name == u.s.Source.Pool })
	if i < 0 {
		names := "there are none"
		var list []string
		for _, r := range d.pools.list {
			if r.Name != "" {
				list = append(list, r.Name)
			}
		}
		if len(list) > 0 {
			names = "there are " + strings.Join(list[:min(len(list), 10)], ", ")
		}
		d.add(u.at, u.w, u.s.Source.Pool, fmt.Sprintf("%s is not the name of an egress pool (%s); want %s", quote(u.s.Source.Pool), names, sourceForm))
		return
	}
	p := d.pools.list[i]
	if p.bad {
		return
	}
	if p.Block > 0 {
		d.add(u.at, u.w, p.Name, fmt.Sprintf("pool %s gives each client of its own a block of ports; want a pool without block", p.Name))
		return
	}
	for _, f := range u.s.Families() {
		if !p.Has(f) {
			d.add(u.at, u.w, p.Name, fmt.Sprintf("pool %s has no %s address, but the service listens on an %s address", p.Name, familyName(f), familyName(f)))
			return
		}
	}
}

// mustRange returns the addresses of a prefix that is written in the program.
func mustRange(s string) model.AddrRange {
	p := netip.MustParsePrefix(s)
	return model.AddrRange{Lo: p.Addr(), Hi: lastAddr(p)}
}
