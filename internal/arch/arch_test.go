package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// may says what each package may import of weir's own. It follows the flow of the data
// in docs/ARCHITECTURE.md: to the right or down, never back, never sideways.
var may = map[string][]string{
	"internal/model":   {"internal/steer/match"},
	"internal/flow":    {},
	"internal/ruleset": {"internal/flow", "internal/model"},
	"internal/plan":    {"internal/blocklist", "internal/flow", "internal/model", "internal/ruleset"},

	"internal/blocklist":       {"internal/model"},
	"internal/blocklist/files": {"internal/blocklist"},

	"internal/config":            {"internal/config/yaml", "internal/flow", "internal/model", "internal/steer/match"},
	"internal/config/yaml":       {},
	"internal/config/configtest": {"internal/model", "internal/steer/match"},

	"internal/steer":         {"internal/flow", "internal/steer/match"},
	"internal/steer/match":   {},
	"internal/steer/nfqueue": {},
	"internal/steer/pickup":  {"internal/steer/match"},

	"internal/nft":         {"internal/model", "internal/ruleset"},
	"internal/nft/nftfake": {"internal/model", "internal/nft", "internal/ruleset"},
	"internal/conntrack":   {"internal/model"},
	"internal/binding":     {"internal/conntrack", "internal/model"},
	"internal/vip":         {},
	"internal/tunnel":      {"internal/model"},
	"internal/segment":     {"internal/model"},
	"internal/sockets":     {"internal/model"},
	"internal/nudge":       {},
	"internal/health":      {"internal/model"},
	"internal/state":       {"internal/model"},
	"internal/egress":      {"internal/model"},
	"internal/host":        {"internal/model"},
	"internal/host/look":   {"internal/host", "internal/model"},

	"internal/tap":         {},
	"internal/tap/capture": {"internal/nft", "internal/ruleset"},
	"internal/tap/files":   {},

	"internal/keep": {"internal/state"},

	"internal/engine": {"internal/binding", "internal/blocklist", "internal/conntrack", "internal/egress", "internal/health", "internal/host", "internal/keep", "internal/lists", "internal/model", "internal/nft",
		"internal/nudge", "internal/plan", "internal/ruleset",
		"internal/sockets", "internal/state", "internal/steer", "internal/steer/match", "internal/steer/nfqueue", "internal/steer/pickup", "internal/vip"},

	"internal/api": {"internal/blocklist", "internal/config", "internal/engine", "internal/keep", "internal/lists", "internal/model", "internal/state"},

	"internal/metrics": {"internal/egress", "internal/engine", "internal/lists", "internal/ruleset"},
	"internal/lists":   {"internal/blocklist", "internal/blocklist/files", "internal/model"},

	"internal/lab":  {},
	"internal/demo": {"internal/lab", "internal/tap"},
	"cmd/weir": {"internal/api", "internal/binding", "internal/blocklist", "internal/config", "internal/conntrack", "internal/demo", "internal/egress", "internal/engine", "internal/flow",
		"internal/health", "internal/host", "internal/host/look", "internal/keep", "internal/lab", "internal/lists", "internal/metrics", "internal/model", "internal/nft",
		"internal/nudge", "internal/plan", "internal/ruleset", "internal/segment", "internal/sockets", "internal/state",
		"internal/tap", "internal/tap/capture", "internal/tap/files", "internal/tunnel", "internal/vip"},

	// Nothing of the product: they look at it from outside.
	"internal/arch":  {},
	"internal/bench": nil,
	"internal/e2e":   nil,
	"internal/proof": nil,
}

// pure packages have no clock, no kernel and no goroutine.
var pure = []string{"internal/model", "internal/flow", "internal/ruleset", "internal/plan", "internal/state", "internal/host",
	"internal/blocklist", "internal/egress", "internal/steer/match", "internal/tap"}

// impure is what a pure package must not import.
var impure = []string{"os", "os/exec", "net", "syscall", "time/tzdata", "sync", "sync/atomic", "context",
	"golang.org/x/sys/unix", "github.com/vishvananda/netlink"}

type pkg struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles", "weir/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportDirection(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, "weir/")
		allowed, known := may[name]
		if !known {
			t.Errorf("%s has no row in this test: say what it may import", name)
			continue
		}
		for _, imp := range p.Imports {
			own, isOwn := strings.CutPrefix(imp, "weir/")
			if isOwn && allowed != nil && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s; allowed: %v", name, own, allowed)
			}
			if slices.Contains(pure, name) && slices.Contains(impure, imp) {
				t.Errorf("%s is pure and imports %s", name, imp)
			}
		}
	}
}

func TestFileLength(t *testing.T) {
	const most = 500
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(text, []byte("\n")); n > most {
			t.Errorf("%s has %d lines; at most %d: is it one idea?", path, n, most)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
