package model

import (
	"fmt"
	"time"
)

// Limits of what a service may say of floods.
const (
	MaxLimits    = 8          // limits of one service
	MaxRate      = 10_000_000 // of a limit, in its unit; also the largest burst
	MaxRefill    = 24 * time.Hour
	MinSource6   = 33 // shortest prefix of IPv6 sources; shorter lengths are of IPv4
	defaultBits4 = 32
	defaultBits6 = 64
)

// Counts is what a limit counts.
type Counts uint8

// What limits count.
const (
	NewConnections Counts = iota // first packets of connections
	Packets                      // all packets to the listeners
)

var countsNames = [...]string{"new_connections", "packets"}

// String returns the key of the configuration file.
func (c Counts) String() string { return countsNames[c] }

// Limit is a rate that a source, or all of a service, must not exceed: a bucket of Burst
// tokens that gets Rate of them in a time of Unit. Each packet that counts takes one out,
// and one that finds none is refused.
type Limit struct {
	Counts Counts
	Rate   int           // 1 to MaxRate
	Unit   time.Duration // a second, a minute or an hour
	Burst  int           // 1 to MaxRate; full again within MaxRefill

	// Whole says that all of the service shares one bucket. Else each source has its own:
	// addresses of which the first V4 or V6 bits are the same.
	Whole bool
	V4    int // 1 to 32; 0 with Whole
	V6    int // MinSource6 to 128; 0 with Whole

	Reject bool // new connections over the limit are answered with a refusal; else silence
}

// NewLimit returns what a limit is by default: for each IPv4 address and each IPv6 /64.
func NewLimit() Limit { return Limit{V4: defaultBits4, V6: defaultBits6} }

// Bits returns how many bits of a source address of family f make a source; 0 where all
// share one bucket.
func (l Limit) Bits(f Family) int {
	if f == IPv4 {
		return l.V4
	}
	return l.V6
}

// RateText returns the form of the file: "50/second".
func (l Limit) RateText() string {
	unit := "second"
	switch l.Unit {
	case time.Minute:
		unit = "minute"
	case time.Hour:
		unit = "hour"
	}
	return fmt.Sprintf("%d/%s", l.Rate, unit)
}

// PerText returns the form of the file: "source", "source/24", "source/48", "source/24,48"
// or "service".
func (l Limit) PerText() string {
	switch four, six := l.V4 != defaultBits4, l.V6 != defaultBits6; {
	case l.Whole:
		return "service"
	case four && six:
		return fmt.Sprintf("source/%d,%d", l.V4, l.V6)
	case four:
		return fmt.Sprintf("source/%d", l.V4)
	case six:
		return fmt.Sprintf("source/%d", l.V6)
	}
	return "source"
}

// String says all of it but the action: "new_connections 50/second burst 100 per source".
func (l Limit) String() string {
	return fmt.Sprintf("%s %s burst %d per %s", l.Counts, l.RateText(), l.Burst, l.PerText())
}

// Refill is how long an empty bucket takes to be full.
func (l Limit) Refill() time.Duration {
	return time.Duration(float64(l.Burst) / float64(l.Rate) * float64(l.Unit))
}
