package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"weir/internal/model"
)

// TestMetrics counts connections and asks for them as Prometheus does.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	s.serve("tcp", s.Backends, 7)
	s.write(s.checkedService())
	s.start("--metrics", "127.0.0.1:9545")
	for _, h := range s.Backends {
		s.awaitStates("web", h, "up")
	}
	const asked = 6
	eachFamily(t, func(t *testing.T, f model.Family) {
		s.askMany(t, s.Clients[0], "tcp", target(f, 1, 7), asked)
	})
	text := s.scrape("http://127.0.0.1:9545/metrics")
	for _, h := range s.Backends {
		for _, f := range families {
			labels := fmt.Sprintf(`backend="%s",service="web"`, addrOf(h, f))
			for _, want := range []string{
				fmt.Sprintf("weir_backend_connections_total{%s} %d\n", labels, asked/len(s.Backends)),
				fmt.Sprintf("weir_backend_state{%s,state=\"up\"} 1\n", labels),
				fmt.Sprintf("weir_backend_share_ratio{%s} 0.5\n", labels),
			} {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
		}
	}
	if !strings.Contains(text, "weir_up 1\n") || !strings.Contains(text, "weir_applied 1\n") {
		t.Errorf("weir is not up in\n%s", text)
	}
	// Nothing but the metrics is served on TCP.
	if code, _ := s.get("http://127.0.0.1:9545/v1/status"); code != http.StatusNotFound {
		t.Errorf("/v1/status over TCP: %d", code)
	}
	s.stop()
	for _, bad := range []string{"9545", "localhost:9545", "127.0.0.1:none"} {
		if r := s.weir("run", "--metrics", bad); r.code == 0 || !strings.Contains(r.stderr, "--metrics") {
			t.Errorf("--metrics %s: exit code %d, %s", bad, r.code, r.stderr)
		}
	}
}

// scrape returns what a URL gives on the gateway.
func (s *site) scrape(url string) string {
	s.t.Helper()
	code, text := s.get(url)
	if code != http.StatusOK {
		s.t.Fatalf("%s: %d %s", url, code, text)
	}
	return text
}

func (s *site) get(url string) (code int, text string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return s.Gateway.Dial(ctx, network, "", addr)
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	check(s.t, err)
	res, err := client.Do(req)
	check(s.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	check(s.t, err)
	return res.StatusCode, string(body)
}
