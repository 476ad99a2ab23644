package look

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rtnl is a routing socket for questions. It belongs to the network namespace in which it
// was opened, and asks for no right: whoever may run may look.
type rtnl struct {
	fd  int
	seq uint32
	in  []byte
	out []byte
}

const (
	answerSize = 64 << 10 // of one datagram; the kernel fills dumps up to 32 KiB
	// asked is how many questions are sent at once. Their answers, each in a buffer of its
	// own of about 1 KiB, must find room in the socket's receive buffer.
	asked      = 64
	recvBuffer = 1 << 20
	dumpTries  = 5
)

var errInterrupted = errors.New("look: the tables changed while they were read")

func openRTNL() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("look: routing socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("look: bind routing socket: %w", err)
	}
	setBuffer(fd, recvBuffer)
	return &rtnl{fd: fd, in: make([]byte, answerSize)}, nil
}

// setBuffer sets the receive buffer, beyond the limit where that is allowed.
func setBuffer(fd, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
}

func (r *rtnl) close() { unix.Close(r.fd) }

// dump asks for a whole table and calls each for every answer of that type, with what
// follows the netlink header. header is the fixed part of the question.
func (r *rtnl) dump(question, answer uint16, header []byte, each func(body []byte) error) error {
	var err error
	for range dumpTries {
		r.begin()
		r.question(question, unix.NLM_F_DUMP, header)
		if err = r.send(); err != nil {
			return err
		}
		if err = r.readDump(answer, each); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}

func (r *rtnl) begin() { r.out = r.out[:0] }

// question appends a message; its number is r.seq.
func (r *rtnl) question(typ, flags uint16, body []byte) {
	r.seq++
	r.out = binary.NativeEndian.AppendUint32(r.out, uint32(unix.SizeofNlMsghdr+len(body)))
	r.out = binary.NativeEndian.AppendUint16(r.out, typ)
	r.out = binary.NativeEndian.AppendUint16(r.out, flags|unix.NLM_F_REQUEST)
	r.out = binary.NativeEndian.AppendUint32(r.out, r.seq)
	r.out = append(r.out, 0, 0, 0, 0)
	r.out = append(r.out, body...)
}

func (r *rtnl) send() error {
	err := eintr(func() error { return unix.Sendto(r.fd, r.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	if err != nil {
		return fmt.Errorf("look: ask the kernel: %w", err)
	}
	return nil
}

// recv reads one datagram. The kernel answers within the call that asks, or that reads
// the part of the dump before: there is always something to read.
func (r *rtnl) recv() (n int, err error) {
	err = eintr(func() error {
		n, _, err = unix.Recvfrom(r.fd, r.in, unix.MSG_DONTWAIT)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("look: read the kernel's answer: %w", err)
	}
	return n, nil
}

func (r *rtnl) readDump(answer uint16, each func(body []byte) error) error {
	interrupted := false
	for {
		n, err := r.recv()
		if err != nil {
			return err
		}
		for h, body := range messages(r.in[:n]) {
			if h.seq != r.seq {
				continue
			}
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			switch h.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if errno := errnoOf(body); errno != 0 {
					return fmt.Errorf("look: read a table: %w", errno)
				}
				if interrupted {
					return errInterrupted
				}
				return nil
			case answer:
				if err := each(body); err != nil {
					return err
				}
			}
		}
	}
}

// lookUp is a question for a route: to dst, by the device if that is not 0.
type lookUp struct {
	dst netip.Addr
	oif int
}

// routes asks for the route to each destination, and calls each once for every one with
// its index, and the answer or the kernel's refusal, which is an answer too.
func (r *rtnl) routes(list []lookUp, each func(i int, body []byte, errno unix.Errno)) error {
	var body []byte
	for at := 0; at < len(list); at += asked {
		part := list[at:min(at+asked, len(list))]
		r.begin()
		first := r.seq + 1
		for _, q := range part {
			body = routeQuestion(body[:0], q)
			r.question(unix.RTM_GETROUTE, 0, body)
		}
		if err := r.send(); err != nil {
			return err
		}
		for left := len(part); left > 0; {
			n, err := r.recv()
			if err != nil {
				return err
			}
			for h, body := range messages(r.in[:n]) {
				i := int(h.seq - first)
				if i < 0 || i >= len(part) {
					continue // late, of a question before
				}
				switch h.typ {
				case unix.RTM_NEWROUTE:
					each(at+i, body, 0)
					left--
				case unix.NLMSG_ERROR:
					each(at+i, nil, errnoOf(body))
					left--
				}
			}
		}
	}
	return nil
}

// routeQuestion is a struct rtmsg and its attributes. The whole entry of the table is
// asked for (RTM_F_FIB_MATCH, Linux 4.13), not what is made of it for one destination.
func routeQuestion(b []byte, q lookUp) []byte {
	family, bits := byte(unix.AF_INET), byte(32)
	if q.dst.Is6() {
		family, bits = unix.AF_INET6, 128
	}
	b = append(b, family, bits, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, unix.RTM_F_FIB_MATCH)
	if q.dst.Is6() {
		a := q.dst.As16()
		b = appendAttr(b, unix.RTA_DST, a[:])
	} else {
		a := q.dst.As4()
		b = appendAttr(b, unix.RTA_DST, a[:])
	}
	if q.oif != 0 {
		b = appendAttr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(q.oif)))
	}
	return b
}

// appendAttr appends an attribute whose length is a multiple of 4.
func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return append(b, data...)
}

// header is the part of a netlink header that matters in an answer.
type header struct {
	typ, flags uint16
	seq        uint32
}

// messages walks the netlink messages of a datagram.
func messages(b []byte) iter.Seq2[header, []byte] {
	return func(yield func(header, []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			h := header{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])}
			if !yield(h, b[unix.SizeofNlMsghdr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// attrs walks the attributes in b, up to the first that does not fit.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.SizeofRtAttr || n > len(b) || !yield(typ, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

func errnoOf(body []byte) unix.Errno {
	if len(body) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
}

func eintr(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
