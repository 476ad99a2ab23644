package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"weir/internal/lab"
	"weir/internal/model"
)

// directSite is a network in which backends answer past the balancers:
//
//	client ── router ─┬─ balancer1, balancer2, …
//	                  └─ backend1, backend2, …
//
// The router sends the VIPs to all balancers, flow by flow (ECMP), and is everybody's way
// back to the clients.
type directSite struct {
	*site   // the weir on the first balancer
	router  *lab.Host
	segment *lab.Switch
	nodes   []*site // a weir on each balancer
}

const (
	routerNumber   = 250
	balancerNumber = 200 // and above
	segmentDev     = "eth-seg"
)

func newDirectSite(t *testing.T, balancers, backends int) *directSite {
	t.Helper()
	lab.Require(t)
	dirs := make([]string, balancers) // they go last: weirs that run until the network goes write there
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	n, err := lab.New()
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	d := &directSite{}
	host := func(name string) *lab.Host {
		h, err := n.Host(name)
		check(t, err)
		return h
	}
	d.router = host("router")
	forward(t, d.router)
	client := host("client")
	check(t, n.Link(lab.End{Host: client, Name: lab.HostDev, Addrs: inBoth(lab.ClientNet4, lab.ClientNet6, 1)},
		lab.End{Host: d.router, Name: "eth-out", Addrs: inBoth(lab.ClientNet4, lab.ClientNet6, routerNumber)}))
	d.segment, err = n.Switch("segment")
	check(t, err)
	check(t, d.segment.Attach(d.router, segmentDev, inBoth(lab.BackendNet4, lab.BackendNet6, routerNumber)...))
	defaults := func(h *lab.Host, dev string, net4, net6 netip.Prefix) {
		for _, p := range []netip.Prefix{net4, net6} {
			check(t, h.Route(netip.PrefixFrom(p.Addr(), 0).Masked(), number(p, routerNumber), dev))
		}
	}
	defaults(client, lab.HostDev, lab.ClientNet4, lab.ClientNet6)
	check(t, client.Sysctl("net.ipv4.ip_local_port_range", "40000 65535"))
	var servers []*lab.Host
	for i := range backends {
		h := host(fmt.Sprintf("backend%d", i+1))
		check(t, d.segment.Attach(h, lab.HostDev, inBoth(lab.BackendNet4, lab.BackendNet6, i+1)...))
		defaults(h, lab.HostDev, lab.BackendNet4, lab.BackendNet6)
		servers = append(servers, h)
	}
	for i := range balancers {
		h := host(fmt.Sprintf("balancer%d", i+1))
		forward(t, h) // not for direct return, but nothing may depend on it being off
		check(t, d.segment.Attach(h, segmentDev, inBoth(lab.BackendNet4, lab.BackendNet6, balancerNumber+i)...))
		defaults(h, segmentDev, lab.BackendNet4, lab.BackendNet6)
		s := &site{t: t, Topology: &lab.Topology{Net: n, Gateway: h, Clients: []*lab.Host{client}, Backends: servers},
			dir: dirs[i], config: filepath.Join(dirs[i], "weir.yaml")}
		s.ports.Store(10000)
		d.nodes = append(d.nodes, s)
	}
	d.site = d.nodes[0]
	needTool(t, "ip")
	_, err = d.router.Run("sysctl", "-q", "-w", "net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1")
	check(t, err)
	d.spread(d.nodes...)
	return d
}

func inBoth(net4, net6 netip.Prefix, n int) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(number(net4, n), net4.Bits()), netip.PrefixFrom(number(net6, n), net6.Bits())}
}

func forward(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		check(t, h.Sysctl(key, "1"))
	}
	for _, key := range []string{"net.ipv4.conf.all.send_redirects", "net.ipv4.conf.default.send_redirects"} {
		check(t, h.Sysctl(key, "0"))
	}
}

// spread makes the router send the VIPs to these balancers.
func (d *directSite) spread(to ...*site) {
	d.t.Helper()
	for _, f := range families {
		net := map[model.Family]netip.Prefix{model.IPv4: lab.VIPNet4, model.IPv6: lab.VIPNet6}[f]
		args := []string{"-" + fmt.Sprint(int(f)), "route", "replace", net.String()}
		for _, s := range to {
			args = append(args, "nexthop", "via", addrOf(s.Gateway, f).String(), "dev", segmentDev)
		}
		_, err := d.router.Run("ip", args...)
		check(d.t, err)
	}
}

// setUp makes backends of a service what weir says that they must be, and starts servers
// there: on the service's addresses for clients, and on their own for checks.
func (d *directSite) setUp(service string, n int, protos ...string) map[*lab.Host][]*lab.Server {
	d.t.Helper()
	out := map[*lab.Host][]*lab.Server{}
	for _, h := range d.Backends {
		_, err := h.Run("sh", "-c", d.must("backend-setup", service))
		check(d.t, err)
		for _, proto := range protos {
			srv, err := starters[proto](h, h.Name, join(vip(model.IPv4, n), 7), join(vip(model.IPv6, n), 7))
			check(d.t, err)
			out[h] = append(out[h], srv)
		}
	}
	return out
}

// direct returns a service with direct return on vip n.
func direct(name string, n int, entries []string, backends string, options ...string) string {
	return service(name, listenOn(n, entries...), backends, append([]string{"forward: direct", "in: " + segmentDev}, options...)...)
}

// allDirect is the protocols of a service that all tests could ask.
var allDirect = []string{"7/tcp", "7/udp", "7/sctp"}

// nameOf returns the name of the host that has a backend's identity.
func (s *site) nameOf(id string) string {
	for _, h := range s.Backends {
		if id == h.V4.String() || id == h.V6.String() {
			return h.Name
		}
	}
	return ""
}

// explained returns whom `weir explain` says that a flow goes to.
func (s *site) explained(network string, from, to netip.AddrPort) string {
	s.t.Helper()
	var x struct{ Backend, Forward string }
	s.mustJSON(&x, "explain", "--from", from.String(), "--to", to.String()+"/"+network)
	if x.Forward != "direct" {
		s.t.Fatalf("explain says forward %q", x.Forward)
	}
	return s.nameOf(strings.TrimSpace(x.Backend))
}
