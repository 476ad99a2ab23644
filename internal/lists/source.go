package lists

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"weir/internal/blocklist"
	"weir/internal/blocklist/files"
	"weir/internal/model"
)

// source is one list of the configuration: the last good one, and what was read last.
type source struct {
	decl      *model.Blocklist
	seen      []stamp // of the files at the last look
	stamps    []stamp // of the files as they were read last; nil: read them
	anyChange bool    // the next one may differ as it likes: an operator said so

	good     *blocklist.List // the last good one; nil: none yet
	goodAt   time.Time       // when it was read
	last     *blocklist.Size // of the last good one, also of before the start; nil: there was none
	fresh    *blocklist.List // read, and not judged yet; nil: none
	freshAt  time.Time       // when it was read
	problem  string          // why what was read last is not in use; "": it is
	uncopied bool            // copies of the good one are still to be made
	cuts     string          // why the good one is not in use: what it would cut off now
}

// declare takes another declaration of the same list.
func (s *source) declare(decl *model.Blocklist) {
	if !s.decl.Equal(decl) {
		s.stamps = nil
		if !slices.Equal(s.decl.Files, decl.Files) || len(s.decl.Entries) != len(decl.Entries) {
			s.last = nil // what a person changed is no accident
		}
	}
	s.decl = decl
}

// stamp tells whether a file is another one than before, or was written to.
type stamp struct {
	name  string
	size  int64
	mtime time.Time
	inode uint64
	err   string // it cannot be looked at
}

func stampOf(name string) stamp {
	info, err := os.Stat(name)
	if err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = pe.Err
		}
		return stamp{name: name, err: err.Error()}
	}
	st := stamp{name: name, size: info.Size(), mtime: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.inode = sys.Ino
	}
	return st
}

// settled is how old a file must be to be read at the first look: what was written later
// may still be being written.
const settled = time.Second

// look reads the list if its files have changed. What it returns, nil for nothing, makes what
// was read that of the source, and reports whether there is something to judge: until then
// nothing changes that others see. With now set it does not wait for files to settle.
func (s *source) look(o Options, now bool) (take func() bool) {
	names, errs := files.Expand(".", s.decl.Files)
	stamps, calm := make([]stamp, 0, len(names)), true
	for _, name := range names {
		st := stampOf(name)
		stamps = append(stamps, st)
		if age := o.Now().Sub(st.mtime); !slices.Contains(s.seen, st) && age >= 0 && age < settled {
			calm = false
		}
	}
	s.seen = stamps
	if s.stamps != nil && slices.Equal(stamps, s.stamps) || !calm && !now {
		return nil
	}
	s.stamps = stamps
	list, err := s.read(o, names, errors.Join(errs...))
	if err == nil {
		at := o.Now()
		s.date(o, list, at)
		return func() bool { s.fresh, s.freshAt = list, at; return true }
	}
	var kept *blocklist.List
	var at time.Time
	if s.good == nil {
		kept, at = s.restored(o)
	}
	return func() bool {
		s.bad(o, err.Error())
		if s.good != nil || kept == nil {
			return false
		}
		s.good, s.goodAt = kept, at
		return true
	}
}

// read reads the list anew. missing says which files are not there at all.
func (s *source) read(o Options, names []string, missing error) (*blocklist.List, error) {
	if missing != nil {
		return nil, missing
	}
	b := blocklist.NewBuilder(s.decl.Name, blocklist.Options{Strict: s.decl.Strict})
	for _, e := range s.decl.Entries {
		if err := b.AddEntry(o.Config, e.Line, 0, e.Text); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if err := files.Read(b, name); err != nil {
			return nil, err
		}
	}
	list := b.List()
	if s.last != nil && !s.anyChange && len(s.decl.Files) > 0 {
		problems := blocklist.CheckChange(s.decl.Name, *s.last, list.Size(), s.decl.MaxChange*100)
		if len(problems) > 0 {
			return nil, errors.New(problems[0].Error() + "; if that is right: weir blocks accept " + s.decl.Name)
		}
	}
	return list, nil
}

// bad leaves what was read last alone.
func (s *source) bad(o Options, why string) {
	if s.problem != why {
		o.Log.Error("blocklist not taken; the last good one stays", "list", s.decl.Name, "error", why)
	}
	s.problem = why
}

// inUse returns the list that packets are to meet; nil: none.
func (s *source) inUse() *blocklist.List {
	switch {
	case s.fresh != nil:
		return s.fresh
	case s.cuts != "":
		return nil
	}
	return s.good
}

// takeBack does not take what was read last; when that was taken before, it goes.
func (s *source) takeBack(o Options, why string) {
	if s.fresh != nil {
		s.fresh = nil
		s.bad(o, why)
		if s.good == nil { // at a start
			s.good, s.goodAt = s.restored(o)
		}
		return
	}
	o.Log.Error("blocklist not in use", "list", s.decl.Name, "error", why)
	s.cuts = why
}

// accept makes what was read last the good one.
func (s *source) accept(o Options) {
	if s.fresh == nil {
		return
	}
	size := s.fresh.Size()
	if s.problem != "" {
		o.Log.Info("blocklist taken again", "list", s.decl.Name, "entries", size.Entries)
	}
	s.good, s.goodAt, s.last, s.fresh, s.problem, s.anyChange = s.fresh, s.freshAt, &size, nil, "", false
	s.uncopied = true
}
