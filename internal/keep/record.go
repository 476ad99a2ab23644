package keep

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strconv"
	"time"

	"weir/internal/state"
)

// Limits of the time in which a change must be confirmed.
const (
	MinWithin = time.Second
	MaxWithin = 24 * time.Hour
)

// Config is a configuration, known by its text.
type Config struct {
	File string          `json:"file"`   // where it was read
	Sum  string          `json:"sha256"` // of its text, in hex
	At   time.Time       `json:"at"`     // when it was taken
	By   *state.Operator `json:"by,omitempty"`
}

// Sum returns the name of a text.
func Sum(text string) string {
	h := sha256.New()
	_, _ = io.WriteString(h, text) // never fails
	return hex.EncodeToString(h.Sum(nil))
}

// Pending is a configuration that is taken back unless it is confirmed.
type Pending struct {
	Config
	ID     string        `json:"id"`       // of this change; a change that replaces it has another
	Within time.Duration `json:"within"`   // how long it may wait, ns
	Until  time.Time     `json:"deadline"` // by the wall clock
	Boot   string        `json:"boot_id"`  // of the kernel that SinceBoot is about
	// Running says that a weir run took it: to go back is to go back to what operators
	// said to that one, too.
	Running bool `json:"running"`
	// SinceBoot is the deadline by CLOCK_BOOTTIME, ns.
	SinceBoot time.Duration `json:"deadline_since_boot"`
}

// Record is what weir remembers. Its methods decide, and change nothing but it.
type Record struct {
	Confirmed *Config  `json:"confirmed,omitempty"` // nil: none was, as far as is known
	Pending   *Pending `json:"pending,omitempty"`   // nil: nothing waits
	// Rejected was not confirmed in time: neither a start nor SIGHUP takes that text,
	// though it may be in the file still.
	Rejected *Config `json:"rejected,omitempty"`
	// Place is where that holds, as far as is known: Write says it.
	Place Place `json:"place"`
}

// Place is a network namespace, as long as the machine runs.
type Place struct {
	Boot string `json:"boot_id"`
	Net  uint64 `json:"netns"` // the inode of its file
}

// Elsewhere reports whether p is certainly another namespace than here: not one of before
// the machine was started again, for namespaces have no name that outlives that.
func (p Place) Elsewhere(here Place) bool {
	return p.Boot != "" && p.Boot == here.Boot && p.Net != here.Net
}

// Empty reports whether nothing is remembered.
func (r *Record) Empty() bool { return r.Confirmed == nil && r.Pending == nil && r.Rejected == nil }

// Take notes that c holds from now on, by a word that needs no confirmation.
func (r *Record) Take(c Config) { *r = Record{Confirmed: &c} }

// Propose notes that c holds, for that time, unless it is confirmed. What waited until now
// is forgotten: it is the last confirmed one to which c goes back.
func (r *Record) Propose(c Config, within time.Duration, now Clock) {
	r.Pending = &Pending{Config: c, Within: within, ID: strconv.FormatInt(c.At.UnixNano(), 36)}
	r.Pending.set(within, now)
}

// Confirm notes that what waits holds for good.
func (r *Record) Confirm() { r.Take(r.Pending.Config) }

// Back notes that what waited is no more, and the last confirmed one holds again.
func (r *Record) Back() {
	if r.Confirmed == nil || r.Confirmed.Sum != r.Pending.Sum {
		r.Rejected = &r.Pending.Config
	}
	r.Pending = nil
}

// Refuses reports whether that text was not confirmed in time.
func (r *Record) Refuses(sum string) bool { return r.Rejected != nil && r.Rejected.Sum == sum }

// Left returns how long a change may still wait; 0 and below: its time is over. As long as
// the machine runs that is counted by CLOCK_BOOTTIME, which nobody sets and which goes on
// while the machine sleeps. After it was started again only the wall clock is left: one
// that shows a time before the change is not believed, and the time is over.
func (p *Pending) Left(now Clock) time.Duration {
	if now.Boot != "" && now.Boot == p.Boot {
		return p.SinceBoot - now.SinceBoot
	}
	if now.Wall.Before(p.At) {
		return 0
	}
	return min(p.Until.Sub(now.Wall), p.Within)
}

// Continue is for who takes a change over: from now on its time is counted by the clock of
// this boot. It reports whether that is another.
func (p *Pending) Continue(now Clock) bool {
	if now.Boot == "" || now.Boot == p.Boot {
		return false
	}
	p.set(p.Left(now), now)
	return true
}

func (p *Pending) set(left time.Duration, now Clock) {
	p.Until, p.Boot, p.SinceBoot = now.Wall.Add(left).Round(0), now.Boot, now.SinceBoot+left
}
