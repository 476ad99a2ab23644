// Package files reads blocklists from the disk: it finds the files that patterns mean, and
// opens nothing but regular files, without waiting for anybody.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/blocklist"
)

// MaxFiles is how many files patterns may come to.
const MaxFiles = 10_000

// Expand returns the files that patterns mean, each once, those of a pattern sorted.
// Patterns are filepath.Match's; relative ones begin at base, the directory of the
// configuration file. A name without * ? [ stands for itself, whether it is there or not.
// For each pattern that is wrong or matches nothing there is an error in errs, which has
// the places of patterns.
func Expand(base string, patterns []string) (names []string, errs []error) {
	errs = make([]error, len(patterns))
	seen := map[string]bool{}
	for i, pattern := range patterns {
		var found []string
		found, errs[i] = expand(base, pattern)
		for _, name := range found {
			if seen[name] {
				continue
			}
			if len(names) == MaxFiles {
				errs[i] = fmt.Errorf("%q and those before it match more than %d files", pattern, MaxFiles)
				break
			}
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, errs
}

func expand(base, pattern string) ([]string, error) {
	if pattern == "" {
		return nil, errors.New("an empty file name")
	}
	if !strings.ContainsAny(pattern, `*?[\`) {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(base, pattern)
		}
		return []string{filepath.Clean(pattern)}, nil
	}
	whole := pattern
	if !filepath.IsAbs(pattern) {
		whole = filepath.Join(literal.Replace(base), pattern)
	}
	found, err := filepath.Glob(whole)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is no pattern: is a [ not closed?", pattern)
	case len(found) == 0:
		return nil, fmt.Errorf("%q matches no file in %s", pattern, filepath.Dir(whole))
	}
	slices.Sort(found)
	return found, nil
}

// literal takes from a directory's name what a pattern would mean by it.
var literal = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// Read adds the file of that name to a list. Errors are those of Builder.Add; a file that
// cannot be opened, or that changes while it is read, is a *blocklist.Problem too.
func Read(b *blocklist.Builder, name string) error {
	return read(name, b.MaxBytes(), func(f *os.File) error { return b.Add(name, f) })
}

// ReadCopy is Read of a copy of the file of that name: what is in it is said to stand there.
func ReadCopy(b *blocklist.Builder, path, name string) error {
	return read(path, b.MaxBytes(), func(f *os.File) error { return b.Add(name, f) })
}

// read opens a file, has it read, and looks whether it stayed the same meanwhile.
func read(name string, most int64, add func(*os.File) error) error {
	f, before, err := open(name)
	if err != nil {
		return problem(name, err)
	}
	defer f.Close()
	if before.Size() > most {
		return problem(name, fmt.Errorf("has %d bytes; a file of a list may hold %d", before.Size(), most))
	}
	if err := add(f); err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return problem(name, err)
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return problem(name, errors.New("changed while it was read; write lists under another name and rename them"))
	}
	return nil
}

func problem(name string, err error) *blocklist.Problem {
	msg := err.Error()
	if errno := unix.Errno(0); errors.As(err, &errno) {
		msg = errno.Error() // without the path, which stands before it
	}
	return &blocklist.Problem{File: name, Msg: msg}
}

// open opens a regular file, and nothing else: a FIFO would wait for a writer, and a device
// might do anything. It is looked at twice, for the name may come to mean another file in
// between, which O_NONBLOCK makes harmless.
func open(name string) (*os.File, fs.FileInfo, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if err := regular(info.Mode()); err != nil {
		return nil, nil, err
	}
	return openRegular(name)
}

// openRegular opens a file without waiting, and looks at what was opened.
func openRegular(name string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = regular(info.Mode())
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func regular(m fs.FileMode) error {
	what := ""
	switch {
	case m.IsRegular():
		return nil
	case m.IsDir():
		what = "a directory"
	case m&fs.ModeNamedPipe != 0:
		what = "a FIFO"
	case m&fs.ModeSocket != 0:
		what = "a socket"
	default:
		what = "a device"
	}
	return errors.New("is " + what + "; want a regular file")
}
