package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/egress"
	"weir/internal/engine"
	"weir/internal/model"
)

// sizeOptions are the flags of `weir egress size` as they were typed.
type sizeOptions struct {
	clients, destinations         int
	rate, ports, spread, headroom string
	hold                          time.Duration
}

// sizeReport is how many addresses a pool needs. Its JSON form is part of weir's interface.
type sizeReport struct {
	Addresses int      `json:"addresses"`
	Open      float64  `json:"open_connections"`        // that hold a port at a time
	PerDest   float64  `json:"open_per_destination"`    // of those
	Clients   int      `json:"clients_of_busiest"`      // of the busiest address; 0 with spread flow
	Busiest   float64  `json:"ports_in_use_of_busiest"` // on average
	Peak      float64  `json:"most_in_use_of_busiest"`  // most of the time
	Usable    int      `json:"usable_ports_of_address"` // with the headroom
	Bears     float64  `json:"bears_per_second"`        // what so many addresses bear
	Why       []string `json:"why"`
}

// bearReport is what a pool at hand bears. Its JSON form is part of weir's interface.
type bearReport struct {
	Pool string        `json:"pool"`
	Hold float64       `json:"hold_seconds"` // as measured; 0: not known yet
	Bear *engine.Bears `json:"bears"`        // null: nothing is in use
}

func (e *env) egressSizeCmd() *cobra.Command {
	var o sizeOptions
	c := &cobra.Command{
		Use:   "size [POOL]",
		Short: "Say how many addresses a pool needs, and why; or what a pool bears",
		Long: `Say how many addresses a pool needs for so many clients and connections, with the
arithmetic in words. --hold is how long a connection keeps its port: its life, and how long
the kernel remembers it after that (TCP: net.netfilter.nf_conntrack_tcp_timeout_time_wait,
120 s unless it was changed). Destinations are addresses and ports that share all
connections alike; for one that gets most say --destinations 1.

With the name of a pool instead: by how much its connections may grow, measured.`,
		Example: "  weir egress size --clients 200 --rate 3000/s --destinations 3 --hold 120s\n  weir egress size apis",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("size takes one pool, found %d words", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				for _, f := range []string{"clients", "rate", "destinations", "hold", "ports", "spread", "headroom"} {
					if c.Flags().Changed(f) {
						return usageError{fmt.Errorf("--%s and a pool: of a pool at hand it is measured", f)}
					}
				}
				return e.egressBear(c.Context(), args[0])
			}
			d, err := o.demand()
			if err != nil {
				return usageError{err}
			}
			return e.egressSize(d)
		},
	}
	f := c.Flags()
	f.IntVar(&o.clients, "clients", 1, "how many `CLIENTS` are behind the pool")
	f.StringVar(&o.rate, "rate", "", "new connections of all clients, such as `3000/s` or 90000/m")
	f.IntVar(&o.destinations, "destinations", 1, "how many addresses and ports they go to")
	f.DurationVar(&o.hold, "hold", 2*time.Minute, "how long a connection keeps its port")
	f.StringVar(&o.ports, "ports", model.DefaultPoolPorts.String(), "source ports of an address, such as 1024-65535 or 1024-2047,4096-8191")
	f.StringVar(&o.spread, "spread", model.SpreadFlow.String(), strings.Join(model.SpreadNames(), ", "))
	f.StringVar(&o.headroom, "headroom", "80%", "part of the ports that may be in use")
	return c
}

// demand reads the flags.
func (o sizeOptions) demand() (egress.Demand, error) {
	d := egress.Demand{Clients: o.clients, Destinations: o.destinations, Hold: o.hold}
	if o.clients < 1 || o.clients > 1_000_000_000 {
		return d, fmt.Errorf("--clients %d is not allowed; want a number from 1 to 1000000000", o.clients)
	}
	if o.destinations < 1 || o.destinations > 1_000_000_000 {
		return d, fmt.Errorf("--destinations %d is not allowed; want a number from 1 to 1000000000", o.destinations)
	}
	if o.hold <= 0 || o.hold > 365*24*time.Hour {
		return d, fmt.Errorf("--hold %s is not allowed; want a time up to 8760h, such as 120s", o.hold)
	}
	i := slices.Index(model.SpreadNames(), o.spread)
	if i < 0 {
		return d, fmt.Errorf("--spread %q is not allowed; allowed: %s", o.spread, strings.Join(model.SpreadNames(), ", "))
	}
	d.Spread = model.Spread(i)
	var err error
	if d.Rate, err = parseRate(o.rate); err != nil {
		return d, err
	}
	if d.Ports, err = countPorts(o.ports); err != nil {
		return d, err
	}
	d.Headroom, err = parseHeadroom(o.headroom)
	return d, err
}

// parseRate reads connections in a time: 3000/s, 90000/m, 3000.
func parseRate(text string) (float64, error) {
	number, unit, found := strings.Cut(text, "/")
	per, known := map[string]float64{"s": 1, "second": 1, "m": 60, "minute": 60, "h": 3600, "hour": 3600}[unit]
	if !found {
		per, known = 1, true
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || !(f > 0) || f > 1e9 {
		return 0, fmt.Errorf("--rate %q is not allowed; want connections in a time, such as 3000/s, 90000/m or 5000/h", text)
	}
	return f / per, nil
}

func parseHeadroom(text string) (float64, error) {
	number, isPercent := strings.CutSuffix(text, "%")
	f, err := strconv.ParseFloat(number, 64)
	if isPercent {
		f /= 100
	}
	if err != nil || !(f >= 0.01) || f > 1 {
		return 0, fmt.Errorf("--headroom %q is not allowed; want a part from 1%% to 100%%", text)
	}
	return f, nil
}

// countPorts reads a list of ports and ranges, and returns how many ports that are.
func countPorts(text string) (int, error) {
	bad := fmt.Errorf("--ports %q is not allowed; want ports from 1 to 65535 that do not overlap, such as 1024-65535", text)
	var ranges []model.PortRange
	n := 0
	for word := range strings.SplitSeq(text, ",") {
		from, to, found := strings.Cut(word, "-")
		if !found {
			to = from
		}
		lo, err1 := strconv.ParseUint(from, 10, 16)
		hi, err2 := strconv.ParseUint(to, 10, 16)
		r := model.PortRange{Lo: uint16(lo), Hi: uint16(hi)}
		if err1 != nil || err2 != nil || lo == 0 || lo > hi || slices.ContainsFunc(ranges, r.Overlaps) {
			return 0, bad
		}
		ranges, n = append(ranges, r), n+r.Len()
	}
	return n, nil
}

func (e *env) egressSize(d egress.Demand) error {
	s, err := egress.Size(d)
	if errors.Is(err, egress.ErrOneClient) {
		return usageError{fmt.Errorf("with spread %s no number of addresses suffices: %w; use spread: flow, or a shorter --hold", d.Spread, err)}
	}
	if err != nil {
		return usageError{err}
	}
	tenths := func(f float64) float64 { return math.Round(f*10) / 10 }
	out := sizeReport{s.Addresses, tenths(s.Open), tenths(s.PerDest), s.Clients, tenths(s.Busiest), tenths(s.Peak), s.Usable, tenths(s.Bears), s.Why}
	return e.print(out, func() error {
		fmt.Fprintf(e.stdout, "%s\n\n", pluralES(s.Addresses, "address"))
		for _, w := range s.Why {
			fmt.Fprintf(e.stdout, "- %s\n", w)
		}
		_, err := fmt.Fprintf(e.stdout, "\nso many bear up to %.0f new connections a second\n", s.Bears)
		return err
	})
}

func pluralES(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ses", n, word)
}

// egressBear says what a pool at hand bears.
func (e *env) egressBear(ctx context.Context, pool string) error {
	look, done, err := e.egressLook(ctx, pool)
	if err != nil {
		return err
	}
	defer done()
	st, err := look()
	if err != nil {
		return err
	}
	p := st.Pool(pool)
	out := bearReport{p.Name, p.Hold, p.Bears}
	return e.print(out, func() error { return e.printBear(p) })
}

func (e *env) printBear(p *engine.EgressPool) error {
	b := p.Bears
	if b == nil {
		_, err := fmt.Fprintf(e.stdout, "%s: nothing is in use, so there is nothing to measure\n", p.Name)
		return err
	}
	whose := "the pool's addresses together have"
	if b.Address.IsValid() {
		whose = fmt.Sprintf("%s, the fullest address for it, has", b.Address)
	}
	fmt.Fprintf(e.stdout, "%s bears %.1f times what it carries now\n\n", p.Name, b.Factor)
	fmt.Fprintf(e.stdout, "- the destination with the least room is %s %s: %s %d ports in use of %d that may be (80%%)\n", b.Protocol, b.Destination, whose, b.InUse, b.Limit)
	fmt.Fprintf(e.stdout, "- it gets %.1f new connections a second now; if clients and the time that connections last stay alike, it bears %.1f\n", b.NewPerSecond, b.Rate)
	words := "- how long a connection is remembered is not known yet: too few have ended since weir looks"
	if p.Hold > 0 {
		words = fmt.Sprintf("- a connection is remembered for %.1f s on average (ports in use, divided by those that end in a second)", p.Hold)
	}
	_, err := fmt.Fprintln(e.stdout, words)
	return err
}
