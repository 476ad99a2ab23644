package tap_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/lab"
	"weir/internal/tap"
	"weir/internal/tap/files"
)

func TestFilterErrors(t *testing.T) {
	for text, want := range map[string]string{
		"tcp and":                  `filter, column 8: found its end, want one of ip, ip6, tcp, udp, icmp, icmp6, sctp, src, dst, host, net, port, not, (`,
		"tcp icmp":                 `filter, column 5: found "icmp", want and, or, or its end`,
		"port http":                `filter, column 6: found "http", want a port from 0 to 65535`,
		"(tcp or udp":              `filter, column 12: found its end, want and, or, or )`,
		"tcp)":                     `filter, column 4: found ")", want and, or, or its end`,
		"host 198.51.100.0/24":     `filter, column 6: found "198.51.100.0/24", want an address, such as 198.51.100.10 or 2001:db8::10`,
		"src net 198.51.100.10/24": `filter, column 9: found "198.51.100.10/24", want a prefix without bits behind its length, such as 198.51.100.0/24 or 2001:db8::/32`,
		"src tcp":                  `filter, column 5: found "tcp", want host, net or port`,
	} {
		_, err := tap.ParseFilter(text)
		var e *tap.FilterError
		if !errors.As(err, &e) || err.Error() != want {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
	if _, err := tap.ParseFilter(strings.Repeat("(", 1000) + "tcp" + strings.Repeat(")", 1000)); err == nil {
		t.Error("a thousand parentheses were taken")
	}
}

// samples are packets of every kind that a filter can tell apart.
func samples() (out [][]byte) {
	for _, ends := range [][2]string{{"203.0.113.9", "198.51.100.10"}, {"2001:db8:f::9", "2001:db8::10"}, {"198.51.100.77", "203.0.113.9"}} {
		src, dst := netip.MustParseAddr(ends[0]), netip.MustParseAddr(ends[1])
		at := func(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
		out = append(out,
			lab.TCPPacket(at(src, 40000), at(dst, 80), lab.SYN, 1, 0), lab.TCPPacket(at(dst, 80), at(src, 40000), lab.SYN|lab.ACK, 1, 2),
			lab.UDPPacket(at(src, 53), at(dst, 5353), []byte("x")), lab.IPPacket(src, dst, 132, []byte{0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0}))
		if src.Is4() {
			later := lab.UDPPacket(at(src, 53), at(dst, 53), []byte("01234567"))
			later[7] = 2 // a later fragment
			out = append(out, lab.IPPacket(src, dst, 1, make([]byte, 8)), later)
		} else {
			out = append(out, lab.IPPacket(src, dst, 58, make([]byte, 8)))
		}
	}
	return out
}

// TestFilterAsTcpdump has tcpdump and the filter choose from the same packets, with random
// expressions.
func TestFilterAsTcpdump(t *testing.T) {
	if _, err := exec.LookPath("tcpdump"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("tcpdump is not installed")
		}
		t.Skip("tcpdump is not installed")
	}
	file := filepath.Join(t.TempDir(), "all.pcapng")
	start := time.Unix(1000, 0)
	w, err := files.Open(files.Options{Path: file, Device: "eth1", Snaplen: 65535}, start)
	if err != nil {
		t.Fatal(err)
	}
	all := samples()
	for i, b := range all {
		if err := w.Write(start.Add(time.Duration(i)*time.Second), b, len(b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var expr func(depth int) *rapid.Generator[string]
	words := rapid.SampledFrom([]string{"ip", "ip6", "tcp", "udp", "icmp", "icmp6", "sctp", "port 80", "src port 53", "dst port 80", "host 203.0.113.9", "src host 198.51.100.77",
		"net 198.51.100.0/24", "dst net 2001:db8::/48", "host 2001:db8::10", "src net 2001:db8:f::/64", "port 81", "tcp port 80", "udp dst port 5353", "ip6 host 2001:db8::10", "ip src net 203.0.113.0/24"})
	expr = func(depth int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			kind := rapid.IntRange(0, 4).Draw(t, "kind")
			switch {
			case depth == 0 || kind == 0:
				return words.Draw(t, "word")
			case kind == 1:
				return "not " + words.Draw(t, "word")
			case kind == 2:
				return "!(" + expr(depth-1).Draw(t, "in") + ")"
			}
			op := rapid.SampledFrom([]string{" and ", " or ", " && ", " || "}).Draw(t, "op")
			return expr(depth-1).Draw(t, "left") + op + expr(depth-1).Draw(t, "right")
		})
	}
	const runs = 40 // each starts a process
	for i := range runs {
		text := expr(3).Example(i)
		f, err := tap.ParseFilter(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var want []string
		for i, b := range all {
			var p tap.Packet
			p.Decode(b, len(b))
			if f.Match(&p) {
				want = append(want, start.Add(time.Duration(i)*time.Second).Format("05"))
			}
		}
		cmd := exec.Command("tcpdump", "-Z", "root", "-n", "-tt", "-r", file, text)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil && !strings.Contains(stderr.String(), "rejects all packets") {
			t.Fatalf("tcpdump %q: %v\n%s", text, err, stderr.String())
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			seconds, _, _ := strings.Cut(line, ".")
			n, err := time.ParseDuration(seconds + "s")
			if err != nil {
				continue // a line that goes on
			}
			got = append(got, time.Unix(int64(n.Seconds()), 0).Format("05"))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%q: tcpdump takes %v, the filter %v", text, got, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("tcp and (port 80 or !src net 10.0.0.0/8)")
	f.Fuzz(func(t *testing.T, text string) {
		filter, err := tap.ParseFilter(text)
		if err != nil {
			var e *tap.FilterError
			if !errors.As(err, &e) || e.Column < 1 || e.Column > len(text)+1 {
				t.Fatalf("%v", err)
			}
			return
		}
		var p tap.Packet
		filter.Match(&p)
	})
}
