package main

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"time"

	"weir/internal/config"
	"weir/internal/lab"
	"weir/internal/model"
)

// What copies cost production: real connections and processor time of a packet, without a
// mirror, with weir's and with iptables -j TEE.

// MirrorsReport is the part about mirrors.
type MirrorsReport struct {
	Traffic []MirrorTraffic `json:"traffic"`
	Packets []MirrorCost    `json:"packets"`
}

// MirrorCost is what a packet through a service costs while copies are made.
type MirrorCost struct {
	Name        string  `json:"name"`
	New         Cost    `json:"new"`
	Established Cost    `json:"established"`
	Copies      float64 `json:"copies"` // that came to the collector's device, for each packet
	Rounds      int     `json:"rounds"`
	Problem     string  `json:"problem,omitempty"`
}

// Names of the rows.
const (
	mirrorNone   = "no mirror"
	mirrorAll    = "weir, mirror of all"
	mirrorSample = "weir, sample 1/10 of flows"
	mirrorLimit  = "weir, limit 1000/second"
	mirrorDown   = "weir, collector down"
	teeAll       = "iptables TEE"
	teeDown      = "iptables TEE, collector down"
)

// The devices towards the collector, and its addresses.
const (
	collectorSide = "eth-copy"
	worldCopy     = "collector"
)

var (
	copySideMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 5}
	collectorMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 6}
	collectorNet  = netip.MustParsePrefix("10.255.0.1/24")
	collectorHop  = netip.MustParseAddr("10.255.0.2")
	dropCollector = `table netdev bench-copies {
	chain in { type filter hook ingress device ` + worldCopy + ` priority 0; policy drop; }
}
`
)

// mirrorContender makes a gateway copy all that passes its outer device, as the clients see it;
// nil mirror and no tee: it does not.
type mirrorContender struct {
	name    string
	mirror  func(*model.Mirror) // fills in what all mirrors here do not have in common
	tee     bool
	down    bool // nobody is at the collector's address
	traffic bool // real connections through it are measured, too
}

var mirrorContenders = []mirrorContender{
	{name: mirrorNone, traffic: true},
	{name: mirrorAll, mirror: func(*model.Mirror) {}, traffic: true},
	{name: mirrorSample, mirror: func(m *model.Mirror) { m.Of = 10 }},
	{name: mirrorLimit, mirror: func(m *model.Mirror) { m.Rate = 1000 }},
	{name: mirrorDown, mirror: func(*model.Mirror) {}, down: true, traffic: true},
	{name: teeAll, tee: true, traffic: true},
	{name: teeDown, tee: true, down: true, traffic: true},
}

// load has a gateway balance as cfg says, and copy.
func (c *mirrorContender) load(b *bench, h *lab.Host, cfg *model.Config, to ...netip.Addr) error {
	if c.mirror != nil {
		m := &model.Mirror{Name: "look", To: to, Take: 1, Of: 1, Unit: time.Second,
			Match: model.MirrorMatch{Devices: []string{outside}, Requests: true, Answers: true}}
		c.mirror(m)
		cfg.Mirrors = []*model.Mirror{m}
	}
	file, err := b.file("mirrors.yaml", config.Marshal(cfg))
	if err != nil {
		return err
	}
	if _, err := h.Run(b.weir, "apply", "--config", file, "--state", file+".state"); err != nil || !c.tee {
		return err
	}
	return tee(h, to...)
}

// tee is what a how-to says: requests where they come in, answers where they leave.
func tee(h *lab.Host, to ...netip.Addr) error {
	for _, a := range to {
		program := "iptables-legacy"
		if a.Is6() {
			program = "ip6tables-legacy"
		}
		for _, r := range [][]string{{"PREROUTING", "-i"}, {"POSTROUTING", "-o"}} {
			if _, err := h.Run(program, "-w", "-t", "mangle", "-A", r[0], r[1], outside, "-j", "TEE", "--gateway", a.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// mirrors measures what copies cost.
func (b *bench) mirrors(ctx context.Context) (*MirrorsReport, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.note("mirrors: not measured: collectors that cost nothing need nft: %v", err)
		return nil, nil
	}
	list, err := b.mirrorContenders()
	if err != nil {
		return nil, err
	}
	rep := &MirrorsReport{}
	within := func(fn func() error) error { // no further round begins after mirrorTime
		total := b.deadline
		defer func() { b.deadline = total }()
		if end := time.Now().Add(mirrorTime); end.Before(total) {
			b.deadline = end
		}
		return fn()
	}
	err = within(func() error {
		rep.Packets, err = b.mirrorPackets(ctx, list)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = within(func() error {
		rep.Traffic, err = b.mirrorTraffic(ctx, list)
		return err
	})
	return rep, err
}

// mirrorTime bounds each half of the part.
const mirrorTime = 24 * time.Second

// noTEE begins the note that there is no peer.
const noTEE = "mirrors: without iptables -j TEE, which does not work here"

// mirrorContenders returns those that work here.
func (b *bench) mirrorContenders() (list []mirrorContender, err error) {
	n, err := lab.New()
	if err != nil {
		return nil, err
	}
	defer n.Close()
	h, err := n.Host("try")
	if err != nil {
		return nil, err
	}
	peer := tee(h, collectorHop, netip.MustParseAddr("2001:db8::2"))
	if peer != nil {
		b.note(noTEE+": %v", peer)
	}
	for _, c := range mirrorContenders {
		if !c.tee || peer == nil {
			list = append(list, c)
		}
	}
	return list, nil
}

// mirrorPath is one gateway that copies.
type mirrorPath struct {
	*path
	copies, sent uint64
}

// mirrorPackets measures the cost of a packet for every contender, in turn.
func (b *bench) mirrorPackets(ctx context.Context, list []mirrorContender) (cells []MirrorCost, err error) {
	var paths []*mirrorPath
	err = b.generated("mirrors", func(gen *generator, n *lab.Net) error {
		for i := range list {
			p, err := b.mirrorPath(n, &list[i])
			if err != nil {
				return err
			}
			paths = append(paths, p)
		}
		return b.inRounds(ctx, "mirrors: packets", len(paths), func(i int) {
			if p := paths[i]; p.cell.Problem == "" {
				if err := p.measure(ctx, gen); err != nil {
					p.cell.Problem = err.Error()
				}
			}
		})
	})
	for _, p := range paths {
		cells = append(cells, MirrorCost{p.cell.Name, costOf(p.news), costOf(p.olds), float64(p.copies) / float64(max(p.sent, 1)), len(p.olds), p.cell.Problem})
	}
	return cells, err
}

// mirrorPath makes a gateway of one service that copies as the contender does.
func (b *bench) mirrorPath(n *lab.Net, c *mirrorContender) (*mirrorPath, error) {
	drop, err := b.file("drop.nft", []byte(dropAll))
	if err != nil {
		return nil, err
	}
	gw, err := newGateway(n, "mirror", drop)
	if err != nil {
		return nil, err
	}
	if err := b.addCollector(n, gw, c.down); err != nil {
		return nil, err
	}
	syns, acks := clientPackets(maxFrames, 1)
	p := &mirrorPath{path: &path{cell: PacketCell{Name: c.name, Services: 1}, gw: gw, tracks: true,
		syns: ether(outsideMAC, clientMAC, syns), first: syns[:establishedFlow], later: acks[:establishedFlow],
		acks: ether(outsideMAC, clientMAC, acks[:establishedFlow])}}
	if err := c.load(b, gw.host, newModel(1), collectorHop); err != nil {
		p.cell.Problem = err.Error()
	}
	return p, nil
}

// addCollector gives a gateway a third segment, whose only other end drops what comes.
func (b *bench) addCollector(n *lab.Net, gw *gateway, down bool) error {
	err := n.Link(lab.End{Host: gw.host, Name: collectorSide, MAC: copySideMAC, Addrs: []netip.Prefix{collectorNet}},
		lab.End{Host: gw.world, Name: worldCopy, MAC: collectorMAC})
	if err != nil {
		return err
	}
	file, err := b.file("collector.nft", []byte(dropCollector))
	if err != nil {
		return err
	}
	if _, err := gw.world.Run("nft", "-f", file); err != nil || down {
		return err
	}
	return neighbour(gw.host, collectorSide, collectorHop, collectorMAC)
}

// measure does one round, and counts what comes out and what comes to the collector.
func (p *mirrorPath) measure(ctx context.Context, gen *generator) error {
	sent, copies, err := p.out()
	if err != nil {
		return err
	}
	if err := p.path.measure(ctx, gen); err != nil {
		return err
	}
	sentNow, copiesNow, err := p.out()
	p.sent, p.copies = p.sent+sentNow-sent, p.copies+copiesNow-copies
	return err
}

// out is how many packets have left the gateway, and how many copies.
func (p *mirrorPath) out() (sent, copies uint64, err error) {
	for _, dev := range []string{worldIn, worldOut} {
		n, err := p.gw.received(dev)
		if err != nil {
			return 0, 0, err
		}
		sent += n
	}
	copies, err = p.gw.received(worldCopy)
	return sent, copies, err
}
