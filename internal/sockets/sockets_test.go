package sockets

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"weir/internal/lab"
	"weir/internal/model"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

func TestListeners(t *testing.T) {
	lab.Require(t)
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var want []Listener
	for _, where := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		network := "4"
		if where[0] == '[' {
			network = "6"
		}
		s, err := net.Listen("tcp"+network, where)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		u, err := net.ListenPacket("udp"+network, where)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		for p, a := range map[model.Proto]net.Addr{model.TCP: s.Addr(), model.UDP: u.LocalAddr()} {
			ap := netip.MustParseAddrPort(a.String())
			want = append(want, Listener{p, ap.Addr(), ap.Port()})
		}
	}
	// Connections are no listeners.
	to := want[slices.IndexFunc(want, func(li Listener) bool { return li.Proto == model.TCP && li.Addr == netip.MustParseAddr("127.0.0.1") })]
	var own []uint16
	for _, network := range []string{"tcp", "udp"} {
		c, err := net.Dial(network, netip.AddrPortFrom(to.Addr, to.Port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		own = append(own, netip.MustParseAddrPort(c.LocalAddr().String()).Port())
	}
	got, err := l.Listeners()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%v is not seen", w)
		}
	}
	for i, p := range []model.Proto{model.TCP, model.UDP} {
		if slices.ContainsFunc(got, func(li Listener) bool {
			return li.Proto == p && li.Port == own[i] && !slices.Contains(want, li)
		}) {
			t.Errorf("a connection's port %d of %s is taken for a listener", own[i], p)
		}
	}
}

func TestAddresses(t *testing.T) {
	lab.Require(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("198.51.100.7/32")
	if err := netlink.AddrAdd(lo, a); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.AddrDel(lo, a) }()
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for dev, want := range map[string]bool{"": true, "lo": true, "weir-none": false} {
		got, err := l.Addresses(dev)
		if err != nil || slices.Contains(got, netip.MustParseAddr("198.51.100.7")) != want {
			t.Errorf("device %q: %v, %v", dev, got, err)
		}
	}
}

func TestEphemeral(t *testing.T) {
	if r := Ephemeral(); r.Lo == 0 || r.Lo > r.Hi {
		t.Error(r)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, b []byte) {
		if li, ok := parse(b, model.TCP); ok && (!li.Addr.IsValid() || li.Port == 0) {
			t.Error(li)
		}
	})
}
