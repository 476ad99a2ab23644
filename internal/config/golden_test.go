package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestScenarios reads every testdata/*.txtar: the input is the file weir.yaml; "errors"
// holds the errors that must come, "model" what Marshal makes of the result. A text
// that an editor would not keep is written as a Go string in a file weir.quoted.
func TestScenarios(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) { scenario(t, name) })
	}
}

func scenario(t *testing.T, name string) {
	a, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	kind, got := "model", ""
	cfg, err := Parse("weir.yaml", input(t, a))
	if err != nil {
		kind, got = "errors", err.Error()+"\n"
	} else {
		got = string(Marshal(cfg))
	}
	if *update {
		a.Files = append(a.Files[:1], txtar.File{Name: kind, Data: []byte(got)})
		if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(a.Files) != 2 || a.Files[1].Name != kind {
		t.Fatalf("want the files weir.yaml and %s; the result was\n%s", kind, got)
	}
	if diff := cmp.Diff(string(a.Files[1].Data), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", kind, diff)
	}
	for _, r := range got {
		if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			t.Errorf("%q would reach the terminal", r)
		}
	}
}

func input(t *testing.T, a *txtar.Archive) []byte {
	t.Helper()
	switch f := a.Files[0]; f.Name {
	case "weir.yaml":
		return f.Data
	case "weir.quoted":
		s, err := strconv.Unquote(string(bytes.TrimSpace(f.Data)))
		if err != nil {
			t.Fatal(err)
		}
		return []byte(s)
	}
	t.Fatalf("the first file is %s; want weir.yaml or weir.quoted", a.Files[0].Name)
	return nil
}

func TestSchemaGolden(t *testing.T) {
	const name = "testdata/schema.json"
	got := Schema()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("schema (-want +got); if that is meant, run the test with -update:\n%s", diff)
	}
	if again := Schema(); !bytes.Equal(got, again) {
		t.Error("two calls give two schemas")
	}
}
