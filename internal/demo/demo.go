// Package demo is `weir demo`: a small network out of namespaces in which a real weir
// balances real HTTP traffic while its configuration changes, and mirrors it to a box on
// which weir tap looks at the copies.
package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"weir/internal/lab"
)

// Options say how the demo runs.
type Options struct {
	Binary string        // the weir to run
	Out    io.Writer     // where the figures go
	Rate   float64       // new connections a second, over both families
	Step   time.Duration // how long each step lasts, in whole seconds
	Keep   bool          // leave the network open until the context ends
}

// Result is what the demo's clients saw. Its JSON form is part of weir's interface.
type Result struct {
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Backends map[string]int `json:"backends"` // answers by backend
	Errors   map[string]int `json:"errors"`
	// Tap is what the copies of it all showed, nil where they could not be looked at, and Clients
	// what the clients' kernels counted.
	Tap     *TapFigures   `json:"tap"`
	Clients ClientFigures `json:"clients"`
}

// The listeners of the demo's service.
const (
	vip4 = "198.51.100.10:80"
	vip6 = "[2001:db8:f::10]:80"
)

// demo is a running one.
type demo struct {
	Options
	topo   *lab.Topology
	dir    string
	config string
	weir   *lab.Process
	tap    *tapBox // nil: there are no copies
	log    *tail
}

// step is a change of the configuration and what is said about it. Weights are those of
// the three backends.
type step struct {
	say     string
	weights [3]int
}

var steps = []step{
	{"three backends of equal weight", [3]int{1, 1, 1}},
	{"backend1 gets weight 4", [3]int{4, 1, 1}},
	{"backend2 is taken out (weight 0); what it has open it finishes", [3]int{4, 0, 1}},
	{"backend2 comes back, all are equal again", [3]int{1, 1, 1}},
}

// Run runs the demo inside the namespaces that lab.Isolate made, and cleans up. It ends
// early, without an error, when ctx does.
func Run(ctx context.Context, o Options) (Result, error) {
	d := &demo{Options: o}
	defer d.close()
	if err := d.start(ctx); err != nil {
		return Result{}, err
	}
	res, err := d.traffic(ctx)
	if err != nil {
		return res, err
	}
	d.counters()
	if res.Tap != nil {
		d.copies(res.Tap, &res.Clients)
	}
	if o.Keep && ctx.Err() == nil {
		d.lookAround()
		<-ctx.Done()
	}
	return res, nil
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.Out, format, args...) }

// start builds the network and starts the servers and weir.
func (d *demo) start(ctx context.Context) error {
	var err error
	if d.topo, err = lab.Gateway(lab.GatewayOptions{Clients: 2, Backends: 3}); err != nil {
		return fmt.Errorf("build the network: %w", err)
	}
	if err := d.startTap(); err != nil {
		return err
	}
	for i, b := range d.topo.Backends {
		addrs := []string{net.JoinHostPort(b.V4.String(), "8080"), net.JoinHostPort(b.V6.String(), "8080")}
		if _, err := lab.HTTPServer(b, fmt.Sprintf("backend%d", i+1), addrs...); err != nil {
			return fmt.Errorf("start an HTTP server: %w", err)
		}
	}
	if d.dir, err = os.MkdirTemp("", "weir-demo-"); err != nil {
		return err
	}
	d.config = filepath.Join(d.dir, "weir.yaml")
	tap := ", and a box for copies"
	if err := d.tap.ready(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		d.printf("there is no box for copies here: %v\n", err)
		d.tap.proc.Kill()
		d.tap, tap = nil, ""
	}
	if err := d.write(steps[0].weights); err != nil {
		return err
	}
	d.printf("a network of namespaces: 2 clients, a gateway, 3 HTTP servers%s; nothing of this host is touched\n\n%s\n",
		tap, indent(d.text(steps[0].weights)))
	return d.startWeir(ctx)
}

// text returns the configuration with these weights.
func (d *demo) text(weights [3]int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "services:\n  - name: web\n    listen: [%q, %q]\n    backends:\n", vip4+"/tcp", vip6+"/tcp")
	for i, h := range d.topo.Backends {
		for _, a := range []string{h.V4.String(), h.V6.String()} {
			fmt.Fprintf(&b, "      - {address: %q, weight: %d}\n", net.JoinHostPort(a, "8080"), weights[i])
		}
	}
	if d.tap != nil {
		b.WriteString(mirrorText())
	}
	return b.String()
}

// write replaces the configuration as an editor should: at once.
func (d *demo) write(weights [3]int) error {
	tmp := d.config + ".new"
	if err := os.WriteFile(tmp, []byte(d.text(weights)), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.config)
}

// startWeir starts `weir run` on the gateway and waits until it says that it is ready,
// the way it says so to systemd.
func (d *demo) startWeir(ctx context.Context) error {
	path := filepath.Join(d.dir, "notify")
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer sock.Close()
	cmd := d.topo.Gateway.Command(d.Binary, "run", "--config", d.config, "--state", filepath.Join(d.dir, "state.json"))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	d.log = &tail{}
	cmd.Stderr = d.log
	if d.weir, err = d.topo.Gateway.Start(cmd); err != nil {
		return fmt.Errorf("start weir run: %w", err)
	}
	ready := make(chan error, 1)
	go func() { ready <- waitReady(sock) }()
	select {
	case err := <-ready:
		return err
	case <-d.weir.Done():
		return fmt.Errorf("weir run ended at once:\n%s", d.log)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return fmt.Errorf("weir run is not ready after 30 s:\n%s", d.log)
	}
}

func waitReady(sock *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := sock.Read(buf)
		if err != nil {
			return err
		}
		if strings.Contains("\n"+string(buf[:n]), "\nREADY=1") {
			return nil
		}
	}
}

// traffic runs the load over all steps and returns what the clients saw.
func (d *demo) traffic(ctx context.Context) (Result, error) {
	before, err := readClients(d.topo.Clients)
	if err != nil {
		return Result{}, err
	}
	var loads []*lab.Running
	for _, c := range d.topo.Clients {
		l, err := lab.StartLoad(ctx, lab.LoadSpec{Host: c, Network: "http", Targets: []string{vip4, vip6},
			Rate: d.Rate / float64(len(d.topo.Clients)), Timeout: 5 * time.Second, Reset: true})
		if err != nil {
			return Result{}, err
		}
		loads = append(loads, l)
	}
	var last Result
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i, s := range steps {
		if i > 0 {
			if err := d.change(s); err != nil {
				return last, err
			}
		}
		d.printf("%s\n", s.say)
		last = d.watch(ctx, tick.C, loads, last)
	}
	var final Result
	for _, l := range loads {
		final.add(l.Stop())
	}
	d.printf("\n%d requests over IPv4 and IPv6, failed requests: %d\n", final.Requests, final.Failed)
	for e, n := range final.Errors {
		d.printf("  %d × %s\n", n, e)
	}
	after, err := readClients(d.topo.Clients)
	final.Clients = after.since(before)
	if d.tap != nil {
		t := d.tap.end(ctx, final.Clients.Packets)
		final.Tap = &t
	}
	return final, err
}

// change writes the step's configuration and asks weir to load it.
func (d *demo) change(s step) error {
	if err := d.write(s.weights); err != nil {
		return err
	}
	return d.weir.Signal(syscall.SIGHUP)
}

// watch prints the figures of each second of a step.
func (d *demo) watch(ctx context.Context, tick <-chan time.Time, loads []*lab.Running, last Result) Result {
	for range int(d.Step / time.Second) {
		select {
		case <-ctx.Done():
			return last
		case <-tick:
			var now Result
			for _, l := range loads {
				now.add(l.Snapshot())
			}
			d.line(now, last)
			last = now
		}
	}
	return last
}

// line prints what each backend answered since last.
func (d *demo) line(now, last Result) {
	for i := range d.topo.Backends {
		id := fmt.Sprintf("backend%d", i+1)
		n, all := now.Backends[id]-last.Backends[id], now.Requests-last.Requests
		share := 0.0
		if all > 0 {
			share = float64(n) / float64(all)
		}
		d.printf("  %s %5d/s %-16s", id, n, strings.Repeat("▇", int(share*15+0.5)))
	}
	d.printf("  failed %d\n", now.Failed)
}

func (r *Result) add(l lab.LoadResult) {
	if r.Backends == nil {
		r.Backends, r.Errors = map[string]int{}, map[string]int{}
	}
	r.Requests += l.Opened + l.Failed
	r.Failed += l.Failed
	for k, v := range l.ByBackend {
		r.Backends[k] += v
	}
	for k, v := range l.Errors {
		r.Errors[k] += v
	}
}

// counters prints what the kernel counted, as `weir status` shows it.
func (d *demo) counters() {
	out, err := d.topo.Gateway.Run(d.Binary, "status", "--config", d.config)
	if err != nil {
		d.printf("weir status: %v\n", err)
		return
	}
	d.printf("\nweir status on the gateway, counted by the kernel:\n%s", indent(out))
}

// lookAround prints how to visit the network while it is kept.
func (d *demo) lookAround() {
	enter := d.topo.Gateway.EnterCommand()
	d.printf("\nthe network stays open until Ctrl-C; from another shell:\n")
	list := []string{
		"on the gateway:  " + enter,
		"the rules:       " + enter + " nft list table inet weir",
		"the counters:    " + enter + " " + d.Binary + " status --config " + d.config,
		"a packet's way:  " + enter + " " + d.Binary + " explain --live --config " + d.config +
			" --from 203.0.113.1:40000 --to " + vip4 + "/tcp",
		"a request:       " + d.topo.Clients[0].EnterCommand() + " curl -s http://" + vip4 + "/",
	}
	if d.tap != nil {
		list = append(list, "the copies:      "+d.tap.host.EnterCommand()+" "+d.Binary+" tap "+tapDev)
	}
	for _, c := range list {
		d.printf("  %s\n", c)
	}
}

// close ends what the demo started and removes its files.
func (d *demo) close() {
	if d.weir != nil {
		stop(d.weir)
	}
	if d.topo != nil {
		d.topo.Net.Close()
	}
	if d.dir != "" {
		os.RemoveAll(d.dir)
	}
}

// stop tells a process to end, and sees to it.
func stop(p *lab.Process) {
	_ = p.Signal(syscall.SIGTERM) // fails only when it has ended
	select {
	case <-p.Done():
	case <-time.After(endPatience):
		p.Kill()
	}
}

// endPatience is how long a process may take to end.
const endPatience = 5 * time.Second

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ") + "\n"
}

// Find returns the path of the running program, to run it again.
func Find() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return exec.LookPath(path)
}
