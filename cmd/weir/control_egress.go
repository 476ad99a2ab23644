package main

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/state"
)

// Egress implements api.Controller.
func (c *control) Egress(ctx context.Context, view engine.View, pool string) (engine.EgressStatus, error) {
	if len(view.Config.Egress) == 0 {
		return engine.EgressStatus{At: time.Now().Round(0), Running: true, Pools: []engine.EgressPool{}}, nil
	}
	st, err := c.meter.Ask(ctx)
	return view.Egress(st, pool), err
}

// Usage implements metrics.Source.
func (c *control) Usage(view engine.View) engine.EgressStatus {
	if len(view.Config.Egress) == 0 {
		return engine.EgressStatus{}
	}
	return view.Egress(c.meter.Status(), "")
}

// DrainAddress implements api.Controller.
func (c *control) DrainAddress(ctx context.Context, by *state.Operator, a netip.Addr, until time.Time) error {
	return ofAddress(c.Loop.DrainAddress(ctx, by, a, until))
}

// EnableAddress implements api.Controller.
func (c *control) EnableAddress(ctx context.Context, by *state.Operator, a netip.Addr) error {
	return ofAddress(c.Loop.EnableAddress(ctx, by, a))
}

// ofAddress gives errors their status.
func ofAddress(err error) error {
	switch {
	case errors.Is(err, engine.ErrNoAddress):
		return &api.Error{Code: http.StatusNotFound, Message: err.Error()}
	case errors.Is(err, engine.ErrLastAddress):
		return &api.Error{Code: http.StatusConflict, Message: err.Error()}
	}
	return err
}
