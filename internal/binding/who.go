package binding

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/internal/model"
)

// Question asks who had an address and a port of a pool at a time.
type Question struct {
	Outside netip.AddrPort // port 0: any
	Proto   model.Proto    // 0: any
	To      netip.AddrPort // the destination; invalid: any, port 0: any port
	At      time.Time
}

// Answer is a client that had it.
type Answer struct {
	Pool   string `json:"pool"`
	Proto  string `json:"proto,omitempty"` // of a block: "", it holds for all with ports
	Inside string `json:"inside"`          // address and port, of a block the client's address
	To     string `json:"to,omitempty"`
	// Block is the ports that are the client's alone, where the answer follows from them.
	Block string    `json:"block,omitempty"`
	Start time.Time `json:"start,omitzero"` // zero: before the log knew of it
	// End is when it ended; zero: the log has no end of it. Where EndAfter is given, the end was
	// not heard, and lies between the two.
	End      time.Time `json:"end,omitzero"`
	EndAfter time.Time `json:"end_after,omitzero"`
	// Maybe says that it may have begun after the time asked for, or have ended before it.
	Maybe bool `json:"maybe,omitempty"`
	// Used says, of a block, that the log has seen the client use it by then.
	Used bool `json:"used,omitempty"`
	// Configured says, of a block, that it follows from the configuration as it is now, for the
	// log says nothing of the time.
	Configured bool `json:"configured,omitempty"`

	client netip.Addr
}

// Gap is a time of which the log does not tell all.
type Gap struct {
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to"`
	Why  string    `json:"why"` // "not watched", "events lost" or "not written"
}

// Told is what the logs say.
type Told struct {
	Answers []Answer `json:"answers"`
	// More is how many further answers there are.
	More int `json:"more,omitempty"`
	// First and Last are the times of the first and the last line that was read; zero: none.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// Gaps are those that hold the time asked for.
	Gaps []Gap `json:"gaps"`
	// Odd is how many lines were no lines of the log.
	Odd int `json:"odd_lines,omitempty"`
}

// Reaches reports whether the logs tell of the time at all.
func (t *Told) Reaches(at time.Time) bool { return !t.First.IsZero() && !at.Before(t.First) }

// MaxAnswers is how many answers are kept.
const MaxAnswers = 1000

// Who reads the files of a log, in any order, compressed or not, and answers q. It keeps no
// more than a line of each, and what fits the question.
func Who(ctx context.Context, paths []string, q Question) (Told, error) {
	files, err := order(paths)
	if err != nil {
		return Told{}, err
	}
	w := newAsked(q)
	if len(files) > 0 {
		w.told.First = files[0].first
	}
	// A file that begins with all that is open needs none before it.
	from := 0
	for i, f := range files {
		if f.whole && !f.first.After(q.At) {
			from = i
		}
	}
	for _, f := range files[from:] {
		if err := w.file(ctx, f.path); err != nil {
			return w.told, err
		}
	}
	w.finish()
	return w.told, nil
}

// asked is a question at work.
type asked struct {
	q     Question
	told  Told
	fits  [][]byte     // how the value of outside begins where a line is about the question
	open  []*candidate // connections that fit, and are open as far as was read
	all   time.Time    // of the list of all that is open that is being read
	left  int          // how many of its lines are still to come
	stamp []byte       // the time of the last line, as it stands there
	done  bool         // weir stopped watching with that
	pools map[string]*model.Pool
	used  map[use]bool
}

// candidate is a connection that fits.
type candidate struct {
	Answer
	outside string
	seen    time.Time // since when it is known to be open, and until when
	sure    time.Time
	listed  bool // in the list of all that is being read
}

func newAsked(q Question) *asked {
	w := &asked{q: q, pools: map[string]*model.Pool{}, used: map[use]bool{}}
	w.told.Gaps, w.told.Answers = []Gap{}, []Answer{}
	a := q.Outside
	full := a.String() + `"`
	if a.Port() == 0 {
		full = strings.TrimSuffix(a.String(), "0")
	}
	w.fits = [][]byte{[]byte(full), []byte(a.Addr().String() + `"`)}
	return w
}

func (w *asked) file(ctx context.Context, path string) error {
	r, err := openLog(path)
	if err != nil {
		return err
	}
	defer r.close()
	for n := 0; ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		text, err := r.next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w.text(text)
	}
}

// What lines begin with, as Append writes them.
const (
	timeHead    = `{"time":"`
	outsideHead = `"outside":"`
)

// text takes a line. One about another address, as nearly all are, is not parsed.
func (w *asked) text(text []byte) {
	if at := bytes.Index(text, []byte(timeHead)); at > 0 {
		text = text[at:] // what syslog put before it
	}
	if at := bytes.Index(text, []byte(outsideHead)); at >= 0 && bytes.HasPrefix(text, []byte(timeHead)) && len(text) > len(timeHead)+len(timeLayout) {
		rest := text[at+len(outsideHead):]
		if !slices.ContainsFunc(w.fits, func(f []byte) bool { return bytes.HasPrefix(rest, f) }) {
			w.stamp = append(w.stamp[:0], text[len(timeHead):len(timeHead)+len(timeLayout)]...)
			w.listOver(false)
			return
		}
	}
	l, err := ParseLine(text)
	if err != nil {
		w.told.Odd++
		return
	}
	before := w.lastTime()
	w.stamp = l.Time.UTC().AppendFormat(w.stamp[:0], timeLayout)
	w.take(&l, before)
	w.listOver(l.Event == All)
	w.done = l.Event == Stop
}

// lastTime returns the time of the last line.
func (w *asked) lastTime() time.Time {
	t, _ := time.Parse(timeLayout, string(w.stamp))
	return t
}

// listOver counts the lines of a list of all that is open, and closes what is not in it.
func (w *asked) listOver(begins bool) {
	if w.all.IsZero() {
		return
	}
	if !begins {
		w.left--
	}
	if w.left > 0 {
		return
	}
	for _, c := range slices.Clone(w.open) {
		if !c.listed {
			w.close(c, w.all, c.sure)
		}
	}
	w.all = time.Time{}
}

func (w *asked) take(l *Line, before time.Time) {
	switch l.Event {
	case All:
		w.all, w.left = l.Time, l.Lines
		for _, c := range w.open {
			c.listed = false
		}
	case Watch:
		if !before.IsZero() {
			w.gap(before, l.Time, "not watched")
		}
	case Lost:
		w.gap(l.After, l.Time, "events lost")
	case Failed:
		w.gap(l.After, l.Time, "not written")
	case Blocks:
		if p, ok := l.poolOf(); l.Time.After(w.q.At) {
		} else if ok {
			w.pools[l.Pool] = p
		} else {
			delete(w.pools, l.Pool)
		}
	case Block:
		if a, err := netip.ParseAddr(l.Inside); err == nil && !l.Time.After(w.q.At) {
			w.used[use{l.Pool, a}] = true
		}
	case Start, Open, End:
		if w.asks(l) {
			w.connection(l)
		}
	}
}

func (w *asked) gap(from, to time.Time, why string) {
	if !w.q.At.Before(from) && !w.q.At.After(to) {
		w.told.Gaps = append(w.told.Gaps, Gap{from, to, why})
	}
}

// asks reports whether the line is about what was asked for.
func (w *asked) asks(l *Line) bool {
	outside, err := parsePlace(l.Outside)
	if err != nil || outside.Addr() != w.q.Outside.Addr() || w.q.Outside.Port() != 0 && outside.Port() != w.q.Outside.Port() ||
		w.q.Proto != 0 && l.Proto != Protocol(w.q.Proto) {
		return false
	}
	if !w.q.To.IsValid() {
		return true
	}
	to, err := parsePlace(l.To)
	return err == nil && to.Addr() == w.q.To.Addr() && (w.q.To.Port() == 0 || to.Port() == w.q.To.Port())
}

func (w *asked) connection(l *Line) {
	var c *candidate
	for _, o := range w.open {
		if o.Proto == l.Proto && o.Inside == l.Inside && o.To == l.To && o.outside == l.Outside {
			c = o
		}
	}
	switch {
	case l.Event == Open && c != nil:
		c.listed, c.sure = true, l.Time
		return
	case l.Event == Start && c != nil: // the same again: the end of the first was not heard
		w.close(c, l.Time, c.sure)
		c = nil
	}
	if c == nil {
		c = &candidate{outside: l.Outside, seen: l.Time, sure: l.Time, listed: true,
			Answer: Answer{Pool: l.Pool, Proto: l.Proto, Inside: l.Inside, To: l.To, Start: l.Start}}
		if l.Event == Start {
			c.Start = l.Time
		}
		if len(w.open) >= maxOpen {
			w.told.More++
			return
		}
		w.open = append(w.open, c)
	}
	if l.Event == End {
		w.close(c, l.Time, l.After)
	}
}

// maxOpen is how many connections that fit are followed at a time.
const maxOpen = 1 << 16

// close ends a connection, which is an answer where it was there at the time asked for.
func (w *asked) close(c *candidate, end, after time.Time) {
	w.open = slices.DeleteFunc(w.open, func(o *candidate) bool { return o == c })
	c.End, c.EndAfter = end, after
	if end.Before(w.q.At) {
		return
	}
	w.answer(c, !after.IsZero() && after.Before(w.q.At))
}

// lateness is how long after the time asked for a connection may have begun by the log: weir
// may have heard of it late, and who asks often knows no more than the second.
const lateness = 2 * time.Second

func (w *asked) answer(c *candidate, maybe bool) {
	at := w.q.At
	switch {
	case c.Start.After(at.Add(lateness)):
		return
	case c.Start.After(at):
		maybe = true
	case c.Start.IsZero():
		maybe = maybe || at.Before(c.seen)
	}
	c.Maybe = maybe
	if len(w.told.Answers) >= MaxAnswers {
		w.told.More++
		return
	}
	w.told.Answers = append(w.told.Answers, c.Answer)
}

// BlockAnswer returns whose block of the pool the port is in.
func BlockAnswer(p *model.Pool, q Question) (Answer, bool) {
	if p.Block == 0 || q.Proto != 0 && q.Proto != model.TCP && q.Proto != model.UDP {
		return Answer{}, false
	}
	b, ok := p.ClientOf(q.Outside.Addr(), q.Outside.Port())
	return Answer{Pool: p.Name, Inside: b.Client.String(), Block: b.Ports.String(), client: b.Client}, ok
}

// finish answers with what is open at the end of the logs, and with blocks.
func (w *asked) finish() {
	w.left = 0
	w.listOver(true)
	w.told.Last = w.lastTime()
	for _, c := range w.open {
		w.answer(c, w.q.At.After(w.told.Last))
	}
	for _, name := range slices.Sorted(maps.Keys(w.pools)) {
		p := w.pools[name]
		if a, ok := BlockAnswer(p, w.q); ok {
			a.Used = w.used[use{name, a.client}]
			w.told.Answers = append(w.told.Answers, a)
		}
	}
	if w.done && w.q.At.After(w.told.Last) {
		w.told.Gaps = append(w.told.Gaps, Gap{From: w.told.Last, To: w.q.At, Why: "not watched"})
	}
	slices.SortStableFunc(w.told.Answers, func(a, b Answer) int { return a.Start.Compare(b.Start) })
}
