package model

import (
	"net/netip"
	"slices"
)

// Limits of blocklists.
const (
	// MaxBlocklists is the largest number of lists in one configuration.
	MaxBlocklists = 64
	// DefaultMaxChange is the part of a list that may come or go at once.
	DefaultMaxChange = 0.5
)

// BlockAction is what happens to packets from an address on a list.
type BlockAction uint8

// The actions, the weakest first: where lists that hold the same address disagree, the
// strongest wins.
const (
	BlockCount  BlockAction = iota // they pass, and are counted
	BlockReject                    // the sender is told: TCP reset, else ICMP administratively prohibited
	BlockDrop                      // they vanish
)

// String returns the word of the configuration file.
func (a BlockAction) String() string { return [...]string{"count", "reject", "drop"}[a] }

// AddrRange is the addresses from Lo to Hi, both included, of one family.
type AddrRange struct{ Lo, Hi netip.Addr }

// BlockEntry is an entry that stands in the configuration itself.
type BlockEntry struct {
	AddrRange
	Text string // as it was written
	Line int    // in the configuration file, from 1
}

// Blocklist is a list of addresses whose packets are turned away. What is in Files is not
// part of the model: it is read, and read again when it changes, while weir runs.
type Blocklist struct {
	Name    string
	Entries []BlockEntry
	Files   []string // globs, absolute or relative to the directory weir was started in
	Action  BlockAction
	Strict  bool // a line that is no entry makes the whole list bad; else it is left out and counted
	// MaxChange is the part of its entries by which the list may shrink or grow
	// at once, 0.01 to 9; what is beyond is taken for a mistake. 0: nothing is.
	MaxChange float64
}

// Equal reports whether the two lists say the same, wherever in the file they stand.
func (b *Blocklist) Equal(o *Blocklist) bool {
	return b.Name == o.Name && b.Action == o.Action && b.Strict == o.Strict && b.MaxChange == o.MaxChange &&
		slices.Equal(b.Files, o.Files) && slices.EqualFunc(b.Entries, o.Entries, func(a, b BlockEntry) bool {
		return a.AddrRange == b.AddrRange && a.Text == b.Text
	})
}
