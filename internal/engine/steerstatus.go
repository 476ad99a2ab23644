package engine

import (
	"weir/internal/model"
)

// SteeringStatus is how the backends of a steered service are chosen. Its JSON form is part of
// weir's interface. Packets are those that weir was asked about: the first of connections, and
// what follows it before the answer. They count from the start of weir.
type SteeringStatus struct {
	Packets    string `json:"packets"`     // "first", or "all" with direct return
	WhenAbsent string `json:"when_absent"` // "hash", "drop" or "accept"
	// Answering says that weir has the queues; else the kernel does what when_absent says.
	Answering bool `json:"answering"`
	// Rules are in the order of the file; the last, default, is what no other wants.
	Rules   []SteerRuleStatus   `json:"rules"`
	Targets []SteerTargetStatus `json:"targets"`
	// Nobody is packets whose target had no backend to choose.
	Nobody uint64 `json:"nobody_packets"`
	// Ends are FINs and RSTs of TCP connections that conntrack does not know; nil where there can
	// be none.
	Ends   *SteerEndsStatus `json:"ends,omitempty"`
	Queues []QueueStatus    `json:"queues"`
}

// SteerEndsStatus is what became of the FINs and RSTs of TCP connections that conntrack does not
// know, say of another balancer that went.
type SteerEndsStatus struct {
	Sent    uint64 `json:"sent"`    // to the backend
	Limited uint64 `json:"limited"` // dropped: more than 1,000 in a second
	Dropped uint64 `json:"dropped"` // for any other reason
}

// SteerRuleStatus is the share of one rule.
type SteerRuleStatus struct {
	Name     string `json:"name"`
	Priority int    `json:"priority,omitempty"`
	To       string `json:"to"`
	Packets  uint64 `json:"packets"`
}

// SteerTargetStatus is the share of one target.
type SteerTargetStatus struct {
	Name     string              `json:"name"`
	Packets  uint64              `json:"packets"`
	Backends []SteerMemberStatus `json:"backends"`
}

// SteerMemberStatus is the share of a backend in a target.
type SteerMemberStatus struct {
	Address string `json:"address"`
	Packets uint64 `json:"packets"`
}

// QueueStatus is one of the kernel's queues, since it was opened.
type QueueStatus struct {
	Queue   uint16 `json:"queue"`
	Packets uint64 `json:"packets"` // that weir was asked about
	Waiting uint64 `json:"waiting"` // for an answer, now
	// Packets that did not get to weir, because too many waited or the socket's buffer was
	// full. They were dropped with when_absent: drop; else they went on as it says.
	Full       uint64 `json:"full"`
	Unreceived uint64 `json:"unreceived"`
}

// newSteeringStatus returns the status of a service that nobody answers for; nil without
// steering.
func newSteeringStatus(s *model.Service) *SteeringStatus {
	if !s.Steered() {
		return nil
	}
	st := s.Steering
	out := &SteeringStatus{Packets: "first", WhenAbsent: st.Absent.String(), Queues: []QueueStatus{}}
	if s.Direct() {
		out.Packets = "all"
	}
	for _, r := range st.Rules {
		out.Rules = append(out.Rules, SteerRuleStatus{Name: r.Name, Priority: r.Priority, To: st.Targets[r.To].Name})
	}
	out.Rules = append(out.Rules, SteerRuleStatus{Name: DefaultRule, To: st.Targets[st.Default].Name})
	for _, t := range st.Targets {
		ts := SteerTargetStatus{Name: t.Name}
		for _, i := range t.Members {
			ts.Backends = append(ts.Backends, SteerMemberStatus{Address: s.Backends[i].ID()})
		}
		out.Targets = append(out.Targets, ts)
	}
	for q := int(st.Queues.First); q <= int(st.Queues.Last); q++ {
		out.Queues = append(out.Queues, QueueStatus{Queue: uint16(q)})
	}
	return out
}

// Status implements Steerers.
func (s *Steering) Status() map[string]SteeringStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]SteeringStatus{}
	for name, r := range s.running {
		if r.next != nil {
			continue // what it says is not in force yet
		}
		st := newSteeringStatus(r.service)
		counts := r.steerer.Set().Counts()
		for i := range st.Rules {
			st.Rules[i].Packets = counts.Rules[i]
		}
		for i := range st.Targets {
			st.Targets[i].Packets = counts.Targets[i]
			for j := range st.Targets[i].Backends {
				st.Targets[i].Backends[j].Packets = counts.Members[i][j]
			}
		}
		st.Nobody = counts.Nobody
		if r.sender != nil {
			ends := SteerEndsStatus(r.sender.Stats())
			st.Ends = &ends
		}
		if stats, err := r.queues.Stats(); err == nil {
			st.Answering = true
			for i, q := range stats {
				st.Queues[i] = QueueStatus{Queue: q.Queue, Packets: q.Packets, Waiting: q.Waiting, Full: q.Dropped, Unreceived: q.Unreceived}
			}
		}
		all[name] = *st
	}
	return all
}
