package blocklist

import (
	"bytes"
	"hash/maphash"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxNote is the longest note that is kept of an entry, in bytes; the rest is cut.
	MaxNote = 80
	// MaxNotes is the room for all different notes of a list, in bytes. Entries that come
	// when it is full have none.
	MaxNotes = 32 << 20
)

// notes holds each different note once. A note is known by where it begins in text: a byte
// with its length stands there. 0 is no note.
type notes struct {
	text  []byte
	seed  maphash.Seed
	slots []uint32 // open addressing; a power of two
	count int
	lost  int // notes for which there was no room
}

// put returns the place of note, of which it keeps what is printable.
func (n *notes) put(note []byte) uint32 {
	var buf [MaxNote]byte
	note = harmless(buf[:0], bytes.TrimSpace(note))
	if len(note) == 0 {
		return 0
	}
	if 2*n.count >= len(n.slots) {
		n.grow()
	}
	slot := n.find(note)
	if at := n.slots[slot]; at != 0 {
		return at
	}
	if len(n.text)+len(note)+1 > MaxNotes {
		n.lost++
		return 0
	}
	at := uint32(len(n.text))
	n.text = append(append(n.text, byte(len(note))), note...)
	n.slots[slot] = at
	n.count++
	return at
}

// get returns the note at a place.
func (n *notes) get(at uint32) string {
	if at == 0 {
		return ""
	}
	return string(n.bytes(at))
}

func (n *notes) bytes(at uint32) []byte { return n.text[at+1:][:n.text[at]] }

// find returns the slot of note, or the free one where it belongs.
func (n *notes) find(note []byte) int {
	mask := uint64(len(n.slots) - 1)
	for i := maphash.Bytes(n.seed, note); ; i++ {
		at := n.slots[i&mask]
		if at == 0 || bytes.Equal(n.bytes(at), note) {
			return int(i & mask)
		}
	}
}

func (n *notes) grow() {
	if n.slots == nil {
		n.seed = maphash.MakeSeed()
		n.text = append(n.text, 0) // so that no note is at 0
	}
	n.slots = make([]uint32, max(64, 2*len(n.slots)))
	for at := uint32(1); int(at) < len(n.text); at += uint32(n.text[at]) + 1 {
		n.slots[n.find(n.bytes(at))] = at
	}
}

// done frees what only put needs.
func (n *notes) done() {
	n.slots = nil
	n.text = bytes.Clone(n.text)
}

// harmless appends what fits of s in to's room, with "?" for all that is not printable.
func harmless(to, s []byte) []byte {
	for len(s) > 0 {
		r, size := utf8.DecodeRune(s)
		out := s[:size]
		if !unicode.IsPrint(r) || (r == utf8.RuneError && size == 1) {
			out = []byte("?")
		}
		if len(to)+len(out) > cap(to) {
			break
		}
		to = append(to, out...)
		s = s[size:]
	}
	return to
}
