package blocklist

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// pool is what random lists are made of: in each family addresses, nets around them, ranges,
// and exceptions.
func pool() []string {
	var out []string
	for i := 1; i <= 12; i++ {
		out = append(out, fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("2001:db8::%x", i),
			fmt.Sprintf("192.0.2.%d/30", 4*i), fmt.Sprintf("2001:db8::%x/126", 4*i),
			fmt.Sprintf("192.0.2.%d-192.0.2.%d", i, i+5), fmt.Sprintf("2001:db8::%x-2001:db8::%x", i, i+5),
			fmt.Sprintf("add x 192.0.2.%d/31 nomatch", 2*i), fmt.Sprintf("add x 2001:db8::%x/127 nomatch", 2*i))
	}
	return out
}

// stampsOf returns since when each entry is in the list, as Lookup says, by its text, with a
// "!" before exceptions and "≤" before what may be earlier.
func stampsOf(t *testing.T, l *List) map[string]string {
	t.Helper()
	c, err := Compile([]Use{{l, Drop}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for i := range 64 {
		for _, a := range []string{fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("2001:db8::%x", i)} {
			for _, m := range c.Lookup(netip.MustParseAddr(a)).Matches {
				name, at := m.Entry, fmt.Sprint(m.Since.Unix())
				if m.Exception {
					name = "!" + name
				}
				if m.Since.IsZero() {
					at = "?"
				} else if m.SinceAtMost {
					at = "≤" + at
				}
				if was, ok := got[name]; ok && was != at {
					t.Errorf("%s: %s and %s", name, was, at)
				}
				got[name] = at
			}
		}
	}
	return got
}

// entryName is how Lookup names a line of pool.
func entryName(line string) string {
	text, hole := strings.CutPrefix(line, "add x ")
	text = strings.TrimSuffix(text, " nomatch")
	p, err := netip.ParsePrefix(text)
	if err == nil && p.IsSingleIP() {
		text = p.Addr().String()
	}
	if hole {
		return "!" + text
	}
	return text
}

// TestSinceFollows: through random sequences of lists, each entry's stamp is the time of its
// last coming, also across a restart in between.
func TestSinceFollows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	lines := pool()
	for range 60 {
		share := r.IntN(11)
		came := map[string]string{} // the model
		var last *List
		for step := range 12 {
			now := time.Unix(int64(1_000_000+100*step), 0)
			in := map[string]bool{}
			var text []string
			for _, line := range lines {
				if r.IntN(10) < share {
					text, in[entryName(line)] = append(text, line), true
				}
			}
			r.Shuffle(len(text), func(i, j int) { text[i], text[j] = text[j], text[i] })
			l := build(t, "x", []byte(strings.Join(text, "\n")), Options{})
			unknown := step > 0 && r.IntN(6) == 0
			switch {
			case step == 0:
				l.StartAt(now)
			case unknown:
				l.Follow(last, time.Time{})
			default:
				l.Follow(last, now)
			}
			for name := range came {
				if !in[name] {
					delete(came, name)
				}
			}
			for name := range in {
				if came[name] != "" {
					continue
				}
				switch {
				case step == 0:
					came[name] = fmt.Sprintf("≤%d", now.Unix())
				case unknown:
					came[name] = "?"
				default:
					came[name] = fmt.Sprint(now.Unix())
				}
			}
			if r.IntN(3) == 0 { // a restart: the same entries in another order
				slices.Reverse(text)
				again := build(t, "x", []byte(strings.Join(text, "\n")), Options{})
				if err := again.SetSince(l.Since()); err != nil {
					t.Fatal(err)
				}
				l = again
			}
			got := stampsOf(t, l)
			for name := range in {
				if got[name] != came[name] {
					t.Fatalf("step %d: %s is there since %q, want %q", step, name, got[name], came[name])
				}
			}
			if len(got) != len(in) {
				t.Fatalf("step %d: %d entries, want %d", step, len(got), len(in))
			}
			last = l
		}
	}
}

func TestSinceForeign(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	first := build(t, "x", []byte("192.0.2.1\n"), Options{})
	first.StartAt(at)
	l := build(t, "x", []byte("192.0.2.1\n192.0.2.2\nadd x 192.0.2.0/24 nomatch\n"), Options{})
	l.Follow(first, at.Add(time.Hour))
	good := l.Since()
	crc := func(data []byte) []byte {
		body := data[:len(data)-4]
		return binary.LittleEndian.AppendUint32(slices.Clone(body), crc32.ChecksumIEEE(body))
	}
	changed := func(i int) []byte {
		out := slices.Clone(good)
		out[i] ^= 1
		return out
	}
	for _, c := range []struct {
		name, list string
		data       []byte
		want       error
	}{
		{"empty", "192.0.2.1\n192.0.2.2", nil, errSinceDamaged},
		{"three bytes", "192.0.2.1", good[:3], errSinceDamaged},
		{"cut off", "192.0.2.1", good[:len(good)-4], errSinceDamaged},
		{"another byte", "192.0.2.1", changed(len(good) - 6), errSinceDamaged},
		{"another form", "192.0.2.1", crc(changed(11)), errSinceDamaged},
		{"another number of stamps", "192.0.2.1\n192.0.2.2\nadd x 192.0.2.0/24 nomatch", crc(slices.Delete(slices.Clone(good), len(good)-8, len(good)-4)), errSinceDamaged},
		{"an entry more", "192.0.2.1\n192.0.2.2\n192.0.2.3\nadd x 192.0.2.0/24 nomatch", good, errSinceForeign},
		{"an entry less", "192.0.2.1\nadd x 192.0.2.0/24 nomatch", good, errSinceForeign},
		{"no exception", "192.0.2.1\n192.0.2.2\n192.0.2.0/24", good, errSinceForeign},
		{"another end", "192.0.2.1\n192.0.2.2-192.0.2.3\nadd x 192.0.2.0/24 nomatch", good, errSinceForeign},
	} {
		o := build(t, "x", []byte(c.list), Options{})
		o.StartAt(at.Add(time.Minute))
		want := stampsOf(t, o)
		if err := o.SetSince(c.data); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if got := stampsOf(t, o); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: the list has changed: %v, want %v", c.name, got, want)
		}
	}
	if err := build(t, "x", []byte("192.0.2.2\n192.0.2.1\n\nadd x 192.0.2.0/24 nomatch\n"), Options{}).SetSince(good); err != nil {
		t.Errorf("the same entries: %v", err)
	}
}

// FuzzSetSince: no file does harm.
func FuzzSetSince(f *testing.F) {
	l := build(f, "x", []byte("192.0.2.1\n2001:db8::/32\n"), Options{})
	l.StartAt(time.Unix(7, 0))
	f.Add(l.Since())
	f.Add([]byte(sinceMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := build(t, "x", []byte("192.0.2.1\n2001:db8::/32\n"), Options{})
		for _, d := range [][]byte{data, binary.LittleEndian.AppendUint32(slices.Clone(data), crc32.ChecksumIEEE(data))} {
			if l.SetSince(d) == nil && string(l.Since()) != string(d) {
				t.Errorf("%q is taken, and is %q then", d, l.Since())
			}
		}
		stampsOf(t, l)
	})
}

// BenchmarkSince is what a list of a million entries costs of which one in ten is new.
func BenchmarkSince(b *testing.B) {
	text := mixed(1_000_000)
	old := build(b, "x", text[:len(text)*9/10], Options{MaxEntries: 1 << 20})
	old.StartAt(time.Unix(1_000_000, 0))
	l := build(b, "x", text, Options{MaxEntries: 1 << 20})
	b.Run("follow", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.Follow(old, time.Unix(2_000_000, 0))
		}
	})
	data := l.Since()
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			l.Since()
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if err := l.SetSince(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
