package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/api"
	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/lists"
)

func TestWhyText(t *testing.T) {
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	out := api.Why{Address: netip.MustParseAddr("192.0.2.7"), Action: "drop", Entry: "192.0.2.7", Packets: 3, Bytes: 2048, LastChange: ago(3 * time.Second), ReadAt: ago(time.Minute),
		Matches: []blocklist.Match{
			{List: "a", Action: blocklist.Drop, Entry: "192.0.2.7", File: "a.txt", Line: 1, Note: "scraper", Since: ago(50 * time.Hour)},
			{List: lists.Operator, Action: blocklist.Drop, Entry: "192.0.2.7", File: "operator", Line: 1, Since: ago(time.Hour)},
			{List: "a", Action: blocklist.Drop, Entry: "192.0.2.0/24", File: "a.txt", Line: 2, Since: ago(70 * 24 * time.Hour), SinceAtMost: true},
			{List: "b", Action: blocklist.Count, Entry: "192.0.2.0/23", File: "b.txt", Line: 3},
		},
		Block: &lists.Block{Prefix: netip.MustParsePrefix("192.0.2.7/32"), Why: "floods", By: "alice", At: ago(time.Hour), Until: noon.Add(time.Hour)},
		Edge:  &api.SourceEdge{Policy: "drop", Management: "192.0.2.7/32"},
		OverLimits: []engine.Offender{{Source: "192.0.2.0/24", Service: "web", Limit: "packets 5/second burst 5 per source/24",
			Over: engine.Passed{Packets: 7, Bytes: 420}, LastSeen: ago(75 * time.Second)}},
	}
	for i := range maxRules + 2 {
		out.Edge.Open = append(out.Edge.Open, api.SourceRule{Name: fmt.Sprintf("open[%d]", i), From: "any", In: []string{"eth0", "eth1"}, Out: []string{"eth2"},
			To: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32"), netip.MustParsePrefix("203.0.113.0/24")}, Traffic: []string{"22/tcp", "udp"}}) // all alike
	}
	want := `192.0.2.7 is dropped by 192.0.2.7: 3 packets, 2.0Ki bytes, the last 3.0s ago
  operator: 192.0.2.7, for another 1h00m: floods [listed 1h00m ago by alice]
  list a (drop): 192.0.2.7, a.txt:1, scraper, listed 2d02h ago, read 1m00s ago
  list a (drop): 192.0.2.0/24, a.txt:2, listed 70d00h ago or before
  list b (count): 192.0.2.0/23, b.txt:3
if it were not blocked:
  management has 192.0.2.7: it always reaches the box
`
	for i := range maxRules {
		want += fmt.Sprintf("  open open[%d]: from any by eth0,eth1 to 198.51.100.1, 203.0.113.0/24 by eth2, 22/tcp udp\n", i)
	}
	want += `  and 2 more open rules (weir why -o json shows all)
  over a limit of web (packets 5/second burst 5 per source/24): 192.0.2.0/24 was refused 7 packets, 420 bytes, the last 1m15s ago
`
	var text bytes.Buffer
	e := &env{stdout: &text}
	if err := e.printWhy(out, noon); err != nil {
		t.Fatal(err)
	}
	if err := e.printSource(out, noon); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
