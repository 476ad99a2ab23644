package configtest

import (
	"errors"
	"slices"

	"weir/internal/model"
)

// checkDirect holds what only services with direct return have, or must not have.
func checkDirect(s *model.Service) error {
	if !s.Direct() {
		if s.Untracked || len(s.In) > 0 {
			return errors.New("is translated and not tracked, or knows where clients come in")
		}
		return nil
	}
	one := func(b model.Backend) bool { return !b.Ports.IsZero() || b.MaxConnections != 0 }
	switch {
	case len(s.In) == 0 || slices.Contains(s.In, "lo") || slices.Contains(s.In, ""):
		return errors.New("is direct and clients come in nowhere")
	case !s.Untracked || s.Balance < model.Maglev || s.Source != (model.SourceNAT{}) || s.Sticky != 0 ||
		s.WhenAllDown == model.Reject || s.OnDown != model.Keep || s.MaxConnections != 0 || len(s.Limits) > 0 || s.SynProxy:
		return errors.New("is direct and wants what that cannot do")
	case slices.ContainsFunc(s.Backends, one):
		return errors.New("is direct and a backend has a port or a limit")
	}
	return nil
}
