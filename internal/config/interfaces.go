package config

import (
	"fmt"
	"slices"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// groupDevice is a device as it stands in a group.
type groupDevice struct {
	name string
	n    yaml.Pos
	w    where
}

// assignAt is an assign key whose group, if it is one, may come later in the file.
type assignAt struct {
	s    *model.Service
	text string
	at   yaml.Pos
	w    where
}

// deviceAt is a device or a group, which may come later in the file, and the list of devices
// that it is for.
type deviceAt struct {
	list *[]string
	text string
	at   yaml.Pos
	w    where
}

// interfaces reads the groups.
func (d *decoder) interfaces(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want groups, such as {outside: [eth1], inside: [eth0]}", describe(n))
		return
	}
	for k, v := range n.Pairs() {
		if why := badName(k.Text()); why != "" {
			d.addf(k, w, "%s is not the name of a group: %s", quote(k.Text()), why)
			continue
		}
		name := k.Text()
		devices := d.deviceList(v, w.in(name))
		if len(devices) == 0 {
			continue
		}
		if d.cfg.Interfaces == nil {
			d.cfg.Interfaces = map[string][]string{}
		}
		d.cfg.Interfaces[name] = devices
	}
}

// deviceList reads the devices of one group.
func (d *decoder) deviceList(n yaml.Node, w where) []string {
	if n.Kind() != yaml.Sequence {
		return d.device(nil, n, w)
	}
	if n.Len() == 0 {
		d.addf(n, w, "a group without devices is not allowed")
	}
	var out []string
	for i, c := range n.Items() {
		out = d.device(out, c, w.at(i))
	}
	return out
}

func (d *decoder) device(to []string, n yaml.Node, w where) []string {
	s, ok := d.str(n, w, "the name of a device, such as eth1"+inQuotes)
	if !ok {
		return to
	}
	if why := badDevice(s); why != "" {
		d.addf(n, w, "%s is not the name of a network device: %s", quote(s), why)
		return to
	}
	if slices.Contains(to, s) {
		d.addf(n, w, "device %s is in this group twice", quote(s))
		return to
	}
	d.devices = append(d.devices, groupDevice{s, n.Pos(), w})
	return append(to, s)
}

// inAt is an entry of the key in of a service.
type inAt struct {
	s    *model.Service
	text string
	at   yaml.Pos
	w    where
}

// resolveIns puts devices in the place of groups.
func (d *decoder) resolveIns() {
	for _, a := range d.clientIn {
		devices, isGroup := d.cfg.Interfaces[a.text]
		if why := badDevice(a.text); !isGroup && why != "" {
			d.add(a.at, a.w, a.text, fmt.Sprintf("%s is neither a group of interfaces nor the name of a network device: %s", quote(a.text), why))
			continue
		}
		if !isGroup {
			devices = []string{a.text}
		}
		for _, dev := range devices {
			switch {
			case slices.Contains(a.s.In, dev):
				d.add(a.at, a.w, a.text, fmt.Sprintf("device %s is in this list already", quote(dev)))
			case dev == "lo":
				d.add(a.at, a.w, a.text, "packets of the box to itself never go to a backend with forward: direct; want a device by which clients come in")
			default:
				a.s.In = append(a.s.In, dev)
			}
		}
	}
}

// badDevice says why s can not be the name of a network device, "" when it can: what
// dev_valid_name of net/core/dev.c refuses, and all that is not printable ASCII.
func badDevice(s string) string {
	switch {
	case s == "" || len(s) > 15:
		return "allowed: 1 to 15 bytes"
	case s == "." || s == "..":
		return `"." and ".." are not allowed`
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || c == '/' || c == ':' {
			return "allowed: printable ASCII without space, slash and colon"
		}
	}
	return ""
}

// badName says why s can not name a service or group, "" when it can.
func badName(s string) string {
	const allowed = "allowed: 1 to 63 letters, digits, dots, dashes and underscores, the first a letter or digit"
	if s == "" || len(s) > model.MaxNameLen {
		return allowed
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return allowed
		}
	}
	return ""
}

// checkGroups finds groups that have the name of a device, so that a word which names
// both never has to be guessed.
func (d *decoder) checkGroups() {
	for _, g := range d.devices {
		if _, ok := d.cfg.Interfaces[g.name]; ok {
			d.add(g.n, g.w, g.name, fmt.Sprintf("device %s has the name of a group; name the group otherwise", quote(g.name)))
		}
	}
}

// resolveAssigns puts devices in the place of groups.
func (d *decoder) resolveAssigns() {
	for _, a := range d.assigns {
		devices, isGroup := d.cfg.Interfaces[a.text]
		switch why := badDevice(a.text); {
		case isGroup && len(devices) != 1:
			d.add(a.at, a.w, a.text, fmt.Sprintf("group %s has %d devices; want a device, or a group with exactly one", quote(a.text), len(devices)))
		case isGroup:
			a.s.Assign = devices[0]
		case why != "":
			d.add(a.at, a.w, a.text, fmt.Sprintf("%s is neither a group of interfaces nor the name of a network device: %s", quote(a.text), why))
		default:
			a.s.Assign = a.text
		}
	}
}

// deviceWords reads devices or groups, one or a list; resolveDevices fills to.
func (d *decoder) deviceWords(to *[]string, n yaml.Node, w where) {
	d.oneOrEach(n, w, "devices or groups", func(n yaml.Node, w where) { d.deviceWord(to, n, w) })
}

// deviceWord reads a device or a group; resolveDevices fills to.
func (d *decoder) deviceWord(to *[]string, n yaml.Node, w where) {
	if s, ok := d.str(n, w, "a device or a group of interfaces"+inQuotes); ok {
		d.words = append(d.words, deviceAt{to, s, n.Pos(), w})
	}
}

// resolveDevices puts devices in the place of groups.
func (d *decoder) resolveDevices() {
	for _, a := range d.words {
		devices, isGroup := d.cfg.Interfaces[a.text]
		if !isGroup {
			why := badDevice(a.text)
			if why == "" && strings.ContainsAny(a.text, `"*\`) {
				why = `" * and \ are not allowed here`
			}
			if why != "" {
				d.add(a.at, a.w, a.text, fmt.Sprintf("%s is neither a group of interfaces nor the name of a network device: %s", quote(a.text), why))
				continue
			}
			devices = []string{a.text}
		}
		for _, dev := range devices {
			if strings.ContainsAny(dev, `"*\`) {
				d.add(a.at, a.w, a.text, fmt.Sprintf(`device %s of the group has a " or * or \ in its name, which is not allowed here`, quote(dev)))
			} else if !slices.Contains(*a.list, dev) {
				*a.list = append(*a.list, dev)
			}
		}
	}
}
