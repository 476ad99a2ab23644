package e2e

import (
	"bytes"
	be "encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/host"
	"weir/internal/lab"
	"weir/internal/model"
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

// TestManyBalancersBack takes connections from one balancer to another, where they go on, and
// back: the first one still knows them as they were. Without checks of windows, which weir doctor
// asks for, they go on.
func TestManyBalancersBack(t *testing.T) {
	t.Parallel()
	const conns, lines, length = 10, 300, 1000 // in each family; more bytes than any window of before
	const key = "net.netfilter.nf_conntrack_tcp_be_liberal"
	d := newManyNAT(t)
	if about(d.doctor().Findings, host.TCPLiberal, key) == nil {
		t.Error("weir doctor says nothing of windows that are checked")
	}
	for _, s := range d.nodes {
		check(t, s.Gateway.Sysctl(key, "1"))
	}
	if about(d.doctor().Findings, host.TCPLiberal, key) != nil {
		t.Error("a finding where nothing is wrong")
	}
	d.spread(d.nodes[0])
	var open []openTalk
	for _, f := range families {
		open = append(open, d.openMany(t, netip.AddrPortFrom(vip(f, 1), 7), conns)...)
	}
	still := func(where string) {
		t.Helper()
		for _, o := range open {
			if id, err := o.alive(); err != nil || id != o.id {
				t.Errorf("%s: %s of %s: %q, %v", where, o.from, o.id, id, err)
			}
		}
	}
	d.spread(d.nodes[1])
	line := append(bytes.Repeat([]byte("?"), length), '\n')
	for _, o := range open {
		check(t, o.SetDeadline(time.Now().Add(3*patience)))
		for range lines {
			_, err := o.Write(line)
			check(t, err)
			_, err = o.r.ReadString('\n')
			check(t, err)
		}
	}
	still("elsewhere")
	d.spread(d.nodes[0])
	still("back")
	for _, s := range d.nodes {
		s.stop()
	}
}

// sockets counts the TCP sockets of a host, in any state but TIME_WAIT and LISTEN, whose other
// end is of that address.
func sockets(t *testing.T, h *lab.Host, of netip.Addr) (n int) {
	t.Helper()
	out, err := h.Run("cat", "/proc/net/tcp", "/proc/net/tcp6")
	check(t, err)
	want := strings.ToUpper(procAddr(of))
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		const timeWait, listen = "06", "0A"
		if len(f) > 3 && strings.HasPrefix(f[2], want+":") && f[3] != timeWait && f[3] != listen {
			n++
		}
	}
	return n
}

// procAddr is an address as the kernel writes it in /proc/net/tcp: words in the host's order.
func procAddr(a netip.Addr) string {
	b, text := a.AsSlice(), ""
	for ; len(b) > 0; b = b[4:] {
		text += fmt.Sprintf("%08x", be.NativeEndian.Uint32(b))
	}
	return text
}

// TestManyBalancersEnds takes one of three balancers away, and then the first that clients say is
// goodbye, of each kind: conntrack on the balancers that get these packets takes them for invalid.
// They arrive, from the client, with nothing changed but the destination and one hop fewer, and connections
// close on both ends.
func TestManyBalancersEnds(t *testing.T) {
	t.Parallel()
	const conns = 60 // of each kind in each family
	d := newManyNAT(t)
	client := d.Clients[0]
	eachFamily(t, func(t *testing.T, f model.Family) {
		d.spread(d.nodes...)
		open := d.openAll(t, netip.AddrPortFrom(vip(f, 1), 7), 3*conns)
		was := make([]uint64, len(d.nodes))
		for i, s := range d.nodes {
			was[i] = s.status("steered").Total.NewConnections
		}
		ended := func() (e engine.SteerEndsStatus) {
			for _, s := range d.nodes[:2] {
				one := *s.steering().Ends
				e.Sent, e.Limited, e.Dropped = e.Sent+one.Sent, e.Limited+one.Limited, e.Dropped+one.Dropped
			}
			return e
		}
		before := ended()
		d.spread(d.nodes[:1]...) // so that two thirds move at least
		var caps []*lab.Capture
		for _, b := range d.Backends {
			c, err := b.Capture(lab.HostDev)
			check(t, err)
			defer c.Close()
			caps = append(caps, c)
		}
		for i, o := range open {
			c := o.Conn.(*net.TCPConn)
			switch i % 3 {
			case 0: // FIN, and what is answered
				check(t, c.CloseWrite())
			case 1: // FIN with data, of which weir sees the beginning only
				raw, err := c.SyscallConn()
				check(t, err)
				check(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_CORK, 1) }))
				check(t, err)
				_, err = c.Write([]byte(strings.Repeat("?", 500) + "\n"))
				check(t, err)
				check(t, c.CloseWrite())
			case 2: // RST
				check(t, c.SetLinger(0))
				check(t, c.Close())
			}
		}
		for i, o := range open {
			if i%3 == 2 {
				continue
			}
			check(t, o.SetReadDeadline(time.Now().Add(patience)))
			text, err := io.ReadAll(o.r)
			if err != nil || (len(text) > 0) != (i%3 == 1) {
				t.Errorf("%s: after goodbye came %q, %v", o.from, text, err)
			}
		}
		for _, h := range append(d.Backends[:3:3], client) {
			other := addrOf(client, f)
			if h == client {
				other = vip(f, 1)
			}
			await(t, h.Name+" has no socket left", func() bool { return sockets(t, h, other) == 0 })
		}
		now := ended()
		picked := d.nodes[0].status("steered").Total.NewConnections - was[0]
		t.Logf("of %d connections %d came to another balancer; %d FINs and RSTs of unknown connections were sent on, %d dropped",
			len(open), picked, now.Sent-before.Sent, now.Dropped-before.Dropped)
		// Of each that moved, the first packet there was one of these.
		if now.Sent-before.Sent < picked || now.Limited+now.Dropped != before.Limited+before.Dropped || picked < conns {
			t.Errorf("%+v became %+v, and %d connections were picked up", before, now, picked)
		}
		rst := 0
		for i, c := range caps {
			for {
				p, hdr, err := c.Find(within(t, silence), func(p lab.Packet, h lab.Header) bool {
					return !p.Out && h.Proto == 6 && h.Src.Addr() == addrOf(client, f) && h.Payload[13]&lab.RST != 0
				})
				if err != nil {
					break
				}
				rst++
				if want := netip.AddrPortFrom(addrOf(d.Backends[i], f), 7); hdr.Dst != want || hdr.TTL != 62 {
					t.Errorf("a reset came to %s with %d hops left: %x", hdr.Dst, hdr.TTL, p.Data)
				}
			}
		}
		if rst != conns {
			t.Errorf("%d resets came to the backends, want %d", rst, conns)
		}
	})
	for _, s := range d.nodes {
		s.stop()
	}
}
