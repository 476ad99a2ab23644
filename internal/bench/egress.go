package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"weir/internal/conntrack"
	"weir/internal/lab"
)

// Egress pools beside the kernel's own range: how many flows to one destination come into
// being, what the next one costs when the pool is nearly full, and short connections at a
// fixed rate.

// EgressReport is the part about pools of addresses.
type EgressReport struct {
	Ports    int           `json:"ports"`    // of each address
	Possible int           `json:"possible"` // flows to one destination: addresses times ports
	Buckets  int           `json:"buckets"`  // of the kernel's table of connections, for all namespaces
	Fill     []FillCell    `json:"fill"`
	Seconds  float64       `json:"load_seconds"`
	Load     []ConnectCell `json:"load"`
}

// FillCell is a pool that is filled: as many clients' flows as it has ports, one packet each.
type FillCell struct {
	Name      string      `json:"name"`
	First     int         `json:"first"`     // flows after one packet of each
	Flows     int         `json:"flows"`     // after the clients' tries
	Tries     int         `json:"tries"`     // packets that a client sent for its flow at most
	Addresses int         `json:"addresses"` // of the pool that have a flow
	CPU       float64     `json:"cpu_s"`     // processor time of the first packets
	Slab      float64     `json:"slab_mib"`  // see slabMiB; more than before the part
	Levels    []LevelCell `json:"levels"`
	OwnCPU    float64     `json:"own_cpu_s,omitempty"` // of weir's process until the pool is full
	OwnMemory float64     `json:"own_mib,omitempty"`   // its peak
	Problem   string      `json:"problem,omitempty"`
}

// LevelCell is about the connections that come when some part of all have come.
type LevelCell struct {
	Percent int     `json:"percent"`
	New     Cost    `json:"new"`    // of a new connection, whether it comes into being or not
	Failed  float64 `json:"failed"` // share of first packets that found no port
}

const (
	poolAddresses = 6
	poolClients   = 8
	firstPoolPort = 1024
	// mostPoolPorts is what an address has from firstPoolPort on.
	mostPoolPorts = 1<<16 - firstPoolPort
	// leastPoolPorts makes the bursts at each level large enough to hold some flows.
	leastPoolPorts = 400
	// mostTries is how often a client sends at most: as often as TCP sends a SYN by default
	// (net.ipv4.tcp_syn_retries). A try that brings next to none is the last one.
	mostTries  = 7
	leastGain  = 0.001 // of all flows
	fillChunk  = maxFrames
	retryChunk = 4096
	fillLimit  = 60 * time.Second
	poolForget = "3600" // seconds for a flow without answers, so that none ends during the run
)

// fillLevels are the percentages of all flows around which new ones are measured, in bursts
// that are levelBurst-ths of all.
var fillLevels = []int{10, 50, 90, 98}

const levelBursts, levelBurst = 6, 400

// Names of the rows.
const (
	egressPlain = "snat to a range"
	egressWeir  = "weir, spread: flow"
)

var (
	// Nobody routes them anywhere: in the fill, no answers come.
	fillPool   = netip.MustParsePrefix("198.51.100.100/32")
	fillTarget = netip.AddrPortFrom(nth(clients, 9), 53)
)

// egress measures pools.
func (b *bench) egress(ctx context.Context) (*EgressReport, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.note("egress: not measured: the plain rule needs nft: %v", err)
		return nil, nil
	}
	rep := &EgressReport{Seconds: b.loadFor.Seconds()}
	err := b.generated("egress", func(gen *generator, n *lab.Net) error { return b.fills(ctx, gen, n, rep) })
	if err != nil {
		return nil, err
	}
	return rep, b.connects(ctx, rep)
}

// translator makes a gateway give connections a source out of a range of addresses and ports;
// proc is what it runs for that.
type translator struct {
	name  string
	start func(ctx context.Context, b *bench, h *lab.Host, out, addresses, ports string) (proc *running, err error)
}

var translators = []translator{
	{egressPlain, func(_ context.Context, b *bench, h *lab.Host, out, addresses, ports string) (*running, error) {
		file, err := b.file("plain.nft", fmt.Appendf(nil, "table ip plain { chain out { type nat hook postrouting priority 100; policy accept;\n"+
			"oifname %q meta l4proto { tcp, udp } snat to %s:%s\n}\n}\n", out, addresses, ports))
		if err == nil {
			_, err = h.Run("nft", "-f", file)
		}
		return nil, err
	}},
	{egressWeir, func(ctx context.Context, b *bench, h *lab.Host, out, addresses, ports string) (*running, error) {
		file, err := b.file("pool.yaml", fmt.Appendf(nil,
			"egress:\n  - {name: pool, out: %s, addresses: %s, ports: %s, spread: flow}\n", out, addresses, ports))
		if err != nil {
			return nil, err
		}
		return b.untilRuns(ctx, h, file)
	}},
}

// untilRuns starts weir run on the host and waits until it is ready.
func (b *bench) untilRuns(ctx context.Context, h *lab.Host, file string) (*running, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, errLimit)
	defer cancel()
	socket := file + ".notify"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer os.Remove(socket)
	defer conn.Close()
	r := &running{}
	cmd := h.Command(b.weir, "run", "--config", file, "--state", file+".state")
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), "NOTIFY_SOCKET="+socket), &r.said, &r.said
	if r.Process, err = h.Start(cmd); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	go func() { // it may end instead
		select {
		case <-r.Done():
			_ = conn.SetReadDeadline(time.Unix(1, 0))
		case <-ctx.Done():
		}
	}()
	if err := untilReady(ctx, conn); err != nil {
		r.Kill()
		return nil, fmt.Errorf("weir run: %w: %s", err, lastLine(r.said.String()))
	}
	return r, nil
}

// fills fills the pool of each translator. The plain rule comes first: what the other takes
// from the slab, its flows have given back by then.
func (b *bench) fills(ctx context.Context, gen *generator, n *lab.Net, rep *EgressReport) error {
	drop, err := b.file("drop.nft", []byte(dropAll))
	if err != nil {
		return err
	}
	if rep.Ports, rep.Buckets, err = b.poolPorts(n); err != nil {
		return err
	}
	rep.Possible = poolAddresses * rep.Ports
	flows := poolFlows(rep.Possible)
	settle()
	slab := slabMiB()
	for _, t := range translators {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.say("egress: %s: %d flows", t.name, len(flows))
		gw, err := newGateway(n, fmt.Sprintf("pool-%d", len(rep.Fill)), drop)
		if err != nil {
			return err
		}
		f := &fill{FillCell: FillCell{Name: t.name}, gen: gen, gw: gw, flows: flows, slab: slab}
		if err := f.start(ctx, b, t, rep.Ports); err != nil {
			f.Problem = err.Error()
		}
		rep.Fill = append(rep.Fill, f.FillCell)
		if err := gw.forget(); err != nil {
			return err
		}
	}
	return nil
}

// poolPorts returns how many ports of an address the kernel's table of connections has room
// for, at most those that are asked for, and the buckets of that table.
func (b *bench) poolPorts(n *lab.Net) (ports, buckets int, err error) {
	h, err := n.Host("room")
	if err != nil {
		return 0, 0, err
	}
	track, err := b.file("track.nft", []byte(trackAll)) // only now the kernel has such a table for sure
	if err != nil {
		return 0, 0, err
	}
	if _, err := h.Run("nft", "-f", track); err != nil {
		return 0, 0, err
	}
	most, err := number(h, "net.netfilter.nf_conntrack_max")
	if err != nil {
		return 0, 0, err
	}
	if buckets, err = number(h, "net.netfilter.nf_conntrack_buckets"); err != nil {
		return 0, 0, err
	}
	ports = b.poolSize
	if room := most * 9 / 10 / poolAddresses; room < ports {
		b.note("egress: %d ports an address instead of %d: net.netfilter.nf_conntrack_max is %d and may not be raised from here", room, ports, most)
		ports = room
	}
	return ports, buckets, nil
}

func number(h *lab.Host, sysctl string) (int, error) {
	text, err := h.GetSysctl(sysctl)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(text))
}

// poolFlows returns n different sources of the clients: all clients in turn, each with ports
// in an order of its own. It is the same every time.
func poolFlows(n int) []netip.AddrPort {
	rnd := rand.New(rand.NewPCG(5, 8))
	var ports [poolClients][]int
	for i := range ports {
		ports[i] = rnd.Perm(mostPoolPorts)
	}
	out := make([]netip.AddrPort, n)
	for i := range out {
		c := i % poolClients
		out[i] = netip.AddrPortFrom(nth(backends, 1+c), uint16(firstPoolPort+ports[c][i/poolClients]))
	}
	return out
}

// fill is one pool that is filled.
type fill struct {
	FillCell
	gen   *generator
	gw    *gateway
	flows []netip.AddrPort // that are wanted
	slab  float64          // before
	spent time.Duration
}

// start fills the pool behind the translator, and looks at what came of it.
func (f *fill) start(ctx context.Context, b *bench, t translator, ports int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, fillLimit, errLimit)
	defer cancel()
	addresses := fmt.Sprintf("%s-%s", nth(fillPool, 1), nth(fillPool, poolAddresses))
	proc, err := t.start(ctx, b, f.gw.host, outside, addresses, fmt.Sprintf("%d-%d", firstPoolPort, firstPoolPort+ports-1))
	if err != nil {
		return err
	}
	if proc != nil {
		defer proc.Kill()
	}
	// After the rules: sysctls of connections are there when something needs connections.
	if err := f.gw.host.Sysctl("net.netfilter.nf_conntrack_udp_timeout", poolForget); err != nil {
		return err
	}
	if err := f.first(ctx); err != nil {
		return err
	}
	if proc != nil {
		f.OwnCPU, f.OwnMemory = processTime(proc.PID()).Seconds(), float64(peakKiB(proc.PID()))/1024
	}
	if err := f.again(ctx); err != nil {
		return err
	}
	return f.check(ctx)
}

// first sends one packet of each flow, and measures on the way.
func (f *fill) first(ctx context.Context) error {
	at := 0
	for _, percent := range fillLevels {
		burst := max(len(f.flows)/levelBurst, 1)
		if err := f.upTo(ctx, &at, len(f.flows)*percent/100-levelBursts*burst/2); err != nil {
			return err
		}
		level, err := f.level(&at, burst)
		if err != nil {
			return err
		}
		level.Percent = percent
		f.Levels = append(f.Levels, level)
	}
	if err := f.upTo(ctx, &at, len(f.flows)); err != nil {
		return err
	}
	f.CPU, f.Slab = f.spent.Seconds(), slabMiB()-f.slab
	var err error
	f.First, err = f.tracked()
	return err
}

// upTo sends the first packets of the flows from *at to end.
func (f *fill) upTo(ctx context.Context, at *int, end int) error {
	for *at < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		next := min(*at+fillChunk, end)
		spent, err := f.send(f.flows[*at:next])
		if err != nil {
			return err
		}
		f.spent += spent
		*at = next
	}
	return nil
}

// level measures the flows that come next, in bursts.
func (f *fill) level(at *int, burst int) (LevelCell, error) {
	var costs []float64
	before, err := f.tracked()
	if err != nil {
		return LevelCell{}, err
	}
	for range levelBursts {
		spent, err := f.send(f.flows[*at : *at+burst])
		if err != nil {
			return LevelCell{}, err
		}
		f.spent += spent
		*at += burst
		costs = append(costs, float64(spent)/float64(burst))
	}
	after, err := f.tracked()
	return LevelCell{New: costOf(costs), Failed: 1 - float64(after-before)/float64(burst*levelBursts)}, err
}

// send sends a packet of each flow.
func (f *fill) send(flows []netip.AddrPort) (time.Duration, error) {
	packets := make([][]byte, len(flows))
	for i, src := range flows {
		packets[i] = lab.UDPPacket(src, fillTarget, nil)
	}
	f.gen.load(ether(insideMAC, serverMAC, packets))
	return f.gw.send(f.gen, inside, len(packets))
}

// tracked is how many flows the gateway's kernel knows.
func (f *fill) tracked() (int, error) { return number(f.gw.host, "net.netfilter.nf_conntrack_count") }

// again has the clients of the flows that did not come into being try again.
func (f *fill) again(ctx context.Context) error {
	f.Flows, f.Tries = f.First, 1
	if f.First >= len(f.flows) {
		return nil
	}
	there := make(map[netip.AddrPort]bool, len(f.flows))
	if err := f.gw.flows(ctx, func(c *conntrack.Flow) { there[c.Orig.Src] = true }); err != nil {
		return err
	}
	var missing []netip.AddrPort
	for _, src := range f.flows {
		if !there[src] {
			missing = append(missing, src)
		}
	}
	for f.Tries < mostTries && f.Flows < len(f.flows) {
		f.Tries++
		before := f.Flows
		if err := f.resend(ctx, missing); err != nil {
			return err
		}
		if float64(f.Flows-before) < leastGain*float64(len(f.flows)) {
			break
		}
	}
	return nil
}

// resend sends a packet of each of these flows, but stops when thousands of them in a row did
// not get through: a hopeless one costs the most there is.
func (f *fill) resend(ctx context.Context, missing []netip.AddrPort) error {
	for i := 0; i < len(missing); i += retryChunk {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := f.send(missing[i:min(i+retryChunk, len(missing))]); err != nil {
			return err
		}
		now, err := f.tracked()
		if err != nil || now == f.Flows {
			return err
		}
		f.Flows = now
	}
	return nil
}

// check counts the flows by what the far side sees of them, and that their packets came there.
func (f *fill) check(ctx context.Context) error {
	seen := make(map[netip.AddrPort]bool, len(f.flows))
	addresses := map[netip.Addr]bool{}
	err := f.gw.flows(ctx, func(c *conntrack.Flow) {
		if c.Status&conntrack.StatusSNAT != 0 {
			seen[c.Reply.Dst] = true
			addresses[c.Reply.Dst.Addr()] = true
		}
	})
	if err != nil {
		return err
	}
	f.Flows, f.Addresses = len(seen), len(addresses)
	out, err := f.gw.received(worldOut)
	if err == nil && out < uint64(f.Flows) {
		err = fmt.Errorf("%d packets came out for %d flows", out, f.Flows)
	}
	return err
}

// slabMiB is the kernel's memory for entries of its tables of connections, in all namespaces,
// and for what has the size of their extensions (NF_CT_EXT_PREALLOC of
// net/netfilter/nf_conntrack_extend.c); 0 where that can't be read.
func slabMiB() float64 {
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return 0
	}
	total := 0
	for line := range strings.Lines(string(text)) {
		var name string
		var active, objects, size int
		if _, err := fmt.Sscan(line, &name, &active, &objects, &size); err != nil {
			continue
		}
		if name == "nf_conntrack" || name == "kmalloc-128" || strings.HasPrefix(name, "kmalloc-rnd-") && strings.HasSuffix(name, "-128") {
			total += objects * size
		}
	}
	return float64(total) / (1 << 20)
}
