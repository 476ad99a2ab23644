package conntrack

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"golang.org/x/sys/unix"
)

// makeFlows makes n UDP flows, from ports of their own to a discarding port.
func makeFlows(t testing.TB, n int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}}
	for i := range n {
		// The source address is the destination's too, the ports tell flows apart. A
		// checksum of 0 is none. Answers (port unreachable) are part of the same flow.
		var b [8]byte
		binary.BigEndian.PutUint16(b[0:], uint16(10000+i))
		binary.BigEndian.PutUint16(b[2:], 9)
		binary.BigEndian.PutUint16(b[4:], 8)
		if err := unix.Sendto(fd, b[:], 0, to); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkDump20k(b *testing.B) {
	const flows = 20000
	c := open(b)
	makeFlows(b, flows)
	for name, filter := range map[string]Filter{"all": {}, "none-by-status": {Status: StatusDNAT, StatusMask: StatusDNAT}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				if err := c.Dump(b.Context(), filter, func(Flow) bool { n++; return true }); err != nil {
					b.Fatal(err)
				}
				if filter.StatusMask == 0 && n < flows || filter.StatusMask != 0 && n != 0 {
					b.Fatalf("%d flows", n)
				}
			}
		})
	}
}

func putCRC32c(b []byte) {
	// SCTP sends its checksum with the low byte first, RFC 9260 appendix A.
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// sum16 is the Internet checksum of b, which holds 0 where it goes.
func sum16(b []byte) (hi, lo byte) {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	s = s>>16 + s&0xffff
	s = ^(s + s>>16)
	return byte(s >> 8), byte(s)
}
