package config

import (
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/model"
)

var equalModels = cmp.Options{
	cmp.Comparer(func(a, b model.Listen) bool { return a == b }),
	cmp.Comparer(func(a, b model.Backend) bool {
		checks := a.Check.Equal(b.Check)
		a.Check, b.Check = nil, nil
		return checks && a == b
	}),
	cmp.Comparer(func(a, b model.SourceNAT) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer((*model.Steering).Equal),
	cmpopts.EquateEmpty(),
}

func mustParse(t rapid.TB, text string) *model.Config {
	t.Helper()
	cfg, err := Parse("weir.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return cfg
}

func TestRandomModelIsValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		if err := configtest.Check(configtest.RandomModel(t, &configtest.Options{Steering: true})); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMarshalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := configtest.RandomModel(t, &configtest.Options{Steering: true})
		if diff := cmp.Diff(want, mustParse(t, string(Marshal(want))), equalModels); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestEveryFormMeansTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := configtest.RandomModel(t, &configtest.Options{Steering: true})
		text := configtest.RandomText(t, want)
		if diff := cmp.Diff(want, mustParse(t, text), equalModels); diff != "" {
			t.Fatalf("%s\n%s", diff, text)
		}
	})
}

// TestOneMistake breaks a valid text at one place and wants an error, or a model that
// is still valid.
func TestOneMistake(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := []byte(configtest.Random(t))
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		switch by := rapid.SampledFrom([]byte("\x00\n\t \"'[]{}:,#-09a&*!|\x80")).Draw(t, "by"); {
		case rapid.Bool().Draw(t, "insert"):
			text = append(text[:at:at], append([]byte{by}, text[at:]...)...)
		default:
			text[at] = by
		}
		checkParse(t, text)
	})
}

// checkParse holds what must be true of any text.
func checkParse(t rapid.TB, text []byte) {
	t.Helper()
	cfg, err := Parse("weir.yaml", text)
	if err == nil {
		if err := configtest.Check(cfg); err != nil {
			t.Fatalf("accepted, but %v\n%q", err, text)
		}
		if diff := cmp.Diff(cfg, mustParse(t, string(Marshal(cfg))), equalModels); diff != "" {
			t.Fatal(diff)
		}
		return
	}
	var list Errors
	if !errors.As(err, &list) || len(list) == 0 || cfg != nil {
		t.Fatalf("want no model and Errors, got %v and %T", cfg, err)
	}
	if !sort.SliceIsSorted(list, func(i, j int) bool {
		a, b := list[i], list[j]
		return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
	}) {
		t.Fatalf("not in the order of the text:\n%v", err)
	}
	lines := strings.Count(string(text), "\n") + 1
	for _, e := range list {
		if e.Line < 1 || e.Line > lines || e.Column < 1 || e.Msg == "" {
			t.Fatalf("%+v is nowhere in %q", e, text)
		}
		if i := strings.IndexFunc(e.Error(), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("not printable: %q", e.Error())
		}
		if _, err := json.Marshal(e); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		f.Fatalf("no scenarios: %v", err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if len(a.Files[0].Data) < 4096 {
			f.Add(a.Files[0].Data)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) { checkParse(t, text) })
}
