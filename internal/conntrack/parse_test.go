package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"weir/internal/model"
)

var cmpAddrs = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// body writes a flow as the kernel would tell of it: the encoder that names flows for
// deletion, with the attributes that only the kernel sends added by hand.
func body(f *Flow) []byte {
	r := newRequest(0, 0, f.Orig.Family())
	r.nested(ctaTupleOrig, func() { r.tuple(f.Proto, f.Orig) })
	r.nested(ctaTupleReply, func() { r.tuple(f.Proto, f.Reply) })
	r.attr32(ctaStatus, f.Status)
	r.attr32(ctaMark, f.Mark)
	r.attr32(ctaID, f.ID)
	r.attr16(ctaZone, f.Zone)
	r.attr32(ctaTimeout, uint32(f.Timeout/time.Second))
	for typ, c := range map[uint16]Counters{ctaCountOrig: f.OrigCount, ctaCountReply: f.ReplyCount} {
		r.nested(typ, func() {
			r.attr(ctaPackets, binary.BigEndian.AppendUint64(nil, c.Packets)...)
			r.attr(ctaBytes, binary.BigEndian.AppendUint64(nil, c.Bytes)...)
		})
	}
	if f.Proto == model.TCP {
		r.nested(ctaProtoInfo, func() {
			r.nested(ctaInfoTCP, func() { r.attr(ctaTCPState, f.TCPState) })
		})
	}
	return r.b[unix.NLMSG_HDRLEN:]
}

func drawTuple(t *rapid.T, p model.Proto, v6 bool) Tuple {
	addr := func() netip.Addr {
		n := 4
		if v6 {
			n = 16
		}
		a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
		return a
	}
	tu := Tuple{Src: netip.AddrPortFrom(addr(), 0), Dst: netip.AddrPortFrom(addr(), 0)}
	if isICMP(p) {
		tu.ICMPID = rapid.Uint16().Draw(t, "id")
		tu.ICMPType, tu.ICMPCode = rapid.Byte().Draw(t, "type"), rapid.Byte().Draw(t, "code")
		return tu
	}
	tu.Src = netip.AddrPortFrom(tu.Src.Addr(), rapid.Uint16().Draw(t, "sport"))
	tu.Dst = netip.AddrPortFrom(tu.Dst.Addr(), rapid.Uint16().Draw(t, "dport"))
	return tu
}

func TestParseReadsWhatIsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Flow{
			Proto:     rapid.SampledFrom([]model.Proto{model.TCP, model.UDP, model.SCTP, ICMP, ICMPv6, 47}).Draw(t, "proto"),
			Status:    rapid.Uint32().Draw(t, "status"),
			Mark:      rapid.Uint32().Draw(t, "mark"),
			ID:        rapid.Uint32().Draw(t, "id"),
			Zone:      rapid.Uint16().Draw(t, "zone"),
			Timeout:   time.Duration(rapid.Uint32().Draw(t, "timeout")) * time.Second,
			OrigCount: Counters{rapid.Uint64().Draw(t, "packets"), rapid.Uint64().Draw(t, "bytes")},
		}
		v6 := f.Proto == ICMPv6 || f.Proto != ICMP && rapid.Bool().Draw(t, "v6")
		f.Orig, f.Reply = drawTuple(t, f.Proto, v6), drawTuple(t, f.Proto, v6)
		if f.Proto == model.TCP {
			f.TCPState = rapid.Byte().Draw(t, "state")
		}
		got, err := parseFlow(body(&f))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f, got, cmpAddrs); d != "" {
			t.Fatalf("-written +read:\n%s", d)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	good := body(&Flow{Proto: model.UDP,
		Orig:  Tuple{Src: ap("192.0.2.1:1"), Dst: ap("192.0.2.2:2")},
		Reply: Tuple{Src: ap("192.0.2.2:2"), Dst: ap("192.0.2.1:1")}})
	if _, err := parseFlow(good); err != nil {
		t.Fatal(err)
	}
	one := newRequest(0, 0, model.IPv4)
	one.nested(ctaTupleOrig, func() {
		one.tuple(model.UDP, Tuple{Src: ap("192.0.2.1:1"), Dst: ap("192.0.2.2:2")})
	})
	badSize := newRequest(0, 0, model.IPv4)
	badSize.attr(ctaMark, 1, 2)
	for name, b := range map[string][]byte{
		"empty":           nil,
		"short header":    good[:3],
		"no tuples":       good[:nfgenHeader],
		"one tuple":       one.b[unix.NLMSG_HDRLEN:],
		"mark of 2 bytes": badSize.b[unix.NLMSG_HDRLEN:],
		"cut attribute":   good[:nfgenHeader+10],
		"trailing bytes":  append(bytes.Clone(good), 0, 0),
		"length 0":        append(bytes.Clone(good), 0, 0, 0, 0),
	} {
		if _, err := parseFlow(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestZoneOfOneDirection(t *testing.T) {
	r := newRequest(0, 0, model.IPv4)
	tu := Tuple{Src: ap("192.0.2.1:1"), Dst: ap("192.0.2.2:2")}
	r.nested(ctaTupleOrig, func() { r.tuple(model.UDP, tu); r.attr16(ctaTupleZone, 7) })
	r.nested(ctaTupleReply, func() { r.tuple(model.UDP, tu) })
	f, err := parseFlow(r.b[unix.NLMSG_HDRLEN:])
	if err != nil || f.Zone != 7 {
		t.Fatalf("zone %d, error %v", f.Zone, err)
	}
}

func TestFilterMatches(t *testing.T) {
	v4 := Flow{Mark: 0x0123_0000, Status: StatusDNAT | StatusConfirmed,
		Orig: Tuple{Src: ap("192.0.2.1:1"), Dst: ap("192.0.2.2:2")}}
	for _, c := range []struct {
		name string
		f    Filter
		want bool
	}{
		{"zero", Filter{}, true},
		{"family", Filter{Family: model.IPv4}, true},
		{"other family", Filter{Family: model.IPv6}, false},
		{"mark under mask", Filter{Mark: 0x0123_ffff, MarkMask: 0x0fff_0000}, true},
		{"other mark", Filter{Mark: 0x0124_0000, MarkMask: 0x0fff_0000}, false},
		{"mark without mask", Filter{Mark: 9}, true},
		{"no mark at all", Filter{MarkMask: 0x0fff_0000}, false},
		{"status", Filter{Status: StatusDNAT, StatusMask: StatusDNAT}, true},
		{"not that status", Filter{StatusMask: StatusDNAT}, false},
		{"predicate", Filter{Match: func(f *Flow) bool { return f.Orig.Src.Port() == 2 }}, false},
	} {
		if got := c.f.matches(&v4); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestFlowString(t *testing.T) {
	for want, f := range map[string]Flow{
		"tcp 203.0.113.9:40000 > 198.51.100.10:80 (10.1.1.1:8080)": {Proto: model.TCP, Status: StatusDNAT,
			Orig:  Tuple{Src: ap("203.0.113.9:40000"), Dst: ap("198.51.100.10:80")},
			Reply: Tuple{Src: ap("10.1.1.1:8080")}},
		"icmpv6 2001:db8::1 > 2001:db8::2": {Proto: ICMPv6,
			Orig: Tuple{Src: ap("[2001:db8::1]:0"), Dst: ap("[2001:db8::2]:0")}},
	} {
		if got := f.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// message puts a netlink header before a body.
func message(typ, flags uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

const ctNew = unix.NFNL_SUBSYS_CTNETLINK << 8

func TestMessages(t *testing.T) {
	var s socket
	s.seq = 5
	incomplete := false
	var bodies []string
	fn := func(b []byte) error { bodies = append(bodies, string(b)); return nil }
	data := message(ctNew, unix.NLM_F_MULTI, 4, []byte("old!"))
	data = append(data, message(ctNew, unix.NLM_F_MULTI, 5, []byte("one"))...)
	data = append(data, message(ctNew, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, 5, []byte("two"))...)
	done, err := s.messages(data, fn, &incomplete)
	if done || err != nil || strings.Join(bodies, ",") != "one,two" || !incomplete {
		t.Fatalf("done %v, error %v, bodies %q, incomplete %v", done, err, bodies, incomplete)
	}
	done, err = s.messages(message(unix.NLMSG_DONE, 0, 5, make([]byte, 4)), fn, &incomplete)
	if !done || err != nil {
		t.Fatalf("done %v, error %v", done, err)
	}
}

func TestKernelWords(t *testing.T) {
	errno := -int32(unix.EINVAL)
	code := binary.NativeEndian.AppendUint32(nil, uint32(errno))
	words := (&request{}).words("bad zone\x00")
	head := message(ctNew, 0, 5, []byte("request"))
	for name, c := range map[string]struct {
		flags uint16
		body  []byte
		want  string
	}{
		"plain":   {0, append(bytes.Clone(code), head...), "invalid argument"},
		"whole":   {unix.NLM_F_ACK_TLVS, concat(code, head, words), "invalid argument (bad zone)"},
		"capped":  {unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED, concat(code, head[:unix.NLMSG_HDRLEN], words), "invalid argument (bad zone)"},
		"cut off": {unix.NLM_F_ACK_TLVS, concat(code, head[:8]), "invalid argument"},
	} {
		err := verdict(unix.NLMSG_ERROR, c.flags, c.body)
		if !errors.Is(err, unix.EINVAL) || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := verdict(unix.NLMSG_DONE, unix.NLM_F_ACK_TLVS, concat(code, words)); err == nil || err.Error() != "invalid argument (bad zone)" {
		t.Errorf("end of a dump: %v", err)
	}
}

func (r *request) words(s string) []byte {
	r.attr(unix.NLMSGERR_ATTR_MSG, []byte(s)...)
	return r.b
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func FuzzParseFlow(f *testing.F) {
	for _, fl := range []Flow{
		{Proto: model.TCP, TCPState: 3, Orig: Tuple{Src: ap("192.0.2.1:1"), Dst: ap("192.0.2.2:2")},
			Reply: Tuple{Src: ap("192.0.2.2:2"), Dst: ap("192.0.2.1:1")}},
		{Proto: ICMPv6, Orig: Tuple{Src: ap("[2001:db8::1]:0"), Dst: ap("[2001:db8::2]:0"), ICMPID: 4},
			Reply: Tuple{Src: ap("[2001:db8::2]:0"), Dst: ap("[2001:db8::1]:0"), ICMPID: 4}},
	} {
		b := body(&fl)
		f.Add(b)
		for cut := 0; cut < len(b); cut += 7 {
			f.Add(b[:cut])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fl, err := parseFlow(b)
		_ = addStats(b, new(Stats))
		_ = addGlobal(b, new(uint64), new(uint64))
		if err == nil {
			// What is given out can be named, compared and asked about without a panic.
			_ = fl.String()
			_ = (&Filter{Family: model.IPv4}).matches(&fl)
			if !fl.Orig.IsValid() || len(deleteRequest(&fl).b) == 0 {
				t.Fatalf("not a valid flow: %v", fl)
			}
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(message(ctNew, unix.NLM_F_MULTI, 5, []byte("body")))
	f.Add(message(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 5, make([]byte, 40)))
	f.Add(message(unix.NLMSG_DONE, unix.NLM_F_ACK_TLVS, 5, []byte{1, 2, 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := socket{seq: 5}
		_, _ = s.messages(b, func(b []byte) error { _, err := parseFlow(b); return err }, new(bool))
	})
}
