package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"weir/internal/lab"
)

// generated gives fn a generator and a network for its gateways, in which packets are
// measured. Where the generator may not be used, that is noted and fn is not called.
func (b *bench) generated(part string, fn func(*generator, *lab.Net) error) error {
	gen, err := newGenerator()
	if errors.Is(err, fs.ErrPermission) {
		b.note("%s: packets not measured: BPF needs root outside of user namespaces: %v", part, err)
		return nil
	}
	if err != nil {
		return err
	}
	defer gen.close()
	n, err := lab.New()
	if err != nil {
		return err
	}
	defer n.Close()
	return fn(gen, n)
}

// inRounds calls measure for each of n things in every round, in an order that changes from
// round to round, so that nobody always follows the same one.
func (b *bench) inRounds(ctx context.Context, part string, n int, measure func(i int)) error {
	for r := range b.rounds {
		if b.late() && r > 0 {
			b.note("%s: only %d of %d rounds fitted into the time", part, r, b.rounds)
			break
		}
		b.say("%s: round %d of %d", part, r+1, b.rounds)
		for i := range n {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			measure((i + r) % n)
		}
	}
	return nil
}

// gauge measures the cost of packets that are sent to a gateway again and again.
type gauge struct {
	perRun int // packets of a burst; 0: not known yet
}

// run sends a short run and then bursts, and returns the nanoseconds of a packet in the
// cheapest of those: others use the machine, too. How long a burst is, no more than a part
// of most, is settled by the first run and stays.
func (m *gauge) run(g *gateway, gen *generator, most int) (ns float64, err error) {
	warm, err := g.send(gen, outside, probe)
	if err != nil {
		return 0, err
	}
	if m.perRun == 0 {
		m.perRun = min(max(int(sendTime/max(warm/probe, 1)), probe), (most-probe)/bursts)
	}
	least := time.Duration(math.MaxInt64)
	for range bursts {
		spent, err := g.send(gen, outside, m.perRun)
		if err != nil {
			return 0, err
		}
		least = min(least, spent)
	}
	return float64(least) / float64(m.perRun), nil
}

// ending is a gateway in which all packets end.
type ending struct {
	gw     *gateway
	frames []byte
	costs  []float64 // of a packet, by round
	gauge
}

// measure measures a round.
func (e *ending) measure(gen *generator) error {
	gen.load(e.frames)
	cost, err := e.run(e.gw, gen, math.MaxInt)
	if err != nil {
		return err
	}
	// A router says a word of its own now and then.
	if out, err := e.gw.delivered(); err != nil || out > probe {
		return errors.Join(err, fmt.Errorf("%d packets came out", out))
	}
	e.costs = append(e.costs, cost)
	return nil
}
