package lab

import (
	"errors"
	"fmt"
	"net/netip"
)

// The addresses of a Topology. Client i (from 0) has the host number i+1 in its
// segment, backend i likewise; the gateway has 254 in both.
var (
	ClientNet4  = netip.MustParsePrefix("203.0.113.0/24")
	ClientNet6  = netip.MustParsePrefix("2001:db8:c::/64")
	BackendNet4 = netip.MustParsePrefix("10.1.1.0/24")
	BackendNet6 = netip.MustParsePrefix("2001:db8:1::/64")
	// VIPNet4 and VIPNet6 belong to nobody: clients and backends send them to the
	// gateway, by their default routes.
	VIPNet4 = netip.MustParsePrefix("198.51.100.0/24")
	VIPNet6 = netip.MustParsePrefix("2001:db8:f::/64")
)

// The gateway's devices, and the only device of clients and backends.
const (
	OutsideDev = "eth-out"
	InsideDev  = "eth-in"
	HostDev    = "eth0"
)

const (
	gatewayNumber = 254
	// MaxHosts is the largest number of clients, and of backends, of a Topology.
	MaxHosts = 250
)

// GatewayOptions says how large a Topology is.
type GatewayOptions struct {
	Clients, Backends int // 1 to MaxHosts; 0 means 1
}

// Topology is the network that weir is made for: clients on one segment, backends
// on another, and the gateway between them.
//
//	client1 .1 ─┐                      ┌─ backend1 .1
//	client2 .2 ─┼─ eth-out gateway eth-in ─┼─ backend2 .2
//	            203.0.113.0/24   10.1.1.0/24
//	            2001:db8:c::/64  2001:db8:1::/64
//
// The gateway forwards both families, with loose reverse-path filtering and without
// redirects; it holds no address of VIPNet4 and VIPNet6.
type Topology struct {
	Net      *Net
	Gateway  *Host   // its V4 and V6 are the outside addresses
	Clients  []*Host // named client1, client2, …
	Backends []*Host // named backend1, backend2, …

	// The gateway's addresses on the clients' and on the backends' side.
	Outside4, Outside6, Inside4, Inside6 netip.Addr
}

// Gateway makes a new network of that shape; close its Net after use.
func Gateway(opts GatewayOptions) (t *Topology, err error) {
	opts.Clients, opts.Backends = max(opts.Clients, 1), max(opts.Backends, 1)
	if opts.Clients > MaxHosts || opts.Backends > MaxHosts {
		return nil, fmt.Errorf("lab: %d clients and %d backends: at most %d of each", opts.Clients, opts.Backends, MaxHosts)
	}
	n, err := New()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
			t = nil
		}
	}()
	t = &Topology{
		Net:      n,
		Outside4: number(ClientNet4, gatewayNumber), Outside6: number(ClientNet6, gatewayNumber),
		Inside4: number(BackendNet4, gatewayNumber), Inside6: number(BackendNet6, gatewayNumber),
	}
	if err := t.addGateway(); err != nil {
		return nil, err
	}
	if t.Clients, err = t.segment("client", OutsideDev, opts.Clients, ClientNet4, ClientNet6); err != nil {
		return nil, err
	}
	if t.Backends, err = t.segment("backend", InsideDev, opts.Backends, BackendNet4, BackendNet6); err != nil {
		return nil, err
	}
	for _, c := range t.Clients {
		// A test opens many short connections from one address.
		if err := c.Sysctl("net.ipv4.ip_local_port_range", "1024 65535"); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// addGateway makes the gateway before its devices, so that they take over the
// sysctls called default.
func (t *Topology) addGateway() (err error) {
	if t.Gateway, err = t.Net.Host("gateway"); err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"net.ipv4.ip_forward", "1"}, // first: it resets others
		{"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv6.conf.default.forwarding", "1"},
		{"net.ipv4.conf.all.rp_filter", "2"},
		{"net.ipv4.conf.default.rp_filter", "2"},
		{"net.ipv4.conf.all.send_redirects", "0"},
		{"net.ipv4.conf.default.send_redirects", "0"},
	} {
		if err := t.Gateway.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// segment makes a switch with the gateway and count hosts on it.
func (t *Topology) segment(role, gatewayDev string, count int, nets ...netip.Prefix) ([]*Host, error) {
	sw, err := t.Net.Switch(role + "s")
	if err != nil {
		return nil, err
	}
	if err := sw.Attach(t.Gateway, gatewayDev, inNets(nets, gatewayNumber)...); err != nil {
		return nil, err
	}
	var hosts []*Host
	for i := 1; i <= count; i++ {
		h, err := t.Net.Host(fmt.Sprintf("%s%d", role, i))
		if err != nil {
			return nil, err
		}
		if err := sw.Attach(h, HostDev, inNets(nets, i)...); err != nil {
			return nil, err
		}
		for _, p := range nets {
			everything := netip.PrefixFrom(p.Addr(), 0).Masked()
			if err := h.Route(everything, number(p, gatewayNumber), HostDev); err != nil {
				return nil, err
			}
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// inNets returns the address of that number in each network, with its length.
func inNets(nets []netip.Prefix, host int) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range nets {
		out = append(out, netip.PrefixFrom(number(p, host), p.Bits()))
	}
	return out
}

// number returns the address with that host number, 1 to 255, in p, whose last
// byte must be zero.
func number(p netip.Prefix, host int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(host)
	a, _ := netip.AddrFromSlice(b)
	return a
}
