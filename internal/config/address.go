package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"weir/internal/model"
)

// splitHost splits "10.1.1.1:80", "[2001:db8::1]:80", "10.1.1.1" and "2001:db8::1"
// into address and ports. hasPorts says whether there was a colon for them.
func splitHost(s string) (host, ports string, hasPorts bool, why string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, rest, ok = strings.Cut(rest, "]")
		switch {
		case !ok:
			return "", "", false, `"[" without "]"`
		case !strings.Contains(host, ":"):
			return "", "", false, "only an IPv6 address stands in brackets"
		case rest == "":
			return host, "", false, ""
		case rest[0] != ':':
			return "", "", false, `only ":" and ports may stand behind "]"`
		}
		return host, rest[1:], true, ""
	}
	if strings.Count(s, ":") > 1 {
		return s, "", false, ""
	}
	host, ports, hasPorts = strings.Cut(s, ":")
	return host, ports, hasPorts, ""
}

// parseAddr reads an address that packets can be sent to and answered from. Otherwise
// it says why not.
func parseAddr(s string) (netip.Addr, string) {
	if strings.Contains(s, "/") {
		return netip.Addr{}, quote(s) + " is a prefix; want one address"
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, quote(s) + " is not an IP address; want one such as 198.51.100.10 or 2001:db8::10"
	}
	why := ""
	switch {
	case a.Zone() != "":
		why = "has a zone, which is not allowed"
	case a.Is4In6():
		why = "is an IPv4 address in IPv6 form; write " + a.Unmap().String()
	case a.IsUnspecified(), a.Is4() && a.As4()[0] == 0:
		why = "stands for no machine (unspecified); want an address of one"
	case a.IsMulticast():
		why = "is multicast; want an address of one machine"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		why = "is broadcast; want an address of one machine"
	case a.IsLoopback():
		why = "is loopback, which the kernel does not forward to or from"
	case a.Is6() && a.IsLinkLocalUnicast():
		why = "is link-local, which means nothing without a device; want a global or unique local address"
	}
	if why != "" {
		return netip.Addr{}, quote(s) + " " + why
	}
	return a, ""
}

// parsePorts reads "80" or "8000-8010".
func parsePorts(s string) (model.PortRange, string) {
	first, last, isRange := strings.Cut(s, "-")
	lo, why := parsePort(first)
	if why != "" {
		return model.PortRange{}, why
	}
	if !isRange {
		return model.Port(lo), ""
	}
	hi, why := parsePort(last)
	switch {
	case why != "":
		return model.PortRange{}, why
	case hi < lo:
		return model.PortRange{}, fmt.Sprintf("port range %s ends before it begins", quote(s))
	}
	return model.PortRange{Lo: lo, Hi: hi}, ""
}

func parsePort(s string) (uint16, string) {
	v, err := strconv.ParseUint(s, 10, 16)
	if err != nil || v == 0 || s[0] == '0' || s[0] == '+' {
		return 0, quote(s) + " is not a port; allowed: 1 to 65535"
	}
	return uint16(v), ""
}

// protos are the words for protocols.
var protos = []struct {
	word  string
	proto model.Proto
}{{"tcp", model.TCP}, {"udp", model.UDP}, {"sctp", model.SCTP}}

func parseProto(s string) (model.Proto, string) {
	for _, p := range protos {
		if s == p.word {
			return p.proto, ""
		}
	}
	return 0, quote(s) + " is not a protocol; allowed: tcp, udp, sctp"
}

// parseListen appends what "ADDRESS:PORTS[/PROTOCOL]" means to to: an entry for each
// port range, at most maxListens in all.
func parseListen(to []model.Listen, s string) ([]model.Listen, string) {
	hostPorts, word, hasProto := strings.Cut(s, "/")
	proto := model.TCP
	if hasProto {
		var why string
		if proto, why = parseProto(word); why != "" {
			if word != "" && word[0] <= '9' {
				why = "a prefix is not allowed; want one address: " + listenForm
			}
			return to, why
		}
	}
	host, ports, hasPorts, why := splitHost(hostPorts)
	if why != "" {
		return to, why + "; want " + listenForm
	}
	if !hasPorts && strings.Count(host, ":") > 1 && hostPorts[0] != '[' {
		return to, "an IPv6 address must be in brackets, with its ports behind; want " + listenForm
	}
	addr, why := parseAddr(host)
	if why != "" {
		return to, why
	}
	if !hasPorts {
		return to, "the ports are missing; want " + listenForm
	}
	for part := range strings.SplitSeq(ports, ",") {
		r, why := parsePorts(part)
		if why != "" {
			return to, why
		}
		if len(to) == maxListens {
			return to, fmt.Sprintf("more than %d listen addresses and port ranges in one service", maxListens)
		}
		to = append(to, model.Listen{Addr: addr, Proto: proto, Ports: r})
	}
	return to, ""
}

// parseBackend reads "ADDRESS", "ADDRESS:PORT" or "ADDRESS:PORT-PORT".
func parseBackend(s string) (model.Backend, string) {
	host, ports, hasPorts, why := splitHost(s)
	if why != "" {
		return model.Backend{}, why + "; want " + backendForm
	}
	addr, why := parseAddr(host)
	if why != "" || !hasPorts {
		return model.Backend{Addr: addr, Weight: 1}, why
	}
	r, why := parsePorts(ports)
	return model.Backend{Addr: addr, Ports: r, Weight: 1}, why
}
