package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"weir/internal/engine"
	"weir/internal/keep"
)

// stateFile is where operators' words and who is down are kept when nobody says otherwise: the directory
// that systemd made for it (StateDirectory=weir), or /var/lib/weir.
func stateFile() string {
	dir := "/var/lib/weir"
	if list := filepath.SplitList(os.Getenv("STATE_DIRECTORY")); len(list) > 0 {
		dir = list[0]
	}
	return filepath.Join(dir, "state.json")
}

// openMemory reads what the weir before knew, and returns what keeps it from now on. Nothing that is wrong with the file keeps weir from running: it is said, a file
// that makes no sense is put aside, and save is nil where nothing can be kept.
func openMemory(path string, log *slog.Logger) (known engine.Memory, save func(engine.Memory) error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		log.Warn("what operators say will be lost with this process: no directory for it", "error", err)
		return known, nil
	}
	known, err := engine.LoadMemory(path)
	if err != nil {
		aside := path + ".bad"
		log.Error("what operators said before is not known", "error", err, "kept", aside)
		if err := os.Rename(path, aside); err != nil {
			log.Error("what operators say will be lost with this process: the file stays as it is", "error", err)
			return known, nil
		}
	}
	return known, func(m engine.Memory) error { return engine.SaveMemory(path, m) }
}

// openKept returns what keeps configurations; nil where nothing can be kept.
func openKept(state string, log *slog.Logger) *keep.Store {
	store := keep.Beside(state)
	if err := os.MkdirAll(store.Dir(), 0o700); err != nil {
		log.Warn("weir apply --confirm is not possible: no directory for it", "error", err)
		return nil
	}
	if _, err := store.Read(); err != nil {
		aside, failed := store.Aside()
		log.Error("what configuration was confirmed last is not known", "error", errors.Join(err, failed), "kept", aside)
	}
	return store
}
