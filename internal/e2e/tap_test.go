package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/tap"
)

// tapSite is a box that gets copies, between somebody who sends them and whom they must not
// reach. The box forwards.
//
//	sender eth0 ── copies, box, onward ── eth0 behind
type tapSite struct {
	t                   *testing.T
	net                 *lab.Net
	sender, box, behind *lab.Host
	arrived             [1 << 16]atomic.Int64 // packets that the host behind got, by destination port
	back                atomic.Int64          // ICMP errors and redirects that the sender got
}

// The addresses of the site: those of the box on the side of the sender, and hosts in
// networks that the box routes on, or back where they came from.
var (
	tapBox      = addrs("192.0.2.2", "2001:db8:1::2")
	tapSender   = addrs("192.0.2.1", "2001:db8:1::1")
	tapElse     = addrs("198.51.100.10", "2001:db8:100::10")
	tapRedirect = addrs("203.0.113.10", "2001:db8:200::10")
)

func addrs(v4, v6 string) map[model.Family]netip.Addr {
	return map[model.Family]netip.Addr{model.IPv4: netip.MustParseAddr(v4), model.IPv6: netip.MustParseAddr(v6)}
}

func newTapSite(t *testing.T) *tapSite {
	t.Helper()
	lab.Require(t)
	n, err := lab.New()
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	s := &tapSite{t: t, net: n}
	for name, h := range map[string]**lab.Host{"sender": &s.sender, "box": &s.box, "behind": &s.behind} {
		*h, err = n.Host(name)
		check(t, err)
	}
	p := func(list ...string) (out []netip.Prefix) {
		for _, a := range list {
			out = append(out, netip.MustParsePrefix(a))
		}
		return out
	}
	check(t, n.Link(lab.End{Host: s.sender, Name: "eth0", Addrs: p("192.0.2.1/24", "2001:db8:1::1/64")},
		lab.End{Host: s.box, Name: "copies", Addrs: p("192.0.2.2/24", "2001:db8:1::2/64")}))
	check(t, n.Link(lab.End{Host: s.box, Name: "onward", Addrs: p("10.9.0.1/24", "2001:db8:9::1/64")},
		lab.End{Host: s.behind, Name: "eth0", Addrs: p("10.9.0.2/24", "2001:db8:9::2/64")}))
	for _, k := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		check(t, s.box.Sysctl(k, "1"))
	}
	for _, f := range families {
		elsewhere, again := netip.PrefixFrom(tapElse[f], tapElse[f].BitLen()), netip.PrefixFrom(tapRedirect[f], tapRedirect[f].BitLen())
		for _, dst := range []netip.Prefix{elsewhere, again} {
			check(t, s.sender.Route(dst, tapBox[f], "eth0"))
		}
		check(t, s.box.Route(elsewhere, map[model.Family]netip.Addr{4: netip.MustParseAddr("10.9.0.2"), 6: netip.MustParseAddr("2001:db8:9::2")}[f], "onward"))
		check(t, s.box.Route(again, tapSender[f], "copies"))
	}
	s.watch(s.behind, func(h lab.Header) { s.arrived[h.Dst.Port()].Add(1) })
	s.watch(s.sender, func(h lab.Header) {
		if h.Proto == 1 && len(h.Payload) > 0 && h.Payload[0] != 0 && h.Payload[0] != 8 || // no echo
			h.Proto == 58 && len(h.Payload) > 0 && (h.Payload[0] < 128 || h.Payload[0] == 137) { // an error or a redirect
			s.back.Add(1)
		}
	})
	return s
}

// watch looks at every packet that a host gets by its eth0.
func (s *tapSite) watch(h *lab.Host, see func(lab.Header)) {
	c, err := h.Capture("eth0")
	check(s.t, err)
	go func() {
		for {
			p, err := c.Next(context.Background())
			if err != nil {
				return
			}
			if hdr, err := lab.ParseIP(p.Data); err == nil && !p.Out {
				see(hdr)
			}
		}
	}()
}

// datagrams sends n datagrams to port of an address beyond the box.
func (s *tapSite) datagrams(n int, to netip.Addr, port uint16, hops uint8) {
	s.t.Helper()
	from := tapSender[model.FamilyOf(to)]
	for i := range n { // no two alike, which could be copies of one
		b := lab.UDPPacket(netip.AddrPortFrom(from, 4000), netip.AddrPortFrom(to, port), []byte{byte(i >> 8), byte(i), hops})
		if to.Is4() {
			b[8] = hops // the kernel makes the checksum anew
		} else {
			b[7] = hops
		}
		check(s.t, s.sender.SendIP(b))
	}
}

// reach sees that the box, without tap, routes on what the sender sends.
func (s *tapSite) reach(port uint16) {
	s.t.Helper()
	for _, f := range families {
		before := s.arrived[port].Load()
		await(s.t, "the box forwards "+tapElse[f].String(), func() bool {
			s.datagrams(1, tapElse[f], port, 64)
			return s.arrived[port].Load() > before
		})
	}
}

// tapProcess is a weir tap that runs.
type tapProcess struct {
	*lab.Process
	cmd    *exec.Cmd
	errors *strings.Builder

	mu      sync.Mutex
	reports []tapLine
}

// tapLine is a line of weir tap -o json.
type tapLine struct {
	At   time.Time `json:"at"`
	Lost uint64    `json:"lost"`
	File string    `json:"file"`
	tap.Figures
}

// tap starts weir tap and waits for its first figures.
func (s *tapSite) tap(args ...string) *tapProcess {
	s.t.Helper()
	p := &tapProcess{errors: &strings.Builder{}}
	p.cmd = s.box.Command(binary, append([]string{"tap", "copies", "-o", "json", "--every", "100ms"}, args...)...)
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, p.errors
	var err error
	p.Process, err = s.box.Start(p.cmd)
	check(s.t, err)
	go func() { <-p.Done(); w.Close() }()
	go func() {
		for in := bufio.NewScanner(r); in.Scan(); {
			var l tapLine
			if err := json.Unmarshal(in.Bytes(), &l); err != nil {
				s.t.Errorf("%v in %s", err, in.Bytes())
			}
			p.mu.Lock()
			p.reports = append(p.reports, l)
			p.mu.Unlock()
		}
	}()
	await(s.t, "the first figures", func() bool {
		select {
		case <-p.Done():
			s.t.Fatalf("weir tap ended: %s", p.errors)
		default:
		}
		return len(p.seen()) > 0
	})
	return p
}

func (p *tapProcess) seen() []tapLine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]tapLine(nil), p.reports...)
}

// sum adds up what was said of a service, direction to it.
func (p *tapProcess) sum(service string) (packets uint64) {
	for _, r := range p.seen() {
		for _, s := range r.Services {
			if s.Service == service {
				packets += s.PacketsTo
			}
		}
	}
	return packets
}

// TestTapKeepsCopies sends packets for elsewhere to a box that forwards. While weir tap runs
// all are counted, none gets further, and nothing is said about them; the box itself answers
// as ever. When it has ended, or was killed, nothing of it is left.
func TestTapKeepsCopies(t *testing.T) {
	t.Parallel()
	s := newTapSite(t)
	_, err := lab.EchoTCP(s.box, "box", join(tapBox[4], 7), join(tapBox[6], 7))
	check(t, err)
	s.reach(1000)
	for _, f := range families {
		s.datagrams(1, tapElse[f], 1001, 1)
		s.datagrams(1, tapRedirect[f], 1001, 64)
	}
	await(t, "without tap the box says something about packets that it can't send on", func() bool { return s.back.Load() >= 3 })

	var args []string
	for _, f := range families {
		for _, to := range []netip.Addr{tapElse[f], tapRedirect[f]} {
			args = append(args, "--service", join(to, 2000)+"/udp")
		}
	}
	p := s.tap(args...)
	said := s.back.Load()
	const n = 50
	for _, f := range families {
		for _, to := range []netip.Addr{tapElse[f], tapRedirect[f]} {
			s.datagrams(n, to, 2000, 64)
			s.datagrams(n, to, 2000, 1)
			await(t, "copies are counted", func() bool { return p.sum(join(to, 2000)+"/udp") == 2*n })
		}
	}
	s.stillThere(t, 7)
	second := s.run("tap", "copies")
	if second.code != exitCodeFailed || !strings.Contains(second.stderr, "another weir tap looks at copies already") {
		t.Errorf("a second one: %+v", second)
	}

	check(t, p.Signal(syscall.SIGTERM))
	if err := p.Wait(); err != nil {
		t.Errorf("weir tap after SIGTERM: %v, %s", err, p.errors)
	}
	s.noTable(t)
	s.reach(1002)

	p = s.tap()
	check(t, p.Signal(syscall.SIGKILL))
	p.Wait()
	await(t, "nothing is left after kill -9", func() bool { return s.tables(t) == "" })
	s.reach(1003)
	p = s.tap()
	s.datagrams(n, tapElse[4], 2001, 64)
	s.datagrams(n, tapElse[6], 2001, 64)
	check(t, p.Signal(syscall.SIGINT))
	if err := p.Wait(); err != nil {
		t.Errorf("weir tap after SIGINT: %v, %s", err, p.errors)
	}
	s.reach(1004) // what came before has arrived before
	if a, b, c := s.arrived[2000].Load(), s.arrived[2001].Load(), s.back.Load(); a != 0 || b != 0 || c != said {
		t.Errorf("%d and %d copies were routed on, %d ICMP messages sent", a, b, c-said)
	}
}

const exitCodeFailed = 1

// stillThere asks the box for itself, with the neighbours forgotten on both sides.
func (s *tapSite) stillThere(t *testing.T, port uint16) {
	t.Helper()
	needTool(t, "ip")
	for _, h := range []*lab.Host{s.sender, s.box} {
		for _, family := range []string{"-4", "-6"} {
			if out, err := h.Run("ip", family, "neigh", "flush", "all"); err != nil {
				t.Fatal(out, err)
			}
		}
	}
	for _, f := range families {
		if reply, err := s.sender.AskFrom(t.Context(), "tcp", "", join(tapBox[f], port)); err != nil || !strings.HasPrefix(reply, "box ") {
			t.Errorf("the box on %s: %q, %v", tapBox[f], reply, err)
		}
		check(t, s.ping(t, f))
	}
}

// ping sends one echo request and waits for the reply.
func (s *tapSite) ping(t *testing.T, f model.Family) error {
	c, err := s.sender.Capture("eth0")
	check(t, err)
	defer c.Close()
	proto, request, reply := uint8(1), byte(8), byte(0)
	if f == 6 {
		proto, request, reply = 58, 128, 129
	}
	echo := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}
	sum := uint32(request)<<8 + 0x1234 + 1
	if f == 6 { // with the pseudo-header (RFC 8200 section 8.1)
		for _, a := range []netip.Addr{tapSender[f], tapBox[f]} {
			b := a.As16()
			for i := 0; i < 16; i += 2 {
				sum += uint32(b[i])<<8 | uint32(b[i+1])
			}
		}
		sum += uint32(len(echo)) + uint32(proto)
	}
	sum = sum&0xffff + sum>>16
	sum = ^(sum&0xffff + sum>>16)
	echo[2], echo[3] = byte(sum>>8), byte(sum)
	check(t, s.sender.SendIP(lab.IPPacket(tapSender[f], tapBox[f], proto, echo)))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, _, err = c.Find(ctx, func(p lab.Packet, h lab.Header) bool {
		return !p.Out && h.Proto == proto && len(h.Payload) > 5 && h.Payload[0] == reply && h.Payload[4] == 0x12
	})
	if err != nil {
		return fmt.Errorf("no answer to a ping of %s: %w", tapBox[f], err)
	}
	return nil
}

// run runs weir on the box to its end.
func (s *tapSite) run(args ...string) result {
	s.t.Helper()
	cmd := s.box.Command(binary, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := s.box.Start(cmd)
	check(s.t, err)
	timer := time.AfterFunc(time.Minute, func() { _ = p.Signal(syscall.SIGKILL) })
	defer timer.Stop()
	_ = p.Wait() // the code says it
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// tables lists what the box has in nftables.
func (s *tapSite) tables(t *testing.T) string {
	t.Helper()
	needTool(t, "nft")
	out, err := s.box.Run("nft", "list", "ruleset")
	check(t, err)
	return out
}

func (s *tapSite) noTable(t *testing.T) {
	t.Helper()
	if out := s.tables(t); out != "" {
		t.Errorf("weir tap left behind\n%s", out)
	}
}

// TestTapSeesAMirror has the kernel of a server mirror its connections (nft dup), on the way
// in and on the way out: weir tap knows how many there were and how long they took, and
// tcpdump reads what it wrote.
func TestTapSeesAMirror(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	needTool(t, "tcpdump")
	s := newTapSite(t)
	client, err := s.net.Host("client")
	check(t, err)
	prefix := netip.MustParsePrefix
	check(t, s.net.Link(lab.End{Host: client, Name: "eth0", Addrs: []netip.Prefix{prefix("10.1.0.1/24"), prefix("2001:db8:a::1/64")}},
		lab.End{Host: s.sender, Name: "eth1", Addrs: []netip.Prefix{prefix("10.1.0.2/24"), prefix("2001:db8:a::2/64")}}))
	served := map[model.Family]netip.Addr{4: netip.MustParseAddr("10.1.0.2"), 6: netip.MustParseAddr("2001:db8:a::2")}
	_, err = lab.EchoTCP(s.sender, "server", join(served[4], 80), join(served[6], 80))
	check(t, err)
	for _, f := range families {
		fam := map[model.Family]string{4: "ip", 6: "ip6"}[f]
		rules := fmt.Sprintf(`table %s mirror {
	chain in { type filter hook prerouting priority 0; iifname "eth1" tcp dport 80 dup to %s device "eth0"; }
	chain out { type filter hook postrouting priority 0; oifname "eth1" tcp sport 80 dup to %s device "eth0"; }
}`, fam, tapBox[f], tapBox[f])
		out, err := s.sender.Run("sh", "-c", "printf '%s' '"+rules+"' | nft -f -")
		if err != nil {
			t.Fatal(out, err)
		}
	}
	dir := t.TempDir()
	p := s.tap("--write", dir, "--filter", "tcp port 80")
	const n = 20
	for _, f := range families {
		for range n {
			if _, err := client.AskFrom(t.Context(), "tcp", "", join(served[f], 80)); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := map[string]tap.ServiceFigures{}
	await(t, "all connections are seen", func() bool {
		clear(all)
		for _, r := range p.seen() {
			for _, one := range r.Services {
				have := all[one.Service]
				for _, v := range []struct{ sum, add **uint64 }{{&have.Connections, &one.Connections}, {&have.Answered, &one.Answered},
					{&have.RetransmissionsTo, &one.RetransmissionsTo}, {&have.ResetsFrom, &one.ResetsFrom}} {
					if *v.add != nil {
						if *v.sum == nil {
							*v.sum = new(uint64)
						}
						**v.sum += **v.add
					}
				}
				if one.AnswerP50 != nil {
					have.AnswerP50 = one.AnswerP50
				}
				have.Directions = one.Directions
				all[one.Service] = have
			}
		}
		done := 0
		for _, f := range families {
			if a := all[join(served[f], 80)+"/tcp"]; a.Connections != nil && *a.Connections == n && a.Answered != nil && *a.Answered == n {
				done++
			}
		}
		return done == len(families)
	})
	for service, a := range all {
		if a.Directions != "both" || a.AnswerP50 == nil || *a.AnswerP50 > 5000 {
			t.Errorf("%s: directions %s, p50 %v", service, a.Directions, a.AnswerP50)
		}
	}
	if len(all) != 2 {
		t.Errorf("there are %d services", len(all))
	}
	check(t, p.Signal(syscall.SIGKILL)) // also then the file can be read
	p.Wait()
	files, err := filepath.Glob(filepath.Join(dir, "weir-tap-copies-*.pcapng"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	out, err := s.box.Run("tcpdump", "-n", "-r", files[0], "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn or (ip6 and ip6[53] & 0x12 == 2)")
	if err != nil || strings.Count(out, "Flags [S]") != 2*n {
		t.Errorf("tcpdump reads %d SYNs, %v\n%s", strings.Count(out, "Flags [S]"), err, out)
	}
}

// TestTapRefuses starts weir tap where it can't work.
func TestTapRefuses(t *testing.T) {
	t.Parallel()
	s := newTapSite(t)
	needTool(t, "ip")
	for _, line := range []string{"link add br0 type bridge", "link add d0 type veth peer name d1", "link set d0 master br0"} {
		if out, err := s.box.Run("ip", strings.Fields(line)...); err != nil {
			t.Fatal(out, err)
		}
	}
	for args, want := range map[string]string{
		"none":                            "there is no device none",
		"d0":                              "device d0 is part of bridge br0, which gets its packets: copies need a device of their own",
		"br0":                             "device br0 is down; type: ip link set br0 up",
		"copies --write /proc/self/none/": "there is no directory /proc/self/none/",
	} {
		r := s.run(append([]string{"tap"}, strings.Fields(args)...)...)
		if r.code != exitCodeFailed || !strings.Contains(r.stderr, want) || r.stdout != "" {
			t.Errorf("%s: %+v", args, r)
		}
	}
	s.noTable(t)
	r := s.run("tap", "copies", "--for", "300ms", "--every", "100ms")
	if r.code != 0 || strings.Count(r.stdout, " all ") < 2 || !strings.HasPrefix(r.stdout, "TIME") {
		t.Errorf("--for: %+v", r)
	}
	s.noTable(t)
}
