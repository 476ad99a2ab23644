package e2e

import (
	"fmt"
	"net/netip"
	"strings"

	"weir/internal/lab"
	"weir/internal/model"
)

// The families, and the addresses of each.

var families = []model.Family{model.IPv4, model.IPv6}

// vip returns the n-th address, 1 to 250, that is routed to the gateway.
func vip(f model.Family, n int) netip.Addr {
	if f == model.IPv4 {
		return number(lab.VIPNet4, n)
	}
	return number(lab.VIPNet6, n)
}

func number(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// addrOf returns a host's address.
func addrOf(h *lab.Host, f model.Family) netip.Addr {
	if f == model.IPv4 {
		return h.V4
	}
	return h.V6
}

// inside returns the gateway's address on the backends' side.
func (s *site) inside(f model.Family) netip.Addr {
	if f == model.IPv4 {
		return s.Inside4
	}
	return s.Inside6
}

func join(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// quoted returns a YAML list of strings.
func quoted(list []string) string {
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprintf("%q", e))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// listenOn returns the listen list of a service on vip n of both families; entries are
// of the form PORTS/PROTOCOL.
func listenOn(n int, entries ...string) string {
	var out []string
	for _, f := range families {
		a := vip(f, n).String()
		if f == model.IPv6 {
			a = "[" + a + "]"
		}
		for _, e := range entries {
			out = append(out, a+":"+e)
		}
	}
	return quoted(out)
}

// backend is an entry of the backends of a configuration.
type backend struct {
	host   *lab.Host
	port   string // "", "80" or "9000-9010"
	weight int
}

// address returns the backend's address in the configuration, which is its identity.
func (b backend) address(f model.Family) string {
	a := addrOf(b.host, f).String()
	switch {
	case b.port == "":
		return a
	case f == model.IPv6:
		a = "[" + a + "]"
	}
	return a + ":" + b.port
}

// backendList returns the backends of a service in both families as a YAML list.
func backendList(backends ...backend) string {
	var out []string
	for _, f := range families {
		for _, b := range backends {
			out = append(out, fmt.Sprintf("{address: %q, weight: %d}", b.address(f), b.weight))
		}
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// on returns an entry of weight 1 for each of the hosts.
func on(port string, hosts ...*lab.Host) []backend {
	var out []backend
	for _, h := range hosts {
		out = append(out, backend{h, port, 1})
	}
	return out
}

// service returns a service as YAML; options are further lines such as "balance: random".
func service(name, listen, backends string, options ...string) string {
	text := fmt.Sprintf("  - name: %s\n    listen: %s\n    backends: %s\n", name, listen, backends)
	for _, o := range options {
		text += "    " + o + "\n"
	}
	return text
}

// services returns a whole configuration.
func services(list ...string) string {
	if len(list) == 0 {
		return "services: []\n"
	}
	return "services:\n" + strings.Join(list, "")
}
