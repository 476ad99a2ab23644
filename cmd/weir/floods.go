package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/plan"
)

func (e *env) offendersCmd() *cobra.Command {
	var top int
	c := &cobra.Command{
		Use:   "offenders [SERVICE]",
		Short: "Show sources that were over a limit: what was refused, and when last",
		Long: `Show the sources that were over a limit of a service within the last ten minutes, the
worst first: how much of theirs was refused, and when last. A source that keeps within the
limits for ten minutes is forgotten; the sums of all are in weir status.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("offenders takes one service, found %d words", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if top < 0 {
				return usageError{fmt.Errorf("--top %d is not allowed; want a number from 0, 0 for all", top)}
			}
			return e.offenders(c.Context(), strings.Join(args, ""), top)
		},
	}
	c.Flags().IntVar(&top, "top", 0, "no more than the worst `N`; 0: all")
	return c
}

func (e *env) offenders(ctx context.Context, service string, top int) error {
	defer e.progress("reading the counters")()
	var list api.Offenders
	err := ask(func(w *api.Client) (err error) {
		list, err = w.Offenders(ctx, service)
		return err
	})
	if errors.Is(err, api.ErrNotRunning) {
		list.Offenders, err = e.readOffenders(ctx, service)
	}
	if err != nil {
		return err
	}
	if top > 0 && len(list.Offenders) > top {
		list.Offenders = list.Offenders[:top]
	}
	return e.print(list, func() error { return e.printOffenders(list.Offenders, time.Now()) })
}

// readOffenders reads them without a running weir.
func (e *env) readOffenders(ctx context.Context, service string) ([]engine.Offender, error) {
	cfg, err := config.Load(e.config)
	if err != nil {
		return nil, err
	}
	if service != "" && cfg.Service(service) == nil {
		return nil, usageError{fmt.Errorf("there is no service %q in the configuration", service)}
	}
	k, err := openKernel(false)
	if err != nil {
		return nil, err
	}
	defer k.close()
	list, err := engine.ReadOffenders(ctx, k.conn, plan.Build(cfg, nil), service, time.Now())
	return list, needsRights(err)
}

func (e *env) printOffenders(list []engine.Offender, now time.Time) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(e.stdout, "nobody was over a limit within the last ten minutes")
		return err
	}
	var rows [][]string
	for _, o := range list {
		rows = append(rows, []string{o.Source, o.Service, strconv.FormatUint(o.Over.Packets, 10), bytesText(o.Over.Bytes), age(now, o.LastSeen), o.Limit})
	}
	return e.table("SOURCE SERVICE REFUSED BYTES AGO LIMIT", rows, make([]string, len(rows)))
}

// printLimits writes what was over the limits of services, and how full the kernel's table
// of connections is where anything limits it.
func (e *env) printLimits(st engine.Status) error {
	var rows [][]string
	for _, s := range st.Services {
		for _, l := range s.Limits {
			rows = append(rows, []string{s.Name, fmt.Sprintf("%s %s", l.Counts, l.Rate), strconv.Itoa(l.Burst), l.Per, l.Action,
				strconv.FormatUint(l.Over.Packets, 10), bytesText(l.Over.Bytes), strconv.FormatUint(l.Unchecked.Packets, 10)})
		}
	}
	if len(rows) > 0 {
		fmt.Fprintln(e.stdout)
		if err := e.table("SERVICE LIMIT BURST PER ACTION REFUSED BYTES UNCHECKED", rows, make([]string, len(rows))); err != nil {
			return err
		}
	}
	if t := st.Connections; t != nil && t.Max > 0 {
		fmt.Fprintf(e.stdout, "\nconnection table: %d of %d entries (%.0f%%)\n", t.Entries, t.Max, 100*float64(t.Entries)/float64(t.Max))
	}
	if p := st.SYNProxy; p != nil {
		fmt.Fprintf(e.stdout, "SYN proxy: %d SYNs answered, %d clients proved their address, %d wrong answers\n", p.SYNs, p.Valid, p.Invalid)
	}
	return nil
}

// deadEnds returns a warning for each listener of a service with a SYN proxy whose route
// ends packets before the proxy sees them.
func deadEnds(cfg *model.Config) []string {
	var out []string
	for _, s := range cfg.Services {
		if !s.SynProxy || s.Assign != "" {
			continue
		}
		for _, l := range s.Listen {
			if l.Proto != model.TCP {
				continue
			}
			if why := routeEnds(l.Addr); why != "" {
				out = append(out, fmt.Sprintf("service %s: %s, so that its SYN proxy never sees a packet; say assign: DEVICE, "+
					"or type: ip address add %s dev lo", s.Name, why, l.Addr))
			}
		}
	}
	return out
}

// routeEnds says why packets to a go nowhere, "" if they go somewhere. The kernel's errors are
// those of fib_props in net/ipv4/fib_semantics.c.
func routeEnds(a netip.Addr) string {
	_, err := netlink.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return fmt.Sprintf("there is no route to %s", a)
	case errors.Is(err, unix.EINVAL):
		return fmt.Sprintf("the route to %s is a blackhole", a)
	case errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Sprintf("the route to %s says unreachable", a)
	case errors.Is(err, unix.EACCES):
		return fmt.Sprintf("the route to %s says prohibit", a)
	}
	return ""
}
