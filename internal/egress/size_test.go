package egress

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"weir/internal/model"
)

func demand(clients int, rate float64, dests int, hold time.Duration, spread model.Spread) Demand {
	return Demand{clients, rate, dests, hold, 64512, spread, 0.8}
}

func TestSize(t *testing.T) {
	const flow, client, both = model.SpreadFlow, model.SpreadClient, model.SpreadClientDestination
	for name, c := range map[string]struct {
		d    Demand
		want int
	}{
		// 3000 × 120 = 360,000 ports; / 3 = 120,000; / 51,609 = 2.3.
		"the example":      {demand(200, 3000, 3, 2*time.Minute, flow), 3},
		"one destination":  {demand(200, 3000, 1, 2*time.Minute, flow), 8}, // 6.98, and the deviation
		"little":           {demand(1, 1, 1, time.Second, flow), 1},
		"client":           {demand(200, 3000, 1, 2*time.Minute, client), 13}, // 28 clients fill an address; 15.4 is the average
		"many clients":     {demand(200_000, 3000, 1, 2*time.Minute, client), 8},
		"one of one":       {demand(1, 400, 1, 2*time.Minute, client), 1},
		"each destination": {demand(200, 3000, 3, 2*time.Minute, both), 4},
	} {
		s, err := Size(c.d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Addresses != c.want {
			t.Errorf("%s: %d addresses, want %d: %+v", name, s.Addresses, c.want, s)
		}
		if s.Peak > float64(s.Usable) {
			t.Errorf("%s: %d addresses have %f ports in use of %d", name, s.Addresses, s.Peak, s.Usable)
		}
		if s.Addresses > 1 {
			if less := load(c.d, s.Addresses-1); less.Peak <= float64(less.Usable) {
				t.Errorf("%s: one address less does, too", name)
			}
		}
		if s.Bears < c.d.Rate*0.999 || len(s.Why) < 5 {
			t.Errorf("%s: bears %f, asked for %f; why: %q", name, s.Bears, c.d.Rate, s.Why)
		}
	}
}

func TestSizeOfOneClient(t *testing.T) {
	d := demand(2, 3000, 1, 2*time.Minute, model.SpreadClient)
	if _, err := Size(d); !errors.Is(err, ErrOneClient) {
		t.Fatalf("each of two clients holds 180,000 ports of one destination: error %v", err)
	}
	d.Spread = model.SpreadFlow
	if s, err := Size(d); err != nil || s.Addresses != 8 {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestSizeSaysWhatItAssumes(t *testing.T) {
	s, err := Size(demand(200, 3000, 3, 2*time.Minute, model.SpreadClient))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(s.Why, "\n")
	for _, word := range []string{"3000 × 120 = 360000", "360000 ports / 3 destinations = 120000", "balls thrown into bins", "if all get alike", "four standard deviations", "51609"} {
		if !strings.Contains(all, word) {
			t.Errorf("%q is not said in:\n%s", word, all)
		}
	}
}

// The tail against the sum of the plain terms.
func TestTail(t *testing.T) {
	for _, c := range []struct {
		m, k int
		p    float64
	}{{10, 5, 0.3}, {200, 40, 0.125}, {1000, 120, 0.1}, {7, 6, 0.5}} {
		choose := 1.0
		want := 0.0
		for i := range c.m + 1 {
			if i > c.k {
				want += choose * math.Pow(c.p, float64(i)) * math.Pow(1-c.p, float64(c.m-i))
			}
			choose *= float64(c.m-i) / float64(i+1)
		}
		if got := math.Exp(logTail(c.m, c.k, c.p)); math.Abs(got-want) > 1e-9*want+1e-15 {
			t.Errorf("P(X > %d) of %d at %g: %g, want %g", c.k, c.m, c.p, got, want)
		}
	}
}

// simulate returns how many ports of an address are ever in use for a destination, when
// connections come at random and are given to n addresses as the pool would.
func simulate(d Demand, n int, r *rand.Rand) int {
	homes := make([]int, d.Clients*d.Destinations)
	for i := range homes {
		homes[i] = r.IntN(n)
	}
	type end struct {
		at   float64
		slot int
	}
	var open []end // by time, for all hold alike long
	inUse := make([]int, n*d.Destinations)
	most, next := 0, r.IntN(n)
	for now, head := 0.0, 0; now < 6*d.Hold.Seconds(); {
		now += r.ExpFloat64() / d.Rate
		for head < len(open) && open[head].at <= now {
			inUse[open[head].slot]--
			head++
		}
		dest, client := r.IntN(d.Destinations), r.IntN(d.Clients)
		addr := next
		switch d.Spread {
		case model.SpreadFlow:
			next = (next + 1) % n
		case model.SpreadClient:
			addr = homes[client]
		case model.SpreadClientDestination:
			addr = homes[client*d.Destinations+dest]
		}
		slot := dest*n + addr
		inUse[slot]++
		most = max(most, inUse[slot])
		open = append(open, end{now + d.Hold.Seconds(), slot})
	}
	return most
}

// What Size says suffices when it is tried; and one address less would go beyond the part of
// the ports that may be in use.
func TestSizeSuffices(t *testing.T) {
	const runs = 40
	for _, spread := range []model.Spread{model.SpreadFlow, model.SpreadClient, model.SpreadClientDestination} {
		for _, dests := range []int{1, 3} {
			d := Demand{Clients: 60, Rate: 300, Destinations: dests, Hold: 20 * time.Second, Ports: 1000, Spread: spread, Headroom: 0.8}
			s, err := Size(d)
			if err != nil {
				t.Fatal(err)
			}
			over, overLess, worst := 0, 0, 0
			for seed := range uint64(runs) {
				most := simulate(d, s.Addresses, rand.New(rand.NewPCG(seed, 1)))
				worst = max(worst, most)
				if most > s.Usable {
					over++
				}
				if s.Addresses > 1 && simulate(d, s.Addresses-1, rand.New(rand.NewPCG(seed, 2))) > s.Usable {
					overLess++
				}
			}
			t.Logf("%s, %d destinations: %d addresses, computed peak %.0f of %d, simulated %d; over: %d of %d runs, with one less %d",
				spread, dests, s.Addresses, s.Peak, s.Usable, worst, over, runs, overLess)
			if over > 1 { // 1 of 100 may be, of the hash
				t.Errorf("%s, %d destinations: %d addresses did not suffice in %d of %d runs", spread, dests, s.Addresses, over, runs)
			}
		}
	}
}
