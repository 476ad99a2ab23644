package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"weir/internal/conntrack"
	"weir/internal/lab"
)

// ConnectCell is short TCP connections through a pool, to one destination.
type ConnectCell struct {
	Name      string  `json:"name"`
	Ports     int     `json:"ports"` // of each address
	Rate      float64 `json:"rate"`  // connections a second that were answered
	Opened    int     `json:"opened"`
	Failed    int     `json:"failed"`
	Retries   int     `json:"retries"`   // SYNs that the clients sent again
	Tracked   int     `json:"tracked"`   // connections that the kernel still knows at the end
	Addresses int     `json:"addresses"` // of the pool that had one of these
	Busiest   int     `json:"busiest"`   // of these, those of the address with the most
	P99       float64 `json:"p99_ms"`    // of those answered, from when they were due
	Slowest   float64 `json:"max_ms"`
	OwnCPU    float64 `json:"own_cpu_s,omitempty"` // of weir's process meanwhile
	Problem   string  `json:"problem,omitempty"`
}

const (
	connectRate = 3000 // a second, of all clients
	connectPort = 7
	// closedFor is how long the kernel keeps a connection that was closed, by default
	// (nf_conntrack_tcp_timeout_time_wait).
	closedFor       = 120 * time.Second
	connectPatience = 10 * time.Second // two tries: a SYN is sent again after 1, 3 and 7 s
)

// connectPool is beyond the gateway's segments: the far side sends answers there by its
// default route.
var connectPool = netip.MustParsePrefix("192.0.2.0/24")

// connectPorts is how many ports of an address are handed out, so that the pool gets as full
// in the time at hand as one with all ports does in closedFor.
func (o *options) connectPorts() int {
	return max(min(int(int64(mostPoolPorts)*int64(o.loadFor)/int64(closedFor)), mostPoolPorts), 1)
}

// connects opens short connections through the pool of each translator.
func (b *bench) connects(ctx context.Context, rep *EgressReport) error {
	for _, t := range translators {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.say("egress: %s: %d connections a second for %s", t.name, connectRate, b.loadFor)
		c := ConnectCell{Name: t.name, Ports: b.connectPorts()}
		if err := b.connect(ctx, t, &c); err != nil {
			c.Problem = err.Error()
		}
		rep.Load = append(rep.Load, c)
	}
	return nil
}

func (b *bench) connect(ctx context.Context, t translator, c *ConnectCell) (err error) {
	topo, err := lab.Gateway(lab.GatewayOptions{Clients: 1, Backends: poolClients})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, topo.Net.Close()) }()
	for _, h := range topo.Backends { // they are the clients here: who goes out is inside
		if err := h.Sysctl("net.ipv4.ip_local_port_range", "1024 65535"); err != nil {
			return err
		}
	}
	target := netip.AddrPortFrom(topo.Clients[0].V4, connectPort).String()
	if _, err := lab.EchoTCP(topo.Clients[0], "far", target); err != nil {
		return err
	}
	addresses := fmt.Sprintf("%s-%s", nth(connectPool, 1), nth(connectPool, poolAddresses))
	proc, err := t.start(ctx, b, topo.Gateway, lab.OutsideDev, addresses, fmt.Sprintf("%d-%d", firstPoolPort, firstPoolPort+c.Ports-1))
	if err != nil {
		return err
	}
	if proc != nil {
		defer proc.Kill()
	}
	settle()
	if err := b.shortOnes(ctx, topo.Backends, target, c); err != nil {
		return err
	}
	if proc != nil {
		c.OwnCPU = processTime(proc.PID()).Seconds()
	}
	for _, h := range topo.Backends {
		n, err := resentSYNs(h)
		if err != nil {
			return err
		}
		c.Retries += n
	}
	return c.look(ctx, topo.Gateway)
}

// shortOnes has the hosts share the load.
func (b *bench) shortOnes(ctx context.Context, hosts []*lab.Host, target string, c *ConnectCell) error {
	var loads []*lab.Running
	start := time.Now()
	for _, h := range hosts {
		r, err := lab.StartLoad(ctx, lab.LoadSpec{Host: h, Network: "tcp", Targets: []string{target},
			Rate: connectRate / float64(len(hosts)), Duration: b.loadFor, Timeout: connectPatience})
		if err != nil {
			return err
		}
		loads = append(loads, r)
	}
	for _, r := range loads {
		res := r.Wait()
		c.Opened, c.Failed = c.Opened+res.Opened, c.Failed+res.Failed
		c.P99, c.Slowest = max(c.P99, millis(res.Latency.P99)), max(c.Slowest, millis(res.Latency.Max))
	}
	c.Rate = float64(c.Opened) / max(time.Since(start).Seconds(), b.loadFor.Seconds())
	if c.Opened == 0 {
		return errors.New("no connection was answered")
	}
	return ctx.Err()
}

// look counts what the gateway's kernel knows, by address of the pool.
func (c *ConnectCell) look(ctx context.Context, h *lab.Host) error {
	busy := map[netip.Addr]int{}
	err := (&gateway{host: h}).flows(ctx, func(f *conntrack.Flow) {
		if f.Status&conntrack.StatusSNAT != 0 {
			busy[f.Reply.Dst.Addr()]++
			c.Tracked++
		}
	})
	c.Addresses = len(busy)
	for _, n := range busy {
		c.Busiest = max(c.Busiest, n)
	}
	return err
}

// resentSYNs is how many SYNs the host's kernel has sent again (TCPSynRetrans of netstat).
func resentSYNs(h *lab.Host) (n int, err error) {
	var text []byte
	err = h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	if err != nil {
		return 0, err
	}
	lines := bytes.Split(text, []byte("\n"))
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(string(lines[i])), strings.Fields(string(lines[i+1]))
		for j, name := range names {
			if name == "TCPSynRetrans" && j < len(values) {
				return strconv.Atoi(values[j])
			}
		}
	}
	return 0, errors.New("netstat: no TCPSynRetrans")
}
