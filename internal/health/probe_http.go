package health

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
)

// Bounds of what is read of an answer.
const (
	maxHead    = 64 << 10 // bytes of status line and headers
	maxBody    = 64 << 10 // bytes of body
	maxInterim = 5        // 1xx answers before the real one
)

// defaultStatus are the good codes when the check names none.
var defaultStatus = []model.CodeRange{{Lo: 200, Hi: 399}}

// askHTTP sends one request on a connection of its own and reads one answer: no
// redirect is followed, no proxy asked, nothing reused. It needs of net/http only the
// syntax of answers; a client with its pool would cost several goroutines a probe.
func (p *Probes) askHTTP(ctx context.Context, t *Target) (string, error) {
	req, err := request(t)
	if err != nil {
		return "", localError{err}
	}
	raw, err := dialTCP(ctx, t.addrPort())
	if err != nil {
		return "", err
	}
	defer raw.Close()
	defer bound(ctx, raw)()
	var conn net.Conn = raw
	if t.Check.Kind == model.CheckHTTPS {
		secure := tls.Client(raw, p.tlsConfig(t, "http/1.1"))
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", err
		}
		conn = secure
	}
	if _, err := io.WriteString(conn, req); err != nil {
		return "", err
	}
	return answer(conn, t.Check)
}

// request is the question of t's check. It is written by hand because net/url would
// rewrite some paths ("//a", "/%2F") that a backend may tell apart.
func request(t *Target) (string, error) {
	method, path := method(t.Check), orElse(t.Check.Path, "/")
	host := orElse(t.Check.Host, addressHost(t))
	if path[0] != '/' {
		return "", fmt.Errorf("path does not begin with a slash: %q", path)
	}
	for _, word := range [...]string{method, path, host} {
		if strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return "", fmt.Errorf("cannot stand in a request: %q", word)
		}
	}
	return method + " " + path + " HTTP/1.1\r\nHost: " + host +
		"\r\nUser-Agent: weir\r\nAccept: */*\r\nConnection: close\r\n\r\n", nil
}

func method(c *model.Check) string { return orElse(c.Method, http.MethodGet) }

// addressHost is the Host header of a check that names none.
func addressHost(t *Target) string {
	a := t.Addr.WithZone("")
	kind, port := t.Check.Kind, t.port()
	if kind == model.CheckHTTP && port == 80 || kind == model.CheckHTTPS && port == 443 {
		if a.Is6() {
			return "[" + a.String() + "]"
		}
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// answer reads the answer to c's request and judges it.
func answer(conn io.Reader, c *model.Check) (string, error) {
	limit := &io.LimitedReader{R: conn, N: maxHead}
	r := bufio.NewReader(limit)
	resp, err := final(r, method(c))
	if err != nil {
		if limit.N <= 0 {
			return "", errors.New("head of the answer is longer than 64 KiB")
		}
		return "", notHTTP(err)
	}
	seen := "HTTP " + resp.Status
	if !goodStatus(c.Status, resp.StatusCode) {
		return "", errors.New(seen)
	}
	if c.Body == "" {
		return seen, nil
	}
	limit.N = 4 * maxBody // with what chunking adds
	found, err := contains(io.LimitReader(resp.Body, maxBody), c.Body)
	switch {
	case found:
		return seen + ", body as expected", nil
	case err != nil:
		return "", fmt.Errorf("%s, but of the body: %w", seen, err)
	}
	return "", errors.New(seen + ", but the body is not as expected")
}

// final reads past the interim answers. 101 is final: nobody asked for it.
func final(r *bufio.Reader, method string) (*http.Response, error) {
	for range maxInterim {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("nothing but interim answers")
}

// notHTTP puts plainer words on an answer that ended early. What net/http says of
// garbage quotes it.
func notHTTP(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("closed without an answer")
	}
	return err
}

func goodStatus(ranges []model.CodeRange, code int) bool {
	if len(ranges) == 0 {
		ranges = defaultStatus
	}
	return slices.ContainsFunc(ranges, func(r model.CodeRange) bool { return r.Lo <= code && code <= r.Hi })
}

// contains reads r until it has seen want. r is bounded.
func contains(r io.Reader, want string) (bool, error) {
	var seen []byte
	for buf := make([]byte, 4096); ; {
		n, err := r.Read(buf)
		from := max(0, len(seen)-len(want))
		seen = append(seen, buf[:n]...)
		if bytes.Contains(seen[from:], []byte(want)) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}
