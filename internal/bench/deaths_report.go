package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

func (r *Report) death(name, way string) DeathCell {
	for _, c := range r.Deaths {
		if c.Name == name && c.Way == way {
			return c
		}
	}
	return DeathCell{}
}

func (r *Report) printDeaths(w io.Writer) {
	fmt.Fprintf(w, `
One backend of %d dies under %d new connections a second over IPv4 and IPv6, one request each. Checks of
all: every %s, timeout %s, fall %d, rise %d. Medians of the rounds; in brackets, the multiple of weir.
`, deathBackends, deathRate, checkEvery, checkTimeout, checkFall, checkRise)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	way := ""
	for _, c := range r.Deaths {
		if c.Way != way {
			way = c.Way
			fmt.Fprintf(tw, "\n%s\tlast new connection to it\tfailed requests\tof\tlongest wait for an answer\trounds\t\n", way)
		}
		base := r.death(weirDeath, way)
		if c.Problem != "" {
			fmt.Fprintf(tw, "  %s\tfailed\t\t\t\t%d\t\n    %s\t\t\t\t\t\t\n", c.Name, c.Rounds, c.Problem)
			continue
		}
		fmt.Fprintf(tw, "  %s\t%s\t%.0f\t%.0f\t%s\t%d\t\n", c.Name, figure("", c.Last, base.Last, "ms"),
			c.Failed, c.Opened, figure("", c.Wait, base.Wait, "ms"), c.Rounds)
	}
	tw.Flush()
	fmt.Fprintf(w, `
Server killed: its sockets are closed, and the host refuses connections. Host silent: it drops all that
comes. The last new connection is the last first packet that reaches the host's device, answered or not.
weir forwards packets: a client whose connection is refused hears of it; one whose first packet is lost sends it
again after a second, and gets another backend then. HAProxy connects on its own, three more times (retries 3,
timeout connect %s), with redispatch at last to another: so it can hide what weir cannot. Clients wait %s.
`, connectTimeout, deathPatience)
}
