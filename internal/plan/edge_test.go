package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/config"
	"weir/internal/config/configtest"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// access is a packet and what the policy must say of it.
type access struct {
	ruleset.Packet
	box bool
}

// TestPolicyIsWhatItSays holds the sets of an access policy against the rules of the file,
// read one by one.
func TestPolicyIsWhatItSays(t *testing.T) {
	opened, dropped := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		cfg := configtest.RandomModel(t, &configtest.Options{MaxServices: 2, NoSticky: true})
		if !cfg.Edge.Dropping() {
			cfg.Edge = &model.Edge{Drop: true}
		}
		p := plan.Build(cfg, nil)
		for range 20 {
			a := drawAccess(t, cfg)
			x := p.Explain(a.Packet, ruleset.Env{})
			if x.Access == nil {
				continue // a service refuses it before
			}
			rules := matching(cfg.Edge, a)
			want := len(rules) > 0 || alwaysIn(cfg, a, x)
			if got := x.Access.Verdict == "accept"; got != want {
				t.Fatalf("%+v: %+v, want %t\n%s", a, x.Access, want, config.Marshal(cfg))
			}
			if x.Access.Rule != "" {
				opened++
				if !slices.Contains(rules, x.Access.Rule) {
					t.Fatalf("%+v: rule %s is said to match; those that do: %v", a, x.Access.Rule, rules)
				}
			} else if !want {
				dropped++
			}
		}
	})
	if opened < 100 || dropped < 100 {
		t.Errorf("%d packets met an open rule, and %d none: the test proves less than it says", opened, dropped)
	}
}

func drawAccess(t *rapid.T, cfg *model.Config) access {
	pools := map[model.Family][]string{
		model.IPv4: {"203.0.113.2", "203.0.113.5", "10.1.0.1", "10.2.0.1", "198.51.100.1", "192.0.2.1", "255.255.255.254"},
		model.IPv6: {"2001:db8:c::2", "2001:db8:c::9", "2001:db8:2::1", "2001:db8:1::1", "2001:db8:9::1", "8001::1"},
	}
	f := rapid.SampledFrom([]model.Family{model.IPv4, model.IPv6}).Draw(t, "family")
	addr := func(label string) netip.Addr {
		return netip.MustParseAddr(rapid.SampledFrom(pools[f]).Draw(t, label))
	}
	port := func(label string) uint16 { return rapid.Uint16().Draw(t, label) }
	ports := []uint16{port("any port")}
	for _, r := range cfg.Edge.Open {
		for _, tr := range r.Traffic {
			ports = append(ports, tr.Ports.Lo, tr.Ports.Hi, tr.Ports.Lo-1, tr.Ports.Hi+1)
		}
	}
	devices := []string{"eth0", "eth1", "wan.100", "other"}
	a := access{box: rapid.Bool().Draw(t, "box")}
	a.Packet = ruleset.Packet{Src: netip.AddrPortFrom(addr("from"), port("source port")),
		Dst:   netip.AddrPortFrom(addr("to"), rapid.SampledFrom(ports).Draw(t, "port")),
		Proto: rapid.SampledFrom([]model.Proto{model.TCP, model.UDP, model.SCTP, 47}).Draw(t, "protocol"),
		In:    rapid.SampledFrom(devices).Draw(t, "in"), Out: rapid.SampledFrom(devices).Draw(t, "out"),
		ToLocal: func(netip.Addr) bool { return a.box }}
	if len(cfg.Edge.Open) > 0 && rapid.Bool().Draw(t, "like a rule") {
		a.like(t, rapid.SampledFrom(cfg.Edge.Open).Draw(t, "rule"), f)
	}
	return a
}

// like makes the packet one that the rule matches, as far as it is of its family.
func (a *access) like(t *rapid.T, r *model.OpenRule, f model.Family) {
	a.box = r.Box
	if len(r.In) > 0 {
		a.In = rapid.SampledFrom(r.In).Draw(t, "in of the rule")
	}
	if len(r.Out) > 0 {
		a.Out = rapid.SampledFrom(r.Out).Draw(t, "out of the rule")
	}
	for _, l := range []struct {
		list []netip.Prefix
		addr *netip.AddrPort
	}{{r.From, &a.Src}, {r.To, &a.Dst}} {
		for _, p := range l.list {
			if model.FamilyOf(p.Addr()) == f {
				*l.addr = netip.AddrPortFrom(p.Addr(), l.addr.Port())
			}
		}
	}
	if len(r.Traffic) > 0 {
		tr := rapid.SampledFrom(r.Traffic).Draw(t, "traffic of the rule")
		a.Proto = tr.Proto
		if !tr.Ports.IsZero() {
			a.Dst = netip.AddrPortFrom(a.Dst.Addr(), tr.Ports.Lo)
		}
	}
}

// matching returns the names of the open rules that match.
func matching(e *model.Edge, a access) []string {
	within := func(list []netip.Prefix, addr netip.Addr) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	by := func(list []string, dev string) bool { return len(list) == 0 || slices.Contains(list, dev) }
	var out []string
	for _, r := range e.Open {
		traffic := len(r.Traffic) == 0 || slices.ContainsFunc(r.Traffic, func(t model.Traffic) bool {
			return t.Proto == a.Proto && (t.Ports.IsZero() || t.Ports.Contains(a.Dst.Port()))
		})
		if r.Box == a.box && by(r.In, a.In) && by(r.Out, a.Out) && within(r.From, a.Src.Addr()) && within(r.To, a.Dst.Addr()) && traffic {
			out = append(out, r.Name)
		}
	}
	return out
}

// alwaysIn reports whether a packet needs no open rule.
func alwaysIn(cfg *model.Config, a access, x plan.Explanation) bool {
	if x.Forward == "nat" || a.box && x.Forward == "local" {
		return true
	}
	return a.box && (slices.ContainsFunc(cfg.Edge.Management, func(p netip.Prefix) bool { return p.Contains(a.Src.Addr()) }) ||
		a.Proto == model.UDP && (a.Src.Port() == 67 && a.Dst.Port() == 68 || a.Src.Port() == 547 && a.Dst.Port() == 546))
}

// TestOpeningsDoNotMeet: no two ranges of a set hold the same packet, which the kernel
// would refuse, and rules that do not overlap share their sets.
func TestOpeningsDoNotMeet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := configtest.RandomModel(t, &configtest.Options{MaxServices: 1})
		for _, s := range plan.Build(cfg, nil).Ruleset.Tables[0].Sets {
			if s.Range && len(s.Parts) > 0 {
				disjoint(t, s)
			}
		}
	})
	cfg := &model.Config{Edge: &model.Edge{Drop: true}}
	for i := range 4000 {
		cfg.Edge.Open = append(cfg.Edge.Open, &model.OpenRule{Name: fmt.Sprintf("open[%d]", i), Box: true, In: []string{"eth0"},
			From:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
			Traffic: []model.Traffic{{Proto: model.TCP, Ports: model.Port(22)}}})
	}
	rules := len(plan.Build(cfg, nil).Ruleset.Tables[0].Chain("edge-in").Rules)
	cfg.Edge = &model.Edge{Drop: true, Open: cfg.Edge.Open[:1]}
	if few := len(plan.Build(cfg, nil).Ruleset.Tables[0].Chain("edge-in").Rules); few != rules {
		t.Errorf("4000 open rules are %d rules in the kernel, one is %d", rules, few)
	}
}

func disjoint(t *rapid.T, s *ruleset.Set) {
	var elems []ruleset.Element
	for _, p := range s.Parts {
		elems = append(elems, p.Elems...)
	}
	end := func(e ruleset.Element) string {
		if e.KeyEnd == "" {
			return e.Key
		}
		return e.KeyEnd
	}
	for i, a := range elems {
		for _, b := range elems[:i] {
			apart := false
			for at, k := 0, 0; k < len(s.Key); k++ {
				to := at + s.Key[k].Padded()
				apart = apart || a.Key[at:to] > end(b)[at:to] || b.Key[at:to] > end(a)[at:to]
				at = to
			}
			if !apart {
				t.Fatalf("%s and %s of %s overlap", s.ElementText(&a), s.ElementText(&b), s.Name)
			}
		}
	}
}

// TestLockOutReasons holds the words for who would be locked out.
func TestLockOutReasons(t *testing.T) {
	login := plan.Login{Client: netip.MustParseAddrPort("203.0.113.9:50000"), Server: netip.MustParseAddrPort("192.0.2.1:22"), Device: "eth1"}
	other := login
	other.Server = netip.MustParseAddrPort("192.0.2.1:2222")
	for _, c := range []struct {
		text    string
		login   plan.Login
		all, me bool // is anybody, am I
	}{
		{"{policy: accept}", login, false, false},
		{"{policy: drop}", login, true, true},
		{"{policy: drop, management: 203.0.113.0/24}", login, false, false},
		{"{policy: drop, management: 10.0.0.0/8}", login, false, true},
		{"{policy: drop, open: [{to: box, ports: 22/tcp}]}", login, false, false},
		{"{policy: drop, open: [{to: box, ports: 22/tcp}]}", other, false, true},
		{"{policy: drop, open: [{to: box, ports: 2222/tcp}]}", other, false, false},
		{"{policy: drop, open: [{to: box, ports: 2222/tcp}]}", login, true, true},
		{"{policy: drop, open: [{to: box, ports: 22/udp}]}", login, true, true},
		{"{policy: drop, open: [{to: 192.0.2.1, ports: 22/tcp}]}", login, true, true},
		{"{policy: drop, open: [{to: box, in: eth0}]}", login, false, true},
		{"{policy: drop, open: [{to: box, in: eth1}]}", login, false, false},
	} {
		cfg, err := config.Parse("weir.yaml", []byte("edge: "+c.text+"\nservices: []\n"))
		if err != nil {
			t.Fatal(err)
		}
		if why := plan.ShutsAllOut(cfg, &c.login); (why != "") != c.all {
			t.Errorf("%s: nobody gets in: %q, want %t", c.text, why, c.all)
		}
		if why := plan.Cuts(cfg, c.login); (why != "") != c.me {
			t.Errorf("%s: %s is cut: %q, want %t", c.text, c.login.Server, why, c.me)
		}
	}
}

// TestParseLogin reads SSH_CONNECTION as sshd writes it.
func TestParseLogin(t *testing.T) {
	for text, want := range map[string]string{
		"203.0.113.9 50000 192.0.2.1 22":          "203.0.113.9:50000 192.0.2.1:22 ",
		"2001:db8::9 50000 2001:db8::1 2222":      "[2001:db8::9]:50000 [2001:db8::1]:2222 ",
		"::ffff:203.0.113.9 50000 192.0.2.1 22":   "203.0.113.9:50000 192.0.2.1:22 ",
		"fe80::9%eth7 50000 fe80::1%eth7 22":      "[fe80::9]:50000 [fe80::1]:22 eth7",
		"UNKNOWN 65535 UNKNOWN 65535":             "",
		"":                                        "",
		"203.0.113.9 50000 192.0.2.1":             "",
		"203.0.113.9 x 192.0.2.1 22":              "",
		"203.0.113.9 50000 2001:db8::1 22":        "",
		"203.0.113.9 50000 192.0.2.1 22 and more": "",
		"203.0.113.9 50000 192.0.2.1 65536":       "",
	} {
		l, err := plan.ParseLogin(text)
		got := fmt.Sprintf("%s %s %s", l.Client, l.Server, l.Device)
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
