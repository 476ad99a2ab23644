package engine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"weir/internal/keep"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/state"
)

// Memory is what a weir must know of the one before it: what operators said of backends and
// of addresses, and which backends were down, so that a restart does not send connections to them until the
// checks have found out anew.
type Memory struct {
	Words map[Member]state.Word
	Down  map[Member]state.Health

	Blocks []lists.Block
	Drains map[netip.Addr]state.Word // of addresses of egress pools

	Mirrors []*MirrorMemory
}

// memoryFile is the form in which it is kept.
type memoryFile struct {
	Version int        `json:"version"`
	Words   []keptWord `json:"words"`
	Down    []keptDown `json:"down"`

	Blocks  []lists.Block   `json:"blocks,omitempty"`
	Drains  []keptDrain     `json:"egress_drains,omitempty"`
	Mirrors []*MirrorMemory `json:"mirrors,omitempty"`
}

type keptDrain struct {
	Address netip.Addr `json:"address"`
	state.Word
}

type keptDown struct {
	Service string    `json:"service"`
	Backend string    `json:"backend"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
}

type keptWord struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
	state.Word
}

const memoryVersion = 1

// LoadMemory reads what was kept. A file that is not there is nothing known; one that
// cannot be understood is an error, and nothing is read from it.
func LoadMemory(path string) (Memory, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Memory{}, nil
	}
	if err != nil {
		return Memory{}, err
	}
	var f memoryFile
	if err := json.Unmarshal(text, &f); err != nil {
		return Memory{}, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version != memoryVersion {
		return Memory{}, fmt.Errorf("%s: version %d is not known; this weir knows %d", path, f.Version, memoryVersion)
	}
	m := Memory{make(map[Member]state.Word, len(f.Words)), make(map[Member]state.Health, len(f.Down)), f.Blocks, make(map[netip.Addr]state.Word, len(f.Drains)), f.Mirrors}
	for _, d := range f.Drains {
		if !d.Address.IsValid() || d.Admin != state.Drain {
			return Memory{}, fmt.Errorf("%s: %q of egress address %q is not a word that weir knows", path, d.Admin, d.Address)
		}
		m.Drains[d.Address] = d.Word
	}
	for _, b := range f.Blocks {
		if err := b.Check(); err != nil {
			return Memory{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, s := range f.Mirrors {
		if err := s.check(); err != nil {
			return Memory{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, w := range f.Words {
		if err := w.check(); err != nil {
			return Memory{}, fmt.Errorf("%s: %s of service %s: %w", path, w.Backend, w.Service, err)
		}
		m.Words[Member{w.Service, w.Backend}] = w.Word
	}
	for _, d := range f.Down {
		m.Down[Member{d.Service, d.Backend}] = state.Health{Down: true, Reason: d.Reason, Since: d.Since}
	}
	return m, nil
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

// SaveMemory replaces the file at once: a full disk or a crash leaves the one before.
func SaveMemory(path string, memory Memory) error {
	f := memoryFile{Version: memoryVersion, Words: []keptWord{}, Down: []keptDown{}, Blocks: memory.Blocks, Mirrors: memory.Mirrors}
	for a, w := range memory.Drains {
		f.Drains = append(f.Drains, keptDrain{a, w})
	}
	slices.SortFunc(f.Drains, func(a, b keptDrain) int { return a.Address.Compare(b.Address) })
	for m, h := range memory.Down {
		f.Down = append(f.Down, keptDown{m.Service, m.Backend, h.Reason, h.Since})
	}
	slices.SortFunc(f.Down, func(a, b keptDown) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	for m, w := range memory.Words {
		f.Words = append(f.Words, keptWord{m.Service, m.Backend, w})
	}
	slices.SortFunc(f.Words, func(a, b keptWord) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return keep.WriteFile(path, append(text, '\n'))
}
