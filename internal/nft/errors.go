package nft

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

var (
	// ErrStale says that the kernel's ruleset is not of the generation that the delta
	// was made for. Nothing was changed: read again.
	ErrStale = errors.New("the kernel's ruleset has changed since it was read")

	// ErrUncertain says that the answer was lost and that others changed the ruleset
	// at the same time, so that only reading again tells whether the delta is there.
	ErrUncertain = errors.New("the kernel's answer was lost: the change may have been made or not")
)

// Error is the kernel's refusal of a transaction or of a request. Nothing was changed.
type Error struct {
	Op        string     // "add", "delete", "flush", "read", "commit"
	Object    string     // "rule 3 of chain service/web in table inet weir"; "" for the whole
	Errno     unix.Errno // what the kernel said
	KernelMsg string     // the kernel's own words; "" where it had none
	All       []Refusal  // every message that was refused, the first one included
}

// Refusal is one refused message of a transaction.
type Refusal struct {
	Op, Object string
	Errno      unix.Errno
	KernelMsg  string
}

// Error returns the operation, the object, the errno and the kernel's words.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("nft: " + e.Op)
	if e.Object != "" {
		b.WriteString(" " + e.Object)
	}
	b.WriteString(": " + e.Errno.Error())
	if e.KernelMsg != "" {
		b.WriteString(" (kernel: " + e.KernelMsg + ")")
	}
	if n := len(e.All) - 1; n > 0 {
		fmt.Fprintf(&b, " and %d more", n)
	}
	return b.String()
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

var (
	errUnpackable = errors.New("packed elements in a set of ranges or data, or without verdicts in a map")
	errCounts     = errors.New("counters for elements that have none, or not as many as elements")
)

func errKeyLen(n int, s *ruleset.Set) error {
	return fmt.Errorf("a key of %d bytes where it has %d", n, s.Key.Len())
}
