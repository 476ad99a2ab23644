package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// aimMirrored is the share of the throughput without a mirror that is left when all is copied.
const aimMirrored = 0.9

func (r *MirrorsReport) print(w io.Writer) {
	if len(r.Traffic) > 0 {
		r.printTraffic(w)
	}
	if len(r.Packets) > 0 {
		r.printPackets(w)
	}
}

func (r *MirrorsReport) printTraffic(w io.Writer) {
	fmt.Fprintf(w, `
Mirrors: real traffic of one client through a service, half of it IPv4 and half IPv6, while all of it is copied: one connection of
each family that takes what it gets for %s, then %d short HTTP requests and %d datagrams a second for %s. The median of the rounds
and the best, which other work on the machine disturbs the least; "/none" is of the best, to no mirror.
`, bulkTime, requestRate, len(trafficVIPs)*datagramRate, requestTime)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\n\tthroughput: median\tmost\t/none\tp99 of requests: median\tleast\t/none\trequests\tunanswered\tdatagrams\tlost\tcopies\trounds\t\n")
	none := r.traffic(mirrorNone)
	for _, c := range r.Traffic {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", c.Name,
			figure(c.Problem, c.Gbits.Median, 0, "Gbit/s"), figure(c.Problem, c.Gbits.Most, 0, "Gbit/s"), ratio(c.Gbits.Most, none.Gbits.Most),
			figure(c.Problem, c.P99.Median, 0, "ms"), figure(c.Problem, c.P99.Least, 0, "ms"), ratio(c.P99.Least, none.P99.Least),
			c.Requests, c.Failed, c.Datagrams, c.Lost, c.Copies, c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
	fmt.Fprint(w, `
Client, gateway, backend and collector share the processors of this machine, so that copies take time from all of them; the
collector drops them where they come in. Copies of bulk are counted in the large frames in which the kernel passes them on.
`)
}

func (r *MirrorsReport) printPackets(w io.Writer) {
	fmt.Fprint(w, `
Mirrors: cost of a packet through a service, as above; the copy's way to its collector is part of it. "copies" are for each packet,
counted at the collector.
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\n\tnew: median\tleast\t/none\testablished: median\tleast\t/none\tmore\tcopies\trounds\t\n")
	none := r.packet(mirrorNone)
	row := func(c, none Cost) string {
		return fmt.Sprintf("%.0f\t%.0f\t%s", c.Median, c.Least, ratio(c.Least, none.Least))
	}
	for _, c := range r.Packets {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%+.0f ns\t%.4f\t%d\t\n", c.Name, row(c.New, none.New), row(c.Established, none.Established),
			c.Established.Least-none.Established.Least, c.Copies, c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
}

// traffic returns the row of that name; an empty one where it was not measured.
func (r *MirrorsReport) traffic(name string) MirrorTraffic {
	for _, c := range r.Traffic {
		if c.Name == name && c.Problem == "" {
			return c
		}
	}
	return MirrorTraffic{}
}

// packet is the same for the cost of packets.
func (r *MirrorsReport) packet(name string) MirrorCost {
	for _, c := range r.Packets {
		if c.Name == name && c.Problem == "" {
			return c
		}
	}
	return MirrorCost{}
}

// aims says of each aim whether this run met it.
func (r *MirrorsReport) aims() (out []aim) {
	if r == nil {
		return nil
	}
	say := func(words, value string, met bool) { out = append(out, judged(words, value, met)) }
	for _, name := range []string{mirrorAll, mirrorDown} {
		c, none := r.traffic(name), r.traffic(mirrorNone)
		if c.Rounds == 0 || none.Rounds == 0 {
			continue
		}
		share := quotient(c.Gbits.Most, none.Gbits.Most)
		say(fmt.Sprintf("%s: at least x%.2f of the throughput without one", name, aimMirrored), fmt.Sprintf("x%.2f", share), share >= aimMirrored)
		say(name+": no request fails, no datagram is lost", fmt.Sprintf("%d of %d, %d of %d", c.Failed, c.Requests, c.Lost, c.Datagrams), c.Failed == 0 && c.Lost == 0)
	}
	return out
}

// losses says where iptables takes less.
func (r *MirrorsReport) losses(say func(where, name, what string, value, weir float64)) {
	if r == nil {
		return
	}
	for _, pair := range [][2]string{{mirrorAll, teeAll}, {mirrorDown, teeDown}} {
		weir, tee := r.traffic(pair[0]), r.traffic(pair[1])
		if weir.Rounds > 0 && tee.Rounds > 0 {
			say(pair[0], tee.Name, "time for as many bytes", 1/tee.Gbits.Most, 1/weir.Gbits.Most)
			say(pair[0], tee.Name, "p99 of requests", tee.P99.Least, weir.P99.Least)
			say(pair[0], tee.Name, "failed requests", max(float64(tee.Failed), 0.001), float64(weir.Failed)) // none is the best there is
			say(pair[0], tee.Name, "lost datagrams", max(float64(tee.Lost), 0.001), float64(weir.Lost))
		}
		a, b := r.packet(pair[0]), r.packet(pair[1])
		say(pair[0], pair[1], "packet of a new connection", b.New.Least, a.New.Least)
		say(pair[0], pair[1], "packet of an established one", b.Established.Least, a.Established.Least)
	}
}
