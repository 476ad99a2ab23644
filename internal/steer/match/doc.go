// Package match says what a packet is: its addresses, ports and protocol, and whether the bytes
// at some place of it are these. It is pure, allocates nothing for a packet, and reads nothing
// but the bytes it is given, which may be the first of a packet alone.
//
// # The language
//
// A condition compares 1, 2, 4 or 8 bytes, in network order, at an offset from the first byte of
// the header that is named:
//
//	PROTOCOL[OFFSET:LENGTH] [& MASK] (= | !=) VALUE
//
//	udp[8:4] & 0xffffff00 = 0x494e5600     the payload of a datagram begins with INV
//	tcp[12:2] & 0x01ff = 0x0002            of the flags SYN alone
//	ip[8:1] != 1 and udp[0:2] = 5060
//
// PROTOCOL is ip, ip6, tcp, udp, sctp, icmp or icmp6. Conditions are joined by "and" or "&&", and
// all of them must hold. Numbers are decimal or 0x and hexadecimal digits. Blanks are free.
//
// A packet of another protocol than the one that is named matches neither = nor !=, and so does
// one that ends before the bytes. A fragment that is not the first has no transport header.
//
// # Where others differ
//
// pcap-filter(7), the language of tcpdump, has the same form. There tcp[…] and udp[…] are of
// IPv4 alone, and here of both families, behind whatever extension headers there are;
// offsets may be computed, and are numbers here; a length may be left out and is then 1; a
// leading zero means octal, and is an error here; there are or, not, < and >, where here there are
// several rules.
//
// nfqlb takes one condition in an option that may be repeated, of tcp, udp and sctp alone and
// within the fixed part of the header, and lets a packet of another protocol pass. Here
// "udp[…]" does not match TCP.
package match
