package metrics

import (
	"context"
	"errors"
	"flag"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"weir/internal/egress"
	"weir/internal/engine"
	"weir/internal/lists"
	"weir/internal/ruleset"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fake is a weir with three backends and two listeners of the box itself.
type fake struct{ view, status error }

func (f fake) View(context.Context) (engine.View, error) {
	return engine.View{Applied: true, Lists: []lists.Status{
		{Name: "crawlers", InUse: true, Entries: 650, ReadAt: time.Date(2026, 1, 2, 3, 4, 5, 250e6, time.UTC)},
		{Name: "feed", Problem: "no such file"},
	}}, f.view
}

func (f fake) Sums() map[string]ruleset.Count {
	return map[string]ruleset.Count{"crawlers": {Packets: 3, Bytes: 180}, "gone": {Packets: 1}}
}

func (f fake) Uncounted() ruleset.Count { return ruleset.Count{Packets: 2, Bytes: 120} }

func (f fake) Status(context.Context, engine.View, string) (engine.Status, error) {
	three, at := 3, time.Date(2026, 1, 2, 3, 4, 5, 500e6, time.UTC)
	return engine.Status{Loaded: true, Services: []engine.ServiceStatus{{Name: "web", Backends: []engine.BackendStatus{
		{Address: "10.1.1.1:80", Weight: 2, Share: 1, State: "up", Active: &three,
			Traffic: engine.Traffic{NewConnections: 5, PacketsIn: 6, BytesIn: 7, PacketsOut: 8, BytesOut: 9},
			Check:   &engine.CheckStatus{OK: true, LatencyMS: 1.5, At: at}},
		{Address: "[2001:db8::1]:80", Weight: 1, State: "down", Check: &engine.CheckStatus{LatencyMS: 1000, At: at}},
		{Address: "10.1.1.2:80", Check: &engine.CheckStatus{Void: true, At: at}},
	}}, {Name: "mail", Forward: "local", Track: "conntrack", Listeners: []engine.ListenerStatus{
		{Listen: "[2001:db8::11]:25/tcp", Traffic: engine.Traffic{NewConnections: 10, PacketsIn: 11, BytesIn: 12, PacketsOut: 13, BytesOut: 14}},
	}}, {Name: "proxy", Forward: "local", Track: "none", Listeners: []engine.ListenerStatus{
		{Listen: "198.51.100.11:80,443/tcp", Traffic: engine.Traffic{PacketsIn: 15, BytesIn: 16, PacketsOut: 17, BytesOut: 18}},
	}}, {Name: "sip", Steering: &engine.SteeringStatus{Answering: true, Nobody: 19, Ends: &engine.SteerEndsStatus{Sent: 27, Limited: 28, Dropped: 29},
		Rules:   []engine.SteerRuleStatus{{Name: "invites", To: "invite", Packets: 20}, {Name: "default", To: "rest", Packets: 21}},
		Targets: []engine.SteerTargetStatus{{Name: "invite", Packets: 20, Backends: []engine.SteerMemberStatus{{Address: "10.1.1.1", Packets: 22}}}},
		Queues:  []engine.QueueStatus{{Queue: 30565, Packets: 23, Waiting: 24, Full: 25, Unreceived: 26}},
	}}}}, f.status
}

func (f fake) Usage(engine.View) engine.EgressStatus {
	return engine.EgressStatus{Failures: egress.Failures{InsertFailed: 6, Exhaustion: 3, Race: 2, Unknown: 1}, Pools: []engine.EgressPool{
		{Name: "apis", Spilled: 4, Relieved: 1, Addresses: []engine.EgressAddress{
			{Address: netip.MustParseAddr("198.51.100.1"), State: "up", Ports: 400, InUse: 100, Percent: 25, Connections: 130, NewTotal: 500},
			{Address: netip.MustParseAddr("2001:db8::1"), State: "draining", Ports: 400}}}}}
}

func (f fake) Mirrors(context.Context) ([]engine.MirrorStatus, error) {
	a, b, far := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("2001:db8:9::9"), netip.MustParseAddr("192.0.2.9")
	failed := engine.MirrorFailed{NoRoute: 31, NoNeighbour: 32, TooBig: 33}
	return []engine.MirrorStatus{
		{Name: "analysis", State: "running", Families: []engine.MirrorCollector{
			{Family: "ip", Collector: a, Device: "eth2", Made: 100, Bytes: 4000, OverLimit: 30, Failed: failed, Returned: 34, QueueDropped: 35},
			{Family: "ip6", Collector: b, Device: "eth2", Made: 200, Bytes: 8000, QueueDropped: 35}}},
		{Name: "far", State: "running", Families: []engine.MirrorCollector{
			{Family: "ip", Collector: far, VXLAN: 7, Device: "weir-vx7", Made: 300, Bytes: 9000, Failed: engine.MirrorFailed{Tunnel: 36}, QueueDropped: 37},
			{Family: "ip6", Collector: far, VXLAN: 7, Device: "weir-vx7", Failed: engine.MirrorFailed{NoNeighbour: 38, Tunnel: 36}, QueueDropped: 37}}},
		{Name: "look", State: "stopped", Reason: "by an operator", Families: []engine.MirrorCollector{
			{Family: "ip", Collector: a, Device: "eth2", Made: 1, Bytes: 40, Failed: failed, Returned: 34, QueueDropped: 35}}},
	}, nil
}

func (f fake) Counts() map[string]uint64 { return map[string]uint64{"state": 4, "reload": 1} }

// ask returns what Prometheus would get, without the metrics of the process.
func ask(t *testing.T, f fake) string {
	t.Helper()
	rec := httptest.NewRecorder()
	Handler(f, "1.2.3").ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 200 {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	if !strings.Contains(rec.Body.String(), "process_resident_memory_bytes ") || !strings.Contains(rec.Body.String(), "go_goroutines ") {
		t.Error("the process's own are missing")
	}
	var out strings.Builder
	for line := range strings.Lines(rec.Body.String()) {
		if strings.HasPrefix(line, "weir_") || regexp.MustCompile(`^# (HELP|TYPE) weir_`).MatchString(line) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// TestGolden holds every name, label, type and unit: they are part of weir's interface.
func TestGolden(t *testing.T) {
	const name = "testdata/metrics.txt"
	got := ask(t, fake{})
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("differs (-want +got); run with -update if it should:\n%s", diff)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}

// TestDocumented wants every metric in the page about them.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(ask(t, fake{}), -1) {
		if !strings.Contains(string(page), "`"+m[1]) {
			t.Errorf("%s is not in docs/METRICS.md", m[1])
		}
	}
}

// TestFailing asks a weir that does not answer.
func TestFailing(t *testing.T) {
	for _, f := range []fake{{view: errors.New("stuck")}, {status: errors.New("no table")}} {
		got := ask(t, f)
		if !strings.Contains(got, "weir_up 0\n") || strings.Contains(got, "weir_backend") || strings.Contains(got, "weir_listener") {
			t.Errorf("%v:\n%s", f, got)
		}
	}
}
