package vip

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// mac is an Ethernet address.
type mac [6]byte

var (
	broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// allNodesMAC is where Ethernet carries ff02::1, RFC 2464 section 7.
	allNodesMAC = mac{0x33, 0x33, 0, 0, 0, 1}
	allNodes    = netip.MustParseAddr("ff02::1")
)

// ARP operations, RFC 826.
const (
	arpRequest = 1
	arpReply   = 2
)

// announcements returns the frames that tell a network that addr is at m now. For IPv4
// these are both forms of gratuitous ARP, since some routers heed the one and some the
// other; for IPv6 an unsolicited neighbour advertisement.
func announcements(m mac, addr netip.Addr, router bool) [][]byte {
	if addr.Is4() {
		return [][]byte{gratuitousARP(arpRequest, m, addr), gratuitousARP(arpReply, m, addr)}
	}
	return [][]byte{unsolicitedNA(m, addr, router)}
}

func ethernet(dst, src mac, etherType uint16) []byte {
	b := make([]byte, 0, 86)
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// gratuitousARP builds an ARP announcement to broadcast, with the address as sender and
// as target: as a request (RFC 5227 section 3: the target's hardware address is zero), or
// as a reply (RFC 5944 section 4.6: it is the sender's).
func gratuitousARP(op uint16, m mac, addr netip.Addr) []byte {
	var target mac
	if op == arpReply {
		target = m
	}
	ip := addr.As4()
	b := ethernet(broadcast, m, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, and the sizes of their addresses
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, m[:]...)
	b = append(b, ip[:]...)
	b = append(b, target[:]...)
	return append(b, ip[:]...)
}

// unsolicitedNA builds the neighbour advertisement of RFC 4861 section 7.2.6: from the
// address to all nodes, with the override flag and the link-layer address. router must be
// what the kernel says when it is asked for the address, or hosts see a router come and go.
func unsolicitedNA(m mac, addr netip.Addr, router bool) []byte {
	const override, isRouter = 0x20, 0x80
	flags := byte(override)
	if router {
		flags |= isRouter
	}
	ip, dst := addr.As16(), allNodes.As16()

	icmp := []byte{136, 0, 0, 0, flags, 0, 0, 0} // type, code, checksum, flags
	icmp = append(icmp, ip[:]...)
	icmp = append(icmp, 2, 1) // target link-layer address, one unit of 8 bytes
	icmp = append(icmp, m[:]...)

	// The checksum is over the pseudo-header of RFC 8200 section 8.1 as well.
	pseudo := append(ip[:], dst[:]...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))

	b := ethernet(allNodesMAC, m, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(b, unix.IPPROTO_ICMPV6, 255) // RFC 4861: a hop limit other than 255 is ignored
	b = append(b, ip[:]...)
	b = append(b, dst[:]...)
	return append(b, icmp...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
