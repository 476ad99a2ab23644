package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// lookAtMirrors ends mirrors whose time is over and stops those whose copies come in again, and
// notes how many copies got lost on their way.
func (l *Loop) lookAtMirrors(ctx context.Context) {
	p := l.Engine.Plan()
	if p == nil || len(p.Config.Mirrors) == 0 {
		l.mirror.returned = nil // a table that comes anew counts from 0
		return
	}
	now := l.Now()
	for _, m := range p.Config.Mirrors {
		if s := l.mirror.find(m.Name); s != nil && !m.Off && s.Stopped == "" && !s.runs(now) {
			l.Log.Info("mirror ended", "mirror", m.Name)
			l.note(Event{Kind: "mirror", Mirror: m.Name, Message: "ended: its time is over"})
			l.pending = true
		}
	}
	for _, f := range bothFamilies {
		if err := l.lookAtReturned(ctx, p.Config, f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.Log.Warn("copies could not be counted", "error", err)
		}
		l.lookAtCollectors(ctx, p.Config, f)
	}
}

func (l *Loop) lookAtReturned(ctx context.Context, cfg *model.Config, f model.Family) error {
	if !slices.ContainsFunc(cfg.Mirrors, func(m *model.Mirror) bool { return m.Collector(f).IsValid() }) {
		return nil
	}
	_, _, returned, _, _ := plan.MirrorSets(f)
	now := map[string]uint64{}
	err := l.Engine.Kernel.Elements(ctx, MirrorsTable(f), returned, func(e nft.Elem) bool {
		now[ruleset.DeviceOf(e.Key)] = e.Counter.Packets
		return true
	})
	if err != nil {
		return err
	}
	if l.mirror.returned == nil {
		l.mirror.returned = map[model.Family]map[string]uint64{}
	}
	before, known := l.mirror.returned[f]
	l.mirror.returned[f] = now
	for dev, n := range now {
		if known && n > before[dev] {
			l.cameBack(cfg, f, dev, n-before[dev])
		}
	}
	return nil
}

// cameBack stops the mirrors whose copies may be those that came in: those with a collector by
// that device or, if there is none, all of the family.
func (l *Loop) cameBack(cfg *model.Config, f model.Family, dev string, n uint64) {
	var near, all []*model.Mirror
	for _, m := range cfg.Mirrors {
		if a := m.Collector(f); a.IsValid() {
			all = append(all, m)
			if l.way(a).Device == dev {
				near = append(near, m)
			}
		}
	}
	if len(near) == 0 {
		near = all
	}
	for _, m := range near {
		s := l.mirror.find(m.Name)
		if s == nil || s.Stopped != "" {
			continue
		}
		s.Stopped = fmt.Sprintf("%d of its copies came in again by %s: the collector %s, or who is behind it, sends copies on; switch forwarding off there (weir tap does), then weir mirror start %s",
			n, dev, m.Collector(f), m.Name)
		s.At = l.Now()
		l.Log.Warn("mirror stopped", "mirror", m.Name, "reason", s.Stopped)
		l.note(Event{Kind: "mirror", Mirror: m.Name, Message: "stopped: " + s.Stopped})
		l.pending, l.unsaved = true, true
	}
}

func (l *Loop) way(a netip.Addr) Way {
	if l.Ways == nil {
		return Way{}
	}
	return l.Ways(a)
}

// lookAtCollectors counts what was sent to a collector that does not answer, and tells when one
// goes and comes.
func (l *Loop) lookAtCollectors(ctx context.Context, cfg *model.Config, f model.Family) {
	sent, err := sentTo(ctx, l.Engine.Kernel, f)
	if err != nil {
		return
	}
	b := &l.mirror
	if b.lost == nil {
		b.lost, b.sent, b.lostSaid = map[netip.Addr]uint64{}, map[netip.Addr]uint64{}, map[netip.Addr]bool{}
	}
	for _, m := range cfg.Mirrors {
		a := m.Collector(f)
		if !a.IsValid() {
			continue
		}
		w := l.way(a)
		gone := w.Lost() || w.Device == "" && l.Ways != nil
		if before, known := b.sent[a]; w.Lost() && known && sent[a] > before {
			b.lost[a] += sent[a] - before
		}
		b.sent[a] = sent[a]
		if gone != b.lostSaid[a] {
			b.lostSaid[a] = gone
			words := fmt.Sprintf("collector %s answers again", a)
			if gone {
				words = fmt.Sprintf("collector %s does not answer: copies go nowhere", a)
			}
			l.Log.Warn(words, "mirror", m.Name)
			l.note(Event{Kind: "mirror", Mirror: m.Name, Message: words})
		}
	}
}

func sentTo(ctx context.Context, k Counters, f model.Family) (map[netip.Addr]uint64, error) {
	_, sent, _, _, _ := plan.MirrorSets(f)
	out := map[netip.Addr]uint64{}
	err := k.Elements(ctx, MirrorsTable(f), sent, func(e nft.Elem) bool {
		if a, ok := netip.AddrFromSlice([]byte(e.Key)[:ruleset.AddrType(f).Size()]); ok {
			out[a] = e.Counter.Packets
		}
		return true
	})
	return out, err
}
