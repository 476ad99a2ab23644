package binding

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"weir/internal/conntrack"
	"weir/internal/model"
)

// Times of the logger, and sizes.
const (
	// quiet is how long it waits for events before it looks at other things.
	quiet = 500 * time.Millisecond
	// lookEvery is how often it looks whether the file was moved away.
	lookEvery = time.Second
	// compareEvery is how often it compares with the kernel, while there are connections
	// whose end the kernel may not tell; and it takes at most a fiftieth of the time.
	compareEvery = 30 * time.Second
	compareShare = 50
	// settleFor is for how long events that wait are taken before a comparison is settled.
	settleFor = 5 * time.Second
	// settleQuiet is how long no event must come until all that waited were taken.
	settleQuiet = 20 * time.Millisecond
	// retryEvery is how often it tries again to listen, to open the file or to compare.
	retryEvery = 5 * time.Second
	// queue is what the kernel may keep of events, in bytes, and doubles: some 100,000.
	queue = 32 << 20
)

// Source is where events come from. Implementation: conntrack.Events.
type Source interface {
	Next(deadline time.Time, fn func(f conntrack.Flow, ended bool)) error
	Close() error
}

// Table is the connection table. Implementation: conntrack.Conn.
type Table interface {
	Dump(ctx context.Context, filter conntrack.Filter, fn func(conntrack.Flow) bool) error
}

// Status is how the log fares. Its JSON form is part of weir's interface.
type Status struct {
	To     string    `json:"to"` // a path, "syslog" or "journald"
	Since  time.Time `json:"since"`
	Open   int       `json:"open_connections"`
	Lines  uint64    `json:"lines"`             // written
	Failed uint64    `json:"lines_failed"`      // that could not be
	Lost   uint64    `json:"events_lost_times"` // how often the kernel lost events
	Error  string    `json:"error,omitempty"`   // what is wrong now
}

// Logger writes the log of the bindings of the pools that say log: true. It listens to the
// kernel only while there is such a pool.
type Logger struct {
	Log    *slog.Logger
	Listen func() (Source, error) // begins to listen to events
	Table  Table
	Now    func() time.Time

	mu     sync.Mutex
	cfg    *model.Config
	status *Status // nil: nothing is logged

	wake chan struct{}

	// What Run's goroutine alone has.
	book     Book
	to       model.Bindings
	source   Source
	sink     sink
	taken    *model.Config // the configuration that the book has
	heard    time.Time     // the last time that nothing was missing
	failed   int           // lines since the last that could be written
	failedAt time.Time
	said     string // the last trouble that was told
	ended    map[conn]bool
	replayed chan left
	looked   time.Time
	compare  time.Time // when to compare next; zero: not at all
	logged   string    // which pools the comparison is about
	all      bool      // what is open is to be written as soon as it is known
	line     []byte
	retry    time.Time
}

// NewLogger returns one for the network namespace of the process.
func NewLogger(table Table, log *slog.Logger) *Logger {
	return &Logger{Log: log, Table: table, Now: time.Now, wake: make(chan struct{}, 1),
		Listen: func() (Source, error) { return conntrack.OpenEvents(queue) }}
}

// Set says which configuration is in force. It never waits.
func (l *Logger) Set(cfg *model.Config) {
	l.mu.Lock()
	l.cfg = cfg
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Status returns how the log fares, nil where nothing is logged.
func (l *Logger) Status() *Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status == nil {
		return nil
	}
	s := *l.status
	return &s
}

func (l *Logger) wanted() *model.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cfg
}

func (l *Logger) count(change func(*Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status != nil {
		change(l.status)
	}
}

// Run writes the log until ctx ends.
func (l *Logger) Run(ctx context.Context) {
	defer l.end()
	for ctx.Err() == nil {
		cfg := l.wanted()
		switch {
		case cfg == nil || !Logs(cfg.Egress) && l.book.Len() == 0:
			l.end()
			select {
			case <-ctx.Done():
			case <-l.wake:
			}
		case !l.begun(ctx, cfg):
			select {
			case <-ctx.Done():
			case <-l.wake:
			case <-time.After(quiet):
			}
		default:
			l.turn(ctx)
		}
	}
}

// begun sees that there is a place for lines, that events come, and that the book has the
// configuration. It reports false where nothing can be done now.
func (l *Logger) begun(ctx context.Context, cfg *model.Config) bool {
	if l.source != nil && cfg == l.taken {
		return true
	}
	now := l.Now()
	if l.sink != nil && l.to != cfg.Bindings {
		l.end()
	}
	fresh := l.source == nil
	if fresh {
		if now.Before(l.retry) {
			return false
		}
		if !l.start(cfg, now) {
			l.retry = now.Add(retryEvery)
			return false
		}
	}
	l.book.SetPools(cfg.Egress)
	l.taken = cfg
	if fresh {
		l.emit(Line{Time: now, Event: Watch})
	}
	l.look(now)
	l.book.TellBlocks(now, l.emit)
	if key := logged(cfg.Egress); fresh || key != l.logged {
		l.logged, l.compare = key, now
	}
	l.flush(now)
	return true
}

// logged says which connections are logged: with another, some that are open may be new to the book.
func logged(pools []*model.Pool) string {
	var b strings.Builder
	for _, p := range pools {
		if p.Log {
			fmt.Fprintln(&b, p.Name, p.Addresses, p.Masquerade, p.From, p.Block)
		}
	}
	return b.String()
}

func (l *Logger) start(cfg *model.Config, now time.Time) bool {
	l.to = cfg.Bindings
	name := l.to.File
	if l.to.To != model.BindingsFile {
		name = l.to.To.String()
	}
	l.mu.Lock()
	if l.status == nil {
		l.status = &Status{To: name, Since: now.UTC()}
	}
	l.mu.Unlock()
	sink, err := openSink(l.to)
	if err != nil {
		l.trouble("the log of bindings cannot be written: " + err.Error())
		return false
	}
	source, err := l.Listen()
	if err != nil {
		sink.close()
		l.trouble("connections that begin and end are not heard of: " + err.Error())
		return false
	}
	l.sink, l.source, l.heard, l.looked = sink, source, now, time.Time{}
	l.trouble("")
	l.ended, l.replayed = map[conn]bool{}, make(chan left, 1)
	if f, ok := sink.(*fileSink); ok {
		go func(done chan<- left, size int64) {
			old, err := replay(f.path, size)
			if err != nil {
				l.Log.Warn("the log of bindings cannot be read: connections that ended before now have no end there", "error", err)
			}
			done <- old
		}(l.replayed, f.wrote)
	} else {
		l.replayed <- left{}
	}
	return true
}

// trouble tells what is wrong, once; "" when nothing is any more.
func (l *Logger) trouble(words string) {
	l.count(func(s *Status) { s.Error = words })
	if words != l.said && words != "" {
		l.Log.Error(words)
	} else if words != l.said {
		l.Log.Info("the log of bindings is written")
	}
	l.said = words
}

// turn waits for events and does what is due.
func (l *Logger) turn(ctx context.Context) {
	err := l.next(l.Now().Add(quiet))
	now := l.Now()
	switch {
	case err == nil || errors.Is(err, os.ErrDeadlineExceeded):
		l.heard = now
	case errors.Is(err, conntrack.ErrLost):
		l.lost(now)
	default:
		l.trouble("connections that begin and end are not heard of: " + err.Error())
		l.end()
		l.retry = now.Add(retryEvery)
		return
	}
	if now.Sub(l.looked) >= lookEvery {
		l.look(now)
	}
	select {
	case old := <-l.replayed:
		l.book.Resume(old.last, old.open, l.ended)
		l.ended, l.replayed, l.compare = nil, nil, now
	default:
	}
	if l.replayed == nil && !l.compare.IsZero() && !now.Before(l.compare) {
		l.compareNow(ctx)
	}
	if l.all && l.replayed == nil && (l.compare.IsZero() || l.compare.After(now)) {
		l.all = false
		l.book.Snapshot(l.Now(), l.emit)
	}
	l.flush(l.Now())
	l.count(func(s *Status) { s.Open = l.book.Len() })
}

// next takes the events that come until the deadline.
func (l *Logger) next(deadline time.Time) error { return l.source.Next(deadline, l.hear) }

func (l *Logger) hear(f conntrack.Flow, ended bool) {
	if !ended {
		l.book.Begin(l.Now(), &f, l.emit)
		return
	}
	l.book.End(l.Now(), &f, l.emit)
	if l.ended != nil && len(l.ended) < maxEnded {
		l.ended[connOf(&f)] = true
	}
}

// maxEnded is how many ends are remembered while an old log is read.
const maxEnded = 1 << 20

func (l *Logger) lost(now time.Time) {
	l.emit(Line{Time: now, Event: Lost, After: l.heard})
	l.count(func(s *Status) { s.Lost++ })
	l.Log.Warn("events about connections were lost: the log of bindings says between which times", "after", l.heard)
	l.heard, l.compare = now, now
}

// look finds out whether the file is another now.
func (l *Logger) look(now time.Time) {
	l.looked = now
	fresh, err := l.sink.fresh()
	switch {
	case err != nil:
		l.trouble("the log of bindings cannot be written: " + err.Error())
	case fresh:
		l.all = true
		fallthrough
	case l.failed == 0:
		l.trouble("")
	}
}

// compareNow compares with what the kernel has.
func (l *Logger) compareNow(ctx context.Context) {
	began := l.Now()
	d, err := l.book.Compare(began, func(fn func(conntrack.Flow) bool) error {
		return l.Table.Dump(ctx, conntrack.Filter{Status: conntrack.StatusSNAT, StatusMask: conntrack.StatusSNAT}, fn)
	}, l.emit)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, conntrack.ErrInterrupted) {
			l.Log.Warn("the connection table cannot be read for the log of bindings", "error", err)
		}
		l.compare = began.Add(retryEvery)
		return
	}
	dumped := l.Now()
	for err == nil && l.Now().Sub(dumped) < settleFor {
		err = l.source.Next(l.Now().Add(settleQuiet), func(f conntrack.Flow, ended bool) {
			if ended {
				d.Ended(&f)
			}
			l.hear(f, ended)
		})
	}
	if errors.Is(err, conntrack.ErrLost) {
		l.lost(l.Now())
		return
	}
	l.book.Settle(began, d, l.emit)
	l.compare = time.Time{}
	if l.book.Unsure() > 0 {
		l.compare = l.Now().Add(max(compareEvery, compareShare*dumped.Sub(began)))
	}
}

// emit gives a line to the sink.
func (l *Logger) emit(line Line) {
	l.line = line.Append(l.line[:0])
	l.sink.put(&line, l.line)
	l.count(func(s *Status) { s.Lines++ })
}

// flush writes what there is, and says what could not be written once that works again.
func (l *Logger) flush(now time.Time) {
	n, err := l.sink.flush()
	if n > 0 {
		if l.failed == 0 {
			l.failedAt = now
		}
		l.failed += n
		l.count(func(s *Status) { s.Failed += uint64(n); s.Lines -= uint64(n) })
		l.trouble("the log of bindings cannot be written: " + err.Error())
		return
	}
	if l.failed > 0 {
		line := Line{Time: now, Event: Failed, After: l.failedAt, Lines: l.failed}
		l.emit(line)
		if n, _ = l.sink.flush(); n == 0 {
			l.failed, l.all = 0, true
			l.trouble("")
		} else {
			l.count(func(s *Status) { s.Lines-- })
		}
	}
}

// end ends what was begun.
func (l *Logger) end() {
	if l.source != nil {
		l.source.Close()
		l.emit(Line{Time: l.Now(), Event: Stop})
		l.flush(l.Now())
		l.sink.close()
	}
	l.source, l.sink, l.taken, l.replayed = nil, nil, nil, nil
	l.book, l.compare, l.all = Book{}, time.Time{}, false
	l.mu.Lock()
	l.status = nil
	l.mu.Unlock()
}
