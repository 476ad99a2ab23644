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
	"weir/internal/state"
)

// MirrorsTable makes the copies of one family. It is there where a mirror copies packets of it.
func MirrorsTable(f model.Family) nft.TableRef {
	return nft.TableRef{Family: ruleset.TableFamily(f), Name: plan.MirrorsTableName}
}

var bothFamilies = []model.Family{model.IPv4, model.IPv6}

// ErrNoMirror says that there is no mirror of that name.
var ErrNoMirror = errors.New("no such mirror")

// Way is how a collector is reached.
type Way struct {
	Device    string // "" where no route leads there
	OnLink    bool   // it is on a network of the box, and no address of its own
	Neighbour string // "reachable", "stale", "delay", "probe", "failed", "incomplete", …; "" for unknown
}

// Lost reports whether nobody answers there, so that copies go nowhere.
func (w Way) Lost() bool { return w.Neighbour == "failed" || w.Neighbour == "incomplete" }

// MirrorMemory is what is remembered of a mirror. It is in state.json.
type MirrorMemory struct {
	Name    string        `json:"name"`
	Text    string        `json:"text"`              // what it is, as far as its end belongs to it
	Until   time.Time     `json:"until,omitzero"`    // when it ends, or did
	Stopped string        `json:"stopped,omitempty"` // why it does not run
	At      time.Time     `json:"at,omitzero"`       // when it was stopped or started
	By      string        `json:"by,omitempty"`      // who started it
	Own     *model.Mirror `json:"own,omitempty"`     // of one that is in no file
}

func mirrorText(m *model.Mirror) string {
	plain := *m
	plain.Said, plain.Match.Said = nil, nil
	return fmt.Sprintf("%+v", plain)
}

// mirrorBook is what a Loop knows of mirrors.
type mirrorBook struct {
	known    []*MirrorMemory
	returned map[model.Family]map[string]uint64 // copies that came in again, by device; nil: not looked yet
	lost     map[netip.Addr]uint64              // copies that nobody's neighbour got
	sent     map[netip.Addr]uint64              // at the last look
	lostSaid map[netip.Addr]bool
}

func (b *mirrorBook) find(name string) *MirrorMemory {
	i := slices.IndexFunc(b.known, func(s *MirrorMemory) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return b.known[i]
}

// sync gives each mirror of cfg, and each that is in no file, what is remembered of it. It reports
// whether that changed.
func (b *mirrorBook) sync(cfg *model.Config, now time.Time) (changed bool) {
	kept := b.known[:0:0]
	for _, m := range cfg.Mirrors {
		s := b.find(m.Name)
		if text := mirrorText(m); s == nil || s.Own != nil || s.Text != text {
			s, changed = &MirrorMemory{Name: m.Name, Text: text, At: now}, true
			if m.For > 0 {
				s.Until = now.Add(m.For)
			}
		}
		kept = append(kept, s)
	}
	for _, s := range b.known {
		if s.Own != nil && cfg.Mirror(s.Name) == nil && (s.runs(now) || s.Stopped != "" && s.Stopped != byOperator) {
			kept = append(kept, s)
		}
	}
	changed = changed || !slices.Equal(kept, b.known)
	b.known = kept
	return changed
}

func (s *MirrorMemory) runs(now time.Time) bool {
	return s.Stopped == "" && (s.Until.IsZero() || now.Before(s.Until))
}

// of returns the mirror that s is about; nil if there is none.
func (s *MirrorMemory) of(cfg *model.Config) *model.Mirror {
	if s.Own != nil {
		return s.Own
	}
	return cfg.Mirror(s.Name)
}

// byOperator is the reason of a mirror that somebody stopped.
const byOperator = "by an operator"

// all returns all mirrors, those that do not run now as such.
func (b *mirrorBook) all(cfg *model.Config, now time.Time) (out []*model.Mirror) {
	for _, s := range b.known {
		m := s.of(cfg)
		if m == nil {
			continue
		}
		if !s.runs(now) {
			off := *m
			off.Off = true
			m = &off
		}
		out = append(out, m)
	}
	return out
}

// mirrors puts all mirrors into cfg, also those that are in no file, and tells the engine how long each still does.
func (l *Loop) mirrors(cfg *model.Config) *model.Config {
	if len(cfg.Mirrors) == 0 && len(l.mirror.known) == 0 {
		return cfg
	}
	now := l.Now()
	if l.mirror.sync(cfg, now) {
		l.unsaved = true
	}
	next := *cfg
	next.Mirrors = l.mirror.all(cfg, now)
	l.Engine.MirrorEnds = map[string]time.Time{}
	for _, s := range l.mirror.known {
		if !s.Until.IsZero() {
			l.Engine.MirrorEnds[s.Name] = s.Until
		}
	}
	return &next
}

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

// StartMirror starts a mirror that was stopped or has ended or, with m, one that is in no file.
func (l *Loop) StartMirror(ctx context.Context, by *state.Operator, name string, m *model.Mirror) error {
	var err error
	return firstError(l.Do(ctx, func() {
		now, s := l.Now(), l.mirror.find(name)
		switch {
		case m == nil && s == nil:
			err = fmt.Errorf("%w: %s", ErrNoMirror, name)
			return
		case m != nil && l.file.Mirror(name) != nil:
			err = fmt.Errorf("mirror %s is in the file; want another name, or weir mirror start %s alone", name, name)
			return
		case m != nil && s == nil && len(l.mirror.known) >= model.MaxMirrors:
			err = fmt.Errorf("there are %d mirrors, which is as many as there can be", len(l.mirror.known))
			return
		case m != nil:
			l.mirror.known = slices.DeleteFunc(l.mirror.known, func(o *MirrorMemory) bool { return o == s })
			s = &MirrorMemory{Name: name, Text: mirrorText(m), Own: m}
			l.mirror.known = append(l.mirror.known, s)
		}
		s.Stopped, s.At, s.Until = "", now, time.Time{}
		if by != nil {
			s.By = by.String()
		}
		if is := s.of(l.file); is != nil && is.For > 0 {
			s.Until = now.Add(is.For)
		}
		l.saidOfMirror(by, name, "mirror start")
	}), &err)
}

// StopMirror stops a mirror; one that is in no file is forgotten.
func (l *Loop) StopMirror(ctx context.Context, by *state.Operator, name string) error {
	var err error
	return firstError(l.Do(ctx, func() {
		s := l.mirror.find(name)
		if s == nil {
			err = fmt.Errorf("%w: %s", ErrNoMirror, name)
			return
		}
		s.Stopped, s.At = byOperator, l.Now()
		l.saidOfMirror(by, name, "mirror stop")
	}), &err)
}

func (l *Loop) saidOfMirror(by *state.Operator, name, words string) {
	l.note(Event{Kind: "operator", Mirror: name, By: by, Message: words + " " + name})
	l.pending, l.unsaved, l.retry = true, true, nil
	l.save()
}

// MirrorStatus is one mirror. Its JSON form is part of weir's interface.
type MirrorStatus struct {
	Name     string            `json:"name"`
	InFile   bool              `json:"in_file"`
	State    string            `json:"state"`            // "running", "stopped" or "ended"
	Reason   string            `json:"reason,omitempty"` // why it does not run
	Until    time.Time         `json:"until,omitzero"`   // when it ends, or did
	View     string            `json:"view"`             // "client" or "backend"
	Sample   string            `json:"sample"`           // "1/10"
	SampleBy string            `json:"sample_by"`        // "flow" or "packet"
	Limit    string            `json:"limit,omitempty"`  // of each family
	Families []MirrorCollector `json:"families"`
}

// MirrorCollector is what became of the copies of one family, in packets, since its rules came.
type MirrorCollector struct {
	Collector netip.Addr `json:"collector"`
	Device    string     `json:"device,omitempty"`    // by which it is reached
	Neighbour string     `json:"neighbour,omitempty"` // the state of its link address: "reachable", "stale", "failed", …
	Made      uint64     `json:"made"`                // copies that were to be made: those sent and those that failed
	Bytes     uint64     `json:"bytes"`               // of these
	OverLimit uint64     `json:"over_limit"`          // left out, because of the limit
	// Failed counts copies of all mirrors with this collector.
	Failed MirrorFailed `json:"failed"`
	// Returned is copies of this family, of all mirrors, that came in again, and were dropped.
	Returned uint64 `json:"returned"`
}

// MirrorFailed is copies that did not arrive, by why.
type MirrorFailed struct {
	NoRoute     uint64 `json:"no_route"`     // or no memory for it
	NoNeighbour uint64 `json:"no_neighbour"` // nobody answers at the address; looked at once a second
	TooBig      uint64 `json:"too_big"`      // for the link; of the family, at least
}

// MirrorList returns all mirrors, those of the file first.
func (l *Loop) MirrorList(ctx context.Context, k Counters) ([]MirrorStatus, error) {
	type item struct {
		*model.Mirror
		MirrorMemory
	}
	var items []item
	lost := map[netip.Addr]uint64{}
	now := time.Time{}
	err := l.Do(ctx, func() {
		now = l.Now()
		for _, s := range l.mirror.known {
			if m := s.of(l.file); m != nil {
				items = append(items, item{m, *s})
			}
		}
		for a, n := range l.mirror.lost {
			lost[a] = n
		}
	})
	if err != nil {
		return nil, err
	}
	counts := map[model.Family]mirrorCounts{}
	for _, f := range bothFamilies {
		if counts[f], err = readMirrorCounts(ctx, k, f); err != nil {
			return nil, err
		}
	}
	out := []MirrorStatus{}
	for _, it := range items {
		m := it.Mirror
		st := MirrorStatus{Name: m.Name, InFile: it.Own == nil, State: "running", Until: it.Until, View: "client",
			Sample: fmt.Sprintf("%d/%d", m.Take, m.Of), SampleBy: "flow", Limit: m.RateText(), Families: []MirrorCollector{}}
		if m.Backend {
			st.View = "backend"
		}
		if m.Packets {
			st.SampleBy = "packet"
		}
		switch {
		case it.Stopped != "":
			st.State, st.Reason = "stopped", it.Stopped
		case !it.runs(now):
			st.State, st.Reason = "ended", "its time is over"
		}
		for _, f := range m.Families() {
			a, c := m.Collector(f), counts[f]
			w := l.way(a)
			made := c.mirrored[plan.MirrorKey(m.Name, plan.CopiesMade)]
			mc := MirrorCollector{Collector: a, Device: w.Device, Neighbour: w.Neighbour, Made: made.Packets, Bytes: made.Bytes,
				OverLimit: c.mirrored[plan.MirrorKey(m.Name, plan.CopiesOver)].Packets, Returned: c.returned}
			all := uint64(0)
			for _, o := range items {
				if o.Collector(f) == a {
					all += c.mirrored[plan.MirrorKey(o.Mirror.Name, plan.CopiesMade)].Packets
				}
			}
			mc.Failed = MirrorFailed{NoNeighbour: lost[a], TooBig: c.tooBig}
			if sent := c.sent[a]; all > sent {
				mc.Failed.NoRoute = all - sent
			}
			st.Families = append(st.Families, mc)
		}
		out = append(out, st)
	}
	return out, nil
}

type mirrorCounts struct {
	mirrored map[string]nft.Counter
	sent     map[netip.Addr]uint64
	returned uint64
	tooBig   uint64
}

// readMirrorCounts reads the counters of one family; all are 0 where there are no mirrors.
func readMirrorCounts(ctx context.Context, k Counters, f model.Family) (c mirrorCounts, err error) {
	mirrored, _, returned, errs, _ := plan.MirrorSets(f)
	c.mirrored = map[string]nft.Counter{}
	read := func(s *ruleset.Set, each func(nft.Elem)) {
		if err == nil {
			err = k.Elements(ctx, MirrorsTable(f), s, func(e nft.Elem) bool { each(e); return true })
		}
	}
	// What was made is read before what was sent, so that none on its way looks lost.
	read(mirrored, func(e nft.Elem) { c.mirrored[e.Key] = e.Counter })
	if err == nil {
		c.sent, err = sentTo(ctx, k, f)
	}
	read(returned, func(e nft.Elem) { c.returned += e.Counter.Packets })
	big := string(ruleset.AppendInteger(nil, plan.ErrorTooBig))
	read(errs, func(e nft.Elem) {
		if e.Key == big {
			c.tooBig += e.Counter.Packets
		}
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return c, err
}

// switches has the kernel end the mirrors that end by themselves, also when no weir runs then. A
// mirror that was switched on before keeps its time.
func (e *Engine) switches(ctx context.Context) error {
	var errs []error
	for _, f := range bothFamilies {
		errs = append(errs, e.switchesOf(ctx, f))
	}
	return errors.Join(errs...)
}

func (e *Engine) switchesOf(ctx context.Context, f model.Family) error {
	want := map[string]time.Duration{}
	for _, m := range e.plan.Config.Mirrors {
		if m.For > 0 && !m.Off && m.Collector(f).IsValid() {
			left := m.For
			if end, ok := e.MirrorEnds[m.Name]; ok {
				left = min(left, time.Until(end))
			}
			want[plan.MirrorKey(m.Name)] = left.Truncate(time.Millisecond)
		}
	}
	if len(want) == 0 {
		return nil
	}
	_, _, _, _, running := plan.MirrorSets(f)
	table := MirrorsTable(f)
	var gone []ruleset.Element
	err := e.Kernel.Elements(ctx, table, running, func(el nft.Elem) bool {
		// Without a weir that remembers, what is switched on keeps its time.
		if left, ok := want[el.Key]; ok && (e.MirrorEnds == nil || (left-el.Expires).Abs() < 2*time.Second) {
			delete(want, el.Key)
		} else {
			gone = append(gone, el.Element)
		}
		return true
	})
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		if err := e.Kernel.DeleteElements(ctx, table, running, gone); err != nil {
			return err
		}
		e.have = nil // the generation is another
	}
	for key, left := range want {
		if left <= 0 {
			continue
		}
		gen, err := e.Kernel.AddElements(ctx, table, running, []ruleset.Element{{Key: key}}, left)
		if err != nil {
			return err
		}
		e.Moved(gen)
	}
	return nil
}
