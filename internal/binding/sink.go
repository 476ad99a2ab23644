package binding

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// sink is where lines go.
type sink interface {
	// put takes a line and its text.
	put(l *Line, text []byte)
	// flush writes what was taken. lines is how many could not be written: they are gone.
	flush() (lines int, err error)
	// fresh reports whether what follows goes into a new file, and makes it so where the old
	// one was moved away.
	fresh() (bool, error)
	close()
}

func openSink(to model.Bindings) (sink, error) {
	switch to.To {
	case model.BindingsSyslog:
		return openSyslog(devLog)
	case model.BindingsJournald:
		if !journal.Enabled() {
			return nil, errors.New("the systemd journal does not listen here")
		}
		return &journalSink{}, nil
	}
	return openFile(to.File)
}

// File modes of a log that tells who spoke with whom.
const (
	fileMode = 0o640
	dirMode  = 0o750
)

type fileSink struct {
	path  string
	file  *os.File
	buf   []byte
	lines int
	wrote int64 // size of the file, as far as this sink knows
	torn  bool  // the last line is not whole
	empty bool  // the file had nothing in it
}

func openFile(path string) (*fileSink, error) {
	s := &fileSink{path: path}
	return s, s.open()
}

func (s *fileSink) open() error {
	if err := os.MkdirAll(filepath.Dir(s.path), dirMode); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_APPEND|os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", s.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	s.file, s.wrote, s.torn, s.empty = f, st.Size(), false, st.Size() == 0
	if s.wrote > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], s.wrote-1); err == nil && last[0] != '\n' {
			s.torn = true
		}
	}
	return nil
}

func (s *fileSink) put(_ *Line, text []byte) {
	s.buf = append(s.buf, text...)
	s.lines++
}

func (s *fileSink) flush() (int, error) {
	if len(s.buf) == 0 {
		return 0, nil
	}
	defer func() { s.buf, s.lines = s.buf[:0], 0 }()
	if s.file == nil {
		if err := s.open(); err != nil {
			return s.lines, err
		}
	}
	out := s.buf
	if s.torn {
		out = append([]byte{'\n'}, out...)
	}
	n, err := s.file.Write(out)
	s.wrote += int64(n)
	if err != nil {
		s.torn = s.torn || n > 0
		return s.lines, err
	}
	s.torn = false
	return 0, nil
}

func (s *fileSink) fresh() (bool, error) {
	if s.file != nil {
		is, err := s.file.Stat()
		there, pathErr := os.Stat(s.path)
		same := err == nil && pathErr == nil && os.SameFile(is, there)
		switch {
		case pathErr != nil && !errors.Is(pathErr, fs.ErrNotExist) && !errors.Is(pathErr, unix.ENOTDIR):
			return false, pathErr
		case same && is.Size() < s.wrote: // cut off where it is, as `copytruncate` does
			s.wrote, s.torn = is.Size(), false
			return is.Size() == 0, nil
		case same:
			was := s.empty
			s.empty = false
			return was, nil
		}
		s.file.Close()
		s.file = nil
	}
	if err := s.open(); err != nil {
		return false, err
	}
	was := s.empty
	s.empty = false
	return was, nil
}

func (s *fileSink) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// devLog is where syslog listens.
const devLog = "/dev/log"

// syslogInfo is facility daemon, severity informational (RFC 5424 section 6.2.1).
const syslogInfo = 3<<3 | 6

// syslogPatience is for how long a line may wait for a syslog that reads nothing.
const syslogPatience = 200 * time.Millisecond

type syslogSink struct {
	path   string
	conn   net.Conn
	head   string // behind the time
	buf    []byte
	failed int
	err    error
}

func openSyslog(path string) (*syslogSink, error) {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	s := &syslogSink{path: path, head: fmt.Sprintf(" %s weir %d bindings - ", host, os.Getpid())}
	return s, s.dial()
}

func (s *syslogSink) dial() (err error) {
	s.conn, err = net.Dial("unixgram", s.path)
	if err != nil {
		s.conn = nil
	}
	return err
}

func (s *syslogSink) put(l *Line, text []byte) {
	s.buf = append(fmt.Appendf(s.buf[:0], "<%d>1 %s%s", syslogInfo, l.Time.UTC().Format(timeLayout), s.head), strings.TrimSuffix(string(text), "\n")...)
	if s.err != nil {
		s.failed++ // the rest of a batch does not wait too
		return
	}
	if s.err = s.send(); s.err != nil {
		s.failed++
	}
}

func (s *syslogSink) send() error {
	if s.conn == nil {
		if err := s.dial(); err != nil {
			return err
		}
	}
	s.conn.SetWriteDeadline(time.Now().Add(syslogPatience))
	_, err := s.conn.Write(s.buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // it was started again
		s.conn.Close()
		if err = s.dial(); err == nil {
			s.conn.SetWriteDeadline(time.Now().Add(syslogPatience))
			_, err = s.conn.Write(s.buf)
		}
	}
	return err
}

func (s *syslogSink) flush() (int, error) {
	n, err := s.failed, s.err
	s.failed, s.err = 0, nil
	return n, err
}

func (s *syslogSink) fresh() (bool, error) { return false, nil }

func (s *syslogSink) close() {
	if s.conn != nil {
		s.conn.Close()
	}
}

type journalSink struct {
	failed int
	err    error
}

func (s *journalSink) put(l *Line, text []byte) {
	if s.err != nil {
		s.failed++
		return
	}
	fields := map[string]string{"SYSLOG_IDENTIFIER": "weir", "WEIR_BINDING": l.Event}
	for k, v := range map[string]string{"WEIR_POOL": l.Pool, "WEIR_PROTO": l.Proto, "WEIR_INSIDE": l.Inside,
		"WEIR_OUTSIDE": l.Outside, "WEIR_TO": l.To} {
		if v != "" {
			fields[k] = v
		}
	}
	if s.err = journal.Send(strings.TrimSuffix(string(text), "\n"), journal.PriInfo, fields); s.err != nil {
		s.failed++
	}
}

func (s *journalSink) flush() (int, error) {
	n, err := s.failed, s.err
	s.failed, s.err = 0, nil
	return n, err
}

func (s *journalSink) fresh() (bool, error) { return false, nil }

func (s *journalSink) close() {}
