package engine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"weir/internal/model"
	"weir/internal/state"
)

// wordsFile is the form in which operators' words are kept across restarts.
type wordsFile struct {
	Version int        `json:"version"`
	Words   []keptWord `json:"words"`
}

type keptWord struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
	state.Word
}

const wordsVersion = 1

// LoadWords reads what operators said before. A file that is not there is nothing said;
// one that cannot be understood is an error, and nothing is read from it.
func LoadWords(path string) (map[Member]state.Word, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f wordsFile
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version != wordsVersion {
		return nil, fmt.Errorf("%s: version %d is not known; this weir knows %d", path, f.Version, wordsVersion)
	}
	words := make(map[Member]state.Word, len(f.Words))
	for _, w := range f.Words {
		if err := w.check(); err != nil {
			return nil, fmt.Errorf("%s: %s of service %s: %w", path, w.Backend, w.Service, err)
		}
		words[Member{w.Service, w.Backend}] = w.Word
	}
	return words, nil
}

// check says what of a word that was read back cannot have been said.
func (w keptWord) check() error {
	switch w.Admin {
	case state.None, state.Drain, state.Disable:
	default:
		return fmt.Errorf("%q is not a word that weir knows", w.Admin)
	}
	if n := w.Weight; n != nil && (*n < 0 || *n > model.MaxWeight) {
		return fmt.Errorf("weight %d; allowed: 0 to %d", *n, model.MaxWeight)
	}
	return nil
}

// SaveWords replaces the file at once: a full disk or a crash leaves the one before.
func SaveWords(path string, words map[Member]state.Word) error {
	f := wordsFile{Version: wordsVersion, Words: []keptWord{}}
	for m, w := range words {
		f.Words = append(f.Words, keptWord{m.Service, m.Backend, w})
	}
	slices.SortFunc(f.Words, func(a, b keptWord) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(text, '\n'))
}

// writeFile writes a file that appears whole or not at all, readable by its owner alone.
func writeFile(path string, text []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
