package look

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/host"
	"weir/internal/model"
)

// Times of the watch. What happens is known after settle at most, but for what the kernel
// tells nobody of: sysctls of the whole box, after every.
const (
	every  = time.Second
	settle = 100 * time.Millisecond // notifications come in bunches
	// rounds is how many looks it takes until every route has been looked at again, should
	// a notification have been missed (a route that goes with its device has none).
	rounds = 60
	// addressRounds is the same for the list of addresses, and default routes.
	addressRounds = 15
	// The watch rests restFactor times as long as a look took, and at most every: where
	// devices flap beside 100,000 backends it must not take a processor for itself.
	restFactor = 4
)

// Watcher tells what is wrong on the box with a configuration, and when that changes.
type Watcher struct {
	look     *Looker
	events   *os.File // notifications
	findings chan []host.Finding
	wake     chan struct{}

	mu     sync.Mutex // of what follows
	config *model.Config
	known  *host.Needs // that routes are looked up for
	dirty  dirty

	// Run's own.
	needs *host.Needs
	facts *host.Facts
	told  []host.Finding // nil: nothing yet
	next  int            // the backend to look at again
	round int
}

// dirty is what may have changed.
type dirty struct {
	all      bool           // anything
	prefixes []netip.Prefix // the routes to these
}

// NewWatcher returns a Watcher for the network namespace of the calling thread.
func NewWatcher() (*Watcher, error) {
	l, err := Open()
	if err != nil {
		return nil, err
	}
	fd, err := subscribe()
	if err != nil {
		l.Close()
		return nil, err
	}
	return &Watcher{look: l, events: os.NewFile(uintptr(fd), "routing events"),
		findings: make(chan []host.Finding, 1), wake: make(chan struct{}, 1)}, nil
}

// groups are what the kernel tells of. Netconf is sysctls of devices.
var groups = []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}

func subscribe() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("look: routing events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("look: bind routing events: %w", err)
	}
	setBuffer(fd, recvBuffer)
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil && err != unix.EINVAL {
			unix.Close(fd)
			return -1, fmt.Errorf("look: join routing events: %w", err)
		}
	}
	return fd, nil
}

// Set says for which configuration to watch, from now on. Until the first call nothing is
// watched.
func (w *Watcher) Set(cfg *model.Config) {
	w.mu.Lock()
	w.config = cfg
	w.mu.Unlock()
	w.poke()
}

func (w *Watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Findings delivers all that is wrong, each time that has changed: the last state of it,
// for whoever is late. What weir mends by itself is not among them.
func (w *Watcher) Findings() <-chan []host.Finding { return w.findings }

// Run watches until ctx ends, and frees the sockets. It must run in the namespace of
// NewWatcher, and only once.
func (w *Watcher) Run(ctx context.Context) {
	done := make(chan struct{})
	go func() { defer close(done); w.read() }()
	defer func() { w.events.Close(); w.look.Close() }()
	defer func() { w.events.SetReadDeadline(time.Unix(1, 0)); <-done }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		wait := time.Duration(0)
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			wait = settle
		case <-tick.C:
		}
		if !sleep(ctx, wait) {
			return
		}
		start := time.Now()
		w.step()
		if took := time.Since(start); took > settle/4 && !sleep(ctx, min(restFactor*took, every)) {
			return
		}
	}
}

// sleep reports whether it slept to its end.
func sleep(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// step looks, and tells what is new.
func (w *Watcher) step() {
	changed, err := w.refresh()
	if w.needs == nil || !changed && err == nil {
		return
	}
	var list []host.Finding
	if err != nil {
		list = []host.Finding{{ID: host.NotReadable, Severity: host.Warning, Subject: "netlink", Services: []string{},
			Found: "the box could not be looked at: " + err.Error(), Means: "what goes wrong there is not seen; it is tried again"}}
	} else {
		list = host.Judge(w.needs, w.facts)
		w.facts.Remember()
		// weir puts its addresses back within a second, and says so itself.
		list = slices.DeleteFunc(list, func(f host.Finding) bool { return f.ID == host.AddressMissing })
	}
	if w.told != nil && slices.EqualFunc(list, w.told, func(a, b host.Finding) bool { return a.Same(b) && a.Fix == b.Fix }) {
		return
	}
	w.told = append([]host.Finding{}, list...)
	select {
	case <-w.findings: // nobody wanted it
	default:
	}
	w.findings <- slices.Clone(w.told)
}

// take returns what may have changed since the last call, and a new configuration.
func (w *Watcher) take() (*model.Config, dirty) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cfg, d := w.config, w.dirty
	w.config, w.dirty = nil, dirty{}
	return cfg, d
}

// refresh brings the facts up to date and reports whether anything changed.
func (w *Watcher) refresh() (changed bool, err error) {
	cfg, d := w.take()
	if cfg != nil {
		w.adopt(cfg)
		d.all, changed = true, true
	}
	if w.needs == nil {
		return false, nil
	}
	before := *w.facts
	w.look.sysctls(w.facts)
	if err := w.look.links(w.facts); err != nil {
		return w.failed(err)
	}
	moved := !slices.Equal(before.Links, w.facts.Links)
	w.round++
	d.all = d.all || moved
	if d.all || w.round%addressRounds == 0 || slices.ContainsFunc(d.prefixes, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		if err := w.addresses(); err != nil {
			return w.failed(err)
		}
	}
	newRoutes, err := w.ways(d)
	if err != nil {
		return w.failed(err)
	}
	now := w.facts
	return changed || moved || newRoutes || now.RPFilterAll != before.RPFilterAll || now.TCPLoose != before.TCPLoose || now.TCPLiberal != before.TCPLiberal || !maps.Equal(now.Forward, before.Forward) ||
		!slices.Equal(now.Held, before.Held) || !slices.Equal(now.Defaults, before.Defaults) ||
		now.Conntrack.Level != before.Conntrack.Level || now.Conntrack.Max != before.Conntrack.Max ||
		now.Conntrack.Buckets != before.Conntrack.Buckets || now.Conntrack.NoEvents != before.Conntrack.NoEvents, nil
}

// failed has the next look begin from nothing.
func (w *Watcher) failed(err error) (bool, error) {
	w.mu.Lock()
	w.dirty.all = true
	w.mu.Unlock()
	w.facts.Links = nil // so that it will have changed
	return true, err
}

func (w *Watcher) addresses() error {
	if err := w.look.held(w.facts); err != nil {
		return err
	}
	return w.look.defaults(w.facts)
}

// adopt begins to watch for another configuration.
func (w *Watcher) adopt(cfg *model.Config) {
	n := host.NeedsOf(cfg)
	f := &host.Facts{Routes: make([]*host.Route, len(n.Backends)), SourceRoutes: make([]*host.Route, len(n.Sources))}
	if w.needs != nil {
		f.Inherit(n, w.facts, w.needs)
		f.Conntrack.Level = w.facts.Conntrack.Level
	}
	w.needs, w.facts, w.next = n, f, 0
	w.mu.Lock()
	w.known = n
	w.mu.Unlock()
}

// ways looks up the routes that may have changed, and some of the others.
func (w *Watcher) ways(d dirty) (changed bool, err error) {
	total := len(w.needs.Backends)
	var parts [][2]int
	switch {
	case d.all:
		parts = [][2]int{{0, total}}
	default:
		for _, p := range d.prefixes {
			from, to := w.needs.Within(p)
			parts = append(parts, [2]int{from, to})
		}
		if w.next >= total {
			w.next = 0
		}
		end := min(w.next+total/rounds+1, total)
		parts = append(parts, [2]int{w.next, end})
		w.next = end
	}
	for _, p := range parts {
		before := slices.Clone(w.facts.Routes[p[0]:p[1]])
		if err := w.look.ways(w.needs.Backends, w.facts.Routes, p[0], p[1]); err != nil {
			return false, err
		}
		changed = changed || !slices.Equal(before, w.facts.Routes[p[0]:p[1]])
	}
	before := slices.Clone(w.facts.SourceRoutes)
	err = w.look.ways(w.needs.Sources, w.facts.SourceRoutes, 0, len(w.needs.Sources))
	return changed || !slices.Equal(before, w.facts.SourceRoutes), err
}

// read takes notifications until the file's deadline, and notes what they are about.
func (w *Watcher) read() {
	buf := make([]byte, answerSize)
	for {
		n, err := w.events.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost
			w.note(dirty{all: true})
		case err != nil:
			return
		}
		for h, body := range messages(buf[:max(n, 0)]) {
			w.event(h.typ, body)
		}
	}
}

// event notes what a notification is about.
func (w *Watcher) event(typ uint16, body []byte) {
	if typ != unix.RTM_NEWROUTE && typ != unix.RTM_DELROUTE {
		w.note(dirty{all: true})
		return
	}
	if e, ok := parseRoute(body); ok {
		w.note(dirty{prefixes: []netip.Prefix{e.dst}})
	}
}

// mostPrefixes is how many networks are remembered one by one between two looks.
const mostPrefixes = 64

func (w *Watcher) note(d dirty) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// A router hears of thousands of routes that lead to no backend.
	d.prefixes = slices.DeleteFunc(d.prefixes, func(p netip.Prefix) bool {
		if w.known == nil || slices.Contains(w.dirty.prefixes, p) {
			return true
		}
		from, to := w.known.Within(p)
		return from == to && p.Bits() > 0
	})
	if !d.all && len(d.prefixes) == 0 {
		return
	}
	w.dirty.prefixes = append(w.dirty.prefixes, d.prefixes...)
	if w.dirty.all = w.dirty.all || d.all || len(w.dirty.prefixes) > mostPrefixes; w.dirty.all {
		w.dirty.prefixes = nil
	}
	w.poke()
}
