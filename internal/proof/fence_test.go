package proof

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// fence is a box with blocklists between somebody who sends under any address and a
// server that counts what comes.
type fence struct {
	testing.TB
	box, outside *lab.Host
	conn         *nft.Conn
	now          *plan.Plan
	fd           map[bool]int // raw sockets outside, by "is IPv6"

	mu   sync.Mutex
	came map[uint32]int // packets by the number in them
}

var (
	blocksRef  = nft.TableRef{Family: ruleset.Inet, Name: plan.BlocksTableName}
	blocksRefs = []nft.TableRef{blocksRef}

	fenced4 = netip.MustParseAddrPort("192.0.2.2:4000")
	fenced6 = netip.MustParseAddrPort("[2001:db8:2::2]:4000")
)

func newFence(tb testing.TB) *fence {
	tb.Helper()
	lab.Require(tb)
	n := must(lab.New())(tb)
	tb.Cleanup(func() { check(tb, n.Close()) })
	host := func(name string) *lab.Host { return must(n.Host(name))(tb) }
	f := &fence{TB: tb, box: host("box"), outside: host("outside"), came: map[uint32]int{}, fd: map[bool]int{}}
	server := host("server")
	p := netip.MustParsePrefix
	end := func(h *lab.Host, dev string, addrs ...string) lab.End {
		e := lab.End{Host: h, Name: dev}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, p(a))
		}
		return e
	}
	check(tb, n.Link(end(f.outside, "up", "198.18.0.2/24", "2001:db8:1::2/64"), end(f.box, "out", "198.18.0.1/24", "2001:db8:1::1/64")))
	check(tb, n.Link(end(server, "up", "192.0.2.2/24", "2001:db8:2::2/64"), end(f.box, "in", "192.0.2.1/24", "2001:db8:2::1/64")))
	for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0",
		"net.ipv4.conf.out.rp_filter=0", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"} {
		k, v, _ := strings.Cut(s, "=")
		check(tb, f.box.Sysctl(k, v))
	}
	for h, via := range map[*lab.Host][2]string{f.outside: {"198.18.0.1", "2001:db8:1::1"}, server: {"192.0.2.1", "2001:db8:2::1"}} {
		check(tb, h.Route(p("0.0.0.0/0"), netip.MustParseAddr(via[0]), "up"))
		check(tb, h.Route(p("::/0"), netip.MustParseAddr(via[1]), "up"))
	}
	for _, a := range []string{"198.18.0.2", "2001:db8:1::2"} { // whatever is refused finds its way back
		dst := p("0.0.0.0/0")
		if strings.Contains(a, ":") {
			dst = p("::/0")
		}
		check(tb, f.box.Route(dst, netip.MustParseAddr(a), "out"))
	}
	check(tb, f.box.Do(func() (err error) { f.conn, err = nft.Open(); return err }))
	tb.Cleanup(func() { f.conn.Close() })
	for _, at := range []netip.AddrPort{fenced4, fenced6} {
		f.count(server, at)
	}
	check(tb, f.outside.Do(func() error {
		for six, domain := range map[bool]int{false: unix.AF_INET, true: unix.AF_INET6} {
			fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			f.fd[six] = fd
			tb.Cleanup(func() { unix.Close(fd) })
		}
		return nil
	}))
	for i, dst := range []netip.AddrPort{fenced4, fenced6} { // neighbours are known from here on
		src := netip.MustParseAddr([]string{"198.18.0.2", "2001:db8:1::2"}[i])
		until(tb, patience, "a first packet", func() bool { f.send(src, uint32(i)); return f.got(uint32(i)) > 0 || dst.Port() == 0 })
	}
	return f
}

// count makes the server count what comes to an address.
func (f *fence) count(server *lab.Host, at netip.AddrPort) {
	c := must(server.ListenPacket("udp", at.String()))(f)
	if s, ok := c.(interface{ SetReadBuffer(int) error }); ok {
		check(f, s.SetReadBuffer(4<<20))
	}
	f.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n >= 4 {
				f.mu.Lock()
				f.came[binary.BigEndian.Uint32(buf)]++
				f.mu.Unlock()
			}
		}
	}()
}

// got returns how many packets with that number came.
func (f *fence) got(number uint32) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.came[number]
}

// packetLen is the length of what send sends, the IP header included.
func packetLen(a netip.Addr) uint64 {
	if a.Is4() {
		return 20 + 8 + 4
	}
	return 40 + 8 + 4
}

// send sends one UDP packet with that number to the server.
func (f *fence) send(src netip.Addr, number uint32) {
	dst := fenced4
	if src.Is6() {
		dst = fenced6
	}
	f.transmit(lab.UDPPacket(netip.AddrPortFrom(src, 5000), dst, binary.BigEndian.AppendUint32(nil, number)), dst.Addr())
}

func (f *fence) transmit(pkt []byte, dst netip.Addr) {
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice()[:4])}
	if dst.Is6() {
		to = &unix.SockaddrInet6{Addr: dst.As16()}
	}
	if err := unix.Sendto(f.fd[dst.Is6()], pkt, 0, to); err != nil {
		f.Errorf("send to %s: %v", dst, err)
	}
}

// block makes the box block lists, as a running weir would: the difference, with counters
// carried over, in one transaction.
func (f *fence) block(c *blocklist.Compiled) *ruleset.Delta {
	f.Helper()
	ctx := context.Background()
	var prev *plan.Blocks
	if f.now != nil {
		prev = f.now.Blocks
	}
	empty := &plan.Plan{Config: &model.Config{}, Ruleset: &ruleset.Ruleset{}}
	next := empty.WithBlocks(plan.NewBlocks(c, prev))
	have := &ruleset.Ruleset{}
	if f.now != nil {
		have = f.now.Ruleset
	}
	d := ruleset.Diff(have, next.Ruleset)
	check(f, engine.SettleCounts(ctx, f.conn, d, next.Blocks))
	if _, err := f.conn.Apply(ctx, d, 0); err != nil {
		f.Fatal(err)
	}
	f.now = next
	return d
}

// holds fails the test unless the kernel has exactly what is wanted, every element read.
func (f *fence) holds() {
	f.Helper()
	want := f.now.Ruleset.Unmarked()
	have, _, err := f.conn.Read(context.Background(), blocksRefs, want)
	check(f, err)
	if d := ruleset.Diff(have, want); !d.Empty() {
		f.Errorf("the kernel differs: %s", d.Summary())
	}
}

// counted returns what an entry has counted.
func (f *fence) counted(p netip.Prefix) ruleset.Count {
	f.Helper()
	if e, _ := f.now.Blocks.Compiled.Find(p.Addr()); e.Prefix != p {
		f.Fatalf("%s is not the entry that decides: %v", p, e)
	}
	n, _, err := (&engine.Hits{Kernel: f.conn}).Count(context.Background(), f.now.Blocks, p.Addr())
	check(f, err)
	return n
}

// uncounted returns how many packets met an entry and were counted for none.
func (f *fence) uncounted() uint64 {
	f.Helper()
	h := &engine.Hits{Kernel: f.conn}
	check(f, h.Look(context.Background(), f.now.Blocks))
	return h.Uncounted().Packets
}

func (f *fence) allCounted() {
	f.Helper()
	if n := f.uncounted(); n > 0 {
		f.Errorf("%d packets found no room to be counted", n)
	}
}

// lists compiles lists by action.
func (f *fence) lists(lists map[blocklist.Action][]string, allow ...string) *blocklist.Compiled {
	f.Helper()
	var uses []blocklist.Use
	for a := blocklist.Count; a <= blocklist.Drop; a++ {
		b := blocklist.NewBuilder(a.String(), blocklist.Options{Strict: true})
		check(f, b.Add("test", strings.NewReader(strings.Join(lists[a], "\n"))))
		uses = append(uses, blocklist.Use{List: b.List(), Action: a})
	}
	var never []netip.Prefix
	for _, p := range allow {
		never = append(never, netip.MustParsePrefix(p))
	}
	return must(blocklist.Compile(uses, never))(f)
}

// addressesIn returns an address in each entry.
func addressesIn(entries []string) []netip.Addr {
	var out []netip.Addr
	for _, e := range entries {
		p, err := netip.ParsePrefix(e)
		if err != nil {
			panic(err)
		}
		out = append(out, p.Addr())
	}
	return out
}

// total returns what the entries that decide about some addresses have counted.
func (f *fence) total(addrs []netip.Addr) uint64 {
	sum := uint64(0)
	seen := map[netip.Prefix]bool{}
	for _, a := range addrs {
		e, ok := f.now.Blocks.Compiled.Find(a)
		if !ok {
			f.Fatalf("%s is in no list", a)
		}
		if !seen[e.Prefix] {
			seen[e.Prefix] = true
			sum += f.counted(e.Prefix).Packets
		}
	}
	return sum
}
