package plan_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"weir/internal/lab"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// mirrorsText returns the configuration and the rules of the golden of mirrors.
func mirrorsText(t *testing.T) (cfg, rules string) {
	t.Helper()
	ar, err := txtar.ParseFile("testdata/mirrors.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range ar.Files {
		switch f.Name {
		case "weir.yaml":
			cfg = string(f.Data)
		case "ruleset.nft":
			rules = string(f.Data)
		}
	}
	return cfg, rules
}

// TestMirrorsNftTakesIt: nft -f takes the golden of mirrors as it is.
func TestMirrorsNftTakesIt(t *testing.T) {
	lab.Require(t)
	nft, err := exec.LookPath("nft")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("nft is not installed")
	}
	_, rules := mirrorsText(t)
	file := filepath.Join(t.TempDir(), "weir.nft")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(nft, "-c", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestMirrorOff: of a mirror that does not run nothing leads to its chains, and what knows copies
// is as it was; the others are not touched.
func TestMirrorOff(t *testing.T) {
	text, _ := mirrorsText(t)
	before := build(t, text, nil)
	cfg := *before.Config
	off := *cfg.Mirrors[0]
	off.Off = true
	cfg.Mirrors = append(slices.Clone(cfg.Mirrors[:0]), &off)
	cfg.Mirrors = append(cfg.Mirrors, before.Config.Mirrors[1:]...)
	after := plan.Build(&cfg, before)
	for _, table := range []ruleset.Family{ruleset.IP, ruleset.IP6} {
		was, is := before.Ruleset.Table(table, plan.MirrorsTableName), after.Ruleset.Table(table, plan.MirrorsTableName)
		for i, c := range is.Chains {
			switch hangs := c.Base != nil && !strings.HasPrefix(c.Name, "copies-"); {
			case !hangs && c != was.Chains[i]:
				t.Errorf("%s: chain %s is another", table, c.Name)
			case hangs && slices.ContainsFunc(c.Rules, func(r ruleset.Rule) bool { return strings.HasSuffix(r.Comment, "for "+off.Name) }):
				t.Errorf("%s: %s still leads to %s", table, c.Name, off.Name)
			}
		}
	}
	if d := ruleset.Diff(before.Ruleset, after.Ruleset); d.Empty() {
		t.Error("nothing changed")
	}
	if d := ruleset.Diff(after.Ruleset, plan.Build(&cfg, nil).Ruleset); !d.Empty() {
		t.Errorf("made anew it is another: %s", d)
	}
}
