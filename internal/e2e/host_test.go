package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/host"
	"weir/internal/lab"
	"weir/internal/model"
)

// noticed bounds what weir promises to notice within two seconds, with time for a busy
// machine to run the commands that look.
const noticed = 2*time.Second + 3*time.Second

// findings returns what `weir status` says is wrong on the box.
func (s *site) findings() []host.Finding {
	s.t.Helper()
	var st engine.Status
	s.mustJSON(&st, "status")
	if st.Findings == nil {
		s.t.Fatal("weir status does not know what is wrong on the box")
	}
	return st.Findings
}

func about(list []host.Finding, id, subject string) *host.Finding {
	i := slices.IndexFunc(list, func(f host.Finding) bool { return f.ID == id && (subject == "" || f.Subject == subject) })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// awaitFinding waits until `weir status` has a finding, or has it no more, and checks that
// an event tells of it once.
func (s *site) awaitFinding(t *testing.T, since uint64, id, subject string, there bool) *host.Finding {
	t.Helper()
	var f *host.Finding
	took := await(t, id+" "+subject, func() bool {
		f = about(s.findings(), id, subject)
		return (f != nil) == there
	})
	t.Logf("%s %s: %t after %s", id, subject, there, took)
	if took > noticed {
		t.Errorf("%s %s took %s", id, subject, took)
	}
	n := 0
	for _, e := range s.events(since) {
		if e.Kind == "host" && e.Finding == id && (e.To == "ok") != there && e.Subject == subject {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%s %s: %d events with %t, want 1: %+v", id, subject, n, there, s.events(since))
	}
	return f
}

func (s *site) lastEvent() uint64 {
	s.t.Helper()
	list := s.events(0)
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Seq
}

// awaitQuiet waits until weir has looked at the box and found nothing.
func (s *site) awaitQuiet(t *testing.T) {
	t.Helper()
	await(t, "nothing is wrong", func() bool {
		var st engine.Status
		s.mustJSON(&st, "status")
		return st.Findings != nil && len(st.Findings) == 0
	})
}

// ip runs the ip command on the gateway.
func (s *site) ip(args ...string) {
	s.t.Helper()
	needTool(s.t, "ip")
	_, err := s.Gateway.Run("ip", args...)
	check(s.t, err)
}

// hostSite is a site on which a weir runs that has nothing to say of the box.
func hostSite(t *testing.T) *site {
	t.Helper()
	needTool(t, "ip")
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	list := backendList(on("", s.Backends...)...)
	s.write(services(service("web", listenOn(1, "7/tcp", "80/tcp"), list), service("held", listenHeld(200, "7/tcp"), list, "assign: "+lab.OutsideDev)))
	s.start()
	s.awaitQuiet(t)
	s.flows(t)
	return s
}

// flows sends traffic to both services in both families.
func (s *site) flows(t *testing.T) {
	t.Helper()
	for _, f := range families {
		s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), 7))
		s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(held(f, 200), 7))
	}
}

var forwardKeys = map[model.Family]string{model.IPv4: "net.ipv4.ip_forward", model.IPv6: "net.ipv6.conf.all.forwarding"}

// TestHostForwarding turns forwarding off and on again beside a running weir, which says
// so and never writes it.
func TestHostForwarding(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	eachFamily(t, func(t *testing.T, f model.Family) {
		key, since := forwardKeys[f], s.lastEvent()
		check(t, s.Gateway.Sysctl(key, "0"))
		got := s.awaitFinding(t, since, host.IPForward, key, true)
		if got.Severity != host.Error || !slices.Equal(got.Services, []string{"web", "held"}) {
			t.Errorf("found %+v", got)
		}
		if out := s.must("status"); !strings.HasPrefix(out, "error: "+key+" is 0") {
			t.Errorf("weir status begins with %.200s", out)
		}
		if v, err := s.Gateway.GetSysctl(key); err != nil || v != "0" {
			t.Errorf("%s is %q (%v): weir wrote it", key, v, err)
		}
		since = s.lastEvent()
		check(t, s.Gateway.Sysctl(key, "1"))
		s.awaitFinding(t, since, host.IPForward, key, false)
	})
	s.awaitQuiet(t)
	s.flows(t)
	if n := strings.Count(s.log.String(), "net.ipv4.ip_forward is 0"); n != 2 {
		t.Errorf("the log says %d times that forwarding was off; want once, and once that it is no longer:\n%s", n, s.log)
	}
}

// TestHostForwardingOfDevice turns IPv4 forwarding off on the device of the clients alone.
func TestHostForwardingOfDevice(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	key, since := "net.ipv4.conf."+lab.OutsideDev+".forwarding", s.lastEvent()
	check(t, s.Gateway.Sysctl(key, "0"))
	f := s.awaitFinding(t, since, host.IPForward, key, true)
	s.typed(t, f.Fix)
	s.awaitQuiet(t)
	s.flows(t)
}

// typed runs a command that weir says to type, as a shell on the gateway does.
func (s *site) typed(t *testing.T, fix string) {
	t.Helper()
	if fix == "" {
		t.Fatal("there is nothing to type")
	}
	for _, tool := range []string{"sh", strings.Fields(fix)[0]} {
		if tool != "weir" {
			needTool(t, tool)
		}
	}
	out, err := s.Gateway.Run("sh", "-c", `PATH="$0:$PATH"; `+fix, binary[:strings.LastIndex(binary, "/")])
	if err != nil {
		t.Fatalf("%s: %v\n%s", fix, err, out)
	}
	t.Logf("typed %s", fix)
}

// networksOf are the backends' networks.
var networksOf = map[model.Family]netip.Prefix{model.IPv4: lab.BackendNet4, model.IPv6: lab.BackendNet6}

// TestHostRoutes takes the backends' routes away, family by family, and brings them back
// with what weir says to type.
func TestHostRoutes(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	eachFamily(t, func(t *testing.T, f model.Family) {
		net, since := networksOf[f].String(), s.lastEvent()
		s.ip("route", "del", net, "dev", lab.InsideDev)
		got := s.awaitFinding(t, since, host.NoRoute, net, true)
		since = s.lastEvent()
		s.typed(t, got.Fix)
		s.awaitFinding(t, since, host.NoRoute, net, false)
		s.flows(t)

		since = s.lastEvent()
		s.ip("route", "replace", "blackhole", addrOf(s.Backends[0], f).String())
		got = s.awaitFinding(t, since, host.NoRoute, net, true)
		if !strings.HasPrefix(got.Found, "a blackhole route leads to "+addrOf(s.Backends[0], f).String()) {
			t.Errorf("found %q", got.Found)
		}
		since = s.lastEvent()
		s.ip("route", "del", "blackhole", addrOf(s.Backends[0], f).String())
		s.awaitFinding(t, since, host.NoRoute, net, false)
	})
	s.awaitQuiet(t)
	s.flows(t)

	t.Run("to the default route", func(t *testing.T) {
		since := s.lastEvent()
		s.ip("route", "add", "default", "via", s.Clients[0].V4.String())
		s.ip("route", "del", lab.BackendNet4.String(), "dev", lab.InsideDev)
		f := s.awaitFinding(t, since, host.RouteLost, lab.BackendNet4.String(), true)
		since = s.lastEvent()
		s.typed(t, f.Fix)
		s.awaitFinding(t, since, host.RouteLost, lab.BackendNet4.String(), false)
		s.flows(t)
	})
}

// TestHostDeviceDown sets the backends' device down. IPv6 addresses go with it; weir says
// how both families come back.
func TestHostDeviceDown(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	since := s.lastEvent()
	s.ip("link", "set", "dev", lab.InsideDev, "down")
	f := s.awaitFinding(t, since, host.DeviceDown, lab.InsideDev, true)
	if len(s.findings()) != 1 {
		t.Errorf("more than the device: %+v", s.findings())
	}
	since = s.lastEvent()
	s.typed(t, f.Fix)
	s.awaitFinding(t, since, host.DeviceDown, lab.InsideDev, false)
	f = s.awaitFinding(t, since, host.NoRoute, lab.BackendNet6.String(), true)
	s.typed(t, f.Fix)
	s.awaitQuiet(t)
	s.flows(t)
}

// TestHostAssignDevice takes the device of assigned addresses down: weir says so, and when
// it is up again puts back what the kernel took away.
func TestHostAssignDevice(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	since := s.lastEvent()
	s.ip("link", "set", "dev", lab.OutsideDev, "down")
	f := s.awaitFinding(t, since, host.DeviceDown, lab.OutsideDev, true)
	if !slices.Equal(f.Services, []string{"held"}) {
		t.Errorf("concerns %v", f.Services)
	}
	since = s.lastEvent()
	s.typed(t, f.Fix)
	s.awaitFinding(t, since, host.DeviceDown, lab.OutsideDev, false)
	for _, f := range families {
		took := await(t, held(f, 200).String()+" is back", func() bool { return s.holds(lab.OutsideDev, held(f, 200)) })
		t.Logf("%s was back after %s", held(f, 200), took)
	}
	// The gateway's own IPv6 address went too, and is not weir's: clients resolve it.
	s.ip("addr", "add", s.outside(model.IPv6).String()+"/64", "dev", lab.OutsideDev)
	s.awaitQuiet(t)
	s.flows(t)
}

// TestHostAddressesPutBack takes weir's addresses away: they are back within two seconds,
// an event says so, and no finding comes of it.
func TestHostAddressesPutBack(t *testing.T) {
	t.Parallel()
	s := hostSite(t)
	eachFamily(t, func(t *testing.T, f model.Family) {
		a, since := held(f, 200), s.lastEvent()
		check(t, s.Gateway.DelAddr(lab.OutsideDev, netip.PrefixFrom(a, a.BitLen())))
		took := await(t, a.String()+" is back", func() bool { return s.holds(lab.OutsideDev, a) })
		t.Logf("%s was back after %s", a, took)
		if took > noticed {
			t.Errorf("%s was back after %s", a, took)
		}
		await(t, "the event", func() bool {
			return slices.ContainsFunc(s.events(since), func(e engine.Event) bool {
				return e.Kind == "repair" && strings.Contains(e.Message, a.String()+" on "+lab.OutsideDev)
			})
		})
		if slices.ContainsFunc(s.events(since), func(e engine.Event) bool { return e.Kind == "host" }) {
			t.Errorf("what weir mends is told as a finding: %+v", s.events(since))
		}
	})
	s.flows(t)
}
