// Package binding writes down which client had which address and port of an egress pool, and
// when, and answers questions about it.
//
// Its one idea: the log is a list of lines that stands for itself. Connections that begin and
// end come as events from the kernel. Whatever keeps a line from being written (events that
// the kernel lost, a disk that is full, a weir that did not run) is a line itself, and each
// file begins with all that is open, so that a reader knows what he can rely on. docs/BINDINGS.md
// describes the lines.
//
// [Book] is the pure part: events and dumps in, lines out. [Logger] is the goroutine that has
// a clock, a kernel and a file. [Who] reads logs.
package binding
