package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

func TestMain(m *testing.M) {
	if isHelper(os.Args) {
		helper(os.Args[1:])
		return
	}
	os.Exit(lab.Main(m))
}

// require skips, or fails in CI, where a program of the comparison is missing.
func require(t *testing.T, programs ...string) {
	t.Helper()
	lab.Require(t)
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("BPF needs root outside of user namespaces")
	}
}

func buildWeir(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weir")
	cmd := exec.Command("go", "build", "-o", path, "weir/cmd/weir")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build weir: %v\n%s", err, out)
	}
	return path
}

// TestWholeRun does all of it but the deaths, small, and looks for holes in the tables.
func TestWholeRun(t *testing.T) {
	require(t, "go", "nft", "iptables-nft-restore", "iptables-legacy-restore", "ipset")
	weir := buildWeir(t)
	part := func(name string) *Report {
		o, err := parse([]string{"-services", "1,12", "-entries", "10,700", "-ports", "504", "-for", "1s", "-rounds", "1", "-limit", "20s", "-only", name, "-weir", weir}, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		rep, err := measure(t.Context(), o, &log)
		if err != nil {
			t.Fatalf("%v\n%s", err, &log)
		}
		return rep
	}
	rep, more, lists, edge, direct, egress := part("apply"), part("packets"), part("blocks"), part("edge"), part("direct"), part("egress")
	steering, mirrors := part("steering"), part("mirrors")
	rep.Packets, rep.Blocks, rep.Edge, rep.Direct, rep.Egress = more.Packets, lists.Blocks, edge.Edge, direct.Direct, egress.Egress
	rep.Steering, rep.Mirrors = steering.Steering, mirrors.Mirrors
	rep.Notes = slices.Concat(rep.Notes, more.Notes, lists.Notes, edge.Notes, direct.Notes, egress.Notes, steering.Notes, mirrors.Notes)
	packets := 2 + 2*5
	switch {
	case lab.InUserNamespace(): // BPF and large transactions are for root alone, and the report says so
		packets = 0
		expected := func(note string) bool {
			return strings.Contains(note, "BPF needs root") || strings.Contains(note, "send buffer") || strings.Contains(note, "socket buffers need root") || strings.HasPrefix(note, noTEE)
		}
		if !slices.ContainsFunc(rep.Notes, expected) || slices.ContainsFunc(rep.Notes, func(n string) bool { return !expected(n) }) {
			t.Errorf("notes: %q", rep.Notes)
		}
	case len(rep.Notes) > 0:
		t.Errorf("notes: %q", rep.Notes)
	}
	if got, want := len(rep.Apply), 2*8; got != want {
		t.Errorf("%d rows of loading, want %d", got, want)
	}
	for _, c := range rep.Apply {
		live := c.Name == weirLive
		if c.Problem != "" || !c.First.filled() || !c.Change.filled() || c.Memory <= 0 || c.Rounds != 1 || live && !c.Health.filled() {
			t.Errorf("%+v has a hole", c)
		}
	}
	if got := len(rep.Packets); got != packets {
		t.Errorf("%d rows of packets, want %d", got, packets)
	}
	if got := len(rep.Direct); packets > 0 && got != 2*3+1 {
		t.Errorf("%d rows of direct return, want %d", got, 2*3+1)
	}
	for _, c := range slices.Concat(rep.Packets, rep.Direct) {
		if c.Problem != "" || c.New.Least <= 0 || c.Established.Least <= 0 || c.Rounds != 1 {
			t.Errorf("%+v has a hole", c)
		}
	}
	checkBlocks(t, rep.Blocks, packets > 0)
	checkEgress(t, rep.Egress, packets > 0)
	checkSteering(t, rep.Steering, packets > 0)
	checkMirrors(t, rep.Mirrors, packets > 0, !slices.ContainsFunc(mirrors.Notes, func(n string) bool { return strings.HasPrefix(n, noTEE) }))
	if want := 1 + 5 + 3; packets > 0 && len(rep.Edge) != want {
		t.Errorf("%d rows of listeners, want %d", len(rep.Edge), want)
	}
	for _, c := range rep.Edge {
		if c.Problem != "" || c.Packet.Least <= 0 || c.Rounds != 1 {
			t.Errorf("%+v has a hole", c)
		}
	}
	var out bytes.Buffer
	if err := rep.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{" failed ", "NaN", "Inf", "%!", "> limit"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("the tables hold %q:\n%s", bad, &out)
		}
	}
	if err := rep.save(filepath.Join(t.TempDir(), "figures.json")); err != nil {
		t.Error(err)
	}
}

// checkBlocks looks for holes in the part about blocklists.
func checkBlocks(t *testing.T, r *BlocksReport, packets bool) {
	t.Helper()
	if !packets {
		return
	}
	if !r.Change.filled() || !r.Compile.filled() || r.Changes != changeTimes {
		t.Errorf("no change: %+v", r)
	}
	for _, c := range r.Cells {
		if c.Problem != "" || c.Packet.Least <= 0 || c.Rounds != 1 || c.Name != oneRule && (!c.Load.filled() || c.Memory <= 0) {
			t.Errorf("%+v has a hole", c)
		}
	}
	if want := 1 + 2*2*4; len(r.Cells) != want {
		t.Errorf("%d cells, want %d", len(r.Cells), want)
	}
}

func (t Times) filled() bool { return t.Clock > 0 && t.CPU > 0 }

func TestLimit(t *testing.T) {
	lab.Require(t)
	n, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	h, err := n.Host("box")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{options: options{limit: 50 * time.Millisecond}}
	start := time.Now()
	if res := b.launch(t.Context(), h, []string{"sleep", "60"}); res.Problem != errLimit.Error() {
		t.Errorf("%+v, want the limit as its problem", res)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("ended after %s", took)
	}
	b.limit = time.Minute
	if res := b.launch(t.Context(), h, []string{"false"}); !strings.Contains(res.Problem, "exit status 1") {
		t.Errorf("%+v, want its exit status as its problem", res)
	}
}

func TestChangesAreOfOneBackend(t *testing.T) {
	cfg := newModel(40)
	have := plan.Build(cfg, nil)
	next := replaced(cfg, 17)
	d := ruleset.Diff(have.Ruleset, plan.Build(next, have).Ruleset)
	if got, want := d.Summary(), "1 element changed"; got != want {
		t.Errorf("another address: %s, want %s", got, want)
	}
	if !replaced(next, 17).Services[17].Equal(cfg.Services[17]) {
		t.Error("replaced twice is not as it was")
	}
	if withWeight(cfg, 3, 0).Services[3].Equal(cfg.Services[3]) || !withWeight(cfg, 3, 1).Services[3].Equal(cfg.Services[3]) {
		t.Error("weights are not as asked for")
	}
	for i, s := range next.Services {
		if (s == cfg.Services[i]) == (i == 17) {
			t.Errorf("service %d: shared %t", i, s == cfg.Services[i])
		}
	}
}

func TestIptablesRules(t *testing.T) {
	cfg := newModel(1)
	cfg.Services[0].Backends = cfg.Services[0].Backends[:2]
	const head = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
	const tail = "-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
	for _, tt := range []struct {
		chains bool
		want   string
	}{
		{false, "-A PREROUTING -d 198.18.0.1/32 -p tcp -m tcp --dport 80 -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination 10.0.0.1:8080\n" +
			"-A PREROUTING -d 198.18.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080\n"},
		{true, ":service-00000 - [0:0]\n" +
			"-A PREROUTING -d 198.18.0.1/32 -p tcp -m tcp --dport 80 -j service-00000\n" +
			"-A service-00000 -p tcp -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination 10.0.0.1:8080\n" +
			"-A service-00000 -p tcp -j DNAT --to-destination 10.0.0.2:8080\n"},
	} {
		if got, want := string(iptablesRules(cfg, tt.chains)), head+tt.want+tail; got != want {
			t.Errorf("chains %t:\n%s\nwant:\n%s", tt.chains, got, want)
		}
	}
}

func TestFrames(t *testing.T) {
	syns, acks := clientPackets(3000, 7)
	seen := map[string]bool{}
	for i := range syns {
		h, err := lab.ParseIP(syns[i])
		if err != nil {
			t.Fatal(err)
		}
		later, err := lab.ParseIP(acks[i])
		if err != nil {
			t.Fatal(err)
		}
		if h.Src != later.Src || h.Dst != later.Dst {
			t.Fatalf("packet %d: %s > %s and later %s > %s", i, h.Src, h.Dst, later.Src, later.Dst)
		}
		if flow := h.Src.String() + h.Dst.String(); seen[flow] {
			t.Fatalf("flow %s comes twice", flow)
		} else {
			seen[flow] = true
		}
	}
	frames := ether(outsideMAC, clientMAC, syns)
	if len(frames) != 3000*frameSize {
		t.Fatalf("%d bytes of frames", len(frames))
	}
	if got := frames[2*frameSize+14:][:len(syns[2])]; !bytes.Equal(got, syns[2]) {
		t.Errorf("frame 2 carries %x, want %x", got, syns[2])
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := median(tt.in); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestFigure(t *testing.T) {
	for _, tt := range []struct {
		problem     string
		value, base float64
		want        string
	}{
		{"", 1234.5, 0, "1234 ms"},
		{"", 12.34, 6.17, "12.3 ms (x2.00)"},
		{"", 5, 5, "5.00 ms"},
		{"exit status 1: no", 0, 5, "failed"},
		{errLimit.Error(), 0, 5, "> limit"},
		{"", 0, 5, "-"},
	} {
		if got := figure(tt.problem, tt.value, tt.base, "ms"); got != tt.want {
			t.Errorf("figure(%q, %v, %v) = %q, want %q", tt.problem, tt.value, tt.base, got, tt.want)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, bad := range [][]string{{"-services", "0"}, {"-services", "x"}, {"-rounds", "0"}, {"-only", "all"}, {"-ports", "3"}, {"-ports", "64513"},
		{"-for", "1ms"}, {"-for", "1h"}, {"-nonsense"}} {
		if _, err := parse(bad, &bytes.Buffer{}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	o, err := parse([]string{"-quick"}, os.Stderr)
	if err != nil || len(o.sizes) != 2 || o.rounds != 2 {
		t.Errorf("-quick: %+v, %v", o, err)
	}
}
