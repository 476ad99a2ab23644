package e2e

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/internal/binding"
)

// bound is a connection as its two ends know it.
type bound struct {
	proto               string
	inside, outside, to netip.AddrPort
	at                  time.Time // a moment at which it was open
}

// key is how the log names it.
func (b bound) key() string {
	return fmt.Sprintf("%s %s %s %s", b.proto, b.inside, b.outside, b.to)
}

// talkers opens n connections of each network and family, some at a time, and has each answered.
func (s *site) talkers(t *testing.T, n int) (out []bound, end func()) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var conns []net.Conn
	room := make(chan struct{}, 50)
	for _, network := range []string{"tcp", "udp"} {
		for _, f := range families {
			to := s.far(f, 0)
			for i := range n {
				room <- struct{}{}
				wg.Go(func() {
					defer func() { <-room }()
					ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
					defer cancel()
					client := s.Backends[i%len(s.Backends)]
					c, err := client.Dial(ctx, network, netip.AddrPortFrom(addrOf(client, f), 0).String(), to.String())
					if err != nil {
						t.Error(err)
						return
					}
					a, err := question(t, c, patience/3)
					for try := 1; err != nil && try < 3; try++ { // a datagram may be lost
						a, err = question(t, c, patience/3)
					}
					mu.Lock()
					defer mu.Unlock()
					conns = append(conns, c)
					if err != nil {
						t.Error(err)
						return
					}
					out = append(out, bound{network, netip.MustParseAddrPort(c.LocalAddr().String()), a.seen, to, time.Now()})
				})
			}
		}
	}
	wg.Wait()
	return out, func() {
		for _, c := range conns {
			c.Close()
		}
		s.forget() // and so conntrack does not wait
	}
}

// logged returns the lines about connections with that event, by their keys.
func logged(t *testing.T, event string, files ...string) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, l := range readLines(t, files...) {
		if l.Event == event {
			out[strings.Join([]string{l.Proto, l.Inside, l.Outside, l.To}, " ")]++
		}
	}
	return out
}

func readLines(t *testing.T, files ...string) []binding.Line {
	t.Helper()
	var out []binding.Line
	for _, f := range files {
		b, err := os.ReadFile(f)
		check(t, err)
		for text := range strings.Lines(string(b)) {
			l, err := binding.ParseLine([]byte(text))
			if err != nil {
				t.Fatalf("%s: %q", err, text)
			}
			out = append(out, l)
		}
	}
	return out
}

// awaitThat waits for a condition.
func awaitThat(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// all reports whether each connection has one line. There may be others: what is still on its
// way when conntrack is emptied is to it a connection.
func all(lines map[string]int, of []bound) bool {
	for _, b := range of {
		if lines[b.key()] != 1 {
			return false
		}
	}
	return true
}

// who asks the log.
func (s *site) who(t *testing.T, outside string, at time.Time) (told binding.Told, code int) {
	t.Helper()
	r := s.weir("egress", "who", outside, "--at", at.UTC().Format(time.RFC3339Nano), "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &told); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	return told, r.code
}

// TestBindings opens 1,000 connections through a pool, TCP and UDP, IPv4 and IPv6: the log has
// 1,000 beginnings and ends, which are what the sockets had, and says who it was. The file is
// rotated and compressed meanwhile, and weir killed and started again.
func TestBindings(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 4)
	s.serveFar()
	path := filepath.Join(s.dir, "log.d", "bindings.jsonl")
	s.write(fmt.Sprintf("bindings: {to: %q}\n", path) + pools(outPool(", log: true")))
	s.start()
	awaitThat(t, "that weir watches", func() bool { _, err := os.Stat(path); return err == nil && len(readLines(t, path)) > 0 })
	first, endFirst := s.talkers(t, 250)
	if len(first) != 1000 {
		t.Fatalf("%d connections", len(first))
	}
	awaitThat(t, "1,000 beginnings", func() bool { return len(logged(t, binding.Start, path)) >= 1000 })
	starts := logged(t, binding.Start, path)
	for _, b := range first {
		if starts[b.key()] != 1 {
			t.Errorf("%s has %d beginnings", b.key(), starts[b.key()])
		}
	}
	if len(starts) != 1000 {
		t.Errorf("%d beginnings", len(starts))
	}
	check(t, os.Rename(path, path+".1"))
	awaitThat(t, "that the new file says what is open", func() bool {
		_, err := os.Stat(path)
		return err == nil && len(logged(t, binding.Open, path)) == 1000
	})
	pack(t, path+".1", path+".2.gz")
	endFirst()
	awaitThat(t, "1,000 ends", func() bool { return len(logged(t, binding.End, path)) >= 1000 })
	awaitThat(t, "an end for each", func() bool { return all(logged(t, binding.End, path), first) })
	for _, i := range []int{0, 333, 666, 999} {
		b := first[i]
		told, code := s.who(t, b.outside.String()+"/"+b.proto, b.at)
		if code != 0 || len(told.Answers) != 1 || told.Answers[0].Inside != b.inside.String() || told.Answers[0].End.IsZero() {
			t.Errorf("who had %s: %d, %+v, want %s", b.outside, code, told, b.inside)
		}
	}
	if told, code := s.who(t, first[0].outside.String(), time.Now()); code != 1 || len(told.Answers) != 0 {
		t.Errorf("who has it now: %d, %+v", code, told)
	}
	if out := s.weir("egress", "who", first[0].outside.String(), "--at", "2001-01-01T00:00:00Z"); !strings.Contains(out.stdout, "does not reach back") {
		t.Errorf("long ago: %s%s", out.stdout, out.stderr)
	}

	second, endSecond := s.talkers(t, 10)
	awaitThat(t, "their beginnings", func() bool { return all(logged(t, binding.Start, path), second) })
	check(t, s.run.Signal(syscall.SIGKILL))
	<-s.run.Done()
	endSecond() // nobody hears of it
	third, endThird := s.talkers(t, 5)
	s.start()
	// What was still on its way when conntrack was emptied makes a connection of the same
	// addresses again, which lasts; so not all have an end.
	var ended []bound
	awaitThat(t, "ends of those that ended while no weir ran", func() bool {
		lines := logged(t, binding.End, path)
		ended = slices.DeleteFunc(slices.Clone(second), func(b bound) bool { return lines[b.key()] != 1 })
		return len(ended) >= len(second)*3/4
	})
	for _, l := range readLines(t, path) {
		if l.Event == binding.End && !l.After.IsZero() && (l.Start.IsZero() || l.After.Before(l.Start)) {
			t.Errorf("an end that nobody heard: %s", l.String())
		}
	}
	awaitThat(t, "what is open", func() bool {
		open := logged(t, binding.Open, path)
		for _, b := range third {
			if open[b.key()] == 0 {
				return false
			}
		}
		return true
	})
	if told, _ := s.who(t, ended[0].outside.String()+"/"+ended[0].proto, ended[0].at); len(told.Answers) != 1 || told.Answers[0].Inside != ended[0].inside.String() || told.Answers[0].EndAfter.IsZero() {
		t.Errorf("who had %s: %+v", ended[0].outside, told)
	}
	if told, _ := s.who(t, third[0].outside.String()+"/"+third[0].proto, third[0].at); len(told.Answers) != 1 || !told.Answers[0].Maybe || len(told.Gaps) == 0 {
		t.Errorf("who had %s while no weir ran: %+v", third[0].outside, told)
	}
	endThird()
	s.stop()
	var last binding.Line
	for _, l := range readLines(t, path) {
		last = l
	}
	if last.Event != binding.Stop {
		t.Errorf("the last line is %s", last.String())
	}
}

// pack compresses a file, as logrotate does.
func pack(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	check(t, err)
	f, err := os.Create(to)
	check(t, err)
	z := gzip.NewWriter(f)
	_, err = z.Write(b)
	check(t, err)
	check(t, z.Close())
	check(t, f.Close())
	check(t, os.Remove(from))
}

// TestBindingsOfBlocks: with blocks the log has a line for each client, not for each
// connection, and says who it was all the same.
func TestBindingsOfBlocks(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 4)
	s.serveFar()
	path := filepath.Join(s.dir, "bindings.jsonl")
	s.write(fmt.Sprintf("bindings: {to: %q}\n", path) + pools(fmt.Sprintf("name: out, from: %s, out: eth-out, addresses: %s, block: 512, log: true",
		quoted([]string{"10.1.1.0/29", "2001:db8:1::/125"}), poolRange(1, 2))))
	s.start()
	awaitThat(t, "that weir watches", func() bool { _, err := os.Stat(path); return err == nil && len(readLines(t, path)) > 1 })
	before := time.Now()
	all, end := s.talkers(t, 40)
	defer end()
	lines := func(event string) (n int) {
		for _, l := range readLines(t, path) {
			if l.Event == event {
				n++
			}
		}
		return n
	}
	awaitThat(t, "a line for each client and family", func() bool {
		clients := map[string]bool{}
		for _, l := range readLines(t, path) {
			clients[l.Inside] = clients[l.Inside] || l.Event == binding.Block
		}
		return len(clients) == 8+1 // and lines that name none
	})
	if lines(binding.Start) != 0 || lines(binding.Blocks) == 0 {
		t.Errorf("%d lines on connections, %d on blocks", lines(binding.Start), lines(binding.Blocks))
	}
	for _, i := range []int{0, 50, 100, 159} {
		b := all[i]
		told, code := s.who(t, b.outside.String(), time.Now())
		if code != 0 || len(told.Answers) != 1 || told.Answers[0].Inside != b.inside.Addr().String() || !told.Answers[0].Used {
			t.Errorf("who has %s: %d %+v, want %s", b.outside, code, told, b.inside)
		}
	}
	if told, _ := s.who(t, all[0].outside.String(), before); len(told.Answers) != 1 || told.Answers[0].Used {
		t.Errorf("before: %+v", told)
	}
	if out := s.must("egress", "who", all[0].outside.String(), "--at", "2001-01-01T00:00:00Z"); !strings.Contains(out, "as it is now") {
		t.Errorf("by the configuration: %s", out)
	}
}
