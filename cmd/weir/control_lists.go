package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/lists"
	"weir/internal/plan"
	"weir/internal/ruleset"
	"weir/internal/state"
)

// blocked returns what is blocked in the kernel.
func (c *control) blocked(ctx context.Context) (*plan.Blocks, error) {
	view, err := c.View(ctx)
	return view.Blocks, err
}

// Block implements api.Controller.
func (c *control) Block(ctx context.Context, by *state.Operator, b lists.Block) error {
	words := "block " + b.Text()
	if !b.Until.IsZero() {
		words += " for " + b.Until.Sub(b.At).String()
	}
	if b.Why != "" {
		words += ": " + b.Why
	}
	return c.Relist(ctx, by, words, func() error {
		if err := c.lists.Block(b); err != nil {
			return &api.Error{Code: http.StatusConflict, Message: err.Error()}
		}
		return nil
	})
}

// Unblock implements api.Controller.
func (c *control) Unblock(ctx context.Context, by *state.Operator, p netip.Prefix) error {
	b := lists.Block{Prefix: p}
	return c.Relist(ctx, by, "unblock "+b.Text(), func() error {
		if c.lists.Unblock(p) == nil {
			return nil
		}
		msg := fmt.Sprintf("no operator has blocked %s", b.Text())
		if i := slices.IndexFunc(c.lists.Blocks(), func(o lists.Block) bool { return o.Prefix.Overlaps(p) }); i >= 0 {
			msg += ", but " + c.lists.Blocks()[i].Text()
		}
		if m := c.lists.Lookup(p.Addr()).Matches; len(m) > 0 && m[0].List != lists.Operator {
			msg += fmt.Sprintf("; list %s has it (%s:%d): take it out there, or write allow: [%s] into the configuration", m[0].List, m[0].File, m[0].Line, b.Text())
		}
		return &api.Error{Code: http.StatusNotFound, Message: msg}
	})
}

// Accept implements api.Controller.
func (c *control) Accept(ctx context.Context, by *state.Operator, list string) error {
	return c.Relist(ctx, by, "blocks accept "+list, func() error {
		err := c.lists.Accept(list)
		switch {
		case err == lists.ErrNoList:
			var names []string
			for _, s := range c.lists.Status() {
				if s.Name != lists.Operator {
					names = append(names, s.Name)
				}
			}
			return &api.Error{Code: http.StatusNotFound, Message: fmt.Sprintf("there is no blocklist %q; there are: %s", list, strings.Join(names, ", "))}
		case err != nil:
			return &api.Error{Code: http.StatusConflict, Message: err.Error()}
		}
		return nil
	})
}

// Top implements api.Controller.
func (c *control) Top(ctx context.Context, n int, list string) (api.Top, error) {
	b, err := c.blocked(ctx)
	if err == nil {
		err = c.hits.Look(ctx, b)
	}
	if err != nil {
		return api.Top{}, err
	}
	var out api.Top
	out.Entries, out.All, out.At = c.hits.Top(n, list)
	out.Uncounted = c.hits.Uncounted().Packets
	return out, nil
}

// Why implements api.Controller.
func (c *control) Why(ctx context.Context, a netip.Addr) (api.Why, error) {
	view, err := c.View(ctx)
	if err != nil {
		return api.Why{}, err
	}
	n, last, err := c.hits.Count(ctx, view.Blocks, a)
	out := api.NewWhy(a, c.lists.Lookup(a), c.lists.Status())
	out.Packets, out.Bytes, out.LastChange = n.Packets, n.Bytes, last
	return out, err
}

// Sums implements metrics.Source.
func (c *control) Sums() map[string]ruleset.Count { return c.hits.Sums() }

// Uncounted implements metrics.Source.
func (c *control) Uncounted() ruleset.Count { return c.hits.Uncounted() }

var _ api.Controller = (*control)(nil)
var _ engine.Lists = (*lists.Keeper)(nil)
