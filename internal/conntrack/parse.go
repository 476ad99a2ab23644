package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"weir/internal/model"
)

// Attribute numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig   = 1
	ctaTupleReply  = 2
	ctaStatus      = 3
	ctaProtoInfo   = 4
	ctaTimeout     = 7
	ctaMark        = 8
	ctaCountOrig   = 9
	ctaCountReply  = 10
	ctaID          = 12
	ctaZone        = 18
	ctaMarkMask    = 21
	ctaStatusMask  = 26
	ctaTupleIP     = 1
	ctaTupleProto  = 2
	ctaTupleZone   = 3
	ctaIPv4Src     = 1
	ctaIPv4Dst     = 2
	ctaIPv6Src     = 3
	ctaIPv6Dst     = 4
	ctaProtoNum    = 1
	ctaSrcPort     = 2
	ctaDstPort     = 3
	ctaICMPID      = 4
	ctaICMPType    = 5
	ctaICMPCode    = 6
	ctaICMPv6ID    = 7
	ctaICMPv6Type  = 8
	ctaICMPv6Code  = 9
	ctaInfoTCP     = 1
	ctaTCPState    = 1
	ctaPackets     = 1
	ctaBytes       = 2
	ctaStatFound   = 2
	ctaStatInvalid = 4
	ctaStatInsFail = 9
	ctaStatDrop    = 10
	ctaStatEarly   = 11
	ctaStatRestart = 13
	ctaGlobCount   = 1
	ctaGlobMax     = 2

	nlaTypeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	nlaNested   = 0x8000
	nlaHeader   = 4
	nfgenHeader = 4 // struct nfgenmsg: family, version, resource id
)

var errMalformed = errors.New("malformed message")

// attrs calls fn for every attribute of b, in order. The data it gives are a part of b.
func attrs(b []byte, fn func(typ uint16, data []byte) error) error {
	for len(b) >= nlaHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < nlaHeader || n > len(b) {
			return fmt.Errorf("%w: attribute of %d bytes in %d", errMalformed, n, len(b))
		}
		if err := fn(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[nlaHeader:n]); err != nil {
			return err
		}
		b = b[min(align4(n), len(b)):]
	}
	if len(b) != 0 {
		return fmt.Errorf("%w: %d bytes left over", errMalformed, len(b))
	}
	return nil
}

func align4(n int) int { return (n + 3) &^ 3 }

// The kernel's numbers here are big-endian and of exactly their type's size.

func get8(d []byte, to *uint8) error {
	if len(d) != 1 {
		return sizeError(d, 1)
	}
	*to = d[0]
	return nil
}

func get16(d []byte, to *uint16) error {
	if len(d) != 2 {
		return sizeError(d, 2)
	}
	*to = binary.BigEndian.Uint16(d)
	return nil
}

func get32(d []byte, to *uint32) error {
	if len(d) != 4 {
		return sizeError(d, 4)
	}
	*to = binary.BigEndian.Uint32(d)
	return nil
}

func get64(d []byte, to *uint64) error {
	if len(d) != 8 {
		return sizeError(d, 8)
	}
	*to = binary.BigEndian.Uint64(d)
	return nil
}

func sizeError(d []byte, want int) error {
	return fmt.Errorf("%w: value of %d bytes where %d are due", errMalformed, len(d), want)
}

// parseFlow reads the body of an IPCTNL_MSG_CT_NEW message: struct nfgenmsg and
// attributes. Attributes it does not know are passed over. A flow without two valid
// tuples of one protocol is an error.
func parseFlow(b []byte) (Flow, error) {
	var f Flow
	if len(b) < nfgenHeader {
		return f, fmt.Errorf("%w: %d bytes", errMalformed, len(b))
	}
	var origZone uint16
	var replyProto model.Proto
	err := attrs(b[nfgenHeader:], func(typ uint16, d []byte) error {
		switch typ {
		case ctaTupleOrig:
			return parseTuple(d, &f.Orig, &f.Proto, &origZone)
		case ctaTupleReply:
			return parseTuple(d, &f.Reply, &replyProto, new(uint16))
		case ctaStatus:
			return get32(d, &f.Status)
		case ctaMark:
			return get32(d, &f.Mark)
		case ctaID:
			return get32(d, &f.ID)
		case ctaZone:
			return get16(d, &f.Zone)
		case ctaTimeout:
			var s uint32
			err := get32(d, &s)
			f.Timeout = time.Duration(s) * time.Second
			return err
		case ctaCountOrig:
			return parseCounters(d, &f.OrigCount)
		case ctaCountReply:
			return parseCounters(d, &f.ReplyCount)
		case ctaProtoInfo:
			return parseProtoInfo(d, &f.TCPState)
		}
		return nil
	})
	if err != nil {
		return Flow{}, err
	}
	if !f.Orig.IsValid() || !f.Reply.IsValid() || f.Proto != replyProto {
		return Flow{}, fmt.Errorf("%w: a flow without two tuples", errMalformed)
	}
	// A zone of one direction alone is told inside that direction's tuple.
	if f.Zone == 0 {
		f.Zone = origZone
	}
	return f, nil
}

func parseTuple(b []byte, t *Tuple, p *model.Proto, zone *uint16) error {
	var src, dst netip.Addr
	var sport, dport uint16
	err := attrs(b, func(typ uint16, d []byte) error {
		switch typ {
		case ctaTupleIP:
			return parseAddrs(d, &src, &dst)
		case ctaTupleProto:
			return parsePorts(d, t, p, &sport, &dport)
		case ctaTupleZone:
			return get16(d, zone)
		}
		return nil
	})
	if src.IsValid() {
		t.Src = netip.AddrPortFrom(src, sport)
	}
	if dst.IsValid() {
		t.Dst = netip.AddrPortFrom(dst, dport)
	}
	return err
}

func parseAddrs(b []byte, src, dst *netip.Addr) error {
	return attrs(b, func(typ uint16, d []byte) error {
		to, size := src, 4
		switch typ {
		case ctaIPv4Src:
		case ctaIPv4Dst:
			to = dst
		case ctaIPv6Src:
			size = 16
		case ctaIPv6Dst:
			to, size = dst, 16
		default:
			return nil
		}
		if len(d) != size {
			return sizeError(d, size)
		}
		*to, _ = netip.AddrFromSlice(d)
		return nil
	})
}

func parsePorts(b []byte, t *Tuple, p *model.Proto, sport, dport *uint16) error {
	return attrs(b, func(typ uint16, d []byte) error {
		switch typ {
		case ctaProtoNum:
			return get8(d, (*uint8)(p))
		case ctaSrcPort:
			return get16(d, sport)
		case ctaDstPort:
			return get16(d, dport)
		case ctaICMPID, ctaICMPv6ID:
			return get16(d, &t.ICMPID)
		case ctaICMPType, ctaICMPv6Type:
			return get8(d, &t.ICMPType)
		case ctaICMPCode, ctaICMPv6Code:
			return get8(d, &t.ICMPCode)
		}
		return nil
	})
}

func parseCounters(b []byte, c *Counters) error {
	return attrs(b, func(typ uint16, d []byte) error {
		switch typ {
		case ctaPackets:
			return get64(d, &c.Packets)
		case ctaBytes:
			return get64(d, &c.Bytes)
		}
		return nil
	})
}

func parseProtoInfo(b []byte, state *uint8) error {
	return attrs(b, func(typ uint16, d []byte) error {
		if typ != ctaInfoTCP {
			return nil
		}
		return attrs(d, func(typ uint16, d []byte) error {
			if typ != ctaTCPState {
				return nil
			}
			return get8(d, state)
		})
	})
}

// addStats adds what one processor counted, the body of one message of
// IPCTNL_MSG_CT_GET_STATS_CPU, to s.
func addStats(b []byte, s *Stats) error {
	return counters(b, func(typ uint16) *uint64 {
		switch typ {
		case ctaStatFound:
			return &s.Found
		case ctaStatInvalid:
			return &s.Invalid
		case ctaStatInsFail:
			return &s.InsertFailed
		case ctaStatDrop:
			return &s.Drop
		case ctaStatEarly:
			return &s.EarlyDrop
		case ctaStatRestart:
			return &s.SearchRestart
		}
		return nil
	})
}

// addGlobal reads the number of flows and the limit out of IPCTNL_MSG_CT_GET_STATS.
func addGlobal(b []byte, count, limit *uint64) error {
	return counters(b, func(typ uint16) *uint64 {
		switch typ {
		case ctaGlobCount:
			return count
		case ctaGlobMax:
			return limit
		}
		return nil
	})
}

func counters(b []byte, to func(typ uint16) *uint64) error {
	if len(b) < nfgenHeader {
		return fmt.Errorf("%w: %d bytes", errMalformed, len(b))
	}
	return attrs(b[nfgenHeader:], func(typ uint16, d []byte) error {
		sum := to(typ)
		if sum == nil {
			return nil
		}
		var v uint32
		err := get32(d, &v)
		*sum += uint64(v)
		return err
	})
}
