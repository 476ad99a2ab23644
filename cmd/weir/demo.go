package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/demo"
	"weir/internal/lab"
)

func (e *env) demoCmd() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Balance real HTTP traffic in a network of namespaces, and watch",
		Long: `Build a small network out of namespaces (2 clients, a gateway, 3 HTTP servers), run
weir on the gateway, drive traffic through it, and show who gets what while a weight
changes and a backend is taken out. A mirror sends copies of it all to one more box, and
in the end it is shown what weir tap made of them, beside what the clients' kernels
counted. It needs no root where user namespaces are allowed,
does not touch this host's network, and leaves nothing behind, also on Ctrl-C.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.demo(c.Context(), o) },
	}
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave the network open until Ctrl-C, with the commands to look around")
	c.Flags().Float64Var(&o.Rate, "rate", 400, "new connections a second")
	c.Flags().DurationVar(&o.Step, "step", 4*time.Second, "how long each of the four steps lasts, in whole seconds")
	return c
}

func (e *env) demo(ctx context.Context, o demo.Options) error {
	if o.Rate < 1 || o.Rate > 5000 || o.Step < time.Second || o.Step > time.Hour {
		return usageError{fmt.Errorf("--rate is allowed from 1 to 5000, --step from 1s to 1h")}
	}
	inside, code, err := lab.Isolate(e.args...)
	if err != nil {
		return err
	}
	if !inside {
		if code == exitOK {
			return nil
		}
		return exitCode(code)
	}
	if o.Binary, err = demo.Find(); err != nil {
		return err
	}
	o.Out = e.stdout
	if e.output == "json" {
		o.Out = io.Discard
	}
	res, err := demo.Run(ctx, o)
	if err != nil {
		return err
	}
	if err := e.print(res, func() error { return nil }); err != nil {
		return err
	}
	if res.Failed > 0 {
		return exitCode(exitFailed)
	}
	return nil
}
