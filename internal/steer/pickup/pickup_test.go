package pickup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"weir/internal/steer/match"
)

var (
	from4, to4 = netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.1")
	from6, to6 = netip.MustParseAddr("2001:db8:c::9"), netip.MustParseAddr("2001:db8::1")
	options    = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8} // timestamps (RFC 7323 section 3.2)
)

// segment is a packet with the checksum right.
func segment(v6 bool, hops, flags uint8, options, payload []byte) []byte {
	tcp := make([]byte, 20, 100)
	binary.BigEndian.PutUint16(tcp, 4000)
	binary.BigEndian.PutUint16(tcp[2:], 80)
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	binary.BigEndian.PutUint32(tcp[8:], 2000)
	tcp[12], tcp[13] = uint8(20+len(options))/4<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 500)
	tcp = append(append(tcp, options...), payload...)
	ip := make([]byte, 40)
	if v6 {
		ip[0], ip[6], ip[7] = 0x60, 6, hops
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		copy(ip[8:], from6.AsSlice())
		copy(ip[24:], to6.AsSlice())
	} else {
		ip = ip[:20]
		ip[0], ip[8], ip[9] = 0x45, hops, 6
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
		copy(ip[12:], from4.AsSlice())
		copy(ip[16:], to4.AsSlice())
	}
	b := append(ip, tcp...)
	var p match.Packet
	p.Parse(b)
	binary.BigEndian.PutUint16(b[len(ip)+sumAt:], ^sum(&p, b[len(ip):]))
	return b
}

func TestPackets(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		at, hops := 20, 8
		if v6 {
			at, hops = 40, 7
		}
		for name, c := range map[string]struct {
			flags   uint8
			payload string
		}{
			"fin":            {flagFIN | flagACK, ""},
			"fin with data":  {flagFIN | flagACK | flagPSH, "bye"},
			"rst":            {flagRST | flagACK, ""},
			"rst by numbers": {flagRST, ""},
		} {
			in := segment(v6, 64, c.flags, options, []byte(c.payload))
			first, then, err := packets(in)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := segment(v6, 63, flagACK, options, nil)
			if c.flags&flagACK == 0 {
				want = segment(v6, 63, flagACK, options, nil)
				binary.BigEndian.PutUint32(want[at+ackAt:], 0)
				var p match.Packet
				p.Parse(want)
				binary.BigEndian.PutUint16(want[at+sumAt:], 0)
				binary.BigEndian.PutUint16(want[at+sumAt:], ^sum(&p, want[at:]))
			}
			if !bytes.Equal(first, want) {
				t.Errorf("%s: before it goes\n%x, want\n%x", name, first, want)
			}
			want = bytes.Clone(in)
			want[hops] = 63
			if !bytes.Equal(then, want) {
				t.Errorf("%s: it goes as\n%x, want\n%x", name, then, want)
			}
			if in[hops] != 64 {
				t.Errorf("%s: what came is changed", name)
			}
			// A card was to write the checksum.
			var p match.Packet
			p.Parse(in)
			partial := bytes.Clone(in)
			binary.BigEndian.PutUint16(partial[at+sumAt:], fold(pseudo(&p, len(in)-at)))
			if _, then, err := packets(partial); err != nil || !bytes.Equal(then, want) {
				t.Errorf("%s: with the checksum still to be written: %x, %v", name, then, err)
			}
			corrupt := bytes.Clone(in)
			corrupt[at+sumAt]++
			if _, _, err := packets(corrupt); !errors.Is(err, errCorrupt) {
				t.Errorf("%s: with a wrong checksum: %v", name, err)
			}
		}
		cut := segment(v6, 64, flagFIN|flagACK, options, make([]byte, 500))[:132]
		if first, then, err := packets(cut); err != nil || len(first) != at+32 || then != nil {
			t.Errorf("of a packet that is not all there: %x %x %v", first, then, err)
		}
		if _, _, err := packets(segment(v6, 1, flagRST, nil, nil)); !errors.Is(err, errExpired) {
			t.Error(err)
		}
		for _, flags := range []uint8{0, flagACK, flagSYN, flagFIN, flagSYN | flagRST, flagSYN | flagFIN | flagACK} {
			if _, _, err := packets(segment(v6, 64, flags, nil, nil)); !errors.Is(err, errNoEnd) {
				t.Errorf("flags %x: %v", flags, err)
			}
		}
	}
}

// FuzzPackets: whatever comes, what goes can be read, and is no longer.
func FuzzPackets(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		f.Add(segment(v6, 64, flagFIN|flagACK, options, []byte("bye")))
		f.Add(segment(v6, 64, flagRST, nil, nil))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		first, then, err := packets(data)
		if !bytes.Equal(before, data) {
			t.Fatal("what came is changed")
		}
		if err != nil {
			return
		}
		var p match.Packet
		if !p.Parse(first) || p.Transport == 0 || sum(&p, p.Data[p.Transport:]) != 0xffff || first[p.Transport+flagsAt]&(flagACK|flagFIN|flagRST|flagSYN) != flagACK {
			t.Errorf("%x: %x", data, first)
		}
		if then != nil && (len(then) > len(data) || !p.Parse(then) || sum(&p, p.Data[p.Transport:]) != 0xffff) {
			t.Errorf("%x: %x", data, then)
		}
	})
}

// TestLimit: no more than MostPerSecond in a second, over any time.
func TestLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	s := &Sender{v4: -1, v6: -1, now: func() time.Time { return now }}
	passed := 0
	for range 5 * MostPerSecond {
		if s.token() {
			passed++
		}
	}
	if passed != MostPerSecond {
		t.Errorf("%d passed at once", passed)
	}
	for range 2 * MostPerSecond {
		now = now.Add(100 * time.Microsecond)
		if s.token() {
			passed++
		}
	}
	if most := MostPerSecond * 12 / 10; passed > most || passed < most-1 {
		t.Errorf("%d passed in 0.2 s, want %d", passed, most)
	}
	s.Send(segment(false, 64, flagRST, nil, nil), 1, from4)
	s.Send(segment(false, 64, flagACK, nil, nil), 1, from4)
	s.Send(segment(true, 64, flagRST, nil, nil), 1, from4)
	if got := s.Stats(); got != (Stats{Limited: 1, Dropped: 2}) {
		t.Errorf("%+v", got)
	}
}
