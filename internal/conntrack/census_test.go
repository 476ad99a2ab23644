package conntrack

import (
	"encoding/binary"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/egress"
	"weir/internal/model"
)

// BenchmarkCensus dumps what a gateway with a full pool has, as an account of pools reads it:
// flows to one destination that leave from six addresses.
func BenchmarkCensus(b *testing.B) {
	const flows = 200_000 // the usual net.netfilter.nf_conntrack_max is 262,144
	c := open(b)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`table inet census {
		chain out {
			type nat hook postrouting priority 100
			udp dport 9 snat ip to numgen inc mod 6 map { 0 : 198.51.100.1, 1 : 198.51.100.2, 2 : 198.51.100.3, 3 : 198.51.100.4, 4 : 198.51.100.5, 5 : 198.51.100.6 } : 1024-65535
		}
	}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Skipf("%v: %s", err, out)
	}
	b.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "census").Run() })
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	for i := range flows {
		p := make([]byte, 28)
		p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(p[2:], 28)
		copy(p[12:], []byte{10, 1, 1, 1})
		p[15] = byte(1 + i/60000)
		copy(p[16:], []byte{192, 0, 2, 1})
		binary.BigEndian.PutUint16(p[20:], uint16(1024+i%60000))
		binary.BigEndian.PutUint16(p[22:], 9)
		binary.BigEndian.PutUint16(p[24:], 8)
		if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}}); err != nil && err != unix.ENOBUFS && err != unix.EPERM {
			b.Fatal(err)
		}
	}
	m := &model.Pool{Name: "p", Addresses: []model.AddrRange{{Lo: netip.MustParseAddr("198.51.100.1"), Hi: netip.MustParseAddr("198.51.100.6")}}}
	pools := []*egress.Pool{egress.NewPool(m, []model.PortRange{model.DefaultPoolPorts}, nil)}
	b.ReportAllocs()
	n, most := 0, uint64(0)
	for b.Loop() {
		census := egress.NewCensus(pools, nil)
		n = 0
		err := c.Dump(b.Context(), Filter{Status: StatusSNAT, StatusMask: StatusSNAT}, func(f Flow) bool {
			if census.Add(f.Reply.Dst, egress.Dest{Proto: f.Proto, To: f.Reply.Src}) {
				n++
			}
			return true
		})
		if err != nil {
			b.Fatal(err)
		}
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		most = max(most, s.HeapInuse)
	}
	b.ReportMetric(float64(n), "flows")
	b.ReportMetric(float64(most)/(1<<20), "MiB-heap")
}
