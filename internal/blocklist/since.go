package blocklist

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"math"
	"slices"
	"time"
)

// since is since when each entry of a list is in it.
type since struct {
	first uint32 // when the list was read for the first time, in Unix seconds; 0: not known
	// at is by the place of the entry (see places), in Unix seconds; nil: all atFirst.
	at []uint32
}

// Values of since.at that are no time.
const (
	atFirst    = 0              // it was there when the list was read for the first time
	atSomeTime = math.MaxUint32 // not known
)

// unixStamp returns t in Unix seconds, as far as 32 bits tell: from 1970 to 2106.
func unixStamp(t time.Time) uint32 {
	return uint32(min(max(t.Unix(), 1), atSomeTime-1))
}

// StartAt says that the list was read for the first time, at that time: since when its entries
// are in it is not known, but not later. It must be said before others see the list.
func (l *List) StartAt(at time.Time) { l.since = since{first: unixStamp(at)} }

// Follow says that the list takes the place of old at that time: what old has is there since
// then, and the rest comes now. The zero time says that it is not known when that came. Follow
// must be called before others see the list. It takes some 30 ms for a million
// entries (BenchmarkSince).
func (l *List) Follow(old *List, at time.Time) {
	stamp := uint32(atSomeTime)
	if !at.IsZero() {
		stamp = unixStamp(at)
	}
	f := follower{to: make([]uint32, 0, l.places()), stamps: old.since.at, at: stamp}
	follow(&f, old.four.entries, l.four.entries)
	follow(&f, old.four.holes, l.four.holes)
	follow(&f, old.six.entries, l.six.entries)
	follow(&f, old.six.holes, l.six.holes)
	l.since = since{first: old.since.first}
	if f.any {
		l.since.at = f.to
	}
}

// follower makes the stamps of a list from those of the one before.
type follower struct {
	to     []uint32
	stamps []uint32 // of the list before, from the family that comes next on; nil: all atFirst
	at     uint32
	any    bool // one is not atFirst
}

func follow[A number[A]](f *follower, old, now []entry[A]) {
	i := 0
	for _, e := range now {
		for i < len(old) && old[i].before(e) {
			i++
		}
		stamp := f.at
		if i < len(old) && old[i].first == e.first && old[i].last == e.last {
			stamp = atFirst
			if f.stamps != nil {
				stamp = f.stamps[i]
			}
		}
		f.to = append(f.to, stamp)
		f.any = f.any || stamp != atFirst
	}
	if f.stamps != nil {
		f.stamps = f.stamps[len(old):]
	}
}

// before orders entries by what they cover.
func (e entry[A]) before(o entry[A]) bool {
	if c := e.first.cmp(o.first); c != 0 {
		return c < 0
	}
	return e.last.cmp(o.last) > 0
}

// places returns the number of entries, exceptions among them. The places of their stamps are
// in this order: IPv4 entries, IPv4 exceptions, IPv6 entries, IPv6 exceptions.
func (l *List) places() int { return l.sixPlace() + len(l.six.entries) + len(l.six.holes) }

// sixPlace returns the place of the first IPv6 entry.
func (l *List) sixPlace() int { return len(l.four.entries) + len(l.four.holes) }

// stamped fills in since when the entry of that place is in the list.
func (l *List) stamped(m *Match, place int) {
	stamp := uint32(atFirst)
	if l.since.at != nil {
		stamp = l.since.at[place]
	}
	switch {
	case stamp == atSomeTime, stamp == atFirst && l.since.first == 0:
	case stamp == atFirst:
		m.Since, m.SinceAtMost = time.Unix(int64(l.since.first), 0).UTC(), true
	default:
		m.Since = time.Unix(int64(stamp), 0).UTC()
	}
}

// Stamps in a file: sinceMagic, the hash of the list's entries, first, how many stamps follow
// (0 where all are atFirst), the stamps, and the CRC-32 (IEEE) of all that; numbers are of 32
// bits, the low byte first.
const (
	sinceMagic = "weir-since-1\n"
	sinceHead  = len(sinceMagic) + sha256.Size + 8
)

// Errors of SetSince.
var (
	errSinceDamaged = errors.New("the file of times is damaged")
	errSinceForeign = errors.New("the times belong to another list")
)

// Since returns since when the entries are in the list, for SetSince: 4 bytes for each, or
// none where no entry has come since the list was read for the first time.
func (l *List) Since() []byte {
	out := make([]byte, 0, sinceHead+4*len(l.since.at)+crc32.Size)
	out = append(out, sinceMagic...)
	sum := l.hash()
	out = append(out, sum[:]...)
	out = binary.LittleEndian.AppendUint32(out, l.since.first)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(l.since.at)))
	for _, stamp := range l.since.at {
		out = binary.LittleEndian.AppendUint32(out, stamp)
	}
	return binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(out))
}

// SetSince takes what Since returned of a list with the very same entries; in which lines and
// files they stand does not matter. It must be called before others see the list. With an
// error the list is as before.
func (l *List) SetSince(data []byte) error {
	body := data[:max(len(data)-crc32.Size, 0)]
	switch {
	case len(body) < sinceHead || string(body[:len(sinceMagic)]) != sinceMagic,
		crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(data[len(body):]):
		return errSinceDamaged
	}
	sum := l.hash()
	if string(body[len(sinceMagic):][:sha256.Size]) != string(sum[:]) {
		return errSinceForeign
	}
	numbers := body[len(sinceMagic)+sha256.Size:]
	next := since{first: binary.LittleEndian.Uint32(numbers)}
	n := binary.LittleEndian.Uint32(numbers[4:])
	if n > 0 && int(n) != l.places() || len(numbers) != 8+4*int(n) {
		return errSinceDamaged
	}
	if n > 0 {
		next.at = make([]uint32, 0, n)
	}
	for at := range slices.Chunk(numbers[8:], 4) {
		next.at = append(next.at, binary.LittleEndian.Uint32(at))
	}
	l.since = next
	return nil
}

// hash is of what the entries cover, in their order.
func (l *List) hash() (sum [sha256.Size]byte) {
	h := hasher{Hash: sha256.New(), buf: make([]byte, 0, 1<<14)}
	hashEntries(&h, l.four.entries)
	hashEntries(&h, l.four.holes)
	hashEntries(&h, l.six.entries)
	hashEntries(&h, l.six.holes)
	h.Write(h.buf)
	h.Sum(sum[:0])
	return sum
}

type hasher struct {
	hash.Hash
	buf []byte
}

func hashEntries[A number[A]](h *hasher, list []entry[A]) {
	h.buf = binary.LittleEndian.AppendUint32(h.buf, uint32(len(list)))
	for i := range list {
		h.buf = list[i].last.append(list[i].first.append(h.buf))
		if len(h.buf) > cap(h.buf)-64 {
			h.Write(h.buf)
			h.buf = h.buf[:0]
		}
	}
}
