package e2e

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/host"
	"weir/internal/lab"
	"weir/internal/model"
)

// diagnosis is the JSON of `weir doctor`, and its exit code.
type diagnosis struct {
	OK       bool           `json:"ok"`
	Running  bool           `json:"running"`
	Findings []host.Finding `json:"findings"`
	code     int
}

// doctor runs `weir doctor`.
func (s *site) doctor() (d diagnosis) {
	s.t.Helper()
	r := s.weir("doctor", "--state", filepath.Join(s.dir, "state.json"), "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.code != 0 && r.code != 1 {
		s.t.Fatalf("weir doctor: exit code %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	d.code = r.code
	if d.OK != (d.code == 0) || d.OK != (len(host.Serious(d.Findings)) == 0) {
		s.t.Errorf("weir doctor: exit code %d with %+v", d.code, d)
	}
	return d
}

// ills finds something, has what it says typed, and sees that it has gone and that weir
// doctor finds nothing wrong any more.
func (s *site) ills(t *testing.T, severity host.Severity, id, subject string) {
	t.Helper()
	var found *host.Finding
	await(t, id+" "+subject, func() bool {
		d := s.doctor()
		found = about(d.Findings, id, subject)
		return found != nil && d.code == 1 && found.Fix != ""
	})
	if found.Severity != severity || found.Found == "" || found.Means == "" {
		t.Errorf("found %+v", found)
	}
	s.typed(t, found.Fix)
	s.awaitWell(t, id, subject)
}

// awaitWell waits until weir doctor finds nothing wrong.
func (s *site) awaitWell(t *testing.T, id, subject string) {
	t.Helper()
	var last diagnosis
	defer func() {
		if t.Failed() {
			t.Logf("the last diagnosis: %+v", last)
		}
	}()
	await(t, "all is well again", func() bool {
		last = s.doctor()
		f := about(last.Findings, id, subject)
		return last.code == 0 && (f == nil || f.Severity == host.Info)
	})
}

// TestDoctorBesideARunningWeir breaks a site in one way after the other. Each time weir
// doctor says what is wrong, and typing what it says mends it: traffic flows.
func TestDoctorBesideARunningWeir(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	needTool(t, "sysctl")
	if d := s.doctor(); d.code != 0 || !d.Running || len(d.Findings) != 0 {
		t.Fatalf("of a healthy site: %+v", d)
	}
	if out := s.must("doctor", "--state", filepath.Join(s.dir, "state.json")); !strings.HasSuffix(out, "\nnothing is wrong\n") || !strings.Contains(out, "checked: services 2, routes to backends 4, devices 3, addresses to hold 2, ") {
		t.Errorf("of a healthy site:\n%s", out)
	}
	in, out := lab.InsideDev, lab.OutsideDev
	g := s.Gateway
	for _, c := range []struct {
		name     string
		harm     func(t *testing.T)
		severity host.Severity
		id       string
		subject  string
	}{
		{"IPv4 forwarding off", func(t *testing.T) { check(t, g.Sysctl("net.ipv4.ip_forward", "0")) }, host.Error, host.IPForward, "net.ipv4.ip_forward"},
		{"IPv6 forwarding off", func(t *testing.T) { check(t, g.Sysctl("net.ipv6.conf.all.forwarding", "0")) }, host.Error, host.IPForward, "net.ipv6.conf.all.forwarding"},
		{"a device does not forward", func(t *testing.T) { check(t, g.Sysctl("net.ipv4.conf.eth-in.forwarding", "0")) }, host.Error, host.IPForward, "net.ipv4.conf.eth-in.forwarding"},
		{"no IPv4 route", func(*testing.T) { s.ip("route", "del", lab.BackendNet4.String(), "dev", in) }, host.Error, host.NoRoute, lab.BackendNet4.String()},
		{"no IPv6 route", func(*testing.T) { s.ip("route", "del", lab.BackendNet6.String(), "dev", in) }, host.Error, host.NoRoute, lab.BackendNet6.String()},
		{"the backends' address went", func(*testing.T) { s.ip("addr", "del", s.Inside6.String()+"/64", "dev", in) }, host.Error, host.NoRoute, lab.BackendNet6.String()},
		{"the outside device is down", func(*testing.T) { s.ip("link", "set", "dev", out, "down") }, host.Error, host.DeviceDown, out},
	} {
		if !t.Run(c.name, func(t *testing.T) {
			s.awaitQuiet(t) // what doctor learns from a running weir may be a moment old
			c.harm(t)
			s.ills(t, c.severity, c.id, c.subject)
			if c.id == host.DeviceDown { // the gateway's own address, which weir knows nothing of
				s.ip("addr", "add", s.outside(model.IPv6).String()+"/64", "dev", out)
			}
			for _, f := range families { // the last of what weir puts back
				await(t, held(f, 200).String(), func() bool { return s.holds(out, held(f, 200)) })
			}
			s.flows(t)
		}) {
			return
		}
	}
	t.Run("IPv6 is off", func(t *testing.T) {
		check(t, g.Sysctl("net.ipv6.conf.eth-out.disable_ipv6", "1"))
		s.ills(t, host.Error, host.IPv6Disabled, out)
		await(t, "the address is back", func() bool { return s.holds(out, held(model.IPv6, 200)) })
		s.ip("addr", "add", s.outside(model.IPv6).String()+"/64", "dev", out)
		s.flows(t)
	})
	t.Run("the backends' device is down", func(t *testing.T) {
		s.awaitQuiet(t)
		s.ip("link", "set", "dev", in, "down")
		found := about(s.doctor().Findings, host.DeviceDown, in)
		if found == nil {
			t.Fatalf("not found: %+v", s.doctor())
		}
		s.typed(t, found.Fix)
		s.ills(t, host.Error, host.NoRoute, lab.BackendNet6.String()) // the address went with it
		if !s.holds(in, s.Inside6) {
			t.Errorf("%s is not back", s.Inside6)
		}
		s.flows(t)
	})
	t.Run("only the default route is left", func(t *testing.T) {
		s.awaitQuiet(t)
		s.ip("route", "add", "default", "via", s.Clients[0].V4.String())
		s.ip("route", "del", lab.BackendNet4.String(), "dev", in)
		s.ills(t, host.Warning, host.RouteLost, lab.BackendNet4.String())
		s.ip("route", "del", "default")
		s.flows(t)
	})
}

// TestDoctorOfOtherRules has somebody else's chain drop what weir forwards.
func TestDoctorOfOtherRules(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	s.nft("add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }")
	for _, f := range families {
		if _, err := s.Clients[0].AskFrom(within(t, silence), "tcp", join(addrOf(s.Clients[0], f), s.port()), join(vip(f, 1), 7)); err == nil {
			t.Fatalf("%s: a chain that drops everything lets connections pass", vip(f, 1))
		}
	}
	s.ills(t, host.Error, host.ForeignDrop, "inet fw forward")
	s.flows(t)
	if f := about(s.doctor().Findings, host.ForeignDrop, "inet fw forward"); f == nil || f.Severity != host.Info {
		t.Errorf("a chain with rules that drops by default: %+v", f)
	}
}

// TestDoctorOfSources has a service speak from an address that nobody holds.
func TestDoctorOfSources(t *testing.T) {
	t.Parallel()
	needTool(t, "ip")
	s := newSite(t, 1, 1)
	s.serveAll(s.Backends...)
	from := []netip.Addr{number(lab.BackendNet4, 77), number(lab.BackendNet6, 77)}
	s.apply(services(service("web", listenOn(1, "7/tcp"), backendList(on("", s.Backends...)...), "source: "+quoted([]string{from[0].String(), from[1].String()}))))
	for i, f := range families {
		if _, err := s.Clients[0].AskFrom(within(t, silence), "tcp", join(addrOf(s.Clients[0], f), s.port()), join(vip(f, 1), 7)); err == nil {
			t.Fatalf("%s: an answer, and nobody holds %s", vip(f, 1), from[i])
		}
	}
	found := about(s.doctor().Findings, host.SourceMissing, from[0].String())
	if found == nil || found.Severity != host.Warning {
		t.Fatalf("not found: %+v", s.doctor())
	}
	s.typed(t, found.Fix)
	s.ills(t, host.Warning, host.SourceMissing, from[1].String())
	for i, f := range families {
		if got := s.ask(t, s.Clients[0], "tcp", target(f, 1, 7)).seen.Addr(); got != from[i] {
			t.Errorf("the backend saw %s, want %s", got, from[i])
		}
	}
}

// TestDoctorOfReversePaths has a client come in by another uplink than the one by which
// the way back to it leads.
func TestDoctorOfReversePaths(t *testing.T) {
	t.Parallel()
	needTool(t, "ip")
	needTool(t, "sysctl")
	s := newSite(t, 1, 2)
	s.serve("udp", s.Backends[:1], 7)
	s.apply(services(service("web", listenOn(1, "7/udp"), backendList(on("", s.Backends[0])...))))
	s.ip("route", "add", "default", "via", s.Clients[0].V4.String(), "metric", "10")
	s.ip("route", "add", "default", "via", s.Backends[1].V4.String(), "metric", "100")
	check(t, s.Gateway.Sysctl("net.ipv4.conf.all.rp_filter", "1"))
	check(t, s.Gateway.Sysctl("net.ipv4.conf.eth-in.rp_filter", "0"))
	stranger := netip.MustParseAddr("192.0.2.9")
	come := func() (arrived uint64) {
		before := s.status("web").Total.NewConnections
		from := netip.AddrPortFrom(stranger, s.port())
		check(t, s.Backends[1].SendIP(lab.UDPPacket(from, target(model.IPv4, 1, 7), []byte("?\n"))))
		for end := time.Now().Add(silence); time.Now().Before(end) && arrived == 0; time.Sleep(10 * time.Millisecond) {
			arrived = s.status("web").Total.NewConnections - before
		}
		return arrived
	}
	if n := come(); n != 0 {
		t.Fatalf("%d packets came through a strict filter", n)
	}
	s.ills(t, host.Warning, host.RPFilter, "net.ipv4.conf.eth-in.rp_filter")
	if n := come(); n != 1 {
		t.Errorf("%d packets came after that, want 1", n)
	}
}

// TestDoctorOfAdvertisements has a default route that forwarding lets expire.
func TestDoctorOfAdvertisements(t *testing.T) {
	t.Parallel()
	needTool(t, "ip")
	needTool(t, "sysctl")
	s := newSite(t, 1, 1)
	s.apply(services(service("web", listenOn(1, "7/tcp"), backendList(on("", s.Backends...)...))))
	s.ip("-6", "route", "add", "default", "via", s.Clients[0].V6.String(), "proto", "ra")
	check(t, s.Gateway.Sysctl("net.ipv6.conf.eth-out.accept_ra", "1"))
	s.ills(t, host.Warning, host.AcceptRA, "net.ipv6.conf.eth-out.accept_ra")
}

// TestDoctorWithoutAWeir has weir's own things missing where no weir runs.
func TestDoctorWithoutAWeir(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	s.stop()
	d := s.doctor()
	if d.code != 0 || d.Running || len(d.Findings) != 1 || d.Findings[0].ID != host.NotRunning {
		t.Fatalf("of rules without a weir: %+v", d)
	}
	t.Run("rules gone", func(t *testing.T) {
		s.nft("delete", "table", "inet", "weir")
		s.ills(t, host.Error, host.RulesMissing, "table inet weir")
		s.flows(t)
	})
	t.Run("rules edited", func(t *testing.T) {
		s.nft("flush", "chain", "inet", "weir", "prerouting")
		s.ills(t, host.Warning, host.RulesDiffer, "table inet weir")
		s.flows(t)
	})
	for _, f := range families {
		t.Run("address gone "+f.String(), func(t *testing.T) {
			a := held(f, 200)
			check(t, s.Gateway.DelAddr(lab.OutsideDev, netip.PrefixFrom(a, a.BitLen())))
			s.ills(t, host.Error, host.AddressMissing, lab.OutsideDev)
			s.flows(t)
		})
	}
	t.Run("state file", func(t *testing.T) {
		path := filepath.Join(s.dir, "state.json")
		check(t, os.WriteFile(path, []byte("nonsense"), 0o600))
		s.ills(t, host.Warning, host.StateFile, path)
	})
	t.Run("no rights", func(t *testing.T) {
		needTool(t, "setpriv")
		out, err := s.Gateway.Run("setpriv", "--bounding-set=-all", "--inh-caps=-all", binary, "--config", s.config, "doctor", "--state", filepath.Join(s.dir, "state.json"))
		if err == nil || !strings.Contains(out, "warning  rights: you do not have CAP_NET_ADMIN and CAP_NET_RAW\n") || strings.Contains(out, "error  ") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("checks, and nobody does them", func(t *testing.T) {
		s.apply(s.checkedService())
		f := about(s.doctor().Findings, host.NotRunning, "")
		if f == nil || f.Severity != host.Warning || !slices.Equal(f.Services, []string{"web"}) {
			t.Errorf("found %+v", f)
		}
	})
	t.Run("a wrong file", func(t *testing.T) {
		s.write("services: [{name: web}]\n")
		if r := s.weir("doctor", "--state", filepath.Join(s.dir, "state.json")); r.code != 2 || !strings.Contains(r.stderr, "weir.yaml:1:") {
			t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
	})
}

// TestDoctorOfBackends has the checks find backends down.
func TestDoctorOfBackends(t *testing.T) {
	t.Parallel()
	s, servers := checkedSite(t, 2)
	s.awaitStates("web", s.Backends[0], "up")
	s.awaitStates("web", s.Backends[1], "up")
	if d := s.doctor(); d.code != 0 {
		t.Fatalf("of a healthy site: %+v", d)
	}
	for i, want := range []struct {
		id       string
		severity host.Severity
	}{{host.BackendDown, host.Warning}, {host.ServiceDown, host.Error}} {
		check(t, servers[i].Close())
		s.awaitStates("web", s.Backends[i], "down")
		f := about(s.doctor().Findings, want.id, "web")
		if f == nil || f.Severity != want.severity || !strings.Contains(f.Found, s.Backends[i].V4.String()) {
			t.Errorf("found %+v", s.doctor())
		}
	}
}
