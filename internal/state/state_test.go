package state_test

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/model"
	"weir/internal/state"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// service returns a service with a backend of each weight; a negative one is a backup.
func service(weights ...int) *model.Service {
	s := &model.Service{Name: "web", Listen: []model.Listen{{Addr: netip.MustParseAddr("198.51.100.10"), Proto: model.TCP, Ports: model.Port(80)}}}
	for i, w := range weights {
		s.Backends = append(s.Backends, model.Backend{
			Addr: netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}), Weight: max(w, -w), Backup: w < 0})
	}
	return s
}

func down() state.Input {
	return state.Input{Health: state.Health{Down: true, Reason: "refused", Since: t0}}
}

func word(a state.Admin) state.Input { return state.Input{Word: state.Word{Admin: a, At: t0}} }

func TestDecide(t *testing.T) {
	var up state.Input
	seven := 7
	tests := []struct {
		name    string
		service *model.Service
		change  func(*model.Service)
		inputs  []state.Input
		states  []state.Name
		weights []int // in Scale-ths
	}{
		{name: "nothing known counts as up", service: service(1, 2), inputs: []state.Input{up, up},
			states: []state.Name{state.Up, state.Up}, weights: []int{10, 20}},
		{name: "one is down", service: service(1, 1), inputs: []state.Input{down(), up},
			states: []state.Name{state.Down, state.Up}, weights: []int{0, 10}},
		{name: "backup waits", service: service(1, -1), inputs: []state.Input{up, up},
			states: []state.Name{state.Up, state.Backup}, weights: []int{10, 0}},
		{name: "backup joins when none is up", service: service(1, -3), inputs: []state.Input{down(), up},
			states: []state.Name{state.Down, state.Up}, weights: []int{0, 30}},
		{name: "backup joins below min_healthy", service: service(1, 1, 1, -1),
			change: func(s *model.Service) { s.MinHealthy = 0.5 }, inputs: []state.Input{down(), down(), up, up},
			states: []state.Name{state.Down, state.Down, state.Up, state.Up}, weights: []int{0, 0, 10, 10}},
		{name: "backup waits at min_healthy", service: service(1, 1, -1),
			change: func(s *model.Service) { s.MinHealthy = 0.5 }, inputs: []state.Input{down(), up, up},
			states: []state.Name{state.Down, state.Up, state.Backup}, weights: []int{0, 10, 0}},
		{name: "a backup that is down stays so", service: service(1, -1), inputs: []state.Input{down(), down()},
			states: []state.Name{state.Down, state.Down}, weights: []int{0, 0}},
		{name: "disabled", service: service(1, 1), inputs: []state.Input{word(state.Disable), up},
			states: []state.Name{state.Disabled, state.Up}, weights: []int{0, 10}},
		{name: "weight by operator", service: service(1, 1), inputs: []state.Input{{Word: state.Word{Weight: &seven}}, up},
			states: []state.Name{state.Up, state.Up}, weights: []int{70, 10}},
		{name: "drained", service: service(1, 1), inputs: []state.Input{word(state.Drain), up},
			states: []state.Name{state.Drained, state.Up}, weights: []int{0, 10}},
		{name: "fail-open", service: service(1, 2), change: func(s *model.Service) { s.WhenAllDown = model.FailOpen },
			inputs: []state.Input{down(), down()}, states: []state.Name{state.Down, state.Down}, weights: []int{10, 20}},
		{name: "fail-open spares what an operator took out", service: service(1, 2),
			change: func(s *model.Service) { s.WhenAllDown = model.FailOpen }, inputs: []state.Input{down(), word(state.Disable)},
			states: []state.Name{state.Down, state.Disabled}, weights: []int{10, 0}},
		{name: "no fail-open while enough are up", service: service(1, 1), change: func(s *model.Service) { s.WhenAllDown = model.FailOpen },
			inputs: []state.Input{down(), up}, states: []state.Name{state.Down, state.Up}, weights: []int{0, 10}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change != nil {
				tt.change(tt.service)
			}
			out, _ := state.Decide(tt.service, tt.inputs, t0)
			for i, b := range out {
				if b.State != tt.states[i] || b.Weight != tt.weights[i] {
					t.Errorf("backend %d: %s of weight %d, want %s of %d", i, b.State, b.Weight, tt.states[i], tt.weights[i])
				}
			}
		})
	}
}

func TestSlowStartClimbs(t *testing.T) {
	s := service(4)
	s.SlowStart = 30 * time.Second
	in := []state.Input{{Health: state.Health{CameUp: true, Since: t0}}}
	last := 0
	for now := t0; ; {
		out, next := state.Decide(s, in, now)
		if out[0].Weight <= last {
			t.Fatalf("at %s the weight is %d after %d", now.Sub(t0), out[0].Weight, last)
		}
		last = out[0].Weight
		if next.IsZero() {
			if last != 4*state.Scale || out[0].State != state.Up || now.Sub(t0) != 27*time.Second {
				t.Errorf("ends at %s as %+v", now.Sub(t0), out[0])
			}
			return
		}
		if out[0].State != state.Starting || !next.After(now) {
			t.Fatalf("at %s: %+v, next %s", now.Sub(t0), out[0], next.Sub(t0))
		}
		now = next
	}
}

func TestDrainDeadline(t *testing.T) {
	in := []state.Input{{Word: state.Word{Admin: state.Drain, At: t0, Deadline: t0.Add(time.Minute)}, Connections: 3}}
	out, next := state.Decide(service(1), in, t0)
	if out[0].State != state.Draining || !next.Equal(t0.Add(time.Minute)) {
		t.Errorf("%+v, next %s", out[0], next)
	}
	if out, _ = state.Decide(service(1), in, next); out[0].State != state.Drained {
		t.Errorf("after the deadline: %+v", out[0])
	}
}

// TestDecideProperties: what an operator took out, or what is down without fail-open,
// takes nothing; and somebody takes part whenever somebody could.
func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "backends")
		weights := make([]int, n)
		inputs := make([]state.Input, n)
		for i := range weights {
			weights[i] = rapid.SampledFrom([]int{1, 2, 5, -1, -2}).Draw(t, "weight")
			inputs[i] = rapid.SampledFrom([]state.Input{{}, down(), word(state.Drain), word(state.Disable)}).Draw(t, "input")
		}
		s := service(weights...)
		s.MinHealthy = rapid.SampledFrom([]float64{0, 0.3, 0.5, 1}).Draw(t, "min healthy")
		s.WhenAllDown = rapid.SampledFrom([]model.AllDown{model.Reject, model.FailOpen}).Draw(t, "all down")
		out, _ := state.Decide(s, inputs, t0)
		could, takes := false, false
		for i, b := range out {
			if inputs[i].Word.Admin != state.None && b.Weight != 0 {
				t.Fatalf("backend %d takes part against the operator's word", i)
			}
			if inputs[i].Health.Down && b.Weight != 0 && s.WhenAllDown != model.FailOpen {
				t.Fatalf("backend %d takes part while it is down", i)
			}
			could = could || inputs[i].Word.Admin == state.None && (!inputs[i].Health.Down || s.WhenAllDown == model.FailOpen)
			takes = takes || b.Weight > 0
		}
		if could != takes {
			t.Fatalf("somebody could take part: %v, somebody does: %v; %+v", could, takes, out)
		}
	})
}

func TestEffective(t *testing.T) {
	s := service(1, 2)
	out, _ := state.Decide(s, make([]state.Input, 2), t0)
	if state.Effective(s, out) != s {
		t.Error("the service was copied for nothing")
	}
	out, _ = state.Decide(s, []state.Input{down(), {}}, t0)
	e := state.Effective(s, out)
	if e.Backends[0].Weight != 0 || e.Backends[1].Weight != 20 || s.Backends[0].Weight != 1 {
		t.Errorf("effective %v, file %v", e.Backends, s.Backends)
	}
}

// TestResume: a drain that was written down has the time that it was given, at most.
func TestResume(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	w := state.Word{Admin: state.Drain, At: at, Deadline: at.Add(10 * time.Minute)}
	for _, c := range []struct {
		now  time.Time
		w    state.Word
		want time.Time // of the deadline
	}{
		{at, w, w.Deadline},
		{at.Add(time.Minute), w, w.Deadline},
		{at.Add(time.Hour), w, w.Deadline},
		{at.Add(-time.Hour), w, at.Add(-50 * time.Minute)},
		{at.Add(-time.Hour), state.Word{Admin: state.Drain, At: at}, time.Time{}},
	} {
		got := c.w.Resume(c.now)
		if !got.Deadline.Equal(c.want) || got.At.After(c.now) || got.Admin != state.Drain {
			t.Errorf("at %s: %+v, want the deadline %s", c.now, got, c.want)
		}
	}
}
