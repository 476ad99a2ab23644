package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// steerRound is what one round of a row has shown.
type steerRound struct {
	sent, answered int           // answered while packets were sent
	spent          time.Duration // on the clock, for these
	lost           int           // in the end
	full           int           // of these, by the kernel's own counters
	unreceived     int
	sender         time.Duration // processor time of who sends, and of what follows from it before the queue
	own            time.Duration // and of the process that answers
	waited         time.Duration // of its threads, for a processor
}

// round measures one.
func (r *steerRow) round(ctx context.Context) {
	if r.problem != "" {
		return
	}
	if time.Now().After(r.until) && len(r.rounds) > 0 {
		if !r.over {
			r.note("steering: not all rounds that were asked for fitted into %s", steerTime)
		}
		r.over = true
		return
	}
	one, err := r.measure(ctx)
	if err == nil && r.proc != nil {
		select {
		case <-r.proc.Done():
			err = errors.New("the process that answers ended: " + lastLine(r.proc.said.String()))
		default:
		}
	}
	if err != nil {
		r.problem = err.Error()
		return
	}
	r.rounds = append(r.rounds, one)
}

func (r *steerRow) measure(ctx context.Context) (one steerRound, err error) {
	if r.tracks {
		if err := r.gw.forget(); err != nil {
			return one, err
		}
	}
	out, err := r.gw.delivered()
	if err != nil {
		return one, err
	}
	before, err := r.gw.queued()
	if err != nil {
		return one, err
	}
	own, waited := r.took()
	start := time.Now()
	if one.sent, one.sender, err = r.send(ctx); err != nil {
		return one, err
	}
	one.spent = time.Since(start)
	now, err := r.gw.queued()
	if err != nil {
		return one, err
	}
	o, w := r.took()
	one.own, one.waited = o-own, w-waited
	one.answered = now.answered() - before.answered()
	if now, err = r.empty(ctx); err != nil {
		return one, err
	}
	after, err := r.gw.delivered()
	one.lost = one.sent - int(after-out)
	one.full, one.unreceived = now.full-before.full, now.unreceived-before.unreceived
	if r.kind == kindOpen && err == nil && one.lost != 0 {
		err = fmt.Errorf("%d of %d packets came out", after-out, one.sent)
	}
	return one, err
}

// took is the processor time of the process that answers so far, and how long it waited for it.
func (r *steerRow) took() (own, waited time.Duration) {
	if r.proc == nil {
		return 0, 0
	}
	pid := r.proc.PID()
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
		var ran, delayed int64
		fmt.Sscan(string(text), &ran, &delayed)
		waited += time.Duration(delayed)
	}
	return processTime(pid), waited
}

// empty waits until nothing waits for an answer.
func (r *steerRow) empty(ctx context.Context) (q queueCounts, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, steerLimit, errLimit)
	defer cancel()
	for {
		if q, err = r.gw.queued(); err != nil || q.waiting == 0 {
			return q, err
		}
		select {
		case <-ctx.Done():
			return q, fmt.Errorf("%d packets wait for an answer: %w", q.waiting, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// send sends what the row's kind says.
func (r *steerRow) send(ctx context.Context) (sent int, spent time.Duration, err error) {
	s := &stream{frames: r.some}
	if r.tracks {
		s.frames = r.flows
	}
	queues, err := r.gw.openQueueFile()
	if err != nil {
		return 0, 0, err
	}
	defer queues.Close()
	err = r.gw.world.Do(func() error {
		if err := s.open(worldOut); err != nil {
			return err
		}
		defer unix.Close(s.fd)
		spent, err = r.hold(func() error {
			switch r.kind {
			case kindFlood:
				return s.flood(ctx, steerFlood)
			case kindPaced:
				return s.paced(ctx, pacedRate, min(pacedTime, time.Duration(len(r.flows)/frameSize)*time.Second/pacedRate))
			}
			return s.answered(ctx, min(openings, len(r.flows)/frameSize), queues)
		})
		return err
	})
	return s.sent, spent, err
}

// stream sends frames out of a device, in their order, and begins again at the end.
type stream struct {
	frames []byte
	sent   int
	fd     int
	msgs   [sendBatch]mmsghdr
	iovs   [sendBatch]unix.Iovec
}

// sendBatch is how many frames are sent in one system call.
const sendBatch = 64

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// open makes a socket that sends out of the device, past its queue: a frame has come to the
// other side before the system call ends.
func (s *stream) open(dev string) (err error) {
	iface, err := net.InterfaceByName(dev)
	if err != nil {
		return err
	}
	if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	err = errors.Join(unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: iface.Index}),
		unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	if err != nil {
		unix.Close(s.fd)
		return fmt.Errorf("packet socket: %w", err)
	}
	for i := range s.msgs {
		s.msgs[i].hdr.Iov = &s.iovs[i]
		s.msgs[i].hdr.SetIovlen(1)
	}
	return nil
}

// next sends n frames.
func (s *stream) next(n int) error {
	all := len(s.frames) / frameSize
	for n > 0 {
		m := min(n, sendBatch)
		for i := range m {
			at := (s.sent + i) % all * frameSize
			s.iovs[i].Base = &s.frames[at]
			s.iovs[i].SetLen(frameSize)
		}
		done, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[0])), uintptr(m), 0, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("packet socket: send: %w", errno)
		}
		if errno == 0 {
			s.sent, n = s.sent+int(done), n-int(done)
		}
	}
	return nil
}

// flood sends as many as there can be.
func (s *stream) flood(ctx context.Context, limit time.Duration) error {
	for start := time.Now(); time.Since(start) < limit; {
		if err := errors.Join(ctx.Err(), s.next(16*sendBatch)); err != nil {
			return err
		}
	}
	return nil
}

// paced sends so many a second.
func (s *stream) paced(ctx context.Context, rate int, limit time.Duration) error {
	start := time.Now()
	for since := time.Duration(0); ; since = time.Since(start) {
		since = min(since, limit)
		if err := errors.Join(ctx.Err(), s.next(int(since.Seconds()*float64(rate))-s.sent)); err != nil || since == limit {
			return err
		}
		nap(pacedStep)
	}
}

// answered sends n frames, and waits while too many of them wait for an answer.
func (s *stream) answered(ctx context.Context, n int, queues *os.File) error {
	text := make([]byte, 4096)
	waiting := func() int {
		n, _ := queues.ReadAt(text, 0)
		return parseQueues(string(text[:n])).waiting
	}
	for s.sent < n {
		if waiting() > openingWait {
			nap(pacedStep)
			continue
		}
		if err := errors.Join(ctx.Err(), s.next(min(openingStep, n-s.sent))); err != nil {
			return err
		}
	}
	for end := time.Now().Add(steerLimit); waiting() > 0; nap(pacedStep) {
		if time.Now().After(end) {
			return fmt.Errorf("%d packets wait for an answer", waiting())
		}
	}
	return ctx.Err()
}

// nap lets the calling thread sleep, without giving up its processor time to other goroutines.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil)
}

// queueFile is where the kernel tells of the queues of the calling thread's namespace.
const queueFile = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// queueCounts is what the kernel tells of all queues together.
type queueCounts struct{ queues, waiting, full, unreceived, numbered int }

// answered is how many packets got an answer.
func (c queueCounts) answered() int { return c.numbered - c.waiting - c.unreceived }

// parseQueues reads a line for each queue: number, port, waiting, mode, bytes, dropped because
// it was full, dropped because the socket was, numbered, and a 1.
func parseQueues(text string) (c queueCounts) {
	for line := range strings.Lines(text) {
		var num, port, waiting, mode, bytes, full, unreceived, numbered int
		if n, _ := fmt.Sscan(line, &num, &port, &waiting, &mode, &bytes, &full, &unreceived, &numbered); n != 8 {
			continue
		}
		c.queues++
		c.waiting, c.full = c.waiting+waiting, c.full+full
		c.unreceived, c.numbered = c.unreceived+unreceived, c.numbered+numbered
	}
	return c
}

// openQueueFile opens what tells of the gateway's queues, wherever it is read.
func (g *gateway) openQueueFile() (f *os.File, err error) {
	err = g.host.Do(func() error {
		f, err = os.Open(queueFile)
		return err
	})
	return f, err
}

// queued tells of the gateway's queues.
func (g *gateway) queued() (c queueCounts, err error) {
	f, err := g.openQueueFile()
	if err != nil {
		return c, err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return parseQueues(string(text)), err
}
