package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"weir/internal/config"
	"weir/internal/lab"
	"weir/internal/model"
)

// sizesOfEdge are the numbers of untracked listeners; as many as one site had, too.
var sizesOfEdge = []int{1, 650, 10_000}

// EdgeCell is the cost of a packet to a program on the gateway, from the device to where it
// would be given to a socket.
type EdgeCell struct {
	Name      string `json:"name"`
	Listeners int    `json:"listeners"` // 0: no rules
	Packet    Cost   `json:"packet"`
	Rounds    int    `json:"rounds"`
	Problem   string `json:"problem,omitempty"`
}

// Names of the rows.
const (
	edgeFloor   = "no rules"
	edgeWeir    = "weir"
	edgeLimited = "weir, packets limited per source"
)

// dropInput ends packets behind everybody's rules, where a socket would get them.
const dropInput = `table inet bench {
	chain c { type filter hook input priority 300; policy accept; drop; }
}
`

// firstPort is that of the first listener; the others have those behind it.
const firstPort = 1024

// edgeContender makes a gateway know its listeners.
type edgeContender struct {
	name  string
	needs []string
	sizes int // how many of the sizes, from the least on
	load  func(ctx context.Context, b *bench, h *lab.Host, listeners int) result
}

var edgeContenders = []edgeContender{
	{edgeWeir, nil, len(sizesOfEdge), func(ctx context.Context, b *bench, h *lab.Host, n int) result {
		return b.loadWeirEdge(ctx, h, n, nil)
	}},
	{"ipset", []string{"ipset", "iptables-legacy-restore"}, len(sizesOfEdge), loadIpsetEdge},
	{"iptables, linear", []string{"iptables-legacy-restore"}, len(sizesOfEdge), loadLinearEdge},
	{edgeLimited, nil, 1, func(ctx context.Context, b *bench, h *lab.Host, n int) result {
		limit := model.NewLimit()
		limit.Counts, limit.Rate, limit.Unit, limit.Burst = model.Packets, model.MaxRate, time.Second, model.MaxRate
		return b.loadWeirEdge(ctx, h, n, []model.Limit{limit})
	}},
	{"iptables hashlimit", []string{"iptables-legacy-restore"}, 1, loadHashlimit},
}

func (b *bench) loadWeirEdge(ctx context.Context, h *lab.Host, n int, limits []model.Limit) result {
	cfg := &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask}
	var s *model.Service
	for i := range n {
		if i%1000 == 0 { // a service may have some thousand
			s = &model.Service{Name: fmt.Sprintf("proxy-%d", i/1000), Forward: model.ForwardLocal, Untracked: true, Limits: limits}
			cfg.Services = append(cfg.Services, s)
		}
		s.Listen = append(s.Listen, model.Listen{Addr: outsideNet.Addr(), Proto: model.TCP, Ports: model.Port(uint16(firstPort + i))})
	}
	file, err := b.file("edge.yaml", config.Marshal(cfg))
	if err != nil {
		return result{Problem: err.Error()}
	}
	return b.launch(ctx, h, []string{b.weir, "apply", "--config", file, "--state", file + ".state"})
}

// loadIpsetEdge is what busy sites write: one look-up for what is not tracked, and one for
// what is accepted.
func loadIpsetEdge(ctx context.Context, b *bench, h *lab.Host, n int) result {
	var text strings.Builder
	fmt.Fprintf(&text, "create s hash:ip,port family inet hashsize %d maxelem %d\n", max(n, 64), n+64)
	for i := range n {
		fmt.Fprintf(&text, "add s %s,tcp:%d\n", outsideNet.Addr(), firstPort+i)
	}
	file, err := b.file("edge.ipset", []byte(text.String()))
	if err != nil {
		return result{Problem: err.Error()}
	}
	if res := b.launch(ctx, h, []string{"ipset", "-file", file, "restore"}); res.Problem != "" {
		return res
	}
	return b.restoreEdge(ctx, h, "-A PREROUTING -m set --match-set s dst,dst -j CT --notrack\n",
		"-A INPUT -m set --match-set s dst,dst -j ACCEPT\n")
}

func loadLinearEdge(ctx context.Context, b *bench, h *lab.Host, n int) result {
	var raw, filter strings.Builder
	for i := range n {
		match := fmt.Sprintf("-d %s -p tcp --dport %d", outsideNet.Addr(), firstPort+i)
		fmt.Fprintf(&raw, "-A PREROUTING %s -j CT --notrack\n", match)
		fmt.Fprintf(&filter, "-A INPUT %s -j ACCEPT\n", match)
	}
	return b.restoreEdge(ctx, h, raw.String(), filter.String())
}

// loadHashlimit accepts what is below a limit that nobody reaches.
func loadHashlimit(ctx context.Context, b *bench, h *lab.Host, _ int) result {
	match := fmt.Sprintf("-d %s -p tcp --dport %d", outsideNet.Addr(), firstPort)
	return b.restoreEdge(ctx, h, "-A PREROUTING "+match+
		" -m hashlimit --hashlimit-above 1000000/sec --hashlimit-burst 1000000 --hashlimit-mode srcip --hashlimit-name bench -j DROP\n"+
		"-A PREROUTING "+match+" -j CT --notrack\n",
		"-A INPUT "+match+" -j ACCEPT\n")
}

func (b *bench) restoreEdge(ctx context.Context, h *lab.Host, raw, filter string) result {
	file, err := b.file("edge.iptables", []byte("*raw\n"+raw+"COMMIT\n*filter\n"+filter+"COMMIT\n"))
	if err != nil {
		return result{Problem: err.Error()}
	}
	return b.launch(ctx, h, []string{"iptables-legacy-restore", file})
}

// edgePath is one gateway with its listeners.
type edgePath struct {
	cell EdgeCell
	ending
}

// edge measures the listeners of the gateway itself.
func (b *bench) edge(ctx context.Context) ([]EdgeCell, error) {
	var paths []*edgePath
	err := b.generated("edge", func(gen *generator, n *lab.Net) (err error) {
		if paths, err = b.edgePaths(ctx, n); err != nil {
			return err
		}
		return b.inRounds(ctx, "edge", len(paths), func(i int) {
			if p := paths[i]; p.cell.Problem == "" {
				if err := p.measure(gen); err != nil {
					p.cell.Problem = err.Error()
				}
			}
		})
	})
	if err != nil {
		return nil, err
	}
	var cells []EdgeCell
	for _, p := range paths {
		p.cell.Packet, p.cell.Rounds = costOf(p.costs), len(p.costs)
		cells = append(cells, p.cell)
	}
	return cells, nil
}

// edgePaths makes the gateways and loads their rules.
func (b *bench) edgePaths(ctx context.Context, n *lab.Net) ([]*edgePath, error) {
	world, err := b.file("drop.nft", []byte(dropAll))
	if err != nil {
		return nil, err
	}
	here, err := b.file("input.nft", []byte(dropInput))
	if err != nil {
		return nil, err
	}
	var paths []*edgePath
	add := func(name string, listeners int) (*edgePath, error) {
		gw, err := newGateway(n, fmt.Sprintf("edge-%d", len(paths)), world)
		if err != nil {
			return nil, err
		}
		paths = append(paths, &edgePath{EdgeCell{Name: name, Listeners: listeners},
			ending{gw: gw, frames: ether(outsideMAC, clientMAC, callers(max(listeners, 1)))}})
		_, err = gw.host.Run("nft", "-f", here)
		return paths[len(paths)-1], err
	}
	if _, err := add(edgeFloor, 0); err != nil {
		return nil, err
	}
	for i, size := range b.edgeSizes {
		for _, c := range edgeContenders {
			if i >= c.sizes || !b.has(c.needs) {
				continue
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			p, err := add(c.name, size)
			if err != nil {
				return nil, err
			}
			p.cell.Problem = c.load(ctx, b, p.gw.host, size).Problem
		}
	}
	return paths, nil
}

// callers returns packets of many clients to listeners chosen at random.
func callers(listeners int) [][]byte {
	rnd := rand.New(rand.NewPCG(3, uint64(listeners)))
	var out [][]byte
	for i := range maxFrames {
		src := netip.AddrPortFrom(nth(clients, 1+i%250), uint16(1024+i))
		dst := netip.AddrPortFrom(outsideNet.Addr(), uint16(firstPort+rnd.IntN(listeners)))
		out = append(out, lab.TCPPacket(src, dst, lab.ACK, clientSeq, 0))
	}
	return out
}

func (r *Report) printEdge(w io.Writer) {
	fmt.Fprint(w, `
A packet to a program of this machine, from the device to the socket, by the number of listeners that are kept
out of conntrack and let in: nanoseconds of processor time, the least of the rounds; in brackets the multiple
of weir, and of no rules at all.
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	of := func(name string, listeners int) float64 {
		for _, c := range r.Edge {
			if c.Name == name && c.Listeners == listeners {
				return c.Packet.Least
			}
		}
		return 0
	}
	last := -1
	for _, c := range r.Edge {
		if c.Listeners != last {
			last = c.Listeners
			fmt.Fprintf(tw, "\n%d listeners\tns/packet\tof no rules\trounds\t\n", last)
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%d\t\n", c.Name, figure(c.Problem, c.Packet.Least, of(edgeWeir, c.Listeners), "ns"),
			ratio(c.Packet.Least, of(edgeFloor, 0)), c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
}
