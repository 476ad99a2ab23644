package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readBuffer is the size of one read and of the socket's queue, in bytes. The kernel
// fills as much of one read as it is offered, up to a limit of its own.
const readBuffer = 1 << 20

// ErrInterrupted says that the table changed under a dump in a way that may have hidden
// flows (NLM_F_DUMP_INTR). What was given is true, but may not be all; ask again.
var ErrInterrupted = errors.New("the dump was interrupted by a change of the table")

// socket is one netlink socket; one exchange at a time.
type socket struct {
	mu      sync.Mutex
	file    *os.File
	raw     syscall.RawConn
	buf     []byte
	seq     uint32
	pending bool // an exchange was left before its end: its rest is still to come
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	// FORCE needs CAP_NET_ADMIN of the first user namespace; without it the limit of
	// net.core.rmem_max holds. A dump waits for its reader: a small queue is only slower.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, readBuffer)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	file := os.NewFile(uintptr(fd), "netlink")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &socket{file: file, raw: raw}, nil
}

func (s *socket) close() error { return s.file.Close() }

// exchange sends a request, which must be a dump or ask for an acknowledgement, and gives the body of each answer to fn, until the kernel
// says that it is done. The body is valid during the call only. fn must not call back
// into the socket.
func (s *socket) exchange(ctx context.Context, r *request, fn func(body []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.buf == nil {
		s.buf = make([]byte, readBuffer)
	}
	if err := s.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-interrupted // else it could hit the next exchange
		}
	}()
	err := s.converse(r, fn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

func (s *socket) converse(r *request, fn func(body []byte) error) error {
	// A dump that was left is read to its end first: the kernel starts no second one on
	// a socket, and its answers would only be in the way.
	if s.pending {
		if err := s.receive(nil); errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	s.seq++
	if err := s.send(r.finish(s.seq)); err != nil {
		return err
	}
	s.pending = true
	return s.receive(fn)
}

func (s *socket) send(b []byte) error {
	var err error
	ctlErr := s.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if ctlErr != nil {
		return ctlErr
	}
	return os.NewSyscallError("sendto", err)
}

// receive reads the answers to the last request, s.seq, to the end. A nil fn drops them.
func (s *socket) receive(fn func(body []byte) error) error {
	incomplete := false
	for {
		n, err := s.read()
		if err != nil {
			return err
		}
		done, err := s.messages(s.buf[:n], fn, &incomplete)
		switch {
		case err != nil && !done:
			return err // left early; pending stays
		case done:
			s.pending = false
			if err == nil && incomplete {
				err = ErrInterrupted
			}
			return err
		}
	}
}

func (s *socket) read() (int, error) {
	var n int
	var err error
	ctlErr := s.raw.Read(func(fd uintptr) bool {
		var flags int
		var from unix.Sockaddr
		n, _, flags, from, err = unix.Recvmsg(int(fd), s.buf, nil, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			return false
		case err == nil && flags&unix.MSG_TRUNC != 0:
			err = unix.EMSGSIZE
		case err == nil && !fromKernel(from):
			n = 0
		}
		return true
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	return n, os.NewSyscallError("recvmsg", err)
}

// fromKernel is false for what another process sent to this socket.
func fromKernel(sa unix.Sockaddr) bool {
	nl, ok := sa.(*unix.SockaddrNetlink)
	return ok && nl.Pid == 0
}

// messages walks over the messages of one read. done means that the exchange has ended,
// and err then holds the kernel's refusal.
func (s *socket) messages(b []byte, fn func(body []byte) error, incomplete *bool) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return false, fmt.Errorf("%w: message of %d bytes in %d", errMalformed, n, len(b))
		}
		typ := binary.NativeEndian.Uint16(b[4:])
		flags := binary.NativeEndian.Uint16(b[6:])
		seq := binary.NativeEndian.Uint32(b[8:])
		body := b[unix.NLMSG_HDRLEN:n]
		b = b[min(align4(n), len(b)):]
		if seq != s.seq {
			continue
		}
		*incomplete = *incomplete || flags&unix.NLM_F_DUMP_INTR != 0
		switch typ {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, verdict(typ, flags, body)
		case unix.NLMSG_NOOP, unix.NLMSG_OVERRUN:
			continue
		}
		if fn != nil {
			if err := fn(body); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// verdict reads the end of an exchange: the error number, which is 0 for success, and
// the kernel's words where it has some.
func verdict(typ, flags uint16, body []byte) error {
	if len(body) < 4 {
		if typ == unix.NLMSG_DONE {
			return nil
		}
		return fmt.Errorf("%w: short error message", errMalformed)
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if words := kernelWords(typ, flags, body[4:]); words != "" {
		return fmt.Errorf("%w (%s)", errno, words)
	}
	return errno
}

// kernelWords finds the text of an extended acknowledgement, NLMSGERR_ATTR_MSG.
func kernelWords(typ, flags uint16, b []byte) string {
	if flags&unix.NLM_F_ACK_TLVS == 0 {
		return ""
	}
	if typ == unix.NLMSG_ERROR {
		// The header of the request comes first, and all of it unless it was capped.
		skip := unix.NLMSG_HDRLEN
		if len(b) >= 4 && flags&unix.NLM_F_CAPPED == 0 {
			skip = align4(int(binary.NativeEndian.Uint32(b)))
		}
		if skip < 0 || skip > len(b) {
			return ""
		}
		b = b[skip:]
	}
	var words string
	_ = attrs(b, func(typ uint16, d []byte) error {
		if typ == unix.NLMSGERR_ATTR_MSG {
			for len(d) > 0 && d[len(d)-1] == 0 {
				d = d[:len(d)-1]
			}
			words = string(d)
		}
		return nil
	})
	return words
}
