package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"time"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

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
	Family    string     `json:"family"` // "ip" or "ip6"
	Collector netip.Addr `json:"collector"`
	VXLAN     uint32     `json:"vxlan,omitempty"`     // network identifier of the tunnel to it
	Device    string     `json:"device,omitempty"`    // by which it is reached
	Neighbour string     `json:"neighbour,omitempty"` // the state of its link address: "reachable", "stale", "failed", …
	Made      uint64     `json:"made"`                // copies that were to be made: those sent and those that failed
	Bytes     uint64     `json:"bytes"`               // of these
	OverLimit uint64     `json:"over_limit"`          // left out, because of the limit
	// Failed counts copies of all mirrors with this collector.
	Failed MirrorFailed `json:"failed"`
	// Returned is copies of this family, of all mirrors, that came in again, and were dropped.
	Returned uint64 `json:"returned"`
	// QueueDropped is packets that the queue of the device dropped since weir looks at it, whoever
	// sent them: copies that a slow link has no room for are among them.
	QueueDropped uint64 `json:"queue_dropped"`
}

// MirrorFailed is copies that did not arrive, by why.
type MirrorFailed struct {
	NoRoute     uint64 `json:"no_route"`     // or no memory for it
	NoNeighbour uint64 `json:"no_neighbour"` // nobody answers at the address; looked at once a second
	TooBig      uint64 `json:"too_big"`      // for the link; of the family, at least
	Tunnel      uint64 `json:"tunnel"`       // the tunnel could not send it, of both families, since its device came
}

// MirrorList returns all mirrors, those of the file first.
func (l *Loop) MirrorList(ctx context.Context, k Counters) ([]MirrorStatus, error) {
	type item struct {
		*model.Mirror
		MirrorMemory
	}
	var items []item
	lost, queues := map[netip.Addr]uint64{}, map[netip.Addr]uint64{}
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
		for a, dev := range l.mirror.by {
			queues[a] = l.mirror.queues[dev].total
		}
	})
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return []MirrorStatus{}, nil
	}
	l.unsent.mu.Lock()
	defer l.unsent.mu.Unlock()
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
			w := l.wayOf(m, f)
			if !w.OnLink {
				w = Way{Errors: w.Errors} // a gateway's would say nothing of the collector
			}
			made := c.mirrored[plan.MirrorKey(m.Name, plan.CopiesMade)]
			mc := MirrorCollector{Family: f.String(), Collector: m.CollectorOf(f), VXLAN: m.VXLAN.ID, Device: w.Device, Neighbour: w.Neighbour, Made: made.Packets, Bytes: made.Bytes,
				OverLimit: c.mirrored[plan.MirrorKey(m.Name, plan.CopiesOver)].Packets, Returned: c.returned, QueueDropped: queues[a]}
			all := uint64(0)
			for _, o := range items {
				if o.Collector(f) == a {
					all += c.mirrored[plan.MirrorKey(o.Mirror.Name, plan.CopiesMade)].Packets
				}
			}
			mc.Failed = MirrorFailed{NoNeighbour: lost[a], TooBig: c.tooBig, Tunnel: w.Errors}
			mc.Failed.NoRoute = l.unsent.of(a, all, c.sent[a])
			st.Families = append(st.Families, mc)
		}
		out = append(out, st)
	}
	return out, nil
}

// unsent is how many copies to each collector found no route. What is on its way between two
// looks makes the difference of counters too small for a moment; what is told never gets smaller.
type unsent struct {
	mu    sync.Mutex // held from the look at the counters on
	made  map[netip.Addr]uint64
	after map[netip.Addr]uint64
}

// of returns what it is, with what was made and sent by now.
func (u *unsent) of(a netip.Addr, made, sent uint64) uint64 {
	if u.made == nil {
		u.made, u.after = map[netip.Addr]uint64{}, map[netip.Addr]uint64{}
	}
	if made < u.made[a] { // the counters begin anew
		u.after[a] = 0
	}
	u.made[a] = made
	if made > sent {
		u.after[a] = max(u.after[a], made-sent)
	}
	return u.after[a]
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
