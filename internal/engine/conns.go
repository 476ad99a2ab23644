package engine

import (
	"context"
	"errors"

	"weir/internal/conntrack"
	"weir/internal/model"
	"weir/internal/plan"
)

// Conntrack is Connections on the kernel's connection table.
type Conntrack struct {
	Conn *conntrack.Conn
	// Engine has the rules reset the clients of connections that End ends, and Nudges makes
	// those speak that wait in silence. Without them, clients find out by themselves.
	Engine *Engine
	Nudges Nudger
}

// dumpTries is how often a dump that the kernel interrupted is begun again.
const dumpTries = 5

// each calls fn for every connection whose destination was translated.
func (c Conntrack) each(ctx context.Context, fn func(conntrack.Flow) bool) error {
	filter := conntrack.Filter{Status: conntrack.StatusDNAT, StatusMask: conntrack.StatusDNAT}
	var err error
	for range dumpTries {
		if err = c.Conn.Dump(ctx, filter, fn); !errors.Is(err, conntrack.ErrInterrupted) {
			return err
		}
	}
	return err
}

// Count implements Connections. A connection that the dump shows twice counts once.
func (c Conntrack) Count(ctx context.Context, cfg *model.Config) (map[Member]int, error) {
	book := newBook(cfg)
	live := map[Member]int{}
	seen := map[uint32]bool{}
	err := c.each(ctx, func(f conntrack.Flow) bool {
		if s, b, ok := book.backend(f); ok && !over(f) && !seen[f.ID] {
			seen[f.ID] = f.ID != 0
			live[Member{s.Name, b.ID()}]++
		}
		return true
	})
	return live, err
}

// over reports whether a TCP connection has ended and is only remembered: for minutes,
// in which nobody who waits for its end should have to wait.
func over(f conntrack.Flow) bool {
	const timeWait, closed = 7, 8 // enum tcp_conntrack, uapi/linux/netfilter/nf_conntrack_tcp.h
	return f.Proto == model.TCP && (f.TCPState == timeWait || f.TCPState == closed)
}

// unanswered reports whether a TCP client has had no answer at all yet. There is nothing to
// keep of such a connection: without it, the client's next try of its first packet, a
// second later, gets another backend, and the client never learns of the one that died.
func unanswered(f conntrack.Flow) bool {
	return f.Proto == model.TCP && f.Status&conntrack.StatusSeenReply == 0
}

// End implements Connections: it deletes what the kernel remembers of them. The next
// packet of a UDP flow then starts anew and gets another backend. TCP clients of a service
// with `on_down: reset` get a reset; the next packet of another one meets a backend that
// knows nothing of it, whose business the answer is.
func (c Conntrack) End(ctx context.Context, cuts []Cut) (int, error) {
	type end struct {
		service *model.Service
		backend string
	}
	all := map[end]bool{}
	cfg := &model.Config{}
	named := map[*model.Service]bool{}
	for _, k := range cuts {
		e := end{k.Service, k.Backend.ID()}
		all[e] = all[e] || k.All
		if !named[k.Service] {
			named[k.Service] = true
			cfg.Services = append(cfg.Services, k.Service)
		}
	}
	book := newBook(cfg)
	cut := &cutter{remove: c.Conn.Delete, nudges: c.Nudges}
	if c.Engine != nil {
		cut.refuse = c.Engine.Refuse
	}
	err := c.each(ctx, func(f conntrack.Flow) bool {
		s, b, ok := book.backend(f)
		if !ok {
			return true
		}
		every, ends := all[end{s, b.ID()}]
		if ends && (every || f.Proto == model.UDP || unanswered(f)) {
			cut.add(ctx, s, f)
		}
		return true
	})
	cut.flush(ctx)
	return cut.ended, errors.Join(append(cut.errs, err)...)
}

// backend returns the service and the backend that a translated connection belongs to.
func (b *book) backend(f conntrack.Flow) (*model.Service, model.Backend, bool) {
	at, ok := b.find(plan.Pair{Listen: unzoned(f.Orig.Dst), Proto: f.Proto, Backend: unzoned(f.Reply.Src)})
	if !ok || at.backend < 0 {
		return nil, model.Backend{}, false
	}
	s := b.cfg.Services[at.service]
	return s, s.Backends[at.backend], true
}
