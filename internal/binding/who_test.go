package binding

import (
	"compress/gzip"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/conntrack"
	"weir/internal/model"
)

// truth is a connection as it really was.
type truth struct {
	conntrack.Flow
	start, end int // seconds; end is beyond all for one that stays
}

// history makes connections over some addresses and ports, none of which is in two at a time.
func history(t *rapid.T) []truth {
	var all []truth
	free := map[string]int{}
	for range rapid.IntRange(1, 30).Draw(t, "connections") {
		outside := fmt.Sprintf("198.51.100.%d:%d", rapid.IntRange(0, 1).Draw(t, "address"), rapid.IntRange(1024, 1026).Draw(t, "port"))
		to := fmt.Sprintf("203.0.113.%d:443", rapid.IntRange(1, 2).Draw(t, "to"))
		start := free[outside+to] + rapid.IntRange(1, 20).Draw(t, "start")
		end := start + rapid.IntRange(1, 40).Draw(t, "for")
		free[outside+to] = end
		all = append(all, truth{flow(model.TCP, fmt.Sprintf("10.0.0.%d:%d", rapid.IntRange(1, 3).Draw(t, "client"), 40000+len(all)), outside, to), start, end})
	}
	return all
}

// TestWhoAgainstTheTruth writes logs of random histories, with events that are lost, disks
// that are full, weirs that are killed and files that are rotated, and asks them. Whoever had
// the port must be among the answers, unless a gap is told of; an answer that is no maybe must
// be true.
func TestWhoAgainstTheTruth(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		all := history(t)
		last := 0
		for _, c := range all {
			last = max(last, c.end)
		}
		at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
		sim := &simulation{at: at, dir: dir}
		sim.run(t, all, last+5)
		defer sim.remove()
		for range 20 {
			when := rapid.IntRange(0, last+4).Draw(t, "at")
			q := Question{Outside: netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:%d", rapid.IntRange(0, 1).Draw(t, "address"), rapid.IntRange(1024, 1026).Draw(t, "port"))),
				At: at(when).Add(500 * time.Millisecond)}
			files := slices.Clone(sim.files)
			slices.Reverse(files) // in any order
			told, err := Who(context.Background(), files, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range all {
				had := c.Reply.Dst == q.Outside && c.start <= when && when < c.end
				i := slices.IndexFunc(told.Answers, func(a Answer) bool { return a.Inside == c.Orig.Src.String() })
				if had && i < 0 && len(told.Gaps) == 0 {
					t.Fatalf("at %d: %s had it from %d to %d, and is not among %+v\n%s", when, c.Orig.Src, c.start, c.end, told, sim.text())
				}
				if !had && i >= 0 && !told.Answers[i].Maybe && len(told.Gaps) == 0 {
					t.Fatalf("at %d: %+v is not true: it was from %d to %d\n%s", when, told.Answers[i], c.start, c.end, sim.text())
				}
			}
		}
	})
}

// simulation is a weir, second by second.
type simulation struct {
	at    func(int) time.Time
	dir   string
	files []string
	out   []byte
}

func (s *simulation) emit(l Line) { s.out = l.Append(s.out) }

// rotate ends a file; the last one is that of the path.
func (s *simulation) rotate() {
	if len(s.out) == 0 {
		return
	}
	path := filepath.Join(s.dir, fmt.Sprintf("log.%d", len(s.files)))
	if err := os.WriteFile(path, s.out, 0o600); err != nil {
		panic(err)
	}
	s.files, s.out = append(s.files, path), nil
}

func (s *simulation) remove() {
	for _, f := range s.files {
		os.Remove(f)
	}
}

func (s *simulation) text() string {
	text := ""
	for _, f := range s.files {
		b, _ := os.ReadFile(f)
		text += "--- " + f + "\n" + string(b)
	}
	return text
}

func (s *simulation) run(t *rapid.T, all []truth, until int) {
	pools := []*model.Pool{pool("web", func(p *model.Pool) { p.Addresses = []model.AddrRange{addrs("198.51.100.0", "198.51.100.5")} })}
	var b *Book
	begin := func(now time.Time) {
		b = &Book{}
		b.SetPools(pools)
		s.emit(Line{Time: now, Event: Watch})
	}
	compare := func(now time.Time, sec int) {
		d, err := b.Compare(now, func(fn func(conntrack.Flow) bool) error {
			for _, c := range all {
				if c.start <= sec && sec < c.end {
					fn(c.Flow)
				}
			}
			return nil
		}, s.emit)
		if err != nil {
			t.Fatal(err)
		}
		b.Settle(now, d, s.emit)
	}
	begin(s.at(0))
	deaf, heard := 0, 0 // until when events are lost
	for sec := range until {
		now := s.at(sec)
		if sec > 0 && sec == deaf {
			s.emit(Line{Time: now, Event: Lost, After: s.at(heard)})
			compare(now, sec)
		}
		if sec >= deaf {
			for i := range all {
				switch sec {
				case all[i].start:
					b.Begin(now, &all[i].Flow, s.emit)
				case all[i].end:
					b.End(now, &all[i].Flow, s.emit)
				}
			}
			heard = sec
		}
		switch later := now.Add(time.Millisecond); rapid.IntRange(0, 40).Draw(t, "fate") {
		case 0:
			deaf = min(max(deaf, sec+rapid.IntRange(2, 10).Draw(t, "deaf")), until-1)
		case 1: // killed, and back; what is heard of since the last line is the same
			if sec >= deaf {
				old := s.reread(t)
				begin(later)
				b.Resume(old.last, old.open, nil)
				compare(later, sec)
			}
		case 2:
			if sec >= deaf {
				s.rotate()
				b.Snapshot(later, s.emit)
			}
		}
	}
	s.rotate()
}

// reread returns what the log so far says is open.
func (s *simulation) reread(t *rapid.T) left {
	l := left{open: map[conn]state{}}
	path := filepath.Join(s.dir, "now")
	if err := os.WriteFile(path, s.out, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	for _, f := range append(slices.Clone(s.files), path) {
		if err := l.read(f, -1); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// TestWhoAnswersFromBlocks asks for a port of a block, before the pool gave blocks and after.
func TestWhoAnswersFromBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bindings.jsonl.1.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	b := Book{}
	emit := func(l Line) { z.Write(l.Append(nil)) }
	emit(Line{Time: noon, Event: Watch})
	home := func(size int) []*model.Pool {
		return []*model.Pool{pool("home", func(p *model.Pool) {
			p.Block, p.From = size, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
			p.Addresses = []model.AddrRange{addrs("198.51.100.9", "198.51.100.9")}
		})}
	}
	b.SetPools(home(512))
	b.TellBlocks(noon.Add(time.Hour), emit)
	used := flow(model.UDP, "10.1.0.7:40000", "198.51.100.9:4608", "203.0.113.9:443")
	b.Begin(noon.Add(2*time.Hour), &used, emit)
	b.SetPools(home(256))
	b.TellBlocks(noon.Add(3*time.Hour), emit)
	z.Close()
	f.Close()
	for _, c := range []struct {
		hours  int
		inside string
		block  string
		used   bool
	}{{0, "", "", false}, {1, "10.1.0.7", "4608-5119", false}, {2, "10.1.0.7", "4608-5119", true}, {3, "10.1.0.14", "4608-4863", false}} {
		told, err := Who(context.Background(), []string{path}, Question{Outside: netip.MustParseAddrPort("198.51.100.9:4700"),
			At: noon.Add(time.Duration(c.hours)*time.Hour + time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case c.inside == "" && len(told.Answers) == 0:
		case len(told.Answers) != 1 || told.Answers[0].Inside != c.inside || told.Answers[0].Block != c.block || told.Answers[0].Used != c.used:
			t.Errorf("after %d hours: %+v", c.hours, told.Answers)
		}
	}
	if told, _ := Who(context.Background(), []string{path}, Question{At: noon.Add(-time.Hour)}); told.Reaches(noon.Add(-time.Hour)) || !told.Reaches(noon.Add(time.Hour)) {
		t.Errorf("%+v", told)
	}
}

func TestLogFiles(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"bindings.jsonl", "bindings.jsonl.1", "bindings.jsonl.2.gz", "bindings.jsonl-20261121", "bindings-20261120.jsonl.gz", "other.jsonl", "bindings.conf"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LogFiles(filepath.Join(dir, "bindings.jsonl"))
	if err != nil || len(got) != 5 {
		t.Errorf("%v %v", got, err)
	}
}
