package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/model"
)

// TestBadBlocklists puts what is no list, or one that would cut off what the box needs, in the
// place of a good one: the good one stays, across kill -9, and weir says why.
func TestBadBlocklists(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	good := append(bad(7), "198.18.0.0/15")
	path := f.list("a.txt", good...)
	text := f.config("blocklists:", "  - {name: a, files: a.txt, strict: true}", "  - {name: b, files: b.txt}")
	f.list("b.txt", bad(60)...)
	f.write(text)
	f.start()
	f.warm()
	holds := map[int]bool{7: false, 8: true, 60: false}
	f.wants(t, "at first", holds)
	for _, c := range []struct {
		name, want string
		put        func()
	}{
		{"gone", "no such file", func() {}},
		{"words", "a.txt:2", func() { f.list("a.txt", "192.0.2.7", "<html>") }},
		{"a gateway", "gateway " + f.Clients[0].V4.String(), func() { f.list("a.txt", append(good, "203.0.113.0/30")...) }},
		{"an own address", "of eth-out", func() { f.list("a.txt", append(good, f.Outside6.String())...) }},
		{"a backend", "of service sink", func() { f.list("a.txt", append(good, "10.1.0.0/16")...) }},
		{"all", "max_change", func() { f.list("a.txt", append(good, "0.0.0.0/0")...) }},
		{"a fifo", "is a FIFO", func() { check(t, unix.Mkfifo(path, 0o600)) }},
		{"a loop", "symbolic links", func() { check(t, os.Symlink("a.txt", path)) }},
		{"a directory", "is a directory", func() { check(t, os.Mkdir(path, 0o700)) }},
		{"4 GB of nothing", "4294967296 bytes", func() {
			check(t, os.WriteFile(path, nil, 0o600))
			check(t, os.Truncate(path, 4<<30))
		}},
	} {
		check(t, os.RemoveAll(path))
		c.put()
		await(t, c.name, func() bool { p := f.problem("a"); return strings.Contains(p, c.want) })
		f.wants(t, c.name, holds)
		t.Logf("%s: %s", c.name, f.problem("a"))
	}
	check(t, os.RemoveAll(path))
	f.list("a.txt", good...)
	await(t, "a good file again", func() bool { return f.problem("a") == "" })
	f.wantEvent(t, "blocks", "a", "not taken, the last good one stays: ")

	// A restart over a bad file.
	f.list("a.txt", "nonsense")
	await(t, "it is bad", func() bool { return f.problem("a") != "" })
	f.run.Kill()
	<-f.run.Done()
	gen := f.generation()
	f.start()
	f.wants(t, "restarted over a bad file", holds)
	if now := f.generation(); now != gen {
		t.Errorf("the restart moved the kernel's rules from generation %d to %d", gen, now)
	}
	var st engine.Status
	f.mustJSON(&st, "status")
	if len(st.Lists) != 2 || !st.Lists[0].InUse || !strings.Contains(st.Lists[0].Problem, "a.txt: none of its 1 line") || st.Lists[1].Problem != "" {
		t.Errorf("status: %+v", st.Lists)
	}
	if out := f.must("status"); !strings.HasPrefix(out, "error: blocklist a: the last good one is in use: ") {
		t.Errorf("weir status:\n%s", out)
	}
	if r := f.weir("check"); r.code != 2 || !strings.Contains(r.stderr, "a.txt: none of its 1 line") || !strings.Contains(r.stdout, "blocklist b: 2 entries") {
		t.Errorf("weir check: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}

	// A list that grows too much, until somebody says that it may.
	f.list("a.txt", good...)
	await(t, "a good file again", func() bool { return f.problem("a") == "" })
	var lines []string
	for i := range 200 {
		lines = append(lines, number(badNet4, i).String(), number(badNet6, i).String())
	}
	f.list("a.txt", lines...)
	await(t, "it grows too much", func() bool { return strings.Contains(f.problem("a"), "max_change") })
	f.wants(t, "it grows too much", holds)
	if r := f.weir("blocks", "accept", "nobody"); r.code != 2 || !strings.Contains(r.stderr, "there are: a, b") {
		t.Errorf("weir blocks accept: exit code %d, %s", r.code, r.stderr)
	}
	f.must("blocks", "accept", "a")
	if p := f.problem("a"); p != "" {
		t.Errorf("accepted: %s", p)
	}
	f.wants(t, "accepted", map[int]bool{7: false, 8: false, 100: false})
	f.stop()
}

// TestLargeBlocklist changes a list of 200,000 while no weir runs: too many to read what the
// kernel holds, and the counters go on all the same. Then it changes in a running one.
func TestLargeBlocklist(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	var text strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&text, "20.%d.%d.%d\n", i>>16, i>>8&255, i&255)
	}
	large := strings.TrimSuffix(text.String(), "\n")
	f.list("a.txt", append(bad(7), large)...)
	f.write(f.config("blocklists:", "  - {name: a, files: a.txt}"))
	began := time.Now()
	f.start()
	t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	f.warm()
	f.wants(t, "at first", map[int]bool{7: false, 8: true})
	f.run.Kill()
	<-f.run.Done()
	f.wants(t, "without a weir", map[int]bool{7: false, 8: true})

	began = time.Now()
	f.start()
	t.Logf("adopted after %s", time.Since(began).Round(time.Millisecond))
	f.run.Kill()
	<-f.run.Done()
	f.list("a.txt", append(bad(7, 8), large)...)
	began = time.Now()
	f.start()
	t.Logf("ready with another list after %s", time.Since(began).Round(time.Millisecond))
	f.wants(t, "another list", map[int]bool{7: false, 8: false})
	for _, fam := range families {
		if w := f.why(in(fam, 7)); w.Packets != 3 || w.Bytes != 3*packetLen(fam) {
			t.Errorf("%s counted %d packets, want 3", in(fam, 7), w.Packets)
		}
	}
	began = time.Now()
	f.list("a.txt", append(bad(7, 8, 9), large)...)
	f.awaitPass(t, "the list is read again", 9, false)
	t.Logf("an entry more after %s", time.Since(began).Round(time.Millisecond))
	for _, fam := range families {
		if w := f.why(in(fam, 7)); w.Packets != 3 {
			t.Errorf("%s counted %d packets after an update, want 3", in(fam, 7), w.Packets)
		}
	}
	began = time.Now()
	f.must("block", "192.0.2.10")
	t.Logf("weir block took %s", time.Since(began).Round(time.Millisecond))
	if f.passes(in(model.IPv4, 10)) {
		t.Error("weir block is not in force when it returns")
	}
	f.stop()
}
