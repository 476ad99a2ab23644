package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// aimFull is the share of a pool's ports that flows to one destination shall be able to use.
const aimFull = 0.98

func (r *EgressReport) print(w io.Writer) {
	if len(r.Fill) > 0 {
		r.printFill(w)
	}
	if len(r.Load) > 0 {
		r.printLoad(w)
	}
}

func (r *EgressReport) printFill(w io.Writer) {
	fmt.Fprintf(w, `
Egress: %d addresses with %d ports each, %d clients, one destination and port, UDP: %d flows are possible and
wanted, one packet each. Then who did not get through tries again, up to %d packets in all, while tries help.
`, poolAddresses, r.Ports, poolClients, r.Possible, mostTries)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\n\tat first\tin the end\ttries\taddresses used\tCPU of first packets\tkernel memory\tof a flow\tweir run: CPU\tmemory\t\n")
	for _, c := range r.Fill {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t\n", c.Name, r.share(c.First), r.share(c.Flows), c.Tries, c.Addresses,
			figure(c.Problem, c.CPU, 0, "s"), figure(c.Problem, c.Slab, 0, "MiB"), figure(c.Problem, c.Slab*(1<<20)/float64(max(c.First, 1)), 0, "B"),
			figure("", c.OwnCPU, 0, "s"), figure("", c.OwnMemory, 0, "MiB"))
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	fmt.Fprint(tw, "\n\twanted so far\tof a new one: median\tleast\tfind no port at first\t\n")
	for i, percent := range fillLevels {
		for _, c := range r.Fill {
			if i < len(c.Levels) {
				l := c.Levels[i]
				fmt.Fprintf(tw, "  %s\t%d %%\t%.0f ns\t%.0f ns\t%.2f %%\t\n", c.Name, percent, l.New.Median, l.New.Least, 100*l.Failed)
			}
		}
	}
	tw.Flush()
	fmt.Fprintf(w, `
One fill of each. Cost: processor time of the kernel for a packet that asks for a new connection, in %d bursts.
Kernel memory: growth of the slabs nf_conntrack and kmalloc-128 (an entry and its extensions). The table of connections
has %d buckets for all namespaces: full, %.1f entries in each, two for a flow.
`, levelBursts, r.Buckets, 2*float64(r.Possible)/float64(max(r.Buckets, 1)))
}

// share prints a number of flows, and its part of those that are possible.
func (r *EgressReport) share(flows int) string {
	return fmt.Sprintf("%d (%.2f %%)", flows, 100*float64(flows)/float64(max(r.Possible, 1)))
}

func (r *EgressReport) printLoad(w io.Writer) {
	fmt.Fprintf(w, `
Egress: %d short TCP connections a second from %d clients to one destination and port, for %.0f s. The %d addresses have
%d ports each, so that the pool gets as full as one with all ports does in the 120 s for which the kernel keeps a
connection that was closed.
`, connectRate, poolClients, r.Seconds, poolAddresses, r.Load[0].Ports)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\n\ta second\tanswered\tunanswered\tSYNs sent again\tkept at the end\taddresses used\tof the busiest\tp99\tslowest\tweir run: CPU\t\n")
	for _, c := range r.Load {
		fmt.Fprintf(tw, "  %s\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t\n", c.Name, c.Rate, c.Opened, c.Failed, c.Retries,
			c.Tracked, c.Addresses, c.Busiest, figure("", c.P99, 0, "ms"), figure("", c.Slowest, 0, "ms"), figure("", c.OwnCPU, 0, "s"))
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
	fmt.Fprint(w, `
Answered ones that are not kept at the end were closed, and gave up their entry early to a new one that found no free
port. Latency is the load generator's too, when the machine has other work.
`)
}

// aim is one line of the table of aims.
type aim struct{ words, verdict string }

// judged says whether a value meets an aim.
func judged(words, value string, met bool) aim {
	return aim{words, value + ": " + map[bool]string{false: "MISSED", true: "met"}[met]}
}

// aims says of each aim whether this run met it.
func (r *EgressReport) aims() (out []aim) {
	if r == nil {
		return nil
	}
	say := func(words, value string, met bool) { out = append(out, judged(words, value, met)) }
	for _, c := range r.Fill {
		if c.Name == egressWeir {
			share := float64(c.Flows) / float64(max(r.Possible, 1))
			say(fmt.Sprintf("at least %.0f %% of %d flows to one destination", 100*aimFull, r.Possible), fmt.Sprintf("%.2f %%", 100*share), share >= aimFull && c.Problem == "")
		}
	}
	for _, c := range r.Load {
		if c.Name == egressWeir {
			say(fmt.Sprintf("no short connection fails at %d a second", connectRate), fmt.Sprintf("%d of %d at %.0f a second", c.Failed, c.Opened+c.Failed, c.Rate), c.Failed == 0 && c.Problem == "")
		}
	}
	return out
}

// losses says where the plain rule takes less.
func (r *EgressReport) losses(say func(where, name, what string, value, weir float64)) {
	if r == nil {
		return
	}
	if weir, plain := weirAndPlain(r.Fill, (*FillCell).sound); weir != nil && plain != nil {
		for i := range min(len(weir.Levels), len(plain.Levels)) {
			say(fmt.Sprintf("a pool %d %% wanted", fillLevels[i]), egressPlain, "new connection", plain.Levels[i].New.Median, weir.Levels[i].New.Median)
			say(fmt.Sprintf("a pool %d %% wanted", fillLevels[i]), egressPlain, "new ones that find no port", max(plain.Levels[i].Failed, 1e-6), weir.Levels[i].Failed)
		}
		say("a pool", egressPlain, "kernel memory of a flow", plain.Slab/float64(max(plain.First, 1)), weir.Slab/float64(max(weir.First, 1)))
	}
	if weir, plain := weirAndPlain(r.Load, (*ConnectCell).sound); weir != nil && plain != nil {
		say("short connections", egressPlain, "SYNs sent again", max(float64(plain.Retries), 0.001), float64(weir.Retries))
		say("short connections", egressPlain, "failed", max(float64(plain.Failed), 0.001), float64(weir.Failed))
	}
}

// weirAndPlain returns the cells of the two, nil for one that is not there or has a problem: then
// name returns "".
func weirAndPlain[C any](cells []C, name func(*C) string) (weir, plain *C) {
	for i := range cells {
		switch name(&cells[i]) {
		case egressWeir:
			weir = &cells[i]
		case egressPlain:
			plain = &cells[i]
		}
	}
	return weir, plain
}

func (c *FillCell) sound() string { return soundName(c.Name, c.Problem) }

func (c *ConnectCell) sound() string { return soundName(c.Name, c.Problem) }

func soundName(name, problem string) string {
	if problem != "" {
		return ""
	}
	return name
}
