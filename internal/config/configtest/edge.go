package configtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// prefixPool are what policies are made of: clients, backends and listeners of the other
// generators, wide and narrow, so that rules overlap.
var prefixPool = map[model.Family][]string{
	model.IPv4: {"203.0.113.0/24", "203.0.113.0/30", "203.0.113.2/32", "203.0.113.4/31", "10.1.0.0/16", "10.1.0.1/32",
		"198.51.100.0/24", "198.51.100.1/32", "198.18.0.0/15", "0.0.0.0/0", "128.0.0.0/1", "10.9.0.0/16"},
	model.IPv6: {"2001:db8:c::/64", "2001:db8:c::/126", "2001:db8:c::2/128", "2001:db8::/32", "2001:db8:2::/64",
		"2001:db8:2::1/128", "2001:db8:1::/64", "2001:db8:1::1/128", "::/0", "8000::/1", "2001:db8:9::/48"},
}

// local makes a service one that this box serves: it has nothing that has to do with
// backends.
func (g *generator) local(s *model.Service) {
	*s = model.Service{Name: s.Name, Listen: s.Listen, Assign: s.Assign, Forward: model.ForwardLocal, Untracked: g.flip("untracked")}
}

// edge makes an access policy, or none.
func (g *generator) edge() *model.Edge {
	if g.flip("no edge") {
		return nil
	}
	e := &model.Edge{Drop: g.upTo(0, 3, "policy") > 0}
	e.DropInvalidFlags = e.Drop != (g.upTo(0, 3, "other flags") == 0)
	if g.flip("management") {
		e.Management = g.prefixes(g.o.Families)
	}
	for i := range g.upTo(0, 6, "open rules") {
		e.Open = append(e.Open, g.openRule(i))
	}
	return e
}

func (g *generator) prefixes(families []model.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range families {
		for range g.upTo(1, 3, "prefixes") {
			p := netip.MustParsePrefix(pick(g, prefixPool[f], "prefix"))
			if !slices.ContainsFunc(out, p.Overlaps) {
				out = append(out, p)
			}
		}
	}
	return out
}

func (g *generator) openRule(i int) *model.OpenRule {
	r := &model.OpenRule{Name: fmt.Sprintf("open[%d]", i), Box: g.upTo(0, 3, "to the box") == 0}
	if g.flip("named") {
		r.Name = fmt.Sprintf("rule-%d", i)
	}
	families := g.o.Families
	if g.flip("one family") {
		families = []model.Family{pick(g, families, "family of the rule")}
	}
	if g.flip("has in") {
		r.In = g.devices()
	}
	if g.flip("has from") {
		r.From = g.prefixes(families)
	}
	if !r.Box {
		to := g.flip("has to")
		if to {
			r.To = g.prefixes(families)
		}
		if !to || g.flip("has out") {
			r.Out = g.devices()
		}
	}
	for range g.upTo(0, 3, "traffic") {
		t := model.Traffic{Proto: pick(g, g.o.Protos, "proto of the rule")}
		switch g.upTo(0, 2, "ports of the rule") {
		case 0:
			t.Proto = pick(g, []model.Proto{1, 6, 17, 47, 58, 132}, "protocol as a whole")
		case 1:
			t.Ports = model.Port(uint16(g.upTo(1, 65535, "port of the rule")))
		default:
			lo := uint16(g.upTo(1, 60000, "first port of the rule"))
			t.Ports = model.PortRange{Lo: lo, Hi: lo + uint16(g.upTo(0, 5000, "more ports"))}
		}
		if !slices.ContainsFunc(r.Traffic, func(o model.Traffic) bool { return o.Proto == t.Proto }) {
			r.Traffic = append(r.Traffic, t)
		}
	}
	slices.SortStableFunc(r.Traffic, func(a, b model.Traffic) int {
		return min(b.Ports.Len(), 1) - min(a.Ports.Len(), 1)
	})
	return r
}

func (g *generator) devices() []string {
	var out []string
	for range g.upTo(1, 2, "devices of the rule") {
		if d := pick(g, g.o.Devices, "device of the rule"); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// edge writes the access policy.
func (w *writer) edgeText() string {
	e := w.cfg.Edge
	words := []string{"accept", "drop"}
	word := func(drop bool) string {
		if drop {
			return w.scalar(words[1])
		}
		return w.scalar(words[0])
	}
	keys := []string{"policy: " + word(e.Drop)}
	if e.DropInvalidFlags != e.Drop || w.flip("say flags") {
		keys = append(keys, "invalid_flags: "+word(e.DropInvalidFlags))
	}
	if len(e.Management) > 0 {
		keys = append(keys, "management: "+w.prefixText(e.Management))
	}
	if len(e.Open) > 0 {
		var rules []string
		for i, r := range e.Open {
			rules = append(rules, "{"+strings.Join(rapid.Permutation(w.openText(i, r)).Draw(w.t, "rule keys"), ", ")+"}")
		}
		if w.flip("block rules") {
			keys = append(keys, "open:\n    - "+strings.Join(rules, "\n    - "))
			return "edge:\n  " + strings.Join(keys, "\n  ") + "\n"
		}
		keys = append(keys, "open: ["+strings.Join(rules, ", ")+"]")
	}
	keys = rapid.Permutation(keys).Draw(w.t, "edge keys")
	if w.flip("flow edge") {
		return "edge: {" + strings.Join(keys, ", ") + "}\n"
	}
	return "edge:\n  " + strings.Join(keys, "\n  ") + "\n"
}

func (w *writer) openText(i int, r *model.OpenRule) []string {
	var keys []string
	if r.Name != fmt.Sprintf("open[%d]", i) {
		keys = append(keys, "name: "+w.scalar(r.Name))
	}
	if r.Box {
		keys = append(keys, "to: "+w.scalar("box"))
	}
	for key, list := range map[string][]netip.Prefix{"from": r.From, "to": r.To} {
		if len(list) > 0 {
			keys = append(keys, key+": "+w.prefixText(list))
		}
	}
	for key, list := range map[string][]string{"in": r.In, "out": r.Out} {
		if len(list) > 0 {
			keys = append(keys, key+": "+w.scalars(list))
		}
	}
	var ports, protos []string
	for _, t := range r.Traffic {
		if t.Ports.IsZero() {
			protos = append(protos, fmt.Sprint(int(t.Proto)))
		} else {
			ports = append(ports, t.Ports.String()+"/"+t.Proto.String())
		}
	}
	if len(ports) > 0 {
		keys = append(keys, "ports: "+w.scalars(ports))
	}
	if len(protos) > 0 {
		keys = append(keys, "protocols: ["+strings.Join(protos, ", ")+"]")
	}
	slices.Sort(keys) // the maps have no order, and what is drawn must not depend on chance
	return keys
}

// prefixText writes prefixes; one that is an address may be written as one.
func (w *writer) prefixText(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i, p := range list {
		if words[i] = p.String(); p.IsSingleIP() && w.flip("address") {
			words[i] = p.Addr().String()
		}
	}
	return w.scalars(words)
}

// checkEdge is Check for the access policy.
func checkEdge(e *model.Edge) error {
	if e == nil {
		return nil
	}
	if err := checkPrefixes(e.Management); err != nil {
		return err
	}
	names, all := map[string]bool{}, 0
	for i, r := range e.Open {
		if r.Name != fmt.Sprintf("open[%d]", i) && !nameForm.MatchString(r.Name) || names[r.Name] {
			return fmt.Errorf("name %q is bad or there twice", r.Name)
		}
		names[r.Name] = true
		if err := checkRule(r); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		all += max(1, len(r.In)) * max(1, len(r.Out)) * max(1, len(r.From)) * max(1, len(r.To)) * max(1, len(r.Traffic))
	}
	if all > model.MaxOpenings || len(e.Open) > model.MaxOpen {
		return fmt.Errorf("%d rules, %d openings", len(e.Open), all)
	}
	return nil
}

func checkRule(r *model.OpenRule) error {
	if r.Box && len(r.Out)+len(r.To) > 0 || !r.Box && len(r.Out)+len(r.To) == 0 {
		return fmt.Errorf("is about neither or both of the box and what passes it")
	}
	for _, list := range [][]netip.Prefix{r.From, r.To} {
		if err := checkPrefixes(list); err != nil {
			return err
		}
	}
	if len(r.From) > 0 && len(r.To) > 0 {
		for _, p := range append(slices.Clone(r.From), r.To...) {
			same := func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }
			if !slices.ContainsFunc(r.From, same) || !slices.ContainsFunc(r.To, same) {
				return fmt.Errorf("families differ")
			}
		}
	}
	for _, d := range append(slices.Clone(r.In), r.Out...) {
		if d == "" || len(d) > 15 || strings.ContainsAny(d, ` "*\/:`) {
			return fmt.Errorf("device %q", d)
		}
	}
	for i, t := range r.Traffic {
		for _, o := range r.Traffic[:i] {
			if o.Proto == t.Proto && (o.Ports.IsZero() || t.Ports.IsZero() || o.Ports.Overlaps(t.Ports)) {
				return fmt.Errorf("%v and %v overlap", o, t)
			}
		}
		if t.Proto == 0 || t.Ports.Hi < t.Ports.Lo || t.Ports.Lo == 0 && t.Ports.Hi > 0 {
			return fmt.Errorf("traffic %v", t)
		}
	}
	return nil
}

func checkPrefixes(list []netip.Prefix) error {
	for i, p := range list {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || slices.ContainsFunc(list[:i], p.Overlaps) {
			return fmt.Errorf("prefix %s", p)
		}
	}
	return nil
}
