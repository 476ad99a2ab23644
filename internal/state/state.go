// Package state says which backends take new connections, and why: out of the
// configuration, what the checks found, what an operator said, and the time. It is a pure
// function of these; the engine calls it whenever one of them changed.
package state

import (
	"fmt"
	"math"
	"time"

	"weir/internal/model"
)

// Name is the state of a backend. The words are part of weir's interface.
type Name string

// The states.
const (
	Up       Name = "up"       // takes new connections
	Starting Name = "starting" // takes a growing part of them, after it came up
	Backup   Name = "backup"   // is up, and waits until too few others are
	Down     Name = "down"     // the checks say so
	Draining Name = "draining" // takes no new ones by an operator's word; open ones go on
	Drained  Name = "drained"  // and has none left, or its time is over
	Disabled Name = "disabled" // takes none by an operator's word, and is not checked
)

// Admin is what an operator said of a backend.
type Admin string

// The words.
const (
	None    Admin = ""
	Drain   Admin = "drain"
	Disable Admin = "disable"
)

// Operator is who said something. Its JSON form is part of weir's interface.
type Operator struct {
	UID  uint32 `json:"uid"`
	User string `json:"user,omitempty"` // the name of UID, where it has one
	PID  int32  `json:"pid"`            // of the program that said it; 0: of another pid namespace
}

// String returns the user's name, or "uid 1000".
func (o Operator) String() string {
	if o.User != "" {
		return o.User
	}
	return fmt.Sprintf("uid %d", o.UID)
}

// Word is what an operator said of a backend, until he says otherwise. Its JSON form is
// what weir keeps across restarts.
type Word struct {
	Admin    Admin     `json:"admin,omitempty"`
	Deadline time.Time `json:"deadline,omitzero"` // of a drain; zero: none
	Weight   *int      `json:"weight,omitempty"`  // in place of the file's, 0 to model.MaxWeight
	At       time.Time `json:"at"`                // of Admin, if it says anything, else of Weight
	By       *Operator `json:"by,omitempty"`      // who said what At is of; nil: not known
}

// After returns what holds once w is said at that time, by that operator, where old held:
// a backend that drains goes on draining since it began, whatever else is said of it.
func (w Word) After(old Word, now time.Time, by *Operator) Word {
	switch {
	case w.Admin == None && w.Weight == nil:
		return Word{}
	case w.Admin != None && w.Admin == old.Admin:
		w.At, w.By = old.At, old.By
	default:
		w.At, w.By = now, by
	}
	return w
}

// operator says whose word it is.
func (w Word) operator() string {
	if w.By == nil {
		return "by operator"
	}
	return "by operator " + w.By.String()
}

// Resume returns the word as a weir takes it over from the one before it. A time that was
// written down is the wall clock's, which may have been set back since: a drain then has
// the time that it was given, not that and what the clock lost.
func (w Word) Resume(now time.Time) Word {
	if !w.At.After(now) {
		return w
	}
	if !w.Deadline.IsZero() {
		w.Deadline = now.Add(w.Deadline.Sub(w.At))
	}
	w.At = now
	return w
}

// Health is what the checks found. The zero value is a backend of which nothing is known
// yet: it counts as up, so that a weir that starts takes nobody out.
type Health struct {
	Down   bool
	Reason string    // what was seen last
	Since  time.Time // when it came up or went down; zero: it never changed
	CameUp bool      // it has been down before: a slow start applies
}

// Input is all that is known of one backend.
type Input struct {
	Health      Health
	Word        Word
	Connections int // live ones, or NotCounted; only looked at when it is draining
}

// NotCounted stands for a number of connections that is not known yet.
const NotCounted = -1

// Backend is the state of one backend.
type Backend struct {
	State  Name
	Reason string
	Since  time.Time
	// Weight is its share of new connections, in units of one Scale-th of the file's.
	Weight int
}

// Scale is the number of steps in which a slow start climbs.
const Scale = 10

// Decide returns the state of each backend of s, and when the result may change by time
// alone (zero: not by time). inputs are in the order of s.Backends.
func Decide(s *model.Service, inputs []Input, now time.Time) (out []Backend, next time.Time) {
	out = make([]Backend, len(s.Backends))
	for i, b := range s.Backends {
		var change time.Time
		out[i], change = one(s, b, inputs[i], now)
		if !change.IsZero() && (next.IsZero() || change.Before(next)) {
			next = change
		}
	}
	for _, f := range s.Families() {
		fewOthers(s, f, inputs, out)
	}
	return out, next
}

// one decides for a backend by itself, as if it were no backup.
func one(s *model.Service, b model.Backend, in Input, now time.Time) (Backend, time.Time) {
	switch in.Word.Admin {
	case Disable:
		return Backend{State: Disabled, Reason: in.Word.operator(), Since: in.Word.At}, time.Time{}
	case Drain:
		return drain(in, now)
	}
	if in.Health.Down {
		return Backend{State: Down, Reason: in.Health.Reason, Since: in.Health.Since}, time.Time{}
	}
	weight := b.Weight
	if in.Word.Weight != nil {
		weight = *in.Word.Weight
	}
	out := Backend{State: Up, Reason: in.Health.Reason, Since: in.Health.Since, Weight: weight * Scale}
	if s.SlowStart == 0 || !in.Health.CameUp {
		return out, time.Time{}
	}
	step := s.SlowStart / Scale
	steps := int(now.Sub(in.Health.Since)/step) + 1
	if steps >= Scale {
		return out, time.Time{}
	}
	out.State, out.Weight = Starting, weight*max(steps, 1)
	out.Reason = fmt.Sprintf("%d%% of its weight", 100*max(steps, 1)/Scale)
	return out, in.Health.Since.Add(time.Duration(max(steps, 1)) * step)
}

func drain(in Input, now time.Time) (Backend, time.Time) {
	deadline := in.Word.Deadline
	out := Backend{State: Draining, Since: in.Word.At, Reason: in.Word.operator()}
	if in.Connections > 0 {
		out.Reason = fmt.Sprintf("%s; %d connections left", in.Word.operator(), in.Connections)
	}
	switch {
	case in.Connections == 0:
		out.State, out.Reason = Drained, "no connections left"
	case deadline.IsZero():
	case !now.Before(deadline):
		out.State, out.Reason = Drained, "its time is over"
	default:
		return out, deadline
	}
	return out, time.Time{}
}

// fewOthers settles the backups of a family, and what happens when too few are left.
func fewOthers(s *model.Service, f model.Family, inputs []Input, out []Backend) {
	primaries, up, backups := 0, 0, 0
	for i, b := range s.Backends {
		switch {
		case b.Family() != f:
		case b.Backup:
			backups++
		case out[i].State != Disabled:
			primaries++
			if out[i].Weight > 0 {
				up++
			}
		}
	}
	need := max(1, int(math.Ceil(s.MinHealthy*float64(primaries)-1e-9)))
	for i, b := range s.Backends {
		if b.Family() == f && b.Backup && out[i].Weight > 0 && up >= need {
			out[i] = Backend{State: Backup, Reason: "enough others are up", Since: out[i].Since}
		}
	}
	taking := 0
	for i, b := range s.Backends {
		if b.Family() == f && out[i].Weight > 0 {
			taking++
		}
	}
	if s.WhenAllDown == model.FailOpen && taking < need {
		failOpen(s, f, inputs, out)
	}
}

// failOpen lets the sick take part: when most are down it is likelier that the checks are
// wrong than the backends. What an operator took out stays out.
func failOpen(s *model.Service, f model.Family, inputs []Input, out []Backend) {
	for i, b := range s.Backends {
		if b.Family() != f || out[i].State != Down {
			continue
		}
		out[i].Weight = b.Weight * Scale
		if w := inputs[i].Word.Weight; w != nil {
			out[i].Weight = *w * Scale
		}
	}
}

// Effective returns s as the plan shall see it: with the weights that out says. It is s
// itself where they are those of the file.
func Effective(s *model.Service, out []Backend) *model.Service {
	same := true
	for i, b := range s.Backends {
		same = same && out[i].Weight == b.Weight*Scale
	}
	if same {
		return s
	}
	c := *s
	c.Backends = append([]model.Backend(nil), s.Backends...)
	for i := range c.Backends {
		c.Backends[i].Weight = out[i].Weight
	}
	return &c
}
