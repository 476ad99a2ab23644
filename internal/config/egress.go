package config

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// poolsReader is the egress pools while they are read.
type poolsReader struct {
	there bool           // the key was there
	names map[string]int // name to line
	list  []*poolReader
	uses  []poolUse
}

// poolUse is a service whose source is a pool, which may come later in the file.
type poolUse struct {
	s  *model.Service
	at yaml.Pos
	w  where
}

// poolReader is a pool and what its parts need to be checked against each other.
type poolReader struct {
	*decoder
	*model.Pool
	at       yaml.Pos
	w        where
	keys     map[string]place
	addrs    []poolAddrs
	whenFull int
	assign   bool
	bad      bool
}

// poolAddrs is an entry of addresses.
type poolAddrs struct {
	model.AddrRange
	place
	pool *poolReader
}

// egress reads the pools.
func (d *decoder) egress(n yaml.Node, w where) {
	d.pools.there = true
	if n.Kind() != yaml.Sequence {
		d.addf(n, w, "%s is not allowed; want a list of pools, such as [{name: out, from: 10.0.0.0/8, out: eth1, addresses: [192.0.2.0-192.0.2.5]}]", describe(n))
		return
	}
	d.pools.names = map[string]int{}
	for i, c := range n.Items() {
		w.i = i
		if i == model.MaxPools {
			d.addf(c, w, "more than %d pools", model.MaxPools)
			return
		}
		d.pool(c, w)
	}
}

func (d *decoder) pool(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a pool with the keys %s", describe(n), strings.Join(egressAllowed, ", "))
		return
	}
	r := &poolReader{decoder: d, Pool: &model.Pool{ClampMSS: true}, at: n.Pos(), w: w, keys: map[string]place{}, whenFull: -1}
	before := len(d.problems)
	traffic := &model.OpenRule{}
	for k, v := range n.Pairs() {
		w := r.w.in(k.Text())
		r.keys[k.Text()] = place{v.Pos(), w}
		switch k.Text() {
		case "to_ports":
			d.openPorts(traffic, v, w)
		case "protocols":
			d.openProtocols(traffic, v, w)
		default:
			if !r.match(k.Text(), v, w) && !r.gives(k.Text(), v, w) && !r.needs(k.Text(), v, w) {
				d.unknown(k, r.w, egressAllowed)
			}
		}
	}
	slices.SortStableFunc(traffic.Traffic, func(a, b model.Traffic) int { // the order of the keys does not matter
		return cmp.Compare(b2i(a.Ports.IsZero()), b2i(b.Ports.IsZero()))
	})
	r.Traffic = traffic.Traffic
	r.missing("name", "want a name, such as name: apis")
	r.missing("out", "want a device or a group of interfaces by which connections leave, such as out: eth1")
	r.missing("addresses", "want addresses such as [192.0.2.0-192.0.2.5], or masquerade for the address of the device")
	r.bad = len(d.problems) > before
	r.defaults()
	if !r.bad {
		r.check()
		r.bad = len(d.problems) > before
	}
	d.pools.list = append(d.pools.list, r)
	d.cfg.Egress = append(d.cfg.Egress, r.Pool)
}

func (r *poolReader) missing(key, want string) {
	if _, has := r.keys[key]; !has {
		r.add(r.at, r.w, "", fmt.Sprintf("key %s is missing; %s", key, want))
	}
}

// match reads a key that says what the pool is for.
func (r *poolReader) match(key string, v yaml.Node, w where) bool {
	switch key {
	case "name":
		r.name(v, w)
	case "from":
		r.From = r.prefixes(v, w)
	case "in":
		r.deviceWords(&r.In, v, w)
	case "out":
		r.deviceWords(&r.Out, v, w)
	case "to":
		r.To = r.prefixes(v, w)
	case "except":
		r.Except = r.prefixes(v, w)
	default:
		return false
	}
	return true
}

// gives reads a key about addresses and ports.
func (r *poolReader) gives(key string, v yaml.Node, w where) bool {
	switch key {
	case "addresses":
		r.addresses(v, w)
	case "ports":
		r.sourcePorts(v, w)
	case "spread":
		i, _ := r.word(v, w, model.SpreadNames())
		r.Spread = model.Spread(i)
	case "when_full":
		r.whenFull, _ = r.word(v, w, whenFullWords)
	case "assign":
		r.assign = r.boolean(v, w)
	case "block":
		r.Block = int(r.number(v, w, 1, model.MaxBlock))
	case "log":
		r.Log = r.boolean(v, w)
	default:
		return false
	}
	return true
}

// needs reads a key about what the connections need.
func (r *poolReader) needs(key string, v yaml.Node, w where) bool {
	switch key {
	case "clamp_mss":
		r.ClampMSS = r.boolean(v, w)
	case "leaks":
		i, _ := r.word(v, w, leaksWords)
		r.Leaks = i == 1
	case "timeouts":
		r.timeouts(v, w)
	default:
		return false
	}
	return true
}

func (r *poolReader) name(n yaml.Node, w where) {
	s, ok := r.str(n, w, "a name"+inQuotes)
	if !ok {
		return
	}
	switch why := badName(s); {
	case why != "":
		r.addf(n, w, "%s is not a name: %s", quote(s), why)
	case s == "keep" || s == masqueradeWord:
		r.addf(n, w, "%s is a word that services may have as their source; name the pool otherwise", quote(s))
	case looksLikeAddr(s):
		r.addf(n, w, "%s looks like an address, which services may have as their source; name the pool otherwise", quote(s))
	case r.pools.names[s] != 0:
		r.addf(n, w, "name %s is there twice; it was first given in line %d", quote(s), r.pools.names[s])
	default:
		r.pools.names[s] = n.Pos().Line
		r.Name = s
	}
}

// looksLikeAddr reports whether s is made of an IPv4 address's characters.
func looksLikeAddr(s string) bool { return strings.Trim(s, "0123456789.") == "" }

const poolAddrForm = "addresses (192.0.2.1), ranges (192.0.2.1-192.0.2.9) or prefixes (192.0.2.8/30), or the word masquerade"

func (r *poolReader) addresses(n yaml.Node, w where) {
	if n.Kind() == yaml.String && n.Text() == masqueradeWord {
		r.Masquerade = true
		return
	}
	r.oneOrEach(n, w, poolAddrForm, func(n yaml.Node, w where) {
		s, ok := r.str(n, w, poolAddrForm)
		if !ok {
			return
		}
		a, why := parsePoolAddrs(s)
		if why != "" {
			r.addf(n, w, "%s", why)
			return
		}
		for _, o := range r.addrs {
			if o.Lo.Is4() == a.Lo.Is4() && !o.Hi.Less(a.Lo) && !a.Hi.Less(o.Lo) {
				r.addf(n, w, "%s overlaps %s of the same pool", quote(s), rangeText(o.AddrRange))
				return
			}
		}
		r.addrs = append(r.addrs, poolAddrs{a, place{n.Pos(), w}, r})
		r.Addresses = append(r.Addresses, a)
	})
}

// parsePoolAddrs reads addresses that a pool can have.
func parsePoolAddrs(s string) (model.AddrRange, string) {
	var a model.AddrRange
	switch {
	case s == masqueradeWord:
		return a, quote(s) + " stands alone, not in a list with addresses"
	case strings.Contains(s, "/"):
		p, why := exactPrefix(s)
		if why != "" {
			return a, why
		}
		a = model.AddrRange{Lo: p.Addr(), Hi: lastAddr(p)}
	case strings.Contains(s, "-"):
		var why string
		if a, why = parseAddrRange(s); why != "" {
			return a, strings.ReplaceAll(why, entryForm, poolAddrForm)
		}
	default:
		lo, why := parseAddr(s)
		a = model.AddrRange{Lo: lo, Hi: lo}
		if why != "" {
			return a, why
		}
	}
	for _, u := range unusable {
		if u.Lo.Is4() == a.Lo.Is4() && !u.Hi.Less(a.Lo) && !a.Hi.Less(u.Lo) {
			return a, fmt.Sprintf("%s has addresses that are %s, which no machine can have; want %s", quote(s), u.what, poolAddrForm)
		}
	}
	return a, ""
}

// unusable are the addresses that can not be anybody's source on the way out.
var unusable = []struct {
	model.AddrRange
	what string
}{
	{mustRange("0.0.0.0/8"), "unspecified (0.0.0.0/8)"},
	{mustRange("127.0.0.0/8"), "loopback (127.0.0.0/8)"},
	{mustRange("169.254.0.0/16"), "link-local (169.254.0.0/16)"},
	{mustRange("224.0.0.0/4"), "multicast (224.0.0.0/4)"},
	{mustRange("240.0.0.0/4"), "reserved (240.0.0.0/4)"},
	{mustRange("::/127"), "unspecified or loopback (::/127)"},
	{mustRange("::ffff:0:0/96"), "IPv4 in IPv6 form (::ffff:0:0/96)"},
	{mustRange("fe80::/10"), "link-local (fe80::/10)"},
	{mustRange("ff00::/8"), "multicast (ff00::/8)"},
}

func rangeText(r model.AddrRange) string { return addrTexts([]model.AddrRange{r})[0] }

const sourcePortForm = "ports and ranges such as 1024-65535"

func (r *poolReader) sourcePorts(n yaml.Node, w where) {
	r.oneOrEach(n, w, sourcePortForm, func(n yaml.Node, w where) {
		if n.Kind() != yaml.Int && n.Kind() != yaml.String {
			r.addf(n, w, "%s is not allowed; want %s", describe(n), sourcePortForm)
			return
		}
		p, why := parsePorts(n.Text())
		if why != "" {
			r.addf(n, w, "%s; want %s", why, sourcePortForm)
			return
		}
		if i := slices.IndexFunc(r.Ports, p.Overlaps); i >= 0 {
			r.addf(n, w, "%s overlaps %s of the same list", p, r.Ports[i])
			return
		}
		r.Ports = append(r.Ports, p)
	})
}

// ctTimeoutSpan is what timeouts may be.
var ctTimeoutSpan = span{time.Second, 30 * 24 * time.Hour, false, "1s to 30d, such as 10s, 5m or 1h"}

func (r *poolReader) timeouts(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		r.addf(n, w, "%s is not allowed; want a mapping with some of the keys %s", describe(n), strings.Join(timeoutAllowed, ", "))
		return
	}
	if n.Len() == 0 {
		r.addf(n, w, "a mapping without keys is not allowed; want some of the keys %s, or leave the key out", strings.Join(timeoutAllowed, ", "))
	}
	for k, v := range n.Pairs() {
		if !slices.Contains(timeoutAllowed, k.Text()) {
			r.unknown(k, w, timeoutAllowed)
			continue
		}
		w := w.of(k.Text())
		t := r.duration(v, w, ctTimeoutSpan)
		if t%time.Second != 0 {
			r.addf(v, w, "%s is finer than a second; allowed: %s", quote(v.Text()), ctTimeoutSpan.words)
		}
		word, state, _ := strings.Cut(k.Text(), "_")
		proto, _ := parseProto(word)
		r.Timeouts = append(r.Timeouts, model.CtExpiry{Proto: proto, State: state, Time: t})
	}
	slices.SortFunc(r.Timeouts, func(a, b model.CtExpiry) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.State, b.State))
	})
}

// bindings reads where bindings are logged.
func (d *decoder) bindings(n yaml.Node, w where) {
	allowed := keysOf[bindingsKeys]()
	const want = "syslog, journald, or the absolute path of a file"
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a mapping with the key to: %s", describe(n), want)
		return
	}
	has := false
	for k, v := range n.Pairs() {
		w := w.in(k.Text())
		if k.Text() != "to" {
			d.unknown(k, top("bindings"), allowed)
			continue
		}
		has = true
		s, ok := d.str(v, w, want)
		switch {
		case !ok:
		case s == model.BindingsSyslog.String():
			d.cfg.Bindings = model.Bindings{To: model.BindingsSyslog}
		case s == model.BindingsJournald.String():
			d.cfg.Bindings = model.Bindings{To: model.BindingsJournald}
		case !filepath.IsAbs(s) || len(s) > maxPath || strings.HasSuffix(s, "/") || badPath(s):
			d.addf(v, w, "%s is not allowed; want %s", quote(s), want)
		default:
			d.cfg.Bindings = model.Bindings{File: s}
		}
	}
	if !has {
		d.addf(n, w, "key to is missing; want %s", want)
	}
}
