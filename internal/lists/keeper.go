// Package lists keeps the blocklists of a configuration read.
//
//	model.Blocklist ─┐
//	files ───────────┼─▶ Keeper ─ guards ─▶ blocklist.Compiled
//	weir block ──────┘
//
// Files are read again when they change. A list that cannot be read, that would cut off
// what the machine needs, or that changes by more than its max_change, is not taken: the
// last good one stays, also across a restart of weir, and Status says why.
package lists

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/blocklist"
	"weir/internal/model"
)

// Operator names the list that Block fills. No list of the configuration is called so.
const Operator = "operator"

// Options say where things are. The zero value knows no files' copies and protects only
// what the configuration names.
type Options struct {
	Config string // name of the configuration file, for messages
	Dir    string // where copies of the last good files are kept; "": nowhere
	// Protected returns what of the machine itself no list may cut off: its addresses and
	// gateways. It may be nil.
	Protected func() ([]blocklist.Protected, error)
	ReadOnly  bool             // nothing is written to Dir
	Now       func() time.Time // nil: time.Now
	Log       *slog.Logger     // nil: nothing is told
}

// Keeper holds the lists. Its methods may be called from several goroutines. Those that only
// look (Compiled, Status, Lookup, Blocks) wait for nobody, and those that block (Block,
// Unblock) do not wait for those that read files, but for the first Take.
type Keeper struct {
	o     Options
	shown atomic.Pointer[view]

	// files is held, before mu, by who reads files; what of a source tells how its files
	// were is theirs. mu is held for short.
	files sync.Mutex
	first chan struct{} // closed once lists were taken

	mu       sync.Mutex
	cfg      *model.Config // of the last Take
	lists    []*source     // of cfg, in its order
	blocks   []Block       // what operators said, in the order of its time
	operator *blocklist.List
	compiled *blocklist.Compiled
	used     []blocklist.Use // what compiled was made of
	allowed  []netip.Prefix
	guard    string                // why what all lists together come to is not in use; "": it is
	own      []blocklist.Protected // what Options.Protected said last
	ownAt    time.Time
}

// view is what those see who only look.
type view struct {
	compiled *blocklist.Compiled
	status   []Status
	blocks   []Block
}

// show lets others see what there is now.
func (k *Keeper) show() { k.shown.Store(&view{k.compiled, k.status(), k.sorted()}) }

// lookEvery is how often the machine's own addresses are looked at again.
const lookEvery = 5 * time.Second

// New returns a keeper without lists. blocks is what operators said before.
func New(o Options, blocks []Block) *Keeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{o: o, first: make(chan struct{}), blocks: slices.Clone(blocks), compiled: &blocklist.Compiled{}}
	k.show()
	return k
}

// Take makes the lists those of cfg and reads what is new; until that is read, all stays as it
// is. Lists that are bad do not make it fail: Status tells of them.
func (k *Keeper) Take(cfg *model.Config) {
	k.files.Lock()
	defer k.files.Unlock()
	k.mu.Lock()
	var next []*source
	for _, decl := range cfg.Blocklists {
		s := &source{decl: decl}
		i := slices.IndexFunc(k.lists, func(o *source) bool { return o.decl.Name == decl.Name })
		if i >= 0 {
			*s = *k.lists[i]
			s.declare(decl)
			if s.problem != "" { // what was in the way may be gone, such as an allow that was missing
				s.stamps = nil
			}
		} else {
			s.recall(k.o)
		}
		next = append(next, s)
	}
	k.mu.Unlock()
	k.judge(k.look(next, true), func() bool {
		k.cfg, k.lists = cfg, next
		k.expire()
		return true
	})
	select {
	case <-k.first:
	default:
		close(k.first)
	}
}

// look reads what has changed of lists.
func (k *Keeper) look(of []*source, now bool) (take []func() bool) {
	for _, s := range of {
		if fn := s.look(k.o, now); fn != nil {
			take = append(take, fn)
		}
	}
	return take
}

// judge takes what was read, after before, and compiles all lists anew if either reports that
// there is a reason. It reports whether they come to something else than they did.
func (k *Keeper) judge(read []func() bool, before func() bool) (changed bool) {
	k.mu.Lock()
	was := k.compiled
	reason := before()
	for _, take := range read {
		reason = take() || reason
	}
	if reason {
		k.compile()
	}
	changed = k.compiled != was
	k.show()
	of := k.lists
	k.mu.Unlock()
	for _, s := range of {
		s.copyFiles(k.o)
	}
	return changed
}

// Poll reads what has changed and reports whether Compiled is another one now. It is to be
// called about once a second: a file that is being written is left alone until it has not
// changed from one call to the next. Now and then it looks whether the machine has other
// addresses.
func (k *Keeper) Poll() bool {
	k.files.Lock()
	defer k.files.Unlock()
	return k.judge(k.look(k.lists, false), func() bool {
		changed := k.expire()
		if age := k.o.Now().Sub(k.ownAt); age < 0 || age >= lookEvery {
			before := k.own
			if k.protected(); !slices.Equal(before, k.own) {
				changed = true
				for _, s := range k.lists {
					if s.problem != "" { // it may be in nobody's way any more
						s.stamps = nil
					}
				}
			}
		}
		return changed
	})
}

// Accept takes a list as its files have it now, however much it changed; all other guards
// hold. It returns ErrNoList when there is none of that name.
func (k *Keeper) Accept(name string) error {
	k.files.Lock()
	defer k.files.Unlock()
	i := slices.IndexFunc(k.lists, func(s *source) bool { return s.decl.Name == name })
	if i < 0 {
		return ErrNoList
	}
	s := k.lists[i]
	s.stamps, s.anyChange = nil, true
	k.judge(k.look([]*source{s}, true), func() bool { return true })
	k.mu.Lock()
	defer k.mu.Unlock()
	if s.problem != "" {
		return errors.New(s.problem)
	}
	return nil
}

// ErrNoList says that the configuration names no such list.
var ErrNoList = errors.New("no such blocklist")

// Compiled returns what all lists come to.
func (k *Keeper) Compiled() *blocklist.Compiled { return k.shown.Load().compiled }

// compile merges the lists, as far as they are good, and takes the result if it cuts
// nothing off that must not be.
func (k *Keeper) compile() {
	for _, s := range k.lists {
		s.cuts = "" // judged anew: the machine may be another one
	}
	protected := k.protected()
	for range 2*len(k.lists) + 2 { // each turn takes at least one list back, or ends
		uses := k.uses()
		compiled, err := blocklist.Compile(uses, k.allow())
		if err != nil {
			k.refuse(err.Error())
			return
		}
		problems := blocklist.CheckProtected(compiled, protected)
		if len(problems) == 0 {
			k.accept(compiled, uses)
			return
		}
		if !k.takeBack(problems) {
			k.refuse(problems[0].Error())
			return
		}
	}
}

// uses returns the lists in use: of each the newest that no guard has refused.
func (k *Keeper) uses() []blocklist.Use {
	var uses []blocklist.Use
	for _, s := range k.lists {
		if l := s.inUse(); l != nil {
			uses = append(uses, blocklist.Use{List: l, Action: actions[s.decl.Action]})
		}
	}
	if k.operator != nil {
		uses = append(uses, blocklist.Use{List: k.operator, Action: blocklist.Drop})
	}
	return uses
}

var actions = [...]blocklist.Action{model.BlockCount: blocklist.Count, model.BlockReject: blocklist.Reject, model.BlockDrop: blocklist.Drop}

// takeBack puts the last good one in the place of each list that has a problem, or
// nothing where that is the one in use. It reports whether it could do anything.
func (k *Keeper) takeBack(problems []*blocklist.Problem) bool {
	done := false
	for _, s := range k.lists {
		var words []string // all at once, so that nobody has to try again and again
		for _, p := range problems {
			if p.List == s.decl.Name || p.List == "" && s.fresh != nil {
				words = append(words, p.Error())
			}
		}
		if len(words) > 0 && s.inUse() != nil {
			s.takeBack(k.o, strings.Join(words, "\n"))
			done = true
		}
	}
	return done
}

// accept makes the new ones the last good ones. What was made of the same lists stays the
// same, so that nobody thinks that it has changed.
func (k *Keeper) accept(c *blocklist.Compiled, uses []blocklist.Use) {
	k.guard = ""
	if !slices.Equal(uses, k.used) || !slices.Equal(k.allow(), k.allowed) {
		k.compiled, k.used, k.allowed = c, uses, k.allow()
	}
	for _, s := range k.lists {
		s.accept(k.o)
	}
}

// refuse leaves all as it was.
func (k *Keeper) refuse(why string) {
	if k.guard != why {
		k.o.Log.Error("blocklists not taken; those before stay", "error", why)
	}
	k.guard = why
	for _, s := range k.lists {
		if s.fresh != nil {
			s.takeBack(k.o, why)
		}
	}
}

func (k *Keeper) allow() []netip.Prefix {
	if k.cfg == nil {
		return nil
	}
	return k.cfg.Allow
}

// protected is what no list may cut off. Where the machine cannot be asked, what the
// configuration names is protected all the same.
func (k *Keeper) protected() []blocklist.Protected {
	if len(k.lists) == 0 && len(k.blocks) == 0 {
		return nil // nothing could cut anything off
	}
	var out []blocklist.Protected
	if k.cfg != nil {
		out = Named(k.cfg)
	}
	if k.o.Protected == nil {
		return out
	}
	own, err := k.o.Protected()
	k.ownAt = k.o.Now()
	if err == nil || len(k.own) == 0 {
		k.own = own
	}
	if err != nil {
		k.o.Log.Error("the machine's own addresses are not all known; blocklists are checked against those that are", "error", err)
	}
	return append(out, k.own...)
}

// Named returns what of a configuration no list may cut off: backends, and the prefixes from
// which the box is managed.
func Named(cfg *model.Config) []blocklist.Protected {
	var out []blocklist.Protected
	if cfg.Edge != nil {
		for _, p := range cfg.Edge.Management {
			out = append(out, blocklist.Protected{Prefix: p, What: "management " + p.String()})
		}
	}
	seen := map[netip.Addr]bool{}
	for _, s := range cfg.Services {
		for _, b := range s.Backends {
			if !seen[b.Addr] {
				seen[b.Addr] = true
				out = append(out, blocklist.Protected{Prefix: netip.PrefixFrom(b.Addr, b.Addr.BitLen()),
					What: "backend " + b.ID() + " of service " + s.Name})
			}
		}
	}
	return out
}
