package segment_test

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/segment"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSegment looks from a box at a neighbour, at somebody behind a router, at the box itself
// and at nobody, in both families, and has the kernel find who is on the segment.
func TestSegment(t *testing.T) {
	lab.Require(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	n, err := lab.New()
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	box, err := n.Host("box")
	check(t, err)
	peer, err := n.Host("peer")
	check(t, err)
	end := func(h *lab.Host, name string, addrs ...string) lab.End {
		e := lab.End{Host: h, Name: name}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, netip.MustParsePrefix(a))
		}
		return e
	}
	check(t, n.Link(end(box, "eth0", "10.1.1.1/24", "2001:db8:1::1/64"), end(peer, "eth0", "10.1.1.2/24", "2001:db8:1::2/64")))
	check(t, box.Route(netip.MustParsePrefix("10.2.0.0/16"), netip.MustParseAddr("10.1.1.2"), "eth0"))
	check(t, box.Route(netip.MustParsePrefix("2001:db8:2::/64"), netip.MustParseAddr("2001:db8:1::2"), "eth0"))
	var k *segment.Keeper
	check(t, box.Do(func() (err error) { k, err = segment.Open(); return err }))
	defer k.Close()

	s := &model.Service{Name: "web", Forward: model.ForwardDirect, In: []string{"eth0", "eth9"}}
	for _, a := range []string{"10.1.1.2", "10.1.1.3", "10.2.0.1", "10.1.1.1", "192.0.2.1",
		"2001:db8:1::2", "2001:db8:2::1", "2001:db8:1::1", "2001:db8:9::1"} {
		s.Backends = append(s.Backends, model.Backend{Addr: netip.MustParseAddr(a), Weight: 1})
	}
	got, err := k.See(&model.Config{Services: []*model.Service{s}})
	check(t, err)
	index := got.Devices["eth0"]
	want := &model.Wires{Devices: map[string]int{"eth0": index}, Ways: map[netip.Addr]string{
		netip.MustParseAddr("10.1.1.2"): "eth0", netip.MustParseAddr("10.1.1.3"): "eth0", netip.MustParseAddr("2001:db8:1::2"): "eth0"}}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" || index == 0 {
		t.Errorf("(-want +got):\n%s", d)
	}

	// What somebody has set by hand stays.
	_, err = box.Run("ip", "neigh", "replace", "10.1.1.3", "lladdr", "02:00:00:00:00:09", "nud", "permanent", "dev", "eth0")
	check(t, err)
	check(t, k.Refresh(got))
	mac, err := peer.MAC("eth0")
	check(t, err)
	for a, lladdr := range map[string]string{"10.1.1.2": mac.String(), "2001:db8:1::2": mac.String(), "10.1.1.3": "02:00:00:00:00:09 PERMANENT"} {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			out, err := box.Run("ip", "neigh", "show", "to", a)
			check(t, err)
			if strings.Contains(out, "lladdr "+lladdr) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %q; want %s", a, out, lladdr)
			}
		}
	}
	check(t, k.Refresh(got)) // of what is known
	check(t, box.SetLink("eth0", false))
	check(t, k.Refresh(got)) // of a device that is down, which findings tell of
}
