package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
)

// TestDirectOneOfAHundred takes one of a hundred backends away and counts, in frames, the
// flows of the other 99 that go elsewhere then. The backends are link-layer addresses that
// somebody set by hand, at one host that takes all frames.
func TestDirectOneOfAHundred(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	needTool(t, "ip")
	const backends, flows, gone = 100, 4000, 41
	dir := t.TempDir()
	n, err := lab.New()
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	var hosts [3]*lab.Host // client, balancer, sink
	for i, name := range []string{"client", "balancer", "sink"} {
		hosts[i], err = n.Host(name)
		check(t, err)
	}
	client, balancer, sink := hosts[0], hosts[1], hosts[2]
	check(t, n.Link(lab.End{Host: client, Name: lab.HostDev, Addrs: inBoth(lab.ClientNet4, lab.ClientNet6, 1)},
		lab.End{Host: balancer, Name: lab.OutsideDev, Addrs: inBoth(lab.ClientNet4, lab.ClientNet6, routerNumber)}))
	check(t, n.Link(lab.End{Host: balancer, Name: lab.InsideDev, Addrs: inBoth(lab.BackendNet4, lab.BackendNet6, routerNumber)},
		lab.End{Host: sink, Name: lab.HostDev}))
	for _, p := range []netip.Prefix{lab.VIPNet4, lab.VIPNet6} {
		via := map[bool]netip.Prefix{true: lab.ClientNet4, false: lab.ClientNet6}[p.Addr().Is4()]
		check(t, client.Route(p, number(via, routerNumber), lab.HostDev))
	}
	var script strings.Builder
	net := map[model.Family]netip.Prefix{model.IPv4: lab.BackendNet4, model.IPv6: lab.BackendNet6}
	owner := map[string]int{} // link-layer address to backend
	for i := range backends {
		mac := fmt.Sprintf("02:00:00:00:00:%02x", i+1)
		owner[mac] = i
		for _, f := range families {
			fmt.Fprintf(&script, "ip neigh replace %s lladdr %s nud permanent dev %s\n", number(net[f], i+1), mac, lab.InsideDev)
		}
	}
	_, err = balancer.Run("sh", "-ec", script.String())
	check(t, err)
	s := &site{t: t, Topology: &lab.Topology{Net: n, Gateway: balancer}, dir: dir, config: filepath.Join(dir, "weir.yaml")}
	write := func(without int) {
		var list []string
		for _, f := range families {
			for i := range backends {
				weight := 1
				if i == without {
					weight = 0
				}
				list = append(list, fmt.Sprintf("{address: %q, weight: %d}", number(net[f], i+1), weight))
			}
		}
		s.apply(services(service("web", listenOn(2, "7/udp"), "["+strings.Join(list, ", ")+"]", "forward: direct", "in: "+lab.OutsideDev)))
	}
	members := func(f model.Family, without int) (out []flow.Member) {
		for i := range backends {
			m := flow.Member{ID: number(net[f], i+1).String(), Weight: 1}
			if i == without {
				m.Weight = 0
			}
			out = append(out, m)
		}
		return out
	}
	write(-1)
	before := map[model.Family][]int{}
	for _, f := range families {
		before[f] = s.whoGets(t, client, sink, f, flows, owner)
	}
	write(gone)
	for _, f := range families {
		after := s.whoGets(t, client, sink, f, flows, owner)
		m := flow.TableSize(backends)
		t0, t1 := flow.Maglev(members(f, -1), m), flow.Maglev(members(f, gone), m)
		slots, others := 0, 0
		for i := range t0 {
			if t0[i] != gone {
				others++
				if t0[i] != t1[i] {
					slots++
				}
			}
		}
		moved, kept := 0, 0
		for i, b := range before[f] {
			switch {
			case after[i] == gone:
				t.Errorf("flow %d still goes to the backend that was taken out", i)
			case b == gone:
			case b != after[i]:
				moved++
			default:
				kept++
			}
		}
		t.Logf("%s: of %d flows of the other 99 backends %d moved (%.2f %%); of %d slots of theirs %d (%.2f %%), table of %d",
			f, moved+kept, moved, 100*float64(moved)/float64(moved+kept), others, slots, 100*float64(slots)/float64(others), m)
		if moved > (moved+kept)/20 {
			t.Errorf("%s: too many moved", f)
		}
	}
}

// whoGets sends a datagram of each of n flows, and returns whose link-layer address it was sent to.
func (s *site) whoGets(t *testing.T, client, sink *lab.Host, f model.Family, n int, owner map[string]int) []int {
	t.Helper()
	const firstPort = 10000
	seen, err := sink.CaptureFrames(lab.HostDev)
	check(t, err)
	defer seen.Close()
	out := make([]int, n)
	var wg sync.WaitGroup
	var readErr error
	var got atomic.Int64
	wg.Go(func() {
		for range n {
			p, hdr, err := seen.Find(t.Context(), func(_ lab.Packet, h lab.Header) bool { return h.Dst.Addr() == vip(f, 2) })
			if err != nil {
				readErr = err
				return
			}
			out[hdr.Src.Port()-firstPort] = owner[p.LinkDst.String()]
			got.Add(1)
		}
	})
	for i := range n {
		if i%50 == 49 { // an ordinary user's socket has room for some hundred
			await(t, "what was sent is seen", func() bool { return got.Load() >= int64(i-49) })
		}
		from := netip.AddrPortFrom(addrOf(client, f), uint16(firstPort+i))
		check(t, client.SendIP(lab.UDPPacket(from, netip.AddrPortFrom(vip(f, 2), 7), nil)))
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-within(t, 3*patience).Done():
		seen.Close()
		<-done
		t.Fatalf("not all of %d datagrams came", n)
	}
	check(t, readErr)
	return out
}
