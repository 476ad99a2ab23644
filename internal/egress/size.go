package egress

import (
	"errors"
	"fmt"
	"math"
	"time"

	"weir/internal/model"
)

// Demand is what a pool is to bear.
type Demand struct {
	Clients      int           // behind it; they open connections alike. From 1
	Rate         float64       // new connections a second, of all clients; more than 0
	Destinations int           // (address, port) that they go to, all alike. From 1
	Hold         time.Duration // how long a connection keeps its port: its life, and what conntrack waits after that
	Ports        int           // source ports of one address. From 1
	Spread       model.Spread
	Headroom     float64 // part of the ports that may be in use, 0.01 to 1
}

// Sizing is how many addresses a demand needs.
type Sizing struct {
	Addresses int
	Open      float64 // connections that hold a port at a time
	PerDest   float64 // of those, to one destination
	// Clients is how many clients the busiest address has with a stable spread, at most (with
	// 99 % certainty); 0 with spread flow, where all have all.
	Clients int
	// Busiest is how many ports the busiest address has in use for a destination, Peak at
	// most of the time: four standard deviations more.
	Busiest, Peak float64
	Usable        int     // ports of an address that may be in use: Ports × Headroom
	Bears         float64 // connections a second that so many addresses bear
	Why           []string
}

// ErrOneClient says that a client alone needs more ports than an address has, and always gets
// the same.
var ErrOneClient = errors.New("one client needs more ports for a destination than one address has")

// certainty is how sure it is that no address has more clients than computed.
const certainty = 0.99

// deviations is by how many standard deviations the number of ports in use may be above its
// average: connections come at random, so it is Poisson's, whose is the root of the average.
const deviations = 4

// mostAddresses bounds the search.
const mostAddresses = 1 << 24

// Size returns how many addresses a demand needs, and why. The assumptions, which Why names:
// destinations and clients are alike, connections come at random, and a stable spread puts
// each client on an address by a hash that is as good as a dice.
func Size(d Demand) (Sizing, error) {
	n, err := fewest(d)
	if err != nil {
		return Sizing{}, err
	}
	s := load(d, n)
	s.Bears = bears(d, n)
	s.Why = why(d, s)
	return s, nil
}

// fewest returns the smallest number of addresses that bears d.
func fewest(d Demand) (int, error) {
	fits := func(n int) bool {
		s := load(d, n)
		return s.Peak <= float64(s.Usable)
	}
	if stable(d) && !fits(mostAddresses) {
		one := d
		one.Clients, one.Rate = 1, d.Rate/float64(d.Clients)
		s := load(one, 1)
		return 0, fmt.Errorf("%w: %.0f (up to %.0f) of %d", ErrOneClient, s.Busiest, s.Peak, s.Usable)
	}
	lo, hi := 0, 1 // lo does not do, hi may
	for !fits(hi) {
		if hi >= mostAddresses {
			return 0, fmt.Errorf("more than %d addresses", mostAddresses)
		}
		lo, hi = hi, 2*hi
	}
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; fits(mid) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi, nil
}

func stable(d Demand) bool { return d.Spread != model.SpreadFlow }

// load returns what n addresses have in use.
func load(d Demand, n int) Sizing {
	s := Sizing{Addresses: n, Usable: int(d.Headroom * float64(d.Ports)), Open: d.Rate * d.Hold.Seconds()}
	s.PerDest = s.Open / float64(d.Destinations)
	s.Busiest = s.PerDest / float64(n)
	if stable(d) {
		tables := 1 // that may come out badly, each by itself
		if d.Spread == model.SpreadClientDestination {
			tables = d.Destinations
		}
		s.Clients = crowd(d.Clients, n, tables)
		s.Busiest = s.PerDest * float64(s.Clients) / float64(d.Clients)
	}
	s.Peak = s.Busiest + deviations*math.Sqrt(s.Busiest)
	return s
}

// crowd returns the number of clients that no address exceeds, with certainty, when each of m
// clients is put on one of n addresses by a throw of the dice, in tables independent ways:
// balls into bins, with the tail of the binomial distribution and the union bound.
func crowd(m, n, tables int) int {
	if n == 1 {
		return m
	}
	p := 1 / float64(n)
	limit := math.Log((1 - certainty) / float64(n) / float64(tables))
	// The tail P(X > k) falls with k: halve.
	lo, hi := (m+n-1)/n-1, m // lo: exceeded for certain
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; logTail(m, mid, p) <= limit {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi
}

// logTail returns the logarithm of P(X > k) for X of the binomial distribution of m throws, k
// not below their average.
func logTail(m, k int, p float64) float64 {
	if k >= m {
		return math.Inf(-1)
	}
	// The first term, and the others relative to it; each is smaller by more than the last.
	i := float64(k + 1)
	n := float64(m)
	a, _ := math.Lgamma(n + 1)
	b, _ := math.Lgamma(i + 1)
	c, _ := math.Lgamma(n - i + 1)
	first := a - b - c + i*math.Log(p) + (n-i)*math.Log1p(-p)
	sum, term := 1.0, 1.0
	for ; i < n && term > sum*1e-12; i++ {
		term *= (n - i) / (i + 1) * p / (1 - p)
		sum += term
	}
	return first + math.Log(sum)
}

// bears returns the rate at which n addresses are in use to the headroom.
func bears(d Demand, n int) float64 {
	lo, hi := 0.0, float64(n)*float64(d.Ports)*float64(d.Destinations)/d.Hold.Seconds()*float64(max(d.Clients, 1))
	for range 100 {
		d.Rate = (lo + hi) / 2
		if s := load(d, n); s.Peak <= float64(s.Usable) {
			lo = d.Rate
		} else {
			hi = d.Rate
		}
	}
	return lo
}

// why says the arithmetic in words.
func why(d Demand, s Sizing) []string {
	out := []string{fmt.Sprintf("a connection keeps its port for %s, also after its end, so %s new ones a second hold %s × %s = %s ports at a time",
		d.Hold, number(d.Rate), number(d.Rate), number(d.Hold.Seconds()), number(s.Open))}
	if d.Destinations > 1 {
		out = append(out, fmt.Sprintf("a port serves each destination address and port by itself: %s ports / %d destinations = %s for each, if all get alike (else say --destinations 1)",
			number(s.Open), d.Destinations, number(s.PerDest)))
	} else {
		out = append(out, "all go to one destination address and port, for which each port of an address can be used once")
	}
	out = append(out, fmt.Sprintf("an address has %d ports, of which %.0f%% may be in use: %d", d.Ports, 100*d.Headroom, s.Usable))
	if stable(d) {
		out = append(out, s.whyStable(d)...)
	} else {
		out = append(out, fmt.Sprintf("spread: flow uses the addresses in turn, so each gets a part: %s / %s = %s ports",
			number(s.PerDest), count(s.Addresses, "address", "addresses"), number(s.Busiest)))
	}
	out = append(out, fmt.Sprintf("connections come at random, not evenly: that many is an average, and up to %s (four standard deviations, 4 × √%s more) are to be expected",
		number(math.Ceil(s.Peak)), number(s.Busiest)))
	if d.Headroom > 0.96 && d.Ports > wholeSearch {
		out = append(out, "beware: with more than 96% of the ports in use the kernel, which tries 248 at random, does not find each free one")
	}
	return out
}

func (s Sizing) whyStable(d Demand) []string {
	what := "a client"
	if d.Spread == model.SpreadClientDestination {
		what = "a client, for each destination,"
	}
	return []string{fmt.Sprintf("spread: %s keeps %s on one address, chosen by a hash: as with balls thrown into bins some addresses get more. Of %s on %s the busiest has up to %d (on average %s; more than that in less than 1 of 100 cases), if clients are alike",
		d.Spread, what, count(d.Clients, "client", "clients"), count(s.Addresses, "address", "addresses"), s.Clients, number(float64(d.Clients)/float64(s.Addresses))),
		fmt.Sprintf("the busiest address so has %d / %d of the ports for a destination in use: %s", s.Clients, d.Clients, number(s.Busiest))}
}

func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// number is short for people: integers from 100 on, one digit after the point below.
func number(f float64) string {
	if f >= 100 || f == math.Trunc(f) {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.1f", f)
}
