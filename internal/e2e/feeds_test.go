package e2e

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/model"
)

// TestFireHOL takes a list in the form of FireHOL's level 1, with the private networks that it
// has. Where a backend is in one of them the list is not taken, and weir says what to type; so
// typed, it is in force, and the inside goes on.
func TestFireHOL(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	text, err := os.ReadFile("testdata/firehol_level1.netset")
	check(t, err)
	f.list("level1.netset", strings.TrimSpace(string(text)))
	f.write(f.config("blocklists: [{name: level1, files: level1.netset}]"))
	f.start()
	f.warm()
	problem := f.problem("level1")
	t.Log(problem)
	for _, want := range []string{"level1.netset:26: 10.0.0.0/8", "of service sink", "allow: [10.0.0.0/8]", "127.0.0.0/8", "allow: [127.0.0.1]"} {
		if !strings.Contains(problem, want) {
			t.Errorf("it does not say %q: %s", want, problem)
		}
	}
	if r := f.weir("reload"); r.code != 0 {
		t.Errorf("weir reload: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := f.weir("apply"); !strings.Contains(r.stderr, "allow: [10.0.0.0/8]") {
		t.Errorf("weir apply does not say what to type: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if !f.passes(in(model.IPv4, 7)) {
		t.Error("a list that is not taken is in force")
	}

	f.write(f.config("blocklists: [{name: level1, files: level1.netset}]", "allow: [10.0.0.0/8, 127.0.0.0/8]"))
	f.must("reload")
	if problem := f.problem("level1"); problem != "" {
		t.Fatalf("with allow: %s", problem)
	}
	for n, want := range map[int]bool{7: false, 127: false, 128: true, 199: true, 200: false, 201: true} {
		if got := f.passes(in(model.IPv4, n)); got != want {
			t.Errorf("packets from %s pass: %t, want %t", in(model.IPv4, n), got, want)
		}
	}
	f.last++
	inside := f.last
	c, err := f.Backends[0].Dial(within(t, patience), "udp", "", target(model.IPv4, 1, 9).String())
	check(t, err)
	defer c.Close()
	await(t, "a packet from inside", func() bool {
		_, err := fmt.Fprintf(c, "%08d", inside)
		check(t, err)
		time.Sleep(time.Millisecond)
		return f.got(inside) > 0
	})
	if w := f.why(f.Backends[0].V4); w.Action != "none" || len(w.Allow) != 1 {
		t.Errorf("why: %+v", w)
	}
	f.stop()
}

// TestTenMillionLines: a list that is far too long is an error that says so, and weir does not
// take the memory for all of it.
func TestTenMillionLines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "long.txt"))
	check(t, err)
	w := bufio.NewWriterSize(file, 1<<20)
	var line []byte
	for i := range 10_000_000 {
		line = netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}).AppendTo(line[:0])
		w.Write(append(line, '\n'))
	}
	check(t, w.Flush())
	check(t, file.Close())
	config := filepath.Join(dir, "weir.yaml")
	check(t, os.WriteFile(config, []byte("blocklists: [{name: long, files: long.txt, strict: true}]\nservices: []\n"), 0o600))
	cmd := exec.CommandContext(within(t, time.Minute), binary, "--config", config, "check")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("%s %s", out, cmd.ProcessState.UserTime())
	if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), "long.txt:4000001: more than 4000000 entries, the most that list long may hold") {
		t.Errorf("weir check: exit code %d\n%s", code, out)
	}
	const most = 1 << 20 // KiB
	if used := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss; used > most {
		t.Errorf("it took %d MiB", used>>10)
	} else {
		t.Logf("%d MiB", used>>10)
	}
}

// TestConfirmLists: a change that is not confirmed takes its blocklists and what it allows back
// with it, beside a running weir; entries that are in both count on.
func TestConfirmLists(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	f.list("a.txt", bad(7, 8)...)
	f.list("b.txt", bad(8, 9)...)
	before := f.config("blocklists: [{name: a, files: a.txt}]")
	f.write(before)
	f.start()
	f.warm()
	holds := map[int]bool{7: false, 8: false, 9: true, 10: true}
	f.wants(t, "before", holds)
	f.must("block", in(model.IPv4, 11).String())
	at := f.applyConfirm(f.config("blocklists: [{name: b, files: b.txt}, {name: c, entries: [192.0.2.10, \"2001:db8:bad::a\"]}]",
		"allow: [192.0.2.9, \"2001:db8:bad::9\"]"), 4*time.Second)
	f.wants(t, "until it is confirmed", map[int]bool{7: true, 8: false, 9: true, 10: false})
	if time.Now().After(at) {
		t.Skip("this machine is too slow to look before the time is over")
	}
	f.awaitPass(t, "it goes back", 7, false)
	if early := time.Until(at); early > 0 {
		t.Errorf("it went back %s early", early)
	}
	f.wants(t, "gone back", holds)
	for _, fam := range families {
		if w := f.why(in(fam, 8)); w.Packets != 3 || len(w.Matches) != 1 || w.Matches[0].List != "a" {
			t.Errorf("%s: %+v, want 3 packets, of list a", in(fam, 8), w)
		}
		if w := f.why(in(fam, 9)); len(w.Allow) != 0 {
			t.Errorf("%s is allowed still", in(fam, 9))
		}
	}
	if f.passes(in(model.IPv4, 11)) {
		t.Error("what an operator blocked went with the change")
	}
	f.stop()
}

// TestPlanOfLists: weir plan tells by lists how many entries come, and how many go.
func TestPlanOfLists(t *testing.T) {
	t.Parallel()
	f := newFence(t)
	f.list("a.txt", bad(1, 2, 3)...)
	f.list("b.txt", bad(3, 4)...)
	f.apply(f.config("blocklists: [{name: a, files: a.txt}, {name: b, files: b.txt}]"))
	f.list("a.txt", bad(3, 5)...)
	f.list("b.txt", bad(3)...)
	out := f.must("plan")
	for _, want := range []string{"# blocklist a: +2 entries\n", "# blocklist a: −4 entries\n", "# blocklist b: −2 entries\n",
		"# blocklists: −6 entries that no list has any more\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("weir plan does not say %q:\n%s", want, out)
		}
	}
}
