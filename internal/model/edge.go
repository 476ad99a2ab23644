package model

import (
	"net/netip"
	"slices"
)

// Forward is how a service's packets reach whoever serves it.
type Forward uint8

// The ways.
const (
	ForwardNAT    Forward = iota // the destination is rewritten to a backend's
	ForwardDirect                // backends hold the address themselves, and answer past the box
	ForwardLocal                 // a program on this box serves it; there are no backends
)

var forwardNames = [...]string{"nat", "direct", "local"}

// String returns the word of the configuration file.
func (f Forward) String() string { return forwardNames[f] }

// ForwardNames returns the allowed words in the order of the constants.
func ForwardNames() []string { return forwardNames[:] }

// Local reports whether a program on this box serves it.
func (s *Service) Local() bool { return s.Forward == ForwardLocal }

// Limits of an access policy.
const (
	// MaxOpen is the largest number of open rules.
	MaxOpen = 4096
	// MaxOpenings is the largest number of combinations of devices, prefixes and ports that
	// the open rules of one file stand for.
	MaxOpenings = 16384
)

// Edge is what may reach the box and what may be forwarded through it. It is immutable.
type Edge struct {
	Drop             bool           // what nothing opens is dropped; else weir restricts nothing
	DropInvalidFlags bool           // TCP segments whose flags contradict each other are dropped
	Management       []netip.Prefix // from here the box is always reached; masked, none in another
	Open             []*OpenRule    // in file order; without Drop they open nothing that is closed
}

// Dropping reports whether what nothing opens is dropped. A nil Edge drops nothing.
func (e *Edge) Dropping() bool { return e != nil && e.Drop }

// OpenRule lets packets in or through. What a list does not say is open to all: an empty
// list matches anything.
type OpenRule struct {
	Name     string         // as in the file, or open[N] of one without; unique
	Box      bool           // packets to the box; else those that are forwarded
	In       []string       // devices by which they come in; groups are resolved
	Out      []string       // devices by which they leave; empty with Box
	From, To []netip.Prefix // masked; To is empty with Box; both, where said, of the same families
	Traffic  []Traffic
}

// Traffic is a protocol and, where it is not zero, its destination ports.
type Traffic struct {
	Proto Proto
	Ports PortRange // zero: all of the protocol
}

// Families returns the families whose packets the rule may match.
func (r *OpenRule) Families() []Family {
	prefixes := append(slices.Clip(r.From), r.To...)
	if len(prefixes) == 0 {
		return []Family{IPv4, IPv6}
	}
	var out []Family
	for _, f := range []Family{IPv4, IPv6} {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return FamilyOf(p.Addr()) == f }) {
			out = append(out, f)
		}
	}
	return out
}

// Equal reports whether the two say the same; nil equals nil.
func (e *Edge) Equal(o *Edge) bool {
	if e == nil || o == nil {
		return e == o
	}
	return e.Drop == o.Drop && e.DropInvalidFlags == o.DropInvalidFlags && slices.Equal(e.Management, o.Management) &&
		slices.EqualFunc(e.Open, o.Open, (*OpenRule).Equal)
}

// Equal reports whether the two rules say the same.
func (r *OpenRule) Equal(o *OpenRule) bool {
	return r.Name == o.Name && r.Box == o.Box && slices.Equal(r.In, o.In) && slices.Equal(r.Out, o.Out) &&
		slices.Equal(r.From, o.From) && slices.Equal(r.To, o.To) && slices.Equal(r.Traffic, o.Traffic)
}
