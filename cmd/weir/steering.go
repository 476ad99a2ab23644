package main

import (
	"fmt"
	"strconv"

	"weir/internal/engine"
)

// printSteering writes what rules and targets got, and how the queues are.
func (e *env) printSteering(st engine.Status) error {
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	var rows [][]string
	for _, s := range st.Services {
		if s.Steering == nil {
			continue
		}
		for _, r := range s.Steering.Rules {
			rows = append(rows, []string{s.Name, "rule " + r.Name, "to " + r.To, number(r.Packets)})
		}
		for _, t := range s.Steering.Targets {
			for _, b := range t.Backends {
				rows = append(rows, []string{s.Name, "target " + t.Name, b.Address, number(b.Packets)})
			}
		}
		if s.Steering.Nobody > 0 {
			rows = append(rows, []string{s.Name, "nobody to choose", "-", number(s.Steering.Nobody)})
		}
		if e := s.Steering.Ends; e != nil && e.Sent+e.Limited+e.Dropped > 0 {
			words := "sent on"
			if e.Limited+e.Dropped > 0 {
				words = fmt.Sprintf("sent on, %d not", e.Limited+e.Dropped)
			}
			rows = append(rows, []string{s.Name, "ends of unknown connections", words, number(e.Sent)})
		}
		for _, q := range s.Steering.Queues {
			rows = append(rows, []string{s.Name, fmt.Sprintf("queue %d", q.Queue), queueWords(s.Steering, q), number(q.Packets)})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(e.stdout)
	return e.table("STEERED BY WHERE ASKED", rows, make([]string, len(rows)))
}

// queueWords says how a queue is, in a few words.
func queueWords(s *engine.SteeringStatus, q engine.QueueStatus) string {
	if !s.Answering {
		return "nobody answers: " + s.WhenAbsent
	}
	words := fmt.Sprintf("%d waiting", q.Waiting)
	if q.Full+q.Unreceived > 0 {
		words += fmt.Sprintf(", %d past it", q.Full+q.Unreceived)
	}
	return words
}
