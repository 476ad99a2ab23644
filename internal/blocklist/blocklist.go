// Package blocklist turns lists of addresses that are to be blocked into a compiled form:
// for each family a sorted table of prefixes, each with what happens to its packets.
//
//	text ─ Builder ─▶ List ─┐
//	text ─ Builder ─▶ List ─┼─ Compile ─▶ Compiled ─▶ the kernel (Entries, Diff, Shape)
//	             allow ─────┘                 └─▶ Lookup, CheckProtected
//
// The compiled form knows nothing of the kernel: whoever looks an address up by its most
// specific prefix, be it an nftables set or a trie, gets the right action. Lists may have
// millions of entries, so all is kept in small records: about 20 bytes for an IPv4 entry of
// a list, 12 for a compiled one (48 and 24 for IPv6), notes once each, and 4 bytes for the time
// at which an entry came.
//
// The package is pure. Reading files is the work of package files below it.
package blocklist

import (
	"fmt"
	"net/netip"
	"slices"
)

// Action is what happens to packets from a listed address. The larger wins.
type Action uint8

// The actions, the weakest first.
const (
	None   Action = iota // the address is in no list, or allowed
	Count                // counted, and goes on
	Reject               // answered with a reset or an ICMP error
	Drop                 // silence
)

var actionNames = [...]string{"none", "count", "reject", "drop"}

// String returns the word of the configuration file, "none" for None.
func (a Action) String() string { return actionNames[a] }

// MarshalText writes the word, for JSON.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the word.
func (a *Action) UnmarshalText(text []byte) error {
	i := slices.Index(actionNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("action %q is not known", text)
	}
	*a = Action(i)
	return nil
}

// Limits of one list, where Options names no others.
const (
	// DefaultMaxBytes is how much text one file may hold, after unpacking.
	DefaultMaxBytes = 512 << 20
	// DefaultMaxEntries is how many entries one list may hold: about 130 MB that stay, and
	// 310 MB while they are read and compiled (BenchmarkTenMillion, 4/10 of it), and up to 16 MB
	// for the times at which they came.
	DefaultMaxEntries = 4_000_000
	// DefaultMaxLine is the longest line, in bytes. Longer ones are bad lines.
	DefaultMaxLine = 4096
)

// Options are the bounds of a list, and what a bad line is. Zero values are the defaults.
type Options struct {
	// Strict makes every bad line an error. Otherwise it is left out and counted.
	Strict     bool
	MaxBytes   int64 // of text in one file, after unpacking
	MaxEntries int   // in the whole list, doubles included
	MaxLine    int   // bytes, at most 65,534
}

func (o Options) withDefaults() Options {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxLine <= 0 {
		o.MaxLine = DefaultMaxLine
	}
	o.MaxLine = min(o.MaxLine, readSize-len("\r\n"))
	return o
}

// Counts are figures of a list.
type Counts struct {
	Entries    int `json:"entries"`    // read, doubles included
	Skipped    int `json:"skipped"`    // bad lines left out
	Duplicates int `json:"duplicates"` // entries that are there already
	Inside     int `json:"inside"`     // entries that lie inside another one of the same list
	Masked     int `json:"masked"`     // with bits set behind the prefix, which were cleared: 10.1.2.3/8
	Mapped     int `json:"mapped"`     // IPv4 addresses in IPv6 form
	Exceptions int `json:"exceptions"` // ipset's nomatch: not blocked by this list
	Timed      int `json:"timed"`      // with a timeout of ipset's, which is not looked at
	NotesLost  int `json:"notes_lost"` // whose notes were left out: MaxNotes
}

// File is one file of a list, or the configuration file for entries that stand there.
type File struct {
	Name    string `json:"file"`
	Lines   int    `json:"lines"`
	Entries int    `json:"entries"`
	Skipped int    `json:"skipped"`
}

// List is one list in normal form: sorted, without doubles. It never changes, but for the times
// at which its entries came, which are said before others see it (StartAt, Follow, SetSince).
type List struct {
	Name     string
	Counts   Counts
	Files    []File
	Problems []*Problem // the first MaxProblems
	More     int        // problems that are not in Problems

	four  family[v4]
	six   family[v6]
	notes notes
	since since
}

// family is what a list holds of one IP version.
type family[A number[A]] struct {
	entries []entry[A] // sorted by first address, the wider first; no two alike
	holes   []entry[A] // exceptions, in the same order
}

// entry is one line of a list. A prefix or a single address is a range here: so that it
// stays one entry to people.
type entry[A number[A]] struct {
	first, last A
	line        uint32
	note        uint32
	file        uint16
	more        uint8 // doubles of it in the same list; 255 stands for more as well
}

// compare orders entries by what they cover, then by where they stand.
func (e entry[A]) compare(o entry[A]) int {
	if c := e.first.cmp(o.first); c != 0 {
		return c
	}
	if c := o.last.cmp(e.last); c != 0 {
		return c
	}
	if e.file != o.file {
		return int(e.file) - int(o.file)
	}
	return int(int64(e.line) - int64(o.line))
}

func (e entry[A]) digit(i int) byte { return e.first.byte(i) }
func (e entry[A]) digits() int      { return e.first.width() / 8 }

// String returns the entry as people write it.
func (e entry[A]) String() string {
	p := take(e.first, e.last)
	switch {
	case e.first == e.last:
		return e.first.addr().String()
	case p.last() == e.last:
		return p.netip().String()
	}
	return e.first.addr().String() + "-" + e.last.addr().String()
}

// Len returns the number of entries in normal form, both families, exceptions left out.
func (l *List) Len() int { return len(l.four.entries) + len(l.six.entries) }

// prefixText returns a single address without its length, as people write it.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
