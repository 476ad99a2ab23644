package nfqueue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options say which queues, and how.
type Options struct {
	First uint16 // the number of the first queue
	Count int    // how many, with the numbers that follow; at least 1
	// Copy is how many bytes of each packet are copied, from the IP header on; at least 1. See SetCopy.
	Copy int
	// Waiting is how many packets of a queue may wait for a verdict; 0 stands for 16,384.
	Waiting int
	// FailOpen lets packets go on as if nobody had been asked where the queue is full, or the
	// socket's buffer; else they are lost, and counted.
	FailOpen bool
	// CPUs are the processors that the queues' threads stay on, one for each; nil: as the
	// scheduler likes.
	CPUs []int
}

// Verdict is what becomes of a packet.
type Verdict struct {
	Mark uint32 // all of the mark that it has then
	Drop bool
}

// Decide says what becomes of a packet of the worker-th queue, of which data is the beginning
// and mark the mark. It must not keep data.
type Decide func(worker int, data []byte, mark uint32) Verdict

const (
	// batch is how many packets are received, and answered, in one system call. One by one a
	// packet costs twice the processor time; with more than these it costs hardly less, and the first
	// waits for the last.
	batch = 64

	defaultWaiting = 16384

	// roomForCopy is how much of a packet there is room for, in bytes, also where less is copied now.
	roomForCopy = 2048

	// attrSpace is room for what comes with a packet: its number, mark, devices, and the like.
	attrSpace = 320

	// perPacket is about what the kernel counts for a message that waits in the socket's buffer,
	// beside what is copied of the packet.
	perPacket = 1024

	// Sequence numbers of what the kernel is to acknowledge.
	bindSeq, stopSeq, unbindSeq, copySeq = 1, 2, 3, 4
)

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// queue is one queue with its socket. All but fd belongs to its worker.
type queue struct {
	num    uint16
	worker int
	cpu    int // -1 for any
	fd     int
	decide Decide
	counts *counts

	bufs [][]byte
	iovs []unix.Iovec
	msgs []mmsghdr

	out     []byte // verdicts to send
	last    Verdict
	stopped bool // the acknowledgement that ends the queue has come
	done    chan struct{}
}

// counts are what a worker counts.
type counts struct {
	packets, receives, verdicts, refused, overruns atomic.Uint64
	_                                              [88]byte // up to two cache lines
}

func openQueue(o *Options, worker int) (*queue, error) {
	q := &queue{num: o.First + uint16(worker), worker: worker, cpu: -1, counts: &counts{}, done: make(chan struct{})}
	if o.CPUs != nil {
		q.cpu = o.CPUs[worker]
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nfqueue: netlink socket: %w", err)
	}
	q.fd = fd
	if err := q.setUp(o); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return q, nil
}

func (q *queue) setUp(o *Options) error {
	if err := unix.Bind(q.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("nfqueue: bind netlink socket: %w", err)
	}
	size := o.Waiting * (perPacket + o.Copy)
	if unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		_ = unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size) // as much as there may be
	}
	if err := unix.SetsockoptInt(q.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return fmt.Errorf("nfqueue: socket option NETLINK_NO_ENOBUFS: %w", err)
	}
	q.buffers(o)
	b := appendHeader(nil, msgConfig, unix.NLM_F_ACK, bindSeq, q.num)
	b = appendAttr(b, cfgCommand, commandBind, 0, 0, 0)
	b = appendCopy(b, o.Copy)
	b = appendU32(b, cfgMaxLen, uint32(o.Waiting))
	flags := uint32(flagGSO)
	if o.FailOpen {
		flags |= flagFailOpen
	}
	b = appendU32(b, cfgMask, flagGSO|flagFailOpen)
	b = appendU32(b, cfgFlags, flags)
	err := q.request(finish(b))
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("nfqueue: queue %d is in the hands of another program, or this one may not (CAP_NET_ADMIN): %w", q.num, err)
	case err != nil:
		return fmt.Errorf("nfqueue: bind queue %d: %w", q.num, err)
	}
	return nil
}

// buffers makes what packets are received in, and verdicts written.
func (q *queue) buffers(o *Options) {
	const n = batch
	size := align(headerLen + attrSpace + max(o.Copy, roomForCopy))
	all := make([]byte, n*size)
	q.iovs, q.msgs, q.bufs = make([]unix.Iovec, n), make([]mmsghdr, n), make([][]byte, n)
	for i := range n {
		q.bufs[i] = all[i*size : (i+1)*size : (i+1)*size]
		q.iovs[i].Base = &q.bufs[i][0]
		q.iovs[i].SetLen(size)
		q.msgs[i].hdr.Iov = &q.iovs[i]
		q.msgs[i].hdr.SetIovlen(1)
	}
	q.out = make([]byte, 0, n*verdictLen)
}

// request sends a message that is not about packets and waits for its acknowledgement, while
// there is no worker yet. Packets may come before it; the worker will not see those, and so they are
// let go on here.
func (q *queue) request(b []byte) error {
	if err := q.send(b); err != nil {
		return err
	}
	seq := binary.NativeEndian.Uint32(b[8:])
	for {
		n, err := unix.Read(q.fd, q.bufs[0])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for typ, got, body, rest, ok := message(q.bufs[0][:n]); ok; typ, got, body, rest, ok = message(rest) {
			switch {
			case typ == unix.NLMSG_ERROR && got == seq && len(body) >= 4:
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			case typ == msgPacket && len(body) >= 4:
				q.answer(body[4:], func(_ int, _ []byte, mark uint32) Verdict { return Verdict{Mark: mark} })
				q.flush()
			}
		}
	}
}

// send writes messages to the kernel, which handles them before this returns.
func (q *queue) send(b []byte) error {
	for {
		if _, err := unix.Write(q.fd, b); err != unix.EINTR {
			return err
		}
	}
}

// run serves the queue until the acknowledgement of stop has come, or fails.
func (q *queue) run() error {
	// The thread is thrown away with its affinity.
	runtime.LockOSThread()
	if q.cpu >= 0 {
		var set unix.CPUSet
		set.Set(q.cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("nfqueue: queue %d: stay on processor %d: %w", q.num, q.cpu, err)
		}
	}
	for !q.stopped {
		n, err := q.receive()
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.ENOBUFS: // not with NETLINK_NO_ENOBUFS
			q.counts.overruns.Add(1)
			continue
		default:
			return fmt.Errorf("nfqueue: queue %d: receive: %w", q.num, err)
		}
		packets := 0
		for i := range n {
			packets += q.datagram(q.bufs[i][:q.msgs[i].n])
		}
		q.counts.packets.Add(uint64(packets))
		q.counts.receives.Add(1)
		if err := q.flush(); err != nil {
			return fmt.Errorf("nfqueue: queue %d: send verdicts: %w", q.num, err)
		}
	}
	return nil
}

// receive waits for a packet, and takes what else is there.
func (q *queue) receive() (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(q.fd), uintptr(unsafe.Pointer(&q.msgs[0])), uintptr(len(q.msgs)),
		unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// datagram handles what the kernel sent and returns how many packets that were.
func (q *queue) datagram(b []byte) (packets int) {
	for typ, seq, body, rest, ok := message(b); ok; typ, seq, body, rest, ok = message(rest) {
		switch {
		case typ == msgPacket && len(body) >= 4:
			q.answer(body[4:], q.decide)
			packets++
		case typ == unix.NLMSG_ERROR && seq == stopSeq:
			q.stopped = true
		case typ == unix.NLMSG_ERROR:
			q.counts.refused.Add(1) // a verdict on a packet that has gone, with its device say
		}
	}
	return packets
}

// answer puts the verdict on a packet to those that are sent next.
func (q *queue) answer(attrs []byte, decide Decide) {
	var p packet
	if !p.parse(attrs) {
		return
	}
	v := decide(q.worker, p.data, p.mark)
	// The kernel numbers packets as it sends them, and all before this one have their verdict.
	if len(q.out) > 0 && v == q.last {
		extend(q.out, p.id)
		return
	}
	code := uint32(verdictAccept)
	if v.Drop {
		code = verdictDrop
	}
	q.out, q.last = appendVerdict(q.out, q.num, p.id, code, v.Mark), v
	q.counts.verdicts.Add(1)
}

// flush sends the verdicts.
func (q *queue) flush() error {
	if len(q.out) == 0 {
		return nil
	}
	err := q.send(q.out)
	q.out = q.out[:0]
	return err
}

// stop makes the kernel put no more packets into the queue, and say so behind the last. What
// comes then is let go on, or lost, as where the queue is full. Any goroutine may call it.
func (q *queue) stop() error {
	b := appendHeader(nil, msgConfig, unix.NLM_F_ACK, stopSeq, q.num)
	return q.send(finish(appendU32(b, cfgMaxLen, 0)))
}

// setCopy changes how much of a packet is copied. Any goroutine may call it.
func (q *queue) setCopy(n int) error {
	return q.send(finish(appendCopy(appendHeader(nil, msgConfig, 0, copySeq, q.num), n)))
}

// unbind ends the queue; packets that still wait in it are lost.
func (q *queue) unbind() error {
	b := appendHeader(nil, msgConfig, 0, unbindSeq, q.num)
	return errors.Join(q.send(finish(appendAttr(b, cfgCommand, commandUnbind, 0, 0, 0))), unix.Close(q.fd))
}
