package main

import (
	"testing"
)

// checkSteering looks for holes in the part about steering. How many packets a second it is, and
// whether all get through, is the machine's affair; but every new connection has come through.
func checkSteering(t *testing.T, r *SteeringReport, measured bool) {
	t.Helper()
	if !measured {
		if r != nil {
			t.Errorf("without large buffers: %+v", r)
		}
		return
	}
	if len(r.Flood) != 2 || len(r.Paced) != 2 || len(r.Connections) != 3 {
		t.Fatalf("%d rows of floods, %d at a rate, %d of connections", len(r.Flood), len(r.Paced), len(r.Connections))
	}
	for _, c := range append(r.Flood, r.Paced...) {
		if c.Problem != "" || c.Rounds != 1 || c.Sent <= 0 || c.Answered <= 0 || c.Packet.Least <= 0 || c.Sender <= 0 || c.Waited < 0 || c.Waited > 1 {
			t.Errorf("%+v has a hole", c)
		}
		if c.Lost < 0 || c.Lost < c.Full+c.Unreceived {
			t.Errorf("%+v: it lost less than its queues did", c)
		}
	}
	for _, c := range r.Paced {
		if c.Packets <= 0 || c.Packets > pacedRate*int(pacedTime.Seconds()) {
			t.Errorf("%+v: sent too few", c)
		}
	}
	for _, c := range r.Connections {
		if chosen := c.Name != openKernel; c.Problem != "" || c.Rounds != 1 || c.Flows <= 0 || c.Rate <= 0 || c.New.Least <= 0 || chosen != (c.Own.Least > 0) {
			t.Errorf("%+v has a hole", c)
		}
	}
}

func TestParseQueues(t *testing.T) {
	text := "30565 2666642181     7 2   132     3     2    100  1\n" +
		"30566 2666642182     0 2   132     1     0     50  1\n"
	got := parseQueues(text)
	if want := (queueCounts{queues: 2, waiting: 7, full: 4, unreceived: 2, numbered: 150}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := got.answered(); got != 141 {
		t.Errorf("%d answered, want 141", got)
	}
	if got := parseQueues(""); got != (queueCounts{}) {
		t.Errorf("no queue: %+v", got)
	}
}

func TestNewFlows(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range newFlows(70_000) {
		seen[string(p[12:24])] = true
	}
	if len(seen) != 70_000 {
		t.Errorf("%d connections, want 70000", len(seen))
	}
}
