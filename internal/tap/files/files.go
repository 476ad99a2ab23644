// Package files writes packets into pcapng files (draft-ietf-opsawg-pcapng), one after the
// other, and removes old ones.
//
// Its one idea: whatever happens, what is on the disk can be read, and nobody else's file
// is touched. Files are made, never opened, with mode 0600; what is written ends where a
// packet ends; and only regular files are removed whose whole name is of its own making.
package files

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Options say where packets go. The zero value of what may be left out does without it.
type Options struct {
	// Path is the file, or a directory: one that is there, or a path that ends in a slash.
	// In a directory, and where files follow one another, names have the time.
	Path    string
	Device  string // the packets come from, for names and headers
	Snaplen int    // the most bytes of a packet, for headers

	RotateSize  int64         // bytes after which another file begins
	RotateEvery time.Duration // time of packets after which another file begins
	Keep        int           // how many files there are at most; those of earlier runs count
}

// Writer writes files. It is for one goroutine.
type Writer struct {
	o            Options
	root         *os.Root
	dir          string
	prefix, ext  string // of names with the time; prefix is "" for a single file
	ours         *regexp.Regexp
	file         *os.File
	name         string
	buf          *bufio.Writer
	ng           *pcapgo.NgWriter
	size         int64 // of what was written to the file, or waits in buf
	began        time.Time
	lost         uint64 // packets that the kernel had no room for, since the beginning
	count        uint64 // packets in the file
	lostAtBegin  uint64
	allFiles     int
	allPackets   uint64
	removalFails error
}

// bufferSize is how much is written at once, in bytes; no packet is longer.
const bufferSize = 1 << 20

// timeForm is the time in a name: it sorts as times do.
const timeForm = "20060102T150405.000Z"

// Open makes the first file, which begins at a time.
func Open(o Options, now time.Time) (*Writer, error) {
	w := &Writer{o: o, dir: o.Path, ext: ".pcapng"}
	info, err := os.Stat(o.Path)
	switch {
	case err == nil && info.IsDir():
		w.prefix = "weir-tap-" + o.Device + "-"
	case strings.HasSuffix(o.Path, "/"):
		return nil, fmt.Errorf("there is no directory %s", o.Path)
	default:
		w.dir, w.name = filepath.Split(o.Path)
		if o.RotateSize > 0 || o.RotateEvery > 0 {
			if e := filepath.Ext(w.name); e != "" && e != w.name {
				w.ext = e
			}
			w.prefix = strings.TrimSuffix(w.name, w.ext) + "-"
		}
	}
	if w.dir == "" {
		w.dir = "."
	}
	w.ours = regexp.MustCompile("^" + regexp.QuoteMeta(w.prefix) + `\d{8}T\d{6}\.\d{3}Z` + regexp.QuoteMeta(w.ext) + "$")
	if w.root, err = os.OpenRoot(w.dir); err != nil {
		return nil, err
	}
	if err := w.begin(now); err != nil {
		w.root.Close()
		return nil, err
	}
	return w, nil
}

// mostTries is how many names are tried for one moment.
const mostTries = 1000

// begin makes a file.
func (w *Writer) begin(now time.Time) error {
	name := w.name
	if w.prefix != "" {
		name = w.prefix + now.UTC().Format(timeForm) + w.ext
	}
	f, err := w.create(name)
	for i := 1; errors.Is(err, fs.ErrExist) && w.prefix != "" && i < mostTries; i++ {
		// A moment later, so that names still sort as the files follow one another.
		name = w.prefix + now.Add(time.Duration(i)*time.Millisecond).UTC().Format(timeForm) + w.ext
		f, err = w.create(name)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: say another name, or remove it", filepath.Join(w.dir, name))
	}
	if err != nil {
		return err
	}
	w.file, w.name, w.began = f, name, now
	w.size, w.count, w.lostAtBegin = 0, 0, w.lost
	w.allFiles++
	w.buf = bufio.NewWriterSize(&counter{f, &w.size}, bufferSize)
	w.ng, err = pcapgo.NewNgWriterInterface(w.buf, pcapgo.NgInterface{Name: w.o.Device, OS: runtime.GOOS,
		LinkType: layers.LinkTypeRaw, SnapLength: uint32(w.o.Snaplen), TimestampResolution: 9},
		pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "weir tap", OS: runtime.GOOS, Hardware: runtime.GOARCH}})
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	w.prune()
	return nil
}

// create makes a file that is not there, not even as a symbolic link.
func (w *Writer) create(name string) (*os.File, error) {
	return w.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// counter counts what goes to the file.
type counter struct {
	f *os.File
	n *int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.f.Write(b)
	*c.n += int64(n)
	return n, err
}

// blockSize is what a packet takes in the file.
func blockSize(n int) int { return 32 + (n+3)&^3 }

// Write adds a packet, from its network header on, which had wire bytes.
func (w *Writer) Write(at time.Time, data []byte, wire int) error {
	need := blockSize(len(data))
	if w.count > 0 && (w.o.RotateSize > 0 && w.size+int64(w.buf.Buffered()+need) > w.o.RotateSize ||
		w.o.RotateEvery > 0 && at.Sub(w.began) >= w.o.RotateEvery) {
		if err := w.end(); err != nil {
			return err
		}
		if err := w.begin(at); err != nil {
			return err
		}
	}
	if w.buf.Available() < need {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	w.count++
	w.allPackets++
	ci := gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(data), Length: max(wire, len(data))}
	return w.ng.WritePacket(ci, data)
}

// Lost notes how many packets were lost since the beginning, for the statistics in files.
func (w *Writer) Lost(n uint64) { w.lost = n }

// Flush brings what waits to the file, up to the last packet.
func (w *Writer) Flush() error { return w.ng.Flush() }

// end closes the file.
func (w *Writer) end() error {
	lost := w.lost - w.lostAtBegin
	stats := pcapgo.NgInterfaceStatistics{LastUpdate: time.Now(), PacketsReceived: w.count + lost, PacketsDropped: lost}
	return errors.Join(w.Flush(), w.ng.WriteInterfaceStats(0, stats), w.Flush(), w.file.Close())
}

// Name returns the path of the file that is written.
func (w *Writer) Name() string { return filepath.Join(w.dir, w.name) }

// Written returns how many files there were, and packets in them.
func (w *Writer) Written() (files int, packets uint64) { return w.allFiles, w.allPackets }

// Close ends the last file.
func (w *Writer) Close() error { return errors.Join(w.end(), w.root.Close(), w.removalFails) }

// prune removes files of its own making until there are no more than there may be. That one
// can't be removed ends nothing; Close tells of it.
func (w *Writer) prune() {
	if w.o.Keep <= 0 || w.prefix == "" {
		return
	}
	entries, err := fs.ReadDir(w.root.FS(), ".")
	if err != nil {
		w.removalFails = err
		return
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && w.ours.MatchString(e.Name()) && e.Name() != w.name {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	for ; len(names) > w.o.Keep-1; names = names[1:] {
		if err := w.root.Remove(names[0]); err != nil {
			w.removalFails = err
		}
	}
}
