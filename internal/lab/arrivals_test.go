package lab

import (
	"net/netip"
	"testing"
	"time"
)

// TestArrivals counts connections, answered or not, each once, and none of other ports
// and other clients.
func TestArrivals(t *testing.T) {
	topo := newGateway(t, GatewayOptions{Clients: 2, Backends: 1})
	client, other, backend := topo.Clients[0], topo.Clients[1], topo.Backends[0]
	to := func(port uint16) (list []netip.AddrPort) {
		return []netip.AddrPort{netip.AddrPortFrom(backend.V4, port), netip.AddrPortFrom(backend.V6, port)}
	}
	for _, port := range []uint16{7, 8} {
		for _, a := range to(port) {
			must(EchoTCP(backend, "b", a.String()))(t)
		}
	}
	a := must(backend.Arrivals(HostDev, 7, netip.PrefixFrom(client.V4, 32), netip.PrefixFrom(client.V6, 128)))(t)
	start := time.Now()
	ask := func(h *Host, port uint16) {
		t.Helper()
		for _, addr := range to(port) {
			must(h.Ask("tcp", addr.String()))(t)
		}
	}
	wait := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); a.Since(start) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d arrivals, want %d", a.Since(start), want)
			}
		}
	}
	ask(client, 7)
	ask(client, 8)
	ask(other, 7)
	ask(client, 7) // when these have been seen, so have the others
	wait(4)
	between := time.Now()
	if n := a.Since(between); n != 0 || a.Last().Before(start) || a.Last().After(between) {
		t.Errorf("%d arrivals after the last, at %s", n, a.Last())
	}
	// The same first packet three times, as of a client that nobody answers, is one.
	syn := TCPPacket(netip.AddrPortFrom(client.V4, 471), to(7)[0], SYN, 1, 0)
	for range 3 {
		check(t, client.SendIP(syn))
	}
	ask(client, 7)
	wait(7)
	check(t, a.Close())
	<-a.done
}
