package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weir/internal/config"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/plan"
)

// ordinary is a configuration with a bit of everything.
func (s *site) ordinary() string {
	b := s.Backends
	return services(
		service("web", listenAll(1), backendList(on("", b[0], b[1])...)),
		service("hashed", listenOn(2, "7/tcp", "20-29/udp"), backendList(on("7", b[0], b[1])...), "balance: maglev"),
		service("sticky", listenOn(3, "7/tcp", "7/udp"), backendList(on("", b[0], b[1])...), "sticky: 1h", "source: masquerade"),
		service("shut", listenOn(4, "7/tcp", "7/udp"), "[]"),
		service("held", listenHeld(200, "7/tcp", "7/udp"), backendList(on("", b[0], b[1])...), "assign: "+lab.OutsideDev))
}

// works asks every service of the ordinary configuration once in each family.
func (s *site) works(t *testing.T) {
	t.Helper()
	for _, f := range families {
		for _, a := range []netip.Addr{vip(f, 1), vip(f, 2), vip(f, 3), held(f, 200)} {
			s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(a, 7))
		}
		_, err := try(t, s.Clients[0], "tcp", s.port(), netip.AddrPortFrom(vip(f, 4), 7))
		wantRefused(t, "tcp", err)
	}
}

// applied is the JSON of `weir apply` as far as it matters here.
type applied struct {
	Changed bool   `json:"changed"`
	Summary string `json:"summary"`
}

// TestRestartAdopts kills weir and starts it again, and applies the same file: nothing is
// committed, nothing is forgotten, and a connection that was open stays so.
func TestRestartAdopts(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	s.serveAll(s.Backends...)
	s.write(s.ordinary())
	s.start()
	s.works(t)
	var open []*talk
	var by []string
	for _, f := range families {
		for _, n := range []int{1, 2, 3} {
			k := s.talk(t, s.Clients[0], netip.AddrPortFrom(vip(f, n), 7))
			open, by = append(open, k), append(by, k.ask(t))
		}
	}
	still := func(when string) {
		t.Helper()
		for i, k := range open {
			if got := k.ask(t); got != by[i] {
				t.Errorf("%s: a connection that %s answered is answered by %s", when, by[i], got)
			}
		}
	}
	clients := s.remembered("sticky", model.IPv4)
	before, gen := s.status("web"), s.generation()
	unmoved := func(when string) {
		t.Helper()
		if now := s.generation(); now != gen {
			t.Errorf("%s: the generation of the rules went from %d to %d", when, gen, now)
		}
		if now := s.status("web"); now.Total.NewConnections != before.Total.NewConnections || now.Total.PacketsIn < before.Total.PacketsIn {
			t.Errorf("%s: counted %+v, before %+v", when, now.Total, before.Total)
		}
		if now := s.remembered("sticky", model.IPv4); len(now) != len(clients) || len(now) == 0 {
			t.Errorf("%s: remembers %v, before %v", when, now, clients)
		}
	}
	s.run.Kill()
	unmoved("killed")
	still("killed")
	for range 2 {
		s.start()
		unmoved("started again")
		still("started again")
		s.run.Kill()
	}
	var rep applied
	s.mustJSON(&rep, "apply")
	if rep.Changed {
		t.Errorf("weir apply changed something: %s", rep.Summary)
	}
	if out := s.must("apply"); out != "nothing to change\n" {
		t.Errorf("weir apply says %q", out)
	}
	if out := s.must("plan"); out != "nothing to change\n" {
		t.Errorf("weir plan says %q", out)
	}
	unmoved("applied again")
	still("applied again")
	s.start()
	s.reload()
	unmoved("reloaded")
	s.stop()
	unmoved("stopped")
	still("stopped")
	s.works(t)
}

// TestOneWeirAtATime sees that nothing changes the rules beside `weir run`, and that
// looking is allowed.
func TestOneWeirAtATime(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	s.write(s.ordinary())
	s.start()
	gen := s.generation()
	for _, c := range []string{"clear", "run"} {
		if r := s.weir(c); r.code != 1 || !strings.Contains(r.stderr, "another weir is at work") {
			t.Errorf("weir %s beside weir run: exit code %d, %s%s", c, r.code, r.stdout, r.stderr)
		}
	}
	if out := s.must("apply"); out != "nothing to change\n" { // it is the running weir that does it
		t.Errorf("weir apply beside weir run says %q", out)
	}
	for _, c := range []string{"check", "plan", "status"} {
		s.must(c)
	}
	if now := s.generation(); now != gen {
		t.Errorf("the generation went from %d to %d", gen, now)
	}
	s.works(t)
}

// TestBrokenReload gives `weir run` files that are wrong: it says so and keeps what it has.
func TestBrokenReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	s.write(s.ordinary())
	s.start()
	s.works(t)
	open := s.talk(t, s.Clients[0], netip.AddrPortFrom(vip(4, 1), 7))
	gen := s.generation()
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", s.ordinary() + "    colour: red\n", "colour"},
		{"not YAML", "services: [", "weir.yaml:1"},
		{"empty", "", "weir.yaml"},
		{"two services on one address", s.ordinary() + service("twin", listenOn(1, "7/tcp"), backendList(on("", s.Backends...)...)), "overlaps"},
		{"no file", "", "weir.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.write(c.text)
			if c.name == "no file" {
				check(t, os.Remove(s.config))
			}
			refused, logged := s.refusals(), len(s.log.String())
			s.hangUp()
			if s.refusals() != refused+1 || !strings.Contains(s.log.String()[logged:], c.want) {
				t.Errorf("no error that says %q in the log:\n%s", c.want, s.log.String()[logged:])
			}
			if r := s.weir("check"); r.code != 2 || !strings.Contains(r.stderr, c.want) {
				t.Errorf("weir check: exit code %d, want 2; %s%s", r.code, r.stdout, r.stderr)
			}
			if now := s.generation(); now != gen {
				t.Errorf("the generation went from %d to %d", gen, now)
			}
			s.works(t)
			open.ask(t)
		})
	}
	s.write(s.ordinary())
	s.reload()
	s.works(t)
	s.stop()
}

// foreignTables are rules of somebody else, with names near weir's and counters that no
// packet moves.
const foreignTables = `
table inet weird {
	counter mine { packets 7 bytes 700 }
	set seen { type ipv4_addr; flags dynamic,timeout; timeout 1h; counter; }
	chain forward {
		type filter hook forward priority 10; policy accept;
		tcp dport 4242 counter packets 5 bytes 500 drop
		ip saddr 192.0.2.77 counter name "mine" accept
	}
}
table ip weir_old {
	map hosts { type inet_service : ipv4_addr; elements = { 81 : 192.0.2.1, 82 : 192.0.2.2 } }
	chain prerouting {
		type nat hook prerouting priority -110; policy accept;
		ip daddr 192.0.2.200 dnat to tcp dport map @hosts
	}
}
table ip6 filter {
	chain input {
		type filter hook input priority 0; policy accept;
		ip6 saddr 2001:db8:bad::/48 counter packets 1 bytes 2 drop
	}
}
`

// foreign returns all tables but weir's, with handles, as nft lists them.
func (s *site) foreign() string {
	s.t.Helper()
	var out []string
	for line := range strings.Lines(s.nft("list", "tables")) {
		if table := strings.TrimSpace(line); table != "table inet weir" {
			out = append(out, s.nft(append([]string{"-a", "list"}, strings.Fields(table)...)...))
		}
	}
	return strings.Join(out, "")
}

// addForeign loads somebody else's tables.
func (s *site) addForeign() {
	s.t.Helper()
	path := s.dir + "/foreign.nft"
	check(s.t, os.WriteFile(path, []byte(foreignTables), 0o600))
	s.nft("-f", path)
}

// own returns what weir's table says in words that do not depend on the order in which
// the kernel lists elements.
func (s *site) own() string {
	s.t.Helper()
	out, err := s.Gateway.Run("nft", "-s", "list", "table", "inet", "weir")
	if err != nil {
		return "" // it is not there
	}
	words := strings.Fields(strings.ReplaceAll(out, ",", " "))
	slices.Sort(words)
	return strings.Join(words, " ")
}

// firstRule returns the handle and the comment of the first rule of a chain of weir's.
func (s *site) firstRule(chain string) (handle, comment string) {
	s.t.Helper()
	var list struct {
		Nftables []struct {
			Rule *struct {
				Handle  json.Number `json:"handle"`
				Comment string      `json:"comment"`
			} `json:"rule"`
		} `json:"nftables"`
	}
	check(s.t, json.Unmarshal([]byte(s.nft("-j", "list", "chain", "inet", "weir", chain)), &list))
	for _, o := range list.Nftables {
		if o.Rule != nil {
			return o.Rule.Handle.String(), o.Rule.Comment
		}
	}
	s.t.Fatalf("chain %s has no rule", chain)
	return "", ""
}

// swapBackend makes a file for nft -f that has the first slot of a service lead elsewhere.
func (s *site) swapBackend(name string) string {
	s.t.Helper()
	cfg, err := config.Load(s.config)
	check(s.t, err)
	for _, pool := range plan.Build(cfg, nil).Pools {
		if pool.Service.Name == name && pool.Family == model.IPv4 {
			text := fmt.Sprintf("delete element inet weir %s { %d }\nadd element inet weir %s { %d : 192.0.2.66 }\n",
				pool.SlotMap, pool.Base, pool.SlotMap, pool.Base)
			path := s.dir + "/swap.nft"
			check(s.t, os.WriteFile(path, []byte(text), 0o600))
			return path
		}
	}
	s.t.Fatalf("no service %s", name)
	return ""
}

// TestRepair has somebody else flush and edit weir's rules: they are put back, and the
// tables of others are not touched.
func TestRepair(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	s.write(s.ordinary())
	s.start()
	want := s.own()
	if want == "" {
		t.Fatal("weir's table is not there")
	}
	vip4, vip6 := vip(4, 1).String(), vip(6, 1).String()
	edits := []struct {
		name string
		nft  func() []string
	}{
		{"flush ruleset", func() []string { return []string{"flush", "ruleset"} }},
		{"delete table", func() []string { return []string{"delete", "table", "inet", "weir"} }},
		{"flush table", func() []string { return []string{"flush", "table", "inet", "weir"} }},
		{"add rule", func() []string { return []string{"add", "rule", "inet", "weir", "prerouting", "drop"} }},
		{"insert rule", func() []string {
			return []string{"insert", "rule", "inet", "weir", "service/web/ip/tcp", "counter", "drop"}
		}},
		{"delete rule", func() []string {
			handle, _ := s.firstRule("output")
			return []string{"delete", "rule", "inet", "weir", "output", "handle", handle}
		}},
		{"replace rule", func() []string {
			handle, _ := s.firstRule("service/web/ip6/tcp")
			return []string{"replace", "rule", "inet", "weir", "service/web/ip6/tcp", "handle", handle, "drop"}
		}},
		{"flush chain", func() []string { return []string{"flush", "chain", "inet", "weir", "postrouting"} }},
		{"add chain", func() []string {
			return []string{"add", "chain", "inet", "weir", "theirs", "{ type filter hook forward priority 0; policy drop; }"}
		}},
		{"delete element", func() []string {
			return []string{"delete", "element", "inet", "weir", "services4", "{ " + vip4 + " . tcp . 7 }"}
		}},
		{"add element", func() []string {
			return []string{"add", "element", "inet", "weir", "services6", "{ " + vip6 + " . tcp . 4711 : drop }"}
		}},
		{"flush map", func() []string { return []string{"flush", "map", "inet", "weir", "services6"} }},
		{"delete an element of a range", func() []string {
			return []string{"delete", "element", "inet", "weir", "services4r", "{ " + vip(4, 2).String() + " . udp . 20-29 }"}
		}},
		{"add set", func() []string { return []string{"add", "set", "inet", "weir", "theirs", "{ type ipv4_addr; }"} }},
		{"another policy", func() []string {
			return []string{"add", "chain", "inet", "weir", "count-out", "{ policy drop; }"}
		}},
		{"another backend", func() []string {
			return []string{"-f", s.swapBackend("web")}
		}},
		{"replace rule, comment kept", func() []string {
			handle, comment := s.firstRule("service/web/ip/udp")
			return []string{"replace", "rule", "inet", "weir", "service/web/ip/udp", "handle", handle,
				"drop", "comment", strconv.Quote(comment)}
		}},
		{"disable the table", func() []string { return []string{"add", "table", "inet", "weir", "{ flags dormant; }"} }},
	}
	foreign := ""
	for i, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			defer func() {
				if t.Failed() { // the next edit starts from what weir knows how to mend
					s.nft("delete", "table", "inet", "weir")
					await(t, "weir's rules are back after a deletion", func() bool { return s.own() == want })
				}
			}()
			logged := strings.Count(s.log.String(), "put back")
			s.nft(e.nft()...)
			took := await(t, "weir's rules are back after "+e.name, func() bool { return s.own() == want })
			t.Logf("put back within %s", took)
			await(t, "the log says so", func() bool { return strings.Count(s.log.String(), "put back") > logged })
		})
		if i == 0 { // the flush took everybody's tables
			s.addForeign()
			foreign = s.foreign()
		}
	}
	s.works(t)
	if now := s.foreign(); now != foreign || !strings.Contains(now, "packets 7 bytes 700") {
		t.Errorf("others' tables were\n%s\nand are\n%s", foreign, now)
	}
	gen := s.generation()
	s.nft("add", "counter", "inet", "weird", "another")
	s.reload()
	if now := s.generation(); now != gen+1 {
		t.Errorf("somebody else's commit: the generation went from %d to %d, want one more", gen, now)
	}
	s.stop()
}

// TestClear sees that nothing of weir's is left, and everything else is.
func TestClear(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	s.addForeign()
	foreign := s.foreign()
	addrs := func() string {
		out, err := s.Gateway.Run("ip", "-o", "addr")
		check(t, err)
		return out
	}
	before := addrs()
	s.apply(s.ordinary())
	s.works(t)
	if addrs() == before || s.own() == "" {
		t.Error("weir did not do anything")
	}
	if out := s.must("clear"); out != "removed all that was weir's\n" {
		t.Errorf("weir clear says %q", out)
	}
	if s.own() != "" {
		t.Errorf("weir's table is still there: %s", s.own())
	}
	if now := s.foreign(); now != foreign {
		t.Errorf("others' tables were\n%s\nand are\n%s", foreign, now)
	}
	if now := addrs(); now != before {
		t.Errorf("the addresses were\n%s\nand are\n%s", before, now)
	}
	gen := s.generation()
	if out := s.must("clear"); out != "there was nothing of weir's\n" {
		t.Errorf("weir clear says %q the second time", out)
	}
	if now := s.generation(); now != gen {
		t.Errorf("the second time the generation went from %d to %d", gen, now)
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, network := range []string{"tcp", "udp"} {
			for _, a := range []netip.Addr{vip(f, 1), held(f, 200)} {
				if reply, err := s.Clients[0].AskFrom(within(t, silence), network, "", join(a, 7)); err == nil {
					t.Errorf("%s to %s is answered still: %s", network, a, reply)
				}
			}
		}
	})
}
