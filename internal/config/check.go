package config

import (
	"cmp"
	"fmt"
	"slices"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// listenAt is a listen entry and its place: services[i].listen[j], or of steering.
type listenAt struct {
	model.Listen
	s    *model.Service
	at   yaml.Pos
	i, j int32
}

func (l listenAt) where() where {
	key := "services"
	if l.s.Steered() {
		key = "steering"
	}
	w := top(key).in("listen").at(int(l.j))
	w.i = int(l.i)
	return w
}

// finish checks what needs the whole file, and fills in the defaults.
func (d *decoder) finish() {
	if d.full {
		return
	}
	if !d.services && !d.bad && len(d.lists) == 0 && !d.edges.there && !d.pools.there && !d.mirrors.there && len(d.steered) == 0 {
		d.add(yaml.Pos{Line: 1, Column: 1}, top(""), "", "key services is missing; want a list of services, services: [] for none")
	}
	if !d.seeded {
		d.cfg.HashSeed = model.DefaultHashSeed
	}
	if d.cfg.MarkMask == 0 {
		d.cfg.MarkMask = model.DefaultMarkMask
	}
	if d.cfg.Bindings == (model.Bindings{}) {
		d.cfg.Bindings = model.DefaultBindings()
	}
	d.finishSteering()
	d.checkGroups()
	d.resolveAssigns()
	d.resolveIns()
	d.resolveDevices()
	d.finishEdge()
	d.checkOverlap()
	d.finishEgress()
	d.finishMirrors()
}

// addListens keeps the listen entries of a service for checkOverlap.
func (d *decoder) addListens(l []listenAt) {
	if len(l) > 0 && len(d.listens)+len(l) > maxAllListens {
		d.add(l[0].at, l[0].where(), "", fmt.Sprintf("more than %d listen addresses and port ranges in one file", maxAllListens))
		d.full = true
		return
	}
	d.listens = append(d.listens, l...)
}

// checkOverlap finds addresses and ports that are listened on twice. It sorts them by
// address, protocol and first port; then a range can only overlap the one before it
// that reaches furthest.
func (d *decoder) checkOverlap() {
	slices.SortFunc(d.listens, func(a, b listenAt) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Ports.Lo, b.Ports.Lo), a.at.Compare(b.at))
	})
	var far *listenAt
	for i := range d.listens {
		l := &d.listens[i]
		switch {
		case far == nil || far.Addr != l.Addr || far.Proto != l.Proto || !far.Ports.Overlaps(l.Ports):
			far = l
			continue
		case far.Ports.Hi < l.Ports.Hi:
			d.overlap(far, l)
			far = l
			continue
		}
		d.overlap(far, l)
	}
}

// overlap notes the problem at the later of the two places.
func (d *decoder) overlap(a, b *listenAt) {
	if a.at.Compare(b.at) > 0 {
		a, b = b, a
	}
	other := "this service"
	if a.i != b.i {
		other = fmt.Sprintf("services[%d]", a.i)
		if a.s.Name != "" {
			other = "service " + a.s.Name
		}
	}
	d.add(b.at, b.where(), b.Listen.String(), fmt.Sprintf("%s overlaps %s of %s in line %d; an address, port and protocol belongs to one service", b.Listen, a.Listen, other, a.at.Line))
}
