package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/engine"
)

func (e *env) mirrorsCmd() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "mirrors",
		Short: "Show the mirrors: copies made, over the limit, failed",
		Long: `Show the mirrors of a running weir, and of each family what became of its copies, in
packets: those made, those left out because of the limit, and those that failed because
there was no route (or the tunnel could not send it), nobody at the collector's address, or a copy too big for the link.
Copies that a slow link has no room for are among what the queue of its device dropped, whoever sent that.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.showMirrors(c.Context(), follow) },
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "again each second, until interrupted")
	return c
}

func (e *env) showMirrors(ctx context.Context, follow bool) error {
	for {
		var out api.Mirrors
		err := ask(func(w *api.Client) (err error) {
			out, err = w.Mirrors(ctx)
			return err
		})
		if err == nil {
			err = e.print(out, func() error { return e.printMirrors(out.Mirrors) })
		}
		if err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (e *env) printMirrors(list []engine.MirrorStatus) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MIRROR\tSTATE\tCOLLECTOR\tVIA\tNEIGHBOUR\tCOPIES\tBYTES\tOVER LIMIT\tNO ROUTE\tNO NEIGHBOUR\tTOO BIG\tCAME BACK\tQUEUE DROPPED")
	for _, m := range list {
		state := m.State
		if m.State == "running" && !m.Until.IsZero() {
			state = "until " + m.Until.Local().Format(time.TimeOnly)
		}
		for _, f := range m.Families {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d\n", m.Name, state, f.Collector, dash(f.Device), dash(f.Neighbour),
				f.Made, bytesText(f.Bytes), f.OverLimit, f.Failed.NoRoute+f.Failed.Tunnel, f.Failed.NoNeighbour, f.Failed.TooBig, f.Returned, f.QueueDropped)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, m := range list {
		if m.Reason != "" {
			fmt.Fprintf(e.stdout, "%s is %s: %s\n", m.Name, m.State, m.Reason)
		}
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (e *env) mirrorCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "mirror",
		Short: "Start and stop mirrors",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	list := e.mirrorsCmd()
	list.Use, list.Args = "list", noArgs
	c.AddCommand(e.mirrorStartCmd(), e.mirrorStopCmd(), list)
	return c
}

func (e *env) mirrorStartCmd() *cobra.Command {
	texts, lists := map[string]*string{}, map[string]*[]string{}
	vxlan := 0
	c := &cobra.Command{
		Use:   "start NAME",
		Short: "Start a mirror that was stopped or has ended or, with --to, one that is in no file",
		Long: `Start a mirror that was stopped or has ended or, with --to, one that is in no file. The
flags are the keys of mirrors in the configuration. It survives restarts of weir, until its end.`,
		Example: "  weir mirror start look --to 10.9.9.9 --protocol tcp --port 443 --sample 1/10 --limit 20000/second --for 30m",
		Args:    oneArg("the name of a mirror"),
		RunE: func(c *cobra.Command, args []string) error {
			keys, match := map[string]any{}, map[string]any{}
			put := func(name string, v any) {
				switch name {
				case "to", "view", "sample", "sample-by", "limit", "for":
					keys[strings.ReplaceAll(name, "-", "_")] = v
				case "to-prefix":
					match["to"] = v
				default:
					match[name] = v
				}
			}
			for name, v := range texts {
				if *v != "" {
					put(name, *v)
				}
			}
			for name, v := range lists {
				if len(*v) > 0 {
					put(name, *v)
				}
			}
			if c.Flags().Changed("vxlan") {
				keys["vxlan"] = vxlan
			}
			if len(match) > 0 {
				keys["match"] = match
			}
			if _, ok := keys["to"]; !ok && len(keys) > 0 {
				return usageError{fmt.Errorf("--to is missing: a mirror that is in no file needs a collector")}
			}
			return e.sayOfMirror(c.Context(), "started", func(w *api.Client) (api.MirrorSaid, error) {
				return w.StartMirror(c.Context(), args[0], keys)
			})
		},
	}
	for name, words := range map[string]string{
		"view": "`client` or backend: what copies show where addresses are translated", "sample": "`PART` that is copied, such as 1/10",
		"sample-by": "`flow` or packet", "limit": "at most that `RATE` of copies, such as 20000/second", "for": "for that `TIME`, such as 30m",
		"direction": "`both`, requests or answers", "protocol": "`PROTOCOL` by name, such as tcp", "service": "`NAME` of a service",
	} {
		texts[name] = c.Flags().String(name, "", words)
	}
	for name, words := range map[string]string{
		"to": "`ADDRESS` of the collector, one of each family", "in": "`DEVICE` by which requests come in", "out": "`DEVICE` by which requests leave",
		"from": "`PREFIX` of clients", "to-prefix": "`PREFIX` of servers (match: to)",
	} {
		lists[name] = c.Flags().StringSlice(name, nil, words)
	}
	c.Flags().IntVar(&vxlan, "vxlan", 0, "`IDENTIFIER` of a VXLAN to the collector in another network")
	texts["port"] = c.Flags().String("port", "", "`PORTS` of servers, such as 80,443,8000-8010")
	return c
}

func (e *env) mirrorStopCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "stop NAME",
		Short: "Stop a mirror, until weir mirror start or a change of it in the file",
		Args:  oneArg("the name of a mirror"),
		RunE: func(c *cobra.Command, args []string) error {
			return e.sayOfMirror(c.Context(), "stopped", func(w *api.Client) (api.MirrorSaid, error) {
				return w.StopMirror(c.Context(), args[0])
			})
		},
	}
}

func (e *env) sayOfMirror(ctx context.Context, words string, say func(*api.Client) (api.MirrorSaid, error)) error {
	defer e.progress("waiting for weir")()
	return conflict(ask(func(w *api.Client) error {
		out, err := say(w)
		if err != nil {
			return err
		}
		return e.print(out, func() error {
			_, err := fmt.Fprintf(e.stdout, "%s: %s\n", words, out.Name)
			e.pending(out.Applied)
			return err
		})
	}))
}
