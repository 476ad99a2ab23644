package nft

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// Event says that somebody, weir included, has committed a change of the ruleset. It is
// a hint, not a record: read what is there before acting on it.
type Event struct {
	Gen     uint32     // the generation that the commit made; 0 in an event that is Lost
	PID     int        // who committed, as the first PID namespace numbers it
	Process string     // its name, at most 15 bytes
	Tables  []TableRef // what was touched, each once; at most eventTables of them
	Lost    bool       // events were lost: anything may have changed
}

// eventTables is how many tables an event names.
const eventTables = 64

// monitor is the socket for events. It is made by Open, in the namespace of the
// connection, and joins the group when it is first used.
type monitor struct {
	mu   sync.Mutex
	file *os.File // nil once closed
	used bool
}

func newMonitor() (*monitor, error) {
	fd, err := openSocket()
	if err != nil {
		return nil, err
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, monitorBuffer)
	return &monitor{file: os.NewFile(uintptr(fd), "nftables events")}, nil
}

// monitorBuffer is how many bytes of events may wait. A large commit has more; then an
// event says that some were lost.
const monitorBuffer = 4 << 20

func (m *monitor) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file != nil {
		m.file.Close()
		m.file = nil
	}
}

// Monitor returns the commits that follow in the namespace of the connection, but for the
// connection's own of more than 4,096 elements and what others do while such a one lasts:
// who must know of those, too, looks at the generation now and then. The
// channel is closed when ctx is done or the connection closed; after that, or while it is
// in use, the connection gives no other. Who does not read the channel loses events, and
// the next says so.
func (c *Conn) Monitor(ctx context.Context) (<-chan Event, error) {
	m := c.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil || m.used {
		return nil, errors.New("nft: the monitor of this connection is closed or in use")
	}
	if err := m.join(); err != nil {
		return nil, err
	}
	m.used = true
	ch := make(chan Event, 16)
	file := m.file
	stop := context.AfterFunc(ctx, func() { file.SetReadDeadline(time.Unix(1, 0)) })
	go func() {
		defer close(ch)
		defer m.close()
		defer stop()
		r := eventReader{out: ch}
		for r.next(file) {
		}
	}()
	return ch, nil
}

// join makes the kernel send events to the socket.
func (m *monitor) join() error {
	return m.setsockopt(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
}

// quietElems is how many elements a transaction may have for the monitor to hear of it. As
// long as anybody listens, the kernel makes a message of some kilobytes for each element
// and holds all of them until the commit is done: seven gigabytes for a million.
const quietElems = 1 << 12

// pause makes the kernel send no events until the function that it returns is called. What
// is committed meanwhile is only seen by its generation.
func (m *monitor) pause() (resume func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil || !m.used || m.setsockopt(unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, unix.NFNLGRP_NFTABLES) != nil {
		return func() {}
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.file != nil {
			_ = m.join() // it was joined before
		}
	}
}

func (m *monitor) setsockopt(level, option, value int) error {
	raw, err := m.file.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, optErr)
}

type eventReader struct {
	out     chan<- Event
	buf     [64 << 10]byte
	pending Event // what the commit being read has touched so far
	lost    bool  // an event was not delivered
}

// next reads one datagram; false when the monitor ends.
func (r *eventReader) next(f *os.File) bool {
	n, err := f.Read(r.buf[:])
	if errors.Is(err, unix.ENOBUFS) {
		r.pending = Event{}
		r.deliver(Event{Lost: true})
		return true
	}
	if err != nil {
		return false
	}
	for h, body := range messages(string(r.buf[:n])) {
		if len(body) < 4 || h.typ>>8 != unix.NFNL_SUBSYS_NFTABLES {
			continue
		}
		family, body := body[0], body[4:]
		if h.typ != msgType(unix.NFT_MSG_NEWGEN) {
			r.touch(family, body)
			continue
		}
		e := r.pending
		r.pending = Event{}
		e.Gen = be32(attr(body, unix.NFTA_GEN_ID))
		e.PID = int(be32(attr(body, unix.NFTA_GEN_PROC_PID)))
		e.Process = cstr(attr(body, unix.NFTA_GEN_PROC_NAME))
		r.deliver(e)
	}
	return true
}

func (r *eventReader) deliver(e Event) {
	e.Lost = e.Lost || r.lost
	select {
	case r.out <- e:
		r.lost = false
	default:
		r.lost = true
	}
}

// familyNames are the families of tables by their number.
var familyNames = map[byte]ruleset.Family{
	unix.NFPROTO_INET:   ruleset.Inet,
	unix.NFPROTO_IPV4:   "ip",
	unix.NFPROTO_IPV6:   "ip6",
	unix.NFPROTO_ARP:    "arp",
	unix.NFPROTO_NETDEV: "netdev",
	unix.NFPROTO_BRIDGE: "bridge",
}

// touch notes the table of a notification. In all of them, whatever they are about, the
// attribute of number 1 is the table's name.
func (r *eventReader) touch(family byte, body string) {
	const nftaTable = unix.NFTA_TABLE_NAME
	ref := TableRef{familyNames[family], cstr(attr(body, nftaTable))}
	for _, t := range r.pending.Tables {
		if t == ref {
			return
		}
	}
	if len(r.pending.Tables) < eventTables {
		r.pending.Tables = append(r.pending.Tables, ref)
	}
}
