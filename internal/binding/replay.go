package binding

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"weir/internal/model"
)

// left is what a log says was open at its end.
type left struct {
	open map[conn]state
	last time.Time // of its last line
}

// replay reads what was open at the end of the log that path was, up to size bytes of the
// file that is there now. Where that begins with no list of what was open, the one before it
// is read first. It takes memory for what is open at a time.
func replay(path string, size int64) (left, error) {
	l := left{open: map[conn]state{}}
	paths, err := LogFiles(path)
	if err != nil {
		return l, err
	}
	if size == 0 {
		paths = slices.DeleteFunc(paths, func(p string) bool { return p == path })
	}
	files, err := order(paths)
	if err != nil || len(files) == 0 {
		return l, err
	}
	from := len(files) - 1
	for from > 0 && !files[from].whole && len(files)-from < replayFiles {
		from--
	}
	for _, f := range files[from:] {
		limit := int64(-1)
		if f.path == path {
			limit = size
		}
		if err := l.read(f.path, limit); err != nil {
			return l, err
		}
	}
	return l, nil
}

// replayFiles is how many files are read at most.
const replayFiles = 3

func (l *left) read(path string, limit int64) error {
	r, err := openLog(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // moved on meanwhile
	}
	if err != nil {
		return err
	}
	defer r.close()
	for at := int64(0); limit < 0 || at < limit; {
		text, err := r.next()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}
		at += int64(len(text)) + 1
		if line, err := ParseLine(text); err == nil {
			l.take(&line)
		}
	}
	return nil
}

func (l *left) take(line *Line) {
	l.last = line.Time
	switch line.Event {
	case All:
		clear(l.open) // what follows is all
		return
	case Start, Open, End:
	default:
		return
	}
	c, ok := line.conn()
	switch {
	case !ok:
	case line.Event == End:
		delete(l.open, c)
	case line.Event == Start:
		l.open[c] = state{pool: line.Pool, start: line.Time}
	default:
		l.open[c] = state{pool: line.Pool, start: line.Start}
	}
}

// conn returns the connection that the line is about.
func (l *Line) conn() (conn, bool) {
	p, ok := protocols[l.Proto]
	inside, err1 := parsePlace(l.Inside)
	outside, err2 := parsePlace(l.Outside)
	to, err3 := parsePlace(l.To)
	if !ok || err1 != nil || err2 != nil || err3 != nil {
		return conn{}, false
	}
	at := func(a netip.AddrPort) place { return placeOf(a.Addr(), a.Port()) }
	return conn{p, inside.Addr().Is6(), at(inside), at(outside), at(to)}, true
}

// protocols is the opposite of Protocol.
var protocols = func() map[string]model.Proto {
	m := map[string]model.Proto{}
	for n := range 256 {
		m[Protocol(model.Proto(n))] = model.Proto(n)
	}
	return m
}()
