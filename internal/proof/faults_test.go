package proof

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"weir/internal/lab"
)

var update = flag.Bool("update", false, "write docs/FAULTS.md anew, with what clients saw in this run")

var faultsFile = filepath.Join("..", "..", "docs", "FAULTS.md")

// fault is something that goes wrong, and a row of docs/FAULTS.md.
type fault struct {
	name string // of the subtest
	what string
	does string // what weir does
	run  func(*testing.T) (saw string)
	also string // other tests of the same
}

var faults = []fault{
	{"kill", "`kill -9` of weir, and a new start",
		"Nothing is lost: the kernel goes on alone. The new weir finds its rules, commits nothing, and knows who was down and what operators said.",
		killUnderLoad, "`e2e` TestRestartAdopts, TestRestartKnowsWhoIsDown"},
	{"stop", "weir is stopped (SIGSTOP) for a while, and a backend dies meanwhile",
		"Nobody is taken out while it sleeps. When it goes on, checks that ran out in its sleep say nothing of the backends; the dead one is out after the usual time, counted from then, and at most one interval more.",
		stopUnderLoad, "`health` TestProberAfterAStop"},
	{"disk", "the disk is full where the state file is",
		"Works on with what it has in memory, says so once, and tries every second; the old file stays whole. Once there is room everything is saved. What was said meanwhile is lost if weir ends first.",
		fullDisk, "`e2e` TestStateFile"},
	{"clock", "the clock is set back by an hour",
		"Waits, bounds and hold-offs are measured with the monotonic clock, so nothing changes. A drain's time that was written to the state file before is not longer for it.",
		clockSetBack, "`engine` TestResumedWords"},
	{"flush", "another tool flushes all rules (`nft flush ruleset`)",
		"Puts its rules back, within 2 s, and tells of it (`weir events`). New connections fail in between.",
		flushUnderLoad, "`e2e` TestRepair"},
	{"half-file", "the configuration is half-written when weir is told to load it (SIGHUP), cut at any byte",
		"Refuses it with file:line:column, and `weir check` ends with 2; the last good configuration stays. A cut that leaves a complete configuration can't be told from one that is meant: replace files with a rename.",
		halfFile, "`e2e` TestBrokenReload, `config` FuzzParse"},
	{"lost-answers", "the kernel's answers to commits are lost (netlink ENOBUFS)",
		"Doesn't guess: reads back what is there and sends what is missing.",
		lostAnswers, "`nft` TestAnswerLost, `engine` TestOthersCommitMeanwhile"},
	{"burst", "10,000 backends change their health in one second, twice",
		"Takes what has come in since the last commit as one change. The rules follow within seconds; other services notice nothing.",
		burst, "`engine` TestChecksTakeOutAndBringBack"},
	{"mirror", "all traffic is mirrored, and the collector's link is slow, then nobody answers there, then its device goes",
		"Originals are never held up, and neither a copy nor an ICMP error about one gets to anybody else. What is lost is counted by why (`weir mirrors`), and told (`weir events`).",
		collectorFails, "`e2e` TestMirrorSlow, TestMirrorCollectorDown, TestMirrorDeviceGone"},
	{"mirror-back", "all traffic is mirrored, and the collector routes the copies back",
		"Drops them where they come in, so that nobody gets a packet twice; stops the mirror within 2 s and says why.",
		collectorRoutesBack, "`e2e` TestMirrorCameBack"},
}

// TestFaults lets each of them happen to real traffic over IPv4 and IPv6, and holds the
// rows of docs/FAULTS.md against those above. With -update the file is written anew.
func TestFaults(t *testing.T) {
	lab.Require(t)
	tool(t, "nft")
	seen := map[string]string{}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			if saw := f.run(t); !t.Failed() {
				seen[f.name] = saw
				t.Log(saw)
			}
		})
	}
	old := measured(t)
	if *update {
		for _, f := range faults {
			if seen[f.name] == "" { // left out by -run, or failed
				seen[f.name] = old[f.row("")]
			}
		}
		check(t, os.WriteFile(faultsFile, []byte(faultsText(seen)), 0o644))
		return
	}
	for _, f := range faults {
		if old[f.row("")] == "" {
			t.Errorf("docs/FAULTS.md does not have the row %q as this test has it, or no figures in it; run with -update", f.name)
		}
	}
	if len(old) != len(faults) {
		t.Errorf("docs/FAULTS.md has %d rows, want %d", len(old), len(faults))
	}
}

const columns = "| fault | what weir does | what clients saw | how it is tested |\n|---|---|---|---|\n"

func (f *fault) row(saw string) string {
	return fmt.Sprintf("| %s | %s | %s | `proof` TestFaults/%s; %s |\n", f.what, f.does, saw, f.name, f.also)
}

// measured returns what clients saw, by the rows without it.
func measured(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(faultsFile)
	if err != nil && !*update {
		t.Error(err)
	}
	rows := map[string]string{}
	_, table, _ := strings.Cut(string(text), columns)
	for line := range strings.Lines(table) {
		cells := strings.Split(line, " | ")
		if len(cells) != 4 {
			break
		}
		saw := cells[2]
		cells[2] = ""
		rows[strings.Join(cells, " | ")] = saw
	}
	return rows
}

func faultsText(seen map[string]string) string {
	var b strings.Builder
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	release, _, _ := strings.Cut(string(kernel), "-")
	fmt.Fprintf(&b, `# When something goes wrong

What weir does about it, and what it cost the clients: counted by clients that open some 1,100 connections a second
over IPv4 and IPv6, one question each, to four backends. The table is written by a test, which every
run of `+"`make test`"+` repeats:

    go test ./internal/proof -run TestFaults -update -timeout 20m

Figures of %s: %d cores, Linux %s. They are of that run and that machine; the rest holds always.

`, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), strings.TrimSpace(release))
	b.WriteString(columns)
	for _, f := range faults {
		b.WriteString(f.row(seen[f.name]))
	}
	b.WriteString(`
How long a backend that died gets new connections, and what a drain, a flapping backend and a change of a Maglev
table do, is in TestDeadBackend, TestHundredDrains, TestFlapping, TestAllDownAllUp and TestMaglevMoves beside it.
What a weir that is killed costs steered services is in TestSteeringKilled of internal/e2e.
WEIR_PROOF_STOP and WEIR_PROOF_FLAP make the sleep and the flapping longer.
`)
	return b.String()
}

// ofAll says how many short connections failed.
func ofAll(res lab.LoadResult) string {
	s := fmt.Sprintf("%d of %d connections failed", res.Failed, res.Opened+res.Failed)
	if res.Long.Opened > 0 {
		s += fmt.Sprintf(", %d of %d long ones broke", res.Long.Broken, res.Long.Opened)
	}
	return s
}

// TestFaultsNames: the tests that the table names are there.
func TestFaultsNames(t *testing.T) {
	for _, f := range faults {
		pkg := ""
		for _, word := range strings.FieldsFunc(f.also, func(r rune) bool { return r == ' ' || r == ',' }) {
			if name, ok := strings.CutPrefix(word, "`"); ok {
				pkg = strings.TrimSuffix(name, "`")
				continue
			}
			files := must(filepath.Glob(filepath.Join("..", pkg, "*_test.go")))(t)
			found := false
			for _, path := range files {
				found = found || strings.Contains(string(must(os.ReadFile(path))(t)), "\nfunc "+word+"(")
			}
			if !found {
				t.Errorf("%s: there is no %s in internal/%s", f.name, word, pkg)
			}
		}
	}
}
