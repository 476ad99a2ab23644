package blocklist

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestScenarios reads every testdata/*.txtar: all files but "list" and "strict" are read
// into one list. "list" is what comes of it without Strict, "strict" what is said with it.
// A file that an editor would not keep is written as a Go string, with .quoted behind its
// name.
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
	inputs, want := a.Files, map[string]string{}
	for i, f := range a.Files {
		if f.Name == "list" || f.Name == "strict" {
			want[f.Name] = string(f.Data)
			inputs = inputs[:min(i, len(inputs))]
		}
	}
	got := map[string]string{"list": readAll(t, inputs, Options{}), "strict": readAll(t, inputs, Options{Strict: true})}
	if *update {
		a.Files = inputs
		for _, name := range []string{"list", "strict"} {
			a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(got[name])})
		}
		if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, text := range got {
		for _, r := range text {
			if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) {
				t.Errorf("%q would reach the terminal", r)
			}
		}
	}
}

func readAll(t *testing.T, inputs []txtar.File, o Options) string {
	t.Helper()
	b := NewBuilder("golden", o)
	for _, f := range inputs {
		text := f.Data
		name, quoted := strings.CutSuffix(f.Name, ".quoted")
		if quoted {
			s, err := strconv.Unquote(string(bytes.TrimSpace(f.Data)))
			if err != nil {
				t.Fatal(err)
			}
			text = []byte(s)
		}
		if err := b.Add(name, bytes.NewReader(text)); err != nil {
			return "error: " + err.Error() + "\n"
		}
	}
	if o.Strict {
		return "fine\n"
	}
	return dump(t, b.List())
}

// dump writes all that is known of a list.
func dump(t *testing.T, l *List) string {
	t.Helper()
	var out strings.Builder
	for _, v := range []any{l.Counts, l.Size()} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n", text)
	}
	for _, f := range l.Files {
		fmt.Fprintf(&out, "%s: %d lines, %d entries, %d skipped\n", f.Name, f.Lines, f.Entries, f.Skipped)
	}
	dumpEntries(&out, l, "", l.four.entries)
	dumpEntries(&out, l, "except ", l.four.holes)
	dumpEntries(&out, l, "", l.six.entries)
	dumpEntries(&out, l, "except ", l.six.holes)
	for _, p := range l.Problems {
		fmt.Fprintf(&out, "%v\n", p)
	}
	if l.More > 0 {
		fmt.Fprintf(&out, "and %d more\n", l.More)
	}
	return out.String()
}

func dumpEntries[A number[A]](out *strings.Builder, l *List, kind string, list []entry[A]) {
	for _, e := range list {
		fmt.Fprintf(out, "%s%v  %s:%d", kind, e, l.Files[e.file].Name, e.line)
		if note := l.notes.get(e.note); note != "" {
			fmt.Fprintf(out, " %q", note)
		}
		if e.more > 0 {
			fmt.Fprintf(out, " +%d", e.more)
		}
		out.WriteByte('\n')
	}
}
