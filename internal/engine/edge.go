package engine

import (
	"cmp"
	"slices"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// ListenerStatus is what one listener of a service of the box itself got (in) and
// answered (out).
type ListenerStatus struct {
	Listen string `json:"listen"`
	Traffic
}

// EdgeStatus is what the access policy let pass and dropped.
type EdgeStatus struct {
	Policy       string       `json:"policy"`        // "accept" or "drop"
	InvalidFlags string       `json:"invalid_flags"` // the same
	Open         []OpenStatus `json:"open"`          // in the order of the file
	Management   Passed       `json:"management"`
	Dropped      []Dropped    `json:"dropped"`
	BadFlags     []BadFlags   `json:"dropped_flags"`
}

// Passed is packets that belonged to no known connection when they were let in; those that
// follow on a connection are not counted.
type Passed struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// OpenStatus is what an open rule let pass. What several rules would let pass is counted
// for one of them.
type OpenStatus struct {
	Name string `json:"name"`
	Passed
}

// Dropped is what the policy dropped of the packets that took those devices; Out is "" for
// packets to the box.
type Dropped struct {
	In  string `json:"in"`
	Out string `json:"out,omitempty"`
	Passed
}

// BadFlags is the segments with those flags that were dropped.
type BadFlags struct {
	In    string `json:"in"`
	Flags string `json:"flags"`
	Passed
}

func (p *Passed) add(c nft.Counter) {
	p.Packets += c.Packets
	p.Bytes += c.Bytes
}

func newEdgeStatus(e *model.Edge) *EdgeStatus {
	if e == nil {
		return nil
	}
	word := map[bool]string{false: "accept", true: "drop"}
	st := &EdgeStatus{Policy: word[e.Drop], InvalidFlags: word[e.DropInvalidFlags],
		Open: []OpenStatus{}, Dropped: []Dropped{}, BadFlags: []BadFlags{}}
	for _, r := range e.Open {
		st.Open = append(st.Open, OpenStatus{Name: r.Name})
	}
	return st
}

// take adds what an element counted.
func (st *EdgeStatus) take(c plan.Counted, e nft.Elem, ruleOf func(set, key, end string) (int, bool)) {
	if st == nil || e.Counter == (nft.Counter{}) {
		return
	}
	passed := Passed{e.Counter.Packets, e.Counter.Bytes}
	switch c.What {
	case plan.Managed:
		st.Management.add(e.Counter)
	case plan.Opened:
		if i, ok := ruleOf(c.Set.Name, e.Key, e.KeyEnd); ok && i < len(st.Open) {
			st.Open[i].add(e.Counter)
		}
	case plan.DroppedIn:
		st.Dropped = append(st.Dropped, Dropped{In: ruleset.DeviceOf(e.Key), Passed: passed})
	case plan.DroppedForward:
		st.Dropped = append(st.Dropped, droppedBy(e))
	case plan.DroppedFlags:
		st.BadFlags = append(st.BadFlags, BadFlags{ruleset.DeviceOf(e.Key), plan.FlagsText(e.Key), passed})
	}
}

// sort puts what has no order of its own into one.
func (st *EdgeStatus) sort() {
	if st == nil {
		return
	}
	sortDropped(st.Dropped)
	slices.SortFunc(st.BadFlags, func(a, b BadFlags) int { return cmp.Or(cmp.Compare(a.In, b.In), cmp.Compare(a.Flags, b.Flags)) })
}

func sortDropped(list []Dropped) {
	slices.SortFunc(list, func(a, b Dropped) int { return cmp.Or(cmp.Compare(a.Out, b.Out), cmp.Compare(a.In, b.In)) })
}

// droppedBy reads an element that counts by the devices of arrival and departure.
func droppedBy(e nft.Elem) Dropped {
	return Dropped{ruleset.DeviceOf(e.Key), ruleset.DeviceOf(e.Key[ruleset.IfName.Padded():]), Passed{e.Counter.Packets, e.Counter.Bytes}}
}

// leak adds what was kept from leaving with a private source.
func (st *Status) leak(e nft.Elem) {
	if e.Counter != (nft.Counter{}) {
		st.Leaks = append(st.Leaks, droppedBy(e))
	}
}

// listener returns the service and the place in its list of the listener l.
func (b *book) listener(l plan.Listener) (service, at int, ok bool) {
	s, ok := b.find(plan.Pair{Listen: l.First(), Proto: l.Proto})
	if !ok {
		return 0, 0, false
	}
	at = slices.Index(b.cfg.Services[s.service].Listen, l.Listen)
	return s.service, at, at >= 0 && b.cfg.Services[s.service].Local()
}

// serve adds what a listener of the box counted.
func (st *Status) serve(b *book, c plan.Counted, e nft.Elem) {
	service, at, ok := b.listener(plan.ParseListener(c.Family, e.Key, e.KeyEnd))
	if !ok {
		return
	}
	what := map[plan.What]plan.What{plan.ListenerConnections: plan.Connections, plan.ListenerIn: plan.Requests,
		plan.ListenerOut: plan.Replies}[c.What]
	t := traffic(what, e.Counter)
	st.Services[service].Listeners[at].add(t)
	st.Services[service].Total.add(t)
}

// describeLocal fills in what a service of the box itself has in the place of backends, and
// that conntrack does not see one with direct return.
func (ss *ServiceStatus) describeLocal(s *model.Service) {
	if s.Direct() {
		ss.Track = "none"
	}
	if !s.Local() {
		return
	}
	ss.Balance, ss.Track = "", "conntrack"
	if s.Untracked {
		ss.Track = "none"
	}
	for _, l := range s.Listen {
		ss.Listeners = append(ss.Listeners, ListenerStatus{Listen: l.String()})
	}
}
