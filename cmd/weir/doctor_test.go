package main

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/internal/config"
	"weir/internal/host"
)

// ill is a report with everything that one may have.
func ill() doctorReport {
	return doctorReport{Running: true, Errors: config.Errors{},
		Findings: []host.Finding{forwardOff(),
			{ID: host.NoCarrier, Severity: host.Error, Subject: "eth1", Found: "device eth1 has no carrier", Means: "packets do not reach backends by it",
				Services: []string{"a", "b", "c", "d", "e", "f", "g", "h"}, More: 12},
			{ID: host.ConntrackFull, Severity: host.Warning, Subject: "net.netfilter.nf_conntrack_max", Found: "the connection table is 80% full or more",
				Means: "once it is full, new connections are dropped", Services: []string{}, Fix: "sysctl -w net.netfilter.nf_conntrack_max=524288"},
			{ID: host.NotRunning, Severity: host.Info, Subject: "weir run", Found: "weir run is not active here", Services: []string{}}},
		Checked: []checkedItem{{"services", 3}, {"routes to backends", 12}}}
}

func TestDoctorText(t *testing.T) {
	const want = `error    ip-forward: net.ipv4.ip_forward is 0
         the kernel forwards nothing to backends on other hosts (services web, dns)
         fix: sysctl -w net.ipv4.ip_forward=1
error    no-carrier: device eth1 has no carrier
         packets do not reach backends by it (services a, b, c, d, e, f, g, h and 12 more)
warning  conntrack-full: the connection table is 80% full or more
         once it is full, new connections are dropped
         fix: sysctl -w net.netfilter.nf_conntrack_max=524288
info     not-running: weir run is not active here
checked: services 3, routes to backends 12
2 errors, 1 warning
`
	well, fine := ill(), ill()
	well.OK, well.Findings = true, well.Findings[3:]
	fine.OK, fine.Findings = true, nil
	for name, c := range map[string]struct {
		rep  doctorReport
		want string
	}{
		"ill":  {ill(), want},
		"well": {well, "info     not-running: weir run is not active here\nchecked: services 3, routes to backends 12\nnothing is wrong; 1 line for information\n"},
		"fine": {fine, "checked: services 3, routes to backends 12\nnothing is wrong\n"},
	} {
		var out bytes.Buffer
		if err := (&env{stdout: &out}).printDoctor(c.rep); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestDoctorJSON(t *testing.T) {
	const want = `{
  "ok": false,
  "running": true,
  "findings": [
    {
      "id": "ip-forward",
      "severity": "error",
      "subject": "net.ipv4.ip_forward",
      "found": "net.ipv4.ip_forward is 0",
      "means": "the kernel forwards nothing to backends on other hosts",
      "services": [
        "web",
        "dns"
      ],
      "fix": "sysctl -w net.ipv4.ip_forward=1"
    },
    {
      "id": "no-carrier",
      "severity": "error",
      "subject": "eth1",
      "found": "device eth1 has no carrier",
      "means": "packets do not reach backends by it",
      "services": [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h"
      ],
      "more_services": 12
    },
    {
      "id": "conntrack-full",
      "severity": "warning",
      "subject": "net.netfilter.nf_conntrack_max",
      "found": "the connection table is 80% full or more",
      "means": "once it is full, new connections are dropped",
      "services": [],
      "fix": "sysctl -w net.netfilter.nf_conntrack_max=524288"
    },
    {
      "id": "not-running",
      "severity": "info",
      "subject": "weir run",
      "found": "weir run is not active here",
      "means": "",
      "services": []
    }
  ],
  "checked": [
    {
      "what": "services",
      "count": 3
    },
    {
      "what": "routes to backends",
      "count": 12
    }
  ],
  "errors": []
}
`
	var out bytes.Buffer
	if err := (&env{stdout: &out, output: "json"}).print(ill(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOwnCommand(t *testing.T) {
	for _, c := range []struct{ config, fix, want string }{
		{defaultConfig, "weir apply", "weir apply"},
		{"/tmp/w.yaml", "weir apply", "weir --config /tmp/w.yaml apply"},
		{"/tmp/w x.yaml", "sudo weir doctor", "sudo weir --config '/tmp/w x.yaml' doctor"},
		{"/tmp/w.yaml", "systemctl start weir", "systemctl start weir"},
		{"/tmp/w.yaml", "", ""},
	} {
		if got := (&env{config: c.config}).ownCommand(c.fix); got != c.want {
			t.Errorf("%s with %s: %s, want %s", c.fix, c.config, got, c.want)
		}
	}
}
