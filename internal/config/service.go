package config

import (
	"fmt"
	"net/netip"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// serviceReader is a service while it is read, with the places that the checks of its
// parts against each other need.
type serviceReader struct {
	*decoder
	w  where
	at yaml.Pos
	s  *model.Service

	listenAt  []listenAt // one for each of s.Listen
	backendAt []place    // one for each of s.Backends
	sourceAt  place
	broken    bool // listen, source or backends are missing or have a mistake in them

	checkAt    map[int]place // of the backends' own checks, and of the service's, as -1
	minHealthy place
	slowStart  place
	unsure     bool // what says how health is used has a mistake in it

	floods floodReader
	steer  steerReader // of a steered service

	backendMax []place // of max_connections of backends
	inAt       []inAt  // the entries of in

	said []saidKey // the keys, in the order of the text
}

type place struct {
	at yaml.Pos
	w  where
}

// service reads one entry of services.
func (d *decoder) service(w where, n yaml.Node) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a service with the keys %s", describe(n), strings.Join(serviceAllowed, ", "))
		return
	}
	r := &serviceReader{decoder: d, w: w, at: n.Pos(), s: &model.Service{}}
	var has struct{ name, listen, backends bool }
	for k, v := range n.Pairs() {
		r.said = append(r.said, saidKey{k.Text(), k.Pos(), r.w.in(k.Text()), v})
		switch w := r.w.in(k.Text()); k.Text() {
		case "name":
			has.name = true
			r.name(v, w)
		case "listen":
			has.listen = true
			r.listen(v, w)
		case "backends":
			has.backends = true
			r.backends(v, w)
		default:
			r.option(k, v, w)
		}
	}
	r.missing(has.name, "name", "want a name, such as name: web")
	r.missing(has.listen, "listen", `want an address, such as listen: "198.51.100.10:80/tcp"`)
	r.missing(has.backends || r.s.Local(), "backends", "want a list, backends: [] for a service without any")
	d.addListens(r.listenAt)
	r.checkForward()
	r.checkFloods()
	if !r.broken && !r.s.Local() {
		r.check()
		if !r.unsure {
			r.checkHealth()
		}
	}
	d.cfg.Services = append(d.cfg.Services, r.s)
}

// option reads a key that has a default.
func (r *serviceReader) option(k, v yaml.Node, w where) {
	switch k.Text() {
	case "forward":
		r.forward(v, w)
	case "track":
		r.track(v, w)
	case "in":
		r.in(v, w)
	case "limit":
		r.limits(v, w)
	case "syn_proxy":
		r.floods.proxy = place{v.Pos(), w}
		r.s.SynProxy = r.boolean(v, w)
	case "balance":
		i, _ := r.word(v, w, model.BalanceNames())
		r.s.Balance = model.Balance(i)
	case "source":
		r.sourceAt = place{v.Pos(), w}
		r.source(v, w)
	case "sticky":
		r.s.Sticky = r.duration(v, w, stickySpan)
	case "when_all_down":
		i, _ := r.word(v, w, allDownWords)
		r.s.WhenAllDown = model.AllDown(i)
	case "assign":
		if s, ok := r.str(v, w, "a device or a group"+inQuotes); ok {
			r.assigns = append(r.assigns, assignAt{r.s, s, v.Pos(), w})
		}
	case "max_connections":
		r.s.MaxConnections = int(r.number(v, w, 1, model.MaxConnections))
	case "check", "slow_start", "min_healthy", "on_down":
		before := len(r.problems)
		r.healthOption(k.Text(), v, w)
		r.unsure = r.unsure || len(r.problems) > before
	default:
		r.unknown(k, r.w, serviceAllowed)
	}
}

// The words of keys, in the order of the model's constants.
var (
	allDownWords = []string{model.Reject.String(), model.Drop.String(), model.FailOpen.String()}
	onDownWords  = []string{model.Keep.String(), model.Reset.String()}
)

// healthOption reads a key about the service's health.
func (r *serviceReader) healthOption(key string, v yaml.Node, w where) {
	at := place{v.Pos(), w}
	switch key {
	case "check":
		if c := r.healthCheck(v, w); c != nil && c.Kind != model.CheckNone {
			r.s.Check = c
		}
		r.keepCheckAt(-1, at)
	case "slow_start":
		r.slowStart = at
		r.s.SlowStart = r.duration(v, w, slowStartSpan)
	case "min_healthy":
		r.minHealthy = at
		r.s.MinHealthy = r.percent(v, w, 100)
	case "on_down":
		i, _ := r.word(v, w, onDownWords)
		r.s.OnDown = model.OnDown(i)
	}
}

// keepCheckAt keeps the place of the check of backend i, or with -1 of the service.
func (r *serviceReader) keepCheckAt(i int, at place) {
	if r.checkAt == nil {
		r.checkAt = map[int]place{}
	}
	r.checkAt[i] = at
}

func (r *serviceReader) missing(has bool, key, want string) {
	if !has {
		r.broken = true
		r.add(r.at, r.w, "", fmt.Sprintf("key %s is missing; %s", key, want))
	}
}

func (r *serviceReader) name(n yaml.Node, w where) {
	s, ok := r.str(n, w, "a name"+inQuotes)
	if !ok {
		return
	}
	if why := badName(s); why != "" {
		r.addf(n, w, "%s is not a name: %s", quote(s), why)
		return
	}
	if line := r.names[s]; line != 0 {
		r.addf(n, w, "name %s is there twice; it was first given in line %d", quote(s), line)
		return
	}
	r.s.Name = s
	r.names[r.s.Name] = n.Pos().Line
}

func (r *serviceReader) listen(n yaml.Node, w where) {
	switch {
	case n.Kind() != yaml.Sequence:
		r.listenOne(n, w)
	case n.Len() == 0:
		r.broken = true
		r.addf(n, w, "a service that listens nowhere is not allowed; want at least one address")
	}
	for j, c := range n.Items() {
		r.listenOne(c, w.at(j))
	}
}

const listenForm = `ADDRESS:PORTS/PROTOCOL, such as "198.51.100.10:80,8000-8010/tcp" or "[2001:db8::10]:80"`

func (r *serviceReader) listenOne(n yaml.Node, w where) {
	s, ok := r.str(n, w, listenForm)
	if !ok {
		r.broken = true
		return
	}
	var why string
	if r.s.Listen, why = parseListen(r.s.Listen, s); why != "" {
		r.broken = true
		r.refuse(n, w, why)
	}
	for i := len(r.listenAt); i < len(r.s.Listen); i++ {
		r.listenAt = append(r.listenAt, listenAt{r.s.Listen[i], r.s, n.Pos(), int32(w.i), int32(w.j)})
	}
}

const sourceForm = "keep, masquerade, an address (a list with one for each family), or the name of an egress pool"

// source reads what the backend sees as the client's address.
func (r *serviceReader) source(n yaml.Node, w where) {
	if n.Kind() == yaml.Sequence {
		if n.Len() == 0 {
			r.broken = true
			r.addf(n, w, "a list without entries is not allowed; want "+sourceForm)
		}
		for j, c := range n.Items() {
			r.sourceAddr(c, w.at(j))
		}
		return
	}
	switch {
	case n.Kind() == yaml.String && n.Text() == "keep":
	case n.Kind() == yaml.String && n.Text() == "masquerade":
		r.s.Source.Mode = model.SourceMasquerade
	case n.Kind() == yaml.String && badName(n.Text()) == "" && !looksLikeAddr(n.Text()):
		r.s.Source = model.SourceNAT{Mode: model.SourcePool, Pool: n.Text()}
		r.pools.uses = append(r.pools.uses, poolUse{r.s, n.Pos(), w})
	default:
		r.sourceAddr(n, w)
	}
}

func (r *serviceReader) sourceAddr(n yaml.Node, w where) {
	s, ok := r.str(n, w, sourceForm)
	if !ok {
		r.broken = true
		return
	}
	a, why := parseAddr(s)
	if why == "" && r.s.Source.Addr(model.FamilyOf(a)).IsValid() {
		why = quote(s) + " is a second address of its family"
	}
	if why != "" {
		r.broken = true
		r.addf(n, w, "%s; want %s", why, sourceForm)
		return
	}
	r.s.Source.Mode = model.SourceAddress
	if a.Is4() {
		r.s.Source.V4 = a
	} else {
		r.s.Source.V6 = a
	}
}

func (r *serviceReader) backends(n yaml.Node, w where) {
	switch {
	case n.Kind() != yaml.Sequence:
		r.broken = true
		r.addf(n, w, "%s is not allowed; want a list of backends, [] for none", describe(n))
		return
	case n.Len() > model.MaxBackends:
		r.broken = true
		r.addf(n, w, "%d backends; allowed: up to %d", n.Len(), model.MaxBackends)
		return
	case n.Len() > 0:
		r.s.Backends = make([]model.Backend, 0, n.Len())
		r.backendAt = make([]place, 0, n.Len())
	}
	for j, c := range n.Items() {
		r.backend(c, w.at(j))
	}
	r.checkTwins()
}

// refuse notes why the text of n is wrong, and the text where why is about a part of it.
func (r *serviceReader) refuse(n yaml.Node, w where, why string) {
	if whole := quote(n.Text()); !strings.HasPrefix(why, whole) {
		why = whole + ": " + why
	}
	r.addf(n, w, "%s", why)
}

const backendForm = `ADDRESS or ADDRESS:PORT, such as "10.1.1.1:8080" or "[2001:db8::1]:8080"`

// backend reads an entry of backends: an address alone, or a mapping.
func (r *serviceReader) backend(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		if b, ok := r.backendAddress(n, w); ok {
			r.s.Backends = append(r.s.Backends, b)
			r.backendAt = append(r.backendAt, place{n.Pos(), w})
		}
		return
	}
	b := model.Backend{Weight: 1}
	var at place
	ok, has := true, false
	for k, v := range n.Pairs() {
		before := len(r.problems)
		switch w := w.of(k.Text()); k.Text() {
		case "address":
			has, at = true, place{v.Pos(), w}
			var a model.Backend
			a, ok = r.backendAddress(v, w)
			b.Addr, b.Ports = a.Addr, a.Ports
		case "weight":
			b.Weight = int(r.number(v, w, 0, model.MaxWeight))
			r.broken = r.broken || len(r.problems) > before
		case "max_connections":
			b.MaxConnections = int(r.number(v, w, 1, model.MaxConnections))
			r.backendMax = append(r.backendMax, place{k.Pos(), w})
		case "backup":
			b.Backup = r.boolean(v, w)
			r.unsure = r.unsure || len(r.problems) > before
		case "check":
			b.Check = r.healthCheck(v, w)
			r.keepCheckAt(len(r.s.Backends), place{v.Pos(), w})
			r.unsure = r.unsure || len(r.problems) > before
		default:
			r.unknown(k, w.of(""), backendAllowed)
		}
	}
	if !has {
		r.broken = true
		r.addf(n, w, "key address is missing; want %s", backendForm)
		return
	}
	if ok {
		r.s.Backends = append(r.s.Backends, b)
		r.backendAt = append(r.backendAt, at)
	}
}

func (r *serviceReader) backendAddress(n yaml.Node, w where) (model.Backend, bool) {
	s, ok := r.str(n, w, backendForm)
	if !ok {
		r.broken = true
		return model.Backend{}, false
	}
	b, why := parseBackend(s)
	if why != "" {
		r.broken = true
		r.refuse(n, w, why)
	}
	return b, why == ""
}

// identity is what backends of a service must differ in.
type identity struct {
	addr  netip.Addr
	ports model.PortRange
}

// checkTwins finds backends with the same identity.
func (r *serviceReader) checkTwins() {
	list := r.s.Backends
	if len(list) > 16 {
		seen := make(map[identity]int, len(list))
		for i, b := range list {
			id := identity{b.Addr, b.Ports}
			if first, ok := seen[id]; ok {
				r.twin(first, i)
				continue
			}
			seen[id] = i
		}
		return
	}
	for i, b := range list { // the common case, without a map
		for first, o := range list[:i] {
			if o.Addr == b.Addr && o.Ports == b.Ports {
				r.twin(first, i)
				break
			}
		}
	}
}

func (r *serviceReader) twin(first, i int) {
	r.broken = true
	p, b := r.backendAt[i], r.s.Backends[i]
	r.add(p.at, p.w, b.ID(), fmt.Sprintf("backend %s is there twice; it was first given in line %d", b.ID(), r.backendAt[first].at.Line))
}
