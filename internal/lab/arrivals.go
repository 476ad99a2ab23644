package lab

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Arrivals notes the TCP connections that somebody opens to a port of a host, by their
// first packet, whether it is answered or not.
type Arrivals struct {
	*Capture
	port uint16
	from []netip.Prefix
	done chan struct{}

	mu    sync.Mutex
	first map[arrival]time.Time
	last  time.Time
}

// arrival tells one connection from the next one of the same port, and both from a first
// packet that is sent again.
type arrival struct {
	src netip.AddrPort
	seq uint32
}

// Arrivals starts to watch on a device. Connections count whose source is in one of the
// networks. Close it after use; the Net does otherwise.
func (h *Host) Arrivals(dev string, port uint16, from ...netip.Prefix) (*Arrivals, error) {
	c, err := h.Capture(dev)
	if err != nil {
		return nil, err
	}
	a := &Arrivals{Capture: c, port: port, from: from, first: map[arrival]time.Time{}, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		for buf := make([]byte, 128); ; { // no header is longer; the kernel cuts the rest
			n, _, err := c.sock.recv(context.Background(), buf)
			if err != nil {
				return
			}
			a.look(buf[:n], time.Now())
		}
	}()
	return a, nil
}

// look notes a packet if it is the first of a connection.
func (a *Arrivals) look(b []byte, at time.Time) {
	var src netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		src = netip.AddrFrom4([4]byte(b[12:16]))
		b = b[min(4*int(b[0]&15), len(b)):]
	case len(b) >= 40 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		src = netip.AddrFrom16([16]byte(b[8:24]))
		b = b[40:]
	}
	if len(b) < 20 || b[13]&(SYN|ACK) != SYN || binary.BigEndian.Uint16(b[2:]) != a.port || !a.counts(src) {
		return
	}
	key := arrival{netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[4:])}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.first[key].IsZero() {
		a.first[key], a.last = at, at
	}
}

func (a *Arrivals) counts(src netip.Addr) bool {
	for _, p := range a.from {
		if p.Contains(src) {
			return true
		}
	}
	return false
}

// Last returns when the last connection was seen first; zero: there was none.
func (a *Arrivals) Last() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// Since returns how many connections were seen first at that time or later.
func (a *Arrivals) Since(t time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.first {
		if !at.Before(t) {
			n++
		}
	}
	return n
}
