package conntrack

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// Conn talks to the connection table of one network namespace. Its methods may be
// called from several goroutines; dumps wait for each other, and so do the rest, but a
// Delete may run inside the callback of a Dump.
type Conn struct {
	dumps *socket // long exchanges
	calls *socket // short ones
}

// Open returns a Conn for the network namespace of the calling thread. It needs
// CAP_NET_ADMIN there; a lack of it shows at the first call, as EPERM.
func Open() (*Conn, error) {
	dumps, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("conntrack: open: %w", err)
	}
	calls, err := openSocket()
	if err != nil {
		dumps.close()
		return nil, fmt.Errorf("conntrack: open: %w", err)
	}
	return &Conn{dumps, calls}, nil
}

// Close frees the sockets. Calls under way fail with os.ErrClosed.
func (c *Conn) Close() error { return errors.Join(c.dumps.close(), c.calls.close()) }

// errStop ends an exchange early without being an error.
var errStop = errors.New("stop")

// Dump gives every flow that passes the filter to fn, as the kernel tells of it, until
// fn returns false. The table is not locked meanwhile: a flow that comes or goes during
// the dump may be seen or not, and one may be seen twice when the table is resized.
// fn may call Delete, but not start a second dump. Errors: those of ctx, ErrInterrupted
// (the caller asks again if it needs them all), and the kernel's.
func (c *Conn) Dump(ctx context.Context, filter Filter, fn func(Flow) bool) error {
	err := c.dumps.exchange(ctx, dumpRequest(&filter), func(body []byte) error {
		f, err := parseFlow(body)
		if err != nil {
			return err
		}
		if filter.matches(&f) && !fn(f) {
			return errStop
		}
		return nil
	})
	if err != nil && err != errStop {
		return fmt.Errorf("conntrack: dump: %w", err)
	}
	return nil
}

// Connection is a connection that a service forwards, as weir speaks of it.
type Connection struct {
	Proto   model.Proto
	Client  netip.AddrPort // who opened it
	Listen  netip.AddrPort // where it was opened to
	Backend netip.AddrPort // where it really goes
	Mark    uint32         // the connection mark
}

// DNATed iterates over the flows whose destination is translated. An error ends it: it
// comes last, with an empty Connection, and means what it means for Dump. The loop must
// not start a second dump.
func (c *Conn) DNATed(ctx context.Context) iter.Seq2[Connection, error] {
	return func(yield func(Connection, error) bool) {
		filter := Filter{Status: StatusDNAT, StatusMask: StatusDNAT}
		more := true
		err := c.Dump(ctx, filter, func(f Flow) bool {
			more = yield(Connection{
				Proto:   f.Proto,
				Client:  f.Orig.Src,
				Listen:  f.Orig.Dst,
				Backend: f.Reply.Src,
				Mark:    f.Mark,
			}, nil)
			return more
		})
		if err != nil && more {
			yield(Connection{}, err)
		}
	}
}

// Delete takes a flow, one that a dump gave, out of the table and reports whether it
// was there. The flow is known by protocol, original tuple and zone, and by its ID where
// it has one: a newer connection that uses the same tuple again is left alone.
func (c *Conn) Delete(ctx context.Context, f Flow) (bool, error) {
	// Without a tuple the kernel would take the message for "delete all".
	if !f.Orig.IsValid() {
		return false, fmt.Errorf("conntrack: delete %s: not a valid tuple", f.String())
	}
	err := c.calls.exchange(ctx, deleteRequest(&f), ignore)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("conntrack: delete %s: %w", f.String(), err)
	}
	return true, nil
}

func ignore([]byte) error { return nil }

// Stats returns the statistics of the table.
func (c *Conn) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	r := newRequest(msgStatsCPU, unix.NLM_F_DUMP, 0)
	err := c.calls.exchange(ctx, r, func(b []byte) error { return addStats(b, &s) })
	if err != nil {
		return Stats{}, fmt.Errorf("conntrack: statistics: %w", err)
	}
	return s, nil
}

// Usage returns how many flows there are, and how many there may be: what the sysctls
// net.netfilter.nf_conntrack_count and nf_conntrack_max say. limit is 0 where it is not
// told, by kernels before 4.18.
func (c *Conn) Usage(ctx context.Context) (count, limit uint64, err error) {
	r := newRequest(msgStats, unix.NLM_F_ACK, 0)
	err = c.calls.exchange(ctx, r, func(b []byte) error { return addGlobal(b, &count, &limit) })
	if err != nil {
		return 0, 0, fmt.Errorf("conntrack: usage: %w", err)
	}
	return count, limit, nil
}
