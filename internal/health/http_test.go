package health

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"weir/internal/model"
)

func TestHTTP(t *testing.T) {
	big := strings.Repeat("x", maxBody-2)
	for _, c := range []struct {
		name, answer string
		check        model.Check
		kind, detail string
	}{
		{"200", httpAnswer(200, "", ""), model.Check{}, "good", "HTTP 200 Word"},
		{"a redirect is not followed", httpAnswer(302, "Location: http://192.0.2.1/\r\n", ""), model.Check{}, "good", "HTTP 302"},
		{"404", httpAnswer(404, "", ""), model.Check{}, "bad", "HTTP 404"},
		{"other codes", httpAnswer(404, "", ""), model.Check{Status: []model.CodeRange{{Lo: 200, Hi: 200}, {Lo: 404, Hi: 410}}}, "good", "HTTP 404"},
		{"200 is not among them", httpAnswer(200, "", ""), model.Check{Status: []model.CodeRange{{Lo: 204, Hi: 204}}}, "bad", "HTTP 200"},
		{"interim answers", "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + httpAnswer(200, "", ""), model.Check{}, "good", "HTTP 200"},
		{"endless interim answers", strings.Repeat("HTTP/1.1 103 Early\r\n\r\n", 50), model.Check{}, "bad", "interim"},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", model.Check{Method: "HEAD"}, "good", "HTTP 200"},
		{"body", httpAnswer(200, "", "all is well"), model.Check{Body: "is w"}, "good", "body as expected"},
		{"other body", httpAnswer(200, "", "maintenance"), model.Check{Body: "well"}, "bad", "body is not as expected"},
		{"chunked body", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nwe\r\n2\r\nll\r\n0\r\n\r\n", model.Check{Body: "well"}, "good", ""},
		{"body to the end", "HTTP/1.0 200 OK\r\n\r\nwell", model.Check{Body: "well"}, "good", ""},
		{"body breaks off", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", model.Check{Body: "well"}, "bad", "of the body"},
		{"at the end of 64 KiB", httpAnswer(200, "", big+"ok"), model.Check{Body: "ok"}, "good", ""},
		{"beyond 64 KiB", httpAnswer(200, "", big+"xok"), model.Check{Body: "ok"}, "bad", "not as expected"},
		{"endless head", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHead), model.Check{}, "bad", "longer than 64 KiB"},
		{"garbage", "SSH-2.0-x\x1b[2J\r\n", model.Check{}, "bad", "malformed"},
		{"closed", "", model.Check{}, "bad", "closed without an answer"},
		{"escapes in the status", "HTTP/1.1 500 \x1b[31mred\r\n\r\n", model.Check{}, "bad", `HTTP 500 \x1b[31mred`},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, addr netip.Addr) {
				c.check.Kind = model.CheckHTTP
				expect(t, ask(new(Probes), listen(t, addr, answering(c.answer)), c.check), c.kind, c.detail)
			})
		})
	}
}

func TestHTTPFails(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		for _, kind := range []model.CheckKind{model.CheckHTTP, model.CheckHTTPS, model.CheckGRPC} {
			c := model.Check{Kind: kind}
			expect(t, ask(new(Probes), closedPort(t, addr), c), "bad", "connection refused")
			reset := listen(t, addr, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) })
			expect(t, ask(new(Probes), reset, c), "bad", "")
			c.Timeout = short
			expect(t, ask(new(Probes), listen(t, addr, silent), c), "bad", "no answer within 100ms")
		}
	})
}

// What is sent: the path as it was written, the names, and a question to go away.
func TestHTTPRequest(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		got := make(chan string, 1)
		at := listen(t, addr, func(c net.Conn) {
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			got <- string(b[:n])
			io.WriteString(c, httpAnswer(200, "", ""))
		})
		for _, c := range []struct {
			check model.Check
			line  string
			host  string
		}{
			{model.Check{}, "GET / HTTP/1.1", at.String()},
			{model.Check{Path: "//a%2Fb?c=d", Method: "OPTIONS", Host: "www.example"}, "OPTIONS //a%2Fb?c=d HTTP/1.1", "www.example"},
		} {
			c.check.Kind = model.CheckHTTP
			expect(t, ask(new(Probes), at, c.check), "good", "")
			want := c.line + "\r\nHost: " + c.host + "\r\nUser-Agent: weir\r\nAccept: */*\r\nConnection: close\r\n\r\n"
			if q := <-got; q != want {
				t.Errorf("%q, want %q", q, want)
			}
		}
	})
	for addr, want := range map[string]string{"192.0.2.1:80": "192.0.2.1", "[2001:db8::1]:80": "[2001:db8::1]", "[fe80::1%eth0]:81": "[fe80::1]:81"} {
		ap := netip.MustParseAddrPort(addr)
		if got := addressHost(&Target{Addr: ap.Addr(), Port: ap.Port(), Check: &model.Check{Kind: model.CheckHTTP}}); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// secure starts a TLS server whose certificate is for example.com, 127.0.0.1 and ::1.
func secure(t *testing.T, addr netip.Addr, h http.HandlerFunc) (netip.AddrPort, *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return l.Addr().(*net.TCPAddr).AddrPort(), roots
}

func TestHTTPS(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		at, roots := secure(t, addr, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "sni=%s host=%s proto=%s", r.TLS.ServerName, r.Host, r.Proto)
		})
		check := func(host string, verify bool, body string) model.Check {
			return model.Check{Kind: model.CheckHTTPS, Host: host, Verify: verify, Body: body}
		}
		trusting := &Probes{Roots: roots}
		named := "sni=example.com host=example.com proto=HTTP/1.1"
		expect(t, ask(trusting, at, check("example.com", true, named)), "good", "HTTP 200")
		expect(t, ask(trusting, at, check("example.com:8443", true, "sni=example.com host=example.com:8443")), "good", "")
		expect(t, ask(trusting, at, check("", true, "sni= ")), "good", "HTTP 200") // for the address
		expect(t, ask(trusting, at, check("other.test", true, "")), "bad", "certificate is valid for")
		expect(t, ask(trusting, at, check("other.test", false, "sni=other.test")), "good", "")
		expect(t, ask(new(Probes), at, check("example.com", true, "")), "bad", "certificate")
		expect(t, ask(new(Probes), at, check("example.com", false, "")), "good", "")
		plain := listen(t, addr, answering(httpAnswer(400, "", "plain")))
		expect(t, ask(trusting, plain, check("", false, "")), "bad", "tls")
	})
}

func TestHTTPSTooOld(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	s.Config.ErrorLog = quiet
	s.StartTLS()
	defer s.Close()
	at := s.Listener.Addr().(*net.TCPAddr).AddrPort()
	expect(t, ask(new(Probes), at, model.Check{Kind: model.CheckHTTPS}), "bad", "protocol version")
}
