package lists

import (
	"os"
	"path/filepath"
	"time"

	"weir/internal/blocklist"
)

// sinceFile says since when the entries of a list are in it, in the directory of its copies.
const sinceFile = "since"

// date has a list that is to be in use from now on know since when its entries are in it: from
// the one in use or, at a start, from what was kept of the one before the start. Whoever only
// looks says nothing of what that does not tell: it is weir run and weir apply that take lists.
func (s *source) date(o Options, l *blocklist.List, now time.Time) {
	if o.ReadOnly {
		now = time.Time{}
	}
	old := s.good
	if old == nil && o.Dir != "" {
		data, err := os.ReadFile(filepath.Join(o.Dir, s.decl.Name, sinceFile))
		if err == nil && l.SetSince(data) == nil {
			return
		}
		old = s.before(o, data, err == nil)
	}
	switch {
	case old != nil:
		l.Follow(old, now)
	case !now.IsZero():
		l.StartAt(now)
	}
}

// before returns the list that was kept, with the times in data; nil where they do not belong
// together. Where no times are there, all was in it when it was read.
func (s *source) before(o Options, data []byte, there bool) *blocklist.List {
	ix, ok := s.index(o)
	if !ok {
		return nil
	}
	l := s.build(o, ix, ix.Entries)
	switch {
	case l == nil:
	case !there:
		l.StartAt(ix.At)
	default:
		if err := l.SetSince(data); err != nil {
			o.Log.Warn("since when entries are in a blocklist is not known any more", "list", s.decl.Name, "error", err)
			return nil
		}
	}
	return l
}
