package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// The words of the keys of mirrors.
var (
	viewWords      = []string{"client", "backend"}
	sampleWords    = []string{"flow", "packet"}
	directionWords = []string{"both", "requests", "answers"}
)

var mirrorSpan = span{time.Second, model.MaxMirrorFor, false, "1s to 30d, such as 10m, 30m or 2h"}

// mirrorReader is the mirrors while they are read.
type mirrorReader struct {
	there bool           // the key was there
	names map[string]int // name to line
	all   []*mirrorAt
}

// mirrorAt is a mirror, and where its parts are that are checked against the whole file.
type mirrorAt struct {
	*model.Mirror
	at          yaml.Pos
	w           where
	to          []place
	service     place
	in, out     []*matchDevice
	direction   place
	vxlan       place
	broken      bool
	hasSampleBy place
}

// matchDevice is a device or a group of in or out.
type matchDevice struct {
	place
	devices []string // resolveDevices fills it
}

func (d *decoder) mirrorList(n yaml.Node, w where) {
	d.mirrors.there = true
	if n.Kind() != yaml.Sequence {
		d.addf(n, w, "%s is not allowed; want a list of mirrors, such as [{name: analysis, to: 10.9.9.9}]", describe(n))
		return
	}
	if n.Len() > model.MaxMirrors {
		d.addf(n, w, "%d mirrors; allowed: up to %d", n.Len(), model.MaxMirrors)
		return
	}
	d.mirrors.names = map[string]int{}
	for i, c := range n.Items() {
		w := w
		w.i = i
		d.mirror(c, w)
	}
}

func (d *decoder) mirror(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a mirror with the keys %s", describe(n), strings.Join(mirrorAllowed, ", "))
		return
	}
	m := &mirrorAt{Mirror: &model.Mirror{Take: 1, Of: 1, Match: model.MirrorMatch{Requests: true, Answers: true}}, at: n.Pos(), w: w}
	before := len(d.problems)
	var name, to bool
	for k, v := range n.Pairs() {
		switch w := w.in(k.Text()); k.Text() {
		case "name":
			name = true
			d.mirrorName(m, v, w)
		case "match":
			d.mirrorMatch(m, v, w)
		case "to":
			to = true
			d.collectors(m, v, w)
		case "vxlan":
			m.vxlan = place{v.Pos(), w}
			d.vxlan(m, v, w)
		case "view":
			i, _ := d.word(v, w, viewWords)
			m.Backend = i == 1
		case "sample":
			d.sample(m, v, w)
		case "sample_by":
			i, _ := d.word(v, w, sampleWords)
			m.Packets, m.hasSampleBy = i == 1, place{v.Pos(), w}
		case "limit":
			m.Rate, m.Unit = d.mirrorRate(v, w)
		case "for":
			m.For = d.duration(v, w, mirrorSpan)
		default:
			d.unknown(k, w.in(""), mirrorAllowed)
		}
	}
	if !name {
		d.add(n.Pos(), w, "", "key name is missing; want a name, by which commands know the mirror")
	}
	if !to {
		d.add(n.Pos(), w, "", "key to is missing; want the address of the collector that gets the copies")
	}
	m.broken = len(d.problems) > before
	d.mirrors.all = append(d.mirrors.all, m)
	d.cfg.Mirrors = append(d.cfg.Mirrors, m.Mirror)
}

func (d *decoder) mirrorName(m *mirrorAt, n yaml.Node, w where) {
	s, ok := d.str(n, w, "a name"+inQuotes)
	if !ok {
		return
	}
	if why := badName(s); why != "" {
		d.addf(n, w, "%s is not the name of a mirror: %s", quote(s), why)
		return
	}
	if line := d.mirrors.names[s]; line != 0 {
		d.addf(n, w, "mirror %s is there twice; it was first given in line %d", quote(s), line)
		return
	}
	d.mirrors.names[s] = n.Pos().Line
	m.Name = s
}

func (d *decoder) collectors(m *mirrorAt, n yaml.Node, w where) {
	const form = "the address of a collector on a network of this machine, or a list with one of each family"
	d.oneOrEach(n, w, form, func(n yaml.Node, w where) {
		s, ok := d.str(n, w, form)
		if !ok {
			return
		}
		a, why := parseAddr(s)
		if why != "" {
			d.addf(n, w, "%s", why)
			return
		}
		if m.Collector(model.FamilyOf(a)).IsValid() {
			d.addf(n, w, "%s is a second collector of its family; want at most one for IPv4 and one for IPv6", a)
			return
		}
		m.To = append(m.To, a)
		m.to = append(m.to, place{n.Pos(), w})
		m.Said = append(m.Said, model.Pos{Line: n.Pos().Line, Column: n.Pos().Column})
	})
}

// sample reads "1/10".
func (d *decoder) sample(m *mirrorAt, n yaml.Node, w where) {
	form := fmt.Sprintf("a part such as 1/10, its first number from 1 to the second, that from 1 to %d", model.MaxSample)
	s, ok := d.str(n, w, form)
	if !ok {
		return
	}
	take, of, _ := strings.Cut(s, "/")
	a, errA := strconv.Atoi(take)
	b, errB := strconv.Atoi(of)
	if errA != nil || errB != nil || !digits(take, 7) || !digits(of, 7) || a < 1 || b > model.MaxSample || a > b {
		d.addf(n, w, "%s is not a sample; want %s", quote(s), form)
		return
	}
	m.Take, m.Of = uint32(a), uint32(b)
	if a == b {
		m.Take, m.Of = 1, 1
	}
}

// mirrorRate reads "20000/second".
func (d *decoder) mirrorRate(n yaml.Node, w where) (int, time.Duration) {
	const form = "a rate such as 20000/second or 600/minute, from 1 to 10000000"
	s, ok := d.str(n, w, form)
	if !ok {
		return 0, 0
	}
	number, word, _ := strings.Cut(s, "/")
	unit := unitWords[word]
	v, err := strconv.Atoi(number)
	if unit == 0 || err != nil || !digits(number, 8) || v < 1 || v > model.MaxMirrorRate {
		d.addf(n, w, "%s is not a rate; want %s", quote(s), form)
		return 0, 0
	}
	return v, unit
}

func (d *decoder) mirrorMatch(m *mirrorAt, n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a mapping with the keys %s", describe(n), strings.Join(matchAllowed, ", "))
		return
	}
	x := &m.Match
	for k, v := range n.Pairs() {
		switch w := w.of(k.Text()); k.Text() {
		case "in":
			m.in = d.matchDevices(v, w)
		case "out":
			m.out = d.matchDevices(v, w)
		case "direction":
			i, _ := d.word(v, w, directionWords)
			x.Requests, x.Answers, m.direction = i != 2, i != 1, place{v.Pos(), w}
		case "protocol":
			if v.Kind() == yaml.Int {
				x.Proto = model.Proto(d.number(v, w, 1, 255))
			} else if i, ok := d.word(v, w, openProtoWords()); ok {
				x.Proto = openProtos[i].proto
			}
		case "port":
			d.matchPorts(x, v, w)
		case "from":
			x.From = d.prefixes(v, w)
		case "to":
			x.To = d.prefixes(v, w)
		case "service":
			x.Service, _ = d.str(v, w, "the name of a service"+inQuotes)
			m.service = place{v.Pos(), w}
		default:
			d.unknown(k, w.of(""), matchAllowed)
		}
	}
}

func (d *decoder) matchDevices(n yaml.Node, w where) (out []*matchDevice) {
	d.oneOrEach(n, w, "devices or groups", func(n yaml.Node, w where) {
		m := &matchDevice{place: place{n.Pos(), w}}
		d.deviceWord(&m.devices, n, w)
		out = append(out, m)
	})
	return out
}

func (d *decoder) matchPorts(x *model.MirrorMatch, n yaml.Node, w where) {
	const form = "ports, such as 80, 80,443 or 8000-8010"
	d.oneOrEach(n, w, form, func(n yaml.Node, w where) {
		s := n.Text()
		if n.Kind() != yaml.Int {
			var ok bool
			if s, ok = d.str(n, w, form); !ok {
				return
			}
		}
		for part := range strings.SplitSeq(s, ",") {
			p, why := parsePorts(part)
			if why != "" {
				d.addf(n, w, "%s; want %s", why, form)
				return
			}
			if slices.ContainsFunc(x.Ports, p.Overlaps) {
				d.addf(n, w, "%s is there already", p)
				return
			}
			x.Ports = append(x.Ports, p)
		}
	})
}

// finishMirrors checks mirrors against the rest of the file.
func (d *decoder) finishMirrors() {
	for _, m := range d.mirrors.all {
		d.finishDevices(m)
		if m.broken {
			continue
		}
		x := &m.Match
		if m.Packets && !m.Sampled() {
			d.add(m.hasSampleBy.at, m.hasSampleBy.w, "packet", "sample_by needs a sample; want sample: 1/10 or the like")
		}
		if len(x.Ports) > 0 && x.Proto != 0 && x.Proto != model.TCP && x.Proto != model.UDP && x.Proto != model.SCTP {
			d.add(m.at, m.w, "", fmt.Sprintf("protocol %s has no ports; want tcp, udp or sctp with port", x.Proto))
		}
		if x.Requests != x.Answers && len(x.Devices)+len(x.Ports)+len(x.From)+len(x.To) == 0 && x.Service == "" {
			d.add(m.direction.at, m.direction.w, "", "nothing tells requests from answers; want direction: both, or one of in, out, port, from, to and service")
		}
		switch s := d.cfg.Service(x.Service); {
		case x.Service != "" && s == nil:
			d.add(m.service.at, m.service.w, x.Service, fmt.Sprintf("there is no service %s", quote(x.Service)))
		case s != nil && s.Direct():
			d.add(m.service.at, m.service.w, x.Service, fmt.Sprintf("service %s has forward: direct, so its packets are sent on before mirrors see them; want another service", quote(x.Service)))
		}
		if m.VXLAN.ID != 0 && len(m.To) != 1 {
			d.add(m.vxlan.at, m.vxlan.w, "", "a tunnel has one other end, for copies of both families; want one address with to")
			continue
		}
		for i, a := range m.To {
			if why := takesPart(&d.cfg, m.Mirror, a); why != "" {
				d.add(m.to[i].at, m.to[i].w, a.String(), fmt.Sprintf("%s cannot be the collector: %s; want an address that takes no part", a, why))
			}
		}
		if m.VXLAN.ID != 0 {
			m.VXLAN.Remote = m.To[0]
			m.To = m.VXLAN.Hops()
		}
	}
}

// takesPart says why a is no address of somebody who only looks at what m copies, "" if it may
// be.
func takesPart(cfg *model.Config, m *model.Mirror, a netip.Addr) string {
	for _, s := range cfg.Services {
		for _, l := range s.Listen {
			if l.Addr == a {
				return "service " + s.Name + " listens on it"
			}
		}
		for _, b := range s.Backends {
			if b.Addr == a {
				return "it is a backend of service " + s.Name
			}
		}
		if s.Source.Addr(model.FamilyOf(a)) == a {
			return "service " + s.Name + " has it as its source"
		}
	}
	for _, p := range cfg.Egress {
		if slices.ContainsFunc(p.Addresses, func(r model.AddrRange) bool { return r.Lo.Compare(a) <= 0 && a.Compare(r.Hi) <= 0 }) {
			return "egress pool " + p.Name + " has it"
		}
	}
	in := func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) }
	switch {
	case slices.ContainsFunc(m.Match.From, in):
		return "it is a client, by from"
	case slices.ContainsFunc(m.Match.To, in):
		return "it is a server, by to"
	}
	return ""
}

// finishDevices puts the devices of in and out into the match.
func (d *decoder) finishDevices(m *mirrorAt) {
	for _, a := range m.in {
		if m.Backend {
			d.add(a.at, a.w, "", "in is for view: client; with view: backend want out, the devices towards the backends")
		}
	}
	for _, a := range m.out {
		if !m.Backend {
			d.add(a.at, a.w, "", "out is for view: backend; with view: client want in, the devices towards the clients")
		}
	}
	for _, a := range append(m.in, m.out...) {
		for _, dev := range a.devices {
			if !slices.Contains(m.Match.Devices, dev) {
				m.Match.Devices = append(m.Match.Devices, dev)
				m.Match.Said = append(m.Match.Said, model.Pos{Line: a.at.Line, Column: a.at.Column})
			}
		}
	}
}

// ParseMirror reads one mirror, in the form of an entry of mirrors and in one line, and checks it
// against cfg.
func ParseMirror(cfg *model.Config, text string) (*model.Mirror, error) {
	d := yaml.Read("mirrors: ["+text+"]", func() *decoder { return &decoder{name: "mirror", names: map[string]int{}} })
	d.cfg.Interfaces, d.cfg.Services, d.cfg.Egress = cfg.Interfaces, cfg.Services, cfg.Egress
	if !d.full {
		d.resolveDevices()
		d.finishMirrors()
	}
	switch {
	case len(d.problems) > 0:
		return nil, d.errors()
	case len(d.cfg.Mirrors) != 1:
		return nil, Errors{{File: "mirror", Msg: "want one mirror"}}
	}
	m := d.cfg.Mirrors[0]
	m.Said, m.Match.Said = nil, nil
	return m, nil
}
