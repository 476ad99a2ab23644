package engine

import (
	"context"
	"errors"
	"strings"

	"weir/internal/model"
)

// Tunnels holds the tunnels to collectors in other networks. Implementation: tunnel.Keeper.
type Tunnels interface {
	// Sync makes those that are wanted and removes weir's others. It returns the names of the
	// devices that it made and removed.
	Sync(ctx context.Context, want []model.VXLAN) (added, removed []string, err error)
}

// TunnelReport is the devices of tunnels that came and went.
type TunnelReport struct{ Added, Removed []string }

// devices brings what is weir's on devices, and of them, to what the plan wants.
func (e *Engine) devices(ctx context.Context, rep *Report) error {
	return errors.Join(e.addresses(ctx, rep), e.tunnels(ctx, rep))
}

func (e *Engine) tunnels(ctx context.Context, rep *Report) (err error) {
	if e.Tunnels == nil {
		return nil
	}
	rep.Tunnels.Added, rep.Tunnels.Removed, err = e.Tunnels.Sync(ctx, WantedTunnels(e.plan.Config))
	return err
}

// WantedTunnels returns the tunnels of the mirrors that run.
func WantedTunnels(cfg *model.Config) (want []model.VXLAN) {
	for _, m := range cfg.Mirrors {
		if m.VXLAN.ID != 0 && !m.Off {
			want = append(want, m.VXLAN)
		}
	}
	return want
}

// words says what came and went.
func (r TunnelReport) words() (out []string) {
	if len(r.Added) > 0 {
		out = append(out, "tunnels added: "+strings.Join(r.Added, ", "))
	}
	if len(r.Removed) > 0 {
		out = append(out, "tunnels removed: "+strings.Join(r.Removed, ", "))
	}
	return out
}

// saidOfTunnels tells what a repair had to put right.
func (l *Loop) saidOfTunnels(r TunnelReport) {
	if len(r.Added) > 0 {
		words := "somebody took weir's tunnels away: put back " + strings.Join(r.Added, ", ")
		l.Log.Warn(words)
		l.note(Event{Kind: "repair", Message: words})
	}
}

// wayOf says how the collector of a mirror is reached: by a tunnel, as far as the other end is.
func (l *Loop) wayOf(m *model.Mirror, f model.Family) Way {
	w := l.way(m.Collector(f))
	if m.VXLAN.ID == 0 {
		return w
	}
	end := l.way(m.VXLAN.Remote)
	w.Neighbour = end.Neighbour
	if end.Device == "" {
		w.Device = ""
	}
	return w
}

// usurp stops mirrors that are in no file whose tunnel one of the file has now.
func (b *mirrorBook) usurp(cfg *model.Config) (changed bool) {
	for _, s := range b.known {
		if s.Own == nil || s.Own.VXLAN.ID == 0 || s.Stopped != "" {
			continue
		}
		for _, m := range cfg.Mirrors {
			if m.VXLAN.ID == s.Own.VXLAN.ID {
				s.Stopped, changed = "mirror "+m.Name+" of the file has its network identifier", true
			}
		}
	}
	return changed
}

// tunnelOf returns the name of another mirror that has m's network identifier, "" if none has.
func (b *mirrorBook) tunnelOf(m *model.Mirror, file *model.Config) string {
	for _, s := range b.known {
		if o := s.of(file); o != nil && s.Name != m.Name && m.VXLAN.ID != 0 && o.VXLAN.ID == m.VXLAN.ID && s.Stopped == "" {
			return s.Name
		}
	}
	return ""
}
