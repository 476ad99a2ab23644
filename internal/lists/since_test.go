package lists

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/internal/model"
)

// since wants since when entries are in their list, in minutes after the desk's beginning:
// "192.0.2.1 5", "≤5" for what may be earlier, "?" for what is not known.
func (d *desk) since(begin time.Time, when string, lines ...string) {
	d.Helper()
	for _, line := range lines {
		addr, want, _ := strings.Cut(line, " ")
		matches := d.k.Lookup(netip.MustParseAddr(addr)).Matches
		got := "none"
		if len(matches) > 0 {
			m := matches[0]
			got = fmt.Sprint(int(m.Since.Sub(begin).Minutes()))
			switch {
			case m.Since.IsZero():
				got = "?"
			case m.SinceAtMost:
				got = "≤" + got
			}
		}
		if got != want {
			d.Errorf("%s: %s is there since %s, want %s", when, addr, got, want)
		}
	}
}

// TestSince changes lists while weir runs, while it does not, and takes away what it kept.
func TestSince(t *testing.T) {
	l := fromFile("a", model.BlockDrop, "a.txt")
	l.Entries = []model.BlockEntry{{Text: "203.0.113.1", Line: 4}}
	inline := &model.Blocklist{Name: "b", Action: model.BlockCount, Entries: []model.BlockEntry{{Text: "198.51.100.1", Line: 6}}}
	d := newDesk(t, l, inline)
	l.MaxChange = 0
	d.now = time.Unix(2_000_000_000, 0)
	begin := d.now
	minute := func(n int) { d.now = begin.Add(time.Duration(n) * time.Minute) }
	look := func(when string, ro bool, lines ...string) {
		t.Helper()
		was := d.k
		if ro {
			o := d.o
			o.ReadOnly = true
			d.k = New(o, nil)
			d.k.Take(d.cfg)
		}
		d.since(begin, when, lines...)
		d.k = was
	}
	d.write("a.txt", "192.0.2.1\n2001:db8::1\n192.0.2.2\n")
	look("nothing was kept", true, "192.0.2.1 ?", "203.0.113.1 ?", "198.51.100.1 ?")
	d.start()
	d.since(begin, "first", "192.0.2.1 ≤0", "203.0.113.1 ≤0", "198.51.100.1 ≤0", "2001:db8::1 ≤0")

	if kept := Kept(d.o); len(kept) != 2 || kept[0].Len() != 4 || kept[1].Len() != 1 {
		t.Errorf("kept: %+v", kept)
	}

	minute(1)
	d.write("a.txt", "2001:db8::1\n192.0.2.2\n192.0.2.3\n2001:db8::2\n")
	if !d.k.Poll() {
		t.Fatal("the list is not read again")
	}
	running := []string{"192.0.2.1 none", "192.0.2.2 ≤0", "192.0.2.3 1", "2001:db8::1 ≤0", "2001:db8::2 1"}
	d.since(begin, "changed", running...)
	look("by a command", true, running...)

	minute(2)
	d.start()
	d.since(begin, "a restart", running...)

	minute(3) // while it does not run: an entry comes back, others come and go
	d.write("a.txt", "192.0.2.1\n192.0.2.2\n2001:db8::2\n")
	l.Entries = append(l.Entries, model.BlockEntry{Text: "203.0.113.2", Line: 5})
	inline.Entries = append(inline.Entries, model.BlockEntry{Text: "198.51.100.2", Line: 7})
	look("by a command that does not know", true, "192.0.2.1 ?", "192.0.2.2 ≤0", "2001:db8::2 1", "203.0.113.1 ≤0", "203.0.113.2 ?")
	d.start()
	later := []string{"192.0.2.1 3", "192.0.2.2 ≤0", "192.0.2.3 none", "2001:db8::2 1", "203.0.113.1 ≤0", "203.0.113.2 3",
		"198.51.100.1 ≤0", "198.51.100.2 3"}
	d.since(begin, "changed in between", later...)

	minute(4) // a list that is not taken changes nothing, and the copies know the times too
	if err := os.Remove(filepath.Join(d.dir, "a.txt")); err != nil {
		t.Fatal(err)
	}
	d.k.Poll()
	d.since(begin, "not taken", later...)
	d.start()
	d.since(begin, "from copies", later...)

	minute(5)
	d.write("a.txt", "192.0.2.1\n192.0.2.2\n2001:db8::2\n192.0.2.9\n")
	d.k.Poll()
	later = append(later, "192.0.2.9 5")
	d.since(begin, "taken again", later...)

	t.Run("a copy that does not belong", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(d.o.Dir, "a", "0"), []byte("192.0.2.1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		minute(6)
		d.start() // the times belong to what the files have
		d.since(begin, "the copy is another one", later...)
		if err := os.WriteFile(filepath.Join(d.o.Dir, "a", "0"), []byte("192.0.2.1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		d.write("a.txt", "192.0.2.1\n192.0.2.2\n")
		minute(7)
		d.start()
		d.since(begin, "and the files changed", "192.0.2.1 ≤7", "192.0.2.2 ≤7", "203.0.113.1 ≤7", "198.51.100.1 ≤0")
	})
	t.Run("times that are gone", func(t *testing.T) {
		if err := os.Remove(filepath.Join(d.o.Dir, "a", sinceFile)); err != nil {
			t.Fatal(err)
		}
		d.write("a.txt", "192.0.2.1\n192.0.2.2\n192.0.2.8\n")
		minute(9)
		d.start() // the copy was read at minute 7
		d.since(begin, "by the copy", "192.0.2.1 ≤7", "192.0.2.2 ≤7", "192.0.2.8 9")
	})
	t.Run("damaged times", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(d.o.Dir, "a", sinceFile), []byte("weir"), 0o600); err != nil {
			t.Fatal(err)
		}
		minute(10)
		d.start()
		d.since(begin, "damaged", "192.0.2.1 ≤10", "192.0.2.8 ≤10")
	})
}

// TestSinceOperator: what operators block has its own time.
func TestSinceOperator(t *testing.T) {
	d := newDesk(t, fromFile("a", model.BlockCount, "a.txt"))
	d.write("a.txt", "192.0.2.0/24\n")
	begin := d.now
	d.start(Block{Prefix: netip.MustParsePrefix("192.0.2.7/32"), At: begin.Add(-time.Hour)}, Block{Prefix: netip.MustParsePrefix("2001:db8::/48"), At: begin.Add(-2 * time.Hour)})
	d.since(begin, "operator", "192.0.2.7 -60", "2001:db8::1 -120")
	for _, m := range d.k.Lookup(netip.MustParseAddr("192.0.2.7")).Matches {
		if (m.List == Operator) == m.SinceAtMost {
			t.Errorf("%+v", m)
		}
	}
}

// BenchmarkTakeMillion is a list of a million entries that changes by ten, from its file to
// what is kept of it.
func BenchmarkTakeMillion(b *testing.B) {
	dir := b.TempDir()
	name := filepath.Join(dir, "a.txt")
	text := func(from int) []byte {
		var out []byte
		for i := from; i < from+1_000_000; i++ {
			out = netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}).AppendTo(out)
			out = append(out, '\n')
		}
		return out
	}
	if err := os.WriteFile(name, text(0), 0o600); err != nil {
		b.Fatal(err)
	}
	s := &source{decl: &model.Blocklist{Name: "a", Files: []string{name}}}
	o := Options{Dir: filepath.Join(dir, "kept"), Now: time.Now}
	take := func() {
		s.look(o, true)()
		s.accept(o)
	}
	take()
	b.Run("all", func(b *testing.B) {
		for n := 10; b.Loop(); n += 10 {
			b.StopTimer()
			if err := os.WriteFile(name, text(n), 0o600); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			take()
			s.copyFiles(o)
		}
	})
	b.Run("times", func(b *testing.B) {
		l := s.good
		for b.Loop() {
			s.date(o, l, time.Now())
		}
	})
	b.Run("kept", func(b *testing.B) {
		for b.Loop() {
			if err := os.WriteFile(filepath.Join(dir, "x"), s.good.Since(), 0o600); err != nil {
				b.Fatal(err)
			}
		}
	})
}
