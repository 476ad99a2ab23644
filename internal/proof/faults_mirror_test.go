package proof

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// boxDev is the gateway's device on the collector's network.
const boxDev = "eth-box"

var (
	gate4, gate6 = netip.MustParsePrefix("10.9.9.254/24"), netip.MustParsePrefix("2001:db8:99::fe/64")
	box4, box6   = netip.MustParsePrefix("10.9.9.9/24"), netip.MustParsePrefix("2001:db8:99::9/64")
)

// mirrored starts weir with a mirror of all that passes, to a collector on a network of its own,
// and load.
func mirrored(tt *testing.T) (*town, *lab.Host, *load) {
	tool(tt, "tc")
	tool(tt, "ip")
	t := newTown(tt)
	box := must(t.Net.Host("box"))(tt)
	check(tt, t.Net.Link(lab.End{Host: t.Gateway, Name: boxDev, Addrs: []netip.Prefix{gate4, gate6}},
		lab.End{Host: box, Name: lab.HostDev, Addrs: []netip.Prefix{box4, box6}}))
	cfg := t.even()
	cfg.Mirrors = []*model.Mirror{{Name: "all", To: []netip.Addr{box4.Addr(), box6.Addr()}, Take: 1, Of: 1,
		Match: model.MirrorMatch{Requests: true, Answers: true}}}
	t.write(cfg)
	t.start()
	l := t.startLoad()
	l.more(int(l.rate))
	return t, box, l
}

// copies returns what became of the copies of both families.
func (t *town) copies() (m engine.MirrorStatus, c engine.MirrorCollector) {
	t.tb.Helper()
	list := must(t.api().Mirrors(t.tb.Context()))(t.tb).Mirrors
	if len(list) != 1 {
		t.tb.Fatalf("%d mirrors", len(list))
	}
	for _, f := range list[0].Families {
		c.Made += f.Made
		c.Returned += f.Returned
		c.Failed.NoRoute += f.Failed.NoRoute
		c.Failed.NoNeighbour += f.Failed.NoNeighbour
		c.QueueDropped = f.QueueDropped // of the device, which is the same
	}
	return list[0], c
}

// gw runs a command on the gateway.
func (t *town) gw(name string, args ...string) {
	t.tb.Helper()
	must(t.Gateway.Run(name, args...))(t.tb)
}

// collectorFails makes the collector's link slow, its box dumb, and then its device go, while the
// box has a default route.
func collectorFails(tt *testing.T) (saw string) {
	t, box, l := mirrored(tt)
	client := t.Clients[1]
	check(tt, t.Gateway.Route(netip.MustParsePrefix("0.0.0.0/0"), client.V4, lab.OutsideDev))
	check(tt, t.Gateway.Route(netip.MustParsePrefix("::/0"), client.V6, lab.OutsideDev))
	grows := func(what string, n func(engine.MirrorCollector) uint64) {
		tt.Helper()
		_, c := t.copies()
		before := n(c)
		until(tt, patience, what, func() bool {
			l.more(int(l.rate / 4))
			_, c := t.copies()
			return n(c) > before
		})
	}
	t.gw("tc", "qdisc", "add", "dev", boxDev, "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "3000")
	grows("the slow link's drops", func(c engine.MirrorCollector) uint64 { return c.QueueDropped })
	t.gw("tc", "qdisc", "del", "dev", boxDev, "root")
	check(tt, box.SetLink(lab.HostDev, false))
	for _, family := range []string{"-4", "-6"} {
		t.gw("ip", family, "neigh", "flush", "dev", boxDev)
	}
	grows("copies for nobody", func(c engine.MirrorCollector) uint64 { return c.Failed.NoNeighbour })
	t.gw("ip", "link", "set", boxDev, "down")
	grows("copies without a way", func(c engine.MirrorCollector) uint64 { return c.Failed.NoRoute })
	l.more(int(l.rate))
	res := l.stop()
	l.flawless(res)
	_, c := t.copies()
	for _, words := range []string{"queue of " + boxDev, "does not answer", "no network of this machine"} {
		if !strings.Contains(t.log.String(), words) {
			tt.Errorf("weir does not say %q:\n%s", words, t.log)
		}
	}
	return fmt.Sprintf("%s; of %d copies %d were lost in the queue, %d without a neighbour, %d without a route", ofAll(res),
		c.Made, c.QueueDropped, c.Failed.NoNeighbour, c.Failed.NoRoute)
}

// collectorRoutesBack lets the collector forward what it gets.
func collectorRoutesBack(tt *testing.T) (saw string) {
	t, box, l := mirrored(tt)
	for _, r := range []struct {
		to  string
		via netip.Addr
	}{{"0.0.0.0/0", gate4.Addr()}, {"::/0", gate6.Addr()}} {
		check(tt, box.Route(netip.MustParsePrefix(r.to), r.via, lab.HostDev))
	}
	for key, value := range map[string]string{"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.eth0.rp_filter": "0",
		"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.eth0.send_redirects": "0",
		"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"} {
		check(tt, box.Sysctl(key, value))
	}
	until(tt, patience, "the mirror stops", func() bool {
		l.more(int(l.rate / 4))
		m, _ := t.copies()
		return m.State == "stopped"
	})
	m, c := t.copies()
	if !strings.Contains(m.Reason, "came in again by "+boxDev) {
		tt.Errorf("the mirror stopped: %s", m.Reason)
	}
	l.more(int(l.rate))
	res := l.stop()
	l.flawless(res)
	return fmt.Sprintf("%s; %d of %d copies came back before the mirror was stopped", ofAll(res), c.Returned, c.Made)
}
