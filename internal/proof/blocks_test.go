package proof

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/blocklist"
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
	check(f, f.conn.CarryCounts(ctx, d))
	if _, err := f.conn.Apply(ctx, d, 0); err != nil {
		f.Fatal(err)
	}
	f.now = next
	return d
}

// holds fails the test unless the kernel has exactly what is wanted, every element read.
func (f *fence) holds() {
	f.Helper()
	want := &ruleset.Ruleset{}
	for _, t := range f.now.Ruleset.Tables {
		unmarked := *t
		unmarked.Marker = ""
		want.Tables = append(want.Tables, &unmarked)
	}
	have, _, err := f.conn.Read(context.Background(), blocksRefs, want)
	check(f, err)
	if d := ruleset.Diff(have, want); !d.Empty() {
		f.Errorf("the kernel differs: %s", d.Summary())
	}
}

// counted returns the counter of an entry.
func (f *fence) counted(p netip.Prefix) ruleset.Count {
	f.Helper()
	e, _ := f.now.Blocks.Compiled.Find(p.Addr())
	set := f.now.Blocks.Set(e)
	if set == nil || e.Prefix != p {
		f.Fatalf("%s is not the entry that decides: %v", p, e)
	}
	key := &ruleset.Packed{Stride: set.Key.Len(), Keys: string(ruleset.AppendAddr(nil, p.Addr()))}
	var out ruleset.Count
	n := 0
	err := f.conn.Counts(context.Background(), blocksRef, set, []*ruleset.Packed{key},
		func(_ string, c ruleset.Count) bool { out, n = c, n+1; return true })
	check(f, err)
	if n != 1 {
		f.Errorf("%s has %d elements", p, n)
	}
	return out
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

// randomEntries returns n entries of many lengths and single addresses, of IPv4 between
// 20.0.0.0 and 99.255.255.255 and of IPv6 in 2001:db8:8000::/33.
func randomEntries(r *rand.Rand, n int, six bool) []string {
	return entriesIn(r, n, six, 20, 80, 0x8000)
}

func entriesIn(r *rand.Rand, n int, six bool, first, firsts byte, third uint16) []string {
	out := make([]string, n)
	for i := range out {
		if six {
			a := netip.MustParseAddr("2001:db8:8000::").As16()
			binary.BigEndian.PutUint16(a[4:], third|uint16(r.Uint32())&0x3fff)
			binary.BigEndian.PutUint64(a[6:], r.Uint64())
			bits := []int{128, 128, 128, 64, 56, 48}[r.IntN(6)]
			out[i] = netip.PrefixFrom(netip.AddrFrom16(a), bits).Masked().String()
			continue
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], r.Uint32())
		b[0] = first + b[0]%firsts
		bits := []int{32, 32, 32, 24, 24, 24, 24, 22, 20, 18}[r.IntN(10)]
		out[i] = netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked().String()
	}
	return out
}

// TestBlocksOnPackets sends real packets from addresses of every kind, changes the lists
// ten times meanwhile, and counts: what comes, what is refused, and what the elements say.
func TestBlocksOnPackets(tt *testing.T) {
	for _, size := range []int{0, 3000} { // alone: asked directly; among many: by the summary
		tt.Run(fmt.Sprintf("%d others", size), func(tt *testing.T) { blocksOnPackets(newFence(tt), size) })
	}
}

func blocksOnPackets(f *fence, others int) {
	fixed := map[blocklist.Action][]string{
		blocklist.Drop:   {"198.51.100.0/24", "203.0.113.7", "2001:db8:a::/48", "2001:db8:b::7"},
		blocklist.Reject: {"198.51.100.77", "203.0.113.64/26", "2001:db8:c::/64"},
		blocklist.Count:  {"203.0.113.128/25", "203.0.113.200", "2001:db8:d::/48"},
	}
	allow := []string{"198.51.100.128/26", "2001:db8:a:1::/64"}
	type row struct {
		src, entry string // entry: what counts it, "" for none
		comes      bool
	}
	rows := []row{
		{"198.51.100.5", "198.51.100.0/25", false}, // cut by what is allowed
		{"198.51.100.77", "198.51.100.77/32", false},
		{"198.51.100.130", "", true},
		{"198.51.101.1", "", true},
		{"203.0.113.7", "203.0.113.7/32", false},
		{"203.0.113.8", "", true},
		{"203.0.113.70", "203.0.113.64/26", false},
		{"203.0.113.130", "203.0.113.128/25", true},
		{"203.0.113.200", "203.0.113.200/32", true},
		{"2001:db8:b::7", "2001:db8:b::7/128", false},
		{"2001:db8:b::8", "", true},
		{"2001:db8:a:1::1", "", true},
		{"2001:db8:c::1", "2001:db8:c::/64", false},
		{"2001:db8:d::1", "2001:db8:d::/48", true},
	}
	const each, updates = 7, 10
	r := rand.New(rand.NewPCG(uint64(others), 3))
	for u := range updates + 1 {
		lists := maps.Clone(fixed)
		lists[blocklist.Drop] = slices.Concat(fixed[blocklist.Drop], randomEntries(r, others, false), randomEntries(r, others, true))
		f.block(f.lists(lists, allow...))
		if b := f.now.Blocks; others > 0 && (b.Layout.Summary[model.IPv4] == 0 || b.Layout.Summary[model.IPv6] == 0) {
			f.Errorf("no summary with %d entries: %v", others, b.Layout)
		}
		for i, row := range rows {
			for range each {
				f.send(netip.MustParseAddr(row.src), uint32(1000+i))
			}
		}
		if u == 0 || u == updates {
			f.holds()
		}
	}
	const sent = each * (updates + 1)
	for i, row := range rows {
		src := netip.MustParseAddr(row.src)
		if row.comes {
			until(f, patience, "packets from "+row.src, func() bool { return f.got(uint32(1000+i)) >= sent })
		}
		if n := f.got(uint32(1000 + i)); row.comes && n != sent || !row.comes && n != 0 {
			f.Errorf("%s: %d of %d packets came", row.src, n, sent)
		}
		if row.entry == "" {
			continue
		}
		want := ruleset.Count{Packets: sent, Bytes: sent * packetLen(src)}
		if got := f.counted(netip.MustParsePrefix(row.entry)); got != want {
			f.Errorf("%s counted %v after %d lists, want %v", row.entry, got, updates+1, want)
		}
	}
	f.refused()
	// Another verdict: the element comes anew, and goes on counting.
	changed := maps.Clone(fixed)
	changed[blocklist.Drop] = append(slices.Clone(fixed[blocklist.Drop]), "203.0.113.200")
	f.block(f.lists(changed, allow...))
	f.send(netip.MustParseAddr("203.0.113.200"), 9000)
	f.send(netip.MustParseAddr("203.0.113.8"), 9001)
	until(f, patience, "a packet behind it", func() bool { return f.got(9001) > 0 })
	if got := f.counted(netip.MustParsePrefix("203.0.113.200/32")); got.Packets != sent+1 || f.got(9000) > 0 {
		f.Errorf("with another verdict it counted %v, want %d packets; %d came", got, sent+1, f.got(9000))
	}
	f.block(nil)
	f.holds()
	f.send(netip.MustParseAddr("203.0.113.7"), 9002)
	until(f, patience, "a packet without lists", func() bool { return f.got(9002) > 0 })
}

// refused looks at the answers to packets of addresses that are rejected.
func (f *fence) refused() {
	c := must(f.outside.Capture("up"))(f)
	defer c.Close()
	for _, src := range []netip.Addr{netip.MustParseAddr("203.0.113.70"), netip.MustParseAddr("2001:db8:c::1")} {
		dst, icmp, prohibited := fenced4, uint8(unix.IPPROTO_ICMP), [2]byte{3, 13}
		if src.Is6() {
			dst, icmp, prohibited = fenced6, unix.IPPROTO_ICMPV6, [2]byte{1, 1}
		}
		hdr := f.answer(c, src, unix.IPPROTO_TCP, func() {
			f.transmit(lab.TCPPacket(netip.AddrPortFrom(src, 6000), dst, lab.SYN, 77, 0), dst.Addr())
		})
		if len(hdr.Payload) < 14 || hdr.Payload[13]&lab.RST == 0 || hdr.Src != dst {
			f.Errorf("%s: no reset: %+v", src, hdr)
		}
		hdr = f.answer(c, src, icmp, func() { f.send(src, 1) })
		if len(hdr.Payload) < 2 || [2]byte(hdr.Payload[:2]) != prohibited {
			f.Errorf("%s: not prohibited: %+v", src, hdr)
		}
	}
}

// answer sends until an answer of that protocol comes to src: the kernel sends only so many
// ICMP errors a second.
func (f *fence) answer(c *lab.Capture, src netip.Addr, proto uint8, send func()) (hdr lab.Header) {
	f.Helper()
	until(f, patience, "an answer to "+src.String(), func() bool {
		send()
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		_, h, err := c.Find(ctx, func(p lab.Packet, h lab.Header) bool {
			return !p.Out && h.Proto == proto && h.Dst.Addr() == src
		})
		hdr = h
		return err == nil
	})
	return hdr
}

// fenceRate is how many packets a second flow while lists are replaced.
const fenceRate = 5000

// TestReplaceBlocksUnderTraffic replaces lists of 100,000 entries, little by little, as a
// whole and by larger ones, while packets flow from addresses that are in all of them and
// from addresses that are in none. Not one of the first may come, not one of the others
// be lost, and the counters are exact where the sets had room.
func TestReplaceBlocksUnderTraffic(tt *testing.T) {
	f := newFence(tt)
	const size, size6 = 100_000, 20_000
	r := rand.New(rand.NewPCG(5, 5))
	always := append(entriesIn(r, 100, false, 120, 80, 0), entriesIn(r, 60, true, 0, 0, 0x4000)...) // where no others are
	four, six := randomEntries(r, size, false), randomEntries(r, size6, true)
	compile := func() *blocklist.Compiled {
		return f.lists(map[blocklist.Action][]string{blocklist.Drop: slices.Concat(always, four, six)})
	}
	f.block(compile())
	blocked := addressesIn(always)
	var good []netip.Addr
	for i := range 100 {
		good = append(good, netip.AddrFrom4([4]byte{198, 18, 7, byte(i)}),
			netip.MustParseAddr(fmt.Sprintf("2001:db8:7::%x", i+1)))
	}
	const barred, welcome = 1 << 20, 1 << 21
	stop, sent := make(chan struct{}), make(chan [2]int)
	go func() {
		var n [2]int
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for start := time.Now(); ; {
			select {
			case <-stop:
				sent <- n
				return
			case <-tick.C:
			}
			for due := int(time.Since(start).Seconds() * fenceRate); n[0]+n[1] < due; {
				f.send(blocked[n[0]%len(blocked)], barred)
				f.send(good[n[1]%len(good)], welcome)
				n[0], n[1] = n[0]+1, n[1]+1
			}
		}
	}()
	flow := func(words string, change func()) {
		before := f.got(welcome)
		until(f, patience, "traffic before "+words, func() bool { return f.got(welcome) > before+fenceRate/20 })
		change()
		start := time.Now()
		d := f.block(compile())
		tt.Logf("%s: %s, in %s", words, d.Summary(), time.Since(start).Round(time.Millisecond))
		before = f.got(welcome)
		until(f, patience, "traffic after "+words, func() bool { return f.got(welcome) > before+fenceRate/20 })
		if n := f.got(barred); n > 0 {
			f.Errorf("%s: %d packets of blocked addresses came", words, n)
		}
	}
	for i := range 5 {
		flow(fmt.Sprintf("1 %%, %d", i+1), func() {
			copy(four[i*size/100:], randomEntries(r, size/100, false))
			copy(six[i*size6/100:], randomEntries(r, size6/100, true))
		})
	}
	exact := f.total(blocked)
	for i := range 3 {
		flow(fmt.Sprintf("wholesale, %d", i+1), func() {
			four, six = randomEntries(r, size, false), randomEntries(r, size6, true)
		})
	}
	if f.total(blocked) <= exact {
		f.Error("counters went back when all others were replaced")
	}
	close(stop)
	n := <-sent
	until(f, patience, "all good packets", func() bool { return f.got(welcome) >= n[1] })
	if got := f.got(welcome); got != n[1] {
		f.Errorf("%d of %d good packets came", got, n[1])
	}
	if got := f.total(blocked); got != uint64(n[0]) {
		f.Errorf("counters say %d, %d packets of blocked addresses were sent", got, n[0])
	}
	f.holds()
	growth(f, r, always, blocked)
}

// growth replaces sets by larger ones, which makes them new, while packets flow.
func growth(f *fence, r *rand.Rand, always []string, blocked []netip.Addr) {
	const barred = 1 << 22
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- n
				return
			default:
			}
			f.send(blocked[n%len(blocked)], barred)
			if n%5 == 4 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	before := f.total(blocked)
	replaced := 0
	for _, size := range []int{1000, 60_000, 300_000, 5000} {
		d := f.block(f.lists(map[blocklist.Action][]string{
			blocklist.Drop: slices.Concat(always, randomEntries(r, size, false), randomEntries(r, size/5, true))}))
		for _, td := range d.Tables {
			replaced += len(td.DelSets)
		}
		f.Logf("to %d entries: %s", size, d.Summary())
	}
	close(stop)
	sent := <-done
	if n := f.got(barred); n > 0 {
		f.Errorf("%d of %d packets of blocked addresses came while sets were replaced by larger ones", n, sent)
	}
	if replaced == 0 {
		f.Error("no set was replaced: this shows nothing")
	}
	counted := f.total(blocked) - before
	f.Logf("%d packets sent, %d counted: what is counted between the look and the replacement is lost", sent, counted)
	if counted > uint64(sent) || counted < uint64(sent)/10 {
		f.Errorf("%d packets sent, %d counted", sent, counted)
	}
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
