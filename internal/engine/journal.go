package engine

import (
	"maps"
	"sync"
	"time"

	"weir/internal/state"
)

// Event is something that happened. Its JSON form is part of weir's interface.
type Event struct {
	Seq     uint64    `json:"seq"` // counts up from 1 with each start of weir
	At      time.Time `json:"time"`
	Kind    string    `json:"kind"` // "state", "operator", "reload", "apply", "confirm", "back", "repair", "host", "blocks", "egress", "mirror", "error"
	Service string    `json:"service,omitempty"`
	Backend string    `json:"backend,omitempty"`
	List    string    `json:"list,omitempty"`    // for "blocks": the blocklist
	Pool    string    `json:"pool,omitempty"`    // for "egress", and words of its addresses: the egress pool
	Address string    `json:"address,omitempty"` // and the address
	Mirror  string    `json:"mirror,omitempty"`  // what it is about, of "mirror" and "operator"
	Finding string    `json:"finding,omitempty"` // for "host": what it is about, a host.Finding's ID
	Subject string    `json:"subject,omitempty"` // and its Subject
	From    string    `json:"from,omitempty"`    // for "state": the state before; for "host": the severity, or "ok"
	To      string    `json:"to,omitempty"`      // the same now
	Message string    `json:"message,omitempty"`

	By *state.Operator `json:"by,omitempty"` // who said so; nil: nobody over the socket
}

// journalSize is how many events are kept.
const journalSize = 4096

// Journal keeps the last events, for those who ask and those who follow. Its methods may
// be called from several goroutines.
type Journal struct {
	mu    sync.Mutex
	list  []Event // by sequence number, oldest first; the last journalSize count
	seq   uint64
	kinds map[string]uint64 // how many of each there were
	fresh chan struct{}     // closed by the next event
}

// NewJournal returns an empty journal.
func NewJournal() *Journal { return &Journal{kinds: map[string]uint64{}, fresh: make(chan struct{})} }

// Add numbers the event and keeps it.
func (j *Journal) Add(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	j.kinds[e.Kind]++
	e.Seq = j.seq
	if len(j.list) == 2*journalSize { // now and then, for thousands may come at once
		j.list = append(j.list[:0], j.list[journalSize:]...)
	}
	j.list = append(j.list, e)
	close(j.fresh)
	j.fresh = make(chan struct{})
}

// Since returns the events after number seq that are still kept, and a channel that is
// closed when there is another.
func (j *Journal) Since(seq uint64) ([]Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, oldest := len(j.list), max(len(j.list)-journalSize, 0)
	for i > oldest && j.list[i-1].Seq > seq {
		i--
	}
	return append([]Event(nil), j.list[i:]...), j.fresh
}

// Counts returns how many events of each kind there were.
func (j *Journal) Counts() map[string]uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.kinds)
}
