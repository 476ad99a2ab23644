package nfqueue

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"weir/internal/lab"
)

// packetMessage is a message of the kernel about a packet.
func packetMessage(id, mark uint32, data []byte) []byte {
	b := appendHeader(nil, msgPacket, 0, 0, 7)
	b = appendAttr(b, attrPacketHdr, byte(id>>24), byte(id>>16), byte(id>>8), byte(id), 8, 0, 0)
	b = appendU32(b, 5, 2) // NFQA_IFINDEX_INDEV
	if mark != 0 {
		b = appendU32(b, attrMark, mark)
	}
	return finish(appendAttr(b, attrPayload, data...))
}

func TestParse(t *testing.T) {
	whole := packetMessage(0x01020304, 0xa0b0c0d0, []byte("packet"))
	typ, _, body, rest, ok := message(whole)
	if typ != msgPacket || len(rest) != 0 || !ok {
		t.Fatalf("type %#x, %d bytes left, %t", typ, len(rest), ok)
	}
	var p packet
	if !p.parse(body[4:]) || p.id != 0x01020304 || p.mark != 0xa0b0c0d0 || string(p.data) != "packet" {
		t.Errorf("%+v", p)
	}
	// A message that the buffer had no room for still has its number.
	_, _, body, _, ok = message(whole[:len(whole)-4])
	if !ok || !p.parse(body[4:]) || p.id != 0x01020304 || string(p.data) != "pack" {
		t.Errorf("cut: %+v", p)
	}
}

func FuzzDatagram(f *testing.F) {
	f.Add(packetMessage(1, 2, []byte("packet")))
	f.Add(append(packetMessage(1, 2, []byte("packet")), packetMessage(2, 0, nil)...))
	f.Add(finish(append(appendHeader(nil, unix.NLMSG_ERROR, 0, stopSeq, 0), make([]byte, 16)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		q := &queue{counts: &counts{}, decide: func(_ int, data []byte, mark uint32) Verdict { return Verdict{Mark: mark, Drop: len(data) > 3} }}
		n := q.datagram(b)
		if len(q.out)%verdictLen != 0 || len(q.out)/verdictLen > n {
			t.Fatalf("%d packets, %d bytes of verdicts", n, len(q.out))
		}
		for out := q.out; len(out) > 0; out = out[verdictLen:] {
			if binary.NativeEndian.Uint32(out) != verdictLen {
				t.Fatal("a verdict of another length")
			}
		}
	})
}

// TestVerdicts: verdicts that are alike are one message, and each packet has the one that was
// decided.
func TestVerdicts(t *testing.T) {
	verdicts := []Verdict{{Mark: 1}, {Mark: 1}, {Mark: 1}, {Mark: 2}, {Mark: 1}, {Mark: 1, Drop: true}, {Mark: 1, Drop: true}}
	var q queue
	q.num, q.counts = 0x0102, &counts{}
	i := 0
	q.decide = func(int, []byte, uint32) Verdict { i++; return verdicts[i-1] }
	for id := range verdicts {
		q.datagram(packetMessage(uint32(100+id), 0, []byte("x")))
	}
	type sent struct {
		typ               uint16
		id, verdict, mark uint32
	}
	var got []sent
	for out := q.out; len(out) > 0; {
		typ, _, body, rest, ok := message(out)
		if !ok || !bytes.Equal(body[:4], []byte{0, 0, 1, 2}) {
			t.Fatalf("% x", out)
		}
		be := binary.BigEndian.Uint32
		got = append(got, sent{typ, be(body[12:]), be(body[8:]), be(body[20:])})
		out = rest
	}
	want := []sent{{msgVerdictBatch, 102, 1, 1}, {msgVerdict, 103, 1, 2}, {msgVerdict, 104, 1, 1}, {msgVerdictBatch, 106, 0, 1}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sent{})); diff != "" {
		t.Error(diff)
	}
}

func TestNoAllocation(t *testing.T) {
	q := &queue{counts: &counts{}}
	q.buffers(&Options{Copy: 100})
	q.decide = func(_ int, data []byte, mark uint32) Verdict { return Verdict{Mark: mark + uint32(len(data))} }
	b := packetMessage(1, 2, make([]byte, 100))
	if n := testing.AllocsPerRun(1000, func() {
		for range batch {
			q.datagram(b)
		}
		q.out = q.out[:0]
	}); n != 0 {
		t.Errorf("%g allocations for %d packets", n, batch)
	}
}

func TestParseProc(t *testing.T) {
	stats := []Stats{{Queue: 3}, {Queue: 4}}
	parseProc("    3 4294963164     5 2   140     6     7        8  1\n    9 1 2 3 4 5 6 7 1\n    4 4133     0 2   140     0     0       11  1\nodd\n", stats)
	if diff := cmp.Diff([]Stats{{Queue: 3, Waiting: 5, Dropped: 6, Unreceived: 7, Numbered: 8}, {Queue: 4, Numbered: 11}}, stats); diff != "" {
		t.Error(diff)
	}
}

func TestOptions(t *testing.T) {
	for words, o := range map[string]Options{
		"0 queues":                    {Copy: 1},
		"2 queues from 65535 on":      {First: 65535, Count: 2, Copy: 1},
		"0 bytes of a packet":         {Count: 1},
		"65532 bytes of a packet":     {Count: 1, Copy: 65532},
		"1 processors for 2 queues":   {Count: 2, Copy: 1, CPUs: []int{0}},
		"-1 packets can't wait":       {Count: 1, Copy: 1, Waiting: -1},
		"stay on processor 1023: inv": {Count: 1, Copy: 1, CPUs: []int{1023}},
		"in the hands of another":     {First: 9, Count: 1, Copy: 1},
	} {
		t.Run(words, func(t *testing.T) {
			lab.Require(t)
			n, err := lab.New()
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			h, err := n.Host("box")
			if err != nil {
				t.Fatal(err)
			}
			var qs, other *Queues
			err = h.Do(func() (err error) {
				if o.First == 9 {
					if other, err = Open(o); err != nil {
						return err
					}
				}
				qs, err = Open(o)
				return err
			})
			if err == nil {
				err = qs.Serve(nil)
				if err := qs.Close(); err != nil {
					t.Error(err)
				}
				if _, err := qs.Stats(); err != ErrClosed {
					t.Errorf("statistics of a closed queue: %v", err)
				}
			}
			if other != nil {
				if err := other.Close(); err != nil {
					t.Error(err)
				}
				if err := other.Serve(nil); err != ErrClosed {
					t.Error(err)
				}
			}
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%v", err)
			}
		})
	}
}
