package model_test

import (
	"testing"

	"weir/internal/config"
)

func TestPoolsThatNeverMatch(t *testing.T) {
	for _, c := range []struct {
		first, second string
		hidden        bool
	}{
		{"out: eth1", "out: eth1", true},
		{"out: eth1", "out: eth2", false},
		{"out: [eth1, eth2]", "out: eth2", true},
		{"out: eth1", "out: [eth1, eth2]", false},
		{"out: eth1, in: eth0", "out: eth1", false},
		{"out: eth1", "out: eth1, in: eth0", true},
		{"out: eth1, from: 10.0.0.0/8", "out: eth1, from: 10.1.0.0/16", true},
		{"out: eth1, from: 10.1.0.0/16", "out: eth1, from: 10.0.0.0/8", false},
		{"out: eth1, from: 10.0.0.0/8", "out: eth1", false},
		{"out: eth1, from: 10.0.0.0/8", "out: eth1, from: [10.1.0.0/16, 11.0.0.0/8]", false},
		{"out: eth1, to: 10.0.0.0/8", "out: eth1, to: 10.1.0.0/16", true},
		{"out: eth1, to_ports: 80-90/tcp", "out: eth1, to_ports: 85/tcp", true},
		{"out: eth1, to_ports: 80-90/tcp", "out: eth1, to_ports: 85/udp", false},
		{"out: eth1, to_ports: 80-90/tcp", "out: eth1, protocols: tcp", false},
		{"out: eth1, protocols: tcp", "out: eth1, to_ports: 80/tcp", true},
		{"out: eth1, protocols: tcp", "out: eth1", false},
	} {
		cfg, err := config.Parse("weir.yaml", []byte("egress:\n  - {name: a, addresses: 192.0.2.1, "+c.first+"}\n  - {name: b, addresses: 192.0.2.2, "+c.second+"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.Hidden()[cfg.Egress[1]] != nil; got != c.hidden {
			t.Errorf("{%s} behind {%s}: hidden %t, want %t", c.second, c.first, got, c.hidden)
		}
	}
}

func TestPoolOfMoreFamiliesIsSeen(t *testing.T) {
	cfg, err := config.Parse("weir.yaml", []byte(`egress: [{name: a, out: eth1, addresses: 192.0.2.1}, {name: b, out: eth1, addresses: "2001:db8::1"},
  {name: c, out: eth1, addresses: [192.0.2.2]}, {name: d, out: eth1, addresses: [192.0.2.3]}]
services: [{name: web, listen: "198.51.100.1:80", source: d, backends: ["10.1.1.1"]}]`))
	if err != nil {
		t.Fatal(err)
	}
	hidden := cfg.Hidden()
	if len(hidden) != 1 || hidden[cfg.Egress[2]] != cfg.Egress[0] {
		t.Errorf("%v", hidden)
	}
}
