package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// edgeSite is a site with three clients and two backends, all of which serve, and a gateway
// that serves too: what is silent is silent by the policy.
func edgeSite(t *testing.T) *site {
	s := newSite(t, 3, 2)
	s.serveAll(append(append([]*lab.Host{}, s.Backends...), s.Clients...)...)
	for _, a := range []netip.Addr{s.Outside4, s.Outside6, s.Inside4, s.Inside6} {
		for _, port := range []uint16{22, 23, 80, 81} {
			_, err := lab.EchoTCP(s.Gateway, "gateway", join(a, port))
			check(t, err)
		}
		_, err := lab.EchoUDP(s.Gateway, "gateway", join(a, 53))
		check(t, err)
	}
	return s
}

func both(h *lab.Host) string { return quoted([]string{h.V4.String(), h.V6.String()}) }

// edgeText is the policy of most tests; more are further open rules.
func (s *site) edgeText(more ...string) string {
	rules := append([]string{
		"{name: ssh, to: box, in: inside, ports: 22/tcp}",
		fmt.Sprintf("{name: dns, to: box, from: %s, ports: 53/udp}", both(s.Clients[0])),
		fmt.Sprintf("{name: surf, in: inside, out: outside, from: %s, ports: 80/tcp}", quoted([]string{"10.1.1.0/24", "2001:db8:1::/64"})),
	}, more...)
	return fmt.Sprintf("interfaces: {outside: [%s], inside: [%s]}\nedge:\n  policy: drop\n  management: %s\n  open:\n    - %s\n",
		lab.OutsideDev, lab.InsideDev, both(s.Clients[2]), strings.Join(rules, "\n    - ")) +
		services(
			service("nat", listenAll(1), backendList(on("", s.Backends...)...)),
			localService("bare", quoted([]string{join(s.Outside4, 80), join(s.Outside6, 80)}), "track: none"),
			localService("seen", quoted([]string{join(s.Outside4, 81), join(s.Outside6, 81)})))
}

// push is a rule by which the first client reaches the first backend.
func (s *site) push() string {
	return fmt.Sprintf("{name: push, from: %s, to: %s, ports: [7/tcp, 7/udp]}", both(s.Clients[0]), both(s.Backends[0]))
}

// TestPolicyDrop tries what rules open and what none does: to the box and through it, by
// device, by source, by destination and by port.
func TestPolicyDrop(t *testing.T) {
	t.Parallel()
	s := edgeSite(t)
	s.apply(s.edgeText(s.push()))
	c, b := s.Clients, s.Backends
	eachFamily(t, func(t *testing.T, f model.Family) {
		in, out := s.inside(f), s.outside(f)
		for _, x := range []struct {
			what    string
			from    *lab.Host
			network string
			to      netip.Addr
			port    uint16
			open    bool
		}{
			{"ssh from inside", b[0], "tcp", in, 22, true},
			{"ssh from outside", c[0], "tcp", out, 22, false},
			{"telnet from inside", b[0], "tcp", in, 23, false},
			{"dns from the one client", c[0], "udp", out, 53, true},
			{"dns from another", c[1], "udp", out, 53, false},
			{"dns by TCP", c[0], "tcp", out, 53, false},
			{"management", c[2], "tcp", out, 22, true},
			{"management to any port", c[2], "tcp", out, 23, true},
			{"management to the inner address", c[2], "tcp", in, 23, true},
			{"management does not pass", c[2], "tcp", addrOf(b[0], f), 7, false},
			{"a service without conntrack", c[1], "tcp", out, 80, true},
			{"a service with conntrack", c[1], "tcp", out, 81, true},
			{"a service on an address that it does not have", c[1], "tcp", in, 81, false},
			{"a translated service", c[1], "tcp", vip(f, 1), 7, true},
			{"a translated service by UDP", c[1], "udp", vip(f, 1), 7, true},
			{"a translated service by SCTP", c[1], "sctp", vip(f, 1), 7, true},
			{"a translated service, called by its backend", b[0], "tcp", vip(f, 1), 7, true},
			{"a backend itself", c[1], "tcp", addrOf(b[0], f), 7, false},
			{"a backend on a service's port", c[1], "http", addrOf(b[0], f), 80, false},
			{"push", c[0], "tcp", addrOf(b[0], f), 7, true},
			{"push by UDP", c[0], "udp", addrOf(b[0], f), 7, true},
			{"push to the other", c[0], "tcp", addrOf(b[1], f), 7, false},
			{"push to another port", c[0], "http", addrOf(b[0], f), 80, false},
			{"surf", b[1], "http", addrOf(c[1], f), 80, true},
			{"surf to another port", b[1], "tcp", addrOf(c[1], f), 7, false},
			{"the gateway calls out", s.Gateway, "tcp", addrOf(b[1], f), 7, true},
			{"the gateway calls itself", s.Gateway, "tcp", in, 23, true},
		} {
			t.Run(x.what, func(t *testing.T) {
				to := netip.AddrPortFrom(x.to, x.port)
				switch {
				case !x.open:
					s.wantSilence(t, x.from, x.network, to)
				case x.from == s.Gateway:
					_, err := x.from.Ask(x.network, to.String())
					check(t, err)
				default:
					s.ask(t, x.from, x.network, to)
				}
			})
		}
	})
	var st engine.Status
	s.mustJSON(&st, "status")
	for _, o := range st.Edge.Open {
		if o.Packets == 0 {
			t.Errorf("rule %s has counted nothing", o.Name)
		}
	}
	dropped := map[string]bool{}
	for _, d := range st.Edge.Dropped {
		dropped[d.In+">"+d.Out] = d.Packets > 0
	}
	for _, way := range []string{lab.OutsideDev + ">", lab.InsideDev + ">", lab.OutsideDev + ">" + lab.InsideDev, lab.InsideDev + ">" + lab.OutsideDev} {
		if !dropped[way] {
			t.Errorf("no drop was counted by %s: %+v", way, st.Edge.Dropped)
		}
	}
	if st.Edge.Management.Packets == 0 {
		t.Error("management has counted nothing")
	}
}

// TestPolicyKeepsConnections takes a rule away: what is open goes on, nothing new comes, and
// the counters of the rules that stay go on too. Services do not notice the policy come.
func TestPolicyKeepsConnections(t *testing.T) {
	t.Parallel()
	s := edgeSite(t)
	s.write(services(service("nat", listenAll(1), backendList(on("", s.Backends...)...))))
	s.start()
	for _, f := range families {
		k := s.talk(t, s.Clients[1], netip.AddrPortFrom(vip(f, 1), 7))
		before := k.ask(t)
		s.write(s.edgeText(s.push()))
		s.reload()
		if after := k.ask(t); after != before {
			t.Errorf("the connection was with %s and is with %s", before, after)
		}
		to := netip.AddrPortFrom(addrOf(s.Backends[0], f), 7)
		pushed := s.talk(t, s.Clients[0], to)
		s.ask(t, s.Clients[0], "udp", netip.AddrPortFrom(s.outside(f), 53))
		count := s.openCount("dns")
		s.write(s.edgeText())
		s.reload()
		pushed.ask(t)
		s.wantSilence(t, s.Clients[0], "tcp", to)
		s.ask(t, s.Clients[0], "udp", netip.AddrPortFrom(s.outside(f), 53))
		if got := s.openCount("dns"); count == 0 || got != count+1 {
			t.Errorf("rule dns counted %d, then %d", count, got)
		}
		s.write(services(service("nat", listenAll(1), backendList(on("", s.Backends...)...))))
		s.reload()
		s.ask(t, s.Clients[0], "tcp", to) // nothing is restricted
	}
}

func (s *site) openCount(rule string) uint64 {
	s.t.Helper()
	var st engine.Status
	s.mustJSON(&st, "status")
	for _, o := range st.Edge.Open {
		if o.Name == rule {
			return o.Packets
		}
	}
	s.t.Fatalf("there is no rule %s in %+v", rule, st.Edge)
	return 0
}

// TestPolicyLetsNeighboursBeFound has both sides forget each other's hardware addresses,
// under a policy that drops: neighbour discovery and ARP find them again.
func TestPolicyLetsNeighboursBeFound(t *testing.T) {
	t.Parallel()
	needTool(t, "ip")
	s := edgeSite(t)
	s.apply(s.edgeText())
	eachFamily(t, func(t *testing.T, f model.Family) {
		for range 2 {
			for _, h := range []*lab.Host{s.Gateway, s.Clients[1]} {
				_, err := h.Run("ip", "neigh", "flush", "all")
				check(t, err)
			}
			s.ask(t, s.Clients[1], "tcp", netip.AddrPortFrom(s.outside(f), 81))
		}
	})
}

// TestPolicyAnswersEcho pings the box, which answers, and a backend behind it, which is not
// reached.
func TestPolicyAnswersEcho(t *testing.T) {
	t.Parallel()
	s := edgeSite(t)
	s.apply(s.edgeText())
	client := s.Clients[1]
	capture, err := client.Capture(lab.HostDev)
	check(t, err)
	eachFamily(t, func(t *testing.T, f model.Family) {
		ping := func(id uint16, to netip.Addr) {
			src := addrOf(client, f)
			proto, typ := uint8(unix.IPPROTO_ICMP), byte(8)
			if f == model.IPv6 {
				proto, typ = unix.IPPROTO_ICMPV6, 128
			}
			check(t, client.SendIP(lab.IPPacket(src, to, proto, echo(src, to, proto, typ, id))))
		}
		ping(1, addrOf(s.Backends[0], f))
		ping(2, s.outside(f))
		_, h, err := capture.Find(within(t, patience), func(p lab.Packet, h lab.Header) bool {
			reply := byte(0)
			if f == model.IPv6 {
				reply = 129
			}
			return !p.Out && (h.Proto == unix.IPPROTO_ICMP || h.Proto == unix.IPPROTO_ICMPV6) &&
				len(h.Payload) >= 8 && h.Payload[0] == reply
		})
		check(t, err)
		if h.Payload[5] != 2 {
			t.Errorf("the first answer is to ping %d, of the backend", h.Payload[5])
		}
	})
}

// echo is an ICMP echo message (RFC 792, RFC 4443).
func echo(src, dst netip.Addr, proto, typ byte, id uint16) []byte {
	b := make([]byte, 8)
	b[0] = typ
	b[4], b[5] = byte(id>>8), byte(id)
	sum := uint32(0)
	add := func(v []byte) {
		for ; len(v) >= 2; v = v[2:] {
			sum += uint32(v[0])<<8 | uint32(v[1])
		}
	}
	if proto == unix.IPPROTO_ICMPV6 {
		add(src.AsSlice())
		add(dst.AsSlice())
		sum += uint32(len(b)) + uint32(proto)
	}
	add(b)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	b[2], b[3] = byte(^sum>>8), byte(^sum)
	return b
}

// TestPolicyLetsPathMTUBeFound sends much data over a hop with a small MTU, from a listener
// without conntrack on the box, and from a backend behind it: the hop's ICMP errors must
// arrive at both.
func TestPolicyLetsPathMTUBeFound(t *testing.T) {
	t.Parallel()
	needTool(t, "ip")
	s := edgeSite(t)
	hop := s.Clients[0]
	far, err := s.Net.Host("far")
	check(t, err)
	near, beyond := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8:99::1/64")},
		[]netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8:99::2/64")}
	check(t, s.Net.Link(lab.End{Host: hop, Name: "far", Addrs: near, MTU: 1300}, lab.End{Host: far, Name: "eth0", Addrs: beyond, MTU: 1500}))
	check(t, hop.Sysctl("net.ipv4.ip_forward", "1"))
	check(t, hop.Sysctl("net.ipv6.conf.all.forwarding", "1"))
	for i, any := range []string{"0.0.0.0/0", "::/0"} {
		check(t, far.Route(netip.MustParsePrefix(any), near[i].Addr(), "eth0"))
		check(t, s.Gateway.Route(beyond[i].Masked(), addrOf(hop, families[i]), lab.OutsideDev))
	}
	const size = 200_000
	for _, h := range []struct {
		*lab.Host
		addrs []netip.Addr
		port  uint16
	}{{s.Gateway, []netip.Addr{s.Outside4, s.Outside6}, 90}, {s.Backends[0], []netip.Addr{s.Backends[0].V4, s.Backends[0].V6}, 90}} {
		for _, a := range h.addrs {
			l, err := h.Listen("tcp", join(a, h.port))
			check(t, err)
			t.Cleanup(func() { l.Close() })
			go pour(l, size)
		}
	}
	s.apply(s.edgeText() + localService("pour", quoted([]string{join(s.Outside4, 90), join(s.Outside6, 90)}), "track: none") +
		service("behind", listenOn(2, "90/tcp"), backendList(on("", s.Backends[0])...)))
	eachFamily(t, func(t *testing.T, f model.Family) {
		for what, a := range map[string]netip.Addr{"the box": s.outside(f), "a backend": vip(f, 2)} {
			capture, err := s.Gateway.Capture(lab.OutsideDev)
			check(t, err)
			c, err := far.Dial(within(t, patience), "tcp", "", join(a, 90))
			check(t, err)
			check(t, c.SetDeadline(time.Now().Add(patience)))
			n, err := io.Copy(io.Discard, c)
			if n != size || err != nil {
				t.Errorf("from %s came %d bytes of %d: %v", what, n, size, err)
			}
			c.Close()
			_, _, err = capture.Find(within(t, patience), func(p lab.Packet, h lab.Header) bool {
				return !p.Out && len(h.Payload) > 8 && // RFC 792 type 3 code 4, RFC 4443 type 2
					(h.Proto == unix.IPPROTO_ICMP && h.Payload[0] == 3 && h.Payload[1] == 4 || h.Proto == unix.IPPROTO_ICMPV6 && h.Payload[0] == 2)
			})
			if err != nil {
				t.Errorf("no error of the hop came for %s: %v", what, err)
			}
			check(t, capture.Close())
			s.forgetPaths()
		}
	})
}

// forgetPaths has the box and the backend forget the MTU of all ways.
func (s *site) forgetPaths() {
	s.t.Helper()
	for _, h := range []*lab.Host{s.Gateway, s.Backends[0]} {
		for _, family := range []string{"-4", "-6"} {
			_, err := h.Run("ip", family, "route", "flush", "cache")
			check(s.t, err)
		}
	}
}

// pour sends size bytes on every connection.
func pour(l net.Listener, size int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write(make([]byte, size)) // who reads sees what is missing
		c.Close()
	}
}

// TestInvalidFlags sends segments with flags that contradict each other to a closed port,
// whose reset shows that they arrived: all come before, none after, and each is counted.
func TestInvalidFlags(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	const fin, syn, rst, psh, ack, urg = 1, 2, 4, 8, 16, 32
	bad := []uint8{0, fin, fin | psh | urg, syn | fin, syn | fin | ack, psh, urg}
	client := s.Clients[0]
	capture, err := client.Capture(lab.HostDev)
	check(t, err)
	// answered sends segments and, last of all, one that is in order, and returns how many
	// resets came before the one for that.
	answered := func(f model.Family, flags []uint8) int {
		src := addrOf(client, f)
		to := netip.AddrPortFrom(s.outside(f), 9999)
		for _, fl := range flags {
			check(t, client.SendIP(lab.TCPPacket(netip.AddrPortFrom(src, s.port()), to, fl, 1, 1)))
		}
		last := s.port()
		check(t, client.SendIP(lab.TCPPacket(netip.AddrPortFrom(src, last), to, ack, 1, 1)))
		n := 0
		_, _, err := capture.Find(within(t, patience), func(p lab.Packet, h lab.Header) bool {
			if p.Out || h.Proto != unix.IPPROTO_TCP || h.Src != to || h.Payload[13]&rst == 0 {
				return false
			}
			n++
			return h.Dst.Port() == last
		})
		check(t, err)
		return n - 1
	}
	for _, f := range families {
		if got := answered(f, bad); got == 0 {
			t.Fatalf("%s: nothing answers such segments, with or without weir", f)
		}
	}
	s.apply("edge: {invalid_flags: drop}\nservices: []\n")
	for _, f := range families {
		if got := answered(f, bad); got != 0 {
			t.Errorf("%s: %d of %d segments were answered", f, got, len(bad))
		}
		if got := answered(f, []uint8{syn, fin | ack, psh | ack}); got != 3 {
			t.Errorf("%s: %d of 3 good segments were answered", f, got)
		}
	}
	var st engine.Status
	s.mustJSON(&st, "status")
	total := uint64(0)
	for _, b := range st.Edge.BadFlags {
		total += b.Packets
		if b.In != lab.OutsideDev || b.Packets != 2 {
			t.Errorf("counted %+v, want one for each family", b)
		}
	}
	if total != uint64(2*len(bad)) {
		t.Errorf("%d segments are counted, want %d", total, 2*len(bad))
	}
	s.apply("services: []\n")
	if got := answered(model.IPv4, bad); got == 0 {
		t.Error("they are dropped though nothing says so any more")
	}
}

// weirFrom runs a weir command as from an SSH session of a client to the gateway. With
// hidden, the variable is in the environment of weir's parent alone, as with sudo.
func (s *site) weirFrom(ctx context.Context, hidden bool, client, server netip.Addr, args ...string) result {
	s.t.Helper()
	args = append([]string{binary, "--config", s.config}, args...)
	script := `"$@"`
	if hidden {
		script = `env -u SSH_CONNECTION "$@"; exit $?`
	}
	cmd := s.Gateway.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.Env = append(cmd.Environ(), fmt.Sprintf("SSH_CONNECTION=%s 50000 %s 22", client, server))
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := s.Gateway.Start(cmd)
	check(s.t, err)
	_ = p.Wait() // the code says it
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// TestLockOut applies and reloads, from SSH sessions, policies that would cut them off.
func TestLockOut(t *testing.T) {
	t.Parallel()
	s := edgeSite(t)
	s.apply(services(service("nat", listenAll(1), backendList(on("", s.Backends...)...))))
	refused := func(t *testing.T, r result, words string) {
		t.Helper()
		if r.code != 2 || !strings.Contains(r.stderr, words) || !strings.Contains(r.stderr, "--lock-me-out") {
			t.Errorf("exit code %d, %s%s; want 2 and %q", r.code, r.stdout, r.stderr, words)
		}
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		foreign, manager := addrOf(s.Clients[0], f), addrOf(s.Clients[2], f)
		inside := addrOf(s.Backends[0], f)
		s.write(s.edgeText())
		before := s.generation()
		for _, hidden := range []bool{false, true} {
			refused(t, s.weirFrom(t.Context(), hidden, foreign, s.outside(f), "apply"), "nothing opens this")
			refused(t, s.weirFrom(t.Context(), hidden, foreign, s.outside(f), "run"), "nothing opens this")
		}
		s.write("edge: {policy: drop, open: [{to: box, ports: 80/tcp}]}\nservices: []\n")
		refused(t, s.weir("apply"), "nobody a way in")
		s.write("edge: {policy: drop, management: 192.0.2.0/24}\nservices: []\n")
		refused(t, s.weirFrom(t.Context(), false, inside, s.inside(f), "apply"), "nothing opens this")
		s.write(services(service("thief", quoted([]string{join(s.outside(f), 22)}), "[]")))
		refused(t, s.weirFrom(t.Context(), false, foreign, s.outside(f), "apply"), "service thief")
		if s.generation() != before {
			t.Error("a refused configuration changed something")
		}
		s.write(s.edgeText())
		for _, from := range [][2]netip.Addr{{manager, s.outside(f)}, {inside, s.inside(f)}, // by the device too
			{foreign, netip.MustParseAddr("192.0.2.77")}} { // a session of another machine
			if from[0].Is4() != from[1].Is4() {
				continue
			}
			if r := s.weirFrom(t.Context(), false, from[0], from[1], "apply"); r.code != 0 {
				t.Errorf("apply from %s: %s", from[0], r.stderr)
			}
		}
		if r := s.weirFrom(t.Context(), false, foreign, s.outside(f), "apply", "--lock-me-out"); r.code != 0 {
			t.Errorf("told by name: %s", r.stderr)
		}
		s.apply(services(service("nat", listenAll(1), backendList(on("", s.Backends...)...))))
	})
	s.start()
	eachFamily(t, func(t *testing.T, f model.Family) {
		foreign := addrOf(s.Clients[0], f)
		s.write(s.edgeText())
		refused(t, s.weirFrom(t.Context(), false, foreign, s.outside(f), "reload"), "nothing opens this")
		s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(s.outside(f), 22)) // nothing is restricted
		if r := s.weirFrom(t.Context(), false, foreign, s.outside(f), "reload", "--lock-me-out"); r.code != 0 {
			t.Errorf("told by name: %s", r.stderr)
		}
		s.wantSilence(t, s.Clients[0], "tcp", netip.AddrPortFrom(s.outside(f), 22))
		s.write(services(service("nat", listenAll(1), backendList(on("", s.Backends...)...))))
		s.must("reload")
	})
	s.write("edge: {policy: drop}\nservices: []\n")
	before := s.refusals()
	check(t, s.run.Signal(syscall.SIGHUP))
	await(t, "weir run refuses a policy that leaves nobody a way in", func() bool { return s.refusals() > before })
}
