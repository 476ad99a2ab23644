package plan_test

import (
	"math/bits"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/plan"
)

const steering = `
mark_mask: 0x00ff0000
services:
  - {name: plain, listen: "198.51.100.22:80", backends: ["10.1.1.1:80"]}
steering:
  - name: sip
    listen: ["198.51.100.20:5060/udp", "[2001:db8::20]:5060/udp"]
    rules:
      - {bytes: "udp[8:4]=0x494e5649", to: invite}
    targets:
      rest: ["10.1.1.8", "2001:db8:1::8"]
      invite: ["10.1.1.1", "10.1.1.8", "2001:db8:1::1"]
  - name: ports
    listen: "198.51.100.21:80,8000-8001"
    targets: {all: ["10.1.1.1:80", "10.1.1.2"]}
    when_absent: drop
    when_all_down: drop
    source: masquerade
    queues: 100-103
`

const steeringDirect = `
mark_mask: 0x00ff0000
services: []
steering:
  - name: sip
    listen: ["198.51.100.20:5060/udp", "[2001:db8::20]:5060/udp"]
    forward: direct
    in: [eth0, eth1]
    rules:
      - {bytes: "udp[8:4]=0x494e5649", to: invite}
    targets:
      rest: ["10.1.1.8", "2001:db8:1::8"]
      invite: ["10.1.1.1", "10.1.1.8", "2001:db8:1::1"]
  - name: ports
    listen: "198.51.100.21:80,8000-8001"
    forward: direct
    packets: all
    in: eth1
    targets: {all: ["10.1.1.1", "10.1.1.2"]}
    when_absent: drop
    balance: source
    queues: 100-103
`

// slotLines are elements of the maps of Maglev tables, of which there are a thousand for each pool.
var slotLines = regexp.MustCompile(`(?m)^(\s*elements = \{)?\s*(\d{4,} (\. \d+ )?:|\d+ : goto backend/)[^\n]*\n`)

// TestSteeringRules holds the rulesets of steered services, without the slots.
func TestSteeringRules(t *testing.T) {
	for name, text := range map[string]string{"testdata/steering.nft": steering, "testdata/steering-direct.nft": steeringDirect} {
		rules := build(t, text, nil).Ruleset.String()
		goldenRules(t, name, slotLines.ReplaceAllString(rules, ""))
		nftTakes(t, rules)
	}
}

// nftTakes has nft check rules, on a kernel that may have neither those devices nor nft's queue.
func nftTakes(t *testing.T, rules string) {
	t.Helper()
	lab.Require(t)
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed")
	}
	rules = regexp.MustCompile(`queue flags bypass to [0-9-]+`).ReplaceAllString(rules, "accept")
	rules = regexp.MustCompile(`device "eth\d"`).ReplaceAllString(rules, `device "lo"`)
	cmd := exec.Command(nft, "-c", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil && !(lab.InUserNamespace() && strings.Contains(string(out), "Message too long")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func goldenRules(t *testing.T, name, got string) {
	t.Helper()
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
}

// TestMarks: whatever the mask, marks are within it, none is like another, and a backend that
// goes moves few others.
func TestMarks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mask := rapid.Uint32().Filter(func(m uint32) bool { return bits.OnesCount32(m) >= 8 }).Draw(t, "mask")
		n := rapid.IntRange(1, 200).Draw(t, "backends")
		s := &model.Service{Name: "s", Steering: &model.Steering{}}
		for i := range n {
			s.Backends = append(s.Backends, model.Backend{Addr: netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}), Weight: 1})
		}
		marks := func(s *model.Service) *plan.Marks {
			return plan.Build(&model.Config{MarkMask: mask, Services: []*model.Service{s}}, nil).Marks()
		}
		m := marks(s)
		seen := map[uint32]bool{0: true, m.None: true, m.Kernel: true}
		if len(seen) != 3 || len(m.Members) != n {
			t.Fatalf("%+v", m)
		}
		for id, mark := range m.Members {
			if seen[mark] || mark&^mask != 0 {
				t.Fatalf("%s has the mark 0x%x with the mask 0x%x", id, mark, mask)
			}
			seen[mark] = true
		}
		less := *s
		less.Backends = slices.Delete(slices.Clone(s.Backends), n/2, n/2+1)
		if len(less.Backends) == 0 {
			return
		}
		moved := 0
		for id, mark := range marks(&less).Members {
			if m.Members[id] != mark {
				moved++
			}
		}
		if room := 1<<bits.OnesCount32(mask) - 3; room >= 50*n && moved > n/4+2 {
			t.Errorf("%d of %d marks moved", moved, n-1)
		}
	})
}
