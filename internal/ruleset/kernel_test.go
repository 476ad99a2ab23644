//go:build linux

package ruleset

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// unavailable skips the test for want of something, but not in CI, where a test that
// does not run must be seen.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// inNamespace returns a command in a network namespace of its own, which is gone with
// its last process; without root, in a user namespace too.
func inNamespace(t *testing.T, script string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", script)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

// needKernel skips the test where no namespace or no nft is to be had.
func needKernel(t *testing.T) {
	t.Helper()
	if out, err := inNamespace(t, "nft list ruleset").CombinedOutput(); err != nil {
		unavailable(t, "no nft in a network namespace: %v\n%s", err, out)
	}
}

// nft goes through cases in one fresh namespace: of each, the texts are loaded in turn
// into an empty ruleset, each as one transaction. It returns what the kernel holds at the
// end of each case.
func nft(t *testing.T, cases ...[]string) []string {
	t.Helper()
	dir := t.TempDir()
	var script strings.Builder
	for i, texts := range cases {
		script.WriteString("nft flush ruleset\n")
		for j, text := range texts {
			path := filepath.Join(dir, fmt.Sprintf("%d-%d.nft", i, j))
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&script, "nft -f %s\n", path)
		}
		fmt.Fprintf(&script, "nft list ruleset\necho '%s'\n", listingEnd)
	}
	cmd := inNamespace(t, script.String())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	listings := strings.Split(stdout.String(), listingEnd)
	if done := len(listings) - 1; err != nil || done != len(cases) {
		t.Fatalf("nft: %v\n%s\nin case %d of these:\n%s", err, &stderr, done, strings.Join(cases[done], "\n----\n"))
	}
	return listings[:len(cases)]
}

const listingEnd = "---- end of listing ----"

func TestKernelLoadsThePrintedText(t *testing.T) {
	needKernel(t)
	text := fixture().String()
	listed := nft(t, []string{text})[0]
	again := nft(t, []string{listed})[0] // nft may word its own output differently the second time
	comments := regexp.MustCompile(`comment "[^"]*"`)
	for what, got := range map[string]string{"listed": listed, "loaded from the listing": again} {
		mustEqual(t, "comments "+what, lines(comments.FindAllString(got, -1)), lines(comments.FindAllString(text, -1)))
		mustEqual(t, "elements "+what, lines(elements(got)), lines(elements(text)))
	}
}

func lines(s []string) string { return strings.Join(s, "\n") }

var (
	elemsBlock = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)
	elemSep    = regexp.MustCompile(`,\s+`)
)

// elements returns all elements of a listing, sorted, because the kernel's order is that
// of its hash.
func elements(listing string) []string {
	var out []string
	for _, m := range elemsBlock.FindAllStringSubmatch(listing, -1) {
		out = append(out, elemSep.Split(m[1], -1)...)
	}
	slices.Sort(out)
	return out
}

// normal brings a listing of one table into an order that does not depend on the way on
// which it came about: elements, then sets and chains.
func normal(listing string) string {
	listing = elemsBlock.ReplaceAllStringFunc(listing, func(block string) string {
		return "elements = { " + strings.Join(elements(block), ", ") + " }"
	})
	blocks := regexp.MustCompile(`(?ms)^\t(?:set|map|chain) .*?^\t\}\n`).FindAllString(listing, -1)
	slices.Sort(blocks)
	return strings.Join(blocks, "")
}

// A delta, printed and given to nft, leaves the kernel as loading the new ruleset does.
func TestKernelTakesDeltas(t *testing.T) {
	needKernel(t)
	more := fixture() // its delta has more elements than one line carries
	more.Tables[0].Set("addrport4/00").Parts[1] = slots(dnsBase, slices.Repeat([]string{"10.1.2.9:53"}, dnsMod)...)
	pairs := []pair{{&Ruleset{}, fixture()}, {fixture(), &Ruleset{}}, {fixture(), more}}
	random := rapid.Custom(genPair)
	for i := range 40 {
		pairs = append(pairs, random.Example(i))
	}
	var cases [][]string
	for _, p := range pairs {
		cases = append(cases, []string{p.a.String(), Diff(p.a, p.b).String()}, []string{p.b.String()})
	}
	listed := nft(t, cases...)
	for i, p := range pairs {
		if got, want := normal(listed[2*i]), normal(listed[2*i+1]); got != want {
			t.Errorf("pair %d, got:\n%s\nwant:\n%s\nfrom:\n%s\ndelta:\n%s", i, got, want, p.a, cases[2*i][1])
		}
	}
}
