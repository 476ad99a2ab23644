package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

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
// that they are replaced unread: what was counted goes on, across a change of action, too.
// Then the same while packets of blocked addresses flow.
func TestUpgradeOfBlocks(tt *testing.T) {
	for _, size := range []int{20, 140_000} {
		tt.Run(fmt.Sprint(size), func(tt *testing.T) {
			if size > 1000 && lab.InUserNamespace() {
				tt.Skip("a list of this size takes a larger socket buffer than an ordinary user gets")
			}
			newUpgrade(tt, size).quiet()
			newUpgrade(tt, size).flowing()
		})
	}
}

// upgrade is a box with lists of a weir whose entries counted from the start.
type upgrade struct {
	*fence
	r               *rand.Rand
	blocked, others []string
	addrs           []netip.Addr // one in each of blocked
	size            int
}

// each is how many packets addresses send; barred numbers those that must not come.
const each, barred = 5, 1 << 20

func newUpgrade(tt *testing.T, size int) *upgrade {
	r := rand.New(rand.NewPCG(uint64(size), 9))
	u := &upgrade{fence: newFence(tt), r: r, size: size,
		blocked: append(entriesIn(r, 30, false, 120, 80, 0), entriesIn(r, 30, true, 0, 0, 0x4000)...),
		others:  append(randomEntries(r, size, false), randomEntries(r, size/10, true)...)}
	u.addrs = addressesIn(u.blocked)
	u.load(counting(plan.NewBlocks(u.lists(u.drop("203.0.113.9")), nil)))
	return u
}

func (u *upgrade) drop(more ...string) map[blocklist.Action][]string {
	return map[blocklist.Action][]string{blocklist.Drop: slices.Concat(u.blocked, u.others, more)}
}

func (u *upgrade) sendAll() {
	for range each {
		for _, a := range u.addrs {
			u.send(a, barred)
		}
	}
}

// quiet counts exactly over the start, and over two more, which read the lists of this weir.
func (u *upgrade) quiet() {
	u.sendAll()
	u.send(netip.MustParseAddr("203.0.113.9"), barred)
	d := u.adopt(u.lists(u.drop()))
	if replaced := slices.ContainsFunc(d.Tables, func(td *ruleset.TableDelta) bool { return td.Delete }); replaced != (u.size > 1<<17) {
		u.Errorf("%d entries: the table is replaced as a whole: %v", u.size, replaced)
	}
	u.holds()
	sum := uint64(len(u.addrs) * each)
	if n := u.total(u.addrs); n != sum {
		u.Errorf("%d packets are counted after the start, want %d", n, sum)
	}
	u.sendAll()
	u.others = append(u.others[u.size/20:], randomEntries(u.r, u.size/20, false)...)
	u.adopt(u.lists(u.drop()))
	u.adopt(u.lists(map[blocklist.Action][]string{blocklist.Reject: u.blocked, blocklist.Drop: u.others}))
	u.holds()
	for _, a := range u.addrs {
		if e, _ := u.now.Blocks.Compiled.Find(a); u.counted(e.Prefix).Packets != 2*each {
			u.Errorf("%s has counted %v after two starts with other lists, want %d packets", e.Prefix, u.counted(e.Prefix), 2*each)
		}
	}
	u.adopt(u.lists(u.drop("203.0.113.9")))
	if n := u.counted(netip.MustParsePrefix("203.0.113.9/32")); n.Packets > 0 {
		u.Errorf("an entry that was gone and came again has counted %v", n)
	}
	if n := u.got(barred); n > 0 {
		u.Errorf("%d packets of blocked addresses came", n)
	}
	u.allCounted()
}

// flowing sees what comes through while the rules are replaced. Old rules still run for some
// microseconds after their elements went, longer where the kernel is interrupted in between
// (nf_tables_commit in net/netfilter/nf_tables_api.c): a few packets of a flood may pass.
func (u *upgrade) flowing() {
	begun, stop, sent := make(chan struct{}), make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				sent <- n
				return
			default:
				u.send(u.addrs[n%len(u.addrs)], barred)
			}
			if n == len(u.addrs) {
				close(begun)
			}
		}
	}()
	<-begun
	d := u.adopt(u.lists(u.drop()))
	close(stop)
	n := <-sent
	passed := u.settled()
	u.Logf("%d of %d packets of blocked addresses came; %s", passed, n, d.Summary())
	if passed > 10+n/1000 {
		u.Errorf("%d of %d packets of blocked addresses came", passed, n)
	}
	u.sendAll()
	if now := u.settled(); now != passed {
		u.Errorf("%d packets came when all was done", now-passed)
	}
}

// settled returns how many packets of blocked addresses came, once none is on its way any more.
func (u *upgrade) settled() int {
	n, since := u.got(barred), time.Now()
	for time.Since(since) < 200*time.Millisecond {
		time.Sleep(5 * time.Millisecond)
		if now := u.got(barred); now != n {
			n, since = now, time.Now()
		}
	}
	return n
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
