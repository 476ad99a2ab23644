package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

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

// cameBack stops the mirrors with a collector by the device that copies came in by. Copies by
// another device are dropped as well, but anybody out there could send packets with their mark:
// that is only said.
func (l *Loop) cameBack(cfg *model.Config, f model.Family, dev string, n uint64) {
	near := 0
	for _, m := range cfg.Mirrors {
		if !m.Collector(f).IsValid() || !l.comesBy(m, f, dev) {
			continue
		}
		near++
		s := l.mirror.find(m.Name)
		if s == nil || s.Stopped != "" {
			continue
		}
		s.Stopped = fmt.Sprintf("%d of its copies came in again by %s: the collector %s, or who is behind it, sends copies on; switch forwarding off there (weir tap does), then weir mirror start %s",
			n, dev, m.CollectorOf(f), m.Name)
		s.At = l.Now()
		l.Log.Warn("mirror stopped", "mirror", m.Name, "reason", s.Stopped)
		l.note(Event{Kind: "mirror", Mirror: m.Name, Message: "stopped: " + s.Stopped})
		l.pending, l.unsaved = true, true
	}
	if said := l.mirror.strayed[dev]; near == 0 && (said.IsZero() || l.Now().Sub(said) >= sayAgain) {
		l.mirror.strayed[dev] = l.Now()
		words := fmt.Sprintf("%d packets with the mark of copies came in by %s, where no collector is, and were dropped: somebody sends copies on, or forges them", n, dev)
		l.Log.Warn(words)
		l.note(Event{Kind: "mirror", Message: words})
	}
}

// comesBy reports whether dev is the device by which a mirror's collector is reached: by a tunnel,
// its own and that which leads to the other end.
func (l *Loop) comesBy(m *model.Mirror, f model.Family, dev string) bool {
	return l.wayOf(m, f).Device == dev || m.VXLAN.ID != 0 && l.way(m.VXLAN.Remote).Device == dev
}

// sayAgain is how often it is said that copies come in where no collector is, or that a queue
// drops them.
const sayAgain = time.Minute

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
	for _, m := range cfg.Mirrors {
		a := m.Collector(f)
		if !a.IsValid() || m.Off {
			continue
		}
		w := l.wayOf(m, f)
		l.lookAtQueue(m, f)
		gone := l.gone(m, f, w)
		if before, known := b.sent[a]; w.Lost() && known && sent[a] > before {
			b.lost[a] += sent[a] - before
		}
		b.sent[a] = sent[a]
		if gone != b.lostSaid[a] {
			b.lostSaid[a] = gone
			words := fmt.Sprintf("collector %s answers again", m.CollectorOf(f))
			if gone != "" {
				words = gone + ": copies go nowhere"
			}
			l.Log.Warn(words, "mirror", m.Name)
			l.note(Event{Kind: "mirror", Mirror: m.Name, Message: words})
		}
	}
}

// gone says why copies do not get to the collector of m, "" if they may.
func (l *Loop) gone(m *model.Mirror, f model.Family, w Way) string {
	to := m.CollectorOf(f).String()
	switch tunnel := m.VXLAN.ID != 0; {
	case l.Ways == nil:
	case tunnel && l.way(m.VXLAN.Remote).Device == "":
		return "no route of this machine leads to collector " + to
	case tunnel && w.Device != m.VXLAN.Device():
		return "the tunnel to collector " + to + " is not there"
	case w.Device == "" || !w.OnLink:
		return "no network of this machine leads to collector " + to
	case w.Lost():
		return "collector " + to + " does not answer"
	}
	return ""
}

// queueDrops is what the queue of a device by which collectors are reached has dropped.
type queueDrops struct {
	last  uint64 // at the last look
	total uint64 // since the first look
	said  time.Time
}

// lookAtQueue counts what the queue of a collector's device drops, and tells of it.
func (l *Loop) lookAtQueue(m *model.Mirror, f model.Family) {
	w := l.way(m.CollectorOf(f))
	if w.Device == "" || !w.OnLink && m.VXLAN.ID == 0 {
		return
	}
	l.mirror.by[m.Collector(f)] = w.Device
	q := l.mirror.queues[w.Device]
	if q == nil {
		q = &queueDrops{last: w.Dropped}
		l.mirror.queues[w.Device] = q
	}
	if w.Dropped < q.last { // the device or its queue is another
		q.last = 0
	}
	n := w.Dropped - q.last
	q.last, q.total = w.Dropped, q.total+n
	if now := l.Now(); n > 0 && (q.said.IsZero() || now.Sub(q.said) >= sayAgain) {
		q.said = now
		words := fmt.Sprintf("the queue of %s, by which collector %s is reached, dropped %d packets: copies are lost; want a sample, a limit or a faster link", w.Device, m.CollectorOf(f), n)
		l.Log.Warn(words, "mirror", m.Name)
		l.note(Event{Kind: "mirror", Mirror: m.Name, Message: words})
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
