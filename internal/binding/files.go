package binding

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxLine is the longest line that is read, in bytes; what is longer is no line of the log. A
// line on blocks names up to some thousand networks.
const maxLine = 4 << 20

// reader gives the lines of one file, compressed or not.
type reader struct {
	file *os.File
	gz   *gzip.Reader
	buf  *bufio.Reader
}

func openLog(path string) (*reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r := &reader{file: f}
	plain := bufio.NewReaderSize(f, 256<<10)
	if head, _ := plain.Peek(2); string(head) == "\x1f\x8b" {
		if r.gz, err = gzip.NewReader(plain); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		plain = bufio.NewReaderSize(r.gz, 256<<10)
	}
	r.buf = plain
	return r, nil
}

// next returns the next line without its end; it is good until the next call. io.EOF ends
// the file; a last line without an end is left out, for it may be half of one.
func (r *reader) next() ([]byte, error) {
	line, err := r.buf.ReadSlice('\n')
	if err == nil {
		return line[:len(line)-1], nil
	}
	long := bytes.Clone(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.buf.ReadSlice('\n')
		if len(long) <= maxLine {
			long = append(long, line...)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(long) > maxLine {
		return nil, nil // no line
	}
	return long[:len(long)-1], nil
}

func (r *reader) close() {
	if r.gz != nil {
		r.gz.Close()
	}
	r.file.Close()
}

// logFile is a file of a log and when it begins.
type logFile struct {
	path  string
	first time.Time // of its first line
	whole bool      // it begins with all that was open
}

// LogFiles returns the files that path has become and was: itself, and those beside it whose
// names begin with its name and a dot or a hyphen, as logrotate makes them (.1, .2.gz,
// -20261121). Those that are not there, or are empty, are left out.
func LogFiles(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	base := filepath.Base(path)
	stem := strings.TrimSuffix(base, filepath.Ext(base)) // logrotate's `extension` puts the date before it
	var out []string
	for _, e := range entries {
		n := e.Name()
		if e.Type().IsRegular() && (n == base || strings.HasPrefix(n, base+".") || strings.HasPrefix(n, base+"-") ||
			strings.HasPrefix(n, stem+"-") && strings.Contains(n, filepath.Ext(base))) {
			out = append(out, filepath.Join(filepath.Dir(path), n))
		}
	}
	return out, nil
}

// order looks at the first line of each file and returns them in the order of their times.
// Files without a line of the log are left out.
func order(paths []string) ([]logFile, error) {
	var out []logFile
	for _, p := range paths {
		r, err := openLog(p)
		if err != nil {
			return nil, err
		}
		f := logFile{path: p}
		for f.first.IsZero() {
			text, err := r.next()
			if err != nil {
				if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
					r.close()
					return nil, fmt.Errorf("%s: %w", p, err)
				}
				break
			}
			if l, err := ParseLine(text); err == nil {
				f.first, f.whole = l.Time, l.Event == All
			}
		}
		r.close()
		if !f.first.IsZero() {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b logFile) int { return a.first.Compare(b.first) })
	return out, nil
}
