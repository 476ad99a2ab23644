package steer

import (
	"sync/atomic"

	"weir/internal/steer/match"
)

// Steerer asks the set that is in force. Its methods may be called from any goroutine.
type Steerer struct{ set atomic.Pointer[Set] }

// NewSteerer returns one with a set in force.
func NewSteerer(s *Set) *Steerer {
	st := &Steerer{}
	st.set.Store(s)
	return st
}

// Set returns the set in force.
func (st *Steerer) Set() *Set { return st.set.Load() }

// Replace puts another set in force; packets that are being asked about may still get the
// answer of the one before. To keep the counts, the new one must have been made with it.
func (st *Steerer) Replace(s *Set) { st.set.Store(s) }

// Mark returns the mark that a packet with the mark given gets, and counts: the bits of the mask are
// those of the choice, all others stay. data is the packet from its IP header on, or its first
// [Set.CopyLength] bytes. What is no IP packet is one that no rule wants. worker is below
// Config.Workers, and the one of the calling goroutine alone. Nothing is allocated.
func (st *Steerer) Mark(worker int, data []byte, mark uint32) uint32 {
	s := st.set.Load()
	var p match.Packet
	c := Choice{-1, -1, -1, s.cfg.None}
	if p.Parse(data) {
		c = s.Choose(&p)
	}
	s.counts.count(worker, c)
	return mark&^s.cfg.Mask | c.Mark
}
