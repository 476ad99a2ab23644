// Package nudge makes silent TCP clients speak: it sends them a segment that cannot belong
// to their connection, and they answer, as RFC 9293 section 3.10.7.4 wants, with an ACK
// that carries their connection's true numbers. Whoever has ended the connection can then
// answer that with a reset which the client believes (RFC 5961 section 3.2).
//
// What the right sequence number is nobody can tell: the kernel keeps it to itself. So the
// first segment has any, and a client that does not answer gets another, half the number
// space away: a window is at most a quarter of it (RFC 7323 section 2.3), so that one of the
// two is outside whatever the connection's numbers are. In the first try that fails for one
// client in a thousand at worst, with a window of 4 MiB; it is there for lost segments too.
//
// The segment is a FIN. Linux answers it at once, from tcp_validate_incoming of
// net/ipv4/tcp_input.c: not subject to the limit of challenge ACKs (tcp_challenge_ack_limit),
// which all connections of a host share, as a SYN would be; nor to that of one socket
// (net.ipv4.tcp_invalid_ratelimit: one in half a second), which holds for segments that
// take no room in the number space, as bare ACKs, since only those can go to and fro for
// ever. It has no data that somebody could take for the server's. A firewall or a
// translator between here and the client that follows connections will drop it.
package nudge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// burst clients are nudged every pause, which makes 4,000 a second: their answers come
	// all at once.
	burst = 40
	pause = 10 * time.Millisecond
	// most is how many clients may be in work.
	most = 1 << 17
)

// tries are the sequence numbers of the segments that a client gets until it answers, and
// the time after each at which its answer must be there.
var tries = []struct {
	seq  uint32
	wait time.Duration
}{{0, time.Second}, {1 << 31, 2 * time.Second}, {0, time.Second}}

// Pair is the two ends of a connection: in whose name the segment is sent, and to whom.
// Both are of one family.
type Pair struct{ From, To netip.AddrPort }

// Report is how it went with the connections of one Send.
type Report struct {
	Clients int
	Silent  int   // clients that never answered
	Failed  int   // segments that could not be sent
	Err     error // the last reason why something failed
}

// Options are what a Sender is told. All may be left out. The functions are called from
// the Sender's goroutine.
type Options struct {
	// Silent returns those of the connections whose clients have not answered, though each
	// was sent that many segments. nil: nobody gets a second one.
	Silent func(ctx context.Context, pairs []Pair, sent int) ([]Pair, error)
	// Done is told when nothing is left to be done for the connections of one Send.
	Done func(Report)

	now   func() time.Time
	after func(time.Duration) <-chan time.Time
	send  func(Pair, uint32) error
}

// Sender nudges clients, some after the other, from the network namespace it was opened in.
// Its segments are packets of the box itself: they take its routes, as from the address in
// whose name they are sent, and pass its output hooks. Keeping them from conntrack is the
// rules' business. Its methods may be called from several goroutines.
type Sender struct {
	opts   Options
	v4, v6 int // sockets
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu   sync.Mutex
	jobs []*job
	load int // clients in all jobs, as they came
	wake chan struct{}
}

// job is what is left to do for the connections of one Send.
type job struct {
	due    time.Time
	pairs  []Pair // that have not answered
	try    int    // the next; len(tries): nothing but a last look
	report Report
}

// Open returns a Sender for the network namespace of the calling thread. It needs
// CAP_NET_RAW there.
func Open(opts Options) (*Sender, error) {
	s := &Sender{opts: opts, v4: -1, v6: -1, wake: make(chan struct{}, 1)}
	if s.opts.now == nil {
		s.opts.now, s.opts.after = time.Now, time.After
	}
	if s.opts.send == nil {
		if err := s.open(); err != nil {
			s.close()
			return nil, fmt.Errorf("nudge: open a raw socket: %w", err)
		}
		s.opts.send = s.nudge
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.ended.Go(func() { s.run(ctx) })
	return s, nil
}

// open makes sockets that send only (raw(7)), with addresses as their source that the box
// does not hold. A kernel without IPv6 has no clients that need it.
func (s *Sender) open() (err error) {
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if s.v4, err = unix.Socket(unix.AF_INET, kind, unix.IPPROTO_RAW); err != nil {
		return err
	}
	if err = unix.SetsockoptInt(s.v4, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return err
	}
	if s.v6, err = unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_RAW); errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	} else if err != nil {
		return err
	}
	return unix.SetsockoptInt(s.v6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
}

func (s *Sender) close() {
	for _, fd := range []int{s.v4, s.v6} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Close ends the Sender; clients that still wait are not nudged.
func (s *Sender) Close() {
	s.cancel()
	s.ended.Wait()
	s.close()
}

// Send has the clients of those connections nudged soon, and does not wait for it. It
// returns how many are left out because too many are in work already.
func (s *Sender) Send(pairs []Pair) (left int) {
	s.mu.Lock()
	n := min(len(pairs), most-s.load)
	if n > 0 {
		s.load += n
		s.jobs = append(s.jobs, &job{due: s.opts.now(), pairs: pairs[:n:n], report: Report{Clients: n}})
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return len(pairs) - n
}

// next takes the job that is due first, or returns nil and when that will be; never, if
// it is zero.
func (s *Sender) next() (*job, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) == 0 {
		return nil, 0
	}
	first := 0
	for i, j := range s.jobs {
		if j.due.Before(s.jobs[first].due) {
			first = i
		}
	}
	j := s.jobs[first]
	if wait := j.due.Sub(s.opts.now()); wait > 0 {
		return nil, wait
	}
	s.jobs = slices.Delete(s.jobs, first, first+1)
	return j, 0
}

func (s *Sender) run(ctx context.Context) {
	for ctx.Err() == nil {
		j, wait := s.next()
		if j != nil {
			s.work(ctx, j)
			continue
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = s.opts.after(wait)
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer:
		}
	}
}

// work makes the next try of a job, and puts it back if another one may be needed.
func (s *Sender) work(ctx context.Context, j *job) {
	if j.try > 0 {
		var err error
		if j.pairs, err = s.opts.Silent(ctx, j.pairs, j.try); err != nil {
			j.pairs, j.report.Err = nil, err
		}
	}
	if j.try == len(tries) || len(j.pairs) == 0 {
		s.finish(j)
		return
	}
	for i, p := range j.pairs {
		if i%burst == burst-1 {
			select {
			case <-ctx.Done():
				return
			case <-s.opts.after(pause):
			}
		}
		if err := s.opts.send(p, tries[j.try].seq); err != nil {
			j.report.Failed, j.report.Err = j.report.Failed+1, err
		}
	}
	if s.opts.Silent == nil {
		j.pairs = nil
		s.finish(j)
		return
	}
	j.due = s.opts.now().Add(tries[j.try].wait)
	j.try++
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, j)
}

func (s *Sender) finish(j *job) {
	j.report.Silent = len(j.pairs)
	s.mu.Lock()
	s.load -= j.report.Clients
	s.mu.Unlock()
	if s.opts.Done != nil {
		s.opts.Done(j.report)
	}
}

// nudge sends one segment.
func (s *Sender) nudge(p Pair, seq uint32) error {
	fd, to, source := s.v4, unix.Sockaddr(nil), []byte(nil)
	if a := p.To.Addr(); a.Is4() {
		to = &unix.SockaddrInet4{Addr: a.As4()}
		source = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: p.From.Addr().As4()})
	} else {
		fd, to = s.v6, &unix.SockaddrInet6{Addr: a.As16()}
		source = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: p.From.Addr().As16()})
	}
	if err := unix.Sendmsg(fd, segment(p, seq), source, to, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("nudge %s: %w", p.To, err)
	}
	return nil
}
