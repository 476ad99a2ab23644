package proof

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/blocklist"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/ruleset"
)

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
	// Another action: the entry moves to another set, and its counter stays.
	changed := maps.Clone(fixed)
	changed[blocklist.Drop] = append(slices.Clone(fixed[blocklist.Drop]), "203.0.113.200")
	f.block(f.lists(changed, allow...))
	f.send(netip.MustParseAddr("203.0.113.200"), 9000)
	f.send(netip.MustParseAddr("203.0.113.8"), 9001)
	until(f, patience, "a packet behind it", func() bool { return f.got(9001) > 0 })
	if got := f.counted(netip.MustParsePrefix("203.0.113.200/32")); got.Packets != sent+1 || f.got(9000) > 0 {
		f.Errorf("with another verdict it counted %v, want %d packets; %d came", got, sent+1, f.got(9000))
	}
	// What goes and comes again begins anew; its neighbours do not.
	without := maps.Clone(changed)
	without[blocklist.Drop] = slices.DeleteFunc(slices.Clone(changed[blocklist.Drop]), func(e string) bool {
		return e == "203.0.113.7" || e == "2001:db8:b::7"
	})
	f.block(f.lists(without, allow...))
	f.block(f.lists(changed, allow...))
	for _, a := range []string{"203.0.113.7", "2001:db8:b::7"} {
		f.send(netip.MustParseAddr(a), 9003)
		if got := f.counted(netip.PrefixFrom(netip.MustParseAddr(a), len(netip.MustParseAddr(a).AsSlice())*8)); got.Packets != 1 {
			f.Errorf("%s was taken out, put in again, and sent a packet: %v", a, got)
		}
	}
	if got := f.counted(netip.MustParsePrefix("203.0.113.200/32")); got.Packets != sent+1 {
		f.Errorf("a neighbour of an entry that went has counted %v, want %d packets", got, sent+1)
	}
	f.allCounted()
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
	if lab.InUserNamespace() {
		tt.Skip("replacing all of 100,000 entries takes a larger socket buffer than an ordinary user gets")
	}
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

// growth replaces sets by larger ones, which makes them new, while packets flow. The counters
// are in others, and stay exact.
func growth(f *fence, r *rand.Rand, always []string, blocked []netip.Addr) {
	const barred = 1 << 22
	before := f.total(blocked)
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
	if counted := f.total(blocked) - before; counted != uint64(sent) {
		f.Errorf("%d packets sent, %d counted", sent, counted)
	}
	f.allCounted()
}
