package configtest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// egress makes pools, whose addresses are of net 3 as fixed sources are.
func (g *generator) egress() []*model.Pool {
	var out []*model.Pool
	for i := range g.upTo(0, 3, "pools") {
		out = append(out, g.pool(i))
	}
	return out
}

func (g *generator) pool(i int) *model.Pool {
	p := &model.Pool{Name: fmt.Sprintf("pool-%d", i), Out: g.devices(), Spill: true, ClampMSS: g.flip("clamp"), Leaks: g.flip("leaks"), Log: g.flip("log")}
	families := g.o.Families
	if g.flip("pool of one family") {
		families = []model.Family{pick(g, families, "family of the pool")}
	}
	if g.flip("pool in") {
		p.In = g.devices()
	}
	if g.flip("pool from") {
		p.From = g.prefixes(families)
	}
	if g.flip("pool to") {
		p.To = g.prefixes(families)
	}
	if g.flip("except") {
		p.Except = g.prefixes(g.o.Families)
	}
	p.Traffic = g.openTraffic()
	p.Ports = []model.PortRange{model.DefaultPoolPorts}
	if g.flip("pool ports") {
		p.Ports = nil
		for lo := g.upTo(1, 30000, "first port of the pool"); len(p.Ports) < 3 && lo < 60000; lo += g.upTo(2000, 20000, "next") {
			p.Ports = append(p.Ports, model.PortRange{Lo: uint16(lo), Hi: uint16(lo + g.upTo(0, 1500, "more ports of the pool"))})
		}
	}
	if g.flip("timeouts") {
		p.Timeouts = []model.CtExpiry{{Proto: model.TCP, State: "established", Time: time.Hour}, {Proto: model.TCP, State: "time_wait", Time: 10 * time.Second},
			{Proto: model.UDP, State: "unreplied", Time: 90 * time.Second}}[g.upTo(0, 2, "first timeout"):]
	}
	if g.upTo(0, 3, "masquerading pool") == 0 {
		p.Masquerade = true
		return p
	}
	for _, f := range families {
		for n := 20*i + 1; n < 20*i+16; n += g.upTo(3, 12, "next address") {
			p.Addresses = append(p.Addresses, model.AddrRange{Lo: address(f, 3, uint16(n)), Hi: address(f, 3, uint16(n+g.upTo(0, 2, "more addresses")))})
		}
	}
	p.Spread = pick(g, []model.Spread{model.SpreadFlow, model.SpreadClient, model.SpreadClientDestination}, "spread")
	p.Spill = p.Spread == model.SpreadFlow || g.flip("spill")
	if len(p.Out) == 1 && g.flip("pool assign") {
		p.Assign = p.Out[0]
	}
	if g.upTo(0, 3, "blocks") == 0 {
		g.block(p, families)
	}
	return p
}

// block gives each client of the pool its ports.
func (g *generator) block(p *model.Pool, families []model.Family) {
	p.Spread, p.Spill, p.Block = model.SpreadClient, false, g.upTo(1, 3000, "block")
	p.To, p.Except, p.Ports = nil, nil, []model.PortRange{model.DefaultPoolPorts}
	p.From = nil
	for _, f := range families {
		p.From = append(p.From, netip.PrefixFrom(address(f, 2, 16), f4bits(f)-g.upTo(0, 4, "bits of clients")))
	}
}

func f4bits(f model.Family) int {
	if f == model.IPv4 {
		return 32
	}
	return 128
}

// openTraffic makes protocols and ports, those with ports first.
func (g *generator) openTraffic() []model.Traffic { return g.openRule(0).Traffic }

// lend makes some services take their source from a pool.
func (g *generator) lend(cfg *model.Config) {
	for _, s := range cfg.Services {
		if s.Local() || !g.flip("source of a pool") {
			continue
		}
		for _, p := range cfg.Egress {
			if p.Block == 0 && !slices.ContainsFunc(s.Families(), func(f model.Family) bool { return !p.Has(f) }) {
				s.Source = model.SourceNAT{Mode: model.SourcePool, Pool: p.Name}
			}
		}
	}
}

func (g *generator) bindings() model.Bindings {
	return pick(g, []model.Bindings{model.DefaultBindings(), {File: "/tmp/bindings"}, {To: model.BindingsSyslog}, {To: model.BindingsJournald}}, "bindings")
}

// egressText writes pools and bindings.
func (w *writer) egressText() []string {
	var parts []string
	if b := w.cfg.Bindings; b != model.DefaultBindings() || w.flip("say bindings") {
		parts = append(parts, "bindings: {to: "+w.scalar(cmp.Or(b.File, b.To.String()))+"}\n")
	}
	if len(w.cfg.Egress) == 0 {
		return parts
	}
	text := "egress:\n"
	for _, p := range w.cfg.Egress {
		keys := rapid.Permutation(w.poolText(p)).Draw(w.t, "pool keys")
		if w.flip("flow pool") {
			text += "- {" + strings.Join(keys, ", ") + "}\n"
		} else {
			text += "  - " + strings.Join(keys, "\n    ") + "\n"
		}
		text = strings.ReplaceAll(text, "\n- {", "\n  - {")
	}
	return append(parts, text)
}

func (w *writer) poolText(p *model.Pool) []string {
	keys := []string{"name: " + w.scalar(p.Name), "out: " + w.scalars(p.Out)}
	add := func(is bool, key string, value func() string) {
		if is {
			keys = append(keys, key+": "+value())
		}
	}
	add(len(p.In) > 0, "in", func() string { return w.scalars(p.In) })
	add(len(p.From) > 0, "from", func() string { return w.prefixText(p.From) })
	add(len(p.To) > 0, "to", func() string { return w.prefixText(p.To) })
	add(len(p.Except) > 0, "except", func() string { return w.prefixText(p.Except) })
	var ports, protos []string
	for _, t := range p.Traffic {
		if t.Ports.IsZero() {
			protos = append(protos, fmt.Sprint(int(t.Proto)))
		} else {
			ports = append(ports, t.Ports.String()+"/"+t.Proto.String())
		}
	}
	add(len(ports) > 0, "to_ports", func() string { return w.scalars(ports) })
	add(len(protos) > 0, "protocols", func() string { return "[" + strings.Join(protos, ", ") + "]" })
	var addrs, source []string
	for _, a := range p.Addresses {
		text := a.Lo.String()
		if a.Hi != a.Lo {
			text += "-" + a.Hi.String()
		}
		addrs = append(addrs, text)
	}
	for _, r := range p.Ports {
		source = append(source, r.String())
	}
	if p.Masquerade {
		keys = append(keys, "addresses: "+w.scalar("masquerade"))
	} else {
		keys = append(keys, "addresses: "+w.scalars(rapid.Permutation(addrs).Draw(w.t, "addresses")))
	}
	usual := slices.Equal(p.Ports, []model.PortRange{model.DefaultPoolPorts})
	add(!usual || w.flip("say ports"), "ports", func() string { return w.scalars(rapid.Permutation(source).Draw(w.t, "ports")) })
	add(p.Spread != model.SpreadFlow && p.Block == 0 || w.flip("say spread"), "spread", func() string { return w.scalar(p.Spread.String()) })
	add(!p.Spill || w.flip("say when_full"), "when_full", func() string { return w.scalar(map[bool]string{true: "spill", false: "fail"}[p.Spill]) })
	add(p.Assign != "" || w.flip("say assign"), "assign", func() string { return fmt.Sprint(p.Assign != "") })
	add(p.Block > 0, "block", func() string { return fmt.Sprint(p.Block) })
	add(p.Log || w.flip("say log"), "log", func() string { return fmt.Sprint(p.Log) })
	add(!p.ClampMSS || w.flip("say clamp"), "clamp_mss", func() string { return fmt.Sprint(p.ClampMSS) })
	add(p.Leaks || w.flip("say leaks"), "leaks", func() string { return w.scalar(map[bool]string{true: "allow", false: "reject"}[p.Leaks]) })
	add(len(p.Timeouts) > 0, "timeouts", func() string {
		var items []string
		for _, t := range p.Timeouts {
			items = append(items, fmt.Sprintf("%s_%s: %s", t.Proto, t.State, w.duration(t.Time)))
		}
		return "{" + strings.Join(rapid.Permutation(items).Draw(w.t, "timeouts"), ", ") + "}"
	})
	return keys
}

// checkEgress is Check for the pools.
func checkEgress(cfg *model.Config) error {
	names := map[string]bool{}
	var all []model.AddrRange
	for _, p := range cfg.Egress {
		if !nameForm.MatchString(p.Name) || names[p.Name] {
			return fmt.Errorf("name %q is bad or there twice", p.Name)
		}
		names[p.Name] = true
		if err := checkPool(p); err != nil {
			return fmt.Errorf("pool %s: %w", p.Name, err)
		}
		for _, s := range cfg.Services {
			for _, l := range s.Listen {
				if in(p.Addresses, l.Addr) && l.Proto != model.SCTP && slices.ContainsFunc(p.Ports, l.Ports.Overlaps) {
					return fmt.Errorf("pool %s has the ports of %s", p.Name, l)
				}
			}
		}
		all = append(all, p.Addresses...)
	}
	for i, a := range all {
		if a.Lo.Compare(a.Hi) > 0 || a.Lo.Is4() != a.Hi.Is4() {
			return fmt.Errorf("addresses %v", a)
		}
		if in(all[:i], a.Lo) || in(all[:i], a.Hi) {
			return fmt.Errorf("addresses %v are there twice", a)
		}
	}
	for _, s := range cfg.Services {
		if s.Source.Mode != model.SourcePool {
			continue
		}
		p := cfg.Pool(s.Source.Pool)
		if p == nil || p.Block > 0 || slices.ContainsFunc(s.Families(), func(f model.Family) bool { return !p.Has(f) }) {
			return fmt.Errorf("service %s has no such source", s.Name)
		}
	}
	if b := cfg.Bindings; (b.To == model.BindingsFile) != (b.File != "") {
		return fmt.Errorf("bindings %v", b)
	}
	return nil
}

func in(list []model.AddrRange, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(r model.AddrRange) bool {
		return r.Lo.Is4() == a.Is4() && r.Lo.Compare(a) <= 0 && a.Compare(r.Hi) <= 0
	})
}

func checkPool(p *model.Pool) error {
	for _, list := range [][]netip.Prefix{p.From, p.To, p.Except} {
		if err := checkPrefixes(list); err != nil {
			return err
		}
	}
	r := &model.OpenRule{From: p.From, To: p.To, In: p.In, Out: p.Out, Traffic: p.Traffic}
	if err := checkRule(r); err != nil || len(p.Out) == 0 {
		return fmt.Errorf("no out, or %w", err)
	}
	end := 0
	for _, q := range p.Ports {
		if int(q.Lo) <= end || q.Hi < q.Lo { // a port at least is between two ranges
			return fmt.Errorf("ports %v", p.Ports)
		}
		end = int(q.Hi) + 1
	}
	stable := p.Spread != model.SpreadFlow
	switch {
	case end == 0, p.Masquerade == (len(p.Addresses) > 0), p.Assign != "" && (len(p.Out) != 1 || p.Out[0] != p.Assign):
		return fmt.Errorf("no ports, no addresses or too many")
	case !stable && !p.Spill, p.Block > 0 && (p.Spill || p.Spread != model.SpreadClient || len(p.From) == 0), p.Masquerade && stable:
		return fmt.Errorf("spread %s, spill %t, block %d", p.Spread, p.Spill, p.Block)
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		clients := 0
		for _, c := range p.From {
			if c.Addr().Is4() == (f == model.IPv4) {
				clients += 1 << (c.Addr().BitLen() - c.Bits())
			}
		}
		blocks := 0
		for _, q := range p.Ports {
			blocks += q.Len() / max(p.Block, 1)
		}
		if p.Block > 0 && clients > blocks*len(p.Addrs(f)) || clients > 0 && !p.Has(f) {
			return fmt.Errorf("%d %s clients, %d blocks", clients, f, blocks)
		}
	}
	for _, t := range p.Timeouts {
		if t.Time < time.Second || t.Time > 30*24*time.Hour || t.Time%time.Second != 0 {
			return fmt.Errorf("timeout %v", t)
		}
	}
	return nil
}
