package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestGatewayForwardsBothWays(t *testing.T) {
	topo := newGateway(t, GatewayOptions{Clients: 2, Backends: 3})
	for i, b := range topo.Backends {
		if want := fmt.Sprintf("10.1.1.%d 2001:db8:1::%x", i+1, i+1); b.V4.String()+" "+b.V6.String() != want {
			t.Errorf("%s has %s %s, want %s", b.Name, b.V4, b.V6, want)
		}
		for _, a := range []netip.Addr{b.V4, b.V6} {
			for network, start := range map[string]func(*Host, string, ...string) (*Server, error){
				"http": HTTPServer, "tcp": EchoTCP, "udp": EchoUDP, "sctp": EchoSCTP,
			} {
				s := must(start(b, b.Name, netip.AddrPortFrom(a, 80).String()))(t)
				for _, c := range topo.Clients {
					reply := must(c.Ask(network, netip.AddrPortFrom(a, 80).String()))(t)
					id, from, _ := strings.Cut(reply, " ")
					ap, err := netip.ParseAddrPort(from)
					if id != b.Name || err != nil || (ap.Addr() != c.V4 && ap.Addr() != c.V6) {
						t.Errorf("%s from %s to %s: %q", network, c.Name, a, reply)
					}
				}
				if s.Requests() != uint64(len(topo.Clients)) {
					t.Errorf("%s of %s counted %d", network, b.Name, s.Requests())
				}
				check(t, s.Close())
			}
		}
	}
}

// TestGatewayGetsVIPs sees that packets to a VIP arrive at the gateway, from both
// sides.
func TestGatewayGetsVIPs(t *testing.T) {
	topo := newGateway(t, GatewayOptions{})
	for _, side := range []struct {
		from *Host
		dev  string
	}{{topo.Clients[0], OutsideDev}, {topo.Backends[0], InsideDev}} {
		for _, vip := range []netip.Addr{number(VIPNet4, 10), number(VIPNet6, 10)} {
			src := side.from.V4
			if vip.Is6() {
				src = side.from.V6
			}
			seen := must(topo.Gateway.Capture(side.dev))(t)
			pkt := UDPPacket(netip.AddrPortFrom(src, 1000), netip.AddrPortFrom(vip, 53), []byte("hello"))
			check(t, side.from.SendIP(pkt))
			_, hdr, err := seen.Find(testContext(t, 5*time.Second), func(p Packet, h Header) bool {
				return !p.Out && h.Dst == netip.AddrPortFrom(vip, 53)
			})
			if err != nil || string(hdr.Payload[udpHeaderLen:]) != "hello" || hdr.Src.Port() != 1000 {
				t.Errorf("%s on %s: %+v, %v", vip, side.dev, hdr, err)
			}
			check(t, seen.Close())
		}
	}
}

func TestGatewayOfTen(t *testing.T) {
	begin := time.Now()
	topo := newGateway(t, GatewayOptions{Clients: 10, Backends: 10})
	t.Logf("made in %s", time.Since(begin))
	last := topo.Backends[9]
	must(EchoTCP(last, "last", "[2001:db8:1::a]:7"))(t)
	for _, c := range topo.Clients {
		must(c.Ask("tcp", "[2001:db8:1::a]:7"))(t)
	}
	if _, err := Gateway(GatewayOptions{Clients: MaxHosts + 1}); err == nil {
		t.Error("too many clients were accepted")
	}
}

// TestSegmentBridges sees that a switch only switches: what crosses it does not meet
// the IP hooks of netfilter there.
func TestSegmentBridges(t *testing.T) {
	n := newNet(t)
	sw := must(n.Switch("s"))(t)
	a, b := newHost(t, n, "a"), newHost(t, n, "b")
	check(t, sw.Attach(a, "eth0", prefixes("10.9.0.1/24", "2001:db8:9::1/64")...))
	check(t, sw.AttachEnd(End{Host: b, Name: "eth0", Addrs: prefixes("10.9.0.2/24", "2001:db8:9::2/64"), MTU: 9000}))
	must(EchoUDP(b, "b", "10.9.0.2:7", "[2001:db8:9::2]:7"))(t)
	for _, addr := range []string{"10.9.0.2:7", "[2001:db8:9::2]:7"} {
		must(a.Ask("udp", addr))(t)
	}
	for _, key := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
		if v, err := sw.host.GetSysctl(key); err == nil && v != "0" {
			t.Errorf("%s=%s", key, v)
		}
	}
}
