package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// rules send what is for the listen addresses to backends on the loopback, mark it, and
// make the namespace track connections at all.
const rules = `table inet test {
	chain out {
		type nat hook output priority -100
		ip daddr 198.51.100.10 meta l4proto {tcp, udp} ct mark set 0x00070000 dnat ip to 10.1.1.1:8080
		ip6 daddr 2001:db8::10 meta l4proto {tcp, udp} ct mark set 0x00080000 dnat ip6 to [2001:db8:1::1]:8080
	}
	chain track { type filter hook output priority 0; ct state invalid counter; }
}`

var setup = sync.OnceValue(func() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range []string{"10.1.1.1/32", "192.0.2.1/32", "2001:db8:1::1/128", "2001:db8:2::1/128"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, dst := range []string{"198.51.100.0/24", "2001:db8::/64"} {
		_, n, _ := net.ParseCIDR(dst)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: n}); err != nil {
			return fmt.Errorf("route %s: %w", dst, err)
		}
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %v: %s", err, out)
	}
	return nil
})

// open gives a Conn on the prepared namespace, its table empty.
func open(t testing.TB) *Conn {
	t.Helper()
	needKernel(t)
	if err := setup(); err != nil {
		t.Fatal(err)
	}
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Dump(t.Context(), Filter{}, func(f Flow) bool { return del(t, c, f) || true }); err != nil {
		t.Fatal(err)
	}
	return c
}

func del(t testing.TB, c *Conn, f Flow) bool {
	t.Helper()
	was, err := c.Delete(t.Context(), f)
	if err != nil {
		t.Error(err)
	}
	return was
}

func dump(t testing.TB, c *Conn, filter Filter) []Flow {
	t.Helper()
	var out []Flow
	for range 10 {
		out = out[:0]
		err := c.Dump(t.Context(), filter, func(f Flow) bool { out = append(out, f); return true })
		if err == nil {
			return out
		}
		if !errors.Is(err, ErrInterrupted) {
			t.Fatal(err)
		}
	}
	t.Fatal("always interrupted")
	return nil
}

// connect opens a connection through a listen address to a server that is really on
// the backend's, says something both ways and keeps it open until the test ends.
func connect(t *testing.T, network, listen, backend string) net.Conn {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	if strings.HasPrefix(network, "udp") {
		pc, err := net.ListenPacket(network, backend)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		pc.SetDeadline(deadline)
		conn, err := net.Dial(network, listen)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(deadline)
		b := make([]byte, 16)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		n, from, err := pc.ReadFrom(b)
		if err == nil {
			_, err = pc.WriteTo(b[:n], from)
		}
		if err == nil {
			_, err = conn.Read(b)
		}
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ln, err := net.Listen(network, backend)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.DialTimeout(network, listen, time.Until(deadline))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	served, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { served.Close() })
	return conn
}

func TestDNATedConnections(t *testing.T) {
	for _, tc := range []struct {
		network, listen, backend string
		proto                    model.Proto
		mark                     uint32
	}{
		{"tcp4", "198.51.100.10:80", "10.1.1.1:8080", model.TCP, 0x00070000},
		{"udp4", "198.51.100.10:53", "10.1.1.1:8080", model.UDP, 0x00070000},
		{"tcp6", "[2001:db8::10]:80", "[2001:db8:1::1]:8080", model.TCP, 0x00080000},
		{"udp6", "[2001:db8::10]:53", "[2001:db8:1::1]:8080", model.UDP, 0x00080000},
	} {
		t.Run(tc.network, func(t *testing.T) {
			c := open(t)
			conn := connect(t, tc.network, tc.listen, tc.backend)
			want := Connection{
				Proto:   tc.proto,
				Client:  ap(conn.LocalAddr().String()),
				Listen:  ap(tc.listen),
				Backend: ap(tc.backend),
				Mark:    tc.mark,
			}
			var got []Connection
			for x, err := range c.DNATed(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, x)
			}
			if len(got) != 1 || got[0] != want {
				t.Fatalf("got %+v, want only %+v", got, want)
			}

			flows := dump(t, c, Filter{Family: model.FamilyOf(want.Client.Addr()), Mark: tc.mark, MarkMask: 0x0fff0000})
			if len(flows) != 1 {
				t.Fatalf("by mark: %v", flows)
			}
			f := flows[0]
			if f.Status&StatusSeenReply == 0 || f.Timeout <= 0 || f.ID == 0 || f.Reply.Dst != want.Client {
				t.Errorf("flow %+v", f)
			}
			if tc.proto == model.TCP && f.TCPState != 3 {
				t.Errorf("TCP state %d, want 3 (ESTABLISHED)", f.TCPState)
			}
			other := Filter{Mark: tc.mark ^ 0x000f0000, MarkMask: 0x0fff0000}
			if fs := dump(t, c, other); len(fs) != 0 {
				t.Errorf("by another mark: %v", fs)
			}
			if fs := dump(t, c, Filter{StatusMask: StatusDNAT}); len(fs) != 0 {
				t.Errorf("not translated: %v", fs)
			}

			wrongID := f
			wrongID.ID ^= 1
			if del(t, c, wrongID) || len(dump(t, c, Filter{})) != 1 {
				t.Error("a flow with another ID was deleted")
			}
			if !del(t, c, f) {
				t.Error("delete: not there")
			}
			if fs := dump(t, c, Filter{Match: func(x *Flow) bool { return x.ID == f.ID }}); len(fs) != 0 {
				t.Errorf("after delete: %v", fs)
			}
			if del(t, c, f) {
				t.Error("deleted twice")
			}
		})
	}
}

func TestDeleteNeedsATuple(t *testing.T) {
	c := open(t)
	connect(t, "udp4", "198.51.100.10:53", "10.1.1.1:8080")
	if _, err := c.Delete(t.Context(), Flow{Proto: model.UDP}); err == nil {
		t.Error("a flow without a tuple was accepted")
	}
	if n := len(dump(t, c, Filter{})); n != 1 {
		t.Errorf("%d flows, want 1", n)
	}
}

// rawFlow sends one packet of the protocol to a discarding address, so that there is a
// flow without a socket of that protocol.
func rawFlow(t *testing.T, family, proto int, dst netip.Addr, payload []byte) {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice()[:4])}
	if dst.Is6() {
		to = &unix.SockaddrInet6{Addr: dst.As16()}
	}
	if err := unix.Sendto(fd, payload, 0, to); err != nil {
		t.Fatal(err)
	}
}

func TestICMPAndSCTP(t *testing.T) {
	echo := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}
	echo[2], echo[3] = sum16(echo)
	// An SCTP INIT: ports 4000 and 5000, tag 0, CRC32c, chunk INIT of 20 bytes.
	init := []byte{0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 9, 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1}
	putCRC32c(init)
	for _, tc := range []struct {
		name          string
		family, proto int
		dst           string
		payload       []byte
		want          func(f Flow) bool
	}{
		{"icmp", unix.AF_INET, 1, "192.0.2.1", echo,
			func(f Flow) bool { return f.Orig.ICMPID == 0x1234 && f.Orig.ICMPType == 8 && f.Reply.ICMPType == 0 }},
		{"icmpv6", unix.AF_INET6, 58, "2001:db8:2::1", []byte{128, 0, 0, 0, 0x12, 0x34, 0, 1},
			func(f Flow) bool { return f.Orig.ICMPID == 0x1234 && f.Orig.ICMPType == 128 && f.Reply.ICMPType == 129 }},
		{"sctp", unix.AF_INET, 132, "192.0.2.1", init,
			func(f Flow) bool { return f.Orig.Src.Port() == 4000 && f.Orig.Dst.Port() == 5000 }},
		{"sctp6", unix.AF_INET6, 132, "2001:db8:2::1", init,
			func(f Flow) bool { return f.Orig.Src.Port() == 4000 && f.Orig.Dst.Port() == 5000 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t)
			dst := netip.MustParseAddr(tc.dst)
			rawFlow(t, tc.family, tc.proto, dst, tc.payload)
			mine := Filter{Match: func(f *Flow) bool { return int(f.Proto) == tc.proto && f.Orig.Dst.Addr() == dst }}
			flows := dump(t, c, mine)
			if len(flows) != 1 || !tc.want(flows[0]) {
				t.Fatalf("flows %+v", flows)
			}
			if !del(t, c, flows[0]) || len(dump(t, c, mine)) != 0 {
				t.Error("not deleted")
			}
		})
	}
}

func TestUsageAndStats(t *testing.T) {
	c := open(t)
	_, limit, err := c.Usage(t.Context())
	if err != nil || limit == 0 {
		t.Fatalf("limit %d, error %v", limit, err)
	}
	before, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connect(t, "tcp4", "198.51.100.10:80", "10.1.1.1:8080")
	count, _, err := c.Usage(t.Context())
	if err != nil || count < 1 {
		t.Fatalf("%d flows, error %v", count, err)
	}
	// No TCP packet has no flag at all.
	noFlags := []byte{0x0f, 0xa0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 5 << 4, 0, 0, 0, 0, 0, 0, 0}
	rawFlow(t, unix.AF_INET, unix.IPPROTO_TCP, netip.MustParseAddr("192.0.2.1"), noFlags)
	after, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Invalid <= before.Invalid {
		t.Errorf("invalid went from %d to %d", before.Invalid, after.Invalid)
	}
}

func TestStoppedAndCancelledDumps(t *testing.T) {
	c := open(t)
	makeFlows(t, 3000)
	for range 3 {
		seen := 0
		err := c.Dump(t.Context(), Filter{}, func(Flow) bool { seen++; return seen < 10 })
		if err != nil || seen != 10 {
			t.Fatalf("%d flows, error %v", seen, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Dump(ctx, Filter{}, func(Flow) bool { cancel(); return true })
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := c.Dump(ctx, Filter{}, func(Flow) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Fatalf("a dump with a context that had ended: %v", err)
	}
	if n := len(dump(t, c, Filter{})); n < 3000 {
		t.Errorf("%d flows after the rest, want 3000", n)
	}
	for _, err := range c.DNATed(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("iterator: %v", err)
		}
	}
}

func TestDeleteInsideDump(t *testing.T) {
	c := open(t)
	makeFlows(t, 500)
	gone := 0
	err := c.Dump(t.Context(), Filter{}, func(f Flow) bool {
		if del(t, c, f) {
			gone++
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(dump(t, c, Filter{})); n != 0 || gone < 500 {
		t.Errorf("%d deleted, %d left", gone, n)
	}
}

func TestClosedConn(t *testing.T) {
	c := open(t)
	c.Close()
	if err := c.Dump(t.Context(), Filter{}, func(Flow) bool { return true }); err == nil {
		t.Error("a dump on a closed Conn")
	}
}
