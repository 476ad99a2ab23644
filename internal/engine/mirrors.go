package engine

import (
	"context"
	"errors"
	"fmt"
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
	Dropped   uint64 // packets that the device's queue dropped, whoever sent them, since the device came
	Errors    uint64 // packets that the device of a tunnel could not send
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

// check says what of a mirror that was read back cannot have been said.
func (s *MirrorMemory) check() error {
	if m := s.Own; m != nil && (m.VXLAN.ID > model.MaxVXLAN || m.Name != s.Name || len(m.To) == 0 || m.Take < 1 || m.Of < m.Take || m.Of > model.MaxSample || m.Rate < 0) {
		return fmt.Errorf("mirror %q is none", s.Name)
	}
	return nil
}

// mirrorBook is what a Loop knows of mirrors.
type mirrorBook struct {
	known    []*MirrorMemory
	returned map[model.Family]map[string]uint64 // copies that came in again, by device; nil: not looked yet
	strayed  map[string]time.Time               // when it was said last that copies came by a device without a collector
	lost     map[netip.Addr]uint64              // copies that nobody's neighbour got
	sent     map[netip.Addr]uint64              // at the last look
	lostSaid map[netip.Addr]string              // why copies go nowhere, as it was told
	queues   map[string]*queueDrops             // by device
	by       map[netip.Addr]string              // the device by which a collector was reached last
}

func newMirrorBook(known []*MirrorMemory) mirrorBook {
	return mirrorBook{known: known, strayed: map[string]time.Time{}, lost: map[netip.Addr]uint64{}, sent: map[netip.Addr]uint64{},
		lostSaid: map[netip.Addr]string{}, queues: map[string]*queueDrops{}, by: map[netip.Addr]string{}}
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
	if l.mirror.usurp(cfg) {
		l.unsaved = true
	}
	next := *cfg
	next.Mirrors = l.mirror.all(cfg, now)
	for _, m := range next.Mirrors { // what queues drop is counted from now on
		for _, f := range m.Families() {
			l.lookAtQueue(m, f)
		}
	}
	l.Engine.MirrorEnds = map[string]time.Time{}
	for _, s := range l.mirror.known {
		if !s.Until.IsZero() {
			l.Engine.MirrorEnds[s.Name] = s.Until
		}
	}
	return &next
}

// StartMirror starts a mirror that was stopped or has ended or, with m, one that is in no file.
func (l *Loop) StartMirror(ctx context.Context, by *state.Operator, name string, m *model.Mirror) error {
	var err error
	return firstError(l.Do(ctx, func() {
		now, s := l.Now(), l.mirror.find(name)
		is := m
		if is == nil && s != nil {
			is = s.of(l.file)
		}
		if is != nil {
			if other := l.mirror.tunnelOf(is, l.file); other != "" {
				err = fmt.Errorf("mirror %s has the network identifier %d already; want another", other, is.VXLAN.ID)
				return
			}
		}
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
		if is != nil && is.For > 0 {
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
