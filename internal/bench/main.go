// Command bench measures weir beside the programs that it replaces, in one run and in
// turn: what it takes to load services and to change one backend (against nft -f and
// iptables-restore, the same rules), what a packet costs behind the rules of each, what
// the death of a backend costs the clients (against HAProxy, the same checks), what packets and
// connections cost that weir itself chooses for (against the kernel's choice), and how many
// connections a pool of addresses bears (against the kernel's own range).
//
// Its one idea: a figure means something only beside the others of the same run, because
// machines and their load differ by more than the things measured. So every round asks
// all of them, in changing order, medians are printed, and ratios with them.
//
// All of it happens in network namespaces of the run's own; it needs root for the packets
// (BPF), and nft, iptables and haproxy for those rows.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weir/internal/lab"
)

func main() {
	if isHelper(os.Args) {
		helper(os.Args[1:])
		return
	}
	os.Exit(start(os.Args[1:], os.Stdout, os.Stderr))
}

// bench is one run.
type bench struct {
	options
	dir      string // the run's own files
	stderr   io.Writer
	deadline time.Time
	written  map[int]*files
	told     map[string]bool
	notes    []string
}

type options struct {
	sizes       []int // services, for applies
	packetSizes []int // services, for packets
	blockSizes  []int // entries of blocklists
	edgeSizes   []int // listeners of the machine itself
	poolSize    int   // ports of each address of a pool
	rounds      int
	only        string        // "" or one of parts
	json        string        // file, "" for none
	weir        string        // the binary; "" builds it
	loadFor     time.Duration // how long a pool gets short connections
	limit       time.Duration // for one command
	total       time.Duration // after which no further round begins
}

// parts are what one run can be confined to.
var parts = []string{"apply", "packets", "edge", "direct", "steering", "blocks", "egress", "deaths", "mirrors"}

func parse(args []string, stderr io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	services := fs.String("services", "", "numbers of services, separated by commas (default 10,1000,10000; for packets 1,1000,10000; listeners for edge: 1,650,10000)")
	quick := fs.Bool("quick", false, "leave out the largest number of services, and do 2 rounds")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds, of which the median is printed")
	fs.StringVar(&o.only, "only", "", "do one part: "+strings.Join(parts, ", "))
	entries := fs.String("entries", "", "numbers of entries of blocklists, separated by commas (default 650,10000,100000,1000000)")
	fs.IntVar(&o.poolSize, "ports", mostPoolPorts, "ports of each of the 6 addresses of an egress pool that is filled")
	fs.DurationVar(&o.loadFor, "for", 15*time.Second, "how long an egress pool gets short connections")
	fs.StringVar(&o.json, "json", "", "write the figures to this `FILE`, too")
	fs.StringVar(&o.weir, "weir", "", "the weir `BINARY` (default: build it)")
	fs.DurationVar(&o.limit, "limit", 40*time.Second, "end a command after this time, and print \"> limit\"")
	fs.DurationVar(&o.total, "total", 15*time.Minute, "begin no further round after this time")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.sizes, o.packetSizes, o.blockSizes, o.edgeSizes = []int{10, 1000, 10000}, sizesOfPackets, sizesOfBlocks, sizesOfEdge
	if *quick {
		o.sizes, o.packetSizes, o.blockSizes, o.edgeSizes, o.rounds = o.sizes[:2], o.packetSizes[:2], o.blockSizes[:3], o.edgeSizes[:2], 2
		o.poolSize, o.loadFor = min(o.poolSize, mostPoolPorts/8), min(o.loadFor, 5*time.Second)
	}
	if *services != "" {
		if o.sizes, err = numbers("-services", *services, 100_000); err != nil {
			return o, err
		}
		o.packetSizes, o.edgeSizes = o.sizes, o.sizes
	}
	if *entries != "" {
		if o.blockSizes, err = numbers("-entries", *entries, 2_000_000); err != nil {
			return o, err
		}
	}
	if o.rounds < 1 || o.rounds > 100 {
		return o, fmt.Errorf("-rounds: %d; allowed: 1 to 100", o.rounds)
	}
	if o.poolSize < leastPoolPorts || o.poolSize > mostPoolPorts {
		return o, fmt.Errorf("-ports: %d; allowed: %d to %d", o.poolSize, leastPoolPorts, mostPoolPorts)
	}
	if o.loadFor < time.Second || o.loadFor > 2*time.Minute {
		return o, fmt.Errorf("-for: %s; allowed: 1s to 2m", o.loadFor)
	}
	if o.only != "" && !slices.Contains(parts, o.only) {
		return o, fmt.Errorf("-only: %q; allowed: %s", o.only, strings.Join(parts, ", "))
	}
	return o, nil
}

// numbers reads numbers from 1 to most, separated by commas.
func numbers(flag, text string, most int) (out []int, err error) {
	for _, w := range strings.Split(text, ",") {
		n, err := strconv.Atoi(w)
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("%s: %q is not a number from 1 to %d", flag, w, most)
		}
		out = append(out, n)
	}
	return out, nil
}

// does reports whether a part is to be done.
func (o *options) does(part string) bool { return o.only == "" || o.only == part }

func start(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if o.does("egress") && !lab.Inside() {
		// Here and not inside: it may be written in the first network namespace alone, and is
		// put back however the process inside ends.
		defer raiseTracked(trackedFile, poolAddresses*o.poolSize*10/9, stderr)()
	}
	inside, code, err := lab.Isolate(args...)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if !inside {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	rep, err := measure(ctx, o, stderr)
	if err == nil {
		err = rep.print(stdout)
	}
	if err == nil && o.json != "" {
		err = rep.save(o.json)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// measure does the run. The process must be isolated.
func measure(ctx context.Context, o options, stderr io.Writer) (*Report, error) {
	rep := &Report{Machine: thisMachine()}
	dir, err := os.MkdirTemp("", "weir-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	b := &bench{options: o, dir: dir, stderr: stderr, deadline: start.Add(o.total),
		written: map[int]*files{}, told: map[string]bool{}}
	if b.weir == "" {
		b.say("build weir")
		b.weir = filepath.Join(dir, "weir")
		build := exec.CommandContext(ctx, "go", "build", "-o", b.weir, "weir/cmd/weir")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build weir: %w: %s", err, out)
		}
	}
	if o.does("deaths") {
		if rep.Deaths, err = b.deaths(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("apply") {
		if rep.Apply, err = b.applies(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("packets") {
		if rep.Packets, err = b.packets(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("edge") {
		if rep.Edge, err = b.edge(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("direct") {
		if rep.Direct, err = b.direct(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("steering") {
		if rep.Steering, err = b.steering(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("blocks") {
		if rep.Blocks, err = b.blocks(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("egress") {
		if rep.Egress, err = b.egress(ctx); err != nil {
			return nil, err
		}
	}
	if o.does("mirrors") {
		if rep.Mirrors, err = b.mirrors(ctx); err != nil {
			return nil, err
		}
	}
	rep.Notes, rep.Seconds, rep.LoadAtEnd = b.notes, time.Since(start).Seconds(), load()
	return rep, ctx.Err()
}

// say tells of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.stderr, "bench: "+format+"\n", args...)
}

// note keeps something that must be read with the figures.
func (b *bench) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

func (b *bench) late() bool { return time.Now().After(b.deadline) }

// save writes the report for machines.
func (r *Report) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
