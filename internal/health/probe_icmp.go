package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443) messages.
const (
	echoReply4   = 0
	echoRequest4 = 8
	echoRequest6 = 128
	echoReply6   = 129
)

// echoLen is an echo message: the header of 8 bytes and a random word, which tells this
// probe's answer from that of any other program that has hit on the same identifier.
const echoLen = 16

// askICMP sends one echo request. The socket is connected: only what that address sends
// is received.
func askICMP(ctx context.Context, t *Target) (string, error) {
	s, err := openICMP(t)
	if err != nil {
		return "", err
	}
	defer s.Close()
	defer bound(ctx, s)()
	request := s.request()
	if _, err := s.Write(request); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	for range maxStrays {
		n, err := s.Read(buf)
		if err != nil {
			return "", err
		}
		if s.answers(buf[:n], request) {
			return "echo reply", nil
		}
	}
	return "", errors.New("no echo reply among what came")
}

// icmpSocket is a ping socket, for which the kernel fills in the identifier and hands
// over the answers to it alone, or a raw one, which gets all that the address sends.
type icmpSocket struct {
	*os.File
	raw, six bool
}

// openICMP returns a socket connected to t. Ping sockets come first: they need no
// privilege where net.ipv4.ping_group_range lets the group have them, and a thousand of
// them are cheap, while the kernel offers each message to each raw socket in turn.
func openICMP(t *Target) (*icmpSocket, error) {
	s := &icmpSocket{six: t.Addr.Is6()}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if s.six {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|flags, proto)
	if err != nil {
		s.raw = true
		fd, err = unix.Socket(family, unix.SOCK_RAW|flags, proto)
	}
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			err = errors.New("no right to send ICMP: CAP_NET_RAW or net.ipv4.ping_group_range")
		}
		return nil, localError{err}
	}
	if err := s.connect(fd, t); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s.File = os.NewFile(uintptr(fd), "icmp") // non-blocking: deadlines work
	return s, nil
}

func (s *icmpSocket) connect(fd int, t *Target) error {
	if s.raw {
		if err := s.filter(fd); err != nil {
			return localError{err}
		}
	}
	if !s.six {
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: t.Addr.As4()})
	}
	to := &unix.SockaddrInet6{Addr: t.Addr.As16()}
	if zone := t.Addr.Zone(); zone != "" {
		dev, err := net.InterfaceByName(zone)
		if err != nil {
			return fmt.Errorf("interface %s: %w", zone, err)
		}
		to.ZoneId = uint32(dev.Index)
	}
	return unix.Connect(fd, to)
}

// filter keeps all but echo replies away from a raw socket. Both filters are masks of
// the types that are blocked.
func (s *icmpSocket) filter(fd int) error {
	if !s.six {
		const icmpFilter, replies = 1, 1 << echoReply4 // ICMP_FILTER of linux/icmp.h
		return unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^replies)
	}
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
	return unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f)
}

// request makes an echo request. The kernel computes every checksum but that of a raw
// IPv4 socket; computing that one always does no harm.
func (s *icmpSocket) request() []byte {
	m := make([]byte, echoLen)
	m[0] = echoRequest4
	if s.six {
		m[0] = echoRequest6
	}
	binary.BigEndian.PutUint32(m[4:], rand.Uint32()) // identifier and sequence number
	binary.BigEndian.PutUint64(m[8:], rand.Uint64())
	if !s.six {
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	return m
}

// answers reports whether what was read is the reply to request.
func (s *icmpSocket) answers(b, request []byte) bool {
	if s.raw && !s.six {
		b = pastHeader(b)
	}
	if len(b) != echoLen || b[1] != 0 {
		return false
	}
	reply := byte(echoReply4)
	if s.six {
		reply = echoReply6
	}
	from := 6 // a ping socket's identifier is the kernel's, and it has matched it
	if s.raw {
		from = 4
	}
	return b[0] == reply && bytes.Equal(b[from:], request[from:])
}

// pastHeader cuts the IPv4 header off, which raw sockets deliver too.
func pastHeader(b []byte) []byte {
	if len(b) < 20 {
		return nil
	}
	if n := int(b[0]&0xf) * 4; n >= 20 && n <= len(b) {
		return b[n:]
	}
	return nil
}

// checksum is that of RFC 1071 for a message of even length.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
