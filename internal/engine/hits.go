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

	"weir/internal/nft"
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
	Kernel interface {
		BlockCounters
		Counters
	}

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

	uncounted ruleset.Count
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
		sum := map[netip.Prefix]ruleset.Count{}
		for _, set := range c.Sets {
			err := h.Kernel.Counts(ctx, BlocksTable, set, c.Entries, func(key string, n ruleset.Count) {
				was := sum[c.Prefix(key)]
				sum[c.Prefix(key)] = ruleset.Count{Packets: was.Packets + n.Packets, Bytes: was.Bytes + n.Bytes}
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // a commit in between takes sets away
				return err
			}
		}
		for p, n := range sum {
			now.add(was, b, p, n)
		}
	}
	now.uncounted = h.readUncounted(ctx, b)
	slices.SortFunc(now.list, func(a, b Hit) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.Entry.Compare(b.Entry))
	})
	now.took = time.Since(now.at)
	h.shown.Store(now)
	return nil
}

// add takes what an entry has counted. What went out of the lists a moment ago is none.
func (now *hits) add(was *hits, b *plan.Blocks, p netip.Prefix, n ruleset.Count) {
	e, ok := b.Compiled.Exact(p)
	if !ok || n == (ruleset.Count{}) {
		return
	}
	hit := Hit{Entry: p, Lists: b.Compiled.Set(e.Set), Action: e.Action.String(), Packets: n.Packets, Bytes: n.Bytes}
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

// readUncounted returns what met entries and found no room to be counted there.
func (h *Hits) readUncounted(ctx context.Context, b *plan.Blocks) (sum ruleset.Count) {
	set := b.Uncounted()
	if set == nil {
		return sum
	}
	// Where it can't be read, the next look comes by itself.
	_ = h.Kernel.Elements(ctx, BlocksTable, set, func(e nft.Elem) bool {
		sum.Packets, sum.Bytes = sum.Packets+e.Counter.Packets, sum.Bytes+e.Counter.Bytes
		return true
	})
	return sum
}

// Uncounted returns what packets met entries and were counted for none, because there was no
// room or no memory for another counter, as seen at the last look.
func (h *Hits) Uncounted() ruleset.Count {
	if s := h.shown.Load(); s != nil {
		return s.uncounted
	}
	return ruleset.Count{}
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
	if !ok {
		return n, last, nil
	}
	key := string(ruleset.AppendAddr(nil, e.Prefix.Addr()))
	for _, set := range b.Counts(e) {
		err = h.Kernel.Counts(ctx, BlocksTable, set, []*ruleset.Packed{packedKeys([]string{key})}, func(k string, c ruleset.Count) {
			if k == key {
				n.Packets, n.Bytes = n.Packets+c.Packets, n.Bytes+c.Bytes
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // else the kernel does not block it yet
			return n, last, err
		}
	}
	if s := h.shown.Load(); s != nil && s.seen[e.Prefix].Packets == n.Packets {
		last = s.seen[e.Prefix].LastChange
	} else if s != nil {
		last = time.Now().Round(0)
	}
	return n, last, nil
}
