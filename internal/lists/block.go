package lists

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"weir/internal/blocklist"
)

// Block is what an operator said of addresses.
type Block struct {
	Prefix netip.Prefix `json:"prefix"` // masked
	Why    string       `json:"why,omitempty"`
	By     string       `json:"by,omitempty"`
	At     time.Time    `json:"at"`
	Until  time.Time    `json:"until,omitzero"` // zero: until it is taken back
}

// Text returns the prefix as people write it: a single address without its length.
func (b Block) Text() string {
	if b.Prefix.IsSingleIP() {
		return b.Prefix.Addr().String()
	}
	return b.Prefix.String()
}

// Limits of what operators may say.
const (
	MaxBlocks = 100_000
	MaxWhy    = 200 // bytes
)

// ErrNotBlocked says that an operator did not block that.
var ErrNotBlocked = errors.New("not blocked by an operator")

// Check says what of a block cannot have been said.
func (b Block) Check() error {
	if !b.Prefix.IsValid() || b.Prefix != b.Prefix.Masked() || b.Prefix.Addr().Is4In6() {
		return fmt.Errorf("%s is not a prefix without host bits", b.Prefix)
	}
	if len(b.Why) > MaxWhy || strings.ContainsFunc(b.Why, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("the reason is not allowed; want up to %d bytes that can be printed", MaxWhy)
	}
	return nil
}

// Block blocks b.Prefix. Said again, it takes the place of what was said before. It is
// refused when that would cut off what must not be.
func (k *Keeper) Block(b Block) error {
	if err := b.Check(); err != nil {
		return err
	}
	<-k.first
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.show()
	before := k.blocks
	k.blocks = append(slices.DeleteFunc(slices.Clone(before), func(o Block) bool { return o.Prefix == b.Prefix }), b)
	if err := k.tryBlocks(); err != nil {
		k.blocks = before
		k.list()
		return err
	}
	return nil
}

// tryBlocks takes the operators' list if it cuts nothing off.
func (k *Keeper) tryBlocks() error {
	if len(k.blocks) > MaxBlocks {
		return fmt.Errorf("operators may block up to %d prefixes; longer lists belong into a file", MaxBlocks)
	}
	k.list()
	for _, a := range k.allow() {
		if b := k.blocks[len(k.blocks)-1]; a.Contains(b.Prefix.Addr()) && a.Bits() <= b.Prefix.Bits() {
			return fmt.Errorf("%s is allowed by %s in the configuration, which no block overrules", b.Prefix, a)
		}
	}
	uses := k.uses()
	compiled, err := blocklist.Compile(uses, k.allow())
	if err != nil {
		return err
	}
	for _, p := range blocklist.CheckProtected(compiled, k.protected()) {
		if p.List == Operator || p.List == "" {
			return errors.New(p.Msg)
		}
	}
	k.compiled, k.used = compiled, uses
	return nil
}

// Unblock takes back what an operator said of exactly that prefix.
func (k *Keeper) Unblock(p netip.Prefix) error {
	<-k.first
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.show()
	i := slices.IndexFunc(k.blocks, func(b Block) bool { return b.Prefix == p })
	if i < 0 {
		return ErrNotBlocked
	}
	k.blocks = slices.Delete(slices.Clone(k.blocks), i, i+1)
	k.list()
	k.compile()
	return nil
}

// Blocks returns what operators said, sorted by prefix. Nobody may change it.
func (k *Keeper) Blocks() []Block { return k.shown.Load().blocks }

func (k *Keeper) sorted() []Block {
	out := slices.Clone(k.blocks)
	slices.SortFunc(out, func(a, b Block) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out
}

// expire forgets blocks whose time is over, and reports whether there were any. The first
// call makes the list of what was said before the start.
func (k *Keeper) expire() bool {
	now := k.o.Now()
	kept := slices.DeleteFunc(slices.Clone(k.blocks), func(b Block) bool { return !b.Until.IsZero() && !now.Before(b.Until) })
	if len(kept) == len(k.blocks) && (k.operator != nil || len(kept) == 0) {
		return false
	}
	k.blocks = kept
	k.list()
	return true
}

// list makes the operators' list anew.
func (k *Keeper) list() {
	k.operator = nil
	if len(k.blocks) == 0 {
		return
	}
	b := blocklist.NewBuilder(Operator, blocklist.Options{})
	for i, bl := range k.blocks {
		if err := b.AddEntry(Operator, i+1, 0, bl.Prefix.String()); err != nil {
			k.o.Log.Error("a block cannot be kept", "prefix", bl.Prefix, "error", err) // a prefix always can
		}
	}
	k.operator = b.List()
}
