package e2e

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/model"
)

// TestSourceAddress sees whom a backend takes for its client: the client itself, the
// gateway, or an address of its own.
func TestSourceAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	list := backendList(on("", s.Backends...)...)
	fixed := map[model.Family]netip.Addr{
		model.IPv4: netip.MustParseAddr("192.0.2.99"), model.IPv6: netip.MustParseAddr("2001:db8:99::1")}
	s.apply(services(
		service("unsaid", listenAll(1), list),
		service("keep", listenAll(2), list, "source: keep"),
		service("masquerade", listenAll(3), list, "source: masquerade"),
		service("fixed", listenAll(4), list, "source: "+quoted([]string{fixed[4].String(), fixed[6].String()})),
		service("fixed-range", listenOn(5, "7-9/tcp", "7-9/udp", "7-9/sctp", "80-81/tcp"), list,
			"source: "+quoted([]string{fixed[6].String(), fixed[4].String()})),
	))
	client := s.Clients[0]
	for _, c := range []struct {
		name string
		vip  int
		seen func(model.Family) netip.Addr
		keep bool // the port too
	}{
		{"unsaid", 1, func(f model.Family) netip.Addr { return addrOf(client, f) }, true},
		{"keep", 2, func(f model.Family) netip.Addr { return addrOf(client, f) }, true},
		{"masquerade", 3, s.inside, false},
		{"fixed", 4, func(f model.Family) netip.Addr { return fixed[f] }, false},
		{"fixed on a range", 5, func(f model.Family) netip.Addr { return fixed[f] }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachNetwork(t, c.vip, func(t *testing.T, network string, target netip.AddrPort) {
				for range 2 {
					port := s.port()
					a, err := try(t, client, network, port, target)
					check(t, err)
					if want := c.seen(model.FamilyOf(target.Addr())); a.seen.Addr() != want {
						t.Errorf("%s sees %s, want %s", a.id, a.seen, want)
					}
					if c.keep && a.seen.Port() != port {
						t.Errorf("%s sees port %d, not the client's %d", a.id, a.seen.Port(), port)
					}
				}
			})
		})
	}
}

// TestHairpin has a backend call its own service: it is answered by every backend, itself
// too, and a real client beside it is still seen as it is.
func TestHairpin(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serveAll(s.Backends...)
	list := backendList(on("", s.Backends...)...)
	s.apply(services(
		service("keep", listenAll(2), list),
		service("masquerade", listenAll(3), list, "source: masquerade"),
		service("range", listenOn(4, "7-9/tcp", "7-9/udp", "7-9/sctp", "80-81/tcp"), list)))
	for _, n := range []int{2, 3, 4} {
		eachNetwork(t, n, func(t *testing.T, network string, target netip.AddrPort) {
			caller := s.Backends[0]
			for range 4 {
				a := s.ask(t, caller, network, target)
				if want := s.inside(model.FamilyOf(target.Addr())); a.seen.Addr() != want {
					t.Errorf("%s sees %s, want the gateway's %s", a.id, a.seen, want)
				}
			}
			got := tally(s.askMany(t, caller, network, target, 4))
			if got["backend1"] != 2 || got["backend2"] != 2 {
				t.Errorf("the backend is answered by %v", got)
			}
			if a := s.ask(t, s.Clients[0], network, target); n != 3 && a.seen.Addr() != addrOf(s.Clients[0], model.FamilyOf(target.Addr())) {
				t.Errorf("%s sees %s instead of the client", a.id, a.seen)
			}
		})
	}
}

// nextHop gives the gateway default routes: a program on the box can call an address only
// if there is a way to it, before weir sees the packet.
func (s *site) nextHop() {
	s.t.Helper()
	c := s.Clients[0]
	check(s.t, s.Gateway.Route(netip.MustParsePrefix("0.0.0.0/0"), c.V4, lab.OutsideDev))
	check(s.t, s.Gateway.Route(netip.MustParsePrefix("::/0"), c.V6, lab.OutsideDev))
}

// held is an address of the clients' segment, n from 1 to 250, that weir may hold.
func held(f model.Family, n int) netip.Addr {
	if f == model.IPv4 {
		return number(lab.ClientNet4, n)
	}
	return number(lab.ClientNet6, n)
}

// TestLocalClient calls services from the gateway itself (the output hook): one whose
// address is not there, and one whose address weir holds.
func TestLocalClient(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.nextHop()
	s.serveAll(s.Backends...)
	list := backendList(on("", s.Backends...)...)
	holds := []string{}
	for _, e := range []string{"80/tcp", "7/tcp", "7/udp", "7/sctp"} {
		holds = append(holds, held(4, 200).String()+":"+e, "["+held(6, 200).String()+"]:"+e)
	}
	s.apply(services(
		service("routed", listenAll(2), list),
		service("masquerade", listenAll(3), list, "source: masquerade"),
		service("held", quoted(holds), list, "assign: "+lab.OutsideDev),
		service("refuses", listenAll(4), "[]")))
	for _, c := range []struct {
		name string
		addr func(model.Family) netip.Addr
		from func(model.Family) netip.Addr // the client binds to it
		seen func(model.Family) netip.Addr
	}{
		{"not there", func(f model.Family) netip.Addr { return vip(f, 2) }, s.outside, s.outside},
		{"not there, masquerade", func(f model.Family) netip.Addr { return vip(f, 3) }, s.outside, s.inside},
		{"held", func(f model.Family) netip.Addr { return held(f, 200) }, s.outside, s.outside},
		{"held, from itself", func(f model.Family) netip.Addr { return held(f, 200) },
			func(f model.Family) netip.Addr { return held(f, 200) }, func(f model.Family) netip.Addr { return held(f, 200) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachNetwork(t, 2, func(t *testing.T, network string, target netip.AddrPort) {
				f := model.FamilyOf(target.Addr())
				var ids []string
				for range 4 {
					reply, err := s.Gateway.AskFrom(t.Context(), network, join(c.from(f), s.port()), join(c.addr(f), target.Port()))
					check(t, err)
					a := parseAnswer(t, reply)
					ids = append(ids, a.id)
					if a.seen.Addr() != c.seen(f) {
						t.Errorf("%s sees %s, want %s", a.id, a.seen, c.seen(f))
					}
				}
				if got := tally(ids); got["backend1"] != 2 || got["backend2"] != 2 {
					t.Errorf("answers by %v", got)
				}
			})
		})
	}
	t.Run("no address said", func(t *testing.T) {
		for _, network := range []string{"http", "tcp", "udp"} {
			eachFamily(t, func(t *testing.T, f model.Family) {
				port := uint16(7)
				if network == "http" {
					port = 80
				}
				for _, a := range []netip.Addr{vip(f, 2), held(f, 200)} {
					if _, err := s.Gateway.Ask(network, join(a, port)); err != nil {
						t.Errorf("%s to %s: %v", network, a, err)
					}
				}
			})
		}
	})
	t.Run("refused", func(t *testing.T) {
		eachFamily(t, func(t *testing.T, f model.Family) {
			_, err := s.Gateway.Ask("tcp", join(vip(f, 4), 7))
			wantRefused(t, "tcp", err)
			// The kernel fails the send of a packet that is refused on its way out, and
			// tells the socket of the refusal as well.
			c, err := s.Gateway.Dial(t.Context(), "udp", "", join(vip(f, 4), 7))
			check(t, err)
			defer c.Close()
			check(t, c.SetDeadline(time.Now().Add(patience)))
			if _, err = c.Write([]byte("?")); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("udp: send: %v", err)
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				_, err = c.Read(make([]byte, 10))
			}
			wantRefused(t, "udp", err)
		})
	})
}

// outside returns the gateway's address on the clients' side.
func (s *site) outside(f model.Family) netip.Addr {
	if f == model.IPv4 {
		return s.Outside4
	}
	return s.Outside6
}

// TestBackendOnTheGateway has the gateway serve beside a backend, to clients elsewhere
// and on the gateway.
func TestBackendOnTheGateway(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.nextHop()
	s.serveAll(s.Backends...)
	for _, n := range networks {
		start := starters[n.name]
		_, err := start(s.Gateway, "gateway", join(s.Inside4, n.port), join(s.Inside6, n.port))
		check(t, err)
	}
	list := quoted([]string{s.Inside4.String(), s.Inside6.String(), s.Backends[0].V4.String(), s.Backends[0].V6.String()})
	s.apply(services(
		service("keep", listenAll(2), list),
		service("masquerade", listenAll(3), list, "source: masquerade")))
	for _, n := range []int{2, 3} {
		eachNetwork(t, n, func(t *testing.T, network string, target netip.AddrPort) {
			for _, client := range []*lab.Host{s.Clients[0], s.Gateway, s.Backends[0]} {
				got := tally(s.askMany(t, client, network, target, 4))
				if got["backend1"] != 2 || got["gateway"] != 2 {
					t.Errorf("%s is answered by %v", client.Name, got)
				}
			}
		})
	}
}
