package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/health"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/nudge"
)

// runOptions are the flags of `weir run`.
type runOptions struct {
	group string // who may speak to weir, besides its own user
	state string // the file that keeps operators' words

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
	c.Flags().StringVar(&o.state, "state", stateFile(), "`FILE` that keeps what operators say across restarts")
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
	events, err := k.conn.Monitor(ctx)
	if err != nil {
		return err
	}
	flows, err := conntrack.Open()
	if err != nil {
		return needsRights(err)
	}
	defer flows.Close()
	known, save := openMemory(o.state, log)
	held := &guards{now: guard{o.lockMeOut, sshSession()}}
	results := engine.NewInbox()
	checks := health.NewProber(results.Put, health.Options{})
	defer checks.Close()
	nudges, err := openNudges(log)
	if err != nil {
		return needsRights(err)
	}
	defer nudges.Close()
	loop := &engine.Loop{Engine: k.Engine, Load: e.loader(log, held), Reload: hangUps(ctx), Events: events, Log: log,
		Checks: checks, Results: results, Traffic: engine.Conntrack{Conn: flows, Engine: k.Engine, Nudges: nudges},
		Memory: known, Save: save, Journal: engine.NewJournal(),
		Notify: func(state string) { notify(log, state) }}
	loop.Start()
	stopped, err := e.listen(ctx, loop, held, group, log)
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

// loader returns what reads the configuration. Once one was taken, whoever started weir may
// have gone: from then on a session counts that asks for a load itself.
func (e *env) loader(log *slog.Logger, held *guards) func() (*model.Config, error) {
	first := true
	return func() (*model.Config, error) {
		cfg, err := config.Load(e.config)
		if err == nil {
			err = held.get().check(e.config, cfg)
		}
		if err == nil && first {
			first = false
			held.set(guard{lockMeOut: held.get().lockMeOut})
		}
		if err == nil {
			for _, w := range forwarding(cfg) {
				log.Warn(w)
			}
		}
		return cfg, err
	}
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
func (e *env) listen(ctx context.Context, loop *engine.Loop, held *guards, group int, log *slog.Logger) (<-chan error, error) {
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
	server := api.New(&control{loop, held, counters, engine.Conntrack{Conn: flows}, log}, version, log)
	done := make(chan error, 1)
	go func() {
		err := server.Serve(ctx, l)
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
	held     *guards
	counters engine.Counters
	flows    engine.Connections
	log      *slog.Logger
}

// Status implements api.Controller.
func (c *control) Status(ctx context.Context, view engine.View, service string) (engine.Status, error) {
	live, err := c.flows.Count(ctx, view.Config)
	if err != nil {
		c.log.Warn("connections could not be counted", "error", err)
		live = nil // the rest is worth showing
	}
	return view.Status(ctx, c.counters, live, service)
}

// Offenders implements api.Controller.
func (c *control) Offenders(ctx context.Context, view engine.View, service string) ([]engine.Offender, error) {
	return view.Offenders(ctx, c.counters, service, time.Now())
}

// ReloadNow implements api.Controller.
func (c *control) ReloadNow(ctx context.Context, r api.ReloadRequest) error {
	return c.held.reload(ctx, c.Loop, r)
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
