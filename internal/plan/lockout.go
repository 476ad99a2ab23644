package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// sshPort is where people log in if nothing else is known (RFC 4253).
const sshPort = 22

// Login is a session through which somebody works on the box.
type Login struct {
	Client netip.AddrPort
	Server netip.AddrPort // on the box
	Device string         // by which the client's packets come in; "": not known
}

// ParseLogin reads what sshd puts into SSH_CONNECTION: the client's address and port, and
// the server's, separated by spaces.
func ParseLogin(s string) (Login, error) {
	words := strings.Fields(s)
	if len(words) != 4 {
		return Login{}, fmt.Errorf("SSH_CONNECTION has %d words; want CLIENT PORT SERVER PORT", len(words))
	}
	var l Login
	for i, to := range []*netip.AddrPort{&l.Client, &l.Server} {
		addr, err := netip.ParseAddr(words[2*i])
		if err != nil {
			return Login{}, fmt.Errorf("SSH_CONNECTION: %q is not an IP address", words[2*i])
		}
		port, err := strconv.ParseUint(words[2*i+1], 10, 16)
		if err != nil {
			return Login{}, fmt.Errorf("SSH_CONNECTION: %q is not a port", words[2*i+1])
		}
		l.Device = cmp.Or(l.Device, addr.Zone())
		*to = netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(port))
	}
	if model.FamilyOf(l.Client.Addr()) != model.FamilyOf(l.Server.Addr()) {
		return Login{}, fmt.Errorf("SSH_CONNECTION: client and server are of different IP versions")
	}
	return l, nil
}

// Cuts says why whoever works on the box through l could not log in again under the
// configuration, "" if he could. The session itself would live on, as an established connection.
func Cuts(cfg *model.Config, l Login) string {
	// Services of other addresses have no part in it, and there may be thousands.
	near := *cfg
	near.Services = slices.DeleteFunc(slices.Clone(cfg.Services), func(s *model.Service) bool {
		return !slices.ContainsFunc(s.Listen, func(x model.Listen) bool { return x.Addr == l.Server.Addr() })
	})
	p := Build(&near, nil)
	packet := ruleset.Packet{Src: l.Client, Dst: l.Server, Proto: model.TCP, In: l.Device,
		ToLocal: func(a netip.Addr) bool { return a == l.Server.Addr() }}
	x := p.Explain(packet, ruleset.Env{})
	what := fmt.Sprintf("your SSH session, from %s to %s", l.Client.Addr(), l.Server)
	switch {
	case x.Service != "" && x.Forward != model.ForwardLocal.String() && (x.Forward == model.ForwardNAT.String() || x.Backend != ""):
		return fmt.Sprintf("a new login as by %s, would go to service %s", what, x.Service)
	case x.Verdict != string(ruleset.Accepted):
		by := ""
		if x.Access != nil {
			by = " (" + x.Access.By + ")"
		}
		if l.Device == "" {
			by += "; by which device it comes in is not known"
		}
		return fmt.Sprintf("a new login as by %s, would be dropped%s", what, by)
	}
	return ""
}

// ShutsAllOut says why nobody could log in under the configuration, "" if somebody may. It asks for
// management prefixes, or for an open rule or a service of the box for SSH: on port 22, and
// on that of login, which may be nil.
func ShutsAllOut(cfg *model.Config, login *Login) string {
	e := cfg.Edge
	if !e.Dropping() || len(e.Management) > 0 {
		return ""
	}
	ports := []uint16{sshPort}
	if login != nil && login.Server.Port() != sshPort {
		ports = append(ports, login.Server.Port())
	}
	for _, port := range ports {
		lets := func(proto model.Proto, r model.PortRange) bool {
			return proto == model.TCP && (r.IsZero() || r.Contains(port))
		}
		if slices.ContainsFunc(e.Open, func(r *model.OpenRule) bool {
			return r.Box && (len(r.Traffic) == 0 || slices.ContainsFunc(r.Traffic, func(t model.Traffic) bool { return lets(t.Proto, t.Ports) }))
		}) || slices.ContainsFunc(cfg.Services, func(s *model.Service) bool {
			return s.Local() && slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return lets(l.Proto, l.Ports) })
		}) {
			return ""
		}
	}
	return "policy drop would leave nobody a way in: there is neither management nor an open rule (to: box) for port 22/tcp"
}
