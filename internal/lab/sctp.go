package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// SCTP (RFC 9260) over raw sockets, for kernels that have none of their own: enough
// of it to open an association, so that conntrack sees both ways. A kernel with the
// sctp module loaded answers the same packets itself, with ABORT; don't mix the two.

// Chunk and parameter types, RFC 9260 sections 3.2 and 3.3.3.
const (
	chunkInit       = 1
	chunkInitAck    = 2
	chunkCookieEcho = 10
	chunkCookieAck  = 11
	paramCookie     = 7

	sctpHeaderLen = 12 // ports, verification tag, checksum
	initChunkLen  = 20

	cookieTagLen = 4 // the client's tag, which begins EchoSCTP's cookies
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SCTPInit is a whole IP packet with an INIT chunk that offers the initiate tag,
// which must not be 0; its CRC32c is right.
func SCTPInit(src, dst netip.AddrPort, tag uint32) []byte {
	p := sctpPacket(src, dst, 0, chunkInit, initBody(tag))
	return IPPacket(src.Addr(), dst.Addr(), unix.IPPROTO_SCTP, p)
}

// initBody is the fixed part of INIT and INIT ACK: tag, window, streams out and in,
// first TSN.
func initBody(tag uint32) []byte {
	b := make([]byte, initChunkLen-4)
	binary.BigEndian.PutUint32(b, tag)
	binary.BigEndian.PutUint32(b[4:], 64<<10)
	binary.BigEndian.PutUint16(b[8:], 1)
	binary.BigEndian.PutUint16(b[10:], 1)
	binary.BigEndian.PutUint32(b[12:], tag)
	return b
}

// sctpPacket is a common header and one chunk.
func sctpPacket(src, dst netip.AddrPort, tag uint32, chunk uint8, body []byte) []byte {
	p := make([]byte, sctpHeaderLen+4, sctpHeaderLen+4+len(body)+3)
	putPorts(p, src, dst)
	binary.BigEndian.PutUint32(p[4:], tag)
	p[sctpHeaderLen] = chunk
	binary.BigEndian.PutUint16(p[sctpHeaderLen+2:], uint16(4+len(body)))
	p = append(p, body...)
	for len(p)%4 != 0 { // the length leaves out this padding
		p = append(p, 0)
	}
	binary.LittleEndian.PutUint32(p[8:], sctpSum(p)) // RFC 9260 appendix A: low byte first
	return p
}

// sctpSum is the CRC32c of a packet with its checksum field taken as zero.
func sctpSum(p []byte) uint32 {
	sum := crc32.Update(0, castagnoli, p[:8])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, p[12:])
}

// SCTPSumOK reports whether the checksum of an SCTP packet (without IP header) is
// right.
func SCTPSumOK(p []byte) bool {
	return len(p) >= sctpHeaderLen && binary.LittleEndian.Uint32(p[8:]) == sctpSum(p)
}

// sctpChunk is the first chunk of a packet.
type sctpChunk struct {
	sport, dport uint16
	tag          uint32 // verification tag of the packet
	typ          uint8
	body         []byte
}

// parseSCTP reads a packet whose checksum and lengths are right; others are dropped,
// as a receiver does.
func parseSCTP(p []byte) (c sctpChunk, ok bool) {
	if len(p) < sctpHeaderLen+4 || !SCTPSumOK(p) {
		return c, false
	}
	end := sctpHeaderLen + int(binary.BigEndian.Uint16(p[sctpHeaderLen+2:]))
	if end < sctpHeaderLen+4 || end > len(p) {
		return c, false
	}
	return sctpChunk{
		sport: binary.BigEndian.Uint16(p), dport: binary.BigEndian.Uint16(p[2:]),
		tag: binary.BigEndian.Uint32(p[4:]), typ: p[sctpHeaderLen], body: p[sctpHeaderLen+4 : end],
	}, true
}

// initTag returns the initiate tag of an INIT or INIT ACK, 0 where there is none.
func (c sctpChunk) initTag() uint32 {
	if len(c.body) < initChunkLen-4 {
		return 0
	}
	return binary.BigEndian.Uint32(c.body)
}

// cookie returns the state cookie of an INIT ACK.
func (c sctpChunk) cookie() []byte {
	if len(c.body) < initChunkLen {
		return nil
	}
	param := c.body[initChunkLen-4:]
	n := int(binary.BigEndian.Uint16(param[2:]))
	if binary.BigEndian.Uint16(param) != paramCookie || n < 4 || n > len(param) {
		return nil
	}
	return param[4:n]
}

// rawSCTP is a raw socket for one local address.
func (h *Host) rawSCTP(local netip.Addr) (*rawSock, error) {
	return h.rawSocket(domainOf(local), unix.SOCK_RAW, unix.IPPROTO_SCTP, func(fd int) error {
		return unix.Bind(fd, sockaddr(local))
	})
}

// recvSCTP reads the next right packet and its sender.
func recvSCTP(ctx context.Context, s *rawSock, buf []byte) (c sctpChunk, from netip.Addr, err error) {
	for {
		n, sa, err := s.recv(ctx, buf)
		if err != nil {
			return c, from, err
		}
		p := buf[:n]
		switch sa := sa.(type) {
		case *unix.SockaddrInet4: // IPv4 raw sockets give the IP header too
			from = netip.AddrFrom4(sa.Addr)
			hdr, err := ParseIP(p)
			if err != nil {
				continue
			}
			p = hdr.Payload
		case *unix.SockaddrInet6:
			from = netip.AddrFrom16(sa.Addr)
		}
		if c, ok := parseSCTP(p); ok {
			return c, from, nil
		}
	}
}

// EchoSCTP answers INIT with INIT ACK and COOKIE ECHO with COOKIE ACK on literal
// addresses, which must not be wildcards. The state cookie is the client's tag
// and "id client:port".
func EchoSCTP(h *Host, id string, addrs ...string) (*Server, error) {
	s := &Server{ID: id, host: h}
	for _, addr := range addrs {
		ap, err := netip.ParseAddrPort(addr)
		if err == nil && ap.Addr().IsUnspecified() {
			err = errors.New("a wildcard address")
		}
		var sock *rawSock
		if err == nil {
			sock, err = h.rawSCTP(ap.Addr())
		}
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("lab: listen for sctp on %s: %w", addr, err)
		}
		s.stop = append(s.stop, sock.file.Close)
		s.Addrs = append(s.Addrs, net.UDPAddrFromAddrPort(ap))
		s.wg.Go(func() { s.answerSCTP(sock, ap) })
	}
	return s.run()
}

func (s *Server) answerSCTP(sock *rawSock, local netip.AddrPort) {
	for buf := make([]byte, 64<<10); ; {
		c, from, err := recvSCTP(context.Background(), sock, buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || c.dport != local.Port() {
			continue
		}
		client := netip.AddrPortFrom(from, c.sport)
		var out []byte
		switch {
		case c.typ == chunkInit && c.initTag() != 0:
			text := strings.TrimSuffix(s.reply(net.UDPAddrFromAddrPort(client)), "\n")
			cookie := append(binary.BigEndian.AppendUint32(nil, c.initTag()), text...)
			body := initBody(rand.Uint32() | 1)
			body = binary.BigEndian.AppendUint16(body, paramCookie)
			body = binary.BigEndian.AppendUint16(body, uint16(4+len(cookie)))
			out = sctpPacket(local, client, c.initTag(), chunkInitAck, append(body, cookie...))
		case c.typ == chunkCookieEcho && len(c.body) >= cookieTagLen:
			// No state is kept between the two: the client's tag comes back in the cookie.
			out = sctpPacket(local, client, binary.BigEndian.Uint32(c.body), chunkCookieAck, nil)
		default:
			continue
		}
		_ = sock.send(out, from) // one that cannot be sent is the client's timeout
	}
}

// askSCTP opens an association from laddr, or from the host's first address and any
// port, and returns the text of the cookie it was given.
func (h *Host) askSCTP(ctx context.Context, laddr, raddr string) (string, error) {
	remote, err := netip.ParseAddrPort(raddr)
	if err != nil {
		return "", fmt.Errorf("lab: dial: %w", err)
	}
	local := netip.AddrPortFrom(h.V6, ephemeralPort())
	if remote.Addr().Is4() {
		local = netip.AddrPortFrom(h.V4, local.Port())
	}
	if laddr != "" {
		if local, err = netip.ParseAddrPort(laddr); err != nil {
			return "", fmt.Errorf("lab: dial from: %w", err)
		}
	}
	sock, err := h.rawSCTP(local.Addr())
	if err != nil {
		return "", err
	}
	defer sock.file.Close()
	tag := rand.Uint32() | 1
	exchange := func(vtag uint32, typ uint8, body []byte, want uint8) (c sctpChunk, err error) {
		if err = sock.send(sctpPacket(local, remote, vtag, typ, body), remote.Addr()); err != nil {
			return c, fmt.Errorf("lab: %s: send sctp: %w", h.Name, err)
		}
		for buf := make([]byte, 64<<10); ; {
			c, from, err := recvSCTP(ctx, sock, buf)
			if err != nil {
				return c, err
			}
			if c.dport == local.Port() && netip.AddrPortFrom(from, c.sport) == remote && c.tag == tag && c.typ == want {
				return c, nil
			}
		}
	}
	ack, err := exchange(0, chunkInit, initBody(tag), chunkInitAck)
	if err != nil {
		return "", fmt.Errorf("lab: sctp INIT to %s: %w", raddr, err)
	}
	cookie := ack.cookie()
	if len(cookie) < cookieTagLen {
		return "", fmt.Errorf("lab: sctp INIT ACK from %s: no cookie", raddr)
	}
	if _, err := exchange(ack.initTag(), chunkCookieEcho, cookie, chunkCookieAck); err != nil {
		return "", fmt.Errorf("lab: sctp COOKIE ECHO to %s: %w", raddr, err)
	}
	return string(cookie[cookieTagLen:]), nil
}

func ephemeralPort() uint16 { return uint16(49152 + rand.IntN(65536-49152)) }
