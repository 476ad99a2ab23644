package look

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/internal/lab"
)

// TestOwn gives a box addresses and routes, one of them over two gateways, of which nothing
// else may be in the list.
func TestOwn(t *testing.T) {
	lab.Require(t)
	n, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	host := func(name string) *lab.Host {
		h, err := n.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	box, other := host("box"), host("other")
	p := netip.MustParsePrefix
	err = n.Link(lab.End{Host: box, Name: "wan", Addrs: []netip.Prefix{p("198.18.0.1/24"), p("2001:db8:1::1/64")}},
		lab.End{Host: other, Name: "up", Addrs: []netip.Prefix{p("198.18.0.2/24")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"route", "add", "default", "via", "198.18.0.2"}, {"-6", "route", "add", "default", "via", "2001:db8:1::2"},
		{"route", "add", "10.9.0.0/16", "nexthop", "via", "198.18.0.3", "nexthop", "via", "198.18.0.4"}} {
		if out, err := box.Run("ip", args...); err != nil {
			t.Skipf("ip %v: %v %s", args, err, out)
		}
	}
	var own []Own
	err = box.Do(func() error {
		l, err := Open()
		if err != nil {
			return err
		}
		defer l.Close()
		own, err = l.Own()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range own {
		if !o.Addr.IsLinkLocalUnicast() {
			got = append(got, o.What)
		}
	}
	want := []string{"address 127.0.0.1 of lo", "address 198.18.0.1 of wan", "gateway 198.18.0.2", "gateway 198.18.0.3",
		"gateway 198.18.0.4", "address ::1 of lo", "address 2001:db8:1::1 of wan", "gateway 2001:db8:1::2"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
