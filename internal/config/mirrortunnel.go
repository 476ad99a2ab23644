package config

import (
	"fmt"
	"slices"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// vxlan reads a tunnel: its identifier, or that and more.
func (d *decoder) vxlan(m *mirrorAt, n yaml.Node, w where) {
	m.VXLAN.Port = model.VXLANPort
	switch n.Kind() {
	case yaml.Int:
		d.vxlanID(m, n, w)
	case yaml.Mapping:
		id := false
		for k, v := range n.Pairs() {
			switch w := w.of(k.Text()); k.Text() {
			case "id":
				id = true
				d.vxlanID(m, v, w)
			case "port":
				m.VXLAN.Port = uint16(d.number(v, w, 1, 65535))
			default:
				d.unknown(k, w.of(""), vxlanAllowed)
			}
		}
		if !id {
			d.add(n.Pos(), w, "", fmt.Sprintf("key id is missing; want the network identifier, 1 to %d", model.MaxVXLAN))
		}
	default:
		d.addf(n, w, "%s is not allowed; want a network identifier such as 42, or a mapping with the keys %s", describe(n), strings.Join(vxlanAllowed, ", "))
	}
}

func (d *decoder) vxlanID(m *mirrorAt, n yaml.Node, w where) {
	id := uint32(d.number(n, w, 1, model.MaxVXLAN))
	i := slices.IndexFunc(d.mirrors.all, func(o *mirrorAt) bool { return id != 0 && o.VXLAN.ID == id })
	if i >= 0 {
		d.addf(n, w, "the mirror in line %d has network identifier %d already; want another one for each", d.mirrors.all[i].at.Line, id)
		return
	}
	m.VXLAN.ID = id
}
