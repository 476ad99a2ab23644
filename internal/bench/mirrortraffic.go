package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"weir/internal/lab"
	"weir/internal/model"
)

// MirrorTraffic is real connections through a service, over IPv4 and IPv6, while copies are made.
type MirrorTraffic struct {
	Name      string `json:"name"`
	Gbits     Speed  `json:"throughput"` // of one connection of each family, both together
	P99       Waits  `json:"p99"`        // of short requests
	Requests  int    `json:"requests"`
	Failed    int    `json:"failed"`    // of these, those without an answer
	Datagrams int    `json:"datagrams"` // beside the requests
	Lost      int    `json:"lost"`      // of these
	Copies    int    `json:"copies"`    // frames that came to the collector, large ones of bulk, too
	Rounds    int    `json:"rounds"`
	Problem   string `json:"problem,omitempty"`
}

// Speed is gigabits a second: the median of the rounds, and the most of them, which other work
// on the machine has disturbed the least.
type Speed struct {
	Median float64 `json:"median_gbits"`
	Most   float64 `json:"most_gbits"`
}

// Waits are milliseconds: the median of the rounds, and the least.
type Waits struct {
	Median float64 `json:"median_ms"`
	Least  float64 `json:"least_ms"`
}

const (
	bulkTime     = 500 * time.Millisecond
	bulkChunk    = 128 << 10
	requestTime  = 700 * time.Millisecond
	requestRate  = 1000 // short requests a second
	datagramRate = 1000 // a second, of each family
	datagramStep = 5 * time.Millisecond
	// mostUnderWay keeps a sender that has to catch up from filling the receiver's buffer.
	mostUnderWay = 100
	// trafficGrace is how long datagrams may be on their way.
	trafficGrace = 2 * time.Second

	httpPort, bulkPort, datagramPort = 80, 9, 9
)

var (
	trafficVIPs = []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:f::10")}
	// noCollector is addresses of the backends' segment that nobody has.
	noCollector = []netip.Addr{netip.MustParseAddr("10.1.1.200"), netip.MustParseAddr("2001:db8:1::200")}
)

// dropCopies ends copies where they come in, so that the collector costs next to nothing: in
// real life it is another machine.
const dropCopies = `table netdev bench {
	chain in { type filter hook ingress device ` + lab.HostDev + ` priority 0; policy accept; meta l4proto { tcp, udp } drop; }
}
`

// mirrorLab is a network in which a contender copies.
type mirrorLab struct {
	cell      MirrorTraffic
	topo      *lab.Topology
	collector *lab.Host
	servers   []io.Closer
	arrived   atomic.Int64 // datagrams
	speeds    []float64
	waits     []float64
}

// mirrorTraffic sends the same through a service of every contender, in turn.
func (b *bench) mirrorTraffic(ctx context.Context, list []mirrorContender) (cells []MirrorTraffic, err error) {
	var labs []*mirrorLab
	defer func() {
		for _, l := range labs {
			err = errors.Join(err, l.close())
		}
	}()
	for i := range list {
		if !list[i].traffic {
			continue
		}
		l, err := b.mirrorLab(&list[i])
		if err != nil {
			return nil, err
		}
		labs = append(labs, l)
	}
	err = b.inRounds(ctx, "mirrors: traffic", len(labs), func(i int) {
		if l := labs[i]; l.cell.Problem == "" {
			if err := l.measure(ctx); err != nil {
				l.cell.Problem = err.Error()
			}
		}
	})
	for _, l := range labs {
		l.finish()
		cells = append(cells, l.cell)
	}
	return cells, err
}

// mirrorLab makes a network of a client, a gateway, a backend and a collector, and has the
// gateway copy. What the contender can't do is the row's problem.
func (b *bench) mirrorLab(c *mirrorContender) (*mirrorLab, error) {
	topo, err := lab.Gateway(lab.GatewayOptions{Clients: 1, Backends: 2})
	if err != nil {
		return nil, err
	}
	l := &mirrorLab{cell: MirrorTraffic{Name: c.name}, topo: topo, collector: topo.Backends[1]}
	if err := l.serve(topo.Backends[0]); err != nil {
		return nil, errors.Join(err, l.close())
	}
	drop, err := b.file("copies.nft", []byte(dropCopies))
	if err == nil {
		_, err = l.collector.Run("nft", "-f", drop)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	to := []netip.Addr{l.collector.V4, l.collector.V6}
	if c.down {
		to = noCollector
	}
	if err := c.load(b, topo.Gateway, trafficModel(topo.Backends[0]), to...); err != nil {
		l.cell.Problem = err.Error()
	}
	return l, nil
}

// trafficModel is a service of one backend, on the same ports.
func trafficModel(backend *lab.Host) *model.Config {
	s := &model.Service{Name: "web", Backends: []model.Backend{{Addr: backend.V4, Weight: 1}, {Addr: backend.V6, Weight: 1}}}
	for _, a := range trafficVIPs {
		s.Listen = append(s.Listen, model.Listen{Addr: a, Proto: model.TCP, Ports: model.Port(httpPort)},
			model.Listen{Addr: a, Proto: model.TCP, Ports: model.Port(bulkPort)}, model.Listen{Addr: a, Proto: model.UDP, Ports: model.Port(datagramPort)})
	}
	return &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask, Services: []*model.Service{s}}
}

// serve starts the backend's servers.
func (l *mirrorLab) serve(h *lab.Host) error {
	var web []string
	for _, a := range []netip.Addr{h.V4, h.V6} {
		web = append(web, netip.AddrPortFrom(a, httpPort).String())
		bulk, err := h.Listen("tcp", netip.AddrPortFrom(a, bulkPort).String())
		if err != nil {
			return err
		}
		l.servers = append(l.servers, bulk)
		go pour(bulk)
		sink, err := h.ListenPacket("udp", netip.AddrPortFrom(a, datagramPort).String())
		if err != nil {
			return err
		}
		l.servers = append(l.servers, sink)
		go l.count(sink)
	}
	_, err := lab.HTTPServer(h, "backend", web...)
	return err
}

// pour sends to whoever connects, until they go.
func pour(from net.Listener) {
	chunk := make([]byte, bulkChunk)
	for {
		c, err := from.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for err := error(nil); err == nil; {
				_, err = c.Write(chunk)
			}
		}()
	}
}

// count counts datagrams.
func (l *mirrorLab) count(sink net.PacketConn) {
	for buf := make([]byte, 2048); ; {
		if _, _, err := sink.ReadFrom(buf); err != nil {
			return
		}
		l.arrived.Add(1)
	}
}

// close ends everything.
func (l *mirrorLab) close() error {
	for _, s := range l.servers {
		_ = s.Close()
	}
	return l.topo.Net.Close()
}

// measure does one round.
func (l *mirrorLab) measure(ctx context.Context) error {
	settle()
	before, err := l.copies()
	if err != nil {
		return err
	}
	speed, err := l.bulk(ctx)
	if err != nil {
		return err
	}
	wait, err := l.short(ctx)
	if err != nil {
		return err
	}
	after, err := l.copies()
	l.speeds, l.waits, l.cell.Copies = append(l.speeds, speed), append(l.waits, wait), l.cell.Copies+int(after-before)
	return err
}

// copies is how many packets have come to the collector.
func (l *mirrorLab) copies() (n uint64, err error) {
	err = l.collector.Do(func() error {
		link, err := netlink.LinkByName(lab.HostDev)
		if err == nil {
			n = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	return n, err
}

// bulk takes as much as comes over one connection of each family, and returns Gbit/s.
func (l *mirrorLab) bulk(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, bulkTime+trafficGrace)
	defer cancel()
	type taken struct {
		bits float64
		err  error
	}
	all := make(chan taken)
	for _, a := range trafficVIPs {
		go func() {
			n, err := l.take(ctx, netip.AddrPortFrom(a, bulkPort).String())
			all <- taken{8 * float64(n), err}
		}()
	}
	var sum taken
	for range trafficVIPs {
		one := <-all
		sum.bits, sum.err = sum.bits+one.bits, errors.Join(sum.err, one.err)
	}
	return sum.bits / bulkTime.Seconds() / 1e9, sum.err
}

// take returns the bytes that came in bulkTime from the first one on.
func (l *mirrorLab) take(ctx context.Context, target string) (n int, err error) {
	c, err := l.topo.Clients[0].Dial(ctx, "tcp", "", target)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, bulkChunk)
	end, _ := ctx.Deadline()
	if err := c.SetReadDeadline(end); err != nil {
		return 0, err
	}
	if _, err := c.Read(buf); err != nil {
		return 0, fmt.Errorf("nothing comes: %w", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(bulkTime)); err != nil {
		return 0, err
	}
	for {
		got, err := c.Read(buf)
		n += got
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// short asks many short questions while datagrams pass, and returns the 99th percentile of the
// waits for answers in milliseconds.
func (l *mirrorLab) short(ctx context.Context) (float64, error) {
	var targets []string
	for _, a := range trafficVIPs {
		targets = append(targets, netip.AddrPortFrom(a, httpPort).String())
	}
	r, err := lab.StartLoad(ctx, lab.LoadSpec{Host: l.topo.Clients[0], Network: "http", Targets: targets,
		Rate: requestRate, Duration: requestTime, Timeout: trafficGrace, Reset: true})
	if err != nil {
		return 0, err
	}
	sent, err := l.datagrams(ctx)
	res := r.Wait()
	l.cell.Requests, l.cell.Failed = l.cell.Requests+res.Opened+res.Failed, l.cell.Failed+res.Failed
	l.cell.Datagrams += sent
	l.cell.Lost = l.cell.Datagrams - int(l.arrived.Load())
	return millis(res.Latency.P99), err
}

// datagrams sends datagrams of both families for as long as the short questions take, and waits
// until they have arrived, but not for ever. On a machine that is busy they are fewer.
func (l *mirrorLab) datagrams(ctx context.Context) (sent int, err error) {
	var socks []net.Conn
	for _, a := range trafficVIPs {
		c, err := l.topo.Clients[0].Dial(ctx, "udp", "", netip.AddrPortFrom(a, datagramPort).String())
		if err != nil {
			return 0, err
		}
		defer c.Close()
		socks = append(socks, c)
	}
	before, start := l.arrived.Load(), time.Now()
	tick := time.NewTicker(datagramStep)
	defer tick.Stop()
	for due := 0; due < int(requestTime.Seconds()*datagramRate); {
		select {
		case <-ctx.Done():
			return sent, ctx.Err()
		case <-tick.C:
		}
		due = int(min(time.Since(start), requestTime).Seconds() * datagramRate)
		for sent < due*len(socks) && l.arrived.Load()-before > int64(sent-mostUnderWay) {
			_, _ = socks[sent%len(socks)].Write([]byte("datagram")) // what the kernel refuses is lost, too
			sent++
		}
	}
	for end := time.Now().Add(trafficGrace); l.arrived.Load()-before < int64(sent) && time.Now().Before(end); {
		time.Sleep(datagramStep)
	}
	return sent, nil
}

// finish sums up.
func (l *mirrorLab) finish() {
	l.cell.Rounds = len(l.waits)
	if l.cell.Rounds == 0 {
		return
	}
	l.cell.Gbits = Speed{median(l.speeds), slices.Max(l.speeds)}
	l.cell.P99 = Waits{median(l.waits), slices.Min(l.waits)}
}
