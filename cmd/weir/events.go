package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/api"
	"weir/internal/engine"
)

func (e *env) eventsCmd() *cobra.Command {
	var since uint64
	var follow bool
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened: states, operators' words, reloads, repairs, the box, errors",
		Long: `Show what happened since weir was started: states of backends that changed, what
operators said, reloads, repairs, what weir needs of the box and went or came back, and
errors. The last 4,096 are kept. With -o json each
is an object on a line of its own.`,
		RunE: func(c *cobra.Command, _ []string) error { return e.events(c.Context(), since, follow) },
	}
	c.Flags().Uint64Var(&since, "since", 0, "only events after this `NUMBER`")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those to come, until Ctrl-C")
	return c
}

func (e *env) events(ctx context.Context, since uint64, follow bool) error {
	err := ask(func(w *api.Client) error { return w.Events(ctx, since, follow, e.printEvent) })
	if follow && ctx.Err() != nil {
		return nil // by Ctrl-C, as it should
	}
	if err == nil && follow {
		return fmt.Errorf("weir has stopped")
	}
	return err
}

func (e *env) printEvent(ev engine.Event) error {
	if e.output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(ev)
	}
	_, err := fmt.Fprintln(e.stdout, eventText(ev))
	return err
}

// eventText is an event in one line.
func eventText(ev engine.Event) string {
	words := []string{fmt.Sprintf("%6d  %s  %-8s", ev.Seq, ev.At.Format(time.DateTime), ev.Kind)}
	if ev.Service != "" {
		words = append(words, ev.Service+" "+ev.Backend+":")
	}
	if ev.List != "" {
		words = append(words, ev.List+":")
	}
	if ev.Pool != "" {
		words = append(words, ev.Pool+":")
	}
	if ev.Finding != "" {
		words = append(words, ev.Finding+" "+ev.Subject+":")
	}
	if ev.To != "" {
		words = append(words, strings.TrimPrefix(ev.From+" -> "+ev.To, " "))
		if ev.Message != "" {
			ev.Message = "(" + ev.Message + ")"
		}
	}
	if ev.Message != "" {
		words = append(words, strings.ReplaceAll(ev.Message, "\n", "\n        "))
	}
	if ev.By != nil {
		words = append(words, fmt.Sprintf("[by %s, pid %d]", ev.By, ev.By.PID))
	}
	return strings.Join(words, " ")
}
