package lab

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestParseIPReadsWhatIsBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := 4
		if rapid.Bool().Draw(t, "v6") {
			n = 16
		}
		addr := func(name string) netip.Addr {
			a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, name))
			return a
		}
		src := netip.AddrPortFrom(addr("src"), rapid.Uint16().Draw(t, "sport"))
		dst := netip.AddrPortFrom(addr("dst"), rapid.Uint16().Draw(t, "dport"))
		data := rapid.SliceOf(rapid.Byte()).Draw(t, "data")
		for proto, pkt := range map[uint8][]byte{
			unix.IPPROTO_UDP:  UDPPacket(src, dst, data),
			unix.IPPROTO_TCP:  TCPPacket(src, dst, SYN, 1, 0),
			unix.IPPROTO_SCTP: SCTPInit(src, dst, 1),
		} {
			h, err := ParseIP(append(pkt, 0, 0)) // Ethernet may pad
			if err != nil || h.Src != src || h.Dst != dst || h.Proto != proto || h.TTL != defaultTTL {
				t.Fatalf("proto %d: %+v, %v", proto, h, err)
			}
		}
	})
}

func FuzzParseIP(f *testing.F) {
	a4, a6 := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:1")
	f.Add(UDPPacket(a4, a4, nil))
	f.Add(SCTPInit(a6, a6, 1))
	f.Add([]byte{0x4f})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseIP(b)
		if err == nil && (!h.Src.Addr().IsValid() || len(h.Payload) > len(b)) {
			t.Errorf("%+v", h)
		}
		if c, ok := parseSCTP(b); ok {
			c.initTag()
			c.cookie()
		}
	})
}

// TestSCTPSum sees that the sum of an INIT holds, and that any changed bit breaks
// it. That it is the sum the kernel means, TestSCTPThroughConntrack shows.
func TestSCTPSum(t *testing.T) {
	pkt := SCTPInit(netip.MustParseAddrPort("192.0.2.1:5000"), netip.MustParseAddrPort("192.0.2.2:7"), 0xdeadbeef)[ipv4HeaderLen:]
	if !SCTPSumOK(pkt) {
		t.Fatalf("sum of %s", hex.EncodeToString(pkt))
	}
	for i := range len(pkt) * 8 {
		bad := bytes.Clone(pkt)
		bad[i/8] ^= 1 << (i % 8)
		if SCTPSumOK(bad) {
			t.Errorf("bit %d does not matter", i)
		}
	}
	if SCTPSumOK(pkt[:8]) {
		t.Error("a stump passes")
	}
}

// TestKernelAcceptsChecksums sends built packets to real sockets: the kernel drops
// what has a wrong sum.
func TestKernelAcceptsChecksums(t *testing.T) {
	_, a, b := pairOfHosts(t)
	for _, dst := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
		to := netip.MustParseAddrPort(dst)
		src := netip.AddrPortFrom(a.V4, 3333)
		if to.Addr().Is6() {
			src = netip.AddrPortFrom(a.V6, 3333)
		}
		must(EchoUDP(b, "u", dst))(t)
		must(EchoTCP(b, "t", dst))(t)
		seen := must(a.Capture("to-b"))(t)
		for _, data := range []string{"x", "odd", "even"} {
			check(t, a.SendIP(UDPPacket(src, to, []byte(data))))
			_, h, err := seen.Find(testContext(t, 5*time.Second), func(p Packet, h Header) bool {
				return !p.Out && h.Proto == unix.IPPROTO_UDP
			})
			if err != nil || !strings.HasPrefix(string(h.Payload[udpHeaderLen:]), "u ") {
				t.Errorf("udp %s: %v, %q", dst, err, h.Payload)
			}
		}
		check(t, a.SendIP(TCPPacket(src, to, SYN, 100, 0)))
		_, h, err := seen.Find(testContext(t, 5*time.Second), func(p Packet, h Header) bool {
			return !p.Out && h.Proto == unix.IPPROTO_TCP
		})
		if err != nil || h.Payload[13] != SYN|ACK || h.Dst != src {
			t.Errorf("tcp %s: %v, %+v", dst, err, h)
		}
	}
}

func TestCaptureEnds(t *testing.T) {
	_, a, _ := pairOfHosts(t)
	c := must(a.Capture("lo"))(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	// The capture is usable after that.
	check(t, a.SendIP(UDPPacket(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2"), nil)))
	if _, err := c.Next(testContext(t, 5*time.Second)); err != nil {
		t.Errorf("after an ended context: %v", err)
	}
	done := make(chan error)
	go func() {
		for {
			if _, err := c.Next(context.Background()); err != nil {
				done <- err
				return
			}
		}
	}()
	check(t, c.Close())
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := a.Capture("nowhere"); err == nil {
		t.Error("captures on a device that is not there")
	}
}

// TestSCTPThroughConntrack opens associations through the gateway while conntrack is
// on: it must see them as established, which it does only for packets it believes.
func TestSCTPThroughConntrack(t *testing.T) {
	topo := newGateway(t, GatewayOptions{})
	c, b := topo.Clients[0], topo.Backends[0]
	if _, err := topo.Gateway.Run("nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }; "+
		"add rule inet t f ct state invalid drop; add rule inet t f ct state established accept"); err != nil {
		if inCI() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, addr := range []netip.Addr{b.V4, b.V6} {
		to := netip.AddrPortFrom(addr, 2905).String()
		must(EchoSCTP(b, "b", to))(t)
		from := netip.AddrPortFrom(c.V4, 40000)
		if addr.Is6() {
			from = netip.AddrPortFrom(c.V6, 40000)
		}
		if reply := must(c.AskFrom(t.Context(), "sctp", from.String(), to))(t); reply != "b "+from.String() {
			t.Errorf("reply %q", reply)
		}
		if _, err := c.AskFrom(testContext(t, 100*time.Millisecond), "sctp", "", netip.AddrPortFrom(addr, 1).String()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a port nobody listens on: %v", err)
		}
	}
	var table []byte
	check(t, topo.Gateway.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/nf_conntrack")
		return err
	}))
	if got := strings.Count(string(table), "ESTABLISHED"); got != 2 {
		t.Errorf("%d associations established, want 2:\n%s", got, table)
	}
	if _, err := EchoSCTP(b, "b", "0.0.0.0:1"); err == nil {
		t.Error("a wildcard address was accepted")
	}
}
