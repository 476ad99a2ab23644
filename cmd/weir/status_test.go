package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"weir/internal/engine"
	"weir/internal/host"
	"weir/internal/state"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func several(n int) *int { return &n }

// lively is a status with every kind of backend.
func lively() engine.Status {
	check := func(ok, void bool, detail string) *engine.CheckStatus {
		return &engine.CheckStatus{OK: ok, Void: void, Detail: detail, LatencyMS: 0.42, At: noon.Add(-1300 * time.Millisecond)}
	}
	busy := engine.Traffic{NewConnections: 1234567, PacketsIn: 12345678, BytesIn: 1 << 33, PacketsOut: 12345678, BytesOut: 1 << 36}
	return engine.Status{Loaded: true, Services: []engine.ServiceStatus{{Name: "web", MaxConnections: 5000, Total: busy, Former: engine.Traffic{NewConnections: 1}, Backends: []engine.BackendStatus{
		{Address: "10.1.1.1:8080", MaxConnections: 1000, Weight: 2, Share: 1, State: "up", Active: several(321), Traffic: busy,
			Reason: "HTTP 200", Since: noon.Add(-50 * time.Hour), Check: check(true, false, "HTTP 200")},
		{Address: "10.1.1.2:8080", MaxConnections: 4, Weight: 1, State: "down", Active: several(4), Reason: "flaps, held until it is well for 10s: connection refused",
			Since: noon.Add(-75 * time.Second), Check: check(false, false, "connection refused")},
		{Address: "10.1.1.3:8080", Weight: 1, State: "draining", Active: several(3), Reason: "by operator; 3 connections left",
			Since: noon.Add(-time.Hour), Check: check(false, true, "no file descriptors left")},
		{Address: "10.1.1.4:8080", Weight: 1, State: "disabled", Active: several(0), Reason: "by operator", Since: noon.Add(-30 * time.Second)},
		{Address: "10.1.1.5:8080", MaxConnections: 7, Weight: 1, State: "up"},
		{Address: "[2001:db8:1::1]:8080", Weight: 1, Share: 1, State: "down", Active: several(0), Reason: "HTTP 503: " + strings.Repeat("длинно ", 40),
			Since: noon, Check: check(false, false, "HTTP 503")},
	}}}}
}

func TestStatusText(t *testing.T) {
	const want = `SERVICE  BACKEND               STATE     WEIGHT  SHARE  NEW      ACTIVE    PACKETS-IN  BYTES-IN  PACKETS-OUT  BYTES-OUT
web      10.1.1.1:8080         up        2       100%   1234567  321/1000  12345678    8.0Gi     12345678     64.0Gi
    for 2d02h: HTTP 200; check ok 1.3s ago in 0.4 ms
web      10.1.1.2:8080         down      1       0%     0        4/4       0           0         0            0
    for 1m15s: flaps, held until it is well for 10s: connection refused; full; check failed 1.3s ago in 0.4 ms
web      10.1.1.3:8080         draining  1       0%     0        3         0           0         0            0
    for 1h00m: by operator; 3 connections left; check could not be done 1.3s ago in 0.4 ms: no file descriptors left
web      10.1.1.4:8080         disabled  1       0%     0        0         0           0         0            0
    for 30s: by operator
web      10.1.1.5:8080         up        1       0%     0        -/7       0           0         0            0
web      [2001:db8:1::1]:8080  down      1       100%   0        0         0           0         0            0
    for 0.0s: HTTP 503: длинно длинно длинно длинно длинно длинно длинно длинно длинно длинно длинно длинно длинно длин…
web      (former)              -         -       -      1        -         0           0         0            0
web      total                 -         -       -      1234567  328/5000  12345678    8.0Gi     12345678     64.0Gi
`
	var out bytes.Buffer
	e := &env{stdout: &out}
	if err := e.printStatus(lively(), noon); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > statusWidth {
			t.Errorf("%d characters: %s", n, line)
		}
	}
}

// TestWaitingText: what is not confirmed comes first.
func TestWaitingText(t *testing.T) {
	const want = `not confirmed yet: /etc/weir/weir.yaml, taken 18s ago by alice, goes back in 42s (weir confirm keeps it)
was not confirmed: /etc/weir/weir.yaml, taken 1h00m ago, went back; that text is not taken until it changes, or weir reload or weir apply says so
SERVICE  BACKEND  STATE  WEIGHT  SHARE  NEW  ACTIVE  PACKETS-IN  BYTES-IN  PACKETS-OUT  BYTES-OUT
`
	var out bytes.Buffer
	e := &env{stdout: &out}
	st := engine.Status{Loaded: true,
		Waiting: &engine.Waiting{File: "/etc/weir/weir.yaml", At: noon.Add(-18 * time.Second), Deadline: noon.Add(42 * time.Second),
			Left: 41.7, By: &state.Operator{UID: 1000, User: "alice"}},
		Rejected: &engine.Rejected{File: "/etc/weir/weir.yaml", At: noon.Add(-time.Hour)}}
	if err := e.printStatus(st, noon); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStatusTextOfFindings(t *testing.T) {
	const want = `the kernel does not do all of this yet (weir events says what is in the way)
error: net.ipv4.ip_forward is 0: the kernel forwards nothing to backends on other hosts (services web, dns); type: sysctl -w net.ipv4.ip_forward=1
warning: the box is odd
`
	var out bytes.Buffer
	e := &env{stdout: &out}
	no := false
	st := lively()
	st.Applied = &no
	st.Findings = []host.Finding{forwardOff(), {ID: "x", Severity: host.Warning, Found: "the box is odd"}}
	if err := e.printStatus(st, noon); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := strings.Cut(out.String(), "SERVICE"); got != want {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
	}
}

// forwardOff is a finding with everything that one may have.
func forwardOff() host.Finding {
	return host.Finding{ID: host.IPForward, Severity: host.Error, Subject: "net.ipv4.ip_forward", Found: "net.ipv4.ip_forward is 0",
		Means: "the kernel forwards nothing to backends on other hosts", Services: []string{"web", "dns"}, Fix: "sysctl -w net.ipv4.ip_forward=1"}
}

func TestEventText(t *testing.T) {
	for want, ev := range map[string]engine.Event{
		"     7  2026-01-02 12:00:00  state    web 10.1.1.1:8080: up -> down (connection refused)": {Seq: 7, At: noon, Kind: "state",
			Service: "web", Backend: "10.1.1.1:8080", From: "up", To: "down", Message: "connection refused"},
		"     8  2026-01-02 12:00:00  operator web 10.1.1.1:8080: drain within 10m0s": {Seq: 8, At: noon, Kind: "operator",
			Service: "web", Backend: "10.1.1.1:8080", Message: "drain within 10m0s"},
		"     8  2026-01-02 12:00:00  operator web 10.1.1.1:8080: drain [by alice, pid 42]": {Seq: 8, At: noon, Kind: "operator",
			Service: "web", Backend: "10.1.1.1:8080", Message: "drain", By: &state.Operator{UID: 1000, User: "alice", PID: 42}},
		"     8  2026-01-02 12:00:00  reload   configuration taken [by uid 1000, pid 42]": {Seq: 8, At: noon, Kind: "reload",
			Message: "configuration taken", By: &state.Operator{UID: 1000, PID: 42}},
		"1000000  2026-01-02 12:00:00  reload   configuration taken": {Seq: 1000000, At: noon, Kind: "reload", Message: "configuration taken"},
		"     9  2026-01-02 12:00:00  error    two\n        lines":   {Seq: 9, At: noon, Kind: "error", Message: "two\nlines"},
		"    10  2026-01-02 12:00:00  host     ip-forward net.ipv4.ip_forward: ok -> error (net.ipv4.ip_forward is 0)": {Seq: 10, At: noon, Kind: "host",
			Finding: host.IPForward, Subject: "net.ipv4.ip_forward", From: "ok", To: "error", Message: "net.ipv4.ip_forward is 0"},
	} {
		if got := eventText(ev); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
