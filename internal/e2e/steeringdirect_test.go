package e2e

import (
	"bytes"
	"context"
	be "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
)

// steeredDirectly returns a configuration with one steered service on vip 1, whose backends answer
// clients themselves.
func (d *directSite) steeredDirectly(options ...string) string {
	return d.steered(append([]string{"forward: direct", "in: " + segmentDev}, options...)...)
}

// directMembers are the backends of a family as internal/flow knows them.
func (d *directSite) directMembers(f model.Family, hosts ...*lab.Host) []flow.Member {
	var out []flow.Member
	for _, h := range hosts {
		out = append(out, flow.Member{ID: addrOf(h, f).String(), Weight: 1})
	}
	return out
}

// TestSteeringDirectFrames looks at frames: nothing is another but the link-layer addresses, the
// time to live and, in IPv4, "don't fragment" and the header's checksum over these. Marks are gone.
// Rules choose; the kernel's own table, where nobody answers, as well.
func TestSteeringDirectFrames(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	b := d.Backends
	d.startSteering(d.steeredDirectly("rules:",
		`  - {name: bytes, bytes: "udp[8:4] = 0x494e5649", to: one}`,
		`  - {name: ports, source_ports: 20000-29999, to: two}`,
		groups(group("rest", b...), group("one", b[0]), group("two", b[1]))))
	d.setUp("steered", 1)
	d.countMarked()
	mac := func(h *lab.Host, dev string) string {
		m, err := h.MAC(dev)
		check(t, err)
		return m.String()
	}
	look := func(t *testing.T, f model.Family, ruled bool) {
		var seen []*lab.Capture
		for _, h := range b {
			c, err := h.CaptureFrames(lab.HostDev)
			check(t, err)
			defer c.Close()
			seen = append(seen, c)
		}
		members := d.directMembers(f, b...)
		for i := range 12 {
			from := netip.AddrPortFrom(addrOf(d.Clients[0], f), d.port())
			if i%3 == 2 {
				from = netip.AddrPortFrom(from.Addr(), from.Port()+10000)
			}
			to := netip.AddrPortFrom(vip(f, 1), 7)
			want := d.nameOf(slotOwner(members, seed, from))
			pkt := [...][]byte{lab.UDPPacket(from, to, []byte("INVITE")), lab.TCPPacket(from, to, lab.SYN, 1000, 0), lab.TCPPacket(from, to, lab.ACK|lab.PSH, 5, 6)}[i%3]
			if ruled {
				want = [...]string{b[0].Name, want, b[1].Name}[i%3]
			}
			check(t, d.Clients[0].SendIP(pkt))
			sent, err := lab.ParseIP(pkt)
			check(t, err)
			at := 0
			for at < len(b)-1 && b[at].Name != want {
				at++
			}
			p, hdr, err := seen[at].Find(within(t, patience), func(p lab.Packet, h lab.Header) bool { return !p.Out && h.Src == from && h.Proto == sent.Proto })
			if err != nil {
				t.Fatalf("packet %d from %s did not come to %s: %v", i, from, want, err)
			}
			if hdr.Dst != to || !bytes.Equal(hdr.Payload, sent.Payload) || hdr.TTL != sent.TTL-2 { // the router, and the balancer
				t.Errorf("what came is not what was sent:\n%x\n%x", pkt, p.Data)
			}
			if f == model.IPv4 && (headerSum(p.Data) != 0xffff || p.Data[6] != 0x40) {
				t.Errorf("the header is wrong: %x", p.Data[:20])
			}
			if p.LinkDst.String() != mac(b[at], lab.HostDev) || p.LinkSrc.String() != mac(d.Gateway, segmentDev) {
				t.Errorf("the frame goes from %s to %s", p.LinkSrc, p.LinkDst)
			}
		}
	}
	eachFamily(t, func(t *testing.T, f model.Family) { look(t, f, true) })
	// A packet on its last hop ends here: the router takes one, and the balancer would the other.
	for _, f := range families {
		pkt := lab.UDPPacket(netip.AddrPortFrom(addrOf(d.Clients[0], f), 4000), netip.AddrPortFrom(vip(f, 1), 7), []byte("INVITE"))
		at := map[model.Family]int{model.IPv4: 8, model.IPv6: 7}[f]
		if pkt[at] = 2; f == model.IPv4 {
			be.BigEndian.PutUint16(pkt[10:], 0)
			be.BigEndian.PutUint16(pkt[10:], ^headerSum(pkt))
		}
		before, _ := d.asked()
		check(t, d.Clients[0].SendIP(pkt))
		await(t, "weir is asked", func() bool { n, _ := d.asked(); return n == before+1 })
	}
	st := d.steering()
	for i, r := range st.Rules {
		if want := []uint64{10, 8, 8}[i]; r.Packets != want {
			t.Errorf("rule %s counted %d packets, want %d", r.Name, r.Packets, want)
		}
	}
	if n := d.status("steered").Total.PacketsIn; n != 24 || st.Packets != "all" {
		t.Errorf("%d packets were sent on, want 24: %+v", n, st)
	}
	d.run.Kill()
	eachFamily(t, func(t *testing.T, f model.Family) { look(t, f, false) })
	if n := d.marked(); n != 0 {
		t.Errorf("%d packets left with a mark", n)
	}
	if out, err := d.Gateway.Run("cat", "/proc/net/nf_conntrack"); err == nil && strings.Contains(out, vip(4, 1).String()) {
		t.Errorf("conntrack saw it:\n%s", out)
	}
}

// countMarked counts packets that leave the balancer with a mark. (The kernel's own reports of multicast
// groups have any.)
func (d *directSite) countMarked() {
	d.t.Helper()
	needTool(d.t, "nft")
	_, err := d.Gateway.Run("sh", "-ec", "nft -f - <<'end'\ntable inet marked {\nchain out {\ntype filter hook postrouting priority 200\nmeta l4proto { tcp, udp } meta mark != 0 counter\n}\n}\nend\n")
	check(d.t, err)
}

func (d *directSite) marked() (n int) {
	d.t.Helper()
	out, err := d.Gateway.Run("nft", "list", "chain", "inet", "marked", "out")
	check(d.t, err)
	_, after, ok := strings.Cut(out, "counter packets ")
	if _, err := fmt.Sscan(after, &n); !ok || err != nil {
		d.t.Fatalf("no counter in %s", out)
	}
	return n
}

// TestSteeringDirectAll has real clients ask real servers: weir sees all packets of connections
// and flows, and no answer; each goes where weir explain says.
func TestSteeringDirectAll(t *testing.T) {
	t.Parallel()
	const conns, turns = 25, 20 // of each kind in each family
	d := newDirectSite(t, 1, 3)
	d.startSteering(d.steeredDirectly("rules:", "  - {name: few, source_ports: 10010-10020, to: one}",
		groups(group("rest", d.Backends...), group("one", d.Backends[0])), "queues: 2"))
	d.setUp("steered", 1, "tcp", "udp")
	got, err := d.Gateway.Capture(segmentDev)
	check(t, err)
	var came, answers atomic.Uint64
	go func() {
		for {
			p, hdr, err := got.Find(t.Context(), func(lab.Packet, lab.Header) bool { return true })
			if err != nil {
				return
			}
			for _, f := range families {
				switch {
				case hdr.Dst.Addr() == vip(f, 1) && !p.Out:
					came.Add(1)
				case hdr.Src.Addr() == vip(f, 1):
					answers.Add(1)
				}
			}
		}
	}()
	for _, f := range families {
		to := netip.AddrPortFrom(vip(f, 1), 7)
		for range conns {
			k := d.talk(t, d.Clients[0], to)
			from := netip.MustParseAddrPort(k.LocalAddr().String())
			want := d.explained("tcp", from, to)
			for range turns {
				if id := k.ask(t); id != want {
					t.Fatalf("%s answers %s, and weir explain says %s", id, from, want)
				}
			}
			check(t, k.Close())
		}
		for range conns {
			from := netip.AddrPortFrom(addrOf(d.Clients[0], f), d.port())
			want := d.explained("udp", from, to)
			c, err := d.Clients[0].Dial(within(t, patience), "udp", from.String(), to.String())
			check(t, err)
			for range turns {
				if a, err := question(t, c, patience); err != nil || a.id != want {
					t.Fatalf("%q answers %s, and weir explain says %s: %v", a.id, from, want, err)
				}
			}
			check(t, c.Close())
		}
	}
	await(t, "all that came is counted", func() bool {
		n, _ := d.asked()
		return n == came.Load() && n > 2*2*conns*turns && d.status("steered").Total.PacketsIn == n
	})
	n, _ := d.asked()
	t.Logf("weir was asked about %d packets; %d came in", n, came.Load())
	if answers.Load() != 0 {
		t.Errorf("%d answers came by the balancer", answers.Load())
	}
	if few := d.steering().Rules[0].Packets; few == 0 {
		t.Error("the rule had no packet")
	}
	d.stop()
}

// TestSteeringDirectKilled kills weir while connections come and are open: none fails and none
// moves, then and when it starts again.
func TestSteeringDirectKilled(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	d.startSteering(d.steeredDirectly(groups(group("all", d.Backends...)), "when_absent: hash"))
	d.setUp("steered", 1, "tcp")
	k := d.knock(t, func(f model.Family) func(netip.AddrPort) string {
		members := d.directMembers(f, d.Backends...)
		return func(from netip.AddrPort) string { return d.nameOf(slotOwner(members, seed, from)) }
	})
	var open []openTalk
	for _, f := range families {
		open = append(open, d.openMany(t, netip.AddrPortFrom(vip(f, 1), 7), 25)...)
	}
	still := func(when string) {
		t.Helper()
		for _, o := range open {
			if id, err := o.alive(); err != nil || id != o.id {
				t.Errorf("%s: %s of %s: %q, %v", when, o.from, o.id, id, err)
			}
		}
	}
	for range 3 {
		k.more(t)
		d.run.Kill()
		still("killed")
		k.more(t)
		before := d.generation()
		d.start()
		still("started again")
		if gen := d.generation(); gen != before {
			t.Errorf("a weir that starts again commits: generation %d became %d", before, gen)
		}
	}
	k.more(t)
	k.end()
	n, _ := d.asked()
	k.check(t, n)
	d.stop()
	still("stopped")
}

// TestSteeringDirectManyBalancers has a router share connections among three balancers with the same
// file and rules. One goes: whoever gets its packets then sends them to the same backends.
func TestSteeringDirectManyBalancers(t *testing.T) {
	t.Parallel()
	const conns = 150 // in each family
	d := newDirectSite(t, 3, 3)
	for _, s := range d.nodes {
		s.startSteering(d.steeredDirectly("rules:", "  - {source_ports: 10050-10100, to: two}",
			groups(group("rest", d.Backends...), group("two", d.Backends[1:]...))))
	}
	d.setUp("steered", 1, "tcp")
	var open []openTalk
	for _, f := range families {
		open = append(open, d.openAll(t, netip.AddrPortFrom(vip(f, 1), 7), conns)...)
	}
	d.takeAway()
	broken := 0
	for _, o := range open {
		if id, err := o.alive(); err != nil || id != o.id {
			broken++
		}
	}
	t.Logf("%d of %d connections broken after one of three balancers went", broken, len(open))
	if broken != 0 {
		t.Fail()
	}
	for _, s := range d.nodes {
		s.stop()
	}
}

// TestSteeringDirectFragments: datagrams that come in pieces are asked about, and sent on, as one.
func TestSteeringDirectFragments(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	d.startSteering(d.steeredDirectly("rules:", `  - {bytes: "udp[8:4] = 0x494e5649", to: one}`,
		groups(group("rest", d.Backends[1:]...), group("one", d.Backends[0]))))
	d.setUp("steered", 1, "udp")
	for _, f := range families {
		before, _ := d.asked()
		from := netip.AddrPortFrom(addrOf(d.Clients[0], f), d.port())
		if id := askWith(t, d.Clients[0], from, netip.AddrPortFrom(vip(f, 1), 7), "INVITE"+strings.Repeat("x", 4000)); id != d.Backends[0].Name {
			t.Errorf("%s answers", id)
		}
		if n, _ := d.asked(); n != before+1 {
			t.Errorf("weir was asked about %d packets", n-before)
		}
	}
	d.stop()
	d.must("clear")
	if left := d.nft("list", "tables"); strings.Contains(left, "weir") {
		t.Errorf("clear leaves %s", left)
	}
}

// TestSteeringDirectMirrored: what is sent on is no copy that a mirror should have made.
func TestSteeringDirectMirrored(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	box := d.Backends[2]
	d.startSteering(d.steeredDirectly(groups(group("all", d.Backends[:2]...))) +
		fmt.Sprintf("mirrors:\n  - {name: look, to: [%q, %q], match: {from: [%s, %q]}}\n", box.V4, box.V6, lab.ClientNet4, lab.ClientNet6))
	d.setUp("steered", 1, "udp")
	needTool(t, "nft") // others' marks make no difference
	_, err := d.Gateway.Run("sh", "-ec", "nft -f - <<'end'\ntable inet others {\nchain in {\ntype filter hook prerouting priority -350\nmeta mark set 0x1\n}\n}\nend\n")
	check(t, err)
	for _, f := range families {
		d.ask(t, d.Clients[0], "udp", netip.AddrPortFrom(vip(f, 1), 7))
	}
	await(t, "all is counted", func() bool { return d.status("steered").Total.PacketsIn >= 2 })
	for _, c := range d.looks("look").Families {
		if c.Made != 0 {
			t.Errorf("%+v", c)
		}
	}
	d.stop()
}

// TestSteeringDirectAbsent: what becomes of packets without a weir; and of those of a drained
// backend, of a target with nobody, and of other devices.
func TestSteeringDirectAbsent(t *testing.T) {
	t.Parallel()
	for _, absent := range []string{"drop", "accept"} {
		t.Run(absent, func(t *testing.T) {
			d := newDirectSite(t, 1, 2)
			d.startSteering(d.steeredDirectly(groups(group("all", d.Backends...)), "when_absent: "+absent, "assign: "+segmentDev))
			d.setUp("steered", 1, "tcp")
			for _, f := range families {
				to := netip.AddrPortFrom(vip(f, 1), 7)
				d.ask(t, d.Clients[0], "tcp", to)
				d.run.Kill()
				c, err := d.Clients[0].Dial(within(t, time.Second), "tcp", "", to.String())
				if err == nil {
					c.Close()
					t.Errorf("%s: a connection without a weir came to a backend", f)
				}
				// Accepted packets get to the box, where nobody listens.
				var timeout net.Error
				if refused := err != nil && !(isTimeout(err, &timeout)); refused != (absent == "accept") {
					t.Errorf("%s: %v", f, err)
				}
				d.start()
				d.ask(t, d.Clients[0], "tcp", to)
				d.each("drain", "steered", d.Backends[0])
				for range 10 {
					if a := d.ask(t, d.Clients[0], "tcp", to); a.id != d.Backends[1].Name {
						t.Errorf("%s is drained, and answers", a.id)
					}
				}
				d.each("drain", "steered", d.Backends[1])
				before := d.steering().Nobody
				if _, err := d.Clients[0].Dial(within(t, time.Second), "tcp", "", to.String()); err == nil || !isTimeout(err, &timeout) {
					t.Errorf("with nobody left: %v", err)
				}
				if n := d.steering().Nobody; n == before {
					t.Error("packets for nobody are not counted")
				}
				for _, h := range d.Backends {
					d.each("enable", "steered", h)
				}
				await(t, "they are back", func() bool { _, err := try(t, d.Clients[0], "tcp", d.port(), to); return err == nil })
			}
			d.stop()
		})
	}
}

func isTimeout(err error, as *net.Error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, as) && (*as).Timeout()
}
