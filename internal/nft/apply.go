package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// Apply brings the delta into the kernel in one transaction, provided that the kernel's
// ruleset is of generation gen, and returns the generation it has then. All of the delta
// is there, or none of it: an error is an [*Error] that names the refused object,
// [ErrStale], [ErrUncertain], or says why nothing could be sent. An empty delta sends
// nothing; a gen of 0 stands for the present one. Once the transaction is sent, ctx has no effect any more.
func (c *Conn) Apply(ctx context.Context, d *ruleset.Delta, gen uint32) (uint32, error) {
	if d.Empty() {
		return gen, nil
	}
	if gen == 0 {
		now, err := c.Generation()
		if err != nil {
			return 0, err
		}
		gen = now
	}
	queue, err := c.queueFor(d)
	if err != nil {
		return 0, err
	}
	b, err := encode(d, gen, queue)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commit(b, gen)
}

// commit sends a batch made for generation gen.
func (c *Conn) commit(b *Batch, gen uint32) (uint32, error) {
	if c.fd < 0 {
		return 0, unix.EBADF
	}
	c.drain()
	if b.elements() > quietElems {
		defer c.monitor.pause()()
	}
	if err := c.sendBatch(b); err != nil && err != unix.ENOBUFS {
		return 0, err
	}
	refused, acked, lost := c.answers(b, b.Len()-2)
	switch {
	case len(refused) > 0:
		return 0, refusal(b, refused)
	case acked:
		return next(gen), nil
	}
	return c.look(gen, lost)
}

// look finds out what became of a batch whose answer was lost. Since a batch that meets
// another generation than gen does nothing, a generation that is one further is ours.
func (c *Conn) look(gen uint32, lost error) (uint32, error) {
	now, err := c.generation()
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w (%w)", ErrUncertain, err)
	case now == gen:
		errno, ok := lost.(unix.Errno)
		if !ok {
			errno = unix.EIO
		}
		return 0, &Error{Op: "commit", Errno: errno, KernelMsg: "nothing was changed"}
	case now == next(gen):
		return now, nil
	}
	return 0, fmt.Errorf("nft: %w: generation %d became %d", ErrUncertain, gen, now)
}

// sendBatch sends the whole batch as one datagram; the kernel takes no transaction in parts.
func (c *Conn) sendBatch(b *Batch) error {
	if need := max(sendBuffer, len(b.Bytes())+len(b.Bytes())/8); need > c.sndbuf {
		setBuffer(c.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, need)
		c.sndbuf = need
	}
	err := c.send(b.Bytes())
	if errors.Is(err, unix.EMSGSIZE) {
		have, _ := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return fmt.Errorf("nft: a transaction of %d bytes is more than the socket's send buffer of %d: "+
			"raise net.core.wmem_max, or run with CAP_NET_ADMIN in the first user namespace: %w",
			len(b.Bytes()), have, err)
	}
	if err != nil && err != unix.ENOBUFS {
		return fmt.Errorf("nft: send the transaction: %w", err)
	}
	return err
}

// ack is one answer of the kernel to one message of a batch.
type ack struct {
	seq   uint32
	errno unix.Errno
	off   uint32 // where in the message; 0 for nowhere
	msg   string
}

// answers reads what the kernel put into the queue while it worked on the batch. acked
// is whether the one of index last, and with it all before, is confirmed.
func (c *Conn) answers(b *Batch, last int) (refused []ack, acked bool, lost error) {
	lastSeq := uint32(last)
	for {
		n, err := c.recv()
		if err == unix.ENOBUFS {
			lost = err
			continue // some answers are lost, others may be there
		}
		if err != nil {
			return refused, acked && lost == nil, lost
		}
		for h, body := range messages(string(c.in[:n])) {
			if h.typ != unix.NLMSG_ERROR || h.seq >= uint32(b.Len()) {
				continue
			}
			a := parseAck(h, body)
			if a.errno != 0 {
				refused = append(refused, a)
			} else if a.seq == lastSeq {
				acked = true
			}
		}
	}
}

// parseAck reads struct nlmsgerr and the attributes behind the piece of the request that
// it quotes: all of it, or its header where the answer is capped.
func parseAck(h header, body string) ack {
	a := ack{seq: h.seq}
	if len(body) < 4+unix.SizeofNlMsghdr {
		a.errno = unix.EBADMSG
		return a
	}
	a.errno = unix.Errno(-int32(native32(body)))
	if h.flags&unix.NLM_F_ACK_TLVS == 0 {
		return a
	}
	quoted := unix.SizeofNlMsghdr
	if h.flags&unix.NLM_F_CAPPED == 0 && a.errno != 0 {
		quoted = align(int(native32(body[4:])))
	}
	for typ, p := range attrs(body[min(4+quoted, len(body)):]) {
		switch {
		case typ == unix.NLMSGERR_ATTR_MSG:
			a.msg = cstr(p)
		case typ == unix.NLMSGERR_ATTR_OFFS && len(p) >= 4:
			a.off = native32(p)
		}
	}
	return a
}

// refusal makes the error of a batch that the kernel refused.
func refusal(b *Batch, acks []ack) error {
	all := make([]Refusal, 0, len(acks))
	for _, a := range acks {
		m := &b.msgs[a.seq]
		r := Refusal{Op: opInfo[m.op].verb, Errno: a.errno, KernelMsg: a.msg}
		if m.op == opBegin || m.op == opEnd {
			r.Op = "commit"
			if a.errno == unix.ERESTART {
				return ErrStale
			}
		} else {
			r.Object = b.objectAt(int(a.seq), a.off)
		}
		all = append(all, r)
	}
	return &Error{Op: all[0].Op, Object: all[0].Object, Errno: all[0].Errno, KernelMsg: all[0].KernelMsg, All: all}
}
