package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/binding"
	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/health"
	"weir/internal/host/look"
	"weir/internal/lists"
	"weir/internal/metrics"
	"weir/internal/nft"
	"weir/internal/nudge"
	"weir/internal/state"
)

// runOptions are the flags of `weir run`.
type runOptions struct {
	group   string // who may speak to weir, besides its own user
	metrics string // address and port for Prometheus; "": on the socket alone

	lockMeOut bool // no configuration is refused for locking its owner out
}

func (e *env) runCmd() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run",
		Short: "Apply the configuration and keep it applied, until SIGTERM",
		Long: `Apply the configuration and keep it applied: check the backends, load the file again
on weir reload or SIGHUP (a file with a mistake is refused and the last good one stays),
put back within two seconds what others flush or edit of weir's rules, listen to weir
drain, enable, disable, weight, status and events, and tell systemd when it is ready.
When it stops, or is killed, the kernel goes on with the rules as they are.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.serve(c.Context(), o) },
	}
	c.Flags().StringVar(&o.group, "group", "", "`GROUP` that may use weir's socket too; else only its own user and root")
	e.stateFlag(c)
	c.Flags().StringVar(&o.metrics, "metrics", "", "`ADDRESS:PORT` on which Prometheus gets /metrics too, such as 127.0.0.1:9545; else only on weir's socket")
	addLockFlag(c.Flags(), &o.lockMeOut)
	return c
}

func (e *env) serve(ctx context.Context, o runOptions) error {
	log := slog.New(slog.NewTextHandler(e.stderr, nil))
	group, err := lookUpGroup(o.group)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k, err := openKernel(true)
	if err != nil {
		return err
	}
	defer k.close()
	if k.NoTimeouts {
		log.Warn("this kernel has no conntrack timeouts but the sysctls' (CONFIG_NF_CONNTRACK_TIMEOUT): those of egress pools have no effect")
	}
	events, err := k.conn.Monitor(ctx)
	if err != nil {
		return err
	}
	flows, err := conntrack.Open()
	if err != nil {
		return needsRights(err)
	}
	defer flows.Close()
	known, save := openMemory(e.state, log)
	held := newLockouts(o.lockMeOut, e.state)
	results := engine.NewInbox()
	checks := health.NewProber(results.Put, health.Options{})
	defer checks.Close()
	nudges, err := openNudges(log)
	if err != nil {
		return needsRights(err)
	}
	defer nudges.Close()
	keeper := openLists(e.config, e.state, known.Blocks, log)
	steering := &engine.Steering{Log: log}
	defer steering.Close()
	k.Engine.Steering = steering
	loop := &engine.Loop{Engine: k.Engine, Load: held.loader(e.config, e.readConfig), Reload: hangUps(ctx), Events: events, Log: log,
		Checks: checks, Results: results, Traffic: engine.Conntrack{Conn: flows, Engine: k.Engine, Nudges: nudges},
		Lists: keeper, Memory: known, Save: save, Journal: engine.NewJournal(), Parse: parseKept,
		Notify: func(state string) { held.reached(state); notify(log, state) }}
	if kept := openKept(e.state, log); kept != nil {
		loop.Kept = kept
	}
	loop.Ways = wayTo
	watcher, err := look.NewWatcher()
	if err != nil {
		return err
	}
	loop.Host = watcher
	meter, closeMeter, err := openMeter(log)
	if err != nil {
		return needsRights(err)
	}
	defer closeMeter()
	loop.Pools = meter
	// A connection of its own: to look at all connections must not hold up the loop.
	table, err := conntrack.Open()
	if err != nil {
		return needsRights(err)
	}
	defer table.Close()
	bindings := binding.NewLogger(table, log)
	loop.Bindings = bindings
	logged := make(chan struct{})
	go func() { defer close(logged); bindings.Run(ctx) }()
	defer func() { cancel(); <-logged }()
	metered := make(chan struct{})
	go func() { defer close(metered); meter.Run(ctx) }()
	defer func() { cancel(); <-metered }()
	watched := make(chan struct{})
	go func() { defer close(watched); watcher.Run(ctx) }()
	defer func() { cancel(); <-watched }()
	loop.Start()
	stopped, err := e.listen(ctx, loop, held, keeper, meter, o.metrics, group, log)
	if err != nil {
		return err
	}
	err = loop.Run(ctx)
	notify(log, "stopping")
	cancel()
	return needsRights(errors.Join(err, <-stopped))
}

// nudges is a nudge.Sender and the connection by which it learns who has answered.
type nudges struct {
	*nudge.Sender
	kernel *nft.Conn
}

func openNudges(log *slog.Logger) (nudges, error) {
	kernel, err := nft.Open()
	if err != nil {
		return nudges{}, err
	}
	sender, err := nudge.Open(nudge.Options{
		Silent: func(ctx context.Context, pairs []nudge.Pair, sent int) ([]nudge.Pair, error) {
			return engine.Silent(ctx, kernel, pairs, sent)
		},
		Done: func(r nudge.Report) {
			if r.Silent+r.Failed > 0 || r.Err != nil {
				log.Warn("clients of ended connections may not know it", "clients", r.Clients, "silent", r.Silent,
					"failed", r.Failed, "error", r.Err)
				return
			}
			log.Info("clients of ended connections are reset", "clients", r.Clients)
		}})
	if err != nil {
		kernel.Close()
	}
	return nudges{sender, kernel}, err
}

// Close ends what openNudges began.
func (n nudges) Close() {
	n.Sender.Close()
	n.kernel.Close()
}

// hangUps returns a channel that gets something after each SIGHUP, until ctx ends.
func hangUps(ctx context.Context) <-chan struct{} {
	reload := make(chan struct{}, 1)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				select {
				case reload <- struct{}{}:
				default: // one is asked for already
				}
			}
		}
	}()
	return reload
}

// lookUpGroup returns the id of a group, which may also be said as a number.
func lookUpGroup(name string) (int, error) {
	if name == "" {
		return api.NoGroup, nil
	}
	text := name
	if g, err := user.LookupGroup(name); err == nil {
		text = g.Gid
	}
	id, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, usageError{fmt.Errorf("--group: there is no group %q", name)}
	}
	return int(id), nil
}

// listen has the API answer until ctx ends; what it returns then says how that went.
func (e *env) listen(ctx context.Context, loop *engine.Loop, held *lockouts, keeper *lists.Keeper, meter *engine.Meter, tcp string, group int, log *slog.Logger) (<-chan error, error) {
	path, err := namespaceFile("sock")
	if err != nil {
		return nil, err
	}
	// A connection of its own: reading the counters must not hold up a commit.
	counters, err := nft.Open()
	if err != nil {
		return nil, needsRights(err)
	}
	flows, err := conntrack.Open()
	if err != nil {
		counters.Close()
		return nil, needsRights(err)
	}
	l, err := api.Listen(path, group)
	if err != nil {
		counters.Close()
		flows.Close()
		return nil, err
	}
	weir := &control{loop, held, counters, engine.Conntrack{Conn: flows}, log, e, keeper, &engine.Hits{Kernel: counters}, meter}
	server := api.New(weir, version, log)
	numbers := metrics.Handler(weir, version)
	server.Metrics(numbers)
	stopTCP, err := serveMetrics(tcp, numbers, log)
	if err != nil {
		counters.Close()
		flows.Close()
		l.Close()
		return nil, err
	}
	looked := make(chan struct{})
	go func() { defer close(looked); weir.hits.Run(ctx, weir.blocked) }()
	done := make(chan error, 1)
	go func() {
		err := server.Serve(ctx, l)
		stopTCP()
		<-looked
		counters.Close()
		flows.Close()
		done <- err
	}()
	return done, nil
}

// control is an api.Controller: the loop, and what it takes to look at the kernel beside
// it.
type control struct {
	*engine.Loop
	held     *lockouts
	counters engine.Counters
	flows    engine.Connections
	log      *slog.Logger
	env      *env
	lists    *lists.Keeper
	hits     *engine.Hits
	meter    *engine.Meter
}

// Apply implements api.Controller.
func (c *control) Apply(ctx context.Context, by *state.Operator, r api.ApplyRequest) ([]string, error) {
	if own, err := filepath.Abs(c.env.config); err != nil || r.File != "" && !sameFile(own, r.File) {
		return nil, &api.Error{Code: http.StatusConflict,
			Message: fmt.Sprintf("the weir that runs here has the file %s, not %q: it takes no other", own, r.File)}
	}
	if err := c.held.during(r.ReloadRequest, func() error { return c.Loop.Apply(ctx, by, r.Confirm) }); err != nil {
		return nil, err
	}
	view, err := c.View(ctx)
	if err != nil {
		return nil, err
	}
	out := append(listWarnings(view.Lists), warnings(view.Config)...)
	if view.Pending == "" || r.Confirm == 0 {
		return out, nil
	}
	if err := startGuard(c.env.state, view.Pending); err != nil {
		out = append(out, fmt.Sprintf("if weir is killed before that and not started again, nobody goes back: %v", err))
		c.log.Warn("no guard for the change that waits", "error", err)
	}
	return out, nil
}

// sameFile reports whether two absolute paths are of one file.
func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	two, err := os.Stat(b)
	return err == nil && os.SameFile(one, two)
}

// Status implements api.Controller.
func (c *control) Status(ctx context.Context, view engine.View, service string) (engine.Status, error) {
	live, err := c.flows.Count(ctx, view.Config)
	if err != nil {
		c.log.Warn("connections could not be counted", "error", err)
		live = nil // the rest is worth showing
	}
	st, err := view.Status(ctx, c.counters, live, service)
	if service == "" {
		st.Bindings = c.Bindings.Status()
	}
	return st, err
}

// Counts implements metrics.Source.
func (c *control) Counts() map[string]uint64 { return c.Journal.Counts() }

// Offenders implements api.Controller.
func (c *control) Offenders(ctx context.Context, view engine.View, service string) ([]engine.Offender, error) {
	return view.Offenders(ctx, c.counters, service, time.Now())
}

// ReloadNow implements api.Controller.
func (c *control) ReloadNow(ctx context.Context, by *state.Operator, r api.ReloadRequest) error {
	return c.held.during(r, func() error { return c.Loop.ReloadNow(ctx, by) })
}

// Since implements api.Controller.
func (c *control) Since(seq uint64) ([]engine.Event, <-chan struct{}) { return c.Journal.Since(seq) }

// notify tells systemd of a state (sd_notify(3)); without systemd it does nothing.
func notify(log *slog.Logger, state string) {
	message := map[string]string{
		"ready":     daemon.SdNotifyReady,
		"reloading": daemon.SdNotifyReloading,
		"stopping":  daemon.SdNotifyStopping,
	}[state]
	if state == "reloading" {
		// Type=notify-reload wants to know when the reload began.
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err == nil {
			message += fmt.Sprintf("\nMONOTONIC_USEC=%d", ts.Nano()/1000)
		}
	}
	if _, err := daemon.SdNotify(false, message); err != nil {
		log.Warn("systemd could not be told", "state", state, "error", err)
	}
}
