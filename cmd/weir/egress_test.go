package main

import (
	"bytes"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/egress"
	"weir/internal/engine"
	"weir/internal/state"
)

// busyPools is a status with all that can be said of pools.
func busyPools() engine.EgressStatus {
	number := func(f float64) *float64 { return &f }
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	to := netip.MustParseAddrPort("203.0.113.1:443")
	use := func(a string, n int, full *float64) engine.EgressUse {
		return engine.EgressUse{Address: at(a), Protocol: "tcp", Destination: to, InUse: n, Ports: 64512, Percent: 100 * float64(n) / 64512,
			NewPerSecond: 512.5, Growth: number(20), FullIn: full, NearFull: full != nil}
	}
	near := use("198.51.100.1", 62580, number(96.6))
	idle := use("198.51.100.2", 12, nil)
	idle.MaybeMore = 3
	return engine.EgressStatus{At: noon, Running: true, Dump: engine.DumpStatus{At: noon.Add(-12 * time.Second), TookMS: 118.4}, Problems: []string{"the box's listeners could not be read: too late"},
		Failures: egress.Failures{InsertFailed: 7, Drop: 9, Exhaustion: 5, Race: 1, Unknown: 1, TableFull: 2},
		Pools: []engine.EgressPool{
			{Name: "apis", Spread: "flow", WhenFull: "spill", Level: egress.Error, Connections: 62630, NewPerSecond: 525, NewTotal: 1234567, Spilled: 3, Hold: 118.75, Relieved: 1, Taken: 2, LeftOut: 4,
				Bears: &engine.Bears{Protocol: "tcp", Destination: to, InUse: 62592, Limit: 103219, Factor: 1.649, NewPerSecond: 525, Rate: 865.7},
				Addresses: []engine.EgressAddress{
					{Address: at("198.51.100.1"), State: state.Up, Ports: 64512, Connections: 62590, InUse: 62580, Percent: 97.005, Busiest: &near, NewPerSecond: 512.5, NewTotal: 1000000, FullIn: number(96.6), Relieved: 1},
					{Address: at("198.51.100.2"), State: state.Draining, Reason: "drained by operator ann", Since: noon.Add(-90 * time.Second), Until: noon.Add(8 * time.Minute), Ports: 64512, Connections: 40, InUse: 12, Busiest: &idle},
					{Address: at("198.51.100.3"), State: state.Drained, Reason: "drained by operator ann", Since: noon.Add(-2 * time.Hour), Ports: 64512},
					{Address: at("2001:db8::1"), State: state.Up, Ports: 64512, FullIn: nil}},
				Destinations: []engine.EgressUse{near, idle}},
			{Name: "rest", Spread: "client", WhenFull: "fail", Level: egress.OK, Addresses: []engine.EgressAddress{}, Destinations: []engine.EgressUse{}},
		}}
}

// TestEgressOutput holds what people and programs read.
func TestEgressOutput(t *testing.T) {
	for file, show := range map[string]func(e *env) error{
		"testdata/egress.txt":      func(e *env) error { return e.printEgress(busyPools(), 10, false) },
		"testdata/egress.json":     func(e *env) error { e.output = "json"; return e.printEgress(busyPools(), 10, false) },
		"testdata/egress-bear.txt": func(e *env) error { return e.printBear(&busyPools().Pools[0]) },
	} {
		var out bytes.Buffer
		if err := show(&env{stdout: &out}); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), out.String()); d != "" {
			t.Errorf("%s (-want +got); run with -update if it should:\n%s", file, d)
		}
	}
}

func TestEgressTop(t *testing.T) {
	var out bytes.Buffer
	e := &env{stdout: &out, output: "json"}
	if err := e.printEgress(busyPools(), 1, true); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 1 || !bytes.Contains(out.Bytes(), []byte(`"destinations_left_out":5`)) {
		t.Errorf("%d lines: %s", n, out.String())
	}
}
