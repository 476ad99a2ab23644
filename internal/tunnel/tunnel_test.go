package tunnel_test

import (
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/tunnel"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSync makes, keeps, changes and removes tunnels, and leaves alone what is not weir's.
func TestSync(t *testing.T) {
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
	check(t, n.Link(lab.End{Host: box, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}},
		lab.End{Host: peer, Name: "eth0"}))
	run := func(args ...string) string {
		t.Helper()
		out, err := box.Run("ip", args...)
		check(t, err)
		return out
	}
	if _, err := box.Run("ip", "link", "add", "weir-vxtra", "type", "vxlan", "id", "9", "dstport", "4789", "remote", "192.0.2.9"); err != nil {
		t.Skip("the kernel has no VXLAN: ", err)
	}
	run("link", "add", "weir-vx7", "type", "bridge") // a name like weir's
	var k *tunnel.Keeper
	check(t, box.Do(func() (err error) { k, err = tunnel.Open(); return err }))
	defer k.Close()
	sync := func(want []model.VXLAN, added, removed string, bad string) {
		t.Helper()
		a, r, err := k.Sync(t.Context(), want)
		if (bad == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), bad) {
			t.Fatalf("error %v; want %q", err, bad)
		}
		slices.Sort(a)
		if got, gone := strings.Join(a, " "), strings.Join(r, " "); got != added || gone != removed {
			t.Fatalf("added %q, removed %q; want %q and %q", got, gone, added, removed)
		}
	}
	four := model.VXLAN{ID: 42, Remote: netip.MustParseAddr("192.0.2.2"), Port: 4789}
	six := model.VXLAN{ID: 16777215, Remote: netip.MustParseAddr("2001:db8::2"), Port: 8472}
	sync([]model.VXLAN{four, six}, "weir-vx16777215 weir-vx42", "", "")
	index := run("-o", "link", "show", "weir-vx42")
	for _, want := range []string{"NOARP", "UP", "mtu 65000", "vxlan id 42 remote 192.0.2.2", "dstport 4789", "nolearning", "addrgenmode none"} {
		if out := run("-d", "link", "show", "weir-vx42"); !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if out := run("-d", "link", "show", "weir-vx16777215"); !strings.Contains(out, "id 16777215 remote 2001:db8::2") || !strings.Contains(out, "dstport 8472") {
		t.Error(out)
	}
	for _, hop := range six.Hops() {
		if out := run("route", "get", hop.String()); !strings.Contains(out, "dev weir-vx16777215") || strings.Contains(out, "via") {
			t.Errorf("the way to %s: %s", hop, out)
		}
	}

	// What is there stays; what others changed is put right.
	run("link", "set", "weir-vx42", "down")
	sync([]model.VXLAN{four, six}, "", "", "")
	if out := run("-o", "link", "show", "weir-vx42"); out != index {
		t.Errorf("another device: %s; it was %s", out, index)
	}
	if out := run("route", "get", "240.0.0.42"); !strings.Contains(out, "dev weir-vx42") {
		t.Error(out)
	}

	// Another end is another tunnel; what is wanted no longer goes.
	four.Remote = netip.MustParseAddr("192.0.2.3")
	sync([]model.VXLAN{four}, "weir-vx42", "weir-vx16777215", "")
	if out := run("-d", "link", "show", "weir-vx42"); !strings.Contains(out, "remote 192.0.2.3") {
		t.Error(out)
	}

	// What is not weir's stays, and one that is in the way does not keep the others away.
	seven := model.VXLAN{ID: 7, Remote: netip.MustParseAddr("192.0.2.4"), Port: 4789}
	nine := model.VXLAN{ID: 9, Remote: netip.MustParseAddr("192.0.2.4"), Port: 4789}
	six.ID = 8
	sync([]model.VXLAN{seven, nine, six}, "weir-vx8", "weir-vx42", "weir-vx7 to 192.0.2.4: there is a device of that name")
	sync(nil, "", "weir-vx8", "")
	if out := run("-o", "link", "show"); !strings.Contains(out, "weir-vxtra") || !strings.Contains(out, "weir-vx7") || strings.Contains(out, "weir-vx8") {
		t.Error(out)
	}
	sync(nil, "", "", "")
}
