package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"weir/internal/keep"
	"weir/internal/model"
	"weir/internal/state"
)

// File is a configuration as it was read.
type File struct {
	Path   string
	Text   string
	Config *model.Config

	sum string // keep.Sum of Text
}

// Keeper remembers configurations across restarts. Implementation: keep.Store.
type Keeper interface {
	Read() (keep.Record, error)
	Text(keep.Config) (string, error)
	// Write keeps r, and the text, if it is not empty, that r names.
	Write(r keep.Record, text string) error
}

// Waiting is a change that is taken back unless it is confirmed. Its JSON form is part of
// weir's interface.
type Waiting struct {
	File     string          `json:"file"`
	At       time.Time       `json:"at"`           // when it was taken
	Deadline time.Time       `json:"deadline"`     // by the wall clock as it is now
	Left     float64         `json:"seconds_left"` // 0 or less: it goes back at the next moment
	By       *state.Operator `json:"by,omitempty"`
}

// NewWaiting says how long p waits still; nil of nil.
func NewWaiting(p *keep.Pending, now keep.Clock) *Waiting {
	if p == nil {
		return nil
	}
	left := p.Left(now)
	return &Waiting{File: p.File, At: p.At, By: p.By, Deadline: now.Wall.Add(left).Round(0), Left: left.Round(time.Millisecond).Seconds()}
}

// Rejected is a configuration that was not confirmed in time: neither a start nor SIGHUP
// takes that text. Its JSON form is part of weir's interface.
type Rejected struct {
	File string          `json:"file"`
	Sum  string          `json:"sha256"` // of the text
	At   time.Time       `json:"at"`     // when it was taken
	By   *state.Operator `json:"by,omitempty"`
}

// NewRejected returns c, which was not confirmed; nil of nil.
func NewRejected(c *keep.Config) *Rejected {
	if c == nil {
		return nil
	}
	return &Rejected{c.File, c.Sum, c.At, c.By}
}

// What is said of changes that wait.
var (
	ErrNothing = errors.New("there is nothing to confirm")
	ErrWaiting = errors.New("a change waits for its confirmation")
	ErrNotKept = errors.New("weir cannot remember the configuration to go back to")
	errRefused = errors.New("that is the text that was not confirmed in time: it is taken when it changes, or with weir reload or weir apply")
)

// WaitingError is ErrWaiting with what to do.
func WaitingError(p *keep.Pending, now keep.Clock) error {
	return fmt.Errorf("%w (%s of %s): weir confirm keeps it, else it goes back in %s; weir apply --confirm TIME puts another in its place",
		ErrWaiting, p.File, p.At.Format(time.DateTime), p.Left(now).Round(time.Second))
}

// Nothing is the text of the configuration before the first.
const Nothing = "services: []\n"

// Apply takes the file as ReloadNow does. With a time it is taken back by itself unless
// Confirm comes before that is over, also by a weir that was started again meanwhile. One
// that waits already is replaced: what it goes back to stays the last confirmed one.
func (l *Loop) Apply(ctx context.Context, by *state.Operator, within time.Duration) error {
	if within == 0 {
		return l.ReloadNow(ctx, by)
	}
	return l.taking(ctx, func() error { return l.refused(by, l.propose(by, within)) })
}

func (l *Loop) propose(by *state.Operator, within time.Duration) error {
	l.expire()
	l.keepBook()
	f, err := l.read()
	switch {
	case err != nil:
		return err
	case l.Kept == nil:
		return ErrNotKept
	case l.book.Pending != nil && l.before == nil:
		return fmt.Errorf("%w: what is kept of it cannot be read", ErrNotKept)
	case l.unkept:
		return fmt.Errorf("%w: it cannot be written down (weir events says why)", ErrNotKept)
	}
	next := l.book
	next.Propose(l.stamp(f, by), within, l.Clock())
	next.Pending.Running = true
	if err := l.Kept.Write(next, f.Text); err != nil {
		return fmt.Errorf("%w: %w", ErrNotKept, err)
	}
	if l.book.Pending == nil {
		l.before = l.file
	}
	l.book = next
	l.adopt(f)
	l.Log.Warn("configuration taken until it is confirmed, else it goes back", "file", f.Path, "within", within)
	l.note(Event{Kind: "apply", By: by, Message: fmt.Sprintf("configuration taken; it goes back in %s unless it is confirmed", within)})
	return nil
}

// Confirm keeps the change that waits, and returns what that was.
func (l *Loop) Confirm(ctx context.Context, by *state.Operator) (was keep.Config, err error) {
	e := l.Do(ctx, func() { was, err = l.confirm(by) })
	return was, firstError(e, &err)
}

func (l *Loop) confirm(by *state.Operator) (keep.Config, error) {
	l.expire()
	if l.book.Pending == nil {
		return keep.Config{}, ErrNothing
	}
	next := l.book
	next.Confirm()
	if err := l.Kept.Write(next, ""); err != nil {
		return keep.Config{}, fmt.Errorf("not confirmed, for that could not be written down: %w", err)
	}
	l.book, l.before = next, nil
	l.Log.Info("configuration confirmed", "file", next.Confirmed.File)
	l.note(Event{Kind: "confirm", By: by, Message: "configuration confirmed"})
	return *next.Confirmed, nil
}

// first takes the configuration with which weir starts: the file, unless a change waits or
// was not confirmed.
func (l *Loop) first() error {
	l.readBook()
	if p := l.book.Pending; p != nil {
		return l.takeOver(p)
	}
	f, err := l.read()
	if err != nil {
		return err
	}
	if !l.book.Refuses(f.sum) {
		l.take(f, nil)
		return nil
	}
	cfg, err := l.kept(l.book.Confirmed)
	if err != nil {
		return fmt.Errorf("%s: %w; but the last confirmed configuration is not there: %w", f.Path, errRefused, err)
	}
	l.Log.Error("the file is not taken, the last confirmed configuration is", "file", f.Path, "error", errRefused)
	l.note(Event{Kind: "error", Message: "configuration not taken, the last confirmed one is: " + errRefused.Error()})
	l.set(cfg)
	return nil
}

// takeOver goes on with a change that waited when the weir before ended, or ends it.
func (l *Loop) takeOver(p *keep.Pending) error {
	var err error
	if l.before, err = l.kept(l.book.Confirmed); err != nil {
		l.Log.Error("the last confirmed configuration cannot be read", "error", err)
	}
	if p.Left(l.Clock()) > 0 || l.before == nil {
		var cfg *model.Config
		if cfg, err = l.kept(&p.Config); err == nil {
			if p.Continue(l.Clock()) {
				l.unkept = true
			}
			l.Log.Warn("a change waits for its confirmation, else it goes back", "file", p.File, "within", p.Left(l.Clock()))
			l.set(cfg)
			return nil
		}
		l.Log.Error("the change that waits cannot be read", "error", err)
	}
	if l.before == nil {
		return fmt.Errorf("neither the change that waits nor the configuration before it can be read: %w", err)
	}
	l.back()
	return nil
}

// expire ends a change whose time is over.
func (l *Loop) expire() {
	if p := l.book.Pending; p != nil && l.before != nil && p.Left(l.Clock()) <= 0 {
		l.back()
	}
}

// back goes back to the last confirmed configuration.
func (l *Loop) back() {
	p := l.book.Pending
	words := fmt.Sprintf("not confirmed in time: went back from %s of %s to the last confirmed configuration; that text is not taken "+
		"again until it changes, or weir reload or weir apply says so", p.File, p.At.Format(time.DateTime))
	next := l.book
	next.Back()
	l.book, l.unkept = next, true
	l.keepBook()
	cfg := l.before
	l.before = nil
	l.retry, l.pause = nil, 0
	l.set(cfg)
	l.Log.Error(words)
	l.note(Event{Kind: "back", Message: words})
}

// kept returns a configuration of the book; nil is that before the first.
func (l *Loop) kept(c *keep.Config) (*model.Config, error) {
	if c == nil {
		return l.Parse("nothing", Nothing)
	}
	text, err := l.Kept.Text(*c)
	if err != nil {
		return nil, err
	}
	return l.Parse(c.File, text)
}

// take takes a file that needs no confirmation.
func (l *Loop) take(f File, by *state.Operator) {
	l.adopt(f)
	if c := l.book.Confirmed; l.Kept == nil || l.book.Rejected == nil && c != nil && c.Sum == f.sum {
		return
	}
	l.book.Take(l.stamp(f, by))
	l.unkept, l.owed = true, f.Text
	l.keepBook()
}

// adopt makes the file what is wanted now.
func (l *Loop) adopt(f File) {
	l.retry, l.pause = nil, 0
	l.set(f.Config)
}

func (l *Loop) read() (File, error) {
	f, err := l.Load()
	if err == nil {
		f.sum = keep.Sum(f.Text)
	}
	return f, err
}

func (l *Loop) stamp(f File, by *state.Operator) keep.Config {
	return keep.Config{File: f.Path, Sum: f.sum, At: l.Now().Round(0), By: by}
}

func (l *Loop) readBook() {
	if l.Kept == nil {
		return
	}
	var err error
	if l.book, err = l.Kept.Read(); err != nil {
		l.Log.Error("what configuration was confirmed last is not known", "error", err)
	}
}

// keepBook writes down what could not be before.
func (l *Loop) keepBook() {
	if !l.unkept || l.Kept == nil {
		return
	}
	err := l.Kept.Write(l.book, l.owed)
	if err == nil {
		l.unkept, l.keepFailed, l.owed = false, false, ""
		return
	}
	if !l.keepFailed { // a full disk needs no line a second
		l.Log.Error("the configuration could not be written down; trying again; without it there is no weir apply --confirm", "error", err)
		l.note(Event{Kind: "error", Message: "configuration could not be written down: " + err.Error()})
	}
	l.keepFailed = true
}
