package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
)

// slotOwner returns whom the Maglev table of a service gives a flow to, by internal/flow alone.
func slotOwner(members []flow.Member, seed uint32, from netip.AddrPort) string {
	table := flow.Maglev(members, flow.TableSize(len(members)))
	var buf [flow.KeySize]byte
	key := flow.KeySourcePort(&buf, from.Addr(), from.Port())
	return members[table[flow.Choose(key, seed, uint32(len(table)), 0)]].ID
}

// TestDirectWeights sends datagrams of many flows: each gets there, at the backend of its slot,
// and the counters tell of each.
func TestDirectWeights(t *testing.T) {
	t.Parallel()
	const flows = 600
	d := newDirectSite(t, 1, 3)
	weights := []int{1, 3, 0}
	var list []backend
	for i, b := range d.Backends {
		list = append(list, backend{b, "", weights[i]})
	}
	d.write(services(direct("web", 2, []string{"7/udp"}, backendList(list...))))
	d.setUp("web", 2)
	d.must("apply")
	for _, f := range families {
		var members []flow.Member
		for i, b := range d.Backends {
			members = append(members, flow.Member{ID: addrOf(b, f).String(), Weight: weights[i]})
		}
		want := map[string]int{}
		before := d.status("web")
		client, target := addrOf(d.Clients[0], f), netip.AddrPortFrom(vip(f, 2), 7)
		for i := range flows {
			from := netip.AddrPortFrom(client, uint16(20000+i))
			want[slotOwner(members, model.DefaultHashSeed, from)]++
			check(t, d.Clients[0].SendIP(lab.UDPPacket(from, target, []byte("x"))))
		}
		await(t, "all are counted", func() bool { return d.status("web").Total.PacketsIn-before.Total.PacketsIn == flows })
		after := d.status("web")
		for _, m := range members {
			a, b := counted(t, after, m.ID), counted(t, before, m.ID)
			length := map[model.Family]uint64{model.IPv4: 29, model.IPv6: 49}[f]
			if n := a.PacketsIn - b.PacketsIn; n != uint64(want[m.ID]) || a.BytesIn-b.BytesIn != n*length {
				t.Errorf("%s (weight %d): %d packets, %d bytes; want %d", m.ID, m.Weight, n, a.BytesIn-b.BytesIn, want[m.ID])
			}
		}
		if want[members[2].ID] != 0 || want[members[1].ID] < 2*want[members[0].ID] {
			t.Errorf("the shares are not those of the weights: %v", want)
		}
	}
}

// openTalk is a connection and who serves it.
type openTalk struct {
	*talk
	from netip.AddrPort
	id   string
}

// openMany opens connections, one after the other.
func (s *site) openMany(t *testing.T, target netip.AddrPort, n int) []openTalk {
	t.Helper()
	out := make([]openTalk, n)
	for i := range out {
		k := s.talk(t, s.Clients[0], target)
		from := netip.MustParseAddrPort(k.LocalAddr().String())
		out[i] = openTalk{k, from, k.ask(t)}
	}
	return out
}

// alive asks once more, within a short time: a connection whose packets go elsewhere gets a
// reset.
func (o openTalk) alive() (string, error) {
	if err := o.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := o.Write([]byte("?\n")); err != nil {
		return "", err
	}
	line, err := o.r.ReadString('\n')
	id, _, _ := strings.Cut(line, " ")
	return id, err
}

// TestDirectDeath lets a backend die: its flows go to others, and of the others' only those
// break whose slot is another one in the table without it.
func TestDirectDeath(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 4)
	d.write(services(direct("web", 2, []string{"7/tcp"}, backendList(on("", d.Backends...)...),
		"check: {tcp: true, port: 9, every: 200ms, timeout: 200ms, fall: 2, rise: 1}")))
	servers := d.setUp("web", 2, "tcp")
	asked := map[*lab.Host]*lab.Server{} // who answers the checks
	for _, h := range d.Backends {
		srv, err := lab.EchoTCP(h, h.Name, join(h.V4, 9), join(h.V6, 9))
		check(t, err)
		asked[h] = srv
	}
	d.start()
	dead := d.Backends[1]
	open := map[model.Family][]openTalk{}
	for _, f := range families {
		open[f] = d.openMany(t, netip.AddrPortFrom(vip(f, 2), 7), 120)
	}
	check(t, asked[dead].Close())
	check(t, servers[dead][0].Close())
	await(t, "the dead one gets nothing", func() bool {
		st := d.status("web")
		n := 0
		for _, b := range st.Backends {
			if b.State == "down" {
				n++
			}
		}
		return n == 2
	})
	for _, f := range families {
		var all, left []flow.Member
		for _, b := range d.Backends {
			m := flow.Member{ID: addrOf(b, f).String(), Weight: 1}
			all = append(all, m)
			if b == dead {
				m.Weight = 0
			}
			left = append(left, m)
		}
		broken, moved := 0, 0
		for _, o := range open[f] {
			was, is := d.nameOf(slotOwner(all, model.DefaultHashSeed, o.from)), d.nameOf(slotOwner(left, model.DefaultHashSeed, o.from))
			if was != o.id {
				t.Fatalf("%s is served by %s; its slot is that of %s", o.from, o.id, was)
			}
			id, err := o.alive()
			switch {
			case was == dead.Name:
				if err == nil {
					t.Errorf("a connection with the dead backend is answered by %s", id)
				}
				broken++
			case was != is:
				if err == nil {
					t.Errorf("%s: its slot moved from %s to %s, and %s answers", o.from, was, is, id)
				}
				moved++
			case err != nil || id != o.id:
				t.Errorf("%s of %s broke though its slot is as before: %q, %v", o.from, o.id, id, err)
			}
		}
		t.Logf("%s: of 120 connections %d were the dead one's, and %d of others moved", f, broken, moved)
		for range 20 { // new ones
			if a := d.ask(t, d.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 2), 7)); a.id == dead.Name {
				t.Errorf("a new connection got the dead backend")
			}
		}
	}
}

// TestDirectManyBalancers has a router share connections among three balancers with the same
// file. One goes: whoever gets its packets then sends them to the same backends.
func TestDirectManyBalancers(t *testing.T) {
	t.Parallel()
	const conns = 500 // in each family
	d := newDirectSite(t, 3, 3)
	text := "hash_seed: 0x5eed1234\n" + services(direct("web", 2, []string{"7/tcp"}, backendList(on("", d.Backends...)...)))
	for _, s := range d.nodes {
		s.write(text)
	}
	d.setUp("web", 2, "tcp")
	for _, s := range d.nodes {
		s.must("apply")
	}
	var open []openTalk
	for _, f := range families {
		open = append(open, d.openMany(t, netip.AddrPortFrom(vip(f, 2), 7), conns)...)
	}
	for _, s := range d.nodes {
		if n := s.status("web").Total.PacketsIn; n < conns/2 {
			t.Errorf("%s got %d packets: the router does not share", s.Gateway.Name, n)
		}
	}
	d.spread(d.nodes[:2]...)
	check(t, d.nodes[2].Gateway.SetLink(segmentDev, false))
	broken := 0
	for _, o := range open {
		if id, err := o.alive(); err != nil || id != o.id {
			broken++
		}
	}
	t.Logf("%d of %d connections broken after one of three balancers went", broken, len(open))
	if broken != 0 {
		t.Fail()
	}
}

// TestDirectLife asks all the time, while weir is killed, starts again, takes other files, and
// others flush its rules: nothing is lost but while there are no rules.
func TestDirectLife(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	web := direct("web", 2, []string{"7/udp"}, backendList(on("", d.Backends...)...))
	d.write(services(web))
	d.setUp("web", 2, "udp")
	d.start()
	load, err := lab.StartLoad(t.Context(), lab.LoadSpec{Host: d.Clients[0], Network: "udp", Rate: 300,
		Targets: []string{join(vip(4, 2), 7), join(vip(6, 2), 7)}})
	check(t, err)
	for i := range 4 {
		other := direct(fmt.Sprintf("other%d", i), 3+i, []string{"9/tcp"}, backendList(on("", d.Backends...)...))
		d.write(services(other, web))
		d.reload()
	}
	// More backends, of which none is chosen: the table is a larger one, and all rules are loaded
	// again.
	more := "[" + strings.Trim(backendList(on("", d.Backends...)...), "[]")
	for i := range 9 {
		more += fmt.Sprintf(", {address: %q, weight: 0}, {address: %q, weight: 0}", number(lab.BackendNet4, 100+i), number(lab.BackendNet6, 100+i))
	}
	await(t, "some questions are answered", func() bool { return load.Snapshot().Opened > 200 })
	soFar := d.status("web").Total.PacketsIn
	d.write(services(direct("web", 2, []string{"7/udp"}, more+"]")))
	d.reload()
	if n := d.status("web").Total.PacketsIn; n < soFar {
		t.Errorf("%d packets were counted, and %d after rules were loaded again", soFar, n)
	}
	d.write(services(web))
	d.reload()
	check(t, d.run.Signal(syscall.SIGKILL))
	<-d.run.Done()
	time.Sleep(silence) // the rules work without it
	before := d.generation()
	d.start()
	if gen := d.generation(); gen != before {
		t.Errorf("a weir that starts again commits: generation %d became %d", before, gen)
	}
	d.write(services(web))
	d.reload()
	res := load.Stop()
	if res.Failed != 0 || res.Opened < 100 {
		t.Errorf("questions were lost: %s", res)
	}
	// A packet between the reading of the counters and the commit is not counted.
	if n := d.status("web").Total.PacketsIn; n > uint64(res.Opened) || n < soFar {
		t.Errorf("%d packets were counted, of %d questions, and %d long before", n, res.Opened, soFar)
	}
	d.nft("flush", "table", "netdev", "weir")
	await(t, "the rules are back", func() bool {
		_, err := try(t, d.Clients[0], "udp", d.port(), netip.AddrPortFrom(vip(4, 2), 7))
		return err == nil
	})
}

// TestDirectDevices takes the device by which clients come in away, and gives it back: it is
// another one then, by its index.
func TestDirectDevices(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 2)
	d.write(services(direct("web", 2, []string{"7/udp"}, backendList(on("", d.Backends...)...))))
	d.setUp("web", 2, "udp")
	d.start()
	d.ask(t, d.Clients[0], "udp", netip.AddrPortFrom(vip(4, 2), 7))
	_, err := d.Gateway.Run("ip", "link", "del", segmentDev)
	check(t, err)
	await(t, "the chain of the device is gone", func() bool { return !strings.Contains(d.nft("list", "ruleset"), "ingress/") })
	await(t, "it is told", func() bool { return strings.Contains(d.log.String(), "device-missing") })
	check(t, d.segment.Attach(d.Gateway, segmentDev, inBoth(lab.BackendNet4, lab.BackendNet6, balancerNumber)...))
	for _, p := range []netip.Prefix{lab.BackendNet4, lab.BackendNet6} {
		check(t, d.Gateway.Route(netip.PrefixFrom(p.Addr(), 0).Masked(), number(p, routerNumber), segmentDev))
	}
	for _, f := range families {
		await(t, "questions are answered again", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := d.Clients[0].AskFrom(ctx, "udp", join(addrOf(d.Clients[0], f), d.port()), join(vip(f, 2), 7))
			return err == nil
		})
	}
}

// announcer returns who says in a packet that came in that it has the address: an answer of
// ARP (RFC 826), or a neighbour advertisement with a link-layer address (RFC 4861 section 4.4).
func announcer(p lab.Packet, a netip.Addr) string {
	d := p.Data
	switch {
	case p.Out:
	case p.EtherType == 0x0806 && len(d) >= 28 && d[7] == 2 && bytes.Equal(d[14:18], a.AsSlice()):
		return net.HardwareAddr(d[8:14]).String()
	case p.EtherType == 0x86dd && len(d) >= 72 && d[6] == 58 && d[40] == 136 && bytes.Equal(d[48:64], a.AsSlice()):
		return net.HardwareAddr(d[66:72]).String()
	}
	return ""
}

// TestDirectNeighbours sees that weir has the kernel find backends before packets do, and
// that nobody but the box that holds the address answers for it.
func TestDirectNeighbours(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 2)
	d.write(services(direct("web", 2, []string{"7/udp"}, backendList(on("", d.Backends...)...), "assign: "+segmentDev)))
	d.setUp("web", 2, "udp")
	d.start()
	for _, b := range d.Backends {
		for _, f := range families {
			await(t, "the neighbour is known", func() bool {
				out, err := d.Gateway.Run("ip", "neigh", "show", "to", addrOf(b, f).String(), "dev", segmentDev)
				return err == nil && strings.Contains(out, "lladdr")
			})
		}
	}
	// The router asks the segment for the VIP itself.
	mac, err := d.Gateway.MAC(segmentDev)
	check(t, err)
	for _, f := range families {
		_, err := d.router.Run("ip", "route", "replace", vip(f, 2).String(), "dev", segmentDev)
		check(t, err)
		seen, err := d.router.Capture(segmentDev)
		check(t, err)
		d.ask(t, d.Clients[0], "udp", netip.AddrPortFrom(vip(f, 2), 7))
		out, err := d.router.Run("ip", "neigh", "show", "to", vip(f, 2).String())
		check(t, err)
		if !strings.Contains(out, mac.String()) {
			t.Errorf("%s is %q to the router; want %s", vip(f, 2), out, mac)
		}
		answers := 0 // gratuitous ones too, by which weir announces the address
		for {
			p, err := seen.Next(within(t, silence))
			if err != nil {
				break
			}
			if from := announcer(p, vip(f, 2)); from != "" {
				answers++
				if from != mac.String() {
					t.Errorf("%s says that it has %s", from, vip(f, 2))
				}
			}
		}
		if answers == 0 {
			t.Errorf("nobody answers for %s", vip(f, 2))
		}
		seen.Close()
	}
	// And back: a backend that is one no more holds nothing.
	b := d.Backends[0]
	_, err = b.Run("sh", "-c", d.must("backend-setup", "web", b.V4.String(), "--undo")+d.must("backend-setup", "web", b.V6.String(), "--undo"))
	check(t, err)
	out, err := b.Run("ip", "address", "show", "dev", "lo")
	check(t, err)
	for _, f := range families {
		if strings.Contains(out, vip(f, 2).String()) {
			t.Errorf("after the undo lo still has %s:\n%s", vip(f, 2), out)
		}
	}
}

// TestDirectDrain drains a backend: since nobody remembers connections, all of its flows move
// at once, and it is done.
func TestDirectDrain(t *testing.T) {
	t.Parallel()
	d := newDirectSite(t, 1, 3)
	d.write(services(direct("web", 2, []string{"7/udp"}, backendList(on("", d.Backends...)...), "balance: source")))
	d.setUp("web", 2, "udp")
	d.start()
	target := netip.AddrPortFrom(vip(4, 2), 7)
	first := d.ask(t, d.Clients[0], "udp", target).id
	for range 5 {
		if a := d.ask(t, d.Clients[0], "udp", target); a.id != first {
			t.Errorf("balance: source, and %s and %s answer one client", first, a.id)
		}
	}
	address := map[string]string{}
	for _, b := range d.Backends {
		address[b.Name] = b.V4.String()
	}
	d.must("drain", "web", address[first])
	if a := d.ask(t, d.Clients[0], "udp", target); a.id == first {
		t.Errorf("%s is drained, and answers", first)
	}
	await(t, "it is drained", func() bool {
		for _, b := range d.status("web").Backends {
			if b.Address == address[first] {
				return b.State == "drained" && b.Active == nil
			}
		}
		return false
	})
	d.must("enable", "web", address[first])
	await(t, "it is back", func() bool { return d.ask(t, d.Clients[0], "udp", target).id == first })
	// With nobody left, packets end here.
	for _, b := range d.Backends {
		d.must("disable", "web", b.V4.String())
	}
	if a, err := d.Clients[0].AskFrom(within(t, silence), "udp", join(d.Clients[0].V4, d.port()), target.String()); err == nil {
		t.Errorf("all are disabled, and %s answers", a)
	}
}
