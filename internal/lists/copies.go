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
	Files   []string       `json:"files"` // copy N, from 0, is of this file
}

const indexVersion = 1

// copyFiles keeps what was read of the files of a good list, for a start at which they are
// bad. A failure is told, and no more: the list is in use.
func (s *source) copyFiles(o Options) {
	if !s.uncopied {
		return
	}
	s.uncopied = false
	if o.Dir == "" || o.ReadOnly || len(s.decl.Files) == 0 {
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
	if o.Dir == "" || len(s.decl.Files) == 0 {
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

// restore returns the last good list from the copies of its files, and when it was read; nil
// where there is none.
func (s *source) restore(o Options) (*blocklist.List, time.Time) {
	ix, ok := s.index(o)
	if !ok {
		return nil, time.Time{}
	}
	b := blocklist.NewBuilder(s.decl.Name, blocklist.Options{Strict: s.decl.Strict})
	for _, e := range s.decl.Entries {
		if err := b.AddEntry(o.Config, e.Line, 0, e.Text); err != nil {
			return nil, time.Time{}
		}
	}
	for i, name := range ix.Files {
		if err := files.ReadCopy(b, filepath.Join(o.Dir, s.decl.Name, strconv.Itoa(i)), name); err != nil {
			o.Log.Warn("the copy of the last good blocklist cannot be used", "list", s.decl.Name, "error", err)
			return nil, time.Time{}
		}
	}
	return b.List(), ix.At
}

// Kept returns the last good lists whose files are kept in o.Dir, as far as those can be read,
// by their names: without the entries that stand in the configuration.
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
		s := &source{decl: &model.Blocklist{Name: d.Name(), Files: []string{"kept"}}}
		if l, _ := s.restore(o); l != nil && d.Name()[0] != '.' {
			out = append(out, l)
		}
	}
	return out
}
