package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkEgress looks for holes in the part about pools, and that weir uses all of them. How many
// connections a second come about is the machine's affair.
func checkEgress(t *testing.T, r *EgressReport, packets bool) {
	t.Helper()
	if fills := len(r.Fill); packets != (fills == len(translators)) {
		t.Errorf("%d pools were filled", fills)
	}
	for _, c := range r.Fill {
		if c.Problem != "" || c.First <= 0 || c.Flows < c.First || c.Flows > r.Possible || c.CPU <= 0 || len(c.Levels) != len(fillLevels) {
			t.Errorf("%+v has a hole", c)
		}
		for _, l := range c.Levels {
			if l.New.Least <= 0 || l.Failed < 0 || l.Failed > 1 {
				t.Errorf("%s: %+v has a hole", c.Name, l)
			}
		}
		switch full := float64(c.Flows) >= aimFull*float64(r.Possible); {
		case c.Name == egressWeir && (!full || c.Addresses != poolAddresses || c.OwnMemory <= 0):
			t.Errorf("weir uses %d of %d: %+v", c.Flows, r.Possible, c)
		case c.Name == egressPlain && full && c.Addresses < poolAddresses:
			t.Errorf("the range is full with %d addresses", c.Addresses)
		}
	}
	if len(r.Load) != len(translators) {
		t.Errorf("%d rows of short connections, want %d", len(r.Load), len(translators))
	}
	for _, c := range r.Load {
		if c.Problem != "" || c.Opened <= 0 || c.Tracked <= 0 || c.Addresses < 1 || c.Busiest <= 0 {
			t.Errorf("%+v has a hole", c)
		}
	}
}

func TestPoolFlows(t *testing.T) {
	const most = poolAddresses * mostPoolPorts
	flows := poolFlows(most)
	seen := make(map[netip.AddrPort]bool, most)
	clients := map[netip.Addr]int{}
	for _, f := range flows {
		if seen[f] || f.Port() < firstPoolPort {
			t.Fatalf("%s comes twice, or is below port %d", f, firstPoolPort)
		}
		seen[f] = true
		clients[f.Addr()]++
	}
	for a, n := range clients {
		if n != most/poolClients {
			t.Errorf("%s has %d flows, want %d", a, n, most/poolClients)
		}
	}
	if len(clients) != poolClients {
		t.Errorf("%d clients, want %d", len(clients), poolClients)
	}
}

func TestConnectPorts(t *testing.T) {
	for _, tt := range []struct {
		time time.Duration
		want int
	}{{15 * time.Second, 8064}, {time.Minute, 32256}, {2 * time.Minute, 64512}} {
		if got := (&options{loadFor: tt.time}).connectPorts(); got != tt.want {
			t.Errorf("%s: %d ports, want %d", tt.time, got, tt.want)
		}
	}
}

func TestRaiseTracked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "max")
	put := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func(when, want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %s", when, got, err, want)
		}
	}
	var said bytes.Buffer
	put("1000\n")
	restore := raiseTracked(path, 5000, &said)
	look("raised", "5000")
	restore()
	look("put back", "1000")

	raiseTracked(path, 900, &said)()
	look("it was enough", "1000")

	restore = raiseTracked(path, 5000, &said)
	put("7000\n")
	restore()
	look("changed by another meanwhile", "7000")

	raiseTracked(filepath.Join(t.TempDir(), "none"), 5000, &said)()
	if said.Len() > 0 {
		t.Errorf("said %q", &said)
	}
	restore = raiseTracked(path, 8000, &said)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	restore()
	if !strings.Contains(said.String(), "was 7000") {
		t.Errorf("could not be put back, and said %q", &said)
	}
}

// TestEgressReport prints what came of a run in which weir loses somewhere.
func TestEgressReport(t *testing.T) {
	levels := func(ns, failed float64) (out []LevelCell) {
		for _, p := range fillLevels {
			out = append(out, LevelCell{Percent: p, New: Cost{ns, ns}, Failed: failed})
		}
		return out
	}
	r := &Report{Egress: &EgressReport{Ports: 100, Possible: 600, Buckets: 1200,
		Fill: []FillCell{{Name: egressPlain, First: 400, Flows: 400, Tries: 2, Addresses: 4, Levels: levels(1000, 0.5)},
			{Name: egressWeir, First: 590, Flows: 598, Tries: 3, Addresses: 6, Levels: levels(2000, 0)}},
		Load: []ConnectCell{{Name: egressPlain, Ports: 10, Opened: 90}, {Name: egressWeir, Ports: 10, Opened: 88, Failed: 2}}}}
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"400 (66.67 %)", "598 (99.67 %)", "99.67 %: met", "2 of 90 at 0 a second: MISSED", "full, 1.0 entries in each",
		"a pool 50 % wanted, new connection: snat to a range x0.50", "short connections, failed: snat to a range x0.00"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "find no port: snat") {
		t.Errorf("nobody loses by failing half of its connections:\n%s", &out)
	}
}
