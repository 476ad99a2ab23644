package engine

import (
	"maps"
	"sync"
	"time"
)

// Event is something that happened. Its JSON form is part of weir's interface.
type Event struct {
	Seq     uint64    `json:"seq"` // counts up from 1 with each start of weir
	At      time.Time `json:"time"`
	Kind    string    `json:"kind"` // "state", "operator", "reload", "repair", "error"
	Service string    `json:"service,omitempty"`
	Backend string    `json:"backend,omitempty"`
	From    string    `json:"from,omitempty"` // for "state": the state before
	To      string    `json:"to,omitempty"`   // for "state": the state now
	Message string    `json:"message,omitempty"`
}

// journalSize is how many events are kept.
const journalSize = 4096

// Journal keeps the last events, for those who ask and those who follow. Its methods may
// be called from several goroutines.
type Journal struct {
	mu    sync.Mutex
	ring  []Event // by sequence number, oldest first
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
	if len(j.ring) == journalSize {
		j.ring = append(j.ring[:0], j.ring[1:]...)
	}
	j.ring = append(j.ring, e)
	close(j.fresh)
	j.fresh = make(chan struct{})
}

// Since returns the events after number seq that are still kept, and a channel that is
// closed when there is another.
func (j *Journal) Since(seq uint64) ([]Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := len(j.ring)
	for i > 0 && j.ring[i-1].Seq > seq {
		i--
	}
	return append([]Event(nil), j.ring[i:]...), j.fresh
}

// Counts returns how many events of each kind there were.
func (j *Journal) Counts() map[string]uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.kinds)
}
