// Package pickup sends on the FIN or RST of a TCP connection that conntrack does not know, so that
// it is translated like the packets of connections that conntrack does know.
//
// conntrack takes data or a bare ACK for the first packet of a connection that began elsewhere
// (nf_conntrack_tcp_loose), but never a FIN or RST: those are invalid to it (tcp_conntracks in
// net/netfilter/nf_conntrack_proto_tcp.c), and what is invalid is not translated. So such a packet
// is taken out of the kernel's hands, and two packets of the box itself take its place:
//
//   - a bare ACK with its numbers and options. That begins the connection, by the kernel's own
//     rules for translation, source and counting, with the mark that says the backend. To the
//     backend it is one more acknowledgement of what it knows;
//   - then the packet itself, which is one of a known connection now.
//
// Where the kernel did not give all of the packet, only the ACK is sent: a FIN with data is
// repeated by its sender, and is found known.
//
// With nf_conntrack_tcp_loose=0 the ACK is invalid as well; both are then dropped by the rules for
// marked packets of the box itself, and so is a packet that is invalid though its connection is
// known, say outside its window.
package pickup
