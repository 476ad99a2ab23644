package health

import (
	"fmt"
	"time"

	"weir/internal/model"
)

// State is what is believed about a backend.
type State uint8

// The states.
const (
	// Unknown: not decided yet. It counts as up, as in HAProxy: a balancer that starts
	// must not refuse what its backends would serve. One good probe decides for Up,
	// Fall bad ones in a row for Down.
	Unknown State = iota
	Up
	Down
)

var stateNames = [...]string{"unknown", "up", "down"}

// String returns the state's word.
func (s State) String() string { return stateNames[s] }

// Serves reports whether a backend in this state takes traffic.
func (s State) Serves() bool { return s != Down }

// Flap damping. Every change moves connections and costs a commit, and a backend that
// comes and goes fails some of the clients each time it comes. As in route flap damping
// (RFC 2439) repeated falls keep it out for longer and longer, and quiet time forgives.
// Three falls, because one is a crash and two a restart that did not take.
//
// The times follow the check's own pace: within FlapWindow a check of long intervals
// could not fall three times at all. A cycle, Rise+Fall intervals, is the shortest time
// from up to down and back.
const (
	FlapFalls  = 3                // falls within the window that make a backend held
	FlapWindow = time.Minute      // the window, or 5 cycles if that is longer
	FlapHold   = 10 * time.Second // the first hold-off, or a cycle if that is longer
	flapCycles = 5
	flapLevels = 6 // the hold-off doubles each time: 10 s, 20 s, … 320 s
)

// Snapshot is what a Tracker knows at one time.
type Snapshot struct {
	State     State
	Since     time.Time     // when State began
	Reason    string        // why; safe to print
	Last      Result        // of the last probe, void ones included; zero before the first
	Good, Bad int           // probes in a row of that kind; one of them is 0
	Changes   uint64        // changes of State since the tracker was made
	Held      bool          // Down because it flaps
	Hold      time.Duration // how long it must stay well before it is Up again; 0 unless Held
}

// Tracker is the state machine of one backend: Rise good probes in a row bring it up,
// Fall bad ones take it down. A backend that fell FlapFalls times within the window is
// held down until it has stayed well for the hold-off; each further hold-off is twice as
// long, and each window without a change of its health takes one doubling back.
//
// It has no clock: time is what Result.At says, and time that goes backwards counts as
// no time. It is not safe for concurrent use. The zero Tracker is not usable.
type Tracker struct {
	check *model.Check
	snap  Snapshot

	well     bool                 // rise and fall alone, without damping
	turned   time.Time            // when well changed last, or a hold-off ended
	falls    [FlapFalls]time.Time // of State, the oldest at next
	next     int
	level    int       // doublings of the next hold-off; 0: none was needed
	forgiven time.Time // until when quiet time has been taken off level
}

// NewTracker returns a tracker that begins in a state that was known before (Unknown for
// a new backend), for example before a restart. c is not nil.
func NewTracker(c *model.Check, s State, since time.Time, reason string) *Tracker {
	return &Tracker{check: c, well: s.Serves(), snap: Snapshot{State: s, Since: since, Reason: clean(reason)}}
}

// SetCheck changes how results are counted from now on; the state stays.
func (t *Tracker) SetCheck(c *model.Check) { t.check = c }

// Snapshot returns what is known now.
func (t *Tracker) Snapshot() Snapshot { return t.snap }

// Feed takes the next result and reports whether the state changed. A void result
// changes nothing but Snapshot.Last.
func (t *Tracker) Feed(r Result) (changed bool) {
	r.Detail = clean(r.Detail)
	t.snap.Last = r
	if r.Void {
		return false
	}
	if r.OK {
		t.snap.Good, t.snap.Bad = t.snap.Good+1, 0
	} else {
		t.snap.Good, t.snap.Bad = 0, t.snap.Bad+1
	}
	t.rewind(r.At)
	t.forgive(r.At)
	switch {
	case r.OK && t.snap.State == Unknown:
		return t.to(Up, r)
	case r.OK && !t.well && t.snap.Good >= t.check.Rise:
		t.turn(true, r.At)
	case !r.OK && t.well && t.snap.Bad >= t.check.Fall:
		t.turn(false, r.At)
		if t.snap.State.Serves() {
			return t.fall(r)
		}
	}
	if t.well && t.snap.State == Down && t.snap.Good >= t.check.Rise && t.released(r.At) {
		return t.to(Up, r)
	}
	return false
}

// rewind keeps what is waited for from lying in the future when time went backwards.
func (t *Tracker) rewind(now time.Time) {
	if now.Before(t.turned) {
		t.turned = now
	}
	if now.Before(t.forgiven) {
		t.forgiven = now
	}
}

// turn notes that the backend got well or unwell, before damping.
func (t *Tracker) turn(well bool, at time.Time) {
	t.well, t.turned, t.forgiven = well, at, at
}

// fall takes the backend down, and holds it when it did so too often.
func (t *Tracker) fall(r Result) bool {
	t.falls[t.next] = r.At
	t.next = (t.next + 1) % FlapFalls
	oldest := t.falls[t.next]
	if !oldest.IsZero() && r.At.Sub(oldest) <= t.window() {
		t.level = min(t.level+1, flapLevels)
		t.snap.Held, t.snap.Hold = true, t.hold()
		r.Detail = fmt.Sprintf("flaps, held until it is well for %v: %s", t.snap.Hold, r.Detail)
	}
	return t.to(Down, r)
}

// released reports whether a backend that is well again may come up.
func (t *Tracker) released(now time.Time) bool {
	if !t.snap.Held {
		return true
	}
	t.snap.Hold = t.hold()
	if now.Sub(t.turned) < t.snap.Hold {
		return false
	}
	t.snap.Held, t.snap.Hold = false, 0
	// The wait itself is no sign of quiet: forgiving it would undo the doubling.
	t.turned, t.forgiven = now, now
	return true
}

func (t *Tracker) to(s State, r Result) bool {
	t.snap.State, t.snap.Since, t.snap.Reason = s, r.At, clean(r.Detail)
	t.snap.Changes++
	return true
}

// forgive takes one doubling back for each window in which the backend's health did not
// change, be it well or dead: a machine that was switched off for an hour does not flap.
// The wait of a held backend that is well does not count.
func (t *Tracker) forgive(now time.Time) {
	if t.level == 0 || t.snap.Held && t.well {
		return
	}
	for w := t.window(); t.level > 0 && now.Sub(t.forgiven) >= w; t.level-- {
		t.forgiven = t.forgiven.Add(w)
	}
	if t.snap.Held {
		t.snap.Hold = t.hold()
	}
}

// cycle is the shortest time in which the backend can go down and come up again.
func (t *Tracker) cycle() time.Duration {
	return time.Duration(t.check.Rise+t.check.Fall) * t.check.Every
}

func (t *Tracker) window() time.Duration { return max(FlapWindow, flapCycles*t.cycle()) }

// hold is the hold-off of the present level.
func (t *Tracker) hold() time.Duration {
	if t.level == 0 {
		return 0
	}
	return max(FlapHold, t.cycle()) << (t.level - 1)
}
