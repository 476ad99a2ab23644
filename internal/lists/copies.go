package lists

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"weir/internal/blocklist"
	"weir/internal/blocklist/files"
	"weir/internal/model"
)

// index says what the copies of a list's files are, in the file index.json beside them.
type index struct {
	Version int            `json:"version"`
	At      time.Time      `json:"at"`
	Size    blocklist.Size `json:"size"`
	Files   []string       `json:"files"`             // copy N, from 0, is of this file
	Entries []string       `json:"entries,omitempty"` // that stood in the configuration
}

const indexVersion = 1

// copyFiles keeps what was read of the files of a good list, for a start at which they are
// bad. A failure is told, and no more: the list is in use.
func (s *source) copyFiles(o Options) {
	if !s.uncopied {
		return
	}
	s.uncopied = false
	if o.Dir == "" || o.ReadOnly {
		return
	}
	if err := s.writeCopies(o.Dir); err != nil {
		o.Log.Warn("the last good blocklist could not be kept for the next start", "list", s.decl.Name, "error", err)
	}
}

// writeCopies replaces the directory of the list as a whole.
func (s *source) writeCopies(dir string) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, "."+s.decl.Name+".*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	ix := index{Version: indexVersion, At: s.goodAt, Size: *s.last}
	for i, st := range s.stamps {
		if err := copyFile(filepath.Join(tmp, strconv.Itoa(i)), st); err != nil {
			return err
		}
		ix.Files = append(ix.Files, st.name)
	}
	for _, e := range s.decl.Entries {
		ix.Entries = append(ix.Entries, e.Text)
	}
	if err := os.WriteFile(filepath.Join(tmp, sinceFile), s.good.Since(), 0o600); err != nil {
		return err
	}
	text, err := json.MarshalIndent(ix, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "index.json"), append(text, '\n'), 0o600); err != nil {
		return err
	}
	to := filepath.Join(dir, s.decl.Name)
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// copyFile copies a file that is still as it was read.
func copyFile(to string, st stamp) error {
	in, err := os.Open(st.name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, io.LimitReader(in, st.size+1)); err != nil {
		return err
	}
	if stampOf(st.name) != st {
		return fmt.Errorf("%s has changed meanwhile", st.name)
	}
	return out.Close()
}

// recall learns how large the last good list was before the start.
func (s *source) recall(o Options) {
	if ix, ok := s.index(o); ok {
		s.last = &ix.Size
	}
}

func (s *source) index(o Options) (index, bool) {
	if o.Dir == "" {
		return index{}, false
	}
	text, err := os.ReadFile(filepath.Join(o.Dir, s.decl.Name, "index.json"))
	if err != nil {
		return index{}, false // there was none
	}
	var ix index
	if err := json.Unmarshal(text, &ix); err != nil || ix.Version != indexVersion {
		o.Log.Warn("what was kept of a blocklist cannot be used", "list", s.decl.Name, "error", err, "version", ix.Version)
		return index{}, false
	}
	return ix, true
}

// restored is restore for a list that is to be in use.
func (s *source) restored(o Options) (*blocklist.List, time.Time) {
	l, at := s.restore(o)
	if l != nil {
		s.date(o, l, o.Now())
	}
	return l, at
}

// restore returns the last good list from the copies of its files, with the entries that the
// configuration has now, and when it was read; nil where there is none.
func (s *source) restore(o Options) (*blocklist.List, time.Time) {
	ix, ok := s.index(o)
	if !ok || len(s.decl.Files) == 0 || len(ix.Files) == 0 {
		return nil, time.Time{}
	}
	var entries []string
	for _, e := range s.decl.Entries {
		entries = append(entries, e.Text)
	}
	if l := s.build(o, ix, entries); l != nil {
		return l, ix.At
	}
	return nil, time.Time{}
}

// build makes a list of the copies of files and of these entries; nil where it cannot be.
func (s *source) build(o Options, ix index, entries []string) *blocklist.List {
	b := blocklist.NewBuilder(s.decl.Name, blocklist.Options{Strict: s.decl.Strict})
	for i, text := range entries {
		line := 0
		if i < len(s.decl.Entries) && s.decl.Entries[i].Text == text {
			line = s.decl.Entries[i].Line
		}
		if err := b.AddEntry(o.Config, line, 0, text); err != nil {
			return nil
		}
	}
	for i, name := range ix.Files {
		if err := files.ReadCopy(b, filepath.Join(o.Dir, s.decl.Name, strconv.Itoa(i)), name); err != nil {
			o.Log.Warn("the copy of the last good blocklist cannot be used", "list", s.decl.Name, "error", err)
			return nil
		}
	}
	return b.List()
}

// Kept returns the last good lists that are kept in o.Dir, as far as their copies can be read, in
// the order of their names.
func Kept(o Options) []*blocklist.List {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dirs, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil // there are none
	}
	var out []*blocklist.List
	for _, d := range dirs {
		if d.Name()[0] == '.' {
			continue
		}
		s := &source{decl: &model.Blocklist{Name: d.Name()}}
		if ix, ok := s.index(o); ok {
			if l := s.build(o, ix, ix.Entries); l != nil {
				out = append(out, l)
			}
		}
	}
	return out
}
