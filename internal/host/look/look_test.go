package look

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/host"
	"weir/internal/lab"
	"weir/internal/model"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const patience = 10 * time.Second

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gateway is a network whose gateway is looked at.
func gateway(t testing.TB) *lab.Topology {
	t.Helper()
	lab.Require(t)
	topo, err := lab.Gateway(lab.GatewayOptions{})
	check(t, err)
	t.Cleanup(func() { check(t, topo.Net.Close()) })
	return topo
}

// to returns a configuration with these backends.
func to(addrs ...netip.Addr) *model.Config {
	s := &model.Service{Name: "web", Listen: []model.Listen{{Addr: netip.MustParseAddr("198.51.100.1"), Proto: model.TCP, Ports: model.Port(80)},
		{Addr: netip.MustParseAddr("2001:db8:f::1"), Proto: model.TCP, Ports: model.Port(80)}}}
	for _, a := range addrs {
		s.Backends = append(s.Backends, model.Backend{Addr: a, Weight: 1})
	}
	return &model.Config{Services: []*model.Service{s}}
}

// look looks once, from the gateway.
func look(t testing.TB, topo *lab.Topology, cfg *model.Config) (f *host.Facts) {
	t.Helper()
	check(t, topo.Gateway.Do(func() error {
		l, err := Open()
		if err != nil {
			return err
		}
		defer l.Close()
		f, err = l.Look(host.NeedsOf(cfg), 0)
		return err
	}))
	return f
}

func ip(t testing.TB, h *lab.Host, args ...string) {
	t.Helper()
	if _, err := h.Run("ip", args...); err != nil {
		t.Fatal(err)
	}
}

// TestSysctlsOfDevices compares what the kernel sends in its array of a device's sysctls
// with what /proc says.
func TestSysctlsOfDevices(t *testing.T) {
	topo := gateway(t)
	for _, set := range []map[string]string{
		{"net.ipv4.conf.eth-in.forwarding": "0", "net.ipv4.conf.eth-in.rp_filter": "1", "net.ipv6.conf.eth-in.forwarding": "0",
			"net.ipv6.conf.eth-in.accept_ra": "2", "net.ipv6.conf.eth-in.disable_ipv6": "0"},
		{"net.ipv4.conf.eth-in.forwarding": "1", "net.ipv4.conf.eth-in.rp_filter": "0", "net.ipv6.conf.eth-in.forwarding": "1",
			"net.ipv6.conf.eth-in.accept_ra": "0", "net.ipv6.conf.eth-in.disable_ipv6": "1"},
	} {
		for key, v := range set {
			check(t, topo.Gateway.Sysctl(key, v))
		}
		f := look(t, topo, to())
		i := slices.IndexFunc(f.Links, func(l host.Link) bool { return l.Name == lab.InsideDev })
		if i < 0 {
			t.Fatalf("no %s in %+v", lab.InsideDev, f.Links)
		}
		l := f.Links[i]
		for key, got := range map[string]int{"net.ipv4.conf.eth-in.forwarding": l.Forward4, "net.ipv4.conf.eth-in.rp_filter": l.RPFilter,
			"net.ipv6.conf.eth-in.forwarding": l.Forward6, "net.ipv6.conf.eth-in.accept_ra": l.AcceptRA, "net.ipv6.conf.eth-in.disable_ipv6": l.Disabled6} {
			if want := int(set[key][0] - '0'); got != want {
				t.Errorf("%s: %d, set to %d", key, got, want)
			}
		}
		if !l.Up || !l.Carrier || l.Loop {
			t.Errorf("%+v", l)
		}
	}
	f := look(t, topo, to())
	if f.Forward[model.IPv4] != 1 || f.Forward[model.IPv6] != 1 || f.RPFilterAll != 2 {
		t.Errorf("forwarding %v, rp_filter %d", f.Forward, f.RPFilterAll)
	}
}

// TestRoutes looks up every kind of route, in both families.
func TestRoutes(t *testing.T) {
	topo := gateway(t)
	g := topo.Gateway
	for _, r := range [][]string{
		{"10.20.0.0/16", "via", topo.Backends[0].V4.String(), "dev", lab.InsideDev},
		{"2001:db8:20::/48", "via", topo.Backends[0].V6.String(), "dev", lab.InsideDev},
		{"blackhole", "10.21.0.0/16"}, {"blackhole", "2001:db8:21::/48"},
		{"unreachable", "10.22.0.0/16"}, {"unreachable", "2001:db8:22::/48"},
		{"prohibit", "10.23.0.0/16"}, {"prohibit", "2001:db8:23::/48"},
		{"10.24.0.0/16", "nexthop", "via", topo.Backends[0].V4.String(), "nexthop", "via", topo.Clients[0].V4.String()},
		{"2001:db8:24::/48", "nexthop", "via", topo.Backends[0].V6.String(), "nexthop", "via", topo.Clients[0].V6.String()},
		{"10.25.0.0/16", "via", "inet6", topo.Backends[0].V6.String(), "dev", lab.InsideDev},
	} {
		ip(t, g, append([]string{"route", "add"}, r...)...)
	}
	in, out := lab.InsideDev, lab.OutsideDev
	own4, own6 := netip.PrefixFrom(topo.Inside4, 24), netip.PrefixFrom(topo.Inside6, 64)
	p := netip.MustParsePrefix
	b4, b6, c4, c6 := topo.Backends[0].V4, topo.Backends[0].V6, topo.Clients[0].V4, topo.Clients[0].V6
	want := map[string]*host.Route{
		b4.String():      {Dst: lab.BackendNet4, Hops: []host.Hop{{Dev: in}}, Own: own4},
		b6.String():      {Dst: lab.BackendNet6, Hops: []host.Hop{{Dev: in}}, Own: own6},
		"10.20.1.1":      {Dst: p("10.20.0.0/16"), Hops: []host.Hop{{Dev: in, Gateway: b4}}, Own: own4},
		"2001:db8:20::1": {Dst: p("2001:db8:20::/48"), Hops: []host.Hop{{Dev: in, Gateway: b6}}, Own: own6},
		"10.21.1.1":      {Way: host.Blackholed},
		"2001:db8:21::1": {Way: host.Blackholed},
		"10.22.1.1":      {Way: host.Unreachable},
		"2001:db8:22::1": {Way: host.Unreachable},
		"10.23.1.1":      {Way: host.Prohibited},
		"2001:db8:23::1": {Way: host.Prohibited},
		"10.24.1.1":      {Dst: p("10.24.0.0/16"), Hops: []host.Hop{{Dev: in, Gateway: b4}, {Dev: out, Gateway: c4}}, Own: own4},
		"2001:db8:24::1": {Dst: p("2001:db8:24::/48"), Hops: []host.Hop{{Dev: in, Gateway: b6}, {Dev: out, Gateway: c6}}, Own: own6},
		"10.25.1.1":      {Dst: p("10.25.0.0/16"), Hops: []host.Hop{{Dev: in, Gateway: b6}}, Own: own6},
		"10.26.1.1":      {Way: host.Unroutable},
		"2001:db8:26::1": {Way: host.Unroutable},
		g.V4.String():    {Way: host.Local, Dst: netip.PrefixFrom(g.V4, 32)},
		g.V6.String():    {Way: host.Local, Dst: netip.PrefixFrom(g.V6, 128)},
		"127.0.0.5":      {Way: host.Local, Dst: p("127.0.0.0/8")},
	}
	var addrs []netip.Addr
	for a := range want {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	n := host.NeedsOf(to(addrs...))
	f := look(t, topo, to(addrs...))
	cmpAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	cmpPrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	for i, a := range n.Backends {
		got := f.Routes[i]
		if got != nil && len(got.Hops) == 2 && got.Hops[0].Dev != in { // IPv6 keeps them in an order of its own
			c := *got
			c.Hops = []host.Hop{got.Hops[1], got.Hops[0]}
			c.Own = want[a.String()].Own
			got = &c
		}
		if diff := cmp.Diff(want[a.String()], got, cmpAddr, cmpPrefix); diff != "" {
			t.Errorf("%s (-want +got):\n%s", a, diff)
		}
	}
}

// TestDefaults looks for default routes where two devices have one.
func TestDefaults(t *testing.T) {
	topo := gateway(t)
	ip(t, topo.Gateway, "route", "add", "default", "via", topo.Clients[0].V4.String(), "metric", "50")
	ip(t, topo.Gateway, "route", "add", "default", "via", topo.Backends[0].V4.String(), "metric", "100")
	ip(t, topo.Gateway, "-6", "route", "add", "default", "via", topo.Clients[0].V6.String(), "proto", "ra", "metric", "1024")
	got := look(t, topo, to()).Defaults
	for _, want := range []host.Default{{Family: model.IPv4, Dev: lab.OutsideDev, Metric: 50}, {Family: model.IPv4, Dev: lab.InsideDev, Metric: 100},
		{Family: model.IPv6, Dev: lab.OutsideDev, Metric: 1024, RA: true}} {
		if !slices.Contains(got, want) {
			t.Errorf("no %+v in %+v", want, got)
		}
	}
	if len(got) != 3 {
		t.Errorf("found %+v", got)
	}
}

// watch runs a Watcher on the gateway until the test ends.
func watch(t *testing.T, topo *lab.Topology) *Watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan *Watcher, 1), make(chan error, 1)
	go func() {
		done <- topo.Gateway.Do(func() error {
			w, err := NewWatcher()
			ready <- w
			if err == nil {
				w.Run(ctx)
			}
			return err
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return <-ready
}

// await waits for findings of these IDs, and returns them.
func await(t *testing.T, w *Watcher, ids ...string) []host.Finding {
	t.Helper()
	var last []host.Finding
	for deadline := time.After(patience); ; {
		select {
		case last = <-w.Findings():
			var got []string
			for _, f := range last {
				got = append(got, f.ID)
			}
			if slices.Equal(got, ids) {
				return last
			}
		case <-deadline:
			t.Fatalf("no findings %v; the last are %v", ids, last)
		}
	}
}

// TestWatch changes one thing after the other under a Watcher.
func TestWatch(t *testing.T) {
	topo := gateway(t)
	b := topo.Backends[0]
	w := watch(t, topo)
	// With so many it would take a minute to find by looking at one after the other what
	// the kernel notifies of.
	addrs := []netip.Addr{b.V4, b.V6}
	for i := range 2000 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}))
	}
	ip(t, topo.Gateway, "route", "add", "10.200.0.0/16", "via", b.V4.String())
	w.Set(to(addrs...))
	await(t, w) // nothing is wrong, and it says so
	ip(t, topo.Gateway, "route", "add", "blackhole", b.V4.String())
	await(t, w, host.NoRoute)
	ip(t, topo.Gateway, "route", "add", "prohibit", b.V6.String())
	await(t, w, host.NoRoute, host.NoRoute)
	ip(t, topo.Gateway, "route", "del", "blackhole", b.V4.String())
	await(t, w, host.NoRoute)
	w.Set(to(b.V4)) // whoever is not in the file any more needs no route
	await(t, w)
	check(t, topo.Gateway.Sysctl("net.ipv4.ip_forward", "0")) // resets those of the devices too
	await(t, w, host.IPForward)
	check(t, topo.Gateway.Sysctl("net.ipv4.ip_forward", "1"))
	await(t, w)
}

// TestWatchSegment cuts the cable: a device without a carrier keeps its routes.
func TestWatchSegment(t *testing.T) {
	topo := gateway(t)
	other, err := topo.Net.Host("other")
	check(t, err)
	check(t, topo.Net.Link(lab.End{Host: topo.Gateway, Name: "cable", Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}},
		lab.End{Host: other, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}))
	w := watch(t, topo)
	w.Set(to(netip.MustParseAddr("10.9.0.2")))
	await(t, w)
	check(t, other.SetLink("eth0", false))
	if f := await(t, w, host.NoCarrier); f[0].Subject != "cable" {
		t.Errorf("found %+v", f)
	}
	check(t, other.SetLink("eth0", true))
	await(t, w)
	ip(t, topo.Gateway, "link", "del", "cable")
	if f := await(t, w, host.DeviceMissing); f[0].Subject != "cable" {
		t.Errorf("found %+v", f)
	}
}

// TestNotesOnlyWhatMatters hears of routes that lead to no backend.
func TestNotesOnlyWhatMatters(t *testing.T) {
	w := &Watcher{wake: make(chan struct{}, 1), known: host.NeedsOf(to(netip.MustParseAddr("10.1.1.1")))}
	for _, c := range []struct {
		prefix string
		wakes  bool
	}{{"10.2.0.0/16", false}, {"2001:db8::/32", false}, {"10.1.0.0/16", true}, {"0.0.0.0/0", true}} {
		w.note(dirty{prefixes: []netip.Prefix{netip.MustParsePrefix(c.prefix)}})
		select {
		case <-w.wake:
			if !c.wakes {
				t.Errorf("a route to %s wakes the watch", c.prefix)
			}
		default:
			if c.wakes {
				t.Errorf("a route to %s does not wake the watch", c.prefix)
			}
		}
	}
	for i := range mostPrefixes + 1 {
		w.note(dirty{prefixes: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 1).Masked(), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 1, 1}), i%32+1)}})
	}
	if _, d := w.take(); d.all || len(d.prefixes) > mostPrefixes {
		t.Errorf("the same networks again count: %+v", d)
	}
}

// many is a Watcher on a box with 100,000 backends, as 10,000 services with 10 each have.
func many(b *testing.B, fn func(w *Watcher)) {
	topo := gateway(b)
	ip(b, topo.Gateway, "route", "add", "10.0.0.0/8", "via", topo.Backends[0].V4.String())
	cfg := &model.Config{}
	for i := range 10000 {
		s := &model.Service{Name: "s", Listen: []model.Listen{{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Proto: model.TCP, Ports: model.Port(80)}}}
		for j := range 10 {
			n := 10*i + j
			s.Backends = append(s.Backends, model.Backend{Addr: netip.AddrFrom4([4]byte{10, byte(2 + n>>16), byte(n >> 8), byte(n)}), Weight: 1})
		}
		cfg.Services = append(cfg.Services, s)
	}
	check(b, topo.Gateway.Do(func() error {
		w, err := NewWatcher()
		if err != nil {
			return err
		}
		w.Set(cfg)
		w.step()
		fn(w)
		return nil
	}))
}

// BenchmarkTick is what the watch costs each second where nothing happens.
func BenchmarkTick(b *testing.B) {
	many(b, func(w *Watcher) {
		for b.Loop() {
			w.step()
		}
	})
}

// BenchmarkAll is what it costs when a device changes.
func BenchmarkAll(b *testing.B) {
	many(b, func(w *Watcher) {
		for b.Loop() {
			w.note(dirty{all: true})
			w.step()
		}
	})
}

// TestLookAtSome bounds the routes that are looked for.
func TestLookAtSome(t *testing.T) {
	topo := gateway(t)
	var addrs []netip.Addr
	for i := range 1000 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	check(t, topo.Gateway.Do(func() error {
		l, err := Open()
		if err != nil {
			return err
		}
		defer l.Close()
		for most, bounds := range map[int][2]int{0: {1000, 1000}, 1000: {1000, 1000}, 200: {150, 260}, 1: {1, asked}} {
			f, err := l.Look(host.NeedsOf(to(addrs...)), most)
			if err != nil {
				return err
			}
			known, last := 0, 0
			for i, r := range f.Routes {
				if r != nil {
					known, last = known+1, i
				}
			}
			if known < bounds[0] || known > bounds[1] || most == 200 && last < 700 {
				t.Errorf("at most %d: %d routes, the last %d", most, known, last)
			}
		}
		return nil
	}))
}
