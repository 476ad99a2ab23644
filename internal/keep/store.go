package keep

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Store is a directory with a record and the texts that it names, all for its owner alone.
type Store struct{ dir string }

// Beside returns the store that belongs to a state file: /var/lib/weir/state.config is that
// of /var/lib/weir/state.json.
func Beside(state string) *Store {
	return &Store{strings.TrimSuffix(state, ".json") + ".config"}
}

// Dir returns the directory. Nothing makes it before the first Write.
func (s *Store) Dir() string { return s.dir }

// recordFile is the form in which the record is kept.
type recordFile struct {
	Version int `json:"version"`
	Record
}

const recordVersion = 1

func (s *Store) record() string         { return filepath.Join(s.dir, "record.json") }
func (s *Store) text(sum string) string { return filepath.Join(s.dir, sum+".yaml") }

// Read returns the record. One that is not there is empty; one that cannot be understood is
// an error.
func (s *Store) Read() (Record, error) {
	text, err := os.ReadFile(s.record())
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, nil
	}
	if err != nil {
		return Record{}, err
	}
	var f recordFile
	if err := json.Unmarshal(text, &f); err != nil {
		return Record{}, fmt.Errorf("%s: %w", s.record(), err)
	}
	if f.Version != recordVersion {
		return Record{}, fmt.Errorf("%s: version %d is not known; this weir knows %d", s.record(), f.Version, recordVersion)
	}
	return f.Record, nil
}

// Aside puts a record that cannot be understood where it is in nobody's way, and returns
// its new name.
func (s *Store) Aside() (string, error) {
	bad := s.record() + ".bad"
	return bad, os.Rename(s.record(), bad)
}

// Text returns the text of a configuration that the record names. One that is not what was
// kept is an error.
func (s *Store) Text(c Config) (string, error) {
	text, err := os.ReadFile(s.text(filepath.Base(c.Sum)))
	if err != nil {
		return "", err
	}
	if Sum(string(text)) != c.Sum {
		return "", fmt.Errorf("%s: is not what was kept", s.text(filepath.Base(c.Sum)))
	}
	return string(text), nil
}

// Write replaces the record, once text, if it is not empty, is there under the name that
// the record gives it. Texts that it does not name are removed.
func (s *Store) Write(r Record, text string) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	sameOwner(s.dir)
	if text != "" {
		path := s.text(Sum(text))
		if old, err := os.ReadFile(path); err != nil || string(old) != text {
			if err := WriteFile(path, []byte(text)); err != nil {
				return err
			}
		}
	}
	r.Place = Here()
	out, err := json.MarshalIndent(recordFile{recordVersion, r}, "", "  ")
	if err != nil {
		return err
	}
	if err := WriteFile(s.record(), append(out, '\n')); err != nil {
		return err
	}
	s.tidy(r)
	return nil
}

// tidy removes the texts that r does not name. What stays for lack of rights harms nobody.
func (s *Store) tidy(r Record) {
	named := map[string]bool{}
	if r.Confirmed != nil {
		named[s.text(r.Confirmed.Sum)] = true
	}
	if r.Pending != nil {
		named[s.text(r.Pending.Sum)] = true
	}
	texts, _ := filepath.Glob(filepath.Join(s.dir, "*.yaml"))
	for _, t := range texts {
		if !named[t] {
			_ = os.Remove(t)
		}
	}
}
