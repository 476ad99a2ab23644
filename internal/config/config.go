// Package config turns the text of a configuration into a model.Config.
//
// Its one idea: the whole file is checked before anything is done with it, and every
// mistake in it is told at once, each with file, line and column, what was found and
// what is allowed. What it returns without an error is right; nothing checks it again.
//
// The text is read by the package yaml below this one, which lets a YAML library read a
// few hundred services at a time on every core, and hands them out one by one, in order.
// So a file of 10,000 services costs little more memory than its text and its model, and
// a broken service does not hide the mistakes of the next. The keys, their defaults and
// their meaning are the Go types of schema.go: the JSON Schema for editors, the lists of
// allowed keys in messages, and the reader follow them.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// Limits of a file.
const (
	// MaxSize is the largest file in bytes.
	MaxSize = 64 << 20
	// maxProblems is how many mistakes are kept; then reading ends.
	maxProblems = 1000
	// maxListens is the largest number of listen addresses and port ranges of one
	// service, maxAllListens of all of them. They bound the memory of a hostile file.
	maxListens    = 1024
	maxAllListens = 1 << 20
)

// Load reads the file and returns what it says. The error is an Errors; for a file that
// can not be read it unwraps to the system's error, such as fs.ErrNotExist.
func Load(path string) (*model.Config, error) {
	cfg, _, err := Read(path)
	return cfg, err
}

// Read is Load that also returns the text, for those who keep it. Parse understands it.
func Read(path string) (*model.Config, string, error) {
	text, bad := read(path)
	if bad != nil {
		return nil, "", Errors{bad}
	}
	cfg, err := parse(path, text)
	return cfg, text, err
}

// Parse is Load for a text that is in memory; name stands for the file in messages.
func Parse(name string, data []byte) (*model.Config, error) {
	if len(data) > MaxSize {
		return nil, Errors{tooLarge(name, int64(len(data)))}
	}
	return parse(name, string(data))
}

func parse(name, text string) (*model.Config, error) {
	d := yaml.Read(text, func() *decoder { return &decoder{name: name, names: map[string]int{}} })
	d.finish()
	if len(d.problems) > 0 {
		return nil, d.errors()
	}
	return &d.cfg, nil
}

// read returns the content of a regular file. It opens without waiting, so that a pipe
// without a writer does not hold up the caller.
func read(path string) (string, *Error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", unreadable(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", unreadable(path, err)
	case info.IsDir():
		return "", &Error{File: path, Msg: "is a directory; want a configuration file"}
	case !info.Mode().IsRegular():
		return "", &Error{File: path, Msg: "is not a regular file; want a configuration file"}
	case info.Size() > MaxSize:
		return "", tooLarge(path, info.Size())
	}
	var b strings.Builder
	b.Grow(int(info.Size()))
	n, err := io.Copy(&b, io.LimitReader(f, MaxSize+1))
	switch {
	case err != nil:
		return "", unreadable(path, err)
	case n > MaxSize: // it grew since
		return "", tooLarge(path, n)
	}
	return b.String(), nil
}

func tooLarge(name string, size int64) *Error {
	return &Error{File: name, Msg: fmt.Sprintf("has %d bytes; allowed: up to %d", size, MaxSize)}
}

func unreadable(path string, err error) *Error {
	why := err
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		why = pe.Err // the path is said already
	}
	return &Error{File: path, Msg: "can not be read: " + why.Error(), cause: err}
}
