package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// The rates in these tests bring one token in three minutes or so: what passes is the burst
// and nothing else.

// ownService returns a service of the box itself, which holds the address.
func ownService(name, listen string, options ...string) string {
	text := fmt.Sprintf("  - name: %s\n    listen: %s\n    forward: local\n    assign: %s\n", name, listen, lab.OutsideDev)
	for _, o := range options {
		text += "    " + o + "\n"
	}
	return text
}

// shoot sends n datagrams, each from a port of its own.
func (s *site) shoot(t *testing.T, client *lab.Host, to netip.AddrPort, n int) {
	t.Helper()
	for range n {
		from := netip.AddrPortFrom(addrOf(client, model.FamilyOf(to.Addr())), s.port())
		check(t, client.SendIP(lab.UDPPacket(from, to, []byte("?\n"))))
	}
}

// over returns what the limits of a service refused, in packets.
func (s *site) over(name string) (n uint64) {
	s.t.Helper()
	for _, l := range s.status(name).Limits {
		n += l.Over.Packets
	}
	return n
}

func (s *site) offenders(name string) []engine.Offender {
	s.t.Helper()
	var list api.Offenders
	s.mustJSON(&list, "offenders", name)
	return list.Offenders
}

// passes runs fn, which sends n packets that all reach a limit of the service, and holds
// that want of them get to the servers and the others are counted.
func (s *site) passes(t *testing.T, name string, servers []*lab.Server, n, want int, fn func()) {
	t.Helper()
	got := func() (n int) {
		for _, srv := range servers {
			n += int(srv.Requests())
		}
		return n
	}
	before, overBefore := got(), s.over(name)
	fn()
	await(t, fmt.Sprintf("%d packets arrive or are refused", n), func() bool {
		return got()-before+int(s.over(name)-overBefore) >= n
	})
	if passed, over := got()-before, int(s.over(name)-overBefore); passed != want || over != n-want {
		t.Errorf("of %d, %d pass and %d are refused, want %d and %d", n, passed, over, want, n-want)
	}
}

// victim is a service that a limit is put on, for datagrams and for connections.
type victim struct {
	name    string
	n       int // its vip
	servers []*lab.Server
}

func (x victim) at(f model.Family) netip.AddrPort { return netip.AddrPortFrom(vip(f, x.n), 7) }

// limited applies a service of each kind with that limit: translated, and of the box itself
// with and without conntrack.
func (s *site) limited(limit string, kinds ...string) []victim {
	s.t.Helper()
	var text []string
	var out []victim
	for i, kind := range kinds {
		listen := listenOn(i+1, "7/udp", "7/tcp")
		switch kind {
		case "nat":
			text = append(text, service(kind, listen, backendList(on("", s.Backends...)...), "limit: "+limit))
		case "local":
			text = append(text, ownService(kind, listen, "limit: "+limit))
		default:
			text = append(text, ownService(kind, listen, "track: none", "limit: "+limit))
		}
		out = append(out, victim{name: kind, n: i + 1})
	}
	s.apply(services(text...))
	for i := range out {
		x := &out[i]
		if x.name == "nat" {
			x.servers = append(s.serve("udp", s.Backends, 7), s.serve("tcp", s.Backends, 7)...)
			continue
		}
		for _, start := range []string{"udp", "tcp"} {
			srv, err := starters[start](s.Gateway, x.name, x.at(4).String(), x.at(6).String())
			check(s.t, err)
			x.servers = append(x.servers, srv)
		}
	}
	return out
}

// TestLimitNewConnections: one source gets its burst and no more, another is not hurt, and
// the one that was over the limit is named.
func TestLimitNewConnections(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 1)
	for _, x := range s.limited(`{new_connections: 20/hour, per: "source/128"}`, "nat", "local") {
		t.Run(x.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f model.Family) {
				bad, good := s.Clients[0], s.Clients[1]
				s.passes(t, x.name, x.servers, 50, 20, func() { s.shoot(t, bad, x.at(f), 50) })
				s.passes(t, x.name, x.servers, 20, 20, func() { s.shoot(t, good, x.at(f), 20) })
				var named []engine.Offender
				for _, o := range s.offenders(x.name) {
					if strings.HasPrefix(o.Source, addrOf(bad, f).String()) {
						named = append(named, o)
					} else if !strings.HasPrefix(o.Source, addrOf(bad, 4).String()) { // of the run before
						t.Errorf("%+v was never over the limit", o)
					}
				}
				if len(named) != 1 || named[0].Over.Packets != 30 || named[0].Service != x.name ||
					named[0].Limit != "new_connections 20/hour burst 20 per source/128" {
					t.Fatalf("offenders: %+v", named)
				}
				if ago := time.Since(named[0].LastSeen); ago < -time.Second || ago > time.Minute {
					t.Errorf("last seen %s ago", ago)
				}
				if left := time.Until(named[0].Expires); left < 9*time.Minute || left > 10*time.Minute+time.Second {
					t.Errorf("forgotten in %s", left)
				}
			})
		})
	}
}

// TestLimitPackets: the packets of one flow are counted, before conntrack.
func TestLimitPackets(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 1)
	for _, x := range s.limited(`{packets: 20/hour, per: "source/128"}`, "nat", "local", "untracked") {
		t.Run(x.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f model.Family) {
				for i, c := range s.Clients {
					n, want := 50, 20
					if i == 1 {
						n = 20
					}
					from := netip.AddrPortFrom(addrOf(c, f), s.port())
					s.passes(t, x.name, x.servers, n, want, func() {
						for range n {
							check(t, c.SendIP(lab.UDPPacket(from, x.at(f), []byte("?\n"))))
						}
					})
				}
			})
		})
	}
}

// TestLimitShared: who shares a bucket. Both clients are in one /24 and one /64.
func TestLimitShared(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 1)
	x := s.limited(`[{new_connections: 20/hour, per: source/24}, {new_connections: 1000/hour, burst: 55, per: service}]`, "nat")[0]
	s.passes(t, x.name, x.servers, 30, 20, func() {
		s.shoot(t, s.Clients[0], x.at(4), 15)
		s.shoot(t, s.Clients[1], x.at(4), 15)
	})
	s.passes(t, x.name, x.servers, 30, 20, func() {
		s.shoot(t, s.Clients[0], x.at(6), 15)
		s.shoot(t, s.Clients[1], x.at(6), 15)
	})
	want := map[string]uint64{"203.0.113.0/24": 10, "2001:db8:c::/64": 10}
	for _, o := range s.offenders(x.name) {
		if want[o.Source] != o.Over.Packets {
			t.Errorf("%+v; want %v", o, want)
		}
		delete(want, o.Source)
	}
	if len(want) > 0 {
		t.Errorf("not named: %v", want)
	}
	if limits := s.status(x.name).Limits; limits[0].Over.Packets != 20 || limits[1].Over.Packets != 0 {
		t.Errorf("%+v", limits)
	}
	// What the first limit refuses takes nothing from the second: 15 are left for all.
	s.write(services(service("nat", listenOn(1, "7/udp", "7/tcp"), backendList(on("", s.Backends...)...),
		`limit: [{new_connections: 1000/hour, burst: 55, per: service}]`)))
	s.must("apply")
	s.passes(t, x.name, x.servers, 30, 15, func() {
		s.shoot(t, s.Clients[0], x.at(4), 10)
		s.shoot(t, s.Clients[1], x.at(6), 20)
	})
}

// TestLimitReject: connections over the limit are refused at once, whoever serves.
func TestLimitReject(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	for _, x := range s.limited(`{new_connections: 5/hour, action: reject}`, "nat", "local", "untracked") {
		t.Run(x.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f model.Family) {
				before := s.over(x.name)
				var ok, refused int
				for range 12 {
					switch _, err := try(t, s.Clients[0], "tcp", s.port(), x.at(f)); {
					case err == nil:
						ok++
					case errors.Is(err, syscall.ECONNREFUSED):
						refused++
					default:
						t.Fatal(err)
					}
				}
				if over := s.over(x.name) - before; ok != 5 || refused != 7 || over != 7 {
					t.Errorf("%d connected, %d refused, %d counted; want 5, 7, 7", ok, refused, over)
				}
			})
		})
	}
}

// TestLimitRefills: after the burst, the rate.
func TestLimitRefills(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	x := s.limited(`{new_connections: 40/second, burst: 20}`, "nat")[0]
	udp := x.servers[0]
	start := time.Now()
	sent := 0
	for time.Since(start) < 2*time.Second {
		s.shoot(t, s.Clients[0], x.at(4), 1)
		sent++
		time.Sleep(time.Millisecond)
	}
	took := time.Since(start).Seconds()
	await(t, "all arrive or are refused", func() bool { return int(udp.Requests()+s.over(x.name)) >= sent })
	got, most, least := float64(udp.Requests()), 20+40*took+1, 20+40*took/3
	if got > most || got < min(least, float64(sent)) {
		t.Errorf("%.0f of %d passed in %.1f s, want %.0f to %.0f", got, sent, took, least, most)
	}
}

// TestLimitSurvivesReload: buckets and offenders stay where a limit stays, and begin anew
// where it changes.
func TestLimitSurvivesReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	config := func(rate int, more ...string) string {
		return services(append(more, service("nat", listenOn(1, "7/udp"), backendList(on("", s.Backends...)...),
			fmt.Sprintf("limit: {new_connections: %d/hour}", rate)))...)
	}
	s.write(config(20))
	s.start()
	x := victim{name: "nat", n: 1, servers: s.serve("udp", s.Backends, 7)}
	shoot := func(f model.Family, n, want int) {
		s.passes(t, x.name, x.servers, n, want, func() { s.shoot(t, s.Clients[0], x.at(f), n) })
	}
	for _, f := range families {
		shoot(f, 30, 20)
	}
	s.write(config(20, service("another", listenOn(2, "80/tcp"), "[]")))
	s.reload()
	for _, f := range families {
		shoot(f, 5, 0)
	}
	for _, o := range s.offenders("nat") {
		if o.Over.Packets != 15 {
			t.Errorf("%+v; want 15 refused", o)
		}
	}
	if n := len(s.offenders("nat")); n != 2 || len(s.offenders("another")) != 0 {
		t.Errorf("%d offenders, want 2", n)
	}
	for _, f := range families {
		var w api.Why
		s.mustJSON(&w, "why", addrOf(s.Clients[0], f).String())
		if len(w.OverLimits) != 1 || w.OverLimits[0].Service != "nat" || w.OverLimits[0].Over.Packets != 15 {
			t.Errorf("weir why of a source over a limit: %+v", w)
		}
		if s.mustJSON(&w, "why", addrOf(s.Backends[0], f).String()); len(w.OverLimits) != 0 {
			t.Errorf("weir why of another: %+v", w)
		}
	}
	s.write(config(21))
	s.reload()
	for _, f := range families {
		shoot(f, 30, 21)
	}
	if text := s.must("offenders", "--top", "1"); !strings.Contains(text, "21/hour") || strings.Count(text, "\n") != 2 {
		t.Errorf("weir offenders --top 1:\n%s", text)
	}
}

// TestLimitFull: a table without room lets new sources pass, and says so; who is in it is
// still held to the limit.
func TestLimitFull(t *testing.T) {
	t.Parallel()
	if lab.InUserNamespace() {
		t.Skip("filling a set with nft takes a larger socket buffer than an ordinary user gets")
	}
	s := newSite(t, 2, 1)
	x := s.limited(`{new_connections: 20/hour, per: source}`, "nat")[0]
	s.passes(t, x.name, x.servers, 30, 20, func() { s.shoot(t, s.Clients[0], x.at(4), 30) })
	var b strings.Builder
	for i := range 1<<18 - 1 {
		if i%4096 == 0 {
			if i > 0 {
				b.WriteString(" }\n")
			}
			b.WriteString("add element inet weir buckets4 { 1 . 1 . ")
		} else {
			b.WriteString(", 1 . 1 . ")
		}
		fmt.Fprintf(&b, "10.%d.%d.%d timeout 1h", i>>16, i>>8&255, i&255)
	}
	b.WriteString(" }\n")
	path := filepath.Join(s.dir, "full.nft")
	check(t, os.WriteFile(path, []byte(b.String()), 0o600))
	s.nft("-f", path)
	s.passes(t, x.name, x.servers, 10, 0, func() { s.shoot(t, s.Clients[0], x.at(4), 10) })
	s.passes(t, x.name, x.servers, 50, 50, func() { s.shoot(t, s.Clients[1], x.at(4), 50) })
	if l := s.status(x.name).Limits[0]; l.Unchecked.Packets != 50 {
		t.Errorf("%+v; want 50 unchecked", l)
	}
	if list := s.offenders(x.name); len(list) != 1 || !slices.ContainsFunc(list, func(o engine.Offender) bool { return o.Over.Packets == 20 }) {
		t.Errorf("offenders: %+v", list)
	}
}
