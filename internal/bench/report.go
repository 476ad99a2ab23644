package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// The aims, which are printed beside the figures.
const (
	aimServices = 10000
	aimFirst    = 1500.0 // ms
	aimMemory   = 200.0  // MiB
	aimChange   = 20.0   // ms, live
	aimFlat     = 1.25   // cost of a packet at the most services to that at the least
)

// Report is the whole run.
type Report struct {
	Machine  Machine         `json:"machine"`
	Apply    []ApplyCell     `json:"apply"`
	Packets  []PacketCell    `json:"packets"`
	Edge     []EdgeCell      `json:"edge,omitempty"`
	Direct   []PacketCell    `json:"direct,omitempty"`
	Steering *SteeringReport `json:"steering,omitempty"`
	Blocks   *BlocksReport   `json:"blocks,omitempty"`
	Egress   *EgressReport   `json:"egress,omitempty"`
	Mirrors  *MirrorsReport  `json:"mirrors,omitempty"`
	Deaths   []DeathCell     `json:"deaths"`
	Notes    []string        `json:"notes"`
	Seconds  float64         `json:"seconds"`
	// LoadAtEnd is the load averages when all was done. The run itself is 1 to 2 of them.
	LoadAtEnd string `json:"load_at_end"`
}

func (r *Report) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "machine: Linux %s, %s, %d cores, load at start %s; %s; %s; %s; %s\n",
		m.Kernel, m.CPU, m.Cores, m.Load, m.Go, m.Nft, m.Iptables, m.HAProxy)
	if len(r.Apply) > 0 {
		r.printApply(w)
	}
	if len(r.Packets) > 0 {
		r.printPackets(w)
	}
	if len(r.Direct) > 0 {
		r.printDirect(w)
	}
	if len(r.Deaths) > 0 {
		r.printDeaths(w)
	}
	if len(r.Edge) > 0 {
		r.printEdge(w)
	}
	if r.Steering != nil {
		r.Steering.print(w)
	}
	if r.Blocks != nil {
		r.Blocks.print(w)
	}
	if r.Egress != nil {
		r.Egress.print(w)
	}
	if r.Mirrors != nil {
		r.Mirrors.print(w)
	}
	r.printAims(w)
	r.printLosses(w)
	fmt.Fprintln(w)
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	_, err := fmt.Fprintf(w, "took %.0f s; load at end %s\n", r.Seconds, r.LoadAtEnd)
	return err
}

func (r *Report) printApply(w io.Writer) {
	fmt.Fprint(w, `
Loading services of 10 backends, from nothing, and giving one backend another address: time on the
clock, and CPU time of the process (next to untouched by other work on the machine). Medians of the
rounds; in brackets, the multiple of weir apply (above 1: slower or larger).
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	services := -1
	for _, c := range r.Apply {
		if c.Services != services {
			services = c.Services
			fmt.Fprintf(tw, "\n%d services\tfirst apply\tCPU\tchange a backend\tCPU\tpeak memory\trounds\t\n", services)
		}
		base := r.apply(weirApply, services)
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", c.Name,
			figure(c.Problem, c.First.Clock, base.First.Clock, "ms"), figure(c.Problem, c.First.CPU, 0, "ms"),
			figure(c.Problem, c.Change.Clock, base.Change.Clock, "ms"), figure(c.Problem, c.Change.CPU, 0, "ms"),
			figure(c.Problem, c.Memory, base.Memory, "MiB"), c.Rounds)
		if c.Health.Clock > 0 {
			fmt.Fprintf(tw, "    a backend fails or returns\t\t\t%s\t%s\t\t\t\n",
				figure("", c.Health.Clock, base.Change.Clock, "ms"), figure("", c.Health.CPU, 0, "ms"))
		}
		if c.Problem != "" && c.Problem != errLimit.Error() {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
	fmt.Fprint(w, `
weir apply: the whole process: start, read the file, look at the kernel, commit. A change reads
  back all that is there before it sends the difference.
weir run, SIGHUP: until READY=1; the file is read again, the kernel is not.
weir, live change: a changed model in a process that holds the state, as from a health check.
nft -f: the ruleset that weir prints; for a change, the printed difference.
iptables: weir's service, less than weir does (no counters per backend, nothing for clients on
  the box). "chains": a rule per service that jumps to a chain of ten -m statistic --mode nth
  rules. "one list": all of these in PREROUTING, as in the how-tos. For a change all of it is
  restored, which is the only atomic way there.
Memory of a short process can't be seen below that of the process that starts it, some 7 MiB.
`)
}

// figure prints a value and its ratio to base, or the problem.
func figure(problem string, value, base float64, unit string) string {
	switch {
	case problem == errLimit.Error():
		return "> limit"
	case value == 0 && problem != "":
		return "failed"
	case value == 0:
		return "-"
	}
	text := fmt.Sprintf("%.*f %s", decimals(value), value, unit)
	if base > 0 && base != value {
		text += fmt.Sprintf(" (x%.*f)", decimals(value/base), value/base)
	}
	return text
}

func decimals(v float64) int {
	switch {
	case v < 10:
		return 2
	case v < 100:
		return 1
	}
	return 0
}

func (r *Report) apply(name string, services int) ApplyCell {
	for _, c := range r.Apply {
		if c.Name == name && c.Services == services {
			return c
		}
	}
	return ApplyCell{}
}

func (r *Report) packet(name string, services int) PacketCell {
	for _, c := range r.Packets {
		if c.Name == name && c.Services == services {
			return c
		}
	}
	return PacketCell{}
}

func (r *Report) printPackets(w io.Writer) {
	floor := r.Packets[0]
	fmt.Fprint(w, `
Cost of a packet: receive, find the service, translate, forward, send; processor time of one core,
in nanoseconds. The median of the rounds and the least, which other work on the machine disturbs the
least; ratios are of the least, "/floor" to forwarding without rules and "/weir" to weir.
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	services := -1
	for _, c := range r.Packets {
		if c.Services != services {
			services = c.Services
			title := fmt.Sprintf("%d services", services)
			if services == 0 {
				title = "the floor"
			}
			fmt.Fprintf(tw, "\n%s\tnew: median\tleast\t/floor\t/weir\testablished: median\tleast\t/floor\t/weir\trounds\t\n", title)
		}
		weir := r.packet(weirApply, services)
		row := func(c, floor, weir Cost) string {
			return fmt.Sprintf("%.0f\t%.0f\t%s\t%s", c.Median, c.Least, ratio(c.Least, floor.Least), ratio(c.Least, weir.Least))
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%d\t\n", strings.TrimSuffix(c.Name, " apply"),
			row(c.New, floor.New, weir.New), row(c.Established, floor.Established, weir.Established), c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
	fmt.Fprint(w, `
A generator in the kernel (XDP test run, live frames) hands whole new TCP frames of 54 bytes to the
gateway's device; sending them is part of every figure, the floor's too. New: each packet opens a
connection, to a service at random, when each has had some before. Established: 4,096 connections
after their handshake, checked in the connection table. The cheapest of 12 bursts counts in a round;
all packets must have come out. weir's figures include what iptables does not do here: connections,
packets and bytes counted for each pair of listener and backend.
`)
}

func ratio(value, base float64) string {
	if value == 0 || base == 0 {
		return "-"
	}
	return fmt.Sprintf("x%.2f", value/base)
}

// printAims says of each aim whether this run met it.
func (r *Report) printAims(w io.Writer) {
	fmt.Fprintln(w, "\nAims")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(aim string, value, limit float64, unit string) {
		verdict := "met"
		switch {
		case value == 0:
			verdict = "not measured in this run"
		case value > limit:
			verdict = "MISSED"
		}
		if value > 0 {
			verdict = fmt.Sprintf("%.*f %s: %s", decimals(value), value, unit, verdict)
		}
		fmt.Fprintf(tw, "  %s\t%s\n", aim, verdict)
	}
	if len(r.Apply) > 0 {
		first, live := r.apply(weirApply, aimServices), r.apply(weirLive, aimServices)
		line("10,000 services of 10 backends in under 1.5 s", first.First.Clock, aimFirst, "ms")
		line("  the same, CPU time", first.First.CPU, aimFirst, "ms")
		line("in under 200 MB", first.Memory*1.048576, aimMemory, "MB")
		line("one backend changed in under 20 ms at that size (live)", live.Change.Clock, aimChange, "ms")
		line("  the same, CPU time", live.Change.CPU, aimChange, "ms")
		line("one backend down or up in under 20 ms (live)", live.Health.Clock, aimChange, "ms")
		line("  the same, CPU time", live.Health.CPU, aimChange, "ms")
	}
	for i, way := range ways {
		if len(r.Deaths) > 0 {
			line(fmt.Sprintf("%s: the last new connection to it within %s", way.name, way.bound),
				r.death(weirDeath, ways[i].name).Last, millis(way.bound), "ms")
		}
	}
	if len(r.Direct) > 0 {
		for _, against := range []string{plainForwarding, plainTracked} {
			line("direct return costs no more than a packet "+against, quotient(r.directLeast(directReturn), r.directLeast(against)), 1, "times")
		}
	}
	for _, a := range slices.Concat(r.Steering.aims(), r.Egress.aims(), r.Mirrors.aims()) {
		fmt.Fprintf(tw, "  %s\t%s\n", a.words, a.verdict)
	}
	for i, cells := 0, r.weirPackets(); i < len(cells)-1; i++ {
		some, most := cells[i], cells[len(cells)-1]
		words := fmt.Sprintf("from %d to %d services flat (at most x%.2f): ", some.Services, most.Services, aimFlat)
		line(words+"new connection", quotient(most.New.Least, some.New.Least), aimFlat, "times")
		line(words+"established", quotient(most.Established.Least, some.Established.Least), aimFlat, "times")
	}
	tw.Flush()
}

// weirPackets returns weir's cells, by number of services.
func (r *Report) weirPackets() []PacketCell {
	var cells []PacketCell
	for _, c := range r.Packets {
		if c.Name == weirApply {
			cells = append(cells, c)
		}
	}
	return cells
}

// loses is how much better another must be to be named; less is noise.
const loses = 0.9

// printLosses says where others are better: a line for each number of services and
// figure, with what they take as a part of what weir takes.
func (r *Report) printLosses(w io.Writer) {
	var order []string
	who := map[string][]string{}
	say := func(where, name, what string, value, weir float64) {
		if value <= 0 || value >= loses*weir {
			return
		}
		key := where + ", " + what
		if who[key] == nil {
			order = append(order, key)
		}
		who[key] = append(who[key], fmt.Sprintf("%s x%.2f", name, value/weir))
	}
	for _, c := range r.Apply {
		if strings.HasPrefix(c.Name, "weir") {
			continue
		}
		base, live := r.apply(weirApply, c.Services), r.apply(weirLive, c.Services)
		say(services(c.Services), c.Name, "first apply (CPU)", c.First.CPU, base.First.CPU)
		say(services(c.Services), c.Name, "change (CPU, to weir apply)", c.Change.CPU, base.Change.CPU)
		say(services(c.Services), c.Name, "change (CPU, to weir live)", c.Change.CPU, live.Change.CPU)
		say(services(c.Services), c.Name, "memory", c.Memory, base.Memory)
	}
	for _, c := range r.Packets {
		weir := r.packet(weirApply, c.Services)
		say(services(c.Services), c.Name, "new connection", c.New.Least, weir.New.Least)
		say(services(c.Services), c.Name, "packet of an established one", c.Established.Least, weir.Established.Least)
	}
	for _, c := range r.Deaths {
		weir := r.death(weirDeath, c.Way)
		if strings.HasPrefix(c.Name, weirDeath) || c.Problem != "" {
			continue
		}
		say(c.Way, c.Name, "last new connection", c.Last, weir.Last)
		say(c.Way, c.Name, "failed requests", max(c.Failed, 0.001), weir.Failed) // none is the best there is
	}
	r.Steering.losses(say)
	r.Egress.losses(say)
	r.Mirrors.losses(say)
	if len(order) == 0 {
		return
	}
	fmt.Fprintln(w, "\nWhere weir loses by more than a tenth, and to whom (what they take of what weir takes)")
	for _, key := range order {
		fmt.Fprintf(w, "  %s: %s\n", key, strings.Join(who[key], "; "))
	}
}

func services(n int) string { return fmt.Sprintf("%d services", n) }

func quotient(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
