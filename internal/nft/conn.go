package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Conn is a connection to nf_tables of one network namespace. Its methods may be called
// from any goroutine; they run one after the other.
type Conn struct {
	mu      sync.Mutex
	fd      int // -1 once closed
	seq     uint32
	in      []byte // what is received
	sndbuf  int    // the send buffer asked for so far, in bytes
	noDestr bool   // the kernel has no NFT_MSG_DESTROYSETELEM
	queue   queueForm

	monitor *monitor // made with the connection, so that it is of the same namespace
}

const (
	recvSize    = 1 << 20  // of one datagram; the kernel fills dumps up to what it is offered
	recvBuffer  = 32 << 20 // bytes of answers that may wait: a refusal for every message
	sendBuffer  = 64 << 20 // bytes of one batch, unless it is larger
	firstReqSeq = 1 << 31  // requests count from here, messages of a batch from 0
)

// Open returns a connection to the network namespace of the calling thread. It needs
// CAP_NET_ADMIN there.
func Open() (*Conn, error) {
	fd, err := openSocket()
	if err != nil {
		return nil, err
	}
	m, err := newMonitor()
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &Conn{fd: fd, seq: firstReqSeq, in: make([]byte, recvSize), monitor: m}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	// Both are of Linux 4.12; without them errors are less exact.
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	if _, err := c.Generation(); err != nil {
		c.Close()
		return nil, fmt.Errorf("nft: nf_tables can't be used here: %w", err)
	}
	return c, nil
}

func openSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("nft: netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("nft: bind netlink socket: %w", err)
	}
	return fd, nil
}

// setBuffer sets a buffer size beyond the limit where it may, or up to it.
func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

// Close ends the connection and its monitor.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.monitor.close()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// Generation returns the generation of the kernel's ruleset, which every commit of
// anybody in the namespace moves by one.
func (c *Conn) Generation() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation()
}

func (c *Conn) generation() (uint32, error) {
	var gen uint32
	err := c.request(msgType(unix.NFT_MSG_GETGEN), 0, nil, func(h header, body string) error {
		gen = be32(attr(body, unix.NFTA_GEN_ID))
		return nil
	})
	if err == nil && gen == 0 {
		err = &Error{Op: "read", Object: "the generation", Errno: unix.ENODATA}
	}
	return gen, err
}

// next returns the generation that follows gen; the kernel leaves 0 out.
func next(gen uint32) uint32 { return max(gen+1, 1) }

// header is the netlink header of a received message.
type header struct {
	typ, flags uint16
	seq        uint32
	family     uint8
}

// errInterrupted says that the kernel's tables changed during a dump.
var errInterrupted = errors.New("nft: the ruleset changed while it was read")

// request sends one request, a dump if flags say so, and calls each for every message of
// the answer with its attributes. The strings are copies and may be kept.
func (c *Conn) request(typ, flags uint16, build func(w *buf), each func(h header, body string) error) error {
	return c.ask(typ, flags, build, each, func(b []byte) string { return string(b) })
}

// scan is request for answers of many megabytes: the strings are only good until each
// returns.
func (c *Conn) scan(typ, flags uint16, build func(w *buf), each func(h header, body string) error) error {
	return c.ask(typ, flags, build, each, view)
}

func (c *Conn) ask(typ, flags uint16, build func(w *buf), each func(h header, body string) error,
	text func([]byte) string) error {
	if c.fd < 0 {
		return unix.EBADF
	}
	c.drain()
	c.seq = max(c.seq+1, firstReqSeq)
	var w buf
	if flags&unix.NLM_F_DUMP == 0 {
		flags |= unix.NLM_F_ACK
	}
	at := w.msg(typ, flags|unix.NLM_F_REQUEST, c.seq, unix.NFPROTO_INET, 0)
	if build != nil {
		build(&w)
	}
	w.end(at)
	if err := c.send(w.b); err != nil {
		return fmt.Errorf("nft: send request: %w", err)
	}
	return c.receive(c.seq, each, text)
}

func (c *Conn) send(b []byte) error {
	return eintr(func() error {
		return unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

// receive reads the answer to a request. The kernel answers within the call that asks,
// and goes on with a dump within the calls that read it: there is nothing to wait for.
func (c *Conn) receive(seq uint32, each func(header, string) error, text func([]byte) string) error {
	interrupted := false
	for {
		n, err := c.recv()
		if err != nil {
			return fmt.Errorf("nft: receive: %w", err)
		}
		for h, body := range messages(text(c.in[:n])) {
			if h.seq != seq {
				continue
			}
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			switch h.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(body) >= 4 {
					if code := int32(native32(body)); code != 0 {
						return unix.Errno(-code)
					}
				}
				if interrupted {
					return errInterrupted
				}
				return nil
			}
			if len(body) < 4 {
				continue
			}
			h.family = body[0]
			if err := each(h, body[4:]); err != nil {
				return err
			}
		}
	}
}

// recv reads one datagram, or fails with EAGAIN.
func (c *Conn) recv() (n int, err error) {
	err = eintr(func() error {
		n, _, err = unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		return err
	})
	return n, err
}

// drain throws away what is left of answers to earlier requests.
func (c *Conn) drain() {
	for {
		if _, err := c.recv(); err != nil && err != unix.ENOBUFS {
			return
		}
	}
}

func eintr(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// messages walks the netlink messages of a datagram.
func messages(s string) func(yield func(header, string) bool) {
	return func(yield func(header, string) bool) {
		for len(s) >= unix.SizeofNlMsghdr {
			n := int(native32(s))
			if n < unix.SizeofNlMsghdr || n > len(s) {
				return
			}
			h := header{
				typ:   native16(s[4:]),
				flags: native16(s[6:]),
				seq:   binary.NativeEndian.Uint32([]byte(s[8:12])),
			}
			if !yield(h, s[unix.SizeofNlMsghdr:n]) {
				return
			}
			s = s[min(align(n), len(s)):]
		}
	}
}
