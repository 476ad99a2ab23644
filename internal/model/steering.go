package model

import (
	"net/netip"
	"slices"

	"weir/internal/steer/match"
)

// Limits of steering.
const (
	// MaxSteerRules is the largest number of rules of one service. They are asked one after
	// the other, some 10 ns each.
	MaxSteerRules = 1024
	// MaxQueues is the largest number of queues of one service.
	MaxQueues = 64
	// SteerMarks is how many marks there are beside those of the backends: for connections
	// whose target has nobody to choose, and for those that the kernel has chosen for.
	SteerMarks = 2
	// FirstQueue is the first of the queues whose numbers a file leaves to weir.
	FirstQueue = 30565
)

// Absent is what happens to new connections of a steered service while no weir answers.
type Absent uint8

// The ways.
const (
	AbsentHash   Absent = iota // the kernel chooses from the default target, as weir would
	AbsentDrop                 // silence
	AbsentAccept               // they go on untranslated
)

var absentNames = [...]string{"hash", "drop", "accept"}

// String returns the word of the configuration file.
func (a Absent) String() string { return absentNames[a] }

// AbsentNames returns the allowed words in the order of the constants.
func AbsentNames() []string { return absentNames[:] }

// Steering is how weir itself chooses a backend for the first packet of a connection, with
// rules. It is immutable.
type Steering struct {
	Rules   []SteerRule   // in file order; names are unique
	Targets []SteerTarget // in file order, at least one; names are unique
	// Default is the index of the target of packets that no rule wants. It has backends of
	// each family that the service listens on.
	Default int
	Absent  Absent
	Queues  QueueRange
}

// QueueRange is the numbers of the kernel's queues from First to Last, both included.
type QueueRange struct{ First, Last uint16 }

// Len returns how many they are.
func (q QueueRange) Len() int { return int(q.Last) - int(q.First) + 1 }

// Overlaps reports whether the ranges share a queue.
func (q QueueRange) Overlaps(o QueueRange) bool { return q.First <= o.Last && o.First <= q.Last }

// SteerTarget is a group of the service's backends.
type SteerTarget struct {
	Name    string
	Members []int // indices of Service.Backends, each once; at least one
}

// SteerRule sends packets to a target. What it leaves out matches everything.
type SteerRule struct {
	Name     string // as in the file, or rules[N] of one without
	Priority int    // the lowest is asked first; of several alike, the first in the file
	Protos   []Proto
	// Sources and Destinations are masked; where there are any, a packet of a family of which
	// there is none does not match.
	Sources, Destinations []netip.Prefix
	SourcePorts, Ports    []PortRange // of the source and of the destination
	Bytes                 match.Conditions
	To                    int // the index of a target
}

// Steered reports whether weir itself chooses the backends.
func (s *Service) Steered() bool { return s.Steering != nil }

// DefaultMember reports whether backend i, an index of Backends, is one of those that the
// kernel itself chooses from: with steering, the default target's.
func (s *Service) DefaultMember(i int) bool {
	return s.Steering == nil || slices.Contains(s.Steering.Targets[s.Steering.Default].Members, i)
}

// Equal reports whether the two say the same; nil equals nil.
func (s *Steering) Equal(o *Steering) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.Default == o.Default && s.Absent == o.Absent && s.Queues == o.Queues &&
		slices.EqualFunc(s.Rules, o.Rules, SteerRule.Equal) && slices.EqualFunc(s.Targets, o.Targets, SteerTarget.Equal)
}

// Equal reports whether the two targets say the same.
func (t SteerTarget) Equal(o SteerTarget) bool {
	return t.Name == o.Name && slices.Equal(t.Members, o.Members)
}

// Equal reports whether the two rules say the same.
func (r SteerRule) Equal(o SteerRule) bool {
	return r.Name == o.Name && r.Priority == o.Priority && r.To == o.To && slices.Equal(r.Protos, o.Protos) &&
		slices.Equal(r.Sources, o.Sources) && slices.Equal(r.Destinations, o.Destinations) &&
		slices.Equal(r.SourcePorts, o.SourcePorts) && slices.Equal(r.Ports, o.Ports) && slices.Equal(r.Bytes, o.Bytes)
}
