package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rawSock is a raw or packet socket, used by way of Go's poller so that a read can
// be ended.
type rawSock struct {
	file *os.File
	conn syscall.RawConn
}

// rawSocket makes a socket on the host; setUp gets it before anything is read.
func (h *Host) rawSocket(domain, typ, proto int, setUp func(fd int) error) (s *rawSock, err error) {
	err = h.Do(func() error {
		fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return fmt.Errorf("lab: %s: raw socket: %w", h.Name, err)
		}
		s = &rawSock{file: os.NewFile(uintptr(fd), "raw")}
		if err = setUp(fd); err == nil {
			s.conn, err = s.file.SyscallConn()
		}
		if err != nil {
			s.file.Close()
			return fmt.Errorf("lab: %s: raw socket: %w", h.Name, err)
		}
		return nil
	})
	return s, err
}

// recv reads one packet; it returns the context's error when that ends first, and
// os.ErrClosed when the socket is closed.
func (s *rawSock) recv(ctx context.Context, buf []byte) (n int, from unix.Sockaddr, err error) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() { // the next reader starts without a deadline
			<-interrupted
			_ = s.file.SetReadDeadline(time.Time{})
		}
	}()
	var recvErr error
	err = s.conn.Read(func(fd uintptr) bool {
		n, from, recvErr = unix.Recvfrom(int(fd), buf, 0)
		return recvErr != unix.EAGAIN
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return 0, nil, ctx.Err()
	case err != nil: // the poller's own words for it
		return 0, nil, os.ErrClosed
	}
	return n, from, recvErr
}

// send writes one packet.
func (s *rawSock) send(pkt []byte, to netip.Addr) error {
	var sendErr error
	err := s.conn.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), pkt, 0, sockaddr(to))
		return sendErr != unix.EAGAIN
	})
	if err != nil {
		return err
	}
	return sendErr
}

// sockaddr is an address without a port, which raw sockets do not have.
func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

func domainOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// SendIP sends a whole IPv4 or IPv6 packet, header included, from the host: through
// its output hooks and its routes. The source may be anybody's. See IPPacket.
func (h *Host) SendIP(pkt []byte) error {
	hdr, err := ParseIP(pkt)
	if err != nil {
		return err
	}
	s, err := h.rawSocket(domainOf(hdr.Dst.Addr()), unix.SOCK_RAW, unix.IPPROTO_RAW, func(int) error { return nil })
	if err != nil {
		return err
	}
	defer s.file.Close()
	if err := s.send(pkt, hdr.Dst.Addr()); err != nil {
		return fmt.Errorf("lab: %s: send a packet to %s: %w", h.Name, hdr.Dst.Addr(), err)
	}
	return nil
}

// Packet is one captured packet.
type Packet struct {
	Data      []byte // from the network header on
	EtherType uint16 // 0x0800 IPv4, 0x86dd IPv6, 0x0806 ARP
	Out       bool   // sent by the host, not received

	LinkDst, LinkSrc net.HardwareAddr // with CaptureFrames alone
}

// Capture sees what passes one device, from the moment it is made. TCP and UDP
// checksums may be unfinished, as virtual devices never need them.
type Capture struct {
	host   *Host
	sock   *rawSock
	frames bool // packets come with their link-layer header
}

// captureBuffer is the size asked for the socket's buffer, in bytes.
const captureBuffer = 8 << 20

// Capture starts to capture on a device. Close it after use; the Net does otherwise.
func (h *Host) Capture(dev string) (*Capture, error) { return h.capture(dev, unix.SOCK_DGRAM) }

func (h *Host) capture(dev string, typ int) (*Capture, error) {
	link, release, err := h.device(dev)
	if err != nil {
		return nil, err
	}
	release()
	// Protocol 0 until it is bound: else packets of other devices would come first.
	sock, err := h.rawSocket(unix.AF_PACKET, typ, 0, func(fd int) error {
		// Only a wish: the default holds some hundred packets.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
	})
	if err != nil {
		return nil, err
	}
	c := &Capture{host: h, sock: sock, frames: typ == unix.SOCK_RAW}
	if err := h.net.own(c); err != nil {
		sock.file.Close()
		return nil, err
	}
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Close ends the capture.
func (c *Capture) Close() error {
	c.host.net.disown(c)
	return c.sock.file.Close()
}

// Next waits for the next packet, until ctx ends.
func (c *Capture) Next(ctx context.Context) (Packet, error) {
	buf := make([]byte, 64<<10)
	n, from, err := c.sock.recv(ctx, buf)
	if err != nil {
		return Packet{}, err
	}
	p := Packet{Data: buf[:n:n]}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		p.EtherType, p.Out = htons(ll.Protocol), ll.Pkttype == unix.PACKET_OUTGOING
	}
	if c.frames {
		p.link()
	}
	return p, nil
}

// Find returns the next IP packet that match wants, and its header.
func (c *Capture) Find(ctx context.Context, match func(Packet, Header) bool) (Packet, Header, error) {
	for {
		p, err := c.Next(ctx)
		if err != nil {
			return p, Header{}, err
		}
		if hdr, err := ParseIP(p.Data); err == nil && match(p, hdr) {
			return p, hdr, nil
		}
	}
}
