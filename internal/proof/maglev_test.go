package proof

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/internal/conntrack"
	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
)

const (
	// tuples is the number of client ports in each family whose flows are followed, from
	// firstTuple on; ports that the kernel chooses lie above ephemeral.
	tuples, firstTuple, ephemeral = 1000, 10000, 40000
	// mostMoved is the part of other backends' flows that may move when one of ten comes
	// or goes. TestMaglevPaper has what tables of that kind do on average.
	mostMoved = 0.06
)

// TestMaglevMoves takes a backend out and puts it back, by an operator's word and by the
// file, and opens the same thousand connections of each family before and after: every one
// must get the backend that internal/flow says, few may change theirs but those of the
// backend that left, and none that is open may break.
func TestMaglevMoves(tt *testing.T) {
	const backends, leaves = 10, 3
	t := newTownOf(tt, backends)
	client := t.Clients[0]
	for _, c := range t.Clients {
		check(tt, c.Sysctl("net.ipv4.ip_local_port_range", fmt.Sprintf("%d 65535", ephemeral)))
	}
	config := func(without int) *model.Config {
		weights := make([]int, backends)
		for i := range weights {
			weights[i] = 1
		}
		if without >= 0 {
			weights[without] = -1
		}
		return newConfig(t.service(model.Maglev, weights))
	}
	t.write(config(-1))
	t.start()
	open := must(lab.StartLoad(tt.Context(), lab.LoadSpec{Host: t.Clients[1], Network: "tcp",
		Targets: []string{vip4 + ":80", "[" + vip6 + "]:80"}, NoShort: true, Long: 200, LongEvery: 100 * time.Millisecond}))(tt)

	full, less := members(t.Backends, -1), members(t.Backends, leaves)
	out := members(t.Backends, -1)
	for _, list := range out {
		list[leaves].Weight = 0
	}
	before := t.followed(client)
	t.agrees("at first", client, before, full)
	for _, step := range []struct {
		name string
		do   func()
		then map[model.Family][]flow.Member
	}{
		{"disabled", func() { t.disable(leaves) }, out},
		{"enabled", func() { t.enable(leaves) }, full},
		{"removed from the file", func() { t.write(config(leaves)); t.reload() }, less},
		{"added to the file", func() { t.write(config(-1)); t.reload() }, full},
	} {
		step.do()
		after := t.followed(client)
		t.agrees(step.name, client, after, step.then)
		others, moved := 0, 0
		for src, id := range before {
			if id == t.Backends[leaves].Name || after[src] == t.Backends[leaves].Name {
				continue
			}
			others++
			if after[src] != id {
				moved++
			}
		}
		share := float64(moved) / float64(others)
		tt.Logf("%s: %d of %d flows of other backends moved, %.2f %%", step.name, moved, others, 100*share)
		if share > mostMoved {
			tt.Errorf("%s: %.1f %% of other backends' flows moved", step.name, 100*share)
		}
		before = after
	}
	res := open.Stop()
	tt.Logf("%s", res)
	if res.Long.Opened != 200 || res.Long.Broken+res.Long.Failed > 0 || len(res.Errors) > 0 {
		tt.Errorf("connections that were open: %s", res)
	}
}

// members are what a Maglev table is made of; those of backend without are left out.
func members(backends []*lab.Host, without int) map[model.Family][]flow.Member {
	out := map[model.Family][]flow.Member{}
	for i, b := range backends {
		if i == without {
			continue
		}
		for _, a := range []netip.Addr{b.V4, b.V6} {
			f := model.FamilyOf(a)
			out[f] = append(out[f], flow.Member{ID: netip.AddrPortFrom(a, backendPort).String(), Weight: 1})
		}
	}
	return out
}

// followed opens the connections that are followed, each from its own port and anew for
// everybody, and returns who answered.
func (t *town) followed(client *lab.Host) map[netip.AddrPort]string {
	t.tb.Helper()
	t.forget()
	got := map[netip.AddrPort]string{}
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < 2*tuples; i = next.Add(1) - 1 {
				from, to := client.V4, vip4+":80"
				if i%2 == 1 {
					from, to = client.V6, "["+vip6+"]:80"
				}
				src := netip.AddrPortFrom(from, firstTuple+uint16(i/2))
				id, err := askOnce(t, client, src, to)
				if err != nil {
					t.tb.Errorf("%s: %v", src, err)
					return
				}
				mu.Lock()
				got[src] = id
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return got
}

// askOnce asks on one connection and leaves nothing of it, so that its port is free.
func askOnce(t *town, client *lab.Host, src netip.AddrPort, to string) (string, error) {
	c, err := client.Dial(t.tb.Context(), "tcp", src.String(), to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?\n")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	id, _, _ := strings.Cut(line, " ")
	return id, err
}

// forget deletes what the gateway remembers of the connections that are followed.
func (t *town) forget() {
	t.tb.Helper()
	check(t.tb, t.Gateway.Do(func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		var flows []conntrack.Flow
		err = c.Dump(t.tb.Context(), conntrack.Filter{}, func(f conntrack.Flow) bool {
			if p := f.Orig.Src.Port(); p >= firstTuple && p < firstTuple+tuples {
				flows = append(flows, f)
			}
			return true
		})
		for _, f := range flows {
			if _, e := c.Delete(t.tb.Context(), f); e != nil {
				return e
			}
		}
		return err
	}))
}

// agrees holds who answered against what the tables of these members say.
func (t *town) agrees(when string, client *lab.Host, got map[netip.AddrPort]string, list map[model.Family][]flow.Member) {
	t.tb.Helper()
	if len(got) != 2*tuples {
		t.tb.Fatalf("%s: %d of %d flows were answered", when, len(got), 2*tuples)
	}
	names := map[string]string{}
	for i, b := range t.Backends {
		for _, id := range t.ids(i) {
			names[id] = b.Name
		}
	}
	tables := map[model.Family][]int32{}
	for f, m := range list {
		tables[f] = flow.Maglev(m, flow.TableSize(len(m)))
	}
	wrong := 0
	for src, id := range got {
		f := model.FamilyOf(src.Addr())
		var buf [flow.KeySize]byte
		slot := flow.Choose(flow.KeySourcePort(&buf, src.Addr(), src.Port()), model.DefaultHashSeed, uint32(len(tables[f])), 0)
		if want := names[list[f][tables[f][slot]].ID]; want != id {
			wrong++
		}
	}
	if wrong > 0 {
		t.tb.Errorf("%s: %d of %d flows got another backend than internal/flow says", when, wrong, len(got))
	}
}

// TestMaglevPaper computes how many slots of backends that stay change hands when others
// leave, as section 5.3 of the Maglev paper does (figure 12), for the paper's setting of
// 1,000 backends and 65,537 slots, and for weir's own sizes. More slots for each backend
// are less disruption.
func TestMaglevPaper(tt *testing.T) {
	moved := func(n, m, gone int) float64 {
		list := make([]flow.Member, n)
		for i := range list {
			list[i] = flow.Member{ID: fmt.Sprintf("10.%d.%d.1:80", i/250, i%250), Weight: 1}
		}
		before := flow.Maglev(list, m)
		for i := range gone {
			list[i*n/gone].Weight = 0
		}
		stay, changed := 0, 0
		for slot, owner := range flow.Maglev(list, m) {
			if list[before[slot]].Weight > 0 {
				stay++
				if owner != before[slot] {
					changed++
				}
			}
		}
		return float64(changed) / float64(stay)
	}
	for _, c := range []struct {
		n, m, gone int
		most       float64
	}{
		{1000, 65537, 1, 0.05}, {1000, 65537, 10, 0.10}, {1000, 655373, 1, 0.05},
		{10, flow.TableSize(10), 1, mostMoved}, {100, flow.TableSize(100), 1, 0.05}, {1000, flow.TableSize(1000), 1, 0.05},
	} {
		share := moved(c.n, c.m, c.gone)
		tt.Logf("%d backends, %d slots, %d gone: %.2f %% of the others' slots change", c.n, c.m, c.gone, 100*share)
		if share > c.most {
			tt.Errorf("%d backends, %d slots, %d gone: %.1f %%, at most %.1f %% expected", c.n, c.m, c.gone, 100*share, 100*c.most)
		}
	}
}
