package engine

import (
	"net/netip"
	"slices"
	"time"

	"weir/internal/egress"
	"weir/internal/state"
)

// EgressStatus is what the egress pools have in use. Its JSON form is part of weir's
// interface.
type EgressStatus struct {
	At       time.Time       `json:"time"`
	Running  bool            `json:"running"` // a weir runs; else drains, rates and totals are not known
	Pools    []EgressPool    `json:"pools"`
	Failures egress.Failures `json:"failures"` // of the kernel, since weir began to count, all pools'
	Dump     DumpStatus      `json:"dump"`
	Problems []string        `json:"problems,omitempty"` // what could not be looked at
}

// DumpStatus is the last look at the connection table.
type DumpStatus struct {
	At     time.Time `json:"time,omitzero"`
	TookMS float64   `json:"took_ms"`

	took time.Duration // of the last try
}

// EgressPool is a pool.
type EgressPool struct {
	Name     string       `json:"name"`
	Spread   string       `json:"spread"`
	WhenFull string       `json:"when_full"` // "spill" or "fail"
	Level    egress.Level `json:"level"`     // the worst of its destinations
	// Connections is how many of any protocol have an address of the pool as their source.
	Connections  int             `json:"connections"`
	NewPerSecond float64         `json:"new_per_second"`
	NewTotal     uint64          `json:"new_total"`       // since weir began to count
	Spilled      uint64          `json:"spilled_total"`   // got another address than theirs, which was full
	Hold         float64         `json:"hold_seconds"`    // for which a connection is remembered on average; 0: not known
	Relieved     int             `json:"relieved"`        // destinations for which addresses are left out
	Taken        int             `json:"taken_ports"`     // that the box listens on, and the pool does not give
	Bears        *Bears          `json:"bears,omitempty"` // nil: nothing is in use
	Addresses    []EgressAddress `json:"addresses"`       // sorted
	// Destinations are addresses and what they are used for, the fullest first; LeftOut is
	// how many more there are.
	Destinations []EgressUse `json:"destinations"`
	LeftOut      int         `json:"destinations_left_out"`
}

// EgressAddress is an address of a pool.
type EgressAddress struct {
	Address netip.Addr `json:"address"`
	State   state.Name `json:"state"` // up, draining or drained
	Reason  string     `json:"reason,omitempty"`
	Since   time.Time  `json:"since,omitzero"`    // of a drain: when it began, or when the address was free
	Until   time.Time  `json:"deadline,omitzero"` // of a drain
	Ports   int        `json:"ports"`             // that it has for each destination
	// Connections is how many of any protocol have it as their source.
	Connections int `json:"connections"`
	// InUse and Percent are of the fullest destination, Busiest.
	InUse        int        `json:"in_use"`
	Percent      float64    `json:"percent"`
	Busiest      *EgressUse `json:"busiest,omitempty"`
	NewPerSecond float64    `json:"new_per_second"`
	NewTotal     uint64     `json:"new_total"`
	FullIn       *float64   `json:"full_in_seconds"` // null: it does not fill, or it is not known
	Relieved     int        `json:"relieved"`        // destinations for which it is left out
}

// EgressUse is what of an address is in use for a destination.
type EgressUse struct {
	Address     netip.Addr     `json:"address"`
	Protocol    string         `json:"protocol"`
	Destination netip.AddrPort `json:"destination"`
	InUse       int            `json:"in_use"`
	// MaybeMore is how many more may be in use, where there were more destinations than
	// are counted one by one.
	MaybeMore    int      `json:"maybe_more,omitempty"`
	Ports        int      `json:"ports"`
	Percent      float64  `json:"percent"`
	NewPerSecond float64  `json:"new_per_second"`
	Growth       *float64 `json:"growth_per_second"` // of ports in use; null: not known
	FullIn       *float64 `json:"full_in_seconds"`   // null: it does not fill, or it is not known
	NearFull     bool     `json:"near_full"`         // new connections avoid it where they can
}

// Bears is what a pool could carry of what it carries now.
type Bears struct {
	Protocol    string         `json:"protocol"` // of the destination that has the least room
	Destination netip.AddrPort `json:"destination"`
	Address     netip.Addr     `json:"address,omitzero"` // the fullest; none where all count
	InUse       int            `json:"in_use"`           // of what Limit counts
	Limit       int            `json:"limit"`            // ports that may be in use: 80 %
	Factor      float64        `json:"factor"`           // by which the rate may grow
	// NewPerSecond is the destination's rate now, Rate the one that is borne.
	NewPerSecond float64 `json:"new_per_second"`
	Rate         float64 `json:"rate"`
}

// usualHeadroom is the part of the ports that may be in use.
const usualHeadroom = 0.8

// mostUses is how many addresses and destinations of a pool are told.
const mostUses = 100

// AddressDrain is an operator's word of an address.
type AddressDrain struct {
	Address netip.Addr
	Word    state.Word
	Free    time.Time // when its last connection had gone; zero: some are left, or it is not known
}

// addressDrains returns what operators drain.
func (l *Loop) addressDrains() []AddressDrain {
	var out []AddressDrain
	for a, d := range l.drains {
		out = append(out, AddressDrain{a, d.Word, d.free})
	}
	slices.SortFunc(out, func(a, b AddressDrain) int { return a.Address.Compare(b.Address) })
	return out
}

// Egress returns status with what v knows of drains. name picks one pool; "" is all.
func (v *View) Egress(st EgressStatus, name string) EgressStatus {
	st.Running = true
	pools := st.Pools
	st.Pools = []EgressPool{}
	for _, p := range pools {
		if name != "" && p.Name != name {
			continue
		}
		p.Addresses = slices.Clone(p.Addresses)
		for i := range p.Addresses {
			a := &p.Addresses[i]
			if j := slices.IndexFunc(v.Drains, func(d AddressDrain) bool { return d.Address == a.Address }); j >= 0 {
				a.drained(v.Drains[j])
			}
		}
		st.Pools = append(st.Pools, p)
	}
	return st
}

func (a *EgressAddress) drained(d AddressDrain) {
	a.State, a.Since, a.Until = state.Draining, d.Word.At, d.Word.Deadline
	a.Reason = "drained by operator"
	if d.Word.By != nil {
		a.Reason += " " + d.Word.By.String()
	}
	if !d.Free.IsZero() {
		a.State, a.Since = state.Drained, d.Free
	}
}

// EgressAlarm is a destination of a pool for which an address is full or nearly so. Its JSON
// form is part of weir's interface.
type EgressAlarm struct {
	Pool        string         `json:"pool"`
	Level       egress.Level   `json:"level"`   // "warning" or "error"
	Address     netip.Addr     `json:"address"` // the fullest
	Protocol    string         `json:"protocol"`
	Destination netip.AddrPort `json:"destination"`
	InUse       int            `json:"in_use"`
	Ports       int            `json:"ports"`
	Percent     float64        `json:"percent"`
	Message     string         `json:"message"`
}

func egressAlarms(list []egress.Alarm) []EgressAlarm {
	var out []EgressAlarm
	for _, a := range list {
		out = append(out, EgressAlarm{Pool: a.Pool, Level: a.Level, Message: a.String(),
			Address: a.Addr, Protocol: a.Dest.Proto.String(), Destination: a.Dest.To, InUse: a.InUse, Ports: a.Ports, Percent: round(a.Percent())})
	}
	return out
}

// Pool returns the pool of that name; one with nothing but the name where there is none.
func (st *EgressStatus) Pool(name string) *EgressPool {
	if i := slices.IndexFunc(st.Pools, func(p EgressPool) bool { return p.Name == name }); i >= 0 {
		return &st.Pools[i]
	}
	return &EgressPool{Name: name, Level: egress.OK, Addresses: []EgressAddress{}, Destinations: []EgressUse{}}
}
