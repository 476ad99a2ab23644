package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

// checkMirrors looks for holes in the part about mirrors, and at how many copies came: a row that
// copies nothing would cost nothing.
func checkMirrors(t *testing.T, r *MirrorsReport, packets, peer bool) {
	t.Helper()
	if r == nil {
		t.Error("nothing about mirrors")
		return
	}
	copies := map[string]float64{mirrorAll: 1, mirrorSample: 0.1, teeAll: 1}
	want := len(mirrorContenders)
	if !peer {
		want -= 2
	}
	if packets && len(r.Packets) != want {
		t.Errorf("%d rows of mirrors, want %d", len(r.Packets), want)
	}
	for _, c := range r.Packets {
		if c.Problem != "" || c.New.Least <= 0 || c.Established.Least <= 0 || c.Rounds != 1 {
			t.Errorf("%+v has a hole", c)
		}
		// 25,000 flows are in the sample or not.
		if want := copies[c.Name]; c.Name != mirrorLimit && math.Abs(c.Copies-want) > 0.02 || c.Name == mirrorLimit && (c.Copies == 0 || c.Copies > 0.5) {
			t.Errorf("%s: %f copies of a packet, want %f", c.Name, c.Copies, want)
		}
	}
	rows := map[string]bool{}
	for _, c := range r.Traffic {
		rows[c.Name] = true
		if c.Problem != "" || c.Gbits.Median <= 0 || c.P99.Median <= 0 || c.Requests == 0 || c.Datagrams == 0 || c.Rounds != 1 {
			t.Errorf("%+v has a hole", c)
		}
		if got, want := c.Copies > c.Requests, copies[c.Name] == 1; got != want {
			t.Errorf("%+v: copies: %t, want %t", c, got, want)
		}
	}
	for _, name := range []string{mirrorNone, mirrorAll, mirrorDown} {
		if !rows[name] {
			t.Errorf("no real traffic with %s", name)
		}
	}
}

// TestMirrorsReport prints what came of a run in which weir loses somewhere.
func TestMirrorsReport(t *testing.T) {
	row := func(name string, gbits, p99 float64, failed, lost int) MirrorTraffic {
		return MirrorTraffic{Name: name, Gbits: Speed{gbits, gbits}, P99: Waits{p99, p99}, Requests: 700, Failed: failed, Datagrams: 1400, Lost: lost, Rounds: 1}
	}
	cost := func(name string, ns float64) MirrorCost {
		return MirrorCost{Name: name, New: Cost{ns, ns}, Established: Cost{ns, ns}, Rounds: 1}
	}
	r := &Report{Mirrors: &MirrorsReport{
		Traffic: []MirrorTraffic{row(mirrorNone, 10, 1, 0, 0), row(mirrorAll, 8, 2, 0, 0), row(mirrorDown, 9.5, 1, 0, 3), row(teeAll, 9.6, 1, 2, 0),
			{Name: teeDown, Problem: "no such thing"}},
		Packets: []MirrorCost{cost(mirrorNone, 1000), cost(mirrorAll, 3000), cost(teeAll, 2000)}}}
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"+2000 ns", "x0.80: MISSED", "x0.95: met", "0 of 700, 0 of 1400: met", "0 of 700, 3 of 1400: MISSED", "no such thing",
		"weir, mirror of all, p99 of requests: iptables TEE x0.50", "weir, mirror of all, packet of an established one: iptables TEE x0.67"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "failed requests: iptables") || strings.Contains(out.String(), "collector down, p99") {
		t.Errorf("nobody loses by failing, or where nothing was measured:\n%s", &out)
	}
}
