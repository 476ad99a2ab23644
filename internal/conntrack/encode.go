package conntrack

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// Message numbers of the subsystem: enum cntl_msg_types.
const (
	msgGet      = 1
	msgDelete   = 2
	msgStatsCPU = 4
	msgStats    = 5
)

// request builds one message: struct nlmsghdr, struct nfgenmsg and attributes. The
// sequence number is the socket's business.
type request struct{ b []byte }

func newRequest(msg, flags uint16, family model.Family) *request {
	r := &request{make([]byte, unix.NLMSG_HDRLEN+nfgenHeader, 256)}
	binary.NativeEndian.PutUint16(r.b[4:], unix.NFNL_SUBSYS_CTNETLINK<<8|msg)
	binary.NativeEndian.PutUint16(r.b[6:], unix.NLM_F_REQUEST|flags)
	switch family {
	case model.IPv4:
		r.b[unix.NLMSG_HDRLEN] = unix.AF_INET
	case model.IPv6:
		r.b[unix.NLMSG_HDRLEN] = unix.AF_INET6
	}
	return r
}

// finish sets the length and the sequence number.
func (r *request) finish(seq uint32) []byte {
	binary.NativeEndian.PutUint32(r.b[0:], uint32(len(r.b)))
	binary.NativeEndian.PutUint32(r.b[8:], seq)
	return r.b
}

func (r *request) attr(typ uint16, data ...byte) {
	r.b = binary.NativeEndian.AppendUint16(r.b, uint16(nlaHeader+len(data)))
	r.b = binary.NativeEndian.AppendUint16(r.b, typ)
	r.b = append(r.b, data...)
	for len(r.b)%4 != 0 {
		r.b = append(r.b, 0)
	}
}

func (r *request) attr16(typ, v uint16) { r.attr(typ, binary.BigEndian.AppendUint16(nil, v)...) }
func (r *request) attr32(typ uint16, v uint32) {
	r.attr(typ, binary.BigEndian.AppendUint32(nil, v)...)
}

func (r *request) nested(typ uint16, fill func()) {
	start := len(r.b)
	r.attr(typ | nlaNested)
	fill()
	binary.NativeEndian.PutUint16(r.b[start:], uint16(len(r.b)-start))
}

// dumpRequest asks for the flows of the filter. The kernel ignores what it is too old
// to know: the answer is checked again.
func dumpRequest(f *Filter) *request {
	r := newRequest(msgGet, unix.NLM_F_DUMP, f.Family)
	if f.MarkMask != 0 {
		r.attr32(ctaMark, f.Mark&f.MarkMask)
		r.attr32(ctaMarkMask, f.MarkMask)
	}
	if f.StatusMask != 0 {
		r.attr32(ctaStatus, f.Status&f.StatusMask)
		r.attr32(ctaStatusMask, f.StatusMask)
	}
	return r
}

// deleteRequest names the flow by its original tuple and its ID. f.Orig must be valid:
// a delete message without a tuple empties the whole table.
func deleteRequest(f *Flow) *request {
	r := newRequest(msgDelete, unix.NLM_F_ACK, f.Orig.Family())
	r.nested(ctaTupleOrig, func() { r.tuple(f.Proto, f.Orig) })
	if f.Zone != 0 {
		r.attr16(ctaZone, f.Zone)
	}
	if f.ID != 0 {
		r.attr32(ctaID, f.ID)
	}
	return r
}

func (r *request) tuple(p model.Proto, t Tuple) {
	r.nested(ctaTupleIP, func() {
		src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
		if t.Family() == model.IPv6 {
			src, dst = ctaIPv6Src, ctaIPv6Dst
		}
		r.attr(src, t.Src.Addr().AsSlice()...)
		r.attr(dst, t.Dst.Addr().AsSlice()...)
	})
	r.nested(ctaTupleProto, func() {
		r.attr(ctaProtoNum, byte(p))
		switch p {
		case ICMP:
			r.attr16(ctaICMPID, t.ICMPID)
			r.attr(ctaICMPType, t.ICMPType)
			r.attr(ctaICMPCode, t.ICMPCode)
		case ICMPv6:
			r.attr16(ctaICMPv6ID, t.ICMPID)
			r.attr(ctaICMPv6Type, t.ICMPType)
			r.attr(ctaICMPv6Code, t.ICMPCode)
		default:
			r.attr16(ctaSrcPort, t.Src.Port())
			r.attr16(ctaDstPort, t.Dst.Port())
		}
	})
}
