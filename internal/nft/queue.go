package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// queueForm is how a kernel is told to give packets to user space.
type queueForm uint8

const (
	queueUnknown queueForm = iota // not asked yet; written as queueNative
	queueNative                   // nft's own expression (CONFIG_NFT_QUEUE)
	queueXT                       // the target NFQUEUE of xtables (CONFIG_NETFILTER_XT_TARGET_NFQUEUE)
)

// Flags of the expression (NFT_QUEUE_FLAG_*), and of the target (NFQ_FLAG_* of xt_NFQUEUE.h).
const (
	queueBypass = 1
	queueFanout = 2
)

// What the target is known by. Revision 3 is of Linux 3.10.
const (
	xtQueue     = "NFQUEUE"
	xtQueueRev  = 3
	xtQueueInfo = 8 // struct xt_NFQ_info_v3 of three 16-bit numbers in the host's order, aligned
)

// ErrNoQueue says that the kernel can give no packets to user space.
var ErrNoQueue = errors.New("the kernel can give no packets to user space: it has neither nft's queue (module nft_queue) " +
	"nor the target NFQUEUE (modules nft_compat, xt_NFQUEUE)")

func (r *ruleEnc) queue(q ruleset.Queue) {
	if q.Last < q.First {
		r.fail("queues %d to %d are none", q.First, q.Last)
		return
	}
	flags := uint16(0)
	if q.Bypass {
		flags |= queueBypass
	}
	if q.Fanout {
		flags |= queueFanout
	}
	total := q.Last - q.First + 1
	if total == 0 {
		r.fail("queues %d to %d are one more than there can be", q.First, q.Last)
		return
	}
	if r.w.queue == queueXT {
		info := binary.NativeEndian.AppendUint16(nil, q.First)
		info = binary.NativeEndian.AppendUint16(info, total)
		info = binary.NativeEndian.AppendUint16(info, flags)
		e := r.open("target")
		r.w.str(unix.NFTA_TARGET_NAME, xtQueue)
		r.w.u32(unix.NFTA_TARGET_REV, xtQueueRev)
		r.w.raw(unix.NFTA_TARGET_INFO, string(append(info, make([]byte, xtQueueInfo-len(info))...)))
		r.close(e)
		return
	}
	e := r.open("queue")
	for typ, v := range []uint16{unix.NFTA_QUEUE_NUM: q.First, unix.NFTA_QUEUE_TOTAL: total, unix.NFTA_QUEUE_FLAGS: flags} {
		if typ != unix.NFTA_QUEUE_UNSPEC {
			r.w.raw(uint16(typ), string(binary.BigEndian.AppendUint16(nil, v)))
		}
	}
	r.close(e)
}

// asQueue makes the attributes of a target those of nft's expression that does the same. It
// reports false for any other target.
func asQueue(vals *[maxExprAttr]string) bool {
	info := vals[unix.NFTA_TARGET_INFO]
	if cstr(vals[unix.NFTA_TARGET_NAME]) != xtQueue || beNumber(vals[unix.NFTA_TARGET_REV]) != xtQueueRev || len(info) < 6 {
		return false
	}
	*vals = [maxExprAttr]string{}
	for i, typ := range []int{unix.NFTA_QUEUE_NUM, unix.NFTA_QUEUE_TOTAL, unix.NFTA_QUEUE_FLAGS} {
		vals[typ] = string(binary.BigEndian.AppendUint16(nil, native16(info[2*i:])))
	}
	return true
}

// hasQueue reports whether the delta adds a rule that gives packets to user space.
func hasQueue(d *ruleset.Delta) bool {
	for _, t := range d.Tables {
		for _, c := range t.AddRules {
			for i := range c.Rules {
				for _, s := range c.Rules[i].Stmts {
					if _, ok := s.(ruleset.Queue); ok {
						return true
					}
				}
			}
		}
	}
	return false
}

// queueFor returns the form in which queues are written in the delta. The first that has any
// makes the connection ask the kernel.
func (c *Conn) queueFor(d *ruleset.Delta) (queueForm, error) {
	if !hasQueue(d) {
		return queueUnknown, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queue != queueUnknown {
		return c.queue, nil
	}
	for _, form := range []queueForm{queueNative, queueXT} {
		switch err := c.probeQueue(form); {
		case err == nil:
			c.queue = form
			return form, nil
		case !errors.Is(err, unix.ENOENT):
			return queueUnknown, fmt.Errorf("nft: ask the kernel for its queues: %w", err)
		}
	}
	return queueUnknown, fmt.Errorf("nft: %w", ErrNoQueue)
}

// probeQueue asks for a rule of one form in a batch that has no end, which the kernel checks and
// then undoes (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).
func (c *Conn) probeQueue(form queueForm) error {
	chain := &ruleset.Chain{Name: "queue", Rules: []ruleset.Rule{{Stmts: []ruleset.Stmt{ruleset.Queue{}}}}}
	table := &ruleset.Table{Family: ruleset.Inet, Name: "weir-probe", Chains: []*ruleset.Chain{chain}}
	b := &Batch{w: buf{queue: form}}
	e := encoder{Batch: b}
	b.w.end(b.open(message{op: opBegin}))
	e.tableFlags(message{op: opAddTable, table: table})
	e.chain(table, chain)
	e.rule(table, chain, 0, Counter{})
	if e.err != nil {
		return e.err
	}
	refused, _, err := c.try(b)
	if len(refused) > 0 {
		return refused[0].errno
	}
	return err
}

// try sends a batch that has no end, and returns what the kernel refused of it, and whether
// its last message is confirmed. c.mu must be held.
func (c *Conn) try(b *Batch) (refused []ack, acked bool, err error) {
	if c.fd < 0 {
		return nil, false, unix.EBADF
	}
	c.drain()
	if err := c.send(b.Bytes()); err != nil {
		return nil, false, err
	}
	return c.answers(b, b.Len()-1)
}
