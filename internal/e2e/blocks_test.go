package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// TestBlocklists sends from addresses that lists drop, refuse, count and allow, changes a
// list ten times, kills weir, and counts.
func TestBlocklists(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	crawlers := func(more ...int) {
		f.list("crawlers.txt", append([]string{"192.0.2.0/28 # scraper", "2001:db8:bad::/124"}, bad(more...)...)...)
	}
	crawlers(20)
	f.list("watched.netset", bad(30)...)
	f.write(f.config(`allow: ["192.0.2.8/30", "2001:db8:bad::8/126"]`,
		"blocklists:",
		"  - {name: crawlers, files: crawlers.txt}",
		"  - {name: watched, files: '*.netset', action: count}",
		fmt.Sprintf("  - {name: refused, entries: [%q, %q], action: reject}", in(model.IPv4, 40), in(model.IPv6, 40))))
	f.start("--metrics", "127.0.0.1:9545")
	f.warm()
	pass := map[int]bool{5: false, 9: true, 20: false, 30: true, 40: false, 41: true}
	f.wants(t, "at first", pass)
	f.refusal(t)

	const updates, each = 10, 5
	count := map[int]uint64{5: 1, 30: 1} // of the first look
	for i := range updates {
		took := time.Now()
		crawlers(20, 100+i)
		f.awaitPass(t, "the list is read again", 100+i, false)
		t.Logf("update %d: in force after %s", i, time.Since(took).Round(10*time.Millisecond))
		if d := time.Since(took); d > noticed {
			t.Errorf("a list that changed is in force after %s", d)
		}
		for n := range count {
			for _, fam := range families {
				f.passed(in(fam, n), each)
			}
			count[n] += each
		}
	}
	f.awaitPass(t, "an entry that went", 100, true)
	counts := func(when string) {
		t.Helper()
		for n, want := range count {
			for _, fam := range families {
				if w := f.why(in(fam, n)); w.Packets != want || w.Bytes != want*packetLen(fam) {
					t.Errorf("%s: %s counted %d packets, %d bytes, want %d: %+v", when, in(fam, n), w.Packets, w.Bytes, want, w)
				}
			}
		}
	}
	counts("after ten updates")
	f.told(t)
	since := f.listed(t, "after ten updates", nil, 100+updates-1)

	f.run.Kill()
	<-f.run.Done()
	gen := f.generation()
	f.wants(t, "without a weir", map[int]bool{5: false, 41: true})
	count[5]++
	counts("without a weir")
	f.start()
	if now := f.generation(); now != gen {
		t.Errorf("the restart moved the kernel's rules from generation %d to %d", gen, now)
	}
	counts("after a restart")
	f.listed(t, "after a restart", since, 100+updates-1)
	crawlers(20, 120)
	f.awaitPass(t, "the list is read again", 120, false)
	f.wants(t, "after a restart", map[int]bool{5: false, 9: true, 41: true})
	count[5]++
	counts("after a restart and an update")
	f.stop()
}

// listed wants entries 5 and 20 to be there since the first reading or before, and the new one
// since later. It returns since when, and wants that to be as before.
func (f *fence) listed(t *testing.T, when string, before []time.Time, fresh int) []time.Time {
	t.Helper()
	var out []time.Time
	for _, fam := range families {
		for _, n := range []int{5, 20, fresh} {
			w := f.why(in(fam, n))
			if len(w.Matches) != 1 || w.Matches[0].Since.IsZero() || w.Matches[0].SinceAtMost != (n != fresh) || w.Matches[0].Since.After(w.ReadAt) {
				t.Errorf("%s: %d is listed: %+v", when, n, w)
				return out
			}
			out = append(out, w.Matches[0].Since)
		}
		if first, last := out[len(out)-2], out[len(out)-1]; !first.Before(last) {
			t.Errorf("%s: the first reading was at %s, and what is new came at %s", when, first, last)
		}
	}
	if before != nil && !slices.EqualFunc(out, before, time.Time.Equal) {
		t.Errorf("%s: listed since %s, want %s", when, out, before)
	}
	return out
}

// packetLen is the length of what send sends, the IP header included.
func packetLen(fam model.Family) uint64 {
	if fam == model.IPv4 {
		return 20 + 8 + 8
	}
	return 40 + 8 + 8
}

// refusal looks at the answers to packets of addresses that are rejected.
func (f *fence) refusal(t *testing.T) {
	t.Helper()
	c, err := f.Clients[0].Capture(lab.HostDev)
	check(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for fam, icmp := range map[model.Family]uint8{model.IPv4: unix.IPPROTO_ICMP, model.IPv6: unix.IPPROTO_ICMPV6} {
		src := in(fam, 40)
		check(t, f.Clients[0].SendIP(lab.TCPPacket(netip.AddrPortFrom(src, 6000), target(fam, 1, 9), lab.SYN, 77, 0)))
		f.send(src, 1)
		seen := map[string]bool{}
		for len(seen) < 2 {
			_, hdr, err := c.Find(ctx, func(p lab.Packet, h lab.Header) bool { return !p.Out && h.Dst.Addr() == src })
			if err != nil {
				t.Errorf("%s: it is not told that it is refused (%v): %v", src, seen, err)
				break
			}
			switch {
			case hdr.Proto == unix.IPPROTO_TCP && len(hdr.Payload) > 13 && hdr.Payload[13]&lab.RST != 0:
				seen["reset"] = true
			case hdr.Proto == icmp:
				seen["icmp"] = true
			}
		}
	}
}

// told wants the commands to say what TestBlocklists has done.
func (f *fence) told(t *testing.T) {
	t.Helper()
	w := f.why(in(model.IPv4, 5))
	if w.Action != "drop" || w.Entry != "192.0.2.0/29" || len(w.Matches) != 1 || w.Matches[0].Line != 1 || w.Matches[0].Note != "scraper" || w.ReadAt.IsZero() {
		t.Errorf("why: %+v", w)
	}
	if w := f.why(in(model.IPv6, 9)); w.Action != "none" || len(w.Allow) != 1 || w.Packets != 0 {
		t.Errorf("why of an address that is allowed: %+v", w)
	}
	for a, want := range map[string]string{
		"192.0.2.5":    "192.0.2.5 is dropped by 192.0.2.0/29: ",
		"192.0.2.9":    "192.0.2.9 is let through: allow has 192.0.2.8/30",
		"203.0.113.99": "203.0.113.99 is not in any list",
	} {
		if out := f.must("why", a); !strings.HasPrefix(out, want) {
			t.Errorf("weir why %s:\n%s", a, out)
		} else {
			t.Logf("weir why\n%s", out)
		}
	}
	var top api.Top
	f.mustJSON(&top, "blocks", "top")
	at := slices.IndexFunc(top.Entries, func(h engine.Hit) bool { return h.Entry == netip.MustParsePrefix("192.0.2.0/29") })
	if at < 0 || !slices.Equal(top.Entries[at].Lists, []string{"crawlers"}) || top.Entries[at].Packets != f.why(in(model.IPv4, 5)).Packets {
		t.Errorf("top: %+v", top)
	}
	var one api.Top
	f.mustJSON(&one, "blocks", "top", "-n", "1", "--list", "watched")
	if len(one.Entries) != 1 || one.All != 2 || one.Entries[0].Action != "count" {
		t.Errorf("top of a list: %+v", one)
	}
	t.Logf("weir blocks top\n%s", f.must("blocks", "top", "-n", "3"))
	t.Logf("weir blocks\n%s", f.must("blocks"))
	out := f.must("explain", "--from", "192.0.2.5:5000", "--to", target(model.IPv4, 1, 9).String()+"/udp")
	if !strings.Contains(out, "a blocklist stops it (drop); weir why 192.0.2.5") {
		t.Errorf("weir explain:\n%s", out)
	}
	f.wantEvent(t, "blocks", "crawlers", "taken: 6 entries, +2")
	text := f.scrape("http://127.0.0.1:9545/metrics")
	if !strings.Contains(text, "weir_blocklist_ok{list=\"crawlers\"} 1\n") || !strings.Contains(text, "weir_blocklist_entries{list=\"crawlers\"} 6\n") ||
		!strings.Contains(text, "weir_blocked_uncounted_packets_total 0\n") {
		t.Errorf("metrics:\n%s", text)
	}
	if out := f.must("plan"); !strings.Contains(out, "nothing to change") {
		t.Errorf("weir plan:\n%s", out)
	}
}

// TestBlock has an operator block addresses: at once, for a time, across kill -9.
func TestBlock(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	f.write(f.config(`allow: ["192.0.2.200", "2001:db8:bad::c8"]`))
	f.start()
	f.warm()
	both := func(args ...string) {
		t.Helper()
		for _, fam := range families {
			f.must(append([]string{args[0], in(fam, 7).String()}, args[1:]...)...)
		}
	}
	both("block", "--why", "scraper", "--for", "1h")
	f.wants(t, "at once", map[int]bool{7: false, 8: true})
	w := f.why(in(model.IPv6, 7))
	if w.Block == nil || w.Block.Why != "scraper" || w.Block.Until.IsZero() || w.Block.By == "" {
		t.Errorf("why: %+v", w)
	}
	f.wantEvent(t, "operator", "", "block 192.0.2.7 for 1h0m0s: scraper")
	count := f.why(in(model.IPv4, 7)).Packets
	f.run.Kill()
	<-f.run.Done()
	f.start()
	f.wants(t, "after kill -9", map[int]bool{7: false, 8: true})
	if n := f.why(in(model.IPv4, 7)).Packets; n != count+1 {
		t.Errorf("after kill -9 it counted %d packets, want %d", n, count+1)
	}
	both("unblock")
	f.wants(t, "unblocked", map[int]bool{7: true})
	both("block", "--for", "2s")
	f.wants(t, "for two seconds", map[int]bool{7: false})
	if took := f.awaitPass(t, "two seconds are over", 7, true); took > 2*time.Second+noticed {
		t.Errorf("two seconds took %s", took)
	}
	for _, c := range []struct {
		entry, want string
		code        int
	}{
		{"192.0.2.0/8", "bits behind its prefix", 2},
		{"nobody", "is not an entry", 2},
		{"192.0.2.200", "allow", 1},
		{"0.0.0.0/0", "all of IPv4", 1},
		{f.Outside4.String(), "address " + f.Outside4.String() + " of eth-out", 1},
		{f.Outside6.String(), "address " + f.Outside6.String() + " of eth-out", 1},
		{f.Clients[0].V4.String(), "gateway " + f.Clients[0].V4.String(), 1},
		{f.Backends[0].V6.String(), "of service sink", 1},
		{"10.0.0.0/8", "10.1.1.", 1},
	} {
		if r := f.weir("block", c.entry); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("weir block %s: exit code %d, %s%s", c.entry, r.code, r.stdout, r.stderr)
		}
	}
	if r := f.weir("unblock", "192.0.2.99"); r.code != 2 || !strings.Contains(r.stderr, "no operator has blocked 192.0.2.99") {
		t.Errorf("weir unblock: exit code %d, %s", r.code, r.stderr)
	}
	f.wants(t, "at last", map[int]bool{7: true, 8: true})
	f.stop()
	if r := f.weir("block", "192.0.2.7"); r.code != 1 || !strings.Contains(r.stderr, "weir run") {
		t.Errorf("without a weir: exit code %d, %s", r.code, r.stderr)
	}
}

// TestBlocksAlone uses lists without weir run: apply, plan, why, top, confirmation, clear.
func TestBlocksAlone(t *testing.T) {
	t.Parallel()
	needTool(t, "nft")
	f := newFence(t)
	f.list("a.txt", bad(7)...)
	with := f.config("blocklists:", "  - {name: a, files: a.txt}")
	f.write(with)
	if out := f.must("plan"); strings.Contains(out, "weir-blocks") || !strings.Contains(out, "# blocklist a: +2 entries") {
		t.Errorf("weir plan:\n%s", out)
	}
	if out := f.must("plan", "--full"); !strings.Contains(out, "table inet weir-blocks") || !strings.Contains(out, "192.0.2.7") {
		t.Errorf("weir plan --full:\n%s", out)
	}
	f.must("apply")
	f.warm()
	f.wants(t, "applied", map[int]bool{7: false, 8: true})
	f.list("a.txt", append(bad(8), "192.0.2.7")...)
	if out := f.must("plan"); !strings.Contains(out, "# blocklist a: +2 entries\n") || !strings.Contains(out, "−1 entry that no list has any more") {
		t.Errorf("weir plan:\n%s", out)
	}
	f.must("apply")
	f.wants(t, "applied again", map[int]bool{8: false, 9: true})
	if w := f.why(in(model.IPv4, 7)); w.Packets != 1 || w.Action != "drop" || len(w.Matches) != 1 {
		t.Errorf("why: %+v", w)
	}
	var top api.Top
	f.mustJSON(&top, "blocks", "top")
	if top.All != 3 {
		t.Errorf("top: %+v", top)
	}
	f.write(f.config("blocklists:", "  - {name: b, entries: [192.0.2.9, '2001:db8:bad::9']}"))
	f.must("apply", "--confirm", "1s")
	f.wants(t, "until it is confirmed", map[int]bool{8: true, 9: false})
	f.awaitPass(t, "it went back", 9, true)
	f.wants(t, "back", map[int]bool{8: false, 9: true})

	// A reload and a repair by weir run.
	f.write(with)
	f.start()
	f.nft("flush", "ruleset")
	await(t, "put back", func() bool {
		return strings.Contains(fmt.Sprint(f.events(0)), "entries of blocklists that were gone count anew")
	})
	f.wants(t, "put back", map[int]bool{8: false, 9: true})
	f.nft("delete", "element", "inet", "weir-blocks", "drop4/32", "{ 192.0.2.8 }")
	await(t, "an element put back", func() bool { return !f.passes(in(model.IPv4, 8)) })
	f.write(f.config())
	f.must("reload")
	f.wants(t, "without lists", map[int]bool{8: true})
	if out := f.nft("list", "tables"); strings.Contains(out, "weir-blocks") {
		t.Errorf("without lists there is still a table: %s", out)
	}
	f.write(with)
	f.must("reload")
	f.wants(t, "with lists again", map[int]bool{8: false})
	f.stop()
	f.must("clear")
	if out := f.nft("list", "tables"); strings.Contains(out, "weir") {
		t.Errorf("after weir clear: %s", out)
	}
}
