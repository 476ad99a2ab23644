package blocklist

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

const (
	// readSize is the buffer for reading: a line that does not fit is too long.
	readSize = 64 << 10
	// hopelessLine is a line so long that the file is no list.
	hopelessLine = 1 << 20
	// hopelessLines is how many bad lines a file may begin with.
	hopelessLines = 10_000
	// maxFiles is how many files a list may have.
	maxFiles = 1<<16 - 1
)

// Builder reads a list from its files and its entries in the configuration. After an
// error it is of no use: the list is incomplete, and the one before it should stay.
type Builder struct {
	opts      Options
	list      *List
	four      bag[v4]
	six       bag[v6]
	fourHoles bag[v4]
	sixHoles  bag[v6]
	notes     notes
	more      int // problems that are not in the list's
}

// NewBuilder begins the list of that name.
func NewBuilder(name string, o Options) *Builder {
	return &Builder{opts: o.withDefaults(), list: &List{Name: name}}
}

// MaxBytes is how much text one file may hold.
func (b *Builder) MaxBytes() int64 { return b.opts.MaxBytes }

// AddEntry adds one entry that stands in a configuration file: an address, a prefix or a
// range. The error is a *Problem.
func (b *Builder) AddEntry(file string, line, column int, text string) error {
	var it item
	f := it.span.parse([]byte(text), 0)
	if f.kind != fine {
		found, msg := f.message([]byte(text))
		return &Problem{List: b.list.Name, File: file, Line: line, Column: column, Found: found, Msg: msg}
	}
	n := len(b.list.Files)
	if n == 0 || b.list.Files[n-1].Name != file {
		if n == maxFiles {
			return b.fatal(file, 0, fmt.Sprintf("more than %d files", maxFiles))
		}
		b.list.Files = append(b.list.Files, File{Name: file})
	}
	b.list.Files[len(b.list.Files)-1].Entries++
	return b.keep(&it, line)
}

// Add reads the file of that name from r: text, or gzip of it. The format is known by
// what is there, line by line.
//
// An error is a *Problem when the file is of no use (unreadable, too large, cut off, not a
// list at all), else, with Strict, *Problems. Without Strict bad lines are left out: the
// List counts them, and holds the first.
//
// A file that was cut off between two entries, or in one so that another remains
// (192.0.2.1 of 192.0.2.17), looks whole. What is noticed: gzip and JSON that end early,
// metadata with another number of records, and a last line that is none.
func (b *Builder) Add(name string, r io.Reader) error {
	if len(b.list.Files) == maxFiles {
		return b.fatal(name, 0, fmt.Sprintf("more than %d files", maxFiles))
	}
	b.list.Files = append(b.list.Files, File{Name: name})
	text, err := b.unpack(name, r)
	if err != nil {
		return err
	}
	before, more := len(b.list.Problems), b.more
	f := fileReader{b: b, file: &b.list.Files[len(b.list.Files)-1], text: text}
	if err := f.read(); err != nil {
		return err
	}
	if f.file.Entries == 0 && f.first != nil {
		return b.fatal(name, 0, "none of its "+counted(f.file.Lines, "line")+fmt.Sprintf(" could be read; line %d: %s", f.first.Line, f.first.Msg))
	}
	if b.opts.Strict && (len(b.list.Problems) > before || b.more > more) {
		return &Problems{First: b.list.Problems[before:], More: b.more - more}
	}
	return nil
}

func counted(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func (b *Builder) fatal(file string, line int, msg string) *Problem {
	return &Problem{List: b.list.Name, File: file, Line: line, Msg: msg}
}

// bounded reads at most left bytes and then fails.
type bounded struct {
	r    io.Reader
	left int64
}

var errTooLarge = errors.New("too large")

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	// One byte more, to tell a file that just fits from one that goes on.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, errTooLarge
	}
	return n, err
}

// foreign are files that are known by their first bytes and cannot be read.
var foreign = []struct{ magic, name, hint string }{
	{"\xff\xfe", "UTF-16 text", "save it as UTF-8"},
	{"\xfe\xff", "UTF-16 text", "save it as UTF-8"},
	{"\xfd7zXZ\x00", "packed with xz", "unpack it, or use gzip"},
	{"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it, or use gzip"},
	{"BZh", "packed with bzip2", "unpack it, or use gzip"},
	{"PK\x03\x04", "a zip archive", "unpack it, or use gzip"},
	{"\x7fELF", "a program", "is the name right?"},
}

// unpack returns the text in r, and says what r is when it cannot be one.
func (b *Builder) unpack(name string, r io.Reader) (*bufio.Reader, error) {
	br := bufio.NewReaderSize(&bounded{r, b.opts.MaxBytes}, readSize)
	head, err := br.Peek(512)
	if err != nil && err != io.EOF {
		return nil, b.unreadable(name, 0, err)
	}
	if bytes.HasPrefix(head, []byte("\x1f\x8b")) {
		unzipped, err := gzip.NewReader(br)
		if err != nil {
			return nil, b.unreadable(name, 0, err)
		}
		br = bufio.NewReaderSize(&bounded{unzipped, b.opts.MaxBytes}, readSize)
		if head, err = br.Peek(512); err != nil && err != io.EOF {
			return nil, b.unreadable(name, 0, err)
		}
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return nil, b.fatal(name, 0, "is "+f.name+", not a list; "+f.hint)
		}
	}
	if bom := []byte("\xef\xbb\xbf"); bytes.HasPrefix(head, bom) {
		if _, err := br.Discard(len(bom)); err != nil {
			return nil, b.unreadable(name, 0, err)
		}
		head = head[len(bom):]
	}
	if text := bytes.TrimSpace(head); len(text) > 0 && text[0] == '<' {
		return nil, b.fatal(name, 0, "is HTML or XML, not a list: was an error page saved in its place?")
	}
	return br, nil
}

// unreadable says why reading failed.
func (b *Builder) unreadable(name string, line int, err error) *Problem {
	switch {
	case errors.Is(err, errTooLarge):
		return b.fatal(name, 0, fmt.Sprintf("more than %d bytes of text, the most a file of a list may hold", b.opts.MaxBytes))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return b.fatal(name, line, "gzip data end early: the file is half written")
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
		return b.fatal(name, line, "gzip data are damaged: "+err.Error())
	}
	return b.fatal(name, line, printable(err.Error()))
}

// fileReader reads the lines of one file.
type fileReader struct {
	b     *Builder
	file  *File
	text  *bufio.Reader
	sets  setNames
	json  int      // JSON objects that were, or should have been, entries
	first *Problem // the first bad line
}

func (f *fileReader) read() error {
	var it item
	for {
		line, err := f.text.ReadSlice('\n')
		if len(line) == 0 && err == io.EOF {
			return nil
		}
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return f.b.unreadable(f.file.Name, f.file.Lines+1, err)
		}
		f.file.Lines++
		text := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(text) > f.b.opts.MaxLine {
			f.bad(line, fault{tooLong, 0, len(line)}, false)
			if err := f.skipLine(strconv.Quote(string(line[:min(16, len(line))])), err); err != nil {
				return err
			}
		} else if err := f.line(&it, text, err == io.EOF); err != nil {
			return err
		}
		if f.file.Entries == 0 && f.file.Skipped >= hopelessLines {
			return f.b.fatal(f.file.Name, 0, fmt.Sprintf("is not a list: none of its first %d lines could be read; line %d: %s", f.file.Lines, f.first.Line, f.first.Msg))
		}
	}
}

// skipLine reads on to the end of a line that did not fit: what it begins with, and the
// error its first part came with.
func (f *fileReader) skipLine(begin string, err error) error {
	for n := 0; err == bufio.ErrBufferFull; n += readSize {
		if n >= hopelessLine {
			return f.b.fatal(f.file.Name, f.file.Lines, fmt.Sprintf("is not a list: a line of more than %d bytes, which begins with %s", hopelessLine, begin))
		}
		_, err = f.text.ReadSlice('\n')
	}
	if err != nil && err != io.EOF {
		return f.b.unreadable(f.file.Name, f.file.Lines, err)
	}
	return nil
}

// line takes up one line, without its end; last says that there was no end.
func (f *fileReader) line(it *item, line []byte, last bool) error {
	bad := it.parseLine(line, &f.sets)
	if bad.kind == fine && it.entry {
		if it.json {
			f.json++
		}
		f.file.Entries++
		return f.b.keep(it, f.file.Lines)
	}
	if bad.kind == fine {
		if it.records >= 0 && it.records != f.json {
			f.note(f.problem(line, fault{recordCount, 0, 0}, it.records, f.json))
		}
		return nil
	}
	if it.json {
		f.json++
		if bad.kind == notJSON && last {
			bad.kind = cutJSON
			_, msg := bad.message(line)
			return f.b.fatal(f.file.Name, f.file.Lines, msg)
		}
	}
	if bad.kind == setSecond || bad.kind == setMask {
		f.note(f.problem(line, bad)) // no entry is left out
		return nil
	}
	f.bad(line, bad, last)
	return nil
}

// bad counts a line that is left out.
func (f *fileReader) bad(line []byte, what fault, last bool) {
	f.file.Skipped++
	f.b.list.Counts.Skipped++
	if f.first != nil && len(f.b.list.Problems) == MaxProblems {
		f.b.more++ // no need for words
		return
	}
	var p *Problem
	if what.kind == tooLong {
		p = f.problem(line, what, f.b.opts.MaxLine)
	} else {
		p = f.problem(line, what)
	}
	if last {
		p.Msg += "; the file ends in this line, without a line feed: it may be half written"
	}
	if f.first == nil {
		f.first = p
	}
	f.note(p)
}

// problem puts a fault of the line that was read last into words.
func (f *fileReader) problem(line []byte, what fault, numbers ...any) *Problem {
	found, msg := what.message(line, numbers...)
	return &Problem{List: f.b.list.Name, File: f.file.Name, Line: f.file.Lines, Found: found, Msg: msg,
		Column: utf8.RuneCount(line[:what.from]) + 1}
}

// note keeps a problem, if there is room.
func (f *fileReader) note(p *Problem) {
	if len(f.b.list.Problems) == MaxProblems {
		f.b.more++
		return
	}
	f.b.list.Problems = append(f.b.list.Problems, p)
}
