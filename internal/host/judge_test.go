package host_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/internal/host"
	"weir/internal/model"
)

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

// site is a configuration and a box on which nothing is wrong: clients on eth0, where
// addresses are assigned too, backends on eth1 and behind a router of that.
func site() (*model.Config, *host.Facts) {
	listen := func(a string) model.Listen {
		return model.Listen{Addr: addr(a), Proto: model.TCP, Ports: model.Port(80)}
	}
	to := func(addrs ...string) (out []model.Backend) {
		for _, a := range addrs {
			out = append(out, model.Backend{Addr: addr(a), Weight: 1})
		}
		return out
	}
	cfg := &model.Config{Services: []*model.Service{
		{Name: "web", Listen: []model.Listen{listen("198.51.100.10"), listen("2001:db8:f::10")}, Backends: to("10.1.1.1", "10.1.1.2", "2001:db8:1::1")},
		{Name: "far", Listen: []model.Listen{listen("198.51.100.11")}, Backends: to("10.1.1.2", "10.2.2.1"),
			Source: model.SourceNAT{Mode: model.SourceAddress, V4: addr("10.1.1.250")}},
		{Name: "held", Listen: []model.Listen{listen("203.0.113.200"), listen("2001:db8:c::c8")}, Backends: to("10.1.1.1", "2001:db8:1::1"), Assign: "eth0"},
	}}
	link := func(i int, name string) host.Link {
		return host.Link{Name: name, Index: i, Up: true, Carrier: true, Forward4: 1, RPFilter: 2, Forward6: 1, AcceptRA: 0, Disabled6: 0}
	}
	f := &host.Facts{Forward: map[model.Family]int{model.IPv4: 1, model.IPv6: 1}, RPFilterAll: 0,
		Links: []host.Link{{Name: "lo", Index: 1, Up: true, Carrier: true, Loop: true}, link(2, "eth0"), link(3, "eth1"), link(4, "eth2")},
		Held: []host.HeldPrefix{{Dev: "eth0", Prefix: prefix("203.0.113.254/24")}, {Dev: "eth0", Prefix: prefix("203.0.113.200/32")},
			{Dev: "eth0", Prefix: prefix("2001:db8:c::fe/64")}, {Dev: "eth0", Prefix: prefix("2001:db8:c::c8/128")},
			{Dev: "eth1", Prefix: prefix("10.1.1.254/24")}, {Dev: "eth1", Prefix: prefix("10.1.1.250/24")}, {Dev: "eth1", Prefix: prefix("2001:db8:1::fe/64")}},
		Defaults:  []host.Default{{Family: model.IPv4, Dev: "eth0", Metric: 0}, {Family: model.IPv6, Dev: "eth0", Metric: 1024}},
		Conntrack: host.Conntrack{Count: 79, Max: 100, Buckets: 100}}
	near4 := &host.Route{Dst: prefix("10.1.1.0/24"), Hops: []host.Hop{{Dev: "eth1"}}, Own: prefix("10.1.1.254/24")}
	far4 := &host.Route{Dst: prefix("10.2.0.0/16"), Hops: []host.Hop{{Dev: "eth1", Gateway: addr("10.1.1.253")}}, Own: prefix("10.1.1.254/24")}
	near6 := &host.Route{Dst: prefix("2001:db8:1::/64"), Hops: []host.Hop{{Dev: "eth1"}}, Own: prefix("2001:db8:1::fe/64")}
	f.Routes = []*host.Route{near4, near4, far4, near6} // 10.1.1.1, 10.1.1.2, 10.2.2.1, 2001:db8:1::1
	f.ListenRoutes = []*host.Route{defaultRoute, defaultRoute, defaultRoute}
	f.Remember()
	return cfg, f
}

var (
	defaultRoute = &host.Route{Dst: prefix("0.0.0.0/0"), Hops: []host.Hop{{Dev: "eth0", Gateway: addr("203.0.113.1")}}}
	noRoute      = &host.Route{Way: host.Unroutable}
	local        = &host.Route{Way: host.Local, Dst: prefix("10.1.1.1/32")}
)

// text is a finding in a line: what matters of it to a program, and the words.
func text(f host.Finding) string {
	return fmt.Sprintf("%s %s %s [%s] %s", f.Severity, f.ID, f.Subject, strings.Join(f.Services, " "), f)
}

// pools returns a pool of routed addresses, for the hosts of eth1, which leave by eth0.
func pools(change func(*model.Pool)) []*model.Pool {
	p := &model.Pool{Name: "out", From: []netip.Prefix{prefix("10.1.0.0/16")}, Out: []string{"eth0"},
		Addresses: []model.AddrRange{{Lo: addr("192.0.2.1"), Hi: addr("192.0.2.2")}}, Ports: []model.PortRange{{Lo: 1024, Hi: 1033}}}
	if change != nil {
		change(p)
	}
	return []*model.Pool{p}
}

func TestJudge(t *testing.T) {
	link := func(f *host.Facts, name string) *host.Link {
		return &f.Links[slices.IndexFunc(f.Links, func(l host.Link) bool { return l.Name == name })]
	}
	lose := func(f *host.Facts, dev string, p string) {
		f.Held = slices.DeleteFunc(f.Held, func(h host.HeldPrefix) bool { return h.Dev == dev && h.Prefix == prefix(p) })
	}
	gone := func(f *host.Facts, at ...int) {
		for _, i := range at {
			f.Routes[i] = noRoute
		}
	}
	for _, c := range []struct {
		name   string
		change func(*model.Config, *host.Facts)
		want   []string
	}{
		{"nothing is wrong", func(*model.Config, *host.Facts) {}, nil},
		{"a pool, and nothing is wrong", func(cfg *model.Config, _ *host.Facts) { cfg.Egress = pools(nil) }, nil},
		{"a pool, and IPv4 forwarding off", func(cfg *model.Config, f *host.Facts) {
			cfg.Services, f.Routes, f.Last, cfg.Egress = nil, nil, nil, pools(nil)
			f.Forward[model.IPv4] = 0
		}, []string{"error ip-forward net.ipv4.ip_forward [] net.ipv4.ip_forward is 0: the kernel lets nothing through from one device to another (egress pool out); type: sysctl -w net.ipv4.ip_forward=1"}},
		{"a pool, and its clients' device does not forward", func(cfg *model.Config, f *host.Facts) {
			cfg.Services, f.Routes, f.Last, cfg.Egress = nil, nil, nil, pools(nil)
			link(f, "eth1").Forward4 = 0
		}, []string{"error ip-forward net.ipv4.conf.eth1.forwarding [] net.ipv4.conf.eth1.forwarding is 0: the kernel forwards nothing that comes in by eth1 (egress pool out); type: sysctl -w net.ipv4.conf.eth1.forwarding=1"}},
		{"a pool by a device that is not there", func(cfg *model.Config, f *host.Facts) {
			cfg.Egress = pools(func(p *model.Pool) { p.Out = []string{"ppp0"} })
		}, []string{"error device-missing ppp0 [] there is no device ppp0: no connection leaves by it (egress pool out)"}},
		{"a pool by two devices, one strict", func(cfg *model.Config, f *host.Facts) {
			cfg.Egress = pools(func(p *model.Pool) { p.Out = []string{"eth0", "eth2"} })
			link(f, "eth2").RPFilter = 1
		}, []string{"warning rp-filter net.ipv4.conf.eth2.rp_filter [] reverse-path filtering is strict on eth2, which is not the device of the best default route: answers that come in by eth2 are dropped where the way back to their senders is by eth0 (egress pool out); type: sysctl -w net.ipv4.conf.eth2.rp_filter=2"}},
		{"a pool of addresses of another device's segment", func(cfg *model.Config, f *host.Facts) {
			cfg.Egress = pools(nil)
			f.Held = append(f.Held, host.HeldPrefix{Dev: "eth2", Prefix: prefix("192.0.2.1/24")}, host.HeldPrefix{Dev: "eth2", Prefix: prefix("192.0.2.2/24")})
			link(f, "eth2").RPFilter = 1
		}, []string{"warning rp-filter net.ipv4.conf.eth2.rp_filter [] reverse-path filtering is strict on eth2, which is on the segment of addresses with which connections leave by eth0: answers that come in by eth2 are dropped where the way back to their senders is by eth0 (egress pool out); type: sysctl -w net.ipv4.conf.eth2.rp_filter=2"}},
		{"a pool of a segment's addresses that nobody holds", func(cfg *model.Config, _ *host.Facts) {
			cfg.Egress = pools(func(p *model.Pool) {
				p.Addresses = []model.AddrRange{{Lo: addr("203.0.113.7"), Hi: addr("203.0.113.9")}}
			})
		}, []string{"warning pool-not-held out eth0 [] 203.0.113.7, 203.0.113.8 and 1 more are of the network of eth0, and on no device: nobody answers for it there, so answers do not come back; assign: true has weir hold it (egress pool out); type: ip addr add 203.0.113.7/32 dev eth0"}},
		{"a pool that is to be held", func(cfg *model.Config, _ *host.Facts) {
			cfg.Egress = pools(func(p *model.Pool) { p.Assign = "eth0" })
		}, []string{"error address-missing eth0 [] 192.0.2.1 and 192.0.2.2 are not on eth0: nobody answers for it there; type: weir apply"}},
		{"a pool larger than the connection table", func(cfg *model.Config, f *host.Facts) {
			cfg.Egress = pools(func(p *model.Pool) { p.Ports = []model.PortRange{model.DefaultPoolPorts} })
			f.Conntrack = host.Conntrack{Count: 7, Max: 65536, Buckets: 65536}
		}, []string{"info pool-over-table net.netfilter.nf_conntrack_max [] the connection table has room for 65536 connections, and a pool for 129024 to one destination alone: the table is full before the pool is (egress pool out); type: sysctl -w net.netfilter.nf_conntrack_max=258048"}},
		{"a pool that is logged, and no events", func(cfg *model.Config, f *host.Facts) {
			cfg.Egress = pools(func(p *model.Pool) { p.Log = true })
			f.Conntrack.NoEvents = true
		}, []string{"error conntrack-events net.netfilter.nf_conntrack_events [] net.netfilter.nf_conntrack_events is 0: the kernel tells nobody of connections, and the log of bindings has only those that are found open (egress pool out); type: sysctl -w net.netfilter.nf_conntrack_events=1"}},
		{"IPv4 forwarding off", func(_ *model.Config, f *host.Facts) { f.Forward[model.IPv4] = 0 }, []string{
			"error ip-forward net.ipv4.ip_forward [web far held] net.ipv4.ip_forward is 0: the kernel forwards nothing to backends on other hosts (services web, far, held); type: sysctl -w net.ipv4.ip_forward=1"}},
		{"IPv6 forwarding off", func(_ *model.Config, f *host.Facts) { f.Forward[model.IPv6] = 0 }, []string{
			"error ip-forward net.ipv6.conf.all.forwarding [web held] net.ipv6.conf.all.forwarding is 0: the kernel forwards nothing to backends on other hosts (services web, held); type: sysctl -w net.ipv6.conf.all.forwarding=1"}},
		{"forwarding off, backends here", func(_ *model.Config, f *host.Facts) {
			f.Forward[model.IPv4] = 0
			f.Routes[0], f.Routes[1], f.Routes[2] = local, local, local
		}, nil},
		{"forwarding off, services of the box alone", func(cfg *model.Config, f *host.Facts) {
			f.Forward[model.IPv4], f.Forward[model.IPv6] = 0, 0
			for _, s := range cfg.Services {
				s.Forward, s.Backends, s.Source = model.ForwardLocal, nil, model.SourceNAT{}
			}
			f.Routes, f.Last = nil, nil
		}, nil},
		{"direct return needs no forwarding", func(cfg *model.Config, f *host.Facts) {
			f.Forward[model.IPv4], f.Forward[model.IPv6] = 0, 0
			for _, s := range cfg.Services {
				s.Forward, s.In, s.Source = model.ForwardDirect, []string{"eth0"}, model.SourceNAT{}
			}
			f.Routes[2] = f.Routes[0]
		}, nil},
		{"direct return to what is on no segment, and from a device that is not there", func(cfg *model.Config, f *host.Facts) {
			far := cfg.Services[1]
			far.Forward, far.In, far.Source = model.ForwardDirect, []string{"eth0", "eth9", "eth1"}, model.SourceNAT{}
			f.Routes[1] = local
		}, []string{
			"error device-missing eth9 [far] there is no device eth9: no clients of direct return come in by it (service far)",
			"error not-on-segment 10.1.1.2 [far] backend 10.1.1.2 is this box itself: direct return reaches backends on a segment of this box alone: its share of the packets is dropped (service far)",
			"error not-on-segment 10.2.2.1 [far] backend 10.2.2.1 is behind the router 10.1.1.253: direct return reaches backends on a segment of this box alone: its share of the packets is dropped (service far)"}},
		{"no steering and no pick-up", func(_ *model.Config, f *host.Facts) { f.TCPLoose, f.TCPLiberal = 0, 0 }, nil},
		{"steering and pick-up", func(cfg *model.Config, f *host.Facts) {
			cfg.Services[0].Steering, f.TCPLoose, f.TCPLiberal = &model.Steering{}, 1, 1
		}, nil},
		{"steering and sysctls that cannot be read", func(cfg *model.Config, f *host.Facts) {
			cfg.Services[0].Steering, f.TCPLoose, f.TCPLiberal = &model.Steering{}, -1, -1
		}, nil},
		{"steering and windows that are checked", func(cfg *model.Config, f *host.Facts) {
			cfg.Services[0].Steering, f.TCPLoose, f.TCPLiberal = &model.Steering{}, 1, 0
		}, []string{
			"info tcp-be-liberal net.netfilter.nf_conntrack_tcp_be_liberal [web] net.netfilter.nf_conntrack_tcp_be_liberal is 0: TCP connections that went on at another balancer with the same file and come back here may stand still (service web); type: sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1"}},
		{"steering and no pick-up", func(cfg *model.Config, f *host.Facts) {
			cfg.Services[0].Steering, f.TCPLoose, f.TCPLiberal = &model.Steering{}, 0, 1
		}, []string{
			"info tcp-loose net.netfilter.nf_conntrack_tcp_loose [web] net.netfilter.nf_conntrack_tcp_loose is 0: TCP connections that come here from another balancer with the same file, or that conntrack has forgotten, do not go on (service web); type: sysctl -w net.netfilter.nf_conntrack_tcp_loose=1"}},
		{"forwarding not readable", func(_ *model.Config, f *host.Facts) { f.Forward = nil }, nil},
		{"a device that does not forward", func(_ *model.Config, f *host.Facts) { link(f, "eth1").Forward4 = 0 }, []string{
			"error ip-forward net.ipv4.conf.eth1.forwarding [web far held] net.ipv4.conf.eth1.forwarding is 0: the kernel forwards nothing that comes in by eth1 (services web, far, held); type: sysctl -w net.ipv4.conf.eth1.forwarding=1"}},
		{"a device that nobody needs", func(_ *model.Config, f *host.Facts) {
			*link(f, "eth2") = host.Link{Name: "eth2", Index: 4, RPFilter: 1, Disabled6: 1}
		}, nil},
		{"a route that went", func(_ *model.Config, f *host.Facts) { gone(f, 2) }, []string{
			"error no-route 10.2.0.0/16 [far] there is no route to 10.2.2.1: packets to the backends end here (service far); type: ip route add 10.2.0.0/16 via 10.1.1.253 dev eth1"}},
		{"a segment that went with its addresses", func(_ *model.Config, f *host.Facts) { gone(f, 3); lose(f, "eth1", "2001:db8:1::fe/64") }, []string{
			"error no-route 2001:db8:1::/64 [web held] there is no route to 2001:db8:1::1: packets to the backends end here (services web, held); type: ip addr add 2001:db8:1::fe/64 dev eth1"}},
		{"a route and its segment", func(_ *model.Config, f *host.Facts) { gone(f, 2); lose(f, "eth1", "10.1.1.254/24") }, []string{
			"error no-route 10.2.0.0/16 [far] there is no route to 10.2.2.1: packets to the backends end here (service far); type: ip addr add 10.1.1.254/24 dev eth1 && ip route add 10.2.0.0/16 via 10.1.1.253 dev eth1"}},
		{"no route, and nothing known of before", func(_ *model.Config, f *host.Facts) { gone(f, 0, 1, 2); f.Last = nil }, []string{
			"error no-route 10.1.1.0/24 [web far held] there is no route to 10.1.1.1 and 10.1.1.2: packets to the backends end here (services web, far, held)",
			"error no-route 10.2.2.0/24 [far] there is no route to 10.2.2.1: packets to the backends end here (service far)"}},
		{"a blackhole", func(_ *model.Config, f *host.Facts) { f.Routes[2] = &host.Route{Way: host.Blackholed} }, []string{
			"error no-route 10.2.0.0/16 [far] a blackhole route leads to 10.2.2.1: packets to the backends end here; ip route show match 10.2.2.1 lists the routes (service far)"}},
		{"only the default route is left", func(_ *model.Config, f *host.Facts) { f.Routes[2] = defaultRoute }, []string{
			"warning route-lost 10.2.0.0/16 [far] the route to 10.2.0.0/16 went: only the default route leads to 10.2.2.1: packets to the backends go where they did not before; if they should, type weir reload (service far); type: ip route add 10.2.0.0/16 via 10.1.1.253 dev eth1"}},
		{"there never was but the default route", func(_ *model.Config, f *host.Facts) { f.Routes[2], f.Last = defaultRoute, nil }, []string{
			"info by-default-route 0.0.0.0/0 [far] only the default route leads to 10.2.2.1: which is right where the default router knows these private addresses (service far)"}},
		{"the backends' device is down", func(_ *model.Config, f *host.Facts) { link(f, "eth1").Up = false; gone(f, 0, 1, 2, 3) }, []string{
			"error device-down eth1 [web far held] device eth1 is down: packets do not reach backends by it (services web, far, held); type: ip link set dev eth1 up"}},
		{"it is down, and there is a default route", func(_ *model.Config, f *host.Facts) {
			link(f, "eth1").Up = false
			f.Routes = []*host.Route{defaultRoute, defaultRoute, defaultRoute, noRoute}
		}, []string{
			"error device-down eth1 [web far held] device eth1 is down: packets do not reach backends by it (services web, far, held); type: ip link set dev eth1 up"}},
		{"it is down, and nothing is known of before", func(_ *model.Config, f *host.Facts) {
			link(f, "eth1").Up = false
			f.Last = nil
			f.Routes[0], f.Routes[1] = defaultRoute, noRoute
		}, []string{
			"error device-down eth1 [web far held] device eth1 is down: packets do not reach backends by it (services web, far, held); type: ip link set dev eth1 up"}},
		{"it is gone", func(_ *model.Config, f *host.Facts) {
			f.Links = slices.DeleteFunc(f.Links, func(l host.Link) bool { return l.Name == "eth1" })
			gone(f, 0, 1, 2, 3)
		}, []string{"error device-missing eth1 [web far held] there is no device eth1: packets do not reach backends by it (services web, far, held)"}},
		{"it has no carrier", func(_ *model.Config, f *host.Facts) { link(f, "eth1").Carrier = false }, []string{
			"error no-carrier eth1 [web far held] device eth1 has no carrier: look at the cable, or at what is at its other end: packets do not reach backends by it (services web, far, held)"}},
		{"one of two next hops works", func(_ *model.Config, f *host.Facts) {
			link(f, "eth2").Carrier = false
			f.Routes[2] = &host.Route{Dst: prefix("10.2.0.0/16"), Hops: []host.Hop{{Dev: "eth2", Gateway: addr("10.9.0.1")}, {Dev: "eth1", Gateway: addr("10.1.1.253")}}}
		}, nil},
		{"IPv6 is off on a device", func(_ *model.Config, f *host.Facts) { link(f, "eth1").Disabled6 = 1; gone(f, 3) }, []string{
			"error ipv6-disabled eth1 [web held] net.ipv6.conf.eth1.disable_ipv6 is 1: packets do not reach backends by it (services web, held); type: sysctl -w net.ipv6.conf.eth1.disable_ipv6=0"}},
		{"the assigned device is down", func(_ *model.Config, f *host.Facts) {
			link(f, "eth0").Up = false
			lose(f, "eth0", "2001:db8:c::c8/128")
		}, []string{"error device-down eth0 [held] device eth0 is down: clients do not reach the addresses on it (service held); type: ip link set dev eth0 up"}},
		{"IPv6 is off on the assigned device", func(_ *model.Config, f *host.Facts) {
			link(f, "eth0").Disabled6 = 1
			lose(f, "eth0", "2001:db8:c::c8/128")
		}, []string{"error ipv6-disabled eth0 [held] net.ipv6.conf.eth0.disable_ipv6 is 1: clients do not reach the addresses on it (service held); type: sysctl -w net.ipv6.conf.eth0.disable_ipv6=0"}},
		{"an assigned address went", func(_ *model.Config, f *host.Facts) { lose(f, "eth0", "203.0.113.200/32") }, []string{
			"error address-missing eth0 [held] 203.0.113.200 is not on eth0: nobody answers for it there (service held); type: weir apply"}},
		{"a source address that nobody holds", func(_ *model.Config, f *host.Facts) { lose(f, "eth1", "10.1.1.250/24") }, []string{
			"warning source-missing 10.1.1.250 [far] source address 10.1.1.250 is on no device: it is of the network of eth1, where nobody answers for it: backends' answers do not come back (service far); type: ip addr add 10.1.1.250/32 dev eth1"}},
		{"one that has to be routed here", func(c *model.Config, _ *host.Facts) { c.Services[1].Source.V4 = addr("10.77.0.1") }, []string{
			"info source-missing 10.77.0.1 [far] source address 10.77.0.1 is on no device: backends' answers come back only if the network routes it to this box (service far)"}},
		{"one that a route makes local", func(c *model.Config, f *host.Facts) {
			c.Services[1].Source.V4 = addr("10.77.0.1")
			f.SourceRoutes = []*host.Route{local}
		}, nil},
		{"a listen address of a segment", func(c *model.Config, _ *host.Facts) { c.Services[1].Listen[0].Addr = addr("203.0.113.9") }, []string{
			"info listen-not-held eth0 [far] listen address 203.0.113.9: of the network of eth0, and on no device: clients of that network find it only if it is routed here; assign: eth0 has weir hold it (service far)"}},
		{"strict on a second uplink", func(_ *model.Config, f *host.Facts) {
			f.Defaults = append(f.Defaults, host.Default{Family: model.IPv4, Dev: "eth2", Metric: 100})
			link(f, "eth2").RPFilter, f.RPFilterAll = 0, 1
		}, []string{"warning rp-filter net.ipv4.conf.eth2.rp_filter [] reverse-path filtering is strict on eth2, which has a default route that is not the best one: clients that come in by eth2 are dropped, for the way back to them is by eth0; type: sysctl -w net.ipv4.conf.eth2.rp_filter=2"}},
		{"loose on a second uplink, strict by default", func(_ *model.Config, f *host.Facts) {
			f.Defaults = append(f.Defaults, host.Default{Family: model.IPv4, Dev: "eth2", Metric: 100})
			f.RPFilterAll = 1 // the devices say 2
		}, nil},
		{"strict on another device of the backends' segment", func(_ *model.Config, f *host.Facts) {
			f.Held = append(f.Held, host.HeldPrefix{Dev: "eth2", Prefix: prefix("10.1.1.252/24")})
			link(f, "eth2").RPFilter = 1
		}, []string{"warning rp-filter net.ipv4.conf.eth2.rp_filter [] reverse-path filtering is strict on eth2, which is on a segment of backends that are reached by eth1: answers of backends that come in by eth2 are dropped; type: sysctl -w net.ipv4.conf.eth2.rp_filter=2"}},
		{"strict where nothing comes another way", func(_ *model.Config, f *host.Facts) {
			f.RPFilterAll = 1
			link(f, "eth0").RPFilter = 1
			link(f, "eth1").RPFilter = 1
		}, nil},
		{"an advertised default route that will expire", func(_ *model.Config, f *host.Facts) { f.Defaults[1].RA = true; link(f, "eth0").AcceptRA = 1 }, []string{
			"warning accept-ra net.ipv6.conf.eth0.accept_ra [] net.ipv6.conf.eth0.accept_ra is 1, which means no more advertisements while the device forwards: the default route by eth0 came by one, and will expire; type: sysctl -w net.ipv6.conf.eth0.accept_ra=2"}},
		{"one that will not", func(_ *model.Config, f *host.Facts) { f.Defaults[1].RA = true; link(f, "eth0").AcceptRA = 2 }, nil},
		{"the connection table fills", func(_ *model.Config, f *host.Facts) { f.Conntrack.Count = 80 }, []string{
			"warning conntrack-full net.netfilter.nf_conntrack_max [] the connection table is 80% full or more (net.netfilter.nf_conntrack_max is 100): once it is full, new connections are dropped; type: sysctl -w net.netfilter.nf_conntrack_max=200"}},
		{"it is full", func(_ *model.Config, f *host.Facts) { f.Conntrack.Count = 95 }, []string{
			"error conntrack-full net.netfilter.nf_conntrack_max [] the connection table is 95% full or more (net.netfilter.nf_conntrack_max is 100): once it is full, new connections are dropped; type: sysctl -w net.netfilter.nf_conntrack_max=200"}},
		{"its buckets are few", func(_ *model.Config, f *host.Facts) { f.Conntrack = host.Conntrack{Max: 262144, Buckets: 16384} }, []string{
			"info conntrack-buckets net.netfilter.nf_conntrack_buckets [] net.netfilter.nf_conntrack_buckets is 16384 for 262144 connections: look-ups grow slow as the table fills; type: sysctl -w net.netfilter.nf_conntrack_buckets=65536"}},
		{"a device with a name for shells", func(c *model.Config, f *host.Facts) {
			c.Services[2].Assign, c.Services[2].Listen = "e$(x).1", c.Services[2].Listen[:1]
			f.Links = append(f.Links, host.Link{Name: "e$(x).1", Index: 9, Forward4: 1})
			f.Held = append(f.Held, host.HeldPrefix{Dev: "e$(x).1", Prefix: prefix("203.0.113.200/32")})
		}, []string{"error device-down e$(x).1 [held] device e$(x).1 is down: clients do not reach the addresses on it (service held); type: ip link set dev 'e$(x).1' up"}},
		{"a VLAN's sysctl", func(_ *model.Config, f *host.Facts) {
			f.Links = append(f.Links, host.Link{Name: "eth0.7", Index: 9, Up: true, Carrier: true, Forward4: 0})
			f.Defaults = append(f.Defaults, host.Default{Family: model.IPv4, Dev: "eth0.7"})
		}, []string{"error ip-forward net.ipv4.conf.eth0/7.forwarding [web far held] net.ipv4.conf.eth0/7.forwarding is 0: the kernel forwards nothing that comes in by eth0.7 (services web, far, held); type: sysctl -w net.ipv4.conf.eth0/7.forwarding=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, f := site()
			c.change(cfg, f)
			var got []string
			for _, x := range host.Judge(host.NeedsOf(cfg), f) {
				got = append(got, text(x))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestJudgeMany loses the routes to more networks than are told of one by one.
func TestJudgeMany(t *testing.T) {
	s := &model.Service{Name: "web", Listen: []model.Listen{{Addr: addr("198.51.100.10"), Proto: model.TCP, Ports: model.Port(80)}}}
	cfg := &model.Config{}
	f := &host.Facts{}
	for i := range 40 {
		for j := range 3 {
			s.Backends = append(s.Backends, model.Backend{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i), byte(j + 1)}), Weight: 1})
			f.Routes = append(f.Routes, noRoute)
		}
	}
	for i := range 20 {
		another := *s
		another.Name = fmt.Sprintf("s%d", i)
		cfg.Services = append(cfg.Services, &another)
	}
	got := host.Judge(host.NeedsOf(cfg), f)
	if len(got) != 1 {
		t.Fatalf("%d findings: %v", len(got), got)
	}
	if want := "there is no route to 10.1.0.1, 10.1.0.2 and 118 more: packets to the backends end here (services s0, s1, s2, s3, s4, s5, s6, s7 and 12 more)"; got[0].String() != want {
		t.Errorf("got  %s\nwant %s", got[0], want)
	}
}

func TestFillHasALowerWayOut(t *testing.T) {
	level := 0
	for _, step := range []struct{ count, want int }{{79, 0}, {80, 80}, {79, 80}, {75, 80}, {74, 0}, {79, 0}, {95, 95}, {90, 95}, {89, 80}, {94, 80}, {70, 0}} {
		level = host.Conntrack{Count: step.count, Max: 100, Level: level}.Fill()
		if level != step.want {
			t.Errorf("at %d%%: level %d, want %d", step.count, level, step.want)
		}
	}
}

func TestChanges(t *testing.T) {
	f := func(subject string, s host.Severity, found string) host.Finding {
		return host.Finding{ID: "x", Subject: subject, Severity: s, Found: found}
	}
	a, b, c := f("a", host.Error, "one"), f("b", host.Warning, "two"), f("c", host.Info, "three")
	worse, other := f("b", host.Error, "two"), f("c", host.Info, "four")
	for _, x := range []struct{ before, now, fresh, gone []host.Finding }{
		{nil, []host.Finding{a}, []host.Finding{a}, nil},
		{[]host.Finding{a, b}, []host.Finding{b, a}, nil, nil},
		{[]host.Finding{a, b, c}, []host.Finding{worse, other}, []host.Finding{worse, other}, []host.Finding{a}},
		{[]host.Finding{a}, nil, nil, []host.Finding{a}},
	} {
		fresh, gone := host.Changes(x.before, x.now)
		if diff := cmp.Diff([][]host.Finding{x.fresh, x.gone}, [][]host.Finding{fresh, gone}); diff != "" {
			t.Errorf("%v to %v (-want +got):\n%s", x.before, x.now, diff)
		}
	}
}

// TestInherit changes the configuration while a route is gone: what was known of it stays,
// for the backends that are left, and a route that is there is believed anew.
func TestInherit(t *testing.T) {
	cfg, f := site()
	n := host.NeedsOf(cfg)
	f.Routes[0], f.Routes[2] = noRoute, defaultRoute
	f.Remember()
	next := *cfg
	next.Services = cfg.Services[1:2] // 10.1.1.2 and 10.2.2.1
	web := *cfg.Services[0]
	web.Backends = web.Backends[:1] // 10.1.1.1
	next.Services = append(next.Services, &web)
	after := &host.Facts{}
	after.Inherit(host.NeedsOf(&next), f, n)
	if len(after.Last) != 3 || after.Last[0] != f.Last[0] || after.Last[0] == nil || after.Last[1] != nil || after.Last[2] != nil {
		t.Errorf("inherited %v of %v", after.Last, f.Last)
	}
}

func TestWithin(t *testing.T) {
	cfg, _ := site()
	n := host.NeedsOf(cfg)
	for p, want := range map[string][2]int{"10.1.1.0/24": {0, 2}, "10.0.0.0/8": {0, 3}, "10.1.1.2/32": {1, 2}, "10.1.1.3/32": {2, 2},
		"0.0.0.0/0": {0, 3}, "::/0": {3, 4}, "2001:db8:1::/64": {3, 4}, "2001:db8:2::/64": {4, 4}} {
		if from, to := n.Within(prefix(p)); [2]int{from, to} != want {
			t.Errorf("%s: %d to %d, want %v of %v", p, from, to, want, n.Backends)
		}
	}
}
