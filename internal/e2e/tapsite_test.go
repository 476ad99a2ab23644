package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os/exec"
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
	tapNoRoute  = addrs("198.18.0.10", "2001:db8:300::10") // the box has no way there
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
		for _, dst := range []netip.Prefix{elsewhere, again, netip.PrefixFrom(tapNoRoute[f], tapNoRoute[f].BitLen())} {
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
	return s.tapOn("copies", args...)
}

// tapOn is tap on another device of the box.
func (s *tapSite) tapOn(device string, args ...string) *tapProcess {
	s.t.Helper()
	p := &tapProcess{errors: &strings.Builder{}}
	p.cmd = s.box.Command(binary, append([]string{"tap", device, "-o", "json", "--every", "100ms"}, args...)...)
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

// tapTotal is what all lines together say of a service.
type tapTotal struct {
	connections, answered uint64
	again                 uint64 // sent again by clients
	directions            string
	p50                   *float64 // the last one
}

func (p *tapProcess) totals() map[string]*tapTotal {
	all := map[string]*tapTotal{}
	for _, r := range p.seen() {
		for _, one := range r.Services {
			have := all[one.Service]
			if have == nil {
				have = &tapTotal{}
				all[one.Service] = have
			}
			if one.Connections != nil {
				have.connections += *one.Connections
			}
			if one.Answered != nil {
				have.answered += *one.Answered
			}
			if one.RetransmissionsTo != nil {
				have.again += *one.RetransmissionsTo
			}
			if one.AnswerP50 != nil {
				have.p50 = one.AnswerP50
			}
			have.directions = one.Directions
		}
	}
	return all
}

// duplicates returns how many packets were mirrored twice.
func (p *tapProcess) duplicates() (n uint64) {
	for _, r := range p.seen() {
		n += r.Duplicates
	}
	return n
}
