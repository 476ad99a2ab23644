package vip

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

// host is a network namespace: a box of the test's network.
type host struct {
	t  testing.TB
	ns netns.NsHandle
	*netlink.Handle
}

// newHost makes an empty namespace that ends with the test.
func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t}
	onThread(t, func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		var err error
		if h.ns, err = netns.Get(); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	var err error
	if h.Handle, err = netlink.NewHandleAt(h.ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Handle.Close()
		h.ns.Close()
	})
	return h
}

// onThread runs fn on a thread of its own, which dies with it: fn may change namespaces.
func onThread(t testing.TB, fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		fn()
	}()
	<-done
}

// run runs fn with the thread in the host's namespace.
func (h *host) run(fn func()) {
	onThread(h.t, func() {
		if err := netns.Set(h.ns); err != nil {
			h.t.Error(err)
			return
		}
		fn()
	})
}

// keeper opens a Keeper in the host.
func (h *host) keeper(o Options) *Keeper {
	h.t.Helper()
	var k *Keeper
	h.run(func() {
		var err error
		if k, err = Open(o); err != nil {
			h.t.Error(err)
		}
	})
	if k == nil {
		h.t.FailNow()
	}
	h.t.Cleanup(func() { k.Close() })
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait checks until ok, for as long as patience lasts. It is for what the kernel does in
// its own time.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// cable joins a device of a and a device of b, sets both up, and waits for the carrier.
func cable(t testing.TB, a *host, adev string, b *host, bdev string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = adev
	must(t, a.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bdev, PeerNamespace: netlink.NsFd(b.ns)}))
	must(t, a.LinkSetUp(a.link(adev)))
	must(t, b.LinkSetUp(b.link(bdev)))
	for _, end := range []struct {
		*host
		dev string
	}{{a, adev}, {b, bdev}} {
		wait(t, end.dev+" has a carrier", func() bool {
			return end.link(end.dev).Attrs().RawFlags&unix.IFF_RUNNING != 0
		})
	}
}

func (h *host) link(name string) netlink.Link {
	h.t.Helper()
	l, err := h.LinkByName(name)
	must(h.t, err)
	return l
}

// operatorAdds puts an address on a device as somebody at a shell does.
func (h *host) operatorAdds(dev, prefix string, replace bool) {
	h.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(h.t, err)
	a.Flags = unix.IFA_F_NODAD
	if replace {
		must(h.t, h.AddrReplace(h.link(dev), a))
		return
	}
	must(h.t, h.AddrAdd(h.link(dev), a))
}

// holds returns the addresses of a device, without link-local ones, and their flags.
func (h *host) holds(dev string) map[string]int {
	h.t.Helper()
	addrs, err := h.AddrList(h.link(dev), netlink.FAMILY_ALL)
	must(h.t, err)
	out := map[string]int{}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			out[a.IPNet.String()] = a.Flags
		}
	}
	return out
}

// neighbour returns the Ethernet address by which a host knows an address; "" if it does not.
func (h *host) neighbour(dev string, addr netip.Addr) string {
	h.t.Helper()
	neighs, err := h.NeighList(h.link(dev).Attrs().Index, netlink.FAMILY_ALL)
	must(h.t, err)
	for _, n := range neighs {
		if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() == addr {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// capture is an AF_PACKET socket that sees what arrives on a device.
type capture struct {
	t  testing.TB
	fd int
}

func (h *host) capture(dev string) *capture {
	h.t.Helper()
	c := &capture{h.t, -1}
	h.run(func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ALL)))
		if err == nil {
			c.fd = fd
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: h.link(dev).Attrs().Index})
		}
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
		}
		if err != nil {
			h.t.Error(os.NewSyscallError("capture", err))
		}
	})
	h.t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// etherMarker is a local experimental EtherType, IEEE 802.
const etherMarker = 0x88b5

// until returns the announcements that arrived, in order, before the marker: ARP, and
// neighbour advertisements. What else the kernel says of itself is passed over.
func (c *capture) until() [][]byte {
	c.t.Helper()
	var out [][]byte
	for range 1000 {
		b := make([]byte, 2048)
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if err != nil {
			c.t.Fatalf("capture: %v, after %d frames", err, len(out))
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		b = b[:n]
		switch {
		case n > 14 && b[12] == etherMarker>>8 && b[13] == etherMarker&0xff:
			return out
		case n > 14 && b[12] == 0x08 && b[13] == 0x06, n > 54 && b[12] == 0x86 && b[20] == 58 && b[54] == 136:
			out = append(out, b)
		}
	}
	c.t.Fatal("capture: too much of other things")
	return nil
}

// mark sends the frame that until waits for, behind all that was sent before.
func (h *host) mark(k *Keeper, dev string) {
	h.t.Helper()
	frame := append(ethernet(broadcast, mac{2}, etherMarker), make([]byte, 46)...)
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(etherMarker), Ifindex: h.link(dev).Attrs().Index, Halen: 6}
	must(h.t, unix.Sendto(k.packets, frame, 0, to))
}
