package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"weir/internal/lab"
	"weir/internal/model"
)

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
		s.datagrams(1, tapNoRoute[f], 1001, 64)
	}
	await(t, "without tap the box says something about packets that it can't send on", func() bool { return s.back.Load() >= 4 })

	var args []string
	for _, f := range families {
		for _, to := range []netip.Addr{tapElse[f], tapRedirect[f], tapNoRoute[f]} {
			args = append(args, "--service", join(to, 2000)+"/udp")
		}
	}
	p := s.tap(args...)
	said := s.back.Load()
	const n = 50
	for _, f := range families {
		for _, to := range []netip.Addr{tapElse[f], tapRedirect[f], tapNoRoute[f]} {
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

// TestTapSeesAMirror has the kernel of a server mirror its connections (nft dup), on the way
// in, by two rules, and on the way out: weir tap knows how many there were and how long they took, and what
// it wrote is all there after kill -9.
func TestTapSeesAMirror(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
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
		rules := fmt.Sprintf(`table %[1]s mirror {
	chain in { type filter hook prerouting priority 0; iifname "eth1" tcp dport 80 dup to %[2]s device "eth0"; }
	chain again { type filter hook prerouting priority 10; iifname "eth1" tcp dport 80 dup to %[2]s device "eth0"; }
	chain out { type filter hook postrouting priority 0; oifname "eth1" tcp sport 80 dup to %[2]s device "eth0"; }
}`, fam, tapBox[f])
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
	var all map[string]*tapTotal
	await(t, "all connections are seen", func() bool {
		all = p.totals()
		for _, f := range families {
			if a := all[join(served[f], 80)+"/tcp"]; a == nil || a.connections != n || a.answered != n {
				return false
			}
		}
		return true
	})
	// Two rules at one place: what clients send comes twice, which is no retransmission. (On a
	// machine under load there may be true ones.)
	if d := p.duplicates(); d < 2*n {
		t.Errorf("%d duplicates", d)
	}
	for service, a := range all {
		if a.directions != "both" || a.p50 == nil || *a.p50 > 5000 || a.again >= n {
			t.Errorf("%s: %+v", service, a)
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
	if got := writtenSYNs(t, files[0]); got != 4*n {
		t.Errorf("%d SYNs were written, want %d", got, 4*n)
	}
}

// writtenSYNs counts the SYNs in a file, up to its end or where it was cut off.
func writtenSYNs(t *testing.T, file string) (n int) {
	t.Helper()
	f, err := os.Open(file)
	check(t, err)
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	check(t, err)
	for {
		data, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return n
		}
		check(t, err) // also a packet of which a part alone is there
		h, err := lab.ParseIP(data)
		check(t, err)
		if h.Proto == 6 && h.Payload[13]&(lab.SYN|lab.ACK) == lab.SYN {
			n++
		}
	}
}

// TestTapVXLAN has copies come out of a VXLAN device, sent to the box's own link address and
// to another: both are seen, none is routed on.
func TestTapVXLAN(t *testing.T) {
	t.Parallel()
	needTool(t, "ip")
	s := newTapSite(t)
	for h, remote := range map[*lab.Host]string{s.sender: "192.0.2.2", s.box: "192.0.2.1"} {
		dev := map[*lab.Host]string{s.sender: "eth0", s.box: "copies"}[h]
		if out, err := h.Run("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "remote", remote, "dstport", "4789", "dev", dev); err != nil {
			t.Skip("no VXLAN devices here: ", out)
		}
		check(t, h.SetLink("vx0", true))
	}
	mac, err := s.box.MAC("vx0")
	check(t, err)
	p := s.tapOn("vx0", "--filter", "udp port 3000", "--service", join(tapElse[4], 3000)+"/udp", "--service", join(tapElse[6], 3000)+"/udp")
	const n = 20
	for i, to := range []string{mac.String(), "02:00:00:00:00:99"} {
		for _, f := range families {
			for _, args := range [][]string{{"route", "replace", tapElse[f].String(), "dev", "vx0"}, {"neigh", "replace", tapElse[f].String(), "lladdr", to, "dev", "vx0"}} {
				if out, err := s.sender.Run("ip", append([]string{fmt.Sprintf("-%d", f)}, args...)...); err != nil {
					t.Fatal(out, err)
				}
			}
			s.datagrams(n, tapElse[f], 3000, uint8(64-i))
			await(t, "copies out of the tunnel are counted", func() bool { return p.sum(join(tapElse[f], 3000)+"/udp") == uint64(n*(i+1)) })
		}
	}
	check(t, p.Signal(syscall.SIGTERM))
	p.Wait()
	for _, f := range families { // now those to its own link address are routed on
		if out, err := s.sender.Run("ip", fmt.Sprintf("-%d", f), "neigh", "replace", tapElse[f].String(), "lladdr", mac.String(), "dev", "vx0"); err != nil {
			t.Fatal(out, err)
		}
	}
	s.reach(3001)
	if a := s.arrived[3000].Load(); a != 0 {
		t.Errorf("%d copies were routed on", a)
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
	if r.code != 0 || strings.Count(r.stdout, " all ") < 1 || !strings.HasPrefix(r.stdout, "TIME") {
		t.Errorf("--for: %+v", r)
	}
	s.noTable(t)
}
