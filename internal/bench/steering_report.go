package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// aimFlood is packets a second that one queue shall answer: what a program in C, with one verdict
// for each packet, does on such a machine.
const aimFlood = 140_000

func (r *SteeringReport) print(w io.Writer) {
	fmt.Fprintf(w, `
Steering: packets that user space is asked about, by weir's own loop in a process of its own, without connection
tracking; sent as fast as one processor can, and %d a second for %.0f s. The last row of those is weir run, for which
each packet is the first of a connection. A verdict for each packet; cost: processor time of the process that answers,
which takes the packet and sends it on its way, in nanoseconds.
`, r.Rate, r.Seconds)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := func(title string) {
		fmt.Fprintf(tw, "\n%s\tsent a second\tanswered: median\tleast\tmost\ta packet: median\tleast\tlost\tqueue full\tbuffer full\tsender busy\twaited\trounds\t\n", title)
	}
	row := func(c *QueueCell) {
		fmt.Fprintf(tw, "  %s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%d of %d\t%d\t%d\t%.0f %%\t%.0f %%\t%d\t\n", c.Name, c.Sent, c.Answered, c.Least, c.Most,
			c.Packet.Median, c.Packet.Least, c.Lost, c.Packets, c.Full, c.Unreceived, 100*c.Sender, 100*c.Waited, c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	head("flood")
	for i := range r.Flood {
		row(&r.Flood[i])
	}
	head(fmt.Sprintf("%d a second", r.Rate))
	for i := range r.Paced {
		row(&r.Paced[i])
	}
	tw.Flush()
	fmt.Fprint(w, `
Sender busy: processor time of who sends, and of the packets' way into the queue, of the one processor that it has.
Waited: how long threads that answer wanted a processor and had none, of all the time they wanted one: where it is
high, the machine is the limit, the sender and other work included.
`)
	r.printOpenings(w)
}

func (r *SteeringReport) printOpenings(w io.Writer) {
	fmt.Fprint(w, `
Steering: new TCP connections through address translation, one packet of each, sent as fast as all get through. Cost:
processor time of all that is done for one, sending it included; in nanoseconds.
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\n\ta second: median\tmost\ta new one: median\tleast\t/kernel\tof it weir's process\tsender busy\tconnections\trounds\t\n")
	for _, c := range r.Connections {
		fmt.Fprintf(tw, "  %s\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t%.0f\t%.0f %%\t%d\t%d\t\n", c.Name, c.Rate, c.Most, c.New.Median, c.New.Least,
			ratio(c.New.Least, r.opening(openKernel).New.Least), c.Own.Least, 100*c.Sender, c.Flows, c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
}

func (r *SteeringReport) opening(name string) OpeningCell {
	for _, c := range r.Connections {
		if c.Name == name && c.Problem == "" {
			return c
		}
	}
	return OpeningCell{}
}

// aims says of each aim whether this run met it.
func (r *SteeringReport) aims() (out []aim) {
	if r == nil {
		return nil
	}
	say := func(words, value string, met bool) { out = append(out, judged(words, value, met)) }
	for _, c := range r.Flood {
		if c.Queues != 1 || c.Problem != "" || c.Packet.Least == 0 {
			continue
		}
		words := fmt.Sprintf("one queue answers %d packets a second under flood", aimFlood)
		say(words, fmt.Sprintf("%.0f (waited %.0f %% for a processor)", c.Answered, 100*c.Waited), c.Answered >= aimFlood)
		share := 1e9 / c.Packet.Median
		say("  the same, of processor time", fmt.Sprintf("%.0f", share), share >= aimFlood)
	}
	for _, c := range r.Paced {
		say(fmt.Sprintf("none lost at %d a second: %s", r.Rate, c.Name), fmt.Sprintf("%d of %d at %.0f a second", c.Lost, c.Packets, c.Sent),
			c.Lost == 0 && c.Packets > 0 && c.Problem == "")
	}
	return out
}

// losses says where the kernel's own choice takes less.
func (r *SteeringReport) losses(say func(where, name, what string, value, weir float64)) {
	if r == nil {
		return
	}
	for _, c := range r.Connections {
		if c.Name != openKernel && c.Problem == "" {
			say("steering, "+c.Name, openKernel, "new connection", r.opening(openKernel).New.Least, c.New.Least)
		}
	}
}
