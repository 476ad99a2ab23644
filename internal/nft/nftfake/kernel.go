package nftfake

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

// Kernel is a kernel in memory. Its methods are those of [nft.Conn], and those by which
// a test makes it fail. It is safe for concurrent use.
type Kernel struct {
	mu       sync.Mutex
	gen      uint32
	tables   []*table
	faults   []fault // what the next commits meet, in this order
	random   *rand.Rand
	rate     float64
	watchers []chan nft.Event
	commits  int
	barred   map[nft.TableRef]unix.Errno
	meet     func(*ruleset.Delta)
}

type fault struct {
	errno unix.Errno // refuse with it
	lose  bool       // commit, and lose the answer
	other bool       // somebody else commits just before
}

// New returns an empty kernel of generation 1.
func New() *Kernel { return &Kernel{gen: 1} }

// Refuse makes the next commit that has no fault yet fail with errno and change nothing.
func (k *Kernel) Refuse(errno unix.Errno) { k.fault(fault{errno: errno}) }

// Pass makes the next commit that has no fault yet go as it should.
func (k *Kernel) Pass() { k.fault(fault{}) }

// LoseAnswer makes the next commit that has no fault yet happen and return
// [nft.ErrUncertain] all the same.
func (k *Kernel) LoseAnswer() { k.fault(fault{lose: true}) }

// Interfere makes somebody else commit just before the next commit that has no fault
// yet, so that it returns [nft.ErrStale].
func (k *Kernel) Interfere() { k.fault(fault{other: true}) }

// Bar makes all commits that concern a table fail with errno and change nothing, until it is
// called with 0.
func (k *Kernel) Bar(ref nft.TableRef, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.barred = map[nft.TableRef]unix.Errno{ref: errno}
}

// Meet has fn called with what is about to be committed; the commit waits until it returns,
// and others may come meanwhile.
func (k *Kernel) Meet(fn func(*ruleset.Delta)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.meet = fn
}

func (k *Kernel) fault(f fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults = append(k.faults, f)
}

// FailAtRandom gives each commit one of the faults with probability rate, 0 to 1. The
// same seed gives the same faults.
func (k *Kernel) FailAtRandom(seed uint64, rate float64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.random, k.rate = rand.New(rand.NewPCG(seed, seed)), rate
}

// Commits returns how many commits changed the ruleset, those by Edit not counted.
func (k *Kernel) Commits() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.commits
}

// Flush deletes all tables, as `nft flush ruleset` does.
func (k *Kernel) Flush() {
	k.mu.Lock()
	defer k.mu.Unlock()
	touched := k.refs()
	k.tables = nil
	k.committed(otherPID, "nft", touched)
}

// FlushChain deletes the rules of a chain, as somebody else might.
func (k *Kernel) FlushChain(ref nft.TableRef, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := find(k.tables, ref); t != nil {
		if c := t.chain(name); c != nil {
			c.rules = nil
		}
	}
	k.committed(otherPID, "nft", []nft.TableRef{ref})
}

// EditRule makes the i-th rule of a chain, counted from 0, drop packets instead of what it
// does, and leaves its comment as it is, as `nft replace rule` can. It reports whether
// there is such a rule.
func (k *Kernel) EditRule(ref nft.TableRef, name string, i int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.chain(name) == nil || i >= len(t.chain(name).rules) {
		return false
	}
	c := t.chain(name)
	c.rules = slices.Clone(c.rules)
	c.rules[i].Stmts = []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.DropPacket}}
	k.committed(otherPID, "nft", []nft.TableRef{ref})
	return true
}

// SwitchOff makes a table dormant, as `nft add table … { flags dormant; }` does.
func (k *Kernel) SwitchOff(ref nft.TableRef) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := find(k.tables, ref); t != nil {
		t.off = true
	}
	k.committed(otherPID, "nft", []nft.TableRef{ref})
}

// Put puts an element into a set, dynamic or not, as packets or somebody else might; one
// with the same key is replaced. It reports whether there is such a set. Packets move no
// generation, so this moves none.
func (k *Kernel) Put(ref nft.TableRef, name string, e nft.Elem) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.set(name) == nil {
		return false
	}
	t.set(name).put(e)
	return true
}

// Touch makes somebody else commit something that has to do with no table of weir's.
func (k *Kernel) Touch() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.committed(otherPID, "nft", []nft.TableRef{{Family: ruleset.Inet, Name: "other"}})
}

// Process ids in events.
const (
	weirPID  = 1000
	otherPID = 2000
)

// committed moves the generation and tells who watches.
func (k *Kernel) committed(pid int, process string, touched []nft.TableRef) {
	k.gen = max(k.gen+1, 1)
	e := nft.Event{Gen: k.gen, PID: pid, Process: process, Tables: touched}
	for _, w := range k.watchers {
		select {
		case w <- e:
		default: // like the kernel's, events get lost
		}
	}
}

func (k *Kernel) refs() []nft.TableRef {
	var refs []nft.TableRef
	for _, t := range k.tables {
		refs = append(refs, t.ref)
	}
	return refs
}

// Generation returns the generation of the ruleset.
func (k *Kernel) Generation() (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gen, nil
}

// Close does nothing.
func (k *Kernel) Close() error { return nil }

// Monitor returns the commits that follow, as [nft.Conn.Monitor] does.
func (k *Kernel) Monitor(ctx context.Context) (<-chan nft.Event, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ch := make(chan nft.Event, 16)
	k.watchers = append(k.watchers, ch)
	context.AfterFunc(ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.watchers = slices.DeleteFunc(k.watchers, func(w chan nft.Event) bool { return w == ch })
		close(ch)
	})
	return ch, nil
}

// Read returns those of the tables that are there, as [nft.Conn.Read] does.
func (k *Kernel) Read(ctx context.Context, refs []nft.TableRef, expect *ruleset.Ruleset) (*ruleset.Ruleset, uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	rs := &ruleset.Ruleset{}
	for _, ref := range refs {
		if t := find(k.tables, ref); t != nil {
			var want *ruleset.Table
			if expect != nil {
				want = expect.Table(ref.Family, ref.Name)
			}
			rs.Tables = append(rs.Tables, t.read(want))
		}
	}
	return rs, k.gen, nil
}

// Apply brings a delta into the ruleset, all of it or nothing, as [nft.Conn.Apply] does.
func (k *Kernel) Apply(ctx context.Context, d *ruleset.Delta, gen uint32) (uint32, error) {
	k.mu.Lock()
	meet := k.meet
	k.mu.Unlock()
	if meet != nil {
		meet(d)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if d.Empty() {
		return gen, nil
	}
	if _, err := nft.Encode(d, gen); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	f := k.nextFault()
	for _, td := range d.Tables {
		if errno := k.barred[nft.TableRef{Family: td.Table.Family, Name: td.Table.Name}]; errno != 0 {
			f = fault{errno: errno}
		}
	}
	if f.other {
		k.committed(otherPID, "nft", []nft.TableRef{{Family: ruleset.Inet, Name: "other"}})
	}
	if gen != 0 && gen != k.gen {
		return 0, nft.ErrStale
	}
	if f.errno != 0 {
		e := nft.Refusal{Op: "commit", Errno: f.errno, KernelMsg: "as the test wants"}
		return 0, &nft.Error{Op: e.Op, Errno: e.Errno, KernelMsg: e.KernelMsg, All: []nft.Refusal{e}}
	}
	tables, err := apply(k.tables, d)
	if err != nil {
		return 0, err
	}
	k.tables = tables
	k.commits++
	var touched []nft.TableRef
	for _, td := range d.Tables {
		touched = append(touched, nft.TableRef{Family: td.Table.Family, Name: td.Table.Name})
	}
	k.committed(weirPID, "weir", touched)
	if f.lose {
		return 0, nft.ErrUncertain
	}
	return k.gen, nil
}

func (k *Kernel) nextFault() fault {
	if len(k.faults) > 0 {
		f := k.faults[0]
		k.faults = k.faults[1:]
		return f
	}
	if k.random == nil || k.random.Float64() >= k.rate {
		return fault{}
	}
	return []fault{{errno: unix.ENOMEM}, {errno: unix.EBUSY}, {lose: true}, {other: true}}[k.random.IntN(4)]
}

// Elements calls each for the elements of a set, as [nft.Conn.Elements] does, sorted by
// key.
func (k *Kernel) Elements(ctx context.Context, ref nft.TableRef, set *ruleset.Set, each func(nft.Elem) bool) error {
	elems, err := k.elements(ref, set)
	if err != nil {
		return err
	}
	for _, e := range elems {
		if !each(e) {
			return nil
		}
	}
	return ctx.Err()
}

func (k *Kernel) elements(ref nft.TableRef, set *ruleset.Set) ([]nft.Elem, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := find(k.tables, ref)
	if t == nil || t.set(set.Name) == nil {
		return nil, &nft.Error{Op: "read", Object: "the elements of " + set.Name, Errno: unix.ENOENT}
	}
	return t.set(set.Name).sorted(), nil
}

// DeleteElements takes elements out of a set, as [nft.Conn.DeleteElements] does.
func (k *Kernel) DeleteElements(ctx context.Context, ref nft.TableRef, set *ruleset.Set, elems []ruleset.Element) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	t := find(k.tables, ref)
	if t == nil || t.set(set.Name) == nil {
		return nil
	}
	for _, e := range elems {
		delete(t.set(set.Name).elems, idOf(&e))
	}
	k.committed(weirPID, "weir", []nft.TableRef{ref})
	return nil
}

// AddElements puts elements into a dynamic set, as [nft.Conn.AddElements] does. They stay
// until they are deleted: the fake has no clock.
func (k *Kernel) AddElements(ctx context.Context, ref nft.TableRef, set *ruleset.Set, elems []ruleset.Element, timeout time.Duration) (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	t := find(k.tables, ref)
	if t == nil || t.set(set.Name) == nil {
		return 0, &nft.Error{Op: "add", Object: "elements of " + set.Name, Errno: unix.ENOENT}
	}
	s := t.set(set.Name)
	grown := maps.Clone(s.elems)
	for _, e := range elems {
		if _, there := grown[idOf(&e)]; !there {
			grown[idOf(&e)] = nft.Elem{Element: e, Timeout: timeout, Expires: timeout}
		}
	}
	if len(grown) > s.Size {
		return 0, &nft.Error{Op: "add", Object: "elements of " + set.Name, Errno: unix.ENFILE}
	}
	if len(elems) > 0 {
		s.elems = grown
		k.committed(weirPID, "weir", []nft.TableRef{ref})
	}
	return k.gen, nil
}

func sortElems(elems []nft.Elem) {
	slices.SortFunc(elems, func(a, b nft.Elem) int { return strings.Compare(a.Key+a.KeyEnd, b.Key+b.KeyEnd) })
}
