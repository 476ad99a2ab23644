package vip

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	vip4  = netip.MustParseAddr("198.51.100.10")
	vip6  = netip.MustParseAddr("2001:db8::10")
	both  = []netip.Addr{vip4, vip6}
	wants = []Want{{"eth1", vip4}, {"eth1", vip6}}
)

// pair is a box with a Keeper and a neighbour, joined by eth1 and peer1.
func pair(t *testing.T, o Options) (box, peer *host, k *Keeper) {
	t.Helper()
	needKernel(t)
	box, peer = newHost(t), newHost(t)
	cable(t, box, "eth1", peer, "peer1")
	return box, peer, box.keeper(o)
}

func syncNow(t *testing.T, k *Keeper, w []Want) Report {
	t.Helper()
	rep, err := k.Sync(t.Context(), w)
	must(t, err)
	return rep
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpNet, cmpPrefix); d != "" {
		t.Errorf("%s: -want +got:\n%s", what, d)
	}
}

func TestSyncHoldsAndClears(t *testing.T) {
	box, _, k := pair(t, Options{})
	box.operatorAdds("eth1", "192.0.2.1/24", false)
	before := box.holds("eth1")

	equal(t, "first sync", syncNow(t, k, wants), Report{Added: wants})
	const flags = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_PERMANENT
	held := box.holds("eth1")
	if held["198.51.100.10/32"] != flags || held["2001:db8::10/128"] != flags|unix.IFA_F_NODAD || len(held) != len(before)+2 {
		t.Fatalf("held %#x", held)
	}
	routes, err := box.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	must(t, err)
	for _, r := range routes {
		if r.Dst != nil && (r.Dst.Contains(vip4.AsSlice()) || r.Dst.Contains(vip6.AsSlice())) {
			t.Errorf("an address brought a route: %v", r)
		}
	}

	equal(t, "second sync", syncNow(t, k, wants), Report{})
	// Another process, after a kill -9, knows them by the kernel's table.
	next := box.keeper(Options{})
	equal(t, "sync after a restart", syncNow(t, next, wants), Report{})
	equal(t, "sync with one less", syncNow(t, next, wants[:1]), Report{Removed: []Have{ours("eth1", "2001:db8::10/128")}})

	rep, err := k.Clear(t.Context())
	must(t, err)
	equal(t, "clear", rep, Report{Removed: []Have{ours("eth1", "198.51.100.10/32")}})
	equal(t, "held in the end", box.holds("eth1"), before)
}

func TestForeignAddressIsLeftAlone(t *testing.T) {
	box, _, k := pair(t, Options{})
	box.operatorAdds("eth1", "198.51.100.10/24", false)
	box.operatorAdds("eth1", "2001:db8::10/64", false)
	before := box.holds("eth1")
	foreign := []Have{theirs("eth1", "198.51.100.10/24"), theirs("eth1", "2001:db8::10/64")}
	equal(t, "sync", syncNow(t, k, wants), Report{Foreign: foreign})
	rep, err := k.Clear(t.Context())
	must(t, err)
	equal(t, "clear", rep, Report{})
	equal(t, "held", box.holds("eth1"), before)
	if err := <-k.Announce(t.Context(), "eth1", both); err == nil || !strings.Contains(err.Error(), "198.51.100.10") {
		t.Errorf("announcing it: %v", err)
	}
}

func TestOperatorTakesOver(t *testing.T) {
	box, _, k := pair(t, Options{})
	syncNow(t, k, wants)
	box.operatorAdds("eth1", "198.51.100.10/32", true)
	box.operatorAdds("eth1", "2001:db8::10/128", true)
	foreign := []Have{theirs("eth1", "198.51.100.10/32"), theirs("eth1", "2001:db8::10/128")}
	equal(t, "sync", syncNow(t, k, wants), Report{Foreign: foreign})
	rep, err := k.Clear(t.Context())
	must(t, err)
	equal(t, "clear", rep, Report{})
	if held := box.holds("eth1"); len(held) != 2 {
		t.Errorf("held %v", held)
	}
}

func TestMoveToAnotherDevice(t *testing.T) {
	box, peer, k := pair(t, Options{})
	cable(t, box, "eth2", peer, "peer2")
	syncNow(t, k, wants)
	moved := []Want{{"eth2", vip4}, {"eth2", vip6}}
	equal(t, "sync", syncNow(t, k, moved), Report{
		Added:   moved,
		Removed: []Have{ours("eth1", "198.51.100.10/32"), ours("eth1", "2001:db8::10/128")},
	})
	if a, b := box.holds("eth1"), box.holds("eth2"); len(a) != 0 || len(b) != 2 {
		t.Errorf("eth1 holds %v, eth2 %v", a, b)
	}
	// The box still answers for them: the local routes are the new device's. For IPv6 the
	// kernel makes them a little later, in a work queue.
	for _, a := range both {
		wait(t, "a local route to "+a.String(), func() bool {
			r, err := box.RouteGet(a.AsSlice())
			return err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL
		})
	}
}

func TestErrorsNameWhatIsWrong(t *testing.T) {
	box, _, k := pair(t, Options{})
	rep, err := k.Sync(t.Context(), append([]Want{{"eht1", vip4}}, wants...))
	if !errors.Is(err, ErrNoDevice) || err.Error() != `vip: add 198.51.100.10: no such device: "eht1"; there are eth1, lo` {
		t.Errorf("no device: %v", err)
	}
	equal(t, "the rest is done", rep, Report{Added: wants})
	if err := <-k.Announce(t.Context(), "eht1", both); !errors.Is(err, ErrNoDevice) {
		t.Errorf("announce: %v", err)
	}
	_, err = k.Clear(t.Context())
	must(t, err)

	box.run(func() { err = os.WriteFile("/proc/sys/net/ipv6/conf/eth1/disable_ipv6", []byte("1"), 0) })
	must(t, err)
	rep, err = k.Sync(t.Context(), wants)
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "add 2001:db8::10 to eth1") || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("IPv6 disabled: %v", err)
	}
	equal(t, "IPv4 is done", rep, Report{Added: wants[:1]})

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Clear(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that had ended: %v", err)
	}
}

func TestDownDevice(t *testing.T) {
	box, _, k := pair(t, Options{})
	must(t, box.LinkSetDown(box.link("eth1")))
	equal(t, "sync", syncNow(t, k, wants), Report{Added: wants, Down: []string{"eth1"}})
	if err := <-k.Announce(t.Context(), "eth1", both); !errors.Is(err, ErrDown) {
		t.Errorf("announce: %v", err)
	}
	// Setting a device down costs IPv6 addresses; the next sync brings them back.
	must(t, box.LinkSetUp(box.link("eth1")))
	syncNow(t, k, wants)
	must(t, box.LinkSetDown(box.link("eth1")))
	equal(t, "sync after down", syncNow(t, k, wants), Report{Added: wants[1:], Down: []string{"eth1"}})
}

// handTimer lets the test end the pauses of an announcement.
type handTimer struct {
	pauses chan time.Duration
	fire   chan time.Time
}

func newHandTimer() *handTimer {
	return &handTimer{make(chan time.Duration, len(pauses)), make(chan time.Time)}
}

func (h *handTimer) after(d time.Duration) <-chan time.Time {
	h.pauses <- d
	return h.fire
}

func TestAnnouncementArrives(t *testing.T) {
	timer := newHandTimer()
	box, peer, k := pair(t, Options{After: timer.after})
	c := peer.capture("peer1")
	syncNow(t, k, wants)
	m := mac(box.link("eth1").Attrs().HardwareAddr)
	round := append(announcements(m, vip4, false), announcements(m, vip6, false)...)

	result := k.Announce(t.Context(), "eth1", both)
	for i, pause := range []time.Duration{time.Second, 2 * time.Second} {
		if got := <-timer.pauses; got != pause { // asked for when the round is out
			t.Fatalf("pause %v, want %v", got, pause)
		}
		box.mark(k, "eth1")
		if got := c.until(); !slices.EqualFunc(got, round, bytes.Equal) {
			t.Fatalf("round %d:\n got %x\nwant %x", i, got, round)
		}
		timer.fire <- time.Time{}
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	box.mark(k, "eth1")
	if got := c.until(); !slices.EqualFunc(got, round, bytes.Equal) {
		t.Fatalf("last round:\n got %x\nwant %x", got, round)
	}
}

func TestRouterSaysSo(t *testing.T) {
	box, peer, k := pair(t, Options{})
	var err error
	box.run(func() { err = os.WriteFile("/proc/sys/net/ipv6/conf/eth1/forwarding", []byte("1"), 0) })
	must(t, err)
	c := peer.capture("peer1")
	syncNow(t, k, wants[1:])
	ctx, cancel := context.WithCancel(t.Context())
	result := k.Announce(ctx, "eth1", both[1:])
	cancel()
	must(t, <-result)
	box.mark(k, "eth1")
	want := announcements(mac(box.link("eth1").Attrs().HardwareAddr), vip6, true)
	if got := c.until(); !slices.EqualFunc(got, want, bytes.Equal) {
		t.Fatalf("\n got %x\nwant %x", got, want)
	}
}

// What was taken away is not announced any more: another box may hold it.
func TestNothingIsAnnouncedAfterClear(t *testing.T) {
	timer := newHandTimer()
	box, peer, k := pair(t, Options{After: timer.after})
	c := peer.capture("peer1")
	syncNow(t, k, wants)
	result := k.Announce(t.Context(), "eth1", both)
	box.mark(k, "eth1")
	if got := c.until(); len(got) != 3 {
		t.Fatalf("%d frames in the first round, want 3", len(got))
	}
	_, err := k.Clear(t.Context())
	must(t, err)
	<-timer.pauses
	timer.fire <- time.Time{}
	must(t, <-result)
	box.mark(k, "eth1")
	if got := c.until(); len(got) != 0 {
		t.Errorf("announced after clear: %x", got)
	}
}

func TestCloseEndsAnnouncements(t *testing.T) {
	needKernel(t)
	box, peer := newHost(t), newHost(t)
	cable(t, box, "eth1", peer, "peer1")
	var k *Keeper
	never := func(time.Duration) <-chan time.Time { return nil }
	box.run(func() {
		var err error
		if k, err = Open(Options{After: never}); err != nil {
			t.Error(err)
		}
	})
	syncNow(t, k, wants)
	result := k.Announce(t.Context(), "eth1", both)
	must(t, k.Close())
	must(t, <-result)
	if held := box.holds("eth1"); len(held) != 2 {
		t.Errorf("close took addresses away: %v", held)
	}
}

func TestNobodyToTellOnLoopback(t *testing.T) {
	_, _, k := pair(t, Options{})
	syncNow(t, k, []Want{{"lo", vip4}})
	ctx, cancel := context.WithCancel(t.Context())
	result := k.Announce(ctx, "lo", both[:1])
	cancel()
	must(t, <-result)
}

// The address moves from one box to another, and a client on the same network follows
// without saying a word.
func TestNeighbourFollowsTheAddress(t *testing.T) {
	needKernel(t)
	client, a, b := newHost(t), newHost(t), newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	must(t, client.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	br := client.link("br0")
	for port, box := range map[string]*host{"porta": a, "portb": b} {
		cable(t, box, "eth1", client, port)
		must(t, client.LinkSetMaster(client.link(port), br))
	}
	must(t, client.LinkSetUp(br))
	client.operatorAdds("br0", "198.51.100.1/24", false)
	client.operatorAdds("br0", "2001:db8::1/64", false)
	for _, box := range []*host{a, b} {
		route := func(p string) {
			_, dst, _ := net.ParseCIDR(p)
			must(t, box.RouteAdd(&netlink.Route{LinkIndex: box.link("eth1").Attrs().Index, Dst: dst}))
		}
		route("198.51.100.0/24")
		route("2001:db8::/64")
	}
	macA, macB := a.link("eth1").Attrs().HardwareAddr.String(), b.link("eth1").Attrs().HardwareAddr.String()
	ka, kb := a.keeper(Options{}), b.keeper(Options{})

	syncNow(t, ka, wants)
	for _, v := range both {
		wait(t, "the client finds "+v.String(), func() bool {
			client.say(v)
			return client.neighbour("br0", v) == macA
		})
	}
	_, err := ka.Clear(t.Context())
	must(t, err)
	syncNow(t, kb, wants)
	for _, v := range both {
		if got := client.neighbour("br0", v); got != macA {
			t.Fatalf("%s is at %q before it was announced, want %s", v, got, macA)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := kb.Announce(ctx, "eth1", both)
	for _, v := range both {
		wait(t, "the client follows "+v.String(), func() bool { return client.neighbour("br0", v) == macB })
	}
	cancel()
	must(t, <-result)
}

// say sends a datagram, so that the kernel asks for the neighbour.
func (h *host) say(to netip.Addr) {
	h.t.Helper()
	h.run(func() {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err != nil {
			return // no route yet: the caller tries again
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("hello"))
	})
}
