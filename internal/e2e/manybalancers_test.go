package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"weir/internal/lab"
)

// answerWhereAsked makes backends send their answers to the balancer that the request came
// from, by its link-layer address, as a site with several balancers that translate has to: another
// one would take an answer for the first packet of a connection, and not translate it back.
func (d *directSite) answerWhereAsked() {
	d.t.Helper()
	needTool(d.t, "nft")
	rules, routes := "", ""
	for i, s := range d.nodes {
		mac, err := s.Gateway.MAC(segmentDev)
		check(d.t, err)
		mark := 1 + i
		rules += fmt.Sprintf("ether saddr %s ct mark set %d\n", mac, mark)
		for _, f := range families {
			routes += fmt.Sprintf("ip -%d rule add fwmark %d table %d\nip -%d route add default via %s dev %s table %d\n",
				f, mark, 100+mark, f, addrOf(s.Gateway, f), lab.HostDev, 100+mark)
		}
	}
	text := "table inet back {\nchain in {\ntype filter hook prerouting priority -150\n" + rules +
		"}\nchain out {\ntype route hook output priority -150\nmeta mark set ct mark\n}\n}\n"
	for _, h := range d.Backends {
		_, err := h.Run("sh", "-ec", routes+"nft -f - <<'end'\n"+text+"end\n")
		check(d.t, err)
	}
}

// takeAway takes the last balancer away: the router sends its connections to the others.
func (d *directSite) takeAway() {
	d.t.Helper()
	last := len(d.nodes) - 1
	d.spread(d.nodes[:last]...)
	check(d.t, d.nodes[last].Gateway.SetLink(segmentDev, false))
}

// openAll is openMany, some at a time.
func (s *site) openAll(t *testing.T, target netip.AddrPort, n int) []openTalk {
	t.Helper()
	out := make([]openTalk, n)
	var wg sync.WaitGroup
	const room = 10
	for at := range room {
		wg.Go(func() {
			for i := at; i < n && !t.Failed(); i += room {
				out[i] = s.openMany(t, target, 1)[0]
			}
		})
	}
	wg.Wait()
	return out
}

// newManyNAT makes a site of three balancers that translate, with the same file: a steered
// service on vip 1 and one with a Maglev table on vip 2.
func newManyNAT(t *testing.T) *directSite {
	t.Helper()
	d := newDirectSite(t, 3, 3)
	d.answerWhereAsked()
	d.serve("tcp", d.Backends, 7)
	for _, s := range d.nodes {
		s.startSteering(s.steered(groups(group("rest", s.Backends...), group("two", s.Backends[1:]...)),
			"rules:", "  - {source_ports: 10100-10400, to: two}") +
			services(service("plain", listenOn(2, "7/tcp"), backendList(on("", s.Backends...)...), "balance: maglev")))
	}
	return d
}

// TestManyBalancersNAT has a router share connections among three balancers that translate, with
// the same file, and takes one away. Whoever gets its packets then picks them up where they were:
// the first data of a client begins the connection there, and the same table has the same
// backend. So all go on, also those that the router shares anew between the two that stay.
func TestManyBalancersNAT(t *testing.T) {
	t.Parallel()
	const conns = 500 // in each family
	d := newManyNAT(t)
	names := []string{"steered", "plain"} // on vip 1 and 2
	open := map[string][]openTalk{}
	begun := func(name string) (each []uint64) {
		for _, s := range d.nodes {
			each = append(each, s.status(name).Total.NewConnections)
		}
		return each
	}
	before := map[string][]uint64{}
	for i, name := range names {
		for _, f := range families {
			open[name] = append(open[name], d.openAll(t, netip.AddrPortFrom(vip(f, 1+i), 7), conns)...)
		}
		before[name] = begun(name)
		for i, n := range before[name] {
			if n < conns/3 {
				t.Errorf("%s: balancer %d got %d connections: the router does not share", name, i+1, n)
			}
		}
	}
	d.takeAway()
	for _, name := range names {
		on, moved := 0, 0
		for _, o := range open[name] {
			switch id, err := o.alive(); {
			case err != nil:
				t.Errorf("%s: %s of %s: %v", name, o.from, o.id, err)
			case id != o.id:
				moved++
			default:
				on++
			}
		}
		was, is := before[name], begun(name)
		t.Logf("%s: %d of %d connections go on after one of three balancers went, %d with another backend; they had begun %v, and two picked up %d and %d",
			name, on, len(open[name]), moved, was, is[0]-was[0], is[1]-was[1])
		if on != len(open[name]) || is[0]+is[1]-was[0]-was[1] < was[2] {
			t.Fail()
		}
	}
	for _, s := range d.nodes {
		s.stop()
	}
}
