package main

import (
	"log/slog"
	"os"
	"path/filepath"

	"weir/internal/engine"
	"weir/internal/state"
)

// stateFile is where operators' words are kept when nobody says otherwise: the directory
// that systemd made for it (StateDirectory=weir), or /var/lib/weir.
func stateFile() string {
	dir := "/var/lib/weir"
	if list := filepath.SplitList(os.Getenv("STATE_DIRECTORY")); len(list) > 0 {
		dir = list[0]
	}
	return filepath.Join(dir, "state.json")
}

// openWords reads what operators said before, and returns what keeps their words from now
// on. Nothing that is wrong with the file keeps weir from running: it is said, a file
// that makes no sense is put aside, and save is nil where nothing can be kept.
func openWords(path string, log *slog.Logger) (said map[engine.Member]state.Word, save func(map[engine.Member]state.Word) error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		log.Warn("what operators say will be lost with this process: no directory for it", "error", err)
		return nil, nil
	}
	said, err := engine.LoadWords(path)
	if err != nil {
		aside := path + ".bad"
		log.Error("what operators said before is not known", "error", err, "kept", aside)
		if err := os.Rename(path, aside); err != nil {
			log.Error("what operators say will be lost with this process: the file stays as it is", "error", err)
			return nil, nil
		}
	}
	return said, func(words map[engine.Member]state.Word) error { return engine.SaveWords(path, words) }
}
