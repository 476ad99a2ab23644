package config

import (
	"fmt"
	"strings"
	"time"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// kinds is a set of kinds of checks.
type kinds uint16

func kindSet(list ...model.CheckKind) (s kinds) {
	for _, k := range list {
		s |= 1 << k
	}
	return s
}

func (s kinds) has(k model.CheckKind) bool { return s&(1<<k) != 0 }

// String returns the names with "or" between them.
func (s kinds) String() string {
	var names []string
	for k := range model.CheckNone {
		if s.has(k) {
			names = append(names, k.String())
		}
	}
	if last := len(names) - 1; last > 0 {
		return strings.Join(names[:last], ", ") + " or " + names[last]
	}
	return strings.Join(names, "")
}

const allKinds kinds = 1<<model.CheckNone - 1

// checkKey is a key of a check: the kinds that it belongs to, and how it is read. The key
// that makes a check one of a kind has the name of the kind.
type checkKey struct {
	of   kinds
	read func(r *checkReader, n yaml.Node, w where)
}

var checkTable = map[string]checkKey{
	"tcp":  {kindSet(model.CheckTCP), (*checkReader).just},
	"http": {kindSet(model.CheckHTTP), (*checkReader).path}, "https": {kindSet(model.CheckHTTPS), (*checkReader).path},
	"udp":  {kindSet(model.CheckUDP), (*checkReader).udp},
	"dns":  {kindSet(model.CheckDNS), (*checkReader).dnsName},
	"grpc": {kindSet(model.CheckGRPC), (*checkReader).grpc},
	"icmp": {kindSet(model.CheckICMP), (*checkReader).just},
	"exec": {kindSet(model.CheckExec), (*checkReader).exec},

	"every":   {allKinds, func(r *checkReader, n yaml.Node, w where) { r.c.Every = r.duration(n, w, everySpan) }},
	"timeout": {allKinds, (*checkReader).timeout},
	"rise":    {allKinds, func(r *checkReader, n yaml.Node, w where) { r.c.Rise = int(r.number(n, w, 1, 100)) }},
	"fall":    {allKinds, func(r *checkReader, n yaml.Node, w where) { r.c.Fall = int(r.number(n, w, 1, 100)) }},
	"jitter":  {allKinds, func(r *checkReader, n yaml.Node, w where) { r.c.Jitter = r.percent(n, w, 50) }},
	"port": {allKinds &^ kindSet(model.CheckICMP), func(r *checkReader, n yaml.Node, w where) {
		r.c.Port = uint16(r.number(n, w, 1, 65535))
	}},

	"host":   {kindSet(model.CheckHTTP, model.CheckHTTPS, model.CheckGRPC), (*checkReader).host},
	"method": {kindSet(model.CheckHTTP, model.CheckHTTPS), (*checkReader).method},
	"status": {kindSet(model.CheckHTTP, model.CheckHTTPS), (*checkReader).status},
	"body":   {kindSet(model.CheckHTTP, model.CheckHTTPS), (*checkReader).body},
	"verify": {kindSet(model.CheckHTTPS, model.CheckGRPC), (*checkReader).verify},
	"plain":  {kindSet(model.CheckGRPC), func(r *checkReader, n yaml.Node, w where) { r.c.Plain = r.boolean(n, w) }},
	"type":   {kindSet(model.CheckDNS), (*checkReader).dnsType},
}

// checkReader is a check while it is read.
type checkReader struct {
	*decoder
	c *model.Check

	timeoutAt, bodyAt, verifyAt place // where they are said
}

// newCheck returns a check of a kind with the defaults.
func newCheck(k model.CheckKind) *model.Check {
	c := &model.Check{
		Kind: k, Every: model.DefaultCheckEvery, Rise: model.DefaultCheckRise,
		Fall: model.DefaultCheckFall, Jitter: model.DefaultCheckJitter,
		Timeout: defaultTimeout(model.DefaultCheckEvery),
	}
	switch k {
	case model.CheckNone:
		return &model.Check{Kind: k}
	case model.CheckHTTP:
		c.Method = "GET"
	case model.CheckHTTPS:
		c.Method, c.Verify = "GET", true
	case model.CheckDNS:
		c.Type = "A"
	case model.CheckGRPC:
		c.Plain = true
	}
	return c
}

func defaultTimeout(every time.Duration) time.Duration {
	return min(model.DefaultCheckTimeout, every)
}

const (
	checkWords = "tcp, icmp, none"
	checkForm  = "one of " + checkWords + ", or a mapping such as {http: /healthz, every: 2s}"
)

// healthCheck reads how health is asked for: a word or a mapping. It returns nil where no
// kind can be told. "none" is a check of the kind CheckNone.
func (d *decoder) healthCheck(n yaml.Node, w where) *model.Check {
	if n.Kind() == yaml.Mapping {
		return d.checkMapping(n, w)
	}
	s, ok := d.str(n, w, checkForm)
	if !ok {
		return nil
	}
	for _, k := range []model.CheckKind{model.CheckTCP, model.CheckICMP, model.CheckNone} {
		if s == k.String() {
			return newCheck(k)
		}
	}
	d.addf(n, w, "%s is not allowed; want %s", quote(s), checkForm)
	return nil
}

func (d *decoder) checkMapping(n yaml.Node, w where) *model.Check {
	kind, sure := d.checkKind(n, w)
	r := &checkReader{decoder: d, c: newCheck(kind)}
	for k, v := range n.Pairs() {
		key, known := checkTable[k.Text()]
		switch {
		case !known:
			d.unknown(k, w, checkAllowed)
		case sure && !key.of.has(kind):
			d.addf(k, w, "key %s belongs to %s checks; this one is %s", k.Text(), key.of, kind)
		default:
			key.read(r, v, w.under(k.Text()))
		}
	}
	r.finish()
	if !sure {
		return nil
	}
	return r.c
}

// checkKind returns the kind that the keys of a check make it, and whether it is certain.
func (d *decoder) checkKind(n yaml.Node, w where) (kind model.CheckKind, sure bool) {
	kind = model.CheckNone
	line, twice, unknown := 0, false, false
	for k := range n.Pairs() {
		if _, ok := checkTable[k.Text()]; !ok {
			unknown = true
		}
		for i := range model.CheckNone {
			switch {
			case k.Text() != i.String() || i == kind:
			case kind == model.CheckNone:
				kind, line = i, k.Pos().Line
			default:
				twice = true
				d.addf(k, w, "a check is of one kind, and this one is %s since line %d; for %s leave that out", kind, line, i)
			}
		}
	}
	if kind == model.CheckNone && !unknown {
		d.add(n.Pos(), w, "", "the kind of the check is missing; want exactly one of the keys "+allKinds.String())
	}
	return kind, kind != model.CheckNone && !twice
}

// finish fills in the defaults that depend on other keys, and holds the keys together.
// Every is 0 when it has a mistake in it.
func (r *checkReader) finish() {
	c := r.c
	switch {
	case r.timeoutAt.at.Line == 0:
		c.Timeout = defaultTimeout(c.Every)
	case c.Every > 0 && c.Timeout > c.Every:
		r.add(r.timeoutAt.at, r.timeoutAt.w, c.Timeout.String(), fmt.Sprintf("%s is longer than the time between two checks (every: %s); allowed: 10ms to %s", c.Timeout, c.Every, c.Every))
	}
	if c.Method == "HEAD" && c.Body != "" {
		r.add(r.bodyAt.at, r.bodyAt.w, c.Body, "the answer to method HEAD has no body; use GET, or leave body out")
	}
	if c.Kind == model.CheckGRPC && r.verifyAt.at.Line == 0 {
		c.Verify = !c.Plain
	} else if c.Kind == model.CheckGRPC && c.Plain {
		r.add(r.verifyAt.at, r.verifyAt.w, "", "without TLS there is no certificate to verify; write plain: false, or leave verify out")
	}
}

// checkHealth holds what uses health against what finds it out. All of it is right alone.
func (r *serviceReader) checkHealth() {
	for _, f := range r.s.Families() {
		r.checkBackups(f)
	}
	checked := r.s.Check != nil && len(r.s.Backends) == 0
	for _, b := range r.s.Backends {
		checked = checked || r.s.CheckOf(b) != nil
	}
	const why = "but the service and its backends have no check, so nothing is ever found down; want a check, such as check: tcp"
	if r.s.MinHealthy > 0 && !checked {
		r.add(r.minHealthy.at, r.minHealthy.w, percentText(r.s.MinHealthy), "min_healthy counts the backends that checks find up, "+why)
	}
	if r.s.SlowStart > 0 && !checked {
		r.add(r.slowStart.at, r.slowStart.w, r.s.SlowStart.String(), "slow_start begins when checks find a backend up again, "+why)
	}
	r.checkAskedPorts()
}

// checkBackups wants somebody whom the backups of family f can stand in for.
func (r *serviceReader) checkBackups(f model.Family) {
	first := -1
	for i, b := range r.s.Backends {
		if b.Family() != f {
			continue
		}
		if !b.Backup {
			return
		}
		if first < 0 {
			first = i
		}
	}
	if first >= 0 {
		p := r.backendAt[first]
		r.add(p.at, p.w, r.s.Backends[first].ID(), fmt.Sprintf("all %s backends have backup: true; at least one must not, as a backup waits until too few others are up", familyName(f)))
	}
}

// checkAskedPorts wants a port in each check that needs one and can not take it from the
// backend or from listen.
func (r *serviceReader) checkAskedPorts() {
	ports := r.s.Listen[0].Ports
	several := !ports.Single()
	for _, l := range r.s.Listen {
		several = several || l.Ports != ports
	}
	if !several {
		return
	}
	told := false // of the service's check once, however many backends it concerns
	for i, b := range r.s.Backends {
		c := r.s.CheckOf(b)
		if c == nil || c.Port != 0 || !b.Ports.IsZero() || c.Kind == model.CheckICMP || c.Kind == model.CheckExec {
			continue
		}
		at := i
		if b.Check == nil {
			if told {
				continue
			}
			at, told = -1, true
		}
		p := r.checkAt[at]
		r.add(p.at, p.w, "", fmt.Sprintf("key port is missing; backend %s has no port, and the service listens on more than one, so the check must say which one it asks, such as port: %d", b.ID(), r.s.Listen[0].Ports.Lo))
	}
}
