package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Groups of nfnetlink_compat.h.
const (
	groupNew     = 1 // NFNLGRP_CONNTRACK_NEW
	groupDestroy = 3 // NFNLGRP_CONNTRACK_DESTROY

	msgNew = 0 // IPCTNL_MSG_CT_NEW
)

// maxEvents is how many events one call of Next gives at most.
const maxEvents = 1024

// ErrLost says that the kernel had more events than the queue has room for: some are gone,
// and how many is not known.
var ErrLost = errors.New("events were lost")

// Events hears of connections that begin and end in one network namespace. The kernel makes
// events only for connections that began while somebody listened, unless
// net.netfilter.nf_conntrack_events is 1 (the default is 2, from Linux 5.19 on): of others
// the end is not heard. It is for one goroutine.
type Events struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// OpenEvents begins to listen in the network namespace of the calling thread, with a queue
// of up to queue bytes, which the kernel doubles. It needs CAP_NET_ADMIN there; without that
// of the first user namespace the queue has no more than net.core.rmem_max.
func OpenEvents(queue int) (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("conntrack: listen: %w", os.NewSyscallError("socket", err))
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queue) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, queue)
	}
	groups := uint32(1<<(groupNew-1) | 1<<(groupDestroy-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("conntrack: listen: %w", os.NewSyscallError("bind", err))
	}
	file := os.NewFile(uintptr(fd), "netlink")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Events{file, raw, make([]byte, readBuffer)}, nil
}

// Close ends the listening, and a Next that waits.
func (e *Events) Close() error { return e.file.Close() }

// Next waits for events, until the deadline at the latest, which must be still to come, and gives those that are there to
// fn, up to 1024. Errors: os.ErrDeadlineExceeded, ErrLost, after which the events go on, and
// os.ErrClosed.
func (e *Events) Next(deadline time.Time, fn func(f Flow, ended bool)) error {
	if err := e.file.SetReadDeadline(deadline); err != nil {
		return err
	}
	given := 0
	var err error
	ctlErr := e.raw.Read(func(fd uintptr) bool {
		for given < maxEvents && err == nil {
			var n int
			var from unix.Sockaddr
			n, _, _, from, err = unix.Recvmsg(int(fd), e.buf, nil, 0)
			if err == nil && fromKernel(from) {
				given++
				err = eachEvent(e.buf[:n], fn)
			}
		}
		if err == unix.EAGAIN || err == unix.EINTR {
			err = nil
			return given > 0
		}
		return true
	})
	switch {
	case ctlErr != nil:
		return ctlErr
	case err == unix.ENOBUFS:
		return ErrLost
	case errors.Is(err, errMalformed):
		return err
	case err != nil:
		return fmt.Errorf("conntrack: listen: %w", os.NewSyscallError("recvmsg", err))
	}
	return nil
}

// eachEvent walks over the messages of one read.
func eachEvent(b []byte, fn func(f Flow, ended bool)) error {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return fmt.Errorf("%w: message of %d bytes in %d", errMalformed, n, len(b))
		}
		typ := binary.NativeEndian.Uint16(b[4:])
		if typ>>8 == unix.NFNL_SUBSYS_CTNETLINK && (typ&0xff == msgNew || typ&0xff == msgDelete) {
			f, err := parseFlow(b[unix.NLMSG_HDRLEN:n])
			if err != nil {
				return err
			}
			fn(f, typ&0xff == msgDelete)
		}
		b = b[min(align4(n), len(b)):]
	}
	return nil
}
