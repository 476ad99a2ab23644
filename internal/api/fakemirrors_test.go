package api_test

import (
	"context"

	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/state"
)

func (f *fake) Mirrors(context.Context) ([]engine.MirrorStatus, error) {
	return []engine.MirrorStatus{}, nil
}

func (f *fake) StartMirror(_ context.Context, _ *state.Operator, name string, m *model.Mirror) error {
	if m == nil && name != "look" {
		return engine.ErrNoMirror
	}
	return nil
}

func (f *fake) StopMirror(context.Context, *state.Operator, string) error { return nil }
