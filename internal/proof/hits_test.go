package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// adopt makes the box block lists as a weir that starts does: it reads what there is.
func (f *fence) adopt(c *blocklist.Compiled) *ruleset.Delta {
	f.Helper()
	ctx := context.Background()
	sets := must(f.conn.Declarations(ctx, blocksRef))(f)
	empty := &plan.Plan{Config: &model.Config{}, Ruleset: &ruleset.Ruleset{}}
	next := empty.WithBlocks(plan.NewBlocks(c, &plan.Blocks{Layout: plan.ReadBlocksLayout(sets)}))
	have, gen, err := f.conn.Read(ctx, blocksRefs, next.Ruleset)
	check(f, err)
	d := ruleset.Diff(have, next.Ruleset)
	check(f, engine.SettleCounts(ctx, f.conn, d, next.Blocks))
	if _, err := f.conn.Apply(ctx, d, gen); err != nil {
		f.Fatal(err)
	}
	f.now = next
	return d
}

// load replaces whatever the box has by r.
func (f *fence) load(r *ruleset.Ruleset) {
	f.Helper()
	have, gen, err := f.conn.Read(context.Background(), blocksRefs, nil)
	check(f, err)
	for _, empty := range []bool{true, false} {
		d := ruleset.Diff(&ruleset.Ruleset{}, r)
		if empty {
			d = ruleset.Diff(have, &ruleset.Ruleset{})
		}
		if gen, err = f.conn.Apply(context.Background(), d, gen); err != nil {
			f.Fatal(err)
		}
	}
}

// counting returns a table as weir made it before packets made the counters: each entry has
// its own from the start, and the rule that finds it says what becomes of the packet.
func counting(b *plan.Blocks) *ruleset.Ruleset {
	old := *b.Table()
	old.Sets, old.Chains = nil, nil
	verdicts := map[string]ruleset.Verdict{}
	for _, c := range b.Table().Chains {
		if strings.HasPrefix(c.Name, "hit/") {
			verdicts[c.Name] = c.Rules[len(c.Rules)-1].Stmts[0].(ruleset.Verdict)
			continue
		}
		out := &ruleset.Chain{Name: c.Name, Base: c.Base}
		for _, r := range c.Rules {
			r.Stmts = slices.Clone(r.Stmts)
			if v, ok := r.Stmts[len(r.Stmts)-1].(ruleset.Verdict); ok && verdicts[v.Chain].Kind != "" {
				r.Stmts[len(r.Stmts)-1] = verdicts[v.Chain]
			}
			out.Rules = append(out.Rules, r)
		}
		old.Chains = append(old.Chains, out)
	}
	for _, s := range b.Table().Sets {
		s := *s
		if of, ok := plan.ParseEntrySet(s.Name); ok {
			s.Counter = !of.Hits
		}
		if !s.Dynamic {
			old.Sets = append(old.Sets, &s)
		}
	}
	return &ruleset.Ruleset{Tables: []*ruleset.Table{&old}}
}

// TestUpgradeOfBlocks starts over tables that a weir before this one made, small and so large
// that they are replaced unread, while packets of blocked addresses flow: none comes, and what
// was counted goes on, across a change of action, too.
func TestUpgradeOfBlocks(tt *testing.T) {
	for _, size := range []int{20, 140_000} {
		tt.Run(fmt.Sprint(size), func(tt *testing.T) {
			if size > 1000 && lab.InUserNamespace() {
				tt.Skip("a list of this size takes a larger socket buffer than an ordinary user gets")
			}
			upgrade(newFence(tt), size)
		})
	}
}

func upgrade(f *fence, size int) {
	r := rand.New(rand.NewPCG(uint64(size), 9))
	blocked := append(entriesIn(r, 30, false, 120, 80, 0), entriesIn(r, 30, true, 0, 0, 0x4000)...)
	others := append(randomEntries(r, size, false), randomEntries(r, size/10, true)...)
	drop := func(more ...string) map[blocklist.Action][]string {
		return map[blocklist.Action][]string{blocklist.Drop: slices.Concat(blocked, others, more)}
	}
	f.load(counting(plan.NewBlocks(f.lists(drop("203.0.113.9")), nil)))
	const each, barred = 5, 1 << 20
	addrs := addressesIn(blocked)
	sendAll := func() {
		for range each {
			for _, a := range addrs {
				f.send(a, barred)
			}
		}
	}
	sendAll()
	f.send(netip.MustParseAddr("203.0.113.9"), barred)
	stop, sent := make(chan struct{}), make(chan int)
	go func() { // until it is replaced; what it counts in between is lost
		n := 0
		for {
			select {
			case <-stop:
				sent <- n
				return
			default:
				f.send(addrs[n%len(addrs)], barred)
				n++
			}
		}
	}()
	d := f.adopt(f.lists(drop()))
	close(stop)
	meanwhile := <-sent
	replaced := slices.ContainsFunc(d.Tables, func(td *ruleset.TableDelta) bool { return td.Delete })
	f.Logf("%d packets sent meanwhile; %s", meanwhile, d.Summary())
	if replaced != (size > 1<<17) {
		f.Errorf("%d entries: the table is replaced as a whole: %v", size, replaced)
	}
	f.holds()
	sum := uint64(len(addrs) * each)
	for _, a := range addrs {
		if e, _ := f.now.Blocks.Compiled.Find(a); f.counted(e.Prefix).Packets < each {
			f.Errorf("%s has counted %v, want %d packets and those sent meanwhile", e.Prefix, f.counted(e.Prefix), each)
		}
	}
	if n := f.total(addrs); n < sum || n > sum+uint64(meanwhile) {
		f.Errorf("%d packets are counted, want %d and up to %d more", n, sum, meanwhile)
	}
	// From here on it is exact: over a start that reads the lists of this weir, others, too.
	before := f.total(addrs)
	sendAll()
	others = append(others[size/20:], randomEntries(r, size/20, false)...)
	f.adopt(f.lists(drop()))
	f.adopt(f.lists(map[blocklist.Action][]string{blocklist.Reject: blocked, blocklist.Drop: others}))
	f.holds()
	if n := f.total(addrs); n != before+sum {
		f.Errorf("%d packets are counted after two starts with other lists, want %d", n, before+sum)
	}
	f.adopt(f.lists(drop("203.0.113.9")))
	if n := f.counted(netip.MustParsePrefix("203.0.113.9/32")); n.Packets > 0 {
		f.Errorf("an entry that was gone and came again has counted %v", n)
	}
	if n := f.got(barred); n > 0 {
		f.Errorf("%d packets of blocked addresses came", n)
	}
	f.allCounted()
}

// TestNoRoomToCount: packets of entries for whose counters there is no room meet the same
// fate as others, and are counted together.
func TestNoRoomToCount(tt *testing.T) {
	f := newFence(tt)
	c := f.lists(map[blocklist.Action][]string{
		blocklist.Drop:   {"203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8:b::1", "2001:db8:b::2"},
		blocklist.Reject: {"203.0.113.4"},
		blocklist.Count:  {"203.0.113.5"},
	})
	empty := &plan.Plan{Config: &model.Config{}, Ruleset: &ruleset.Ruleset{}}
	f.now = empty.WithBlocks(plan.NewBlocks(c, nil))
	for _, of := range f.now.Blocks.Counted() {
		of.Sets[0].Size = 1
	}
	f.load(f.now.Ruleset)
	const barred, counted = 1 << 20, 1 << 21
	sent := uint64(0)
	for range 7 {
		for _, a := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "2001:db8:b::1", "2001:db8:b::2"} {
			f.send(netip.MustParseAddr(a), barred)
		}
		f.send(netip.MustParseAddr("203.0.113.5"), counted)
		sent += 7
	}
	until(f, patience, "what is only counted", func() bool { return f.got(counted) == 7 })
	if n := f.got(barred); n > 0 {
		f.Errorf("%d packets of blocked addresses came", n)
	}
	var sum uint64
	for _, a := range []string{"203.0.113.1", "2001:db8:b::1"} {
		n, _, err := (&engine.Hits{Kernel: f.conn}).Count(context.Background(), f.now.Blocks, netip.MustParseAddr(a))
		check(f, err)
		if n.Packets != 7 {
			f.Errorf("%s, which was first, has counted %v", a, n)
		}
		sum += n.Packets
	}
	if n := f.uncounted(); n != sent-sum {
		f.Errorf("%d packets are said to have found no room, want %d", n, sent-sum)
	}
}

// TestManyKnock sends a first packet from each of very many entries as fast as it can: each is
// counted for its entry or, where the kernel has no memory for a counter in that moment, as
// one that was not.
func TestManyKnock(tt *testing.T) {
	f := newFence(tt)
	const entries = 20_000
	lines := make([]string, entries)
	addrs := make([]netip.Addr, entries)
	for i := range lines {
		addrs[i] = netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 7})
		lines[i] = netip.PrefixFrom(addrs[i], 24).Masked().String()
	}
	f.block(f.lists(map[blocklist.Action][]string{blocklist.Drop: lines}))
	for _, a := range addrs {
		f.send(a, 1<<20)
	}
	h := &engine.Hits{Kernel: f.conn}
	check(f, h.Look(context.Background(), f.now.Blocks))
	_, all, _ := h.Top(1, "")
	f.Logf("%d of %d entries have a counter, %d packets have none", all, entries, h.Uncounted().Packets)
	if got := uint64(all) + h.Uncounted().Packets; got != entries {
		f.Errorf("%d of %d packets are accounted for", got, entries)
	}
	if all < entries/2 {
		f.Errorf("only %d of %d entries have a counter", all, entries)
	}
	if n := f.got(1 << 20); n > 0 {
		f.Errorf("%d packets of blocked addresses came", n)
	}
}
