package pickup

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MostPerSecond is how many packets a Sender sends on in a second: so many connections whoever
// makes such packets up can put into conntrack's table. The others are dropped; a FIN is repeated.
const MostPerSecond = 1000

// Stats are the packets that a Sender was given.
type Stats struct {
	Sent    uint64 // sent on; of those that were not there as a whole, that which lets the repetition pass
	Limited uint64 // more than MostPerSecond
	Dropped uint64 // for any other reason
}

// Sender sends from the network namespace it was opened in. Its methods may be called from several
// goroutines.
type Sender struct {
	sent, limited, dropped atomic.Uint64

	mu     sync.Mutex
	v4, v6 int // sockets; -1: there is none
	now    func() time.Time
	at     time.Time // when tokens were counted
	tokens float64
}

// Open returns a Sender for the network namespace of the calling thread. It needs CAP_NET_RAW and
// CAP_NET_ADMIN there.
func Open() (*Sender, error) {
	s := &Sender{v4: -1, v6: -1, now: time.Now, tokens: MostPerSecond}
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	var err error
	if s.v4, err = unix.Socket(unix.AF_INET, kind, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("pickup: open a raw socket: %w", err)
	}
	if s.v6, err = unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_RAW); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		s.Close()
		return nil, fmt.Errorf("pickup: open a raw socket: %w", err)
	}
	return s, nil
}

// Close frees the sockets; what is sent then is dropped.
func (s *Sender) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range []*int{&s.v4, &s.v6} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
}

// Send sends on the packet of which data is the beginning, with a mark by which the rules for the
// box's own packets know the backend. Its way is first that to the backend's address, which must be
// of the packet's family, and then that to where it is translated. It does not wait.
func (s *Sender) Send(data []byte, mark uint32, backend netip.Addr) {
	first, then, err := packets(data)
	switch {
	case err != nil, (data[0]>>4 == 4) != backend.Is4():
		s.dropped.Add(1)
		return
	case !s.token():
		s.limited.Add(1)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, to := s.v4, unix.Sockaddr(nil)
	if backend.Is4() {
		to = &unix.SockaddrInet4{Addr: backend.As4()}
	} else {
		fd, to = s.v6, &unix.SockaddrInet6{Addr: backend.As16()}
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	for _, b := range [][]byte{first, then} {
		if err == nil && b != nil {
			err = unix.Sendto(fd, b, unix.MSG_NOSIGNAL, to)
		}
	}
	// The rules' drop comes back as EPERM.
	if err != nil {
		s.dropped.Add(1)
		return
	}
	s.sent.Add(1)
}

// token takes one of MostPerSecond.
func (s *Sender) token() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.tokens = min(MostPerSecond, s.tokens+now.Sub(s.at).Seconds()*MostPerSecond)
	s.at = now
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// Stats returns what became of the packets so far.
func (s *Sender) Stats() Stats {
	return Stats{s.sent.Load(), s.limited.Load(), s.dropped.Load()}
}
