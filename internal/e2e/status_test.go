package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// status returns what `weir status` says of a service.
func (s *site) status(name string) engine.ServiceStatus {
	s.t.Helper()
	var st engine.Status
	s.mustJSON(&st, "status", name)
	if !st.Loaded || len(st.Services) != 1 || st.Services[0].Name != name {
		s.t.Fatalf("weir status %s: %+v", name, st)
	}
	return st.Services[0]
}

// counted returns the figures of one backend.
func counted(t *testing.T, st engine.ServiceStatus, address string) engine.Traffic {
	t.Helper()
	for _, b := range st.Backends {
		if b.Address == address {
			return b.Traffic
		}
	}
	t.Fatalf("%s has no backend %s in its status: %+v", st.Name, address, st.Backends)
	return engine.Traffic{}
}

// TestStatusCountsEveryPacketOnce sends datagrams, whose number and length are known, on
// every way through the box: from and to other hosts, and from and to the box itself.
func TestStatusCountsEveryPacketOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.nextHop()
	s.serve("udp", s.Backends, 7)
	_, err := lab.EchoUDP(s.Gateway, "gateway", join(s.Inside4, 7), join(s.Inside6, 7))
	check(t, err)
	servers := []struct {
		host *lab.Host
		addr func(model.Family) netip.Addr
	}{
		{s.Backends[0], func(f model.Family) netip.Addr { return addrOf(s.Backends[0], f) }},
		{s.Gateway, s.inside},
	}
	clients := []*lab.Host{s.Clients[0], s.Gateway, s.Backends[0]}
	var list []string
	at := func(server, client int, masquerade int) int { return 1 + (server*len(clients)+client)*2 + masquerade }
	for i, srv := range servers {
		for j := range clients {
			for m, source := range []string{"keep", "masquerade"} {
				n := at(i, j, m)
				list = append(list, service(fmt.Sprintf("s%d", n), listenOn(n, "70/udp"),
					quoted([]string{join(srv.addr(4), 7), join(srv.addr(6), 7)}), "source: "+source))
			}
		}
	}
	s.apply(services(list...))
	const asks = 3
	for i, srv := range servers {
		for j, client := range clients {
			for m, source := range []string{"keep", "masquerade"} {
				eachFamily(t, func(t *testing.T, f model.Family) {
					header := uint64(28) // IPv4 and UDP
					if f == model.IPv6 {
						header = 48
					}
					var want engine.Traffic
					for range asks {
						reply, err := client.AskFrom(t.Context(), "udp", join(addrOf(client, f), s.port()), join(vip(f, at(i, j, m)), 70))
						check(t, err)
						want.NewConnections++
						want.PacketsIn++
						want.BytesIn += header + uint64(len("?\n"))
						want.PacketsOut++
						want.BytesOut += header + uint64(len(reply)+1)
					}
					got := counted(t, s.status(fmt.Sprintf("s%d", at(i, j, m))), join(srv.addr(f), 7))
					if got != want {
						t.Errorf("%s to %s, source %s: counted %+v, sent %+v", client.Name, srv.host.Name, source, got, want)
					}
				})
			}
		}
	}
}

// TestStatusSurvives sees exact counts of connections after each thing that could lose
// them: a reload, the death of weir and its return, and `weir apply`.
func TestStatusSurvives(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 3)
	s.serveAll(s.Backends...)
	b := s.Backends
	entries := []string{"80/tcp", "7/tcp", "7/udp", "7/sctp", "20-29/tcp"}
	config := func(list ...backend) string {
		return services(service("web", listenOn(1, entries...), backendList(list...)),
			service("other", listenOn(2, entries...), backendList(on("", b[2])...)))
	}
	want := map[string]uint64{} // by backend address
	drive := func() {
		for _, nw := range networks {
			for _, f := range families {
				for range 5 {
					id := s.ask(t, s.Clients[0], nw.name, netip.AddrPortFrom(vip(f, 1), nw.port)).id
					for _, h := range b {
						if h.Name == id {
							want[addrOf(h, f).String()]++
						}
					}
				}
			}
		}
	}
	compare := func(when string) {
		t.Helper()
		st := s.status("web")
		var total uint64
		for _, be := range st.Backends {
			if be.NewConnections != want[be.Address] {
				t.Errorf("%s: %s has %d new connections, made were %d", when, be.Address, be.NewConnections, want[be.Address])
			}
			if n := be.NewConnections; n > 0 && (be.PacketsIn < n || be.PacketsOut < n || be.BytesIn < 20*n || be.BytesOut < 20*n) {
				t.Errorf("%s: %s carried %+v", when, be.Address, be.Traffic)
			}
			total += be.NewConnections
		}
		if st.Total.NewConnections != total+st.Former.NewConnections || total == 0 {
			t.Errorf("%s: total %d, of the backends %d, of former ones %d", when, st.Total.NewConnections, total, st.Former.NewConnections)
		}
		if other := s.status("other").Total; other.NewConnections != 0 {
			t.Errorf("%s: counted for a service that nobody called: %+v", when, other)
		}
	}
	whole := on("", b[0], b[1])
	s.write(config(whole...))
	s.start()
	drive()
	compare("at first")

	s.write(config(backend{b[0], "", 3}, backend{b[1], "", 1}))
	s.reload()
	compare("after a change of weights")
	drive()
	compare("with other weights")

	s.run.Kill()
	drive()
	compare("without a weir")
	s.start()
	compare("after a restart")
	drive()

	s.write(config(append(whole, backend{b[2], "", 1})...))
	s.reload()
	drive()
	compare("with a backend more")
	s.stop()
	s.apply(config(backend{b[0], "", 1}, backend{b[1], "", 0}))
	drive()
	compare("after weir apply")
	former := s.status("web").Former.NewConnections
	if gone := want[b[2].V4.String()] + want[b[2].V6.String()]; former != gone || gone == 0 {
		t.Errorf("a backend that is gone had %d connections, former are %d", gone, former)
	}
}
