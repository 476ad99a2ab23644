package plan_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/plan"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// service returns a service with ten backends of its own.
func service(i int) *model.Service {
	s := &model.Service{Name: fmt.Sprintf("service-%d", i)}
	addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	s.Listen = []model.Listen{{Addr: addr, Proto: model.TCP, Ports: model.Port(80)}}
	for j := range 10 {
		n := i*10 + j
		s.Backends = append(s.Backends, model.Backend{
			Addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Ports: model.Port(8080), Weight: 1})
	}
	return s
}

// TestNftTakesIt: nft -f takes the printed ruleset as it is.
func TestNftTakesIt(t *testing.T) {
	lab.Require(t)
	nft, err := exec.LookPath("nft")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("nft is not installed")
	}
	file := filepath.Join(t.TempDir(), "weir.nft")
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		p := plan.Build(configtest.RandomModel(t, &configtest.Options{MaxServices: 6, MaxBackends: 4, MaxRange: 20}), nil)
		if nftAborts(p) {
			t.Skip("nft 1.0.6 aborts over it")
		}
		text := p.Ruleset.String()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(nft, "-c", "-f", file).CombinedOutput()
		if err != nil && lab.InUserNamespace() && strings.Contains(string(out), "Message too long") {
			return // the socket buffer of an ordinary user bounds what nft can send
		}
		taken++
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, out, text)
		}
	})
	if taken < 10 {
		t.Errorf("nft took %d rulesets only", taken)
	}
}

// nftAborts reports whether p remembers IPv6 clients together with a port: the one text
// over which nft 1.0.6 fails an assertion of its own (it has too few registers for it;
// the kernel has enough).
func nftAborts(p *plan.Plan) bool {
	for _, pool := range p.Pools {
		for _, s := range p.Ruleset.Tables[0].Sets {
			if pool.Family == model.IPv6 && s.Name == pool.StickyMap && len(s.Data) > 1 {
				return true
			}
		}
	}
	return false
}
