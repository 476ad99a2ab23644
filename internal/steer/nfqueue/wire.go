package nfqueue

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// What nfnetlink_queue.h has and golang.org/x/sys/unix lacks.
const (
	msgPacket       = unix.NFNL_SUBSYS_QUEUE << 8 // NFQNL_MSG_PACKET, 0
	msgVerdict      = unix.NFNL_SUBSYS_QUEUE<<8 | 1
	msgConfig       = unix.NFNL_SUBSYS_QUEUE<<8 | 2
	msgVerdictBatch = unix.NFNL_SUBSYS_QUEUE<<8 | 3

	attrPacketHdr  = 1 // NFQA_PACKET_HDR: id, protocol, hook
	attrVerdictHdr = 2 // NFQA_VERDICT_HDR: verdict, id
	attrMark       = 3
	attrPayload    = 10

	cfgCommand = 1 // NFQA_CFG_CMD
	cfgParams  = 2
	cfgMaxLen  = 3 // NFQA_CFG_QUEUE_MAXLEN
	cfgMask    = 4
	cfgFlags   = 5

	commandBind   = 1 // NFQNL_CFG_CMD_BIND
	commandUnbind = 2

	copyPacket = 2 // NFQNL_COPY_PACKET

	flagFailOpen = 1 << 0 // NFQA_CFG_F_FAIL_OPEN
	flagGSO      = 1 << 2

	verdictDrop   = 0 // NF_DROP
	verdictAccept = 1
)

const (
	headerLen = unix.SizeofNlMsghdr + 4 // and struct nfgenmsg

	// verdictLen is a verdict's message: the header of it, the verdict with the packet's number,
	// and the mark.
	verdictLen = headerLen + 4 + 8 + 4 + 4
)

func align(n int) int { return (n + 3) &^ 3 }

// appendHeader begins a message about a queue; its length is filled in by finish.
func appendHeader(b []byte, typ, flags uint16, seq uint32, queue uint16) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0, unix.AF_UNSPEC, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, queue)
}

func finish(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func appendAttr(b []byte, typ uint16, v ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, v...)
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendU32(b []byte, typ uint16, v uint32) []byte {
	return appendAttr(b, typ, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// appendCopy appends how many bytes of a packet are copied.
func appendCopy(b []byte, n int) []byte {
	return appendAttr(b, cfgParams, byte(n>>24), byte(n>>16), byte(n>>8), byte(n), copyPacket)
}

// appendVerdict appends a verdict on one packet.
func appendVerdict(b []byte, queue uint16, id, verdict, mark uint32) []byte {
	at := len(b)
	b = appendHeader(b, msgVerdict, 0, 0, queue)
	b = appendAttr(b, attrVerdictHdr, byte(verdict>>24), byte(verdict>>16), byte(verdict>>8), byte(verdict),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
	b = appendU32(b, attrMark, mark)
	binary.NativeEndian.PutUint32(b[at:], verdictLen)
	return b
}

// idAt is where in a verdict's message the packet's number stands.
const idAt = headerLen + 4 + 4

// extend makes the verdict at the end of b one on all packets up to id.
func extend(b []byte, id uint32) {
	last := b[len(b)-verdictLen:]
	binary.NativeEndian.PutUint16(last[4:], msgVerdictBatch)
	binary.BigEndian.PutUint32(last[idAt:], id)
}

// packet is a packet as the kernel tells of it.
type packet struct {
	id, mark uint32
	data     []byte
}

// parsePacket reads the attributes of NFQNL_MSG_PACKET. It reports false where the number is not
// there, without which there is no verdict.
func (p *packet) parse(b []byte) (ok bool) {
	*p = packet{}
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if n < 4 {
			return ok
		}
		v := b[4:max(4, min(n, len(b)))] // a message that is cut ends in the payload
		switch {
		case typ == attrPacketHdr && len(v) >= 4:
			p.id, ok = binary.BigEndian.Uint32(v), true
		case typ == attrMark && len(v) >= 4:
			p.mark = binary.BigEndian.Uint32(v)
		case typ == attrPayload:
			p.data = v
		}
		b = b[min(align(n), len(b)):]
	}
	return ok
}

// message takes the first message off a datagram; a last one may be cut.
func message(b []byte) (typ uint16, seq uint32, body, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, 0, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < unix.SizeofNlMsghdr {
		return 0, 0, nil, nil, false
	}
	end := min(n, len(b))
	return binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:end],
		b[min(align(end), len(b)):], true
}
