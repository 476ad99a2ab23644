package api_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/lists"
	"weir/internal/model"
)

func TestWhySource(t *testing.T) {
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	ssh := []model.Traffic{{Proto: model.TCP, Ports: model.Port(22)}}
	cfg := &model.Config{Edge: &model.Edge{Drop: true, Management: prefixes("192.0.2.0/24", "2001:db8::/64"), Open: []*model.OpenRule{
		{Name: "ssh", Box: true, In: []string{"eth0"}, From: prefixes("10.128.0.0/9", "10.0.0.0/9", "2001:db8:1::/48"), Traffic: ssh},
		{Name: "surf", In: []string{"eth0"}, Out: []string{"eth1"}, Traffic: []model.Traffic{{Proto: model.UDP, Ports: model.PortRange{Lo: 1000, Hi: 2000}}, {Proto: model.UDP}}},
		{Name: "six", To: prefixes("2001:db8:9::/48")},
	}}}
	over := []engine.Offender{{Source: "10.1.0.1", Service: "web", Over: engine.Passed{Packets: 7}}, {Source: "10.1.0.0/24", Service: "dns"},
		{Source: "10.1.0.2", Service: "web"}, {Source: "2001:db8::/64", Service: "web"}, {Source: "?", Service: "web"}}
	surf := `{"name":"surf","from":"any","box":false,"in":["eth0"],"out":["eth1"],"to":[],"traffic":["1000-2000/udp","udp"]}`
	six := `{"name":"six","from":"any","box":false,"in":[],"out":[],"to":["2001:db8:9::/48"],"traffic":[]}`
	sshFrom := func(from string) string {
		return `{"name":"ssh","from":"` + from + `","box":true,"in":["eth0"],"out":[],"to":[],"traffic":["22/tcp"]}`
	}
	for _, c := range []struct {
		address, edge string
		over          []string
	}{
		{"10.1.0.1", `{"policy":"drop","open":[` + sshFrom("10.0.0.0/9") + `,` + surf + `]}`, []string{"web", "dns"}},
		{"10.200.0.1", `{"policy":"drop","open":[` + sshFrom("10.128.0.0/9") + `,` + surf + `]}`, nil},
		{"192.0.2.1", `{"policy":"drop","management":"192.0.2.0/24","open":[` + surf + `]}`, nil},
		{"2001:db8::1", `{"policy":"drop","management":"2001:db8::/64","open":[` + surf + `,` + six + `]}`, []string{"web"}},
		{"2001:db8:1::1", `{"policy":"drop","open":[` + sshFrom("2001:db8:1::/48") + `,` + surf + `,` + six + `]}`, nil},
	} {
		w := api.NewWhy(netip.MustParseAddr(c.address), lists.Answer{}, nil)
		w.AddSource(cfg, over)
		if got, err := json.Marshal(w.Edge); err != nil || string(got) != c.edge {
			t.Errorf("%s: %s, %v, want\n%s", c.address, got, err, c.edge)
		}
		var services []string
		for _, o := range w.OverLimits {
			services = append(services, o.Service)
		}
		if len(services) != len(c.over) || len(services) > 0 && services[0] != c.over[0] {
			t.Errorf("%s: over limits of %v, want %v", c.address, services, c.over)
		}
	}
	w := api.NewWhy(netip.MustParseAddr("10.1.0.1"), lists.Answer{}, nil)
	if w.AddSource(&model.Config{}, nil); w.Edge != nil || w.OverLimits == nil {
		t.Errorf("without a policy: %+v", w)
	}
}
