package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weir/internal/conntrack"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/nudge"
	"weir/internal/plan"
)

const (
	// resetFor is how long the packets of a connection that was cut off are answered with
	// a reset. It is beyond the time that a nudge, its answer and their retransmission
	// take, and below that in which anybody could mistake the box for the backend.
	resetFor = time.Minute
	// cutAtOnce is how many connections are cut off together.
	cutAtOnce = 2000
)

// Nudger makes the clients of connections speak. Implementation: nudge.Sender.
type Nudger interface {
	// Send returns at once, and tells how many connections it leaves out.
	Send([]nudge.Pair) int
}

// Refuse has the rules answer further packets of streams with a reset. It returns those
// of which that is true now; streams of a family that no service resets are not among
// them, and are no error.
func (e *Engine) Refuse(ctx context.Context, streams []plan.Stream) ([]plan.Stream, error) {
	var done []plan.Stream
	var errs []error
	for _, r := range e.plan.Resets(streams) {
		gen, err := e.Kernel.AddElements(ctx, Tables[0], r.Set, r.Elems, resetFor)
		if err != nil {
			errs = append(errs, fmt.Errorf("clients are not reset: %w", err))
			continue
		}
		e.Moved(gen)
		done = append(done, r.Streams...)
	}
	return done, errors.Join(errs...)
}

// cutter ends connections, some at a time: their packets are refused first, so that none
// gets to another backend, and the clients are nudged last, when nothing is known any
// more of the connections to which their answers would belong.
type cutter struct {
	refuse func(context.Context, []plan.Stream) ([]plan.Stream, error) // nil: nobody is reset
	remove func(context.Context, conntrack.Flow) (bool, error)
	nudges Nudger // nil: nobody is nudged

	flows   []conntrack.Flow
	streams []plan.Stream // those of flows that are to be reset
	ended   int
	errs    []error
}

// add takes a connection of a service.
func (c *cutter) add(ctx context.Context, s *model.Service, f conntrack.Flow) {
	c.flows = append(c.flows, f)
	if s.OnDown == model.Reset && open(f) {
		c.streams = append(c.streams, plan.Stream{Client: unzoned(f.Orig.Src), Listen: unzoned(f.Orig.Dst)})
	}
	if len(c.flows) >= cutAtOnce {
		c.flush(ctx)
	}
}

// open reports whether somebody may wait for more on a TCP connection: from the server's
// answer to its SYN until both sides have closed it.
func open(f conntrack.Flow) bool {
	const synRecv, closeWait = 2, 5 // enum tcp_conntrack; 3 and 4 are ESTABLISHED, FIN_WAIT
	return f.Proto == model.TCP && f.TCPState >= synRecv && f.TCPState <= closeWait
}

// flush ends what was taken. Whatever fails, the connections end.
func (c *cutter) flush(ctx context.Context) {
	var refused []plan.Stream
	if c.refuse != nil && len(c.streams) > 0 {
		var err error
		refused, err = c.refuse(ctx, c.streams)
		c.errs = append(c.errs, err)
	}
	for _, f := range c.flows {
		gone, err := c.remove(ctx, f)
		if gone {
			c.ended++
		}
		c.errs = append(c.errs, err)
	}
	c.flows, c.streams = c.flows[:0], c.streams[:0]
	if c.nudges == nil || len(refused) == 0 {
		return
	}
	pairs := make([]nudge.Pair, len(refused))
	for i, s := range refused {
		pairs[i] = nudge.Pair{From: s.Listen, To: s.Client}
	}
	if left := c.nudges.Send(pairs); left > 0 {
		c.errs = append(c.errs, fmt.Errorf("%d clients learn it only when they speak: too many at once", left))
	}
}

// Silent returns those of the connections whose clients have sent nothing since they were
// refused, though each was sent that many nudges: the kernel counts both. Those of which
// nothing is known any more are not among them: no rule would answer.
func Silent(ctx context.Context, k Counters, pairs []nudge.Pair, sent int) ([]nudge.Pair, error) {
	silent := make(map[string]bool, len(pairs))
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if !slices.ContainsFunc(pairs, func(p nudge.Pair) bool { return model.FamilyOf(p.To.Addr()) == f }) {
			continue
		}
		err := k.Elements(ctx, Tables[0], plan.ResetSet(f), func(e nft.Elem) bool {
			silent[e.Key] = e.Counter.Packets <= uint64(sent)
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(pairs), func(p nudge.Pair) bool {
		return !silent[plan.Stream{Client: p.To, Listen: p.From}.Key()]
	}), nil
}

func unzoned(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
