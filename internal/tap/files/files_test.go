package files

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 123456789, time.UTC)

// packet is an IPv4 datagram of n bytes from 203.0.113.9:1 to 198.51.100.10:port.
func packet(n, port int) []byte {
	b := make([]byte, n)
	copy(b, []byte{0x45, 0, byte(n >> 8), byte(n), 0, 1, 0, 0, 64, 17, 0, 0, 203, 0, 113, 9, 198, 51, 100, 10, 0, 1, byte(port >> 8), byte(port),
		byte((n - 20) >> 8), byte(n - 20)})
	return b
}

func open(t *testing.T, o Options) *Writer {
	t.Helper()
	o.Device, o.Snaplen = "eth1", 65535
	w, err := Open(o, start)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *Writer) put(t *testing.T, at time.Duration, n int) {
	t.Helper()
	if err := w.Write(start.Add(at), packet(n, 80), n+100); err != nil {
		t.Fatal(err)
	}
}

// tcpdump reads a file as users do, and returns a line a packet. A file that tcpdump says
// anything against fails the test.
func tcpdump(t *testing.T, file string, args ...string) []string {
	t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("tcpdump is not installed")
		}
		t.Skip("tcpdump is not installed")
	}
	cmd := exec.Command("tcpdump", append([]string{"-Z", "root", "-n", "-tt", "--nano", "-r", file}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || strings.Contains(stderr.String(), "truncated") {
		t.Fatalf("tcpdump: %v\n%s", err, stderr.String())
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestTcpdumpReads has tcpdump read a file while it is written, and when it is closed.
func TestTcpdumpReads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.pcapng")
	w := open(t, Options{Path: file})
	for i := range 3 {
		w.put(t, time.Duration(i)*time.Second, 100+i)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	// More than the buffer takes: what is written by itself ends where a packet ends.
	for i := range 100 {
		w.put(t, time.Hour+time.Duration(i), 30001)
	}
	if n := len(tcpdump(t, file)); n < 3+30 || n > 103 {
		t.Errorf("while it is written tcpdump reads %d packets", n)
	}
	w.Lost(7)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lines := tcpdump(t, file)
	want := fmt.Sprintf("%d.123456789 IP 203.0.113.9.1 > 198.51.100.10.80: UDP, length 72", start.Unix())
	if len(lines) != 103 || lines[0] != want {
		t.Errorf("tcpdump reads %d packets, the first\n%s\nwant\n%s", len(lines), lines[0], want)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if n, p := w.Written(); n != 1 || p != 103 || w.Name() != file {
		t.Errorf("%d files, %d packets, %s", n, p, w.Name())
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for range 103 {
		if _, ci, err := r.ReadPacketData(); err != nil || ci.Length != ci.CaptureLength+100 {
			t.Fatalf("%+v, %v", ci, err)
		}
	}
	if _, _, err := r.ReadPacketData(); err == nil {
		t.Error("more packets than were written")
	}
	if i, err := r.Interface(0); err != nil || i.Name != "eth1" || i.SnapLength != 65535 || i.Statistics.PacketsDropped != 7 || i.Statistics.PacketsReceived != 110 {
		t.Errorf("%+v, %v", i, err)
	}
}

// TestRotate writes into a directory with files of others, and keeps three.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	others := []string{"weir-tap-eth1-20200101T000000.000Z.pcapng.gz", "weir-tap-eth10-20200101T000000.000Z.pcapng", "notes"}
	for _, n := range append(others, "weir-tap-eth1-20200101T000000.000Z.pcapng") { // the last one is of an earlier run
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("notes", filepath.Join(dir, "weir-tap-eth1-20190101T000000.000Z.pcapng")); err != nil {
		t.Fatal(err)
	}
	w := open(t, Options{Path: dir, RotateSize: 10_000, Keep: 3})
	for i := range 100 {
		w.put(t, time.Duration(i)*100*time.Microsecond, 1000)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := names(t, dir)
	if len(got) != 3+len(others)+1 {
		t.Errorf("there are %q", got)
	}
	for _, n := range append(others, "weir-tap-eth1-20190101T000000.000Z.pcapng") {
		if _, err := os.Lstat(filepath.Join(dir, n)); err != nil {
			t.Error(err)
		}
	}
	sum := 0
	for _, n := range got {
		if !strings.HasPrefix(n, "weir-tap-eth1-2026") {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, n))
		if err != nil || info.Size() > 10_200 || info.Size() < 1000 {
			t.Errorf("%s: %d bytes, %v", n, info.Size(), err)
		}
		sum += len(tcpdump(t, filepath.Join(dir, n)))
	}
	if files, _ := w.Written(); files != 12 || sum != 9+9+1 {
		t.Errorf("%d files; in the last three %d packets", files, sum)
	}
}

func TestRotateByTime(t *testing.T) {
	dir := t.TempDir()
	w := open(t, Options{Path: filepath.Join(dir, "web.pcap"), RotateEvery: time.Minute})
	for i := range 10 {
		w.put(t, time.Duration(i)*20*time.Second, 100)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"web-20261122T120000.123Z.pcap", "web-20261122T120100.123Z.pcap", "web-20261122T120200.123Z.pcap", "web-20261122T120300.123Z.pcap"}
	if got := names(t, dir); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("there are %q", got)
	}
}

// TestNobodyElses refuses to write to what is there, also through a symbolic link.
func TestNobodyElses(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	link, dangling := filepath.Join(dir, "link"), filepath.Join(dir, "dangling")
	for from, to := range map[string]string{link: victim, dangling: filepath.Join(dir, "new")} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{victim, link, dangling, filepath.Join(dir, "none") + "/", filepath.Join(dir, "none", "x")} {
		if w, err := Open(Options{Path: path, Device: "eth1"}, start); err == nil {
			w.Close()
			t.Errorf("%s was written to", path)
		}
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
		t.Errorf("the victim has %q, %v", b, err)
	}
	if got := names(t, dir); len(got) != 3 {
		t.Errorf("there are %q", got)
	}
}
