package plan_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"weir/internal/config"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden holds each scenario of testdata: a configuration, the whole ruleset it
// gives, and, where there is a second configuration, the delta on the way to it and what
// that moves.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]string{}
	for _, f := range ar.Files {
		in[f.Name] = string(f.Data)
	}
	p := build(t, in["weir.yaml"], nil)
	out := []txtar.File{{Name: "weir.yaml", Data: []byte(in["weir.yaml"])}}
	add := func(name, text string) {
		out = append(out, txtar.File{Name: name, Data: []byte(text)})
	}
	if next, ok := in["next.yaml"]; ok {
		n := build(t, next, p)
		d := ruleset.Diff(p.Ruleset, n.Ruleset)
		add("next.yaml", next)
		add("delta.nft", d.String())
		add("moves", movesText(n.Moves(d)))
	} else {
		add("ruleset.nft", p.Ruleset.String())
	}
	got := txtar.Format(&txtar.Archive{Comment: ar.Comment, Files: out})
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := txtar.Format(ar); !bytes.Equal(got, want) {
		t.Errorf("differs (-want +got); run with -update if it should:\n%s", cmp.Diff(string(want), string(got)))
	}
}

func build(t *testing.T, text string, prev *plan.Plan) *plan.Plan {
	t.Helper()
	cfg, err := config.Parse("weir.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if prev != nil {
		cfg.Reuse(prev.Config)
	}
	return plan.Build(cfg, prev)
}

func movesText(moves []plan.Move) string {
	var b strings.Builder
	for _, m := range moves {
		b.WriteString(m.String() + "\n")
	}
	return b.String()
}
