package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"weir/internal/lab"
)

// The checks of all contenders, and what else is the same for them.
const (
	checkEvery   = 200 * time.Millisecond
	checkTimeout = checkEvery // HAProxy has no other for the connection of a check
	checkFall    = 3
	checkRise    = 2

	deathRate     = 1000 // new connections a second
	deathBackends = 4
	deathRounds   = 3 // at most
	// Clients wait this long for an answer.
	deathPatience = 3 * time.Second
	// A balancer that connects on its own tries this long, as often as it likes.
	connectTimeout = time.Second
	// commitTime is what may pass between the last check and the change.
	commitTime = 50 * time.Millisecond
)

// The ways to die, and until when a new connection may go to the dead.
var ways = []struct {
	name  string
	bound time.Duration
	die   func(*lab.Server, *lab.Host) error
}{
	{"server killed", checkFall*checkEvery + commitTime, func(s *lab.Server, _ *lab.Host) error { return s.Close() }},
	{"host silent", checkFall*checkEvery + checkTimeout + commitTime, func(_ *lab.Server, h *lab.Host) error {
		_, err := h.Run("nft", "table inet silence { chain in { type filter hook prerouting priority -300; policy drop; }; }")
		return err
	}},
}

// Ports of the backends.
const servePort, checkPort = 8080, 8081

var deathVIPs = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.10:80"), netip.MustParseAddrPort("[2001:db8:f::10]:80")}

// DeathCell is what a death costs behind one balancer: medians of the rounds.
type DeathCell struct {
	Name    string  `json:"name"`
	Way     string  `json:"way"`
	Last    float64 `json:"last_ms"`         // from the death to the last new connection to the dead
	Failed  float64 `json:"failed"`          // requests without an answer
	Wait    float64 `json:"longest_wait_ms"` // of a request that was answered
	Opened  float64 `json:"opened"`          // requests in all
	Rounds  int     `json:"rounds"`
	Problem string  `json:"problem,omitempty"`

	last, failed, wait, opened []float64
}

// balancer is a contender: what runs on the gateway.
type balancer struct {
	name  string
	start func(context.Context, *lab.Topology) (*running, error)
}

// The rows.
const (
	weirDeath      = "weir"
	haproxyDeath   = "haproxy, TCP mode"
	haproxyRetries = "haproxy, option redispatch"
)

// running is a balancer's process. What it said may be read when it has ended.
type running struct {
	*lab.Process
	said bytes.Buffer
}

func (b *bench) balancers() []balancer {
	list := []balancer{
		{weirDeath, func(ctx context.Context, t *lab.Topology) (*running, error) { return b.runWeir(t) }},
	}
	if _, err := exec.LookPath("haproxy"); err != nil {
		b.note("haproxy is not on this machine: left out")
		return list
	}
	return append(list,
		balancer{haproxyDeath, func(ctx context.Context, t *lab.Topology) (*running, error) {
			return b.runHAProxy(t, "no option redispatch")
		}},
		balancer{haproxyRetries, func(ctx context.Context, t *lab.Topology) (*running, error) {
			return b.runHAProxy(t, "option redispatch")
		}})
}

// deaths lets a backend die under load behind each balancer, in turn.
func (b *bench) deaths(ctx context.Context) ([]DeathCell, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.note("deaths: not measured: a host is made silent with nft: %v", err)
		return nil, nil
	}
	list := b.balancers()
	var cells []DeathCell
	for _, w := range ways {
		for _, l := range list {
			cells = append(cells, DeathCell{Name: l.name, Way: w.name})
		}
	}
	rounds := min(b.rounds, deathRounds)
	for round := range rounds {
		if b.late() && round > 0 {
			b.note("deaths: only %d of %d rounds fitted into the time", round, rounds)
			break
		}
		b.say("deaths: round %d of %d", round+1, rounds)
		for i := range cells {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			at := (i + round) % len(cells) // who follows whom changes from round to round
			c := &cells[at]
			if c.Problem != "" {
				continue
			}
			if err := b.death(ctx, list[at%len(list)], at/len(list), c); err != nil {
				c.Problem = err.Error()
			}
		}
	}
	for i := range cells {
		c := &cells[i]
		c.Last, c.Failed, c.Wait, c.Opened = median(c.last), median(c.failed), median(c.wait), median(c.opened)
		c.Rounds = len(c.last)
	}
	return cells, nil
}

// death is one round of one cell.
func (b *bench) death(ctx context.Context, l balancer, way int, c *DeathCell) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, errLimit)
	defer cancel()
	t, err := lab.Gateway(lab.GatewayOptions{Clients: 2, Backends: deathBackends})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Net.Close()) }()
	var servers []*lab.Server
	var checks []*lab.Arrivals
	for _, h := range t.Backends {
		var addrs []string
		for _, port := range []uint16{servePort, checkPort} {
			addrs = append(addrs, netip.AddrPortFrom(h.V4, port).String(), netip.AddrPortFrom(h.V6, port).String())
		}
		s, err := lab.EchoTCP(h, h.Name, addrs...)
		if err != nil {
			return err
		}
		seen, err := h.Arrivals(lab.HostDev, checkPort, lab.BackendNet4, lab.BackendNet6)
		if err != nil {
			return err
		}
		servers, checks = append(servers, s), append(checks, seen)
	}
	settle()
	p, err := l.start(ctx, t)
	if err != nil {
		return err
	}
	defer p.Kill()
	if err := serves(ctx, t, checks, p.Done()); err != nil {
		p.Kill()
		return fmt.Errorf("does not serve: %w: %s", err, lastLine(p.said.String()))
	}
	for _, c := range checks {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return b.die(ctx, t, servers[0], way, c)
}

// serves waits until both families are answered and every backend was asked twice in
// each. HAProxy's checks never finish a handshake, so that no server can tell of them.
func serves(ctx context.Context, t *lab.Topology, checks []*lab.Arrivals, ended <-chan struct{}) error {
	ready := func() bool {
		for _, c := range checks {
			if c.Since(time.Time{}) < 4 {
				return false
			}
		}
		for _, v := range deathVIPs {
			if _, err := t.Clients[0].Ask("tcp", v.String()); err != nil {
				return false
			}
		}
		return true
	}
	for !ready() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
			return errors.New("it ended")
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// die lets the first backend die in the middle of a load, and takes the figures.
func (b *bench) die(ctx context.Context, t *lab.Topology, s *lab.Server, way int, c *DeathCell) error {
	dead, w := t.Backends[0], ways[way]
	seen, err := dead.Arrivals(lab.HostDev, servePort, lab.ClientNet4, lab.ClientNet6, lab.BackendNet4, lab.BackendNet6)
	if err != nil {
		return err
	}
	var loads []*lab.Running
	for _, h := range t.Clients {
		r, err := lab.StartLoad(ctx, lab.LoadSpec{Host: h, Network: "tcp", Targets: []string{deathVIPs[0].String(), deathVIPs[1].String()},
			Rate: deathRate / float64(len(t.Clients)), Concurrency: 1024, Reset: true, Timeout: deathPatience,
			Duration: 500*time.Millisecond + w.bound + 2*time.Second})
		if err != nil {
			return err
		}
		loads = append(loads, r)
	}
	time.Sleep(500 * time.Millisecond) // what is before the death is the same for all
	start := time.Now()
	if err := w.die(s, dead); err != nil {
		return err
	}
	var failed, opened, wait float64
	for _, r := range loads {
		res := r.Wait()
		failed, opened = failed+float64(res.Failed), opened+float64(res.Opened+res.Failed)
		wait = max(wait, millis(res.Latency.Max))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.last = append(c.last, max(0, millis(seen.Last().Sub(start))))
	c.failed, c.opened, c.wait = append(c.failed, failed), append(c.opened, opened), append(c.wait, wait)
	return nil
}

// runWeir starts weir run with the checks of all.
func (b *bench) runWeir(t *lab.Topology) (*running, error) {
	var f strings.Builder
	fmt.Fprintf(&f, "services:\n  - name: web\n    listen: [\"%s/tcp\", \"%s/tcp\"]\n", deathVIPs[0], deathVIPs[1])
	fmt.Fprintf(&f, "    check: {tcp: true, port: %d, every: %s, timeout: %s, rise: %d, fall: %d}\n    backends:\n",
		checkPort, checkEvery, checkTimeout, checkRise, checkFall)
	for _, h := range t.Backends {
		fmt.Fprintf(&f, "      - \"%s\"\n      - \"%s\"\n", netip.AddrPortFrom(h.V4, servePort), netip.AddrPortFrom(h.V6, servePort))
	}
	path, err := b.file("death.yaml", []byte(f.String()))
	if err != nil {
		return nil, err
	}
	return startBalancer(t, b.weir, "run", "--config", path, "--state", path+".state")
}

// runHAProxy starts HAProxy with the same.
func (b *bench) runHAProxy(t *lab.Topology, redispatch string) (*running, error) {
	var f strings.Builder
	fmt.Fprintf(&f, "global\n  maxconn 4000\ndefaults\n  mode tcp\n  balance roundrobin\n  %s\n  retries 3\n", redispatch)
	fmt.Fprintf(&f, "  timeout client 30s\n  timeout server 30s\n  timeout connect %dms\n  timeout check %dms\n", connectTimeout.Milliseconds(), checkTimeout.Milliseconds())
	fmt.Fprintf(&f, "  default-server check port %d inter %dms rise %d fall %d\n", checkPort, checkEvery.Milliseconds(), checkRise, checkFall)
	for i, v := range deathVIPs {
		if err := t.Gateway.AddAddr("lo", netip.PrefixFrom(v.Addr(), v.Addr().BitLen())); err != nil {
			return nil, err
		}
		fmt.Fprintf(&f, "listen web%d\n  bind %s\n", i, v)
		for _, h := range t.Backends {
			a := h.V4
			if v.Addr().Is6() {
				a = h.V6
			}
			fmt.Fprintf(&f, "  server %s %s\n", h.Name, netip.AddrPortFrom(a, servePort))
		}
	}
	path, err := b.file("death.cfg", []byte(f.String()))
	if err != nil {
		return nil, err
	}
	return startBalancer(t, "haproxy", "-db", "-f", path)
}

// startBalancer starts a program on the gateway and keeps what it says.
func startBalancer(t *lab.Topology, name string, args ...string) (*running, error) {
	r := &running{}
	cmd := t.Gateway.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &r.said, &r.said
	var err error
	r.Process, err = t.Gateway.Start(cmd)
	return r, err
}
