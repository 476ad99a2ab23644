// Package health asks backends how they are and counts the answers: probes in, up or
// down out.
//
// It has three layers that know nothing of each other's inside. A probe (Probes) asks
// one backend once and is bounded in time, memory and what it believes: whatever a
// backend sends is untrusted. The Prober decides when each backend is asked; it is the
// only part with a clock and goroutines. The Tracker turns a row of results into a
// state; it is a plain value that takes its time from the results.
//
// A probe has three ends, not two. When this machine is what failed (no file
// descriptors left, no right to send ICMP, the process was stopped for a while), nothing
// was learned about the backend: such a result is Void, is shown, and moves no state.
// Otherwise one full descriptor table here would take every backend out of service.
package health

import (
	"net/netip"
	"time"

	"weir/internal/model"
)

// Target is one backend to be asked in one way.
type Target struct {
	ID    string       // unique among the targets of one Set; it names them in an Update
	Addr  netip.Addr   // where to ask, with its zone if it is link-local
	Port  uint16       // the port of the traffic; Check.Port goes first when it is said
	Check *model.Check // never nil, never changed afterwards
}

// port is the port that is asked.
func (t *Target) port() uint16 {
	if t.Check.Port != 0 {
		return t.Check.Port
	}
	return t.Port
}

// addrPort is where the question goes.
func (t *Target) addrPort() netip.AddrPort { return netip.AddrPortFrom(t.Addr, t.port()) }

// Result is the end of one probe.
type Result struct {
	OK      bool          // the backend answered as the check wants
	Void    bool          // nothing was learned, the reason lies on this machine; OK is false
	At      time.Time     // when it was known; with the monotonic clock when a Prober made it
	Latency time.Duration // from the start of the probe to At
	Detail  string        // what was seen: at most MaxDetail bytes, one line, safe to print
}

// Update is a result and whose it is.
type Update struct {
	ID     string
	Result Result
}
