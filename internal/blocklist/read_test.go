package blocklist

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// endless gives one byte for ever, and counts.
type endless struct {
	c    byte
	read int64
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.c
	}
	e.read += int64(len(p))
	return len(p), nil
}

func TestGzip(t *testing.T) {
	const text = "# list\n192.0.2.1\n2001:db8::/32 # note\n"
	l := build(t, "x", packed(t, text), Options{Strict: true})
	if want := build(t, "x", []byte(text), Options{Strict: true}); dump(t, l) != dump(t, want) {
		t.Errorf("got\n%swant\n%s", dump(t, l), dump(t, want))
	}
	// Two members one behind the other are one text.
	l = build(t, "x", append(packed(t, "192.0.2.1\n"), packed(t, "192.0.2.2\n")...), Options{})
	if l.Len() != 2 {
		t.Errorf("%d entries", l.Len())
	}
}

// TestRefused: files that are of no use are refused, strict or not, with these words.
func TestRefused(t *testing.T) {
	whole := packed(t, strings.Repeat("192.0.2.1\n", 100))
	damaged := bytes.Clone(whole)
	damaged[len(damaged)-6]++
	for _, tc := range []struct {
		name string
		r    io.Reader
		o    Options
		want string
	}{
		{"cut gzip", bytes.NewReader(whole[:len(whole)-9]), Options{}, "x:101: gzip data end early: the file is half written"},
		{"cut gzip header", bytes.NewReader(whole[:5]), Options{}, "x: gzip data end early: the file is half written"},
		{"damaged gzip", bytes.NewReader(damaged), Options{}, "x:101: gzip data are damaged: gzip: invalid checksum"},
		{"rubbish behind gzip", bytes.NewReader(append(bytes.Clone(whole), "rubbish, more of it"...)), Options{}, "gzip data are damaged"},
		{"gzip in gzip", bytes.NewReader(packed(t, string(whole))), Options{}, "none of its"},
		{"xz", strings.NewReader("\xfd7zXZ\x00..."), Options{}, "x: is packed with xz, not a list; unpack it, or use gzip"},
		{"zip", strings.NewReader("PK\x03\x04..."), Options{}, "x: is a zip archive, not a list"},
		{"UTF-16 with gzip", bytes.NewReader(packed(t, "\xfe\xff\x001")), Options{}, "x: is UTF-16 text, not a list; save it as UTF-8"},
		{"NULs for ever", &endless{}, Options{}, `x:1: is not a list: a line of more than 1048576 bytes, which begins with "\x00`},
		{"NULs for ever, after an entry", io.MultiReader(strings.NewReader("192.0.2.1\n"), &endless{}), Options{}, "x:2: is not a list: a line of more than 1048576 bytes"},
		{"line feeds for ever", &endless{c: '\n'}, Options{MaxBytes: 1 << 20}, "x: more than 1048576 bytes of text"},
		{"bad lines for ever", io.MultiReader(strings.NewReader(strings.Repeat("word\n", 10_000)), &endless{c: '\n'}), Options{}, `x: is not a list: none of its first 10000 lines could be read; line 1: "word" is no entry`},
		{"a bomb of NULs", bytes.NewReader(packed(t, strings.Repeat("\x00", 8<<20))), Options{}, "x:1: is not a list: a line of more than"},
		{"a bomb of line feeds", bytes.NewReader(packed(t, strings.Repeat("\n", 2<<20))), Options{MaxBytes: 1 << 20}, "more than 1048576 bytes of text"},
		{"one byte too many", strings.NewReader("192.0.2.1\n"), Options{MaxBytes: 9}, "x: more than 9 bytes of text"},
		{"one entry too many", strings.NewReader("192.0.2.1\n192.0.2.1\n2001:db8::\n"), Options{MaxEntries: 2}, "x:3: more than 2 entries, the most that list l may hold"},
		{"an error of the system", io.MultiReader(strings.NewReader("192.0.2.1\n"), broken{}), Options{}, "input/output error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, strict := range []bool{false, true} {
				tc.o.Strict = strict
				if s, ok := tc.r.(io.Seeker); ok {
					if _, err := s.Seek(0, io.SeekStart); err != nil {
						t.Fatal(err)
					}
				} else if strict {
					break // read once already
				}
				err := NewBuilder("l", tc.o).Add("x", tc.r)
				if p := (*Problem)(nil); err == nil || !errors.As(err, &p) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("strict %t: %v\nwant %s", strict, err, tc.want)
				}
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("input/output error") }

// TestBoundsAreExact: what just fits is read, and no more is read than is needed to refuse.
func TestBoundsAreExact(t *testing.T) {
	l := build(t, "x", []byte("192.0.2.1\n192.0.2.2\n"), Options{MaxBytes: 20, MaxEntries: 2, MaxLine: 9, Strict: true})
	if l.Len() != 2 {
		t.Errorf("%d entries", l.Len())
	}
	e := &endless{}
	if err := NewBuilder("l", Options{}).Add("x", e); err == nil || e.read > 2<<20 {
		t.Errorf("%v after %d bytes", err, e.read)
	}
}

// TestLongLine: an over-long line is one bad line, wherever the buffer ends in it.
func TestLongLine(t *testing.T) {
	for _, n := range []int{101, 102, 4096, readSize - 1, readSize, readSize + 1, 3*readSize - 5} {
		text := "192.0.2.1\n# " + strings.Repeat("x", n-2) + "\n192.0.2.2\n# " + strings.Repeat("x", n-2)
		l := build(t, "x", []byte(text), Options{MaxLine: 100})
		if l.Len() != 2 || l.Counts.Skipped != 2 || l.Files[0].Lines != 4 {
			t.Errorf("%d bytes: %s", n, dump(t, l))
		}
		if got := l.Problems[0].Error(); !strings.HasPrefix(got, `x.netset:2:1: line "# xxx`) || !strings.HasSuffix(got, "is too long; allowed: 100 bytes") {
			t.Errorf("%d bytes: %s", n, got)
		}
	}
	l := build(t, "x", []byte("# "+strings.Repeat("x", 98)+"\r\n192.0.2.2\n"), Options{MaxLine: 100, Strict: true})
	if l.Len() != 1 {
		t.Error(dump(t, l))
	}
}

// TestProblemsAreBounded: of a million bad lines twenty are kept, and all are counted.
func TestProblemsAreBounded(t *testing.T) {
	text := []byte("192.0.2.1\n" + strings.Repeat("word\n", 1_000_000))
	l := build(t, "x", text, Options{})
	if len(l.Problems) != MaxProblems || l.More != 1_000_000-MaxProblems || l.Counts.Skipped != 1_000_000 {
		t.Errorf("%d problems, %d more, %d skipped", len(l.Problems), l.More, l.Counts.Skipped)
	}
	err := NewBuilder("l", Options{Strict: true}).Add("x", bytes.NewReader(text))
	if many := (*Problems)(nil); !errors.As(err, &many) || len(many.First) != MaxProblems || many.More != 1_000_000-MaxProblems {
		t.Errorf("%v", err)
	}
}

// TestAddEntry: entries of the configuration file have its places.
func TestAddEntry(t *testing.T) {
	b := NewBuilder("l", Options{})
	for i, text := range []string{"192.0.2.0/24", "2001:db8::1", "198.51.100.1-198.51.100.5"} {
		if err := b.AddEntry("weir.yaml", 7, 3+i, text); err != nil {
			t.Error(err)
		}
	}
	for _, text := range []string{"", "word", "192.0.2.1 # note", "192.0.2.0/33", " 192.0.2.1"} {
		err := b.AddEntry("weir.yaml", 8, 5, text)
		if err == nil || !strings.HasPrefix(err.Error(), "weir.yaml:8:5: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := b.Add("a.txt", strings.NewReader("192.0.2.1\n")); err != nil {
		t.Fatal(err)
	}
	l := b.List()
	if l.Len() != 4 || len(l.Files) != 2 || l.Files[0].Entries != 3 || l.Files[1].Entries != 1 {
		t.Error(dump(t, l))
	}
}

// TestNotes: a note is kept once, cut to its length in whole characters, and their room
// has an end.
func TestNotes(t *testing.T) {
	l := build(t, "x", []byte("192.0.2.1 # "+strings.Repeat("ü", 60)+"\n192.0.2.2 # b\n192.0.2.3 # b\n192.0.2.4 #\n"), Options{})
	if got := l.notes.get(l.four.entries[0].note); got != strings.Repeat("ü", MaxNote/2) {
		t.Errorf("%q", got)
	}
	if a, b := l.four.entries[1].note, l.four.entries[2].note; a != b || l.notes.get(a) != "b" {
		t.Errorf("%d and %d", a, b)
	}
	var n notes
	const each = MaxNote
	count := MaxNotes/(each+1) + 10
	places := make([]uint32, count)
	for i := range places {
		places[i] = n.put(fmt.Appendf(nil, "%0*d", each, i))
	}
	if n.lost == 0 || n.lost > 10 || len(n.text) > MaxNotes {
		t.Errorf("%d lost, %d bytes", n.lost, len(n.text))
	}
	for i, at := range places[:count-n.lost] {
		if want := fmt.Sprintf("%0*d", each, i); n.get(at) != want {
			t.Fatalf("note %d is %q", i, n.get(at))
		}
	}
	if n.put(fmt.Appendf(nil, "%0*d", each, 5)) != places[5] {
		t.Error("a full room does not know what is in it")
	}
}

// TestLargeList: sorting in buckets, and collecting in pieces, lose nothing.
func TestLargeList(t *testing.T) {
	text := mixed(100_000)
	l := build(t, "x", text, Options{Strict: true})
	if l.Counts.Entries != 100_000 || l.Len()+l.Counts.Duplicates != 100_000 {
		t.Fatalf("%+v", l.Counts)
	}
	// Halves of it in another order come to the same, but for the places.
	lines := bytes.SplitAfter(text, []byte("\n"))
	b := NewBuilder("x", Options{})
	if err := b.Add("two", bytes.NewReader(bytes.Join(lines[50_000:], nil))); err != nil {
		t.Fatal(err)
	}
	if err := b.Add("one", bytes.NewReader(bytes.Join(lines[:50_000], nil))); err != nil {
		t.Fatal(err)
	}
	other := b.List()
	check(t, l.four.entries, other.four.entries)
	check(t, l.six.entries, other.six.entries)
}

func check[A number[A]](t *testing.T, a, b []entry[A]) {
	t.Helper()
	if len(a) != len(b) {
		t.Fatalf("%d and %d entries", len(a), len(b))
	}
	for i := range a {
		if a[i].first != b[i].first || a[i].last != b[i].last || (i > 0 && a[i-1].compare(a[i]) >= 0) {
			t.Fatalf("%d: %v and %v", i, a[i], b[i])
		}
	}
}
