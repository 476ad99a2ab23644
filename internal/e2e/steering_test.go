package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/engine"
	"weir/internal/host"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/steer/nfqueue"
)

// steered returns a configuration with one steered service on vip 1, whose default target
// is all backends.
func (s *site) steered(options ...string) string {
	text := fmt.Sprintf("hash_seed: %d\n", seed) + "steering:\n  - name: steered\n    listen: " + listenOn(1, "7/tcp", "7/udp") + "\n"
	for _, o := range options {
		text += "    " + o + "\n"
	}
	return text
}

// groups writes groups of backends.
func groups(groups ...string) string { return "targets: {" + strings.Join(groups, ", ") + "}" }

func group(name string, hosts ...*lab.Host) string {
	return name + ": " + backendList(on("", hosts...)...)
}

// steering is the status of the steered service.
func (s *site) steering() engine.SteeringStatus {
	s.t.Helper()
	st := s.status("steered")
	if st.Steering == nil {
		s.t.Fatal("status tells nothing of steering")
	}
	return *st.Steering
}

// asked is how many packets weir was asked about.
func (s *site) asked() (n, waiting uint64) {
	s.t.Helper()
	for _, q := range s.steering().Queues {
		n, waiting = n+q.Packets, waiting+q.Waiting
		if q.Full+q.Unreceived > 0 {
			s.t.Errorf("queue %d lost packets: %+v", q.Queue, q)
		}
	}
	return n, waiting
}

// startSteering starts weir, if the kernel can give packets to user space.
func (s *site) startSteering(text string) {
	s.t.Helper()
	s.write(text)
	if r := s.weir("apply"); strings.Contains(r.stderr, "can give no packets to user space") && os.Getenv("CI") != "true" {
		s.t.Skip(r.stderr)
	}
	s.start()
}

// askWith sends a datagram and returns who answers.
func askWith(t *testing.T, client *lab.Host, from, to netip.AddrPort, payload string) string {
	t.Helper()
	c, err := client.Dial(within(t, patience), "udp", from.String(), to.String())
	check(t, err)
	defer c.Close()
	buf := make([]byte, 512)
	for range 50 {
		_, err := c.Write([]byte(payload))
		check(t, err)
		check(t, c.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		n, err := c.Read(buf)
		if err == nil {
			id, _, _ := strings.Cut(string(buf[:n]), " ")
			return id
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	t.Fatalf("nobody answers %s", from)
	return ""
}

// TestSteeringRules: rules on bytes, ports and prefixes, by their priority; what weir explain
// says is what happens, and what status counts.
func TestSteeringRules(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 4)
	b := s.Backends
	s.serve("udp", b, 7)
	s.serve("tcp", b, 7)
	s.startSteering(s.steered("rules:",
		"  - {name: wide, priority: 9, protocols: [udp, tcp], to: never}",
		`  - {name: bytes, priority: 2, bytes: "udp[8:4] & 0xffffff00 = 0x494e5600", to: one}`,
		"  - {name: ports, priority: 3, source_ports: [20000-20999], destination_ports: 7, to: two}",
		"  - {name: prefix, priority: 1, sources: "+both(s.Clients[1])+", to: three}",
		groups(group("rest", b...), group("one", b[0]), group("two", b[1]), group("three", b[2]), group("never", b[3])),
		"queues: 2", "default: rest"))
	type one struct {
		client      *lab.Host
		port        uint16
		payload     string
		rule, proto string
		host        *lab.Host
	}
	for _, f := range families {
		to := netip.AddrPortFrom(vip(f, 1), 7)
		for _, c := range []one{
			{s.Clients[0], 30000, "INVITE", "bytes", "udp", b[0]},
			{s.Clients[0], 20001, "INVITE", "bytes", "udp", b[0]},
			{s.Clients[0], 20002, "BYE", "ports", "udp", b[1]},
			{s.Clients[1], 20003, "INVITE", "prefix", "udp", b[2]},
			{s.Clients[0], 30004, "INFO", "wide", "udp", b[3]},
			{s.Clients[0], 20005, "", "ports", "tcp", b[1]},
			{s.Clients[1], 30006, "", "prefix", "tcp", b[2]},
			{s.Clients[0], 30007, "", "wide", "tcp", b[3]},
		} {
			from := netip.AddrPortFrom(addrOf(c.client, f), c.port)
			x := s.explain(from, to, c.proto, "--payload", c.payload)
			if want := netip.AddrPortFrom(addrOf(c.host, f), 7).String(); x.Steering == nil || x.Steering.Rule != c.rule || x.Backend != want {
				t.Errorf("%s %s %q: weir explain says %+v and %s, want rule %s and %s", c.proto, from, c.payload, x.Steering, x.Backend, c.rule, want)
			}
			got := ""
			if c.proto == "udp" {
				got = askWith(t, c.client, from, to, c.payload)
			} else {
				a, err := try(t, c.client, "tcp", c.port, to)
				check(t, err)
				got = a.id
			}
			if got != c.host.Name {
				t.Errorf("%s %s %q: %s answers, want %s", c.proto, from, c.payload, got, c.host.Name)
			}
		}
	}
	st := s.steering()
	want := map[string]uint64{"bytes": 4, "ports": 4, "prefix": 4, "wide": 4, "default": 0}
	for _, r := range st.Rules {
		if r.Packets != want[r.Name] || !st.Answering {
			t.Errorf("rule %s counted %d packets, want %d", r.Name, r.Packets, want[r.Name])
		}
	}
	if len(st.Rules) != len(want) || len(st.Targets) != 5 || st.Targets[1].Packets != 4 || st.Targets[1].Backends[0].Packets+st.Targets[1].Backends[1].Packets != 4 {
		t.Errorf("%+v", st)
	}
	s.stop()
}

const (
	steeredConns = 500 // of each kind in each family
	steeredPerUD = 100 // datagrams of a flow
	steeredTurns = 33  // questions on a TCP connection, each some three packets
)

// TestSteeringFirstPackets: of 1,000 TCP connections and 1,000 one-way UDP flows of some hundred
// packets each, weir sees 2,000 packets.
func TestSteeringFirstPackets(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends, 7)
	sink := newSink(t, s.Backends)
	s.startSteering(s.steered(groups(group("all", s.Backends...)), "queues: 2"))
	var want, sent uint64
	for _, f := range families {
		to := netip.AddrPortFrom(vip(f, 1), 7)
		s.talkMany(t, to, steeredConns)
		want += steeredConns
		if n, _ := s.asked(); n != want {
			t.Errorf("%s: TCP: weir was asked about %d packets, want %d", f, n, want)
		}
		var flows []net.Conn
		for range steeredConns {
			c, err := s.Clients[0].Dial(t.Context(), "udp", "", to.String())
			check(t, err)
			t.Cleanup(func() { c.Close() })
			flows = append(flows, c)
		}
		for i := range steeredPerUD {
			for j, c := range flows {
				_, err := c.Write([]byte(c.LocalAddr().String()))
				check(t, err)
				if sent++; j%100 == 99 { // no more than a socket's buffer holds
					await(t, "datagrams come", func() bool { return sink.total.Load() == sent })
				}
			}
			if i == 0 { // a second packet must not overtake the answer about the first
				await(t, "all are answered", func() bool { _, waiting := s.asked(); return waiting == 0 })
			}
		}
		want += steeredConns
		if n, _ := s.asked(); n != want {
			t.Errorf("%s: UDP: weir was asked about %d packets, want %d", f, n, want)
		}
	}
	sink.one(t, 2*steeredConns, steeredPerUD)
	s.stop()
}

// TestSteeringKilled kills weir while connections come: none fails, each has the backend that the
// table says, before, meanwhile and after, and open ones stay where they are.
func TestSteeringKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends, 7)
	s.startSteering(s.steered(groups(group("all", s.Backends...)), "when_absent: hash"))
	k := s.knock(t, func(f model.Family) func(netip.AddrPort) string { return s.chooser(f, s.Backends...).host })
	var open []*talk
	var by []string
	for _, f := range families {
		for range 25 {
			c := s.talk(t, s.Clients[0], netip.AddrPortFrom(vip(f, 1), 7))
			open, by = append(open, c), append(by, c.ask(t))
		}
	}
	still := func(when string) {
		t.Helper()
		for i, k := range open {
			if got := k.ask(t); got != by[i] {
				t.Errorf("%s: a connection that %s answered is answered by %s", when, by[i], got)
			}
		}
	}
	for range 3 {
		k.more(t)
		s.run.Kill()
		still("killed")
		k.more(t)
		if st := s.steering(); st.Answering {
			t.Error("status says that somebody answers")
		}
		s.start()
		still("started again")
	}
	k.more(t)
	k.end()
	n, _ := s.asked()
	k.check(t, n)
	s.stop()
	still("stopped")
}

// chooser says whom the service's own table chooses.
func (s *site) chooser(f model.Family, hosts ...*lab.Host) chooser {
	c := newChooser(f, false, on("", hosts...))
	return c
}

// TestSteeringPickUp: TCP connections of which conntrack here knows nothing, as those that come
// from another balancer with the same file, are asked about and go on where they were; unless a
// sysctl keeps them from it, which weir doctor tells.
func TestSteeringPickUp(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 3)
	s.serve("tcp", s.Backends, 7)
	s.startSteering(s.steered(groups(group("all", s.Backends...))))
	var open []*talk
	var by []string
	for _, f := range families {
		for range 50 {
			c := s.talk(t, s.Clients[0], netip.AddrPortFrom(vip(f, 1), 7))
			open, by = append(open, c), append(by, c.ask(t))
		}
	}
	before, _ := s.asked()
	s.forgetFlows()
	for i, k := range open {
		if got := k.ask(t); got != by[i] {
			t.Errorf("a connection that %s answered is answered by %s", by[i], got)
		}
	}
	if n, _ := s.asked(); n != before+uint64(len(open)) {
		t.Errorf("weir was asked about %d packets of %d connections", n-before, len(open))
	}
	const key = "net.netfilter.nf_conntrack_tcp_loose"
	if about(s.doctor().Findings, host.TCPLoose, key) != nil {
		t.Error("a finding where nothing is wrong")
	}
	check(t, s.Gateway.Sysctl(key, "0"))
	if about(s.doctor().Findings, host.TCPLoose, key) == nil {
		t.Error("weir doctor says nothing")
	}
	// And what ends a connection is not picked up then.
	s.forgetFlows()
	sent := *s.steering().Ends
	k := open[0].Conn.(*net.TCPConn)
	check(t, k.SetLinger(0))
	check(t, k.Close())
	await(t, "the reset is dropped", func() bool { return s.steering().Ends.Dropped == sent.Dropped+1 })
	if now := *s.steering().Ends; now.Sent != sent.Sent {
		t.Errorf("%+v became %+v", sent, now)
	}
	s.stop()
}

// TestSteeringAbsent: what becomes of new connections without a weir.
func TestSteeringAbsent(t *testing.T) {
	t.Parallel()
	for _, absent := range []string{"drop", "accept"} {
		t.Run(absent, func(t *testing.T) {
			s := newSite(t, 1, 2)
			s.serve("tcp", s.Backends, 7)
			s.startSteering(s.steered(groups(group("all", s.Backends...)), "when_absent: "+absent))
			for _, f := range families {
				k := s.talk(t, s.Clients[0], netip.AddrPortFrom(vip(f, 1), 7))
				s.run.Kill()
				k.ask(t)
				if c, err := s.Clients[0].Dial(within(t, time.Second), "tcp", "", netip.AddrPortFrom(vip(f, 1), 7).String()); err == nil {
					c.Close()
					t.Errorf("%s: a connection without a weir was translated", f)
				}
				s.start()
				k.ask(t)
				s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), 7))
			}
			s.stop()
		})
	}
}

// TestSteeringChanges: a drained backend gets no new connections and keeps those it has; a
// reload adds rules, targets, services and queues while connections come, and none fails.
func TestSteeringChanges(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 4)
	b := s.Backends
	s.serve("tcp", b, 7)
	s.startSteering(s.steered(groups(group("all", b[:3]...))))
	var open []*talk
	var by []string
	ask := func(when string, n int, hosts ...*lab.Host) {
		t.Helper()
		names := map[string]bool{}
		for _, h := range hosts {
			names[h.Name] = true
		}
		for _, f := range families {
			for range n {
				if id := s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), 7)).id; !names[id] {
					t.Errorf("%s: %s answers", when, id)
				}
			}
		}
	}
	for _, f := range families {
		for range 20 {
			c := s.talk(t, s.Clients[0], netip.AddrPortFrom(vip(f, 1), 7))
			open, by = append(open, c), append(by, c.ask(t))
		}
	}
	ask("first", 10, b[:3]...)
	s.each("drain", "steered", b[0])
	ask("drained", 20, b[1], b[2])
	s.each("enable", "steered", b[0])
	for _, next := range []struct {
		options []string
		hosts   []*lab.Host
	}{
		{[]string{groups(group("all", b[1:]...)), "queues: 3"}, b[1:]},
		{[]string{"rules:", "  - {to: one}", groups(group("all", b[1:]...), group("one", b[3])), "queues: 100-101"}, b[3:]},
		{[]string{groups(group("all", b[:2]...)), "when_absent: drop"}, b[:2]},
	} {
		s.write(s.steered(next.options...))
		s.reload()
		await(t, "the file is applied", func() bool {
			return s.steering().Answering && len(s.steering().Rules) == 1+strings.Count(strings.Join(next.options, ""), "{to")
		})
		ask("reloaded", 20, next.hosts...)
		for i, k := range open {
			if got := k.ask(t); got != by[i] {
				t.Errorf("a connection that %s answered is answered by %s", by[i], got)
			}
		}
	}
	s.stop()
}

// TestSteeringQueueTaken: a queue that another program has is waited for; the file is applied once
// it is free.
func TestSteeringQueueTaken(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serve("tcp", s.Backends, 7)
	s.startSteering(s.steered(groups(group("all", s.Backends...))))
	var other *nfqueue.Queues
	check(t, s.Gateway.Do(func() (err error) {
		other, err = nfqueue.Open(nfqueue.Options{First: 101, Count: 1, Copy: 1})
		return err
	}))
	s.write(s.steered(groups(group("all", s.Backends...)), "queues: 100-101"))
	check(t, s.run.Signal(syscall.SIGHUP))
	await(t, "weir says who has the queue", func() bool {
		return strings.Contains(s.log.String(), "queue 101 is in the hands of another program")
	})
	for _, f := range families {
		s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), 7))
	}
	check(t, other.Close())
	await(t, "the file is applied", func() bool { st := s.steering(); return st.Answering && len(st.Queues) == 2 })
	for _, f := range families {
		s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), 7))
	}
	if n, _ := s.asked(); n < 2 {
		t.Errorf("weir was asked about %d packets", n)
	}
	s.stop()
}
