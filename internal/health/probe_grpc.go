package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// grpcMethod is the call of https://github.com/grpc/grpc/blob/master/doc/health-checking.md
const grpcMethod = "/grpc.health.v1.Health/Check"

// askGRPC makes one unary call over HTTP/2: with prior knowledge if the check is plain,
// else over TLS. The transport is used once: it gets the connection that is already
// there, and no other.
func (p *Probes) askGRPC(ctx context.Context, t *Target) (string, error) {
	raw, err := dialTCP(ctx, t.addrPort())
	if err != nil {
		return "", err
	}
	defer raw.Close()
	defer bound(ctx, raw)()
	transport := p.grpcTransport(t, raw)
	defer transport.CloseIdleConnections()
	req, err := grpcRequest(ctx, t)
	if err != nil {
		return "", localError{err}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := grpcBody(resp)
	if err != nil {
		return "", err
	}
	status, err := servingStatus(body)
	if err != nil {
		return "", err
	}
	if status != statusServing {
		return "", errors.New(statusWord(status))
	}
	return statusWord(status), nil
}

func (p *Probes) grpcTransport(t *Target, raw net.Conn) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(!t.Check.Plain)
	protocols.SetUnencryptedHTTP2(t.Check.Plain)
	first := make(chan net.Conn, 1)
	first <- raw
	return &http.Transport{
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHead,
		Protocols:              protocols,
		TLSClientConfig:        p.tlsConfig(t, "h2"),
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerConnection: maxBody, MaxReceiveBufferPerStream: maxBody},
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case c := <-first:
				return c, nil
			default:
				return nil, errors.New("the server wants the call to be made again")
			}
		},
	}
}

func grpcRequest(ctx context.Context, t *Target) (*http.Request, error) {
	url := "https://" + t.addrPort().String() + grpcMethod
	if t.Check.Plain {
		url = "http" + strings.TrimPrefix(url, "https")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(grpcMessage(t.Check.Name)))
	if err != nil {
		return nil, err
	}
	req.Host = orElse(t.Check.Host, addressHost(t))
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"weir"}}
	return req, nil
}

// grpcBody reads the answer of a call that went well.
func grpcBody(resp *http.Response) ([]byte, error) {
	if resp.ProtoMajor != 2 {
		return nil, errors.New("answered in " + resp.Proto)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("HTTP " + resp.Status)
	}
	if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/grpc") {
		return nil, errors.New("not gRPC but " + kind)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	status, message := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // an answer of headers alone
		status, message = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if status != "0" {
		return nil, errors.New("gRPC status " + strings.TrimSpace(orElse(status, "missing")+" "+message))
	}
	return body, nil
}

// grpcPrefix is the length of what goes before a message: a byte that says whether it is
// compressed, and its length.
const grpcPrefix = 5

// grpcMessage is a HealthCheckRequest: field 1, the service's name, left out when empty.
func grpcMessage(service string) []byte {
	m := make([]byte, grpcPrefix)
	if service != "" {
		m = append(m, 1<<3|wireBytes)
		m = binary.AppendUvarint(m, uint64(len(service)))
		m = append(m, service...)
	}
	binary.BigEndian.PutUint32(m[1:], uint32(len(m)-grpcPrefix))
	return m
}

// HealthCheckResponse.ServingStatus.
const statusServing = 1

var statusNames = [...]string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

func statusWord(s uint64) string {
	if s < uint64(len(statusNames)) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %d", s)
}

// Wire types of protocol buffers.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

var errGRPC = errors.New("malformed gRPC answer")

// servingStatus reads field 1 of the one HealthCheckResponse in body. As the encoding
// has it, unknown fields are skipped, the last value counts, and a missing one is 0.
func servingStatus(body []byte) (status uint64, err error) {
	if len(body) < grpcPrefix || body[0] != 0 ||
		uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-grpcPrefix) {
		return 0, errGRPC
	}
	for m := body[grpcPrefix:]; len(m) > 0; {
		tag, n := binary.Uvarint(m)
		if n <= 0 || tag>>3 == 0 {
			return 0, errGRPC
		}
		m = m[n:]
		value, n, ok := protoValue(m, tag&7)
		if !ok {
			return 0, errGRPC
		}
		m = m[n:]
		if tag == 1<<3|wireVarint {
			status = value
		}
	}
	return status, nil
}

// protoValue measures the value of a wire type at the start of m, and reads it if it is
// a number of variable length.
func protoValue(m []byte, wire uint64) (value uint64, size int, ok bool) {
	switch wire {
	case wireVarint:
		v, n := binary.Uvarint(m)
		return v, n, n > 0
	case wire64:
		return 0, 8, len(m) >= 8
	case wire32:
		return 0, 4, len(m) >= 4
	case wireBytes:
		v, n := binary.Uvarint(m)
		if n <= 0 || v > uint64(len(m)-n) {
			return 0, 0, false
		}
		return 0, n + int(v), true
	}
	return 0, 0, false // groups are not used by proto3
}
