package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// localService returns a service of the gateway itself as YAML.
func localService(name, listen string, options ...string) string {
	text := fmt.Sprintf("  - name: %s\n    listen: %s\n    forward: local\n", name, listen)
	for _, o := range options {
		text += "    " + o + "\n"
	}
	return text
}

// tracked returns the entries of the gateway's connection table that name an address.
func (s *site) tracked(t *testing.T, a netip.Addr) (flows []conntrack.Flow) {
	t.Helper()
	check(t, s.Gateway.Do(func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Dump(t.Context(), conntrack.Filter{}, func(f conntrack.Flow) bool {
			if f.Orig.Dst.Addr() == a || f.Orig.Src.Addr() == a {
				flows = append(flows, f)
			}
			return true
		})
	}))
	return flows
}

// listenerStatus returns the figures of one listener of a service.
func listenerStatus(t *testing.T, st engine.ServiceStatus, listen string) engine.Traffic {
	t.Helper()
	for _, l := range st.Listeners {
		if l.Listen == listen {
			return l.Traffic
		}
	}
	t.Fatalf("%s has no listener %s in its status: %+v", st.Name, listen, st.Listeners)
	return engine.Traffic{}
}

func listenText(f model.Family, n int, port uint16, proto string) string {
	return model.Listen{Addr: held(f, n), Proto: map[string]model.Proto{"tcp": 6, "udp": 17, "sctp": 132}[proto], Ports: model.Port(port)}.String()
}

// serveHeld starts servers of every kind on the gateway's address number n, which it must
// hold.
func (s *site) serveHeld(n int) {
	s.t.Helper()
	for _, nw := range networks {
		start := starters[nw.name]
		_, err := start(s.Gateway, "gateway", join(held(4, n), nw.port), join(held(6, n), nw.port))
		check(s.t, err)
	}
}

// TestUntracked has the gateway serve on listeners without conntrack, of every protocol, to
// clients elsewhere and on itself: all are answered, the connection table stays empty, and
// each listener counts. Beside it a tracked service shows that the table would tell. The
// same under a policy that drops, which no rule opens for them.
func TestUntracked(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"accept", "drop"} {
		t.Run(policy, func(t *testing.T) { untracked(t, fmt.Sprintf("edge: {policy: %s, management: 192.0.2.1}\n", policy)) })
	}
}

func untracked(t *testing.T, edge string) {
	s := newSite(t, 1, 1)
	const bare, seen = 200, 201
	entries := []string{"80/tcp", "7/tcp", "7/udp", "7/sctp"}
	text := func(more ...string) string {
		return edge + services(append([]string{
			localService("bare", listenHeld(bare, entries...), "track: none", "assign: "+lab.OutsideDev),
			localService("seen", listenHeld(seen, entries...), "assign: "+lab.OutsideDev)}, more...)...)
	}
	s.apply(text())
	s.serveHeld(bare)
	s.serveHeld(seen)
	client := s.Clients[0]
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, nw := range networks {
			for range 3 {
				for _, n := range []int{bare, seen} {
					if a := s.ask(t, client, nw.name, netip.AddrPortFrom(held(f, n), nw.port)); a.id != "gateway" || a.seen.Addr() != addrOf(client, f) {
						t.Errorf("%s is answered by %+v", nw.name, a)
					}
				}
			}
		}
		if got := s.tracked(t, held(f, bare)); len(got) > 0 {
			t.Errorf("conntrack knows %d connections of listeners without it: %+v", len(got), got)
		}
		if got := s.tracked(t, held(f, seen)); len(got) == 0 {
			t.Error("conntrack knows nothing of the listeners beside them")
		}
		for _, nw := range networks { // the gateway asks itself
			reply, err := s.Gateway.AskFrom(t.Context(), nw.name, join(s.outside(f), s.port()), join(held(f, bare), nw.port))
			if err != nil || !strings.HasPrefix(reply, "gateway ") {
				t.Errorf("%s from itself: %q, %v", nw.name, reply, err)
			}
		}
		if got := s.tracked(t, held(f, bare)); len(got) > 0 {
			t.Errorf("conntrack knows %d connections of the gateway to itself: %+v", len(got), got)
		}
	})
	// Each asked three times with a datagram, and once by the gateway itself.
	ask := func(service string, n int, f model.Family) engine.Traffic {
		return listenerStatus(t, s.status(service), listenText(f, n, 7, "udp"))
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		if got := ask("bare", bare, f); got.PacketsIn != 4 || got.PacketsOut != 4 || got.NewConnections != 0 || got.BytesIn == 0 {
			t.Errorf("without conntrack: %+v", got)
		}
		if got := ask("seen", seen, f); got.PacketsIn != 3 || got.PacketsOut != 3 || got.NewConnections != 3 {
			t.Errorf("with conntrack: %+v", got)
		}
		if got := listenerStatus(t, s.status("seen"), listenText(f, seen, 7, "tcp")); got.NewConnections != 3 || got.PacketsIn < 9 {
			t.Errorf("TCP with conntrack: %+v", got)
		}
	})
	s.apply(text(localService("more", listenOn(1, "1-1000/tcp"), "track: none")))
	eachFamily(t, func(t *testing.T, f model.Family) {
		s.ask(t, client, "udp", netip.AddrPortFrom(held(f, bare), 7))
		if got := ask("bare", bare, f); got.PacketsIn != 5 || got.PacketsOut != 5 {
			t.Errorf("after a change of the file: %+v", got)
		}
	})
}

// TestUntrackedFragments sends a datagram that is too large for one packet. It is put
// together before weir looks at it, so that it has its ports.
func TestUntrackedFragments(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	const n = 200
	s.apply("edge: {policy: drop, management: 192.0.2.1}\n" + services(
		localService("bare", listenHeld(n, "7/udp"), "track: none", "assign: "+lab.OutsideDev)))
	_, err := lab.EchoUDP(s.Gateway, "gateway", join(held(4, n), 7), join(held(6, n), 7))
	check(t, err)
	eachFamily(t, func(t *testing.T, f model.Family) {
		c, err := s.Clients[0].Dial(t.Context(), "udp", "", join(held(f, n), 7))
		check(t, err)
		defer c.Close()
		check(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = c.Write(make([]byte, 4000))
		check(t, err)
		got := make([]byte, 100)
		k, err := c.Read(got)
		if err != nil || !strings.HasPrefix(string(got[:k]), "gateway ") {
			t.Fatalf("answer %q, %v", got[:k], err)
		}
		if st := listenerStatus(t, s.status("bare"), listenText(f, n, 7, "udp")); st.PacketsIn != 1 || st.BytesIn < 4000 {
			t.Errorf("counted %+v, want one packet of 4000 bytes and more", st)
		}
		if got := s.tracked(t, held(f, n)); len(got) > 0 {
			t.Errorf("conntrack knows %+v", got)
		}
	})
}

// TestThousandsOfListeners has the gateway serve on one of ten thousand listeners without
// conntrack: they are one rule, and the one counts.
func TestThousandsOfListeners(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	const n = 200
	var list []string
	for i := range 5 {
		ports := make([]string, 500)
		for p := range ports {
			ports[p] = fmt.Sprint(1000 + 1000*i + 2*p)
		}
		for _, f := range families { // a service has 1024 listeners at most
			for _, proto := range []string{"tcp", "udp"} {
				host := strings.TrimSuffix(join(held(f, n), 1), ":1")
				list = append(list, localService(fmt.Sprintf("many-%d-%s-%s", i, f, proto),
					quoted([]string{host + ":" + strings.Join(ports, ",") + "/" + proto}), "track: none", "assign: "+lab.OutsideDev))
			}
		}
	}
	s.apply(services(list...))
	for _, proto := range []string{"tcp", "udp"} {
		_, err := starters[proto](s.Gateway, "gateway", join(held(4, n), 3500), join(held(6, n), 3500))
		check(t, err)
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, proto := range []string{"tcp", "udp"} {
			s.ask(t, s.Clients[0], proto, netip.AddrPortFrom(held(f, n), 3500))
		}
		if got := s.tracked(t, held(f, n)); len(got) > 0 {
			t.Errorf("conntrack knows %+v", got)
		}
		var st engine.Status
		s.mustJSON(&st, "status")
		hit := 0
		for _, sv := range st.Services {
			for _, l := range sv.Listeners {
				if l.PacketsIn > 0 && strings.HasPrefix(l.Listen, strings.TrimSuffix(join(held(f, n), 3500), "3500")) {
					hit++
				}
			}
		}
		if hit != 2 {
			t.Errorf("%d listeners have counted, want 2", hit)
		}
	})
	if rules := strings.Count(s.nft("list", "chain", "inet", "weir", "early"), "notrack"); rules != 2 {
		t.Errorf("%d rules keep packets from conntrack, want one for each family", rules)
	}
}
