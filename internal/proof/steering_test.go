package proof

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// answerer answers for the steered services of a configuration as a running weir does, or nobody
// does: then the kernel does what when_absent says.
type answerer struct {
	w        *wire
	plan     *plan.Plan
	steering *engine.Steering // nil: nobody answers
	id       uint32           // of the last probe
}

// newAnswerer makes one for p, whose rules are not in the kernel yet.
func newAnswerer(w *wire, p *plan.Plan, answers bool) (*answerer, error) {
	a := &answerer{w: w, plan: p}
	if !answers {
		return a, nil
	}
	a.steering = &engine.Steering{Log: slog.New(slog.DiscardHandler)}
	return a, w.hosts[atGateway].Do(func() error { return a.steering.Prepare(p) })
}

func (a *answerer) close() {
	if a.steering != nil {
		a.steering.Close()
	}
}

// ask is wire.ask. Packets that weir is asked about come out when another thread has sent them
// on, so whoever sees nothing of one looks for longer.
func (a *answerer) ask(p probe) ([]sighting, error) {
	if a.steering == nil {
		return a.w.ask(p)
	}
	_, before, err := a.w.queued()
	if err != nil {
		return nil, err
	}
	if a.id, err = a.w.probe(p); err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); ; {
		waiting, now, err := a.w.queued()
		switch {
		case err != nil:
			return nil, err
		case waiting == 0:
			return a.listen(now > before)
		case time.Now().After(end):
			return nil, fmt.Errorf("%d packets wait for an answer", waiting)
		}
	}
}

// listen is wire.listen for longer, if weir was asked.
func (a *answerer) listen(asked bool) ([]sighting, error) {
	for end := time.Now().Add(unseen); ; {
		seen, err := a.w.listen(a.id)
		if err != nil || len(seen) > 0 || !asked || time.Now().After(end) {
			return seen, err
		}
	}
}

// unseen is for how long an answered packet is looked for; one that is dropped behind the queue
// takes as long.
const unseen = 200 * time.Millisecond

// env adds what answers to an evaluation.
func (a *answerer) env(e *ruleset.Env, p probe) {
	if a.steering == nil {
		return
	}
	var payload []byte
	if p.proto == model.UDP {
		payload = binary.BigEndian.AppendUint32(nil, a.id)
	}
	e.Queued = engine.Steer(a.plan, payload, func(engine.Steered) {})
}

// Kinds of packets that a run must have met.
const weirAsked, nobodyAsked = "weir was asked", "nobody answered"

func (a *answerer) queuedCase() string {
	if a.steering != nil {
		return weirAsked
	}
	return nobodyAsked
}

// queued returns how many packets wait in the gateway's queues, and how many ever were in them.
func (w *wire) queued() (waiting, numbered int, err error) {
	var text []byte
	err = w.hosts[atGateway].Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	})
	for line := range strings.Lines(string(text)) {
		var queue, port, wait, mode, length, full, unreceived, number int
		if n, _ := fmt.Sscan(line, &queue, &port, &wait, &mode, &length, &full, &unreceived, &number); n == 8 {
			waiting, numbered = waiting+wait, numbered+number
		}
	}
	return waiting, numbered, err
}
