package keep_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/keep"
	"weir/internal/state"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// at is a time in the boot of that name.
func at(boot string, wall, sinceBoot time.Duration) keep.Clock {
	return keep.Clock{Wall: t0.Add(wall), Boot: boot, SinceBoot: sinceBoot}
}

func config(text string) keep.Config {
	return keep.Config{File: "/etc/weir/weir.yaml", Sum: keep.Sum(text), At: t0, By: &state.Operator{UID: 7, User: "alice", PID: 8}}
}

// TestLeft sets clocks, sleeps and starts the machine again.
func TestLeft(t *testing.T) {
	var r keep.Record
	r.Propose(config("new"), time.Minute, at("one", 0, time.Hour))
	for _, c := range []struct {
		name string
		now  keep.Clock
		want time.Duration
	}{
		{"at once", at("one", 0, time.Hour), time.Minute},
		{"later", at("one", 40*time.Second, time.Hour+40*time.Second), 20 * time.Second},
		{"over", at("one", 2*time.Minute, time.Hour+2*time.Minute), -time.Minute},
		{"the wall clock was set back", at("one", -24*time.Hour, time.Hour+50*time.Second), 10 * time.Second},
		{"the wall clock was set forward", at("one", 24*time.Hour, time.Hour+50*time.Second), 10 * time.Second},
		{"another boot", at("two", 40*time.Second, time.Second), 20 * time.Second},
		{"another boot, over", at("two", 61*time.Second, time.Second), -time.Second},
		{"another boot, with a clock before the change", at("two", -time.Hour, time.Second), 0},
		{"the boot is not known", at("", 40*time.Second, time.Hour), 20 * time.Second},
	} {
		if got := r.Pending.Left(c.now); got != c.want {
			t.Errorf("%s: %s left, want %s", c.name, got, c.want)
		}
	}
	p := *r.Pending
	if p.Continue(at("one", 40*time.Second, time.Hour+40*time.Second)) || p != *r.Pending {
		t.Errorf("continued in the same boot: %+v", p)
	}
	// After a new start the rest is counted by that boot's clock.
	if !p.Continue(at("two", 40*time.Second, time.Second)) {
		t.Error("not continued in another boot")
	}
	if got := p.Left(at("two", -24*time.Hour, 6*time.Second)); got != 15*time.Second {
		t.Errorf("continued, and the clock set back: %s left", got)
	}
}

func TestElsewhere(t *testing.T) {
	here := keep.Place{Boot: "one", Net: 5}
	for p, want := range map[keep.Place]bool{
		here: false, {Boot: "one", Net: 6}: true, {Boot: "two", Net: 6}: false, {}: false,
	} {
		if p.Elsewhere(here) != want {
			t.Errorf("%+v seen from %+v: %v", p, here, !want)
		}
	}
}

// TestRecord follows what each word makes of the record.
func TestRecord(t *testing.T) {
	var r keep.Record
	now := at("one", 0, time.Hour)
	sum := func(c *keep.Config) string {
		if c == nil {
			return ""
		}
		return c.Sum
	}
	want := func(what, confirmed, pending, rejected string) {
		t.Helper()
		var p string
		if r.Pending != nil {
			p = r.Pending.Sum
		}
		for name, pair := range map[string][2]string{"confirmed": {sum(r.Confirmed), confirmed}, "pending": {p, pending}, "rejected": {sum(r.Rejected), rejected}} {
			if w := pair[1]; w != "" && pair[0] != keep.Sum(w) || w == "" && pair[0] != "" {
				t.Errorf("%s: %s is %q, want that of %q", what, name, pair[0], w)
			}
		}
	}
	r.Propose(config("first"), time.Minute, now)
	want("the first", "", "first", "")
	r.Back()
	want("the first went back", "", "", "first")
	r.Take(config("a"))
	want("taken", "a", "", "")
	r.Propose(config("b"), time.Minute, now)
	want("proposed", "a", "b", "")
	r.Propose(config("c"), time.Minute, now)
	want("replaced", "a", "c", "")
	r.Back()
	want("went back", "a", "", "c")
	if !r.Refuses(keep.Sum("c")) || r.Refuses(keep.Sum("a")) || r.Refuses(keep.Sum("d")) {
		t.Error("refuses another than what went back")
	}
	r.Propose(config("d"), time.Minute, now)
	r.Confirm()
	want("confirmed", "d", "", "")
	r.Propose(config("d"), time.Minute, now)
	r.Back()
	want("the same went back", "d", "", "")
}

// TestStore keeps a record with its texts, for the owner alone, and nothing else.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := keep.Beside(filepath.Join(dir, "state.json"))
	if s.Dir() != filepath.Join(dir, "state.config") {
		t.Errorf("directory %s", s.Dir())
	}
	if r, err := s.Read(); err != nil || !r.Empty() {
		t.Errorf("nothing: %+v, %v", r, err)
	}
	var r keep.Record
	write := func(text string) {
		t.Helper()
		if err := s.Write(r, text); err != nil {
			t.Fatal(err)
		}
		got, err := s.Read()
		if got.Place.Net == 0 {
			t.Error("it does not say where")
		}
		got.Place = keep.Place{}
		if err != nil || cmp.Diff(r, got) != "" {
			t.Errorf("read back (%v): %s", err, cmp.Diff(r, got))
		}
	}
	texts := func(want ...string) {
		t.Helper()
		var names []string
		files, err := os.ReadDir(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			info, err := f.Info()
			if err != nil || info.Mode() != 0o600 {
				t.Errorf("%s has mode %v (%v)", f.Name(), info.Mode(), err)
			}
			names = append(names, f.Name())
		}
		expect := []string{"record.json"}
		for _, w := range want {
			expect = append(expect, keep.Sum(w)+".yaml")
			if got, err := s.Text(config(w)); err != nil || got != w {
				t.Errorf("text %q: %q, %v", w, got, err)
			}
		}
		slices.Sort(expect)
		if !slices.Equal(names, expect) {
			t.Errorf("files %v, want %v", names, expect)
		}
	}
	r.Take(config("a"))
	write("a")
	texts("a")
	r.Propose(config("b"), time.Minute, keep.Now())
	write("b")
	texts("a", "b")
	r.Propose(config("c"), time.Minute, keep.Now())
	write("c")
	texts("a", "c")
	r.Back()
	write("")
	texts("a")
	r = keep.Record{}
	write("")
	texts()
}

// TestBrokenStore: what was changed behind weir's back is an error, not a configuration.
func TestBrokenStore(t *testing.T) {
	s := keep.Beside(filepath.Join(t.TempDir(), "state.json"))
	var r keep.Record
	r.Take(config("a"))
	if err := s.Write(r, "a"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), keep.Sum("a")+".yaml"), []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := s.Text(config("a")); err == nil {
		t.Errorf("another text is given for the one kept: %q", text)
	}
	if text, err := s.Text(keep.Config{Sum: "../../secret"}); err == nil {
		t.Errorf("read outside: %q", text)
	}
	for _, text := range []string{"", "{", `{"version": 2}`, `{"version": 1, "pending": 5}`, "[]"} {
		if err := os.WriteFile(filepath.Join(s.Dir(), "record.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Read(); err == nil || !r.Empty() {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
	aside, err := s.Aside()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(aside); err != nil {
		t.Error(err)
	}
	if _, err := s.Read(); err != nil {
		t.Errorf("after it was put aside: %v", err)
	}
}
