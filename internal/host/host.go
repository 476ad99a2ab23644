// Package host says what a box must provide so that a configuration works on it, and what
// is missing: forwarding, routes, devices, addresses, room in the connection table.
//
// Its one idea: what weir does not own it does not change. It says what is wrong, what that
// means for which services, and the command that mends it. The package is a pure function
// of a configuration ([NeedsOf]) and of what was seen on the box ([Facts]); package look
// does the seeing.
package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says how bad a finding is.
type Severity string

// The severities. The words are part of weir's interface.
const (
	Error   Severity = "error"   // traffic does not flow
	Warning Severity = "warning" // some may not, or will not soon
	Info    Severity = "info"    // worth knowing; nothing has to be wrong
)

var rank = map[Severity]int{Error: 0, Warning: 1, Info: 2}

// What findings are about. The words are part of weir's interface.
const (
	IPForward       = "ip-forward"         // a sysctl that lets packets through is off
	NoRoute         = "no-route"           // backends that nothing leads to
	NotOnSegment    = "not-on-segment"     // backends of direct return that are not on a segment of the box
	RouteLost       = "route-lost"         // backends that only the default route leads to now
	DeviceMissing   = "device-missing"     // a device that is needed does not exist
	DeviceDown      = "device-down"        // it is not set up
	NoCarrier       = "no-carrier"         // it is set up, and nothing is at the other end
	IPv6Disabled    = "ipv6-disabled"      // on a device that is to hold IPv6 addresses
	AddressMissing  = "address-missing"    // an address that weir should hold
	SourceMissing   = "source-missing"     // a service's source address that nobody holds
	RPFilter        = "rp-filter"          // strict reverse-path filtering where packets come another way
	AcceptRA        = "accept-ra"          // a default route that forwarding lets expire
	ConntrackFull   = "conntrack-full"     // the connection table fills up
	ConntrackSlow   = "conntrack-buckets"  // it has too few buckets for its size
	ConntrackEvents = "conntrack-events"   // the kernel tells nobody of connections
	ConntrackTimes  = "conntrack-timeouts" // it has no timeouts but the sysctls'
	PoolUnheld      = "pool-not-held"      // addresses of a pool on a segment, and nobody answers for them
	PoolRoom        = "pool-over-table"    // a pool can hold more connections than the connection table
	TCPLoose        = "tcp-loose"          // steered connections of another balancer are not picked up
	TCPLiberal      = "tcp-be-liberal"     // steered connections that come back from another balancer may stand still
	ListenUnheld    = "listen-not-held"    // a listen address on a segment, and nobody answers for it
	ByDefault       = "by-default-route"   // private backends behind the default route
	ForeignDrop     = "foreign-drop"       // somebody else's chain drops by default
	Rights          = "rights"             // of who runs weir
	NfTables        = "nf-tables"          // the kernel's packet filter can't be used
	RulesMissing    = "rules-missing"      // weir's rules are not in the kernel
	RulesDiffer     = "rules-differ"       // they are not what the configuration asks for
	NotRunning      = "not-running"        // no weir runs here
	NoAnswer        = "no-answer"          // it runs, and does not answer
	StateFile       = "state-file"         // what operators say cannot be kept
	BackendDown     = "backend-down"       // the checks say so
	ServiceDown     = "service-down"       // nothing to send new connections to
	Blocklist       = "blocklist"          // cannot be read, or would cut off what is needed
	NotReadable     = "host-not-readable"  // the box could not be looked at
)

// Finding is something about the box that the configuration needs otherwise. Its JSON form
// is part of weir's interface.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // what exactly: a sysctl, a device, an address, a network
	Found    string   `json:"found"`   // in plain words, without a full stop
	Means    string   `json:"means"`   // for the services
	// Services that it concerns, at most MaxServices in the order of the file, and how many
	// more there are. Empty: all, or none in particular.
	Services []string `json:"services"`
	More     int      `json:"more_services,omitempty"`
	// Fix is a command to type; "" where there is none that is sure to be right.
	Fix string `json:"fix,omitempty"`
}

// MaxServices is how many services a finding names.
const MaxServices = 8

// Key is what a finding is about: two with the same key are the same thing, seen twice.
func (f Finding) Key() string { return f.ID + " " + f.Subject }

// Same reports whether nothing of it has changed that is worth telling.
func (f Finding) Same(o Finding) bool {
	return f.Key() == o.Key() && f.Severity == o.Severity && f.Found == o.Found
}

// String returns the finding in one line, as logs and events have it.
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(f.Found)
	if f.Means != "" {
		b.WriteString(": " + f.Means)
	}
	b.WriteString(f.Concerns())
	if f.Fix != "" {
		b.WriteString("; type: " + f.Fix)
	}
	return b.String()
}

// Concerns returns " (service web)", " (services web, dns and 3 more)", or "".
func (f Finding) Concerns() string {
	if len(f.Services) == 0 {
		return ""
	}
	word, list := "service", strings.Join(f.Services, ", ")
	if len(f.Services)+f.More > 1 {
		word += "s"
	}
	if f.More > 0 {
		list += fmt.Sprintf(" and %d more", f.More)
	}
	return " (" + word + " " + list + ")"
}

// Sort sorts by severity, the worst first, and then by what the findings are about.
func Sort(list []Finding) {
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank[a.Severity], rank[b.Severity]), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Subject, b.Subject))
	})
}

// Serious returns the findings that are more than worth knowing.
func Serious(list []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(list), func(f Finding) bool { return f.Severity == Info })
}

// Changes returns what appeared or became another between two lists of findings, and what
// went.
func Changes(before, now []Finding) (fresh, gone []Finding) {
	old := make(map[string]Finding, len(before))
	for _, f := range before {
		old[f.Key()] = f
	}
	for _, f := range now {
		if o, ok := old[f.Key()]; !ok || !o.Same(f) {
			fresh = append(fresh, f)
		}
		delete(old, f.Key())
	}
	for _, f := range before {
		if _, left := old[f.Key()]; left {
			gone = append(gone, f)
		}
	}
	return fresh, gone
}
