package yaml

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir/internal/config/configtest"
)

// TestPiecesMeanTheWhole reads random texts in pieces and at once.
func TestPiecesMeanTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := withLines(t, configtest.Random(t))
		broken := rapid.IntRange(0, 3).Draw(t, "mutations")
		for range broken {
			text = mutate(t, text)
		}
		if cut := compare(t, text, rapid.IntRange(1, 3).Draw(t, "items")); !cut && broken == 0 {
			t.Fatalf("not read in pieces:\n%s", text)
		}
	})
}

// compare fails the test unless a text that the pieces accept is one that the library
// accepts as a whole, and means the same, each value at the same place, each problem
// too. It reports whether the pieces accept it.
func compare(t rapid.TB, text string, items int) bool {
	t.Helper()
	if _, msg := badCharacter(text); msg != "" {
		return false
	}
	text = strings.TrimPrefix(text, bom)
	var p, w printer
	pieces, whole := newReader(&p), newReader(&w)
	pieces.pieceItems = items
	cut := pieces.pieces(text) && !pieces.broken
	if whole.whole(text); !cut || whole.stopped || pieces.stopped {
		return cut
	}
	if whole.broken {
		t.Fatalf("accepted in pieces, but as a whole: %q\n%s", w.problems, text)
	}
	if diff := cmp.Diff(w.String(), p.String()); diff != "" {
		t.Fatalf("in pieces it means something else (-whole +pieces):\n%s\n%s", diff, text)
	}
	if diff := cmp.Diff(w.problems, p.problems); diff != "" {
		t.Fatalf("in pieces it has other problems (-whole +pieces):\n%s\n%s", diff, text)
	}
	return true
}

// withLines adds comments and blank lines, with any indentation, which mean nothing.
func withLines(t *rapid.T, text string) string {
	var out []string
	for _, l := range strings.SplitAfter(text, "\n") {
		switch rapid.IntRange(0, 9).Draw(t, "line") {
		case 0:
			out = append(out, spaces(t)+rapid.SampledFrom([]string{
				"# - name: x", "#", "# \"quote [", "# services:", "#- a\n\n  # b",
			}).Draw(t, "comment")+"\n")
		case 1:
			out = append(out, spaces(t)+"\n")
		}
		out = append(out, l)
	}
	return strings.Join(out, "")
}

func spaces(t *rapid.T) string { return strings.Repeat(" ", rapid.IntRange(0, 8).Draw(t, "spaces")) }

// mutate changes the indentation of a line, puts a line or a few characters somewhere,
// or takes some away.
func mutate(t *rapid.T, text string) string {
	lines := strings.SplitAfter(text, "\n")
	i := rapid.IntRange(0, len(lines)-1).Draw(t, "at line")
	switch rapid.IntRange(0, 3).Draw(t, "mutation") {
	case 0:
		lines[i] = spaces(t) + strings.TrimLeft(lines[i], " ")
	case 1:
		lines[i] = spaces(t) + rapid.SampledFrom([]string{
			"- x", "-", "- - y", "x: y", "services:", "\"a", "b\"", "'", "[", "]", "{", "}", "- [", "- \"", "? z", ": z",
			"&a b", "*a", "|", "- |", "- >-", "!!str a", "---", "...", "%TAG", "text", "a: |", "\tb", "- a: \"b", "x: [", "<<: a", "- # c",
		}).Draw(t, "new line") + "\n" + lines[i]
	case 2:
		at := rapid.IntRange(0, len(lines[i])).Draw(t, "at")
		lines[i] = lines[i][:at] + rapid.SampledFrom([]string{
			"\n", "\t", " ", "\"", "'", "[", "]", "{", "}", ":", ": ", ",", "#", " # ", "-", "&a ", "*a", "!", "!!str ", "|", "? ", "\\", "é",
		}).Draw(t, "text") + lines[i][at:]
	default:
		from := rapid.IntRange(0, len(lines[i])).Draw(t, "from")
		to := rapid.IntRange(from, len(lines[i])).Draw(t, "to")
		lines[i] = lines[i][:from] + lines[i][to:]
	}
	return strings.Join(lines, "")
}

// TestSameEveryTime reads a text with mistakes again and again: which core is done first
// must not matter.
func TestSameEveryTime(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	b.WriteString("services:\n")
	for range 3000 {
		b.WriteString([]string{"- a: b\n", "- \"x\n", "- a: 1\n  a: 2\n", "- [\n", "# c\n", "- *x\n"}[min(random.IntN(400), 5)])
		b.WriteString("- c: d\n  e: [f, g]\n")
	}
	first := read(b.String())
	if len(first.problems) < 5 {
		t.Fatalf("%d problems", len(first.problems))
	}
	for range 20 {
		again := read(b.String())
		if diff := cmp.Diff(first.problems, again.problems); diff != "" || first.String() != again.String() {
			t.Fatal(diff)
		}
	}
}

func FuzzPieces(f *testing.F) {
	names, err := filepath.Glob("../testdata/*.txtar")
	if err != nil || len(names) == 0 {
		f.Fatalf("no scenarios: %v", err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		_, text, _ := strings.Cut(string(data), "-- weir.yaml --\n")
		text, _, _ = strings.Cut(text, "\n-- ")
		f.Add(text + "\n")
	}
	f.Fuzz(func(t *testing.T, text string) { compare(t, text, 2) })
}
