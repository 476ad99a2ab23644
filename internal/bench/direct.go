package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os/exec"
	"slices"
	"text/tabwriter"

	"weir/internal/config"
	"weir/internal/lab"
	"weir/internal/model"
)

// Direct return against plain forwarding: the same frames, in by one device and out by the
// other, by the routes, without rules and with connections tracked, and by weir's rules at the
// ingress hook.

// Names of the rows.
const (
	plainForwarding = "forwarded, no rules"
	plainTracked    = "forwarded, connections tracked"
	directReturn    = "direct return"
)

// mostDirect is how many services are measured at most: each has a table of its own.
const mostDirect = 1000

// manyBackends is a service of that size.
const manyBackends = 100

// direct measures it.
func (b *bench) direct(ctx context.Context) ([]PacketCell, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.note("direct: not measured: the world around the gateways needs nft: %v", err)
		return nil, nil
	}
	gen, err := newGenerator()
	if errors.Is(err, fs.ErrPermission) {
		b.note("direct: not measured: BPF needs root outside of user namespaces: %v", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer gen.close()
	n, err := lab.New()
	if err != nil {
		return nil, err
	}
	defer n.Close()
	paths, err := b.directPaths(n)
	if err != nil {
		return nil, err
	}
	for r := range b.rounds {
		if b.late() && r > 0 {
			b.note("direct: only %d of %d rounds fitted into the time", r, b.rounds)
			break
		}
		b.say("direct: round %d of %d", r+1, b.rounds)
		for i := range paths {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			p := paths[(i+r)%len(paths)]
			if p.cell.Problem == "" {
				if err := p.measure(ctx, gen); err != nil {
					p.cell.Problem = err.Error()
				}
			}
		}
	}
	var cells []PacketCell
	for _, p := range paths {
		p.cell.New, p.cell.Established, p.cell.Rounds = costOf(p.news), costOf(p.olds), len(p.olds)
		cells = append(cells, p.cell)
	}
	return cells, nil
}

// directPaths makes the gateways and loads weir's rules.
func (b *bench) directPaths(n *lab.Net) ([]*path, error) {
	drop, err := b.file("drop.nft", []byte(dropAll))
	if err != nil {
		return nil, err
	}
	track, err := b.file("track.nft", []byte(trackAll))
	if err != nil {
		return nil, err
	}
	var paths []*path
	add := func(name string, addresses, backends int) error {
		gw, err := newGateway(n, fmt.Sprintf("direct-%d", len(paths)), drop)
		if err != nil {
			return err
		}
		syns, acks := clientPackets(maxFrames, addresses)
		p := &path{cell: PacketCell{Name: name, Services: addresses}, gw: gw, tracks: name == plainTracked, plain: name == plainTracked,
			first: syns[:establishedFlow], later: acks[:establishedFlow],
			syns: ether(outsideMAC, clientMAC, syns), acks: ether(outsideMAC, clientMAC, acks[:establishedFlow])}
		paths = append(paths, p)
		switch {
		case p.tracks:
			_, err = gw.host.Run("nft", "-f", track)
			return err
		case name == plainForwarding:
			return nil
		}
		if err := b.loadDirect(gw, addresses, backends); err != nil {
			p.cell.Problem = err.Error()
		}
		return nil
	}
	for _, addresses := range b.packetSizes {
		if addresses <= mostDirect {
			err = errors.Join(err, add(plainForwarding, addresses, 0), add(plainTracked, addresses, 0),
				add(directReturn, addresses, backendsPerService))
		}
	}
	return paths, errors.Join(err, add(fmt.Sprintf("%s, %d backends", directReturn, manyBackends), 1, manyBackends))
}

// loadDirect has weir apply services whose backends are on the gateway's inner segment, where
// one link-layer address answers for all of them.
func (b *bench) loadDirect(gw *gateway, services, backends int) error {
	cfg := &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask}
	for i := range services {
		s := &model.Service{Name: fmt.Sprintf("s%d", i), Forward: model.ForwardDirect, Untracked: true, Balance: model.Maglev,
			WhenAllDown: model.Drop, In: []string{outside},
			Listen: []model.Listen{{Addr: listenAddr(i), Proto: model.TCP, Ports: model.Port(listenPort)}}}
		for j := range backends {
			s.Backends = append(s.Backends, model.Backend{Addr: directBackend(j), Weight: 1})
		}
		cfg.Services = append(cfg.Services, s)
	}
	for j := range backends {
		if err := neighbour(gw.host, inside, directBackend(j), serverMAC); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("direct-%d-%d", services, backends)
	file, err := b.file(name+".yaml", config.Marshal(cfg))
	if err != nil {
		return err
	}
	_, err = gw.host.Run(b.weir, "apply", "--config", file, "--state", b.dir+"/"+name+"/state.json")
	return err
}

// directBackend is an address on the inner segment.
func directBackend(j int) netip.Addr { return nth(insideNet.Masked(), 10+j) }

func (r *Report) printDirect(w io.Writer) {
	fmt.Fprint(w, `
Direct return: receive, find the service, hash, send to the backend's link-layer address; processor
time of one core for a packet, in nanoseconds, as above. "/plain" is to forwarding without rules to
as many addresses: the kernel keeps the route of a packet for the next one, if it goes to the same.
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\n\taddresses\tfirst packets: median\tleast\t/plain\tlater ones: median\tleast\t/plain\trounds\t\n")
	row := func(c, plain Cost) string {
		return fmt.Sprintf("%.0f\t%.0f\t%s", c.Median, c.Least, ratio(c.Least, plain.Least))
	}
	for _, c := range r.Direct {
		plain := r.plainFor(c.Services)
		fmt.Fprintf(tw, "  %s\t%d\t%s\t%s\t%d\t\n", c.Name, c.Services, row(c.New, plain.New), row(c.Established, plain.Established), c.Rounds)
		if c.Problem != "" {
			fmt.Fprintf(tw, "    %s\t\t\t\t\t\t\t\t\t\n", c.Problem)
		}
	}
	tw.Flush()
}

// plainFor returns what forwarding to as many addresses costs.
func (r *Report) plainFor(addresses int) PacketCell {
	i := slices.IndexFunc(r.Direct, func(c PacketCell) bool { return c.Name == plainForwarding && c.Services == addresses })
	return r.Direct[max(i, 0)]
}

// directLeast is the least cost of a later packet of the row, 0 where it was not measured.
func (r *Report) directLeast(name string) float64 {
	i := slices.IndexFunc(r.Direct, func(c PacketCell) bool { return c.Name == name })
	if i < 0 || r.Direct[i].Problem != "" {
		return 0
	}
	return r.Direct[i].Established.Least
}
