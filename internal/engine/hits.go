package engine

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/plan"
	"weir/internal/ruleset"
)

// Hit is an entry of blocklists that packets met. Its JSON form is part of weir's interface.
type Hit struct {
	Entry   netip.Prefix `json:"entry"`
	Lists   []string     `json:"lists"` // that hold it
	Action  string       `json:"action"`
	Packets uint64       `json:"packets"`
	Bytes   uint64       `json:"bytes"` // of layer 3
	// LastChange is when it was first seen that the counter is what it is; zero: before the
	// first look.
	LastChange time.Time `json:"last_change,omitzero"`
}

// Hits looks at the counters of blocklists now and then and remembers when they changed. Its
// methods may be called from several goroutines.
type Hits struct {
	Kernel BlockCounters

	mu    sync.Mutex // held by who looks
	shown atomic.Pointer[hits]
}

// hits is what was seen at one look.
type hits struct {
	at   time.Time
	took time.Duration
	list []Hit // most packets first
	seen map[netip.Prefix]Hit
	sums map[string]ruleset.Count // by list, since the first look
}

// Look reads the counters of all entries of b.
func (h *Hits) Look(ctx context.Context, b *plan.Blocks) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.shown.Load()
	now := &hits{at: time.Now(), seen: map[netip.Prefix]Hit{}, sums: map[string]ruleset.Count{}}
	if was != nil {
		for name, n := range was.sums {
			now.sums[name] = n
		}
	}
	for _, c := range b.Counted() {
		err := h.Kernel.Counts(ctx, BlocksTable, c.Set, c.Set.Packed, func(key string, n ruleset.Count) bool {
			if n != (ruleset.Count{}) {
				now.add(was, b, c.Prefix(key), n)
			}
			return true
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a commit in between takes sets away
			return err
		}
	}
	slices.SortFunc(now.list, func(a, b Hit) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.Entry.Compare(b.Entry))
	})
	now.took = time.Since(now.at)
	h.shown.Store(now)
	return nil
}

// add takes a counter that is not zero.
func (now *hits) add(was *hits, b *plan.Blocks, p netip.Prefix, n ruleset.Count) {
	hit := Hit{Entry: p, Packets: n.Packets, Bytes: n.Bytes, Lists: []string{}}
	if e, ok := b.Compiled.Exact(p); ok {
		hit.Lists, hit.Action = b.Compiled.Set(e.Set), e.Action.String()
	}
	if was != nil {
		old := was.seen[p]
		if old.Packets > n.Packets { // it began anew
			old = Hit{}
		}
		hit.LastChange = old.LastChange
		if old.Packets != n.Packets {
			hit.LastChange = now.at.Round(0)
		}
		for _, name := range hit.Lists {
			sum := now.sums[name]
			sum.Packets += n.Packets - old.Packets
			sum.Bytes += n.Bytes - old.Bytes
			now.sums[name] = sum
		}
	}
	now.list, now.seen[p] = append(now.list, hit), hit
}

// Top returns the n entries that packets met most, of one list or, for "", of all, how many
// there are that any met, and when that was seen.
func (h *Hits) Top(n int, list string) (top []Hit, all int, at time.Time) {
	top = []Hit{}
	s := h.shown.Load()
	if s == nil {
		return top, 0, at
	}
	for _, hit := range s.list {
		if list != "" && !slices.Contains(hit.Lists, list) {
			continue
		}
		if all++; len(top) < n {
			top = append(top, hit)
		}
	}
	return top, all, s.at.Round(0)
}

// Sums returns what entries of each list have counted since the first look, as seen last.
// What several lists hold counts in each of them.
func (h *Hits) Sums() map[string]ruleset.Count {
	if s := h.shown.Load(); s != nil {
		return s.sums
	}
	return nil
}

// Times of looks by themselves.
const (
	lookEvery = 10 * time.Second
	lookShare = 100 // a look takes at most one part in that many of the time
)

// Run looks now and then until ctx ends; blocks says at what.
func (h *Hits) Run(ctx context.Context, blocks func(context.Context) (*plan.Blocks, error)) {
	for {
		wait := lookEvery
		if b, err := blocks(ctx); err == nil && len(b.Counted()) > 0 {
			if h.Look(ctx, b) == nil {
				wait = max(wait, lookShare*h.shown.Load().took)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Count returns what the entry of an address has counted until now, and when that changed
// last, as far as it is known.
func (h *Hits) Count(ctx context.Context, b *plan.Blocks, a netip.Addr) (n ruleset.Count, last time.Time, err error) {
	if b == nil || b.Compiled == nil {
		return n, last, nil
	}
	e, ok := b.Compiled.Find(a)
	set := b.Set(e)
	if !ok || set == nil {
		return n, last, nil
	}
	one := &ruleset.Packed{Stride: set.Key.Len(), Keys: string(ruleset.AppendAddr(nil, e.Prefix.Addr()))}
	err = h.Kernel.Counts(ctx, BlocksTable, set, []*ruleset.Packed{one}, func(_ string, c ruleset.Count) bool {
		n = c
		return false
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the kernel does not block it yet
	}
	if s := h.shown.Load(); s != nil && s.seen[e.Prefix].Packets == n.Packets {
		last = s.seen[e.Prefix].LastChange
	} else if s != nil {
		last = time.Now().Round(0)
	}
	return n, last, err
}
