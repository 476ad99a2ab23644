package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"weir/internal/lab"
)

// How much is sent for one burst: what takes sendTime at the cost of a first short run,
// within these bounds.
const (
	sendTime        = 10 * time.Millisecond
	bursts          = 12 // in a round, of which the cheapest counts: others use the machine, too
	probe           = 256
	establishedRun  = 100_000
	establishedFlow = 4096
	// Before the first round, connections are opened until ten backends of each service
	// that is asked for have had one, for the first to a backend costs more; but no longer
	// than this.
	warmUp     = 1500 * time.Millisecond
	warmPasses = 2 * backendsPerService
)

// sizesOfPackets are the numbers of services for the cost of a packet.
var sizesOfPackets = []int{1, 1000, 10000}

// PacketCell is the cost of a packet behind one set of rules.
type PacketCell struct {
	Name        string `json:"name"`
	Services    int    `json:"services"` // 0: no rules
	New         Cost   `json:"new"`
	Established Cost   `json:"established"`
	Rounds      int    `json:"rounds"`
	Problem     string `json:"problem,omitempty"`
}

// Cost is nanoseconds of processor time: the median of the rounds, and the least of them,
// which other work on the machine has disturbed the least.
type Cost struct {
	Median float64 `json:"median_ns"`
	Least  float64 `json:"least_ns"`
}

func costOf(rounds []float64) Cost {
	if len(rounds) == 0 {
		return Cost{}
	}
	return Cost{median(rounds), slices.Min(rounds)}
}

// path is one gateway that is measured.
type path struct {
	cell       PacketCell
	gw         *gateway
	tracks     bool // connections are tracked
	plain      bool // and no service translates them
	syns, acks []byte
	first      [][]byte // packets of the connections that get established
	later      [][]byte
	news, olds []float64
	ofNew      gauge
	ofLater    gauge
}

// packets measures the cost of a packet for every contender and size, in turn.
func (b *bench) packets(ctx context.Context) ([]PacketCell, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.note("packets: not measured: the world around the gateways needs nft: %v", err)
		return nil, nil
	}
	var paths []*path
	err := b.generated("packets", func(gen *generator, n *lab.Net) (err error) {
		if paths, err = b.paths(ctx, n); err != nil {
			return err
		}
		for _, p := range paths {
			if p.cell.Problem == "" && p.tracks && ctx.Err() == nil {
				if err := p.warm(gen); err != nil {
					p.cell.Problem = err.Error()
				}
			}
		}
		return b.inRounds(ctx, "packets", len(paths), func(i int) {
			if p := paths[i]; p.cell.Problem == "" {
				if err := p.measure(ctx, gen); err != nil {
					p.cell.Problem = err.Error()
				}
			}
		})
	})
	if err != nil {
		return nil, err
	}
	var cells []PacketCell
	for _, p := range paths {
		p.cell.New, p.cell.Established, p.cell.Rounds = costOf(p.news), costOf(p.olds), len(p.olds)
		cells = append(cells, p.cell)
	}
	return cells, nil
}

// paths makes the gateways and loads their rules.
func (b *bench) paths(ctx context.Context, n *lab.Net) ([]*path, error) {
	drop, err := b.file("drop.nft", []byte(dropAll))
	if err != nil {
		return nil, err
	}
	var paths []*path
	add := func(name string, services int) (*path, error) {
		gw, err := newGateway(n, fmt.Sprintf("%s-%d", name, services), drop)
		if err != nil {
			return nil, err
		}
		syns, acks := clientPackets(maxFrames, max(services, 1))
		p := &path{cell: PacketCell{Name: name, Services: services}, gw: gw,
			syns: ether(outsideMAC, clientMAC, syns), first: syns[:establishedFlow], later: acks[:establishedFlow],
			acks: ether(outsideMAC, clientMAC, acks[:establishedFlow])}
		paths = append(paths, p)
		return p, nil
	}
	if _, err := add("no rules", 0); err != nil {
		return nil, err
	}
	track, err := b.file("track.nft", []byte(trackAll))
	if err != nil {
		return nil, err
	}
	tracked, err := add("connections tracked", 0)
	if err != nil {
		return nil, err
	}
	tracked.tracks = true
	if _, err := tracked.gw.host.Run("nft", "-f", track); err != nil {
		return nil, err
	}
	for _, services := range b.packetSizes {
		files, err := b.files(services)
		if err != nil {
			return nil, err
		}
		for _, c := range b.contenders() {
			if !c.packets {
				continue
			}
			b.say("packets: %s, %d services: load", c.name, services)
			p, err := add(c.name, services)
			if err != nil {
				return nil, err
			}
			p.tracks = true
			if res := b.launch(ctx, p.gw.host, c.first(files)); res.Problem != "" {
				p.cell.Problem = res.Problem
			}
		}
	}
	return paths, nil
}

// warm opens connections as the first of them would be opened in real life: once.
func (p *path) warm(gen *generator) error {
	end := time.Now().Add(warmUp)
	for range warmPasses {
		if err := p.gw.forget(); err != nil {
			return err
		}
		gen.load(p.syns)
		for range maxFrames / probe {
			if time.Now().After(end) {
				return nil
			}
			if _, err := p.gw.send(gen, outside, probe); err != nil {
				return err
			}
		}
	}
	return nil
}

// measure does one round: new connections, then established ones.
func (p *path) measure(ctx context.Context, gen *generator) error {
	if p.tracks {
		if err := p.gw.forget(); err != nil {
			return err
		}
	}
	cost, err := p.run(gen, p.syns, &p.ofNew, maxFrames)
	if err != nil {
		return err
	}
	p.news = append(p.news, cost)
	if p.tracks {
		if err := p.gw.forget(); err != nil {
			return err
		}
		if err := p.gw.establish(ctx, gen, p.first, p.later, !p.plain && p.cell.Services > 0); err != nil {
			return err
		}
	}
	cost, err = p.run(gen, p.acks, &p.ofLater, establishedRun)
	if err != nil {
		return err
	}
	p.olds = append(p.olds, cost)
	return nil
}

// run returns the nanoseconds for each of the frames, of which no more than most are sent.
// All must have come out.
func (p *path) run(gen *generator, frames []byte, m *gauge, most int) (float64, error) {
	gen.load(frames)
	before, err := p.gw.delivered()
	if err != nil {
		return 0, err
	}
	cost, err := m.run(p.gw, gen, most)
	if err != nil {
		return 0, err
	}
	after, err := p.gw.delivered()
	if err != nil {
		return 0, err
	}
	if out := int(after - before); out < m.perRun*bursts { // the probe may lose one to a cold start
		return 0, fmt.Errorf("%d of %d packets came out", out, m.perRun*bursts+probe)
	}
	return cost, nil
}

// median returns the middle of values, 0 for none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// file writes a file into the run's own directory.
func (b *bench) file(name string, data []byte) (string, error) {
	path := b.dir + "/" + name
	return path, os.WriteFile(path, data, 0o600)
}
