package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/lab"
)

// TestDeaths lets a backend die once behind each kind of balancer, and prints the table.
func TestDeaths(t *testing.T) {
	lab.Require(t)
	require(t, "go", "nft")
	b := &bench{options: options{limit: time.Minute, weir: buildWeir(t)}, dir: t.TempDir(), told: map[string]bool{}}
	rep := &Report{}
	for way, name := range []string{weirDeath, haproxyRetries} {
		list := b.balancers()
		i := slices.IndexFunc(list, func(l balancer) bool { return l.name == name })
		if i < 0 {
			if len(b.notes) == 0 || !strings.Contains(b.notes[0], "haproxy is not on this machine") {
				t.Errorf("%s is left out without a word: %q", name, b.notes)
			}
			continue
		}
		c := DeathCell{Name: name, Way: ways[way].name}
		if err := b.death(t.Context(), list[i], way, &c); err != nil {
			t.Fatalf("%s, %s: %v", c.Name, c.Way, err)
		}
		// The dead get something until they are found out, but the load goes on.
		if c.last[0] <= 0 || c.wait[0] <= 0 || c.opened[0] < 100 || c.failed[0] > c.opened[0]/2 {
			t.Errorf("%+v", c)
		}
		c.Last, c.Failed, c.Wait, c.Opened, c.Rounds = c.last[0], c.failed[0], c.wait[0], c.opened[0], 1
		rep.Deaths = append(rep.Deaths, c)
	}
	rep.Deaths = append(rep.Deaths, DeathCell{Name: "nobody", Way: ways[1].name, Problem: "does not serve"})
	var out bytes.Buffer
	if err := rep.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{ways[0].name, weirDeath, "does not serve", "Clients wait 3s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}
