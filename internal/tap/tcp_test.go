package tap

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// step is a packet of a scenario: to the server, or from it.
type step struct {
	at time.Duration
	made
	back bool
}

func (s step) with(id uint16, ttl uint8) step { s.id, s.ttl = id, ttl; return s }

func c(at time.Duration, flags uint8, seq, ack uint32, data int) step {
	return step{at: at, made: made{flags: flags, seq: seq, ack: ack, data: data}}
}

func s(at time.Duration, flags uint8, seq, ack uint32, data int) step {
	x := c(at, flags, seq, ack, data)
	x.back = true
	return x
}

const (
	syn    = flagSYN
	synAck = flagSYN | flagACK
	ack    = flagACK
	fin    = flagFIN | flagACK
	rst    = flagRST
)

// opened is a handshake whose SYN-ACK takes 10 ms.
func opened() []step {
	return []step{c(0, syn, 999, 0, 0), s(10*ms, synAck, 4999, 1000, 0), c(11*ms, ack, 1000, 5000, 0)}
}

// TestTCP holds what each kind of segment is taken for, in both families. IPv4 packets have
// numbers of their own (1, 2, 3 …) unless a step says another; IPv6 ones never do.
func TestTCP(t *testing.T) {
	type want struct {
		dups4, dups6         int // duplicates over IPv4, over IPv6
		retransTo, from      int
		overTo, keepTo       int
		resetsTo, resetsFrom int
		conns, answered      int
	}
	opens := want{conns: 1, answered: 1}
	but := func(w want, f func(*want)) want { f(&w); return w }
	data := func(at time.Duration, seq uint32, n int) step { return c(at, ack, seq, 5000, n) }
	for _, tt := range []struct {
		name  string
		steps []step
		want  want
	}{
		{"handshake", opened(), opens},
		{"data in order", append(opened(), data(20*ms, 1000, 100), data(21*ms, 1100, 100), s(22*ms, ack, 5000, 1200, 500)), opens},
		{"sent again after a timeout", append(opened(), data(20*ms, 1000, 100), data(220*ms, 1000, 100)),
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"sent again from the server", append(opened(), s(20*ms, ack, 5000, 1000, 100), s(220*ms, ack, 5000, 1000, 100)),
			but(opens, func(w *want) { w.from = 1 })},
		{"sent again soon, with a number of its own", append(opened(), data(20*ms, 1000, 100), data(24*ms, 1000, 100)),
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"part of it sent again", append(opened(), data(20*ms, 1000, 100), data(220*ms, 1050, 100), data(221*ms, 1150, 10)),
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"mirrored twice", append(opened(), data(20*ms, 1000, 100).with(77, 64), data(20*ms+50*time.Microsecond, 1000, 100).with(77, 63)),
			but(opens, func(w *want) { w.dups4, w.dups6 = 1, 1 })},
		{"mirrored twice by rules at one place", append(opened(), data(20*ms, 1000, 100).with(77, 64), data(20*ms, 1000, 100).with(77, 64)),
			but(opens, func(w *want) { w.dups4, w.dups6 = 1, 1 })},
		{"mirrored twice, the second copy late", append(opened(), data(20*ms, 1000, 100).with(77, 64), data(60*ms, 1000, 100).with(77, 63)),
			but(opens, func(w *want) { w.dups4 = 1 })}, // and over IPv6: see below
		{"the SYN mirrored twice", append(opened()[:1:1], c(ms, syn, 999, 0, 0).with(1, 63), s(10*ms, synAck, 4999, 1000, 0)),
			but(opens, func(w *want) { w.dups4, w.dups6 = 1, 1 })},
		{"a pure ACK mirrored twice", append(opened(), c(20*ms, ack, 1000, 5000, 0).with(9, 64), c(20*ms+100, ack, 1000, 5000, 0).with(9, 63)),
			but(opens, func(w *want) { w.dups4, w.dups6 = 1, 1 })},
		{"the same ACK sent three times", append(opened(), c(20*ms, ack, 1000, 5000, 0), c(20*ms+100, ack, 1000, 5000, 0), c(20*ms+200, ack, 1000, 5000, 0)), opens},
		{"keep-alives", append(opened(), c(20000*ms, ack, 999, 5000, 0), c(40000*ms, ack, 999, 5000, 0)),
			but(opens, func(w *want) { w.keepTo = 2 })},
		{"a keep-alive with a byte of garbage", append(opened(), data(20*ms, 1000, 100), c(20000*ms, ack, 1099, 5000, 1)),
			but(opens, func(w *want) { w.keepTo = 1 })},
		{"a single byte sent again", append(opened(), data(20*ms, 1000, 1), data(220*ms, 1000, 1)),
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"overtaken", append(opened(), data(20*ms, 1100, 100), data(20*ms+300*time.Microsecond, 1000, 100), data(21*ms, 1200, 10)),
			but(opens, func(w *want) { w.overTo = 1 })},
		{"lost before the mirror, and sent again", append(opened(), data(20*ms, 1100, 100), data(220*ms, 1000, 100)),
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"overtaken, and then sent again", append(opened(), data(20*ms, 1100, 100), data(21*ms, 1000, 100), data(221*ms, 1000, 100)),
			but(opens, func(w *want) { w.overTo, w.retransTo = 1, 1 })},
		{"a hole in the middle", append(opened(), data(20*ms, 1300, 100), data(21*ms, 1100, 50), data(22*ms, 1000, 100), data(23*ms, 1150, 150)),
			but(opens, func(w *want) { w.overTo = 3 })},
		{"SYN sent again", []step{c(0, syn, 999, 0, 0), c(1000*ms, syn, 999, 0, 0), s(1010*ms, synAck, 4999, 1000, 0)},
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"SYN-ACK sent again", append(opened()[:2:2], s(1000*ms, synAck, 4999, 1000, 0)),
			but(opens, func(w *want) { w.from = 1 })},
		{"the same ports again", append(opened(), c(5000*ms, syn, 70000, 0, 0), s(5010*ms, synAck, 90000, 70001, 0)), want{conns: 2, answered: 2}},
		{"refused", []step{c(0, syn, 999, 0, 0), s(ms, rst|ack, 0, 1000, 0), s(2*ms, rst|ack, 0, 1000, 0).with(50, 0)},
			want{conns: 1, resetsFrom: 1, dups6: 1}},
		{"reset by the client", append(opened(), c(20*ms, rst, 1000, 0, 0), c(21*ms, rst, 1000, 0, 0).with(50, 0)),
			but(opens, func(w *want) { w.resetsTo, w.dups6 = 1, 1 })},
		{"the end, and FIN sent again", append(opened(), c(20*ms, fin, 1000, 5000, 0), c(220*ms, fin, 1000, 5000, 0), s(221*ms, fin, 5000, 1001, 0), c(222*ms, ack, 1001, 5001, 0)),
			but(opens, func(w *want) { w.retransTo = 1 })},
		{"numbers that wrap", []step{c(0, syn, 0xffffff00, 0, 0), s(ms, synAck, 0xffffffff, 0xffffff01, 0), c(2*ms, ack, 0xffffff01, 0, 200), c(3*ms, ack, 0xffffffc9, 0, 100),
			s(4*ms, ack, 0, 45, 10), c(204*ms, ack, 0xffffffc9, 0, 100)}, but(opens, func(w *want) { w.retransTo = 1 })},
		{"seen from the middle on", []step{s(0, synAck, 4999, 1000, 0), data(20*ms, 123456, 100), data(21*ms, 123556, 100)}, want{answered: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, v := range bothIPs {
				t.Run(family[v], func(t *testing.T) {
					a := New(Options{})
					for i, st := range tt.steps {
						st.proto, st.src, st.dst = TCP, client[v], server[v]
						if st.back {
							st.src, st.dst = st.dst, st.src
						}
						if st.id == 0 {
							st.id = uint16(i + 1)
						}
						a.in(st.at, st.bytes())
					}
					w := tt.want
					dups := w.dups4
					if v == 1 {
						dups = w.dups6
						if tt.name == "mirrored twice, the second copy late" {
							w.retransTo = 1 // without a number nothing tells it from one
						}
					}
					f := a.Figures()
					if f.Duplicates != uint64(dups) || f.Packets != uint64(len(tt.steps)) || f.Flows != 1 {
						t.Errorf("%d packets, %d duplicates, %d flows; want %d, %d, 1", f.Packets, f.Duplicates, f.Flows, len(tt.steps), dups)
					}
					o := one(t, f)
					if o.Service != server[v].String()+"/tcp" || o.Directions != "both" {
						t.Errorf("service %s, directions %s", o.Service, o.Directions)
					}
					is(t, "connections", o.Connections, w.conns)
					is(t, "answered", o.Answered, w.answered)
					is(t, "retransmissions to", o.RetransmissionsTo, w.retransTo)
					is(t, "retransmissions from", o.RetransmissionsFrom, w.from)
					is(t, "out of order to", o.OutOfOrderTo, w.overTo)
					is(t, "out of order from", o.OutOfOrderFrom, 0)
					is(t, "keep-alives to", o.KeepalivesTo, w.keepTo)
					is(t, "resets to", o.ResetsTo, w.resetsTo)
					is(t, "resets from", o.ResetsFrom, w.resetsFrom)
				})
			}
		})
	}
}
