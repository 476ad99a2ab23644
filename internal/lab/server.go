package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server is something that answers on a host until it or the Net is closed.
type Server struct {
	// ID is the first word of every answer.
	ID string
	// Addrs are the addresses it listens on, with the ports that were taken for 0.
	Addrs []net.Addr

	host     *Host
	requests atomic.Uint64
	accepted atomic.Uint64
	conns    *connSet
	stop     []func() error
	wg       sync.WaitGroup
	once     sync.Once
	stopErr  error
}

// Requests returns the number of answers so far.
func (s *Server) Requests() uint64 { return s.requests.Load() }

// Accepted returns the number of connections so far; always 0 for UDP and SCTP.
func (s *Server) Accepted() uint64 { return s.accepted.Load() }

// Peak returns the most TCP connections that were open at a time, as EchoTCP knows them:
// from the moment it takes one to just before it closes its side.
func (s *Server) Peak() int {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	return s.conns.peak
}

// Close stops listening, ends the open connections and waits for both.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.host.net.disown(s)
		var errs []error
		for _, stop := range s.stop {
			if err := stop(); !errors.Is(err, net.ErrClosed) { // by http.Server.Close
				errs = append(errs, err)
			}
		}
		s.wg.Wait()
		s.stopErr = errors.Join(errs...)
	})
	return s.stopErr
}

// run owns the server, or closes it where the Net has been closed meanwhile.
func (s *Server) run() (*Server, error) {
	if err := s.host.net.own(s); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// reply is the answer to a client, of every kind of server.
func (s *Server) reply(client net.Addr) string {
	s.requests.Add(1)
	return s.ID + " " + client.String() + "\n"
}

// HTTPServer answers every request on the literal addresses with "id client:port".
func HTTPServer(h *Host, id string, addrs ...string) (*Server, error) {
	s := &Server{ID: id, host: h}
	hs := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, st http.ConnState) {
			if st == http.StateNew {
				s.accepted.Add(1)
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.requests.Add(1)
			w.Header().Set("Content-Type", "text/plain")
			fmt.Fprintf(w, "%s %s\n", s.ID, r.RemoteAddr)
		}),
	}
	s.stop = append(s.stop, hs.Close)
	for _, addr := range addrs {
		l, err := h.Listen("tcp", addr)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.stop = append(s.stop, l.Close)
		s.Addrs = append(s.Addrs, l.Addr())
		s.wg.Go(func() { _ = hs.Serve(l) })
	}
	return s.run()
}

// EchoTCP answers every line of a connection with "id client:port".
func EchoTCP(h *Host, id string, addrs ...string) (*Server, error) {
	conns := &connSet{conns: map[net.Conn]struct{}{}}
	s := &Server{ID: id, host: h, conns: conns}
	s.stop = append(s.stop, conns.closeAll)
	for _, addr := range addrs {
		l, err := h.Listen("tcp", addr)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.stop = append(s.stop, l.Close)
		s.Addrs = append(s.Addrs, l.Addr())
		s.wg.Go(func() { s.acceptLines(l, conns) })
	}
	return s.run()
}

func (s *Server) acceptLines(l net.Listener, conns *connSet) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the connection was gone before it was taken, or no file is free
			time.Sleep(time.Millisecond)
			continue
		}
		s.accepted.Add(1)
		if !conns.add(c) {
			c.Close()
			return
		}
		s.wg.Go(func() {
			defer conns.remove(c)
			for r := bufio.NewReader(c); ; {
				if _, err := r.ReadSlice('\n'); err != nil {
					return
				}
				if _, err := io.WriteString(c, s.reply(c.RemoteAddr())); err != nil {
					return
				}
			}
		})
	}
}

// connSet is the open connections of a server.
type connSet struct {
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	peak   int
	closed bool
}

func (cs *connSet) add(c net.Conn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if !cs.closed {
		cs.conns[c] = struct{}{}
		cs.peak = max(cs.peak, len(cs.conns))
	}
	return !cs.closed
}

func (cs *connSet) remove(c net.Conn) {
	cs.mu.Lock()
	delete(cs.conns, c)
	cs.mu.Unlock()
	c.Close()
}

func (cs *connSet) closeAll() error {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.closed = true
	for c := range cs.conns {
		c.Close()
	}
	return nil
}

// EchoUDP answers every datagram with "id client:port". With a wildcard address the
// kernel chooses the source of the answer; say the address that clients ask.
func EchoUDP(h *Host, id string, addrs ...string) (*Server, error) {
	s := &Server{ID: id, host: h}
	for _, addr := range addrs {
		c, err := h.ListenPacket("udp", addr)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.stop = append(s.stop, c.Close)
		s.Addrs = append(s.Addrs, c.LocalAddr())
		s.wg.Go(func() {
			for buf := make([]byte, 64<<10); ; {
				_, from, err := c.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					// An answer that cannot be sent is the client's timeout.
					_, _ = c.WriteTo([]byte(s.reply(from)), from)
				}
			}
		})
	}
	return s.run()
}
