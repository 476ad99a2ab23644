package health

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/model"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func counting(rise, fall int) *model.Check {
	return &model.Check{Every: time.Second, Timeout: time.Second, Rise: rise, Fall: fall}
}

// feed gives the tracker a word of + (good), - (bad) and ? (void), one a step, and
// returns the state after each as U, u (unknown) or D.
func feed(t *Tracker, at *time.Time, step time.Duration, word string) string {
	var seen strings.Builder
	for _, c := range word {
		*at = at.Add(step)
		before := t.Snapshot().State
		changed := t.Feed(Result{OK: c == '+', Void: c == '?', At: *at, Detail: string(c)})
		s := t.Snapshot()
		if changed != (s.State != before) || changed != (s.Since.Equal(*at)) {
			seen.WriteByte('!')
		}
		seen.WriteByte("uUD"[s.State])
	}
	return seen.String()
}

func TestTrackerCounts(t *testing.T) {
	for _, c := range []struct {
		name       string
		rise, fall int
		from       State
		word, want string
	}{
		{"unknown: one good decides", 2, 3, Unknown, "+", "U"},
		{"unknown: fall bad decide", 2, 3, Unknown, "---", "uuD"},
		{"unknown: good after bad", 2, 3, Unknown, "--+--", "uuUUU"},
		{"up: bad in a row", 2, 3, Up, "--+---", "UUUUUD"},
		{"down: good in a row", 2, 3, Down, "+-++", "DDDU"},
		{"one is enough", 1, 1, Up, "-+-", "DUD"},
		{"void counts for nothing", 2, 2, Up, "-?-??+?+", "UUDDDDDU"},
		{"many", 4, 1, Up, "-+++-++++", "DDDDDDDDU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := epoch
			tr := NewTracker(counting(c.rise, c.fall), c.from, epoch, "")
			if got := feed(tr, &at, time.Second, c.word); got != c.want {
				t.Errorf("%s: %s, want %s", c.word, got, c.want)
			}
		})
	}
}

func TestTrackerSnapshot(t *testing.T) {
	tr := NewTracker(counting(2, 2), Down, epoch, "connection\nrefused")
	if s := tr.Snapshot(); s.Reason != `connection\nrefused` || s.Since != epoch || s.State.Serves() {
		t.Errorf("at the start: %+v", s)
	}
	at := epoch
	feed(tr, &at, time.Second, "++-?")
	s := tr.Snapshot()
	if s.State != Up || s.Reason != "+" || s.Since != epoch.Add(2*time.Second) || s.Bad != 1 || s.Good != 0 ||
		s.Changes != 1 || !s.Last.Void {
		t.Errorf("%+v", s)
	}
	tr.SetCheck(counting(2, 5))
	if got := feed(tr, &at, time.Second, "----"); got != "UUUD" {
		t.Errorf("after SetCheck: %s", got)
	}
}

// A backend that flaps is held, each time for longer, and comes back.
func TestTrackerFlaps(t *testing.T) {
	at := epoch
	tr := NewTracker(counting(1, 1), Up, epoch, "")
	if got := feed(tr, &at, time.Second, "-+-+-+"); got != "DUDUDD" {
		t.Fatalf("three falls: %s", got)
	}
	s := tr.Snapshot()
	if !s.Held || s.Hold != FlapHold || !strings.Contains(s.Reason, "held") {
		t.Fatalf("not held: %+v", s)
	}
	// Well since the last step: it takes the whole hold-off, and a bad probe starts it anew.
	if got := feed(tr, &at, time.Second, strings.Repeat("+", 5)+"-"+strings.Repeat("+", 11)); got != strings.Repeat("D", 16)+"U" {
		t.Fatalf("hold-off: %s", got)
	}
	// It falls again within the window: twice as long.
	if got := feed(tr, &at, time.Second, "-"+strings.Repeat("+", 21)); got != strings.Repeat("D", 21)+"U" {
		t.Fatalf("second hold-off: %s", got)
	}
	// After windows of quiet it is as if nothing had been.
	feed(tr, &at, time.Second, strings.Repeat("+", 2*int(FlapWindow/time.Second)))
	if got := feed(tr, &at, time.Second, "-+-+-"); got != "DUDUD" {
		t.Fatalf("after quiet: %s", got)
	}
	if s := tr.Snapshot(); s.Hold != FlapHold {
		t.Errorf("hold-off after quiet: %v", s.Hold)
	}
}

// A machine that was dead for long enough is not held when it is switched on.
func TestTrackerForgivesTheDead(t *testing.T) {
	at := epoch
	tr := NewTracker(counting(1, 1), Up, epoch, "")
	feed(tr, &at, time.Second, "-+-+-")
	if !tr.Snapshot().Held {
		t.Fatal("not held")
	}
	feed(tr, &at, time.Second, strings.Repeat("-", int(FlapWindow/time.Second)))
	if got := feed(tr, &at, time.Second, "+"); got != "U" {
		t.Errorf("%s: %+v", got, tr.Snapshot())
	}
}

func TestTrackerClockGoesBack(t *testing.T) {
	at := epoch
	tr := NewTracker(counting(1, 1), Up, epoch, "")
	feed(tr, &at, time.Second, "-+-+-+")
	at = at.Add(-time.Hour)
	if got := feed(tr, &at, time.Second, strings.Repeat("+", 12)); !strings.HasSuffix(got, "U") {
		t.Errorf("still held: %s", got)
	}
}

// At 5 Hz for a minute, whatever the check counts.
func TestTrackerFlappingIsBounded(t *testing.T) {
	for _, every := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second} {
		c := counting(1, 1)
		c.Every = every
		tr := NewTracker(c, Up, epoch, "")
		for at := epoch; at.Before(epoch.Add(time.Minute)); at = at.Add(every) {
			phase := at.Sub(epoch) / (100 * time.Millisecond)
			if every > 200*time.Millisecond {
				phase = at.Sub(epoch) / every
			}
			tr.Feed(Result{OK: phase%2 == 0, At: at})
		}
		if n := tr.Snapshot().Changes; n > 2*FlapFalls {
			t.Errorf("every %v: %d changes in a minute", every, n)
		}
	}
}

// Whatever the results: a backend that is down comes up by Rise good ones in a row
// alone, goes down by Fall bad ones alone, and changes a bounded number of times a minute.
func TestTrackerProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := counting(rapid.IntRange(1, 5).Draw(t, "rise"), rapid.IntRange(1, 5).Draw(t, "fall"))
		c.Every = rapid.SampledFrom([]time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second}).Draw(t, "every")
		tr := NewTracker(c, rapid.SampledFrom([]State{Unknown, Up, Down}).Draw(t, "state"), epoch, "")
		at, good, bad := epoch, 0, 0
		var changes []time.Time
		runs := rapid.SliceOfN(rapid.IntRange(-12, 12), 60, 300).Draw(t, "runs")
		for _, n := range runs {
			for range max(n, -n) {
				at = at.Add(c.Every)
				if n > 0 {
					good, bad = good+1, 0
				} else {
					good, bad = 0, bad+1
				}
				before := tr.Snapshot()
				if !tr.Feed(Result{OK: n > 0, At: at}) {
					continue
				}
				after := tr.Snapshot()
				changes = append(changes, at)
				switch {
				case after.State == Up && before.State == Down && good < c.Rise:
					t.Fatalf("up after %d good", good)
				case after.State == Down && bad < c.Fall:
					t.Fatalf("down after %d bad", bad)
				case after.State == Unknown || after.Held != (after.Hold > 0) || after.Held && after.State != Down:
					t.Fatalf("%+v", after)
				}
			}
		}
		// Within one window: the falls that are free with the rises between them and one
		// before, then a fall and a rise for each hold-off that fits.
		most := 2*FlapFalls + 2*3
		for i, first := range changes {
			n := 0
			for _, other := range changes[i:] {
				if other.Sub(first) < tr.window() {
					n++
				}
			}
			if n > most {
				t.Fatalf("%d changes within %v", n, tr.window())
			}
		}
	})
}
