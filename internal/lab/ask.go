package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// AskTimeout bounds one Ask.
const AskTimeout = 5 * time.Second

// httpRequest is small and complete; the client decides when the connection ends.
const httpRequest = "GET / HTTP/1.1\r\nHost: lab\r\nUser-Agent: lab\r\n\r\n"

// Ask opens one connection from the host, asks once and returns the answer without
// its newline: "id client:port" from a server of this package. network is "tcp",
// "udp", "http" or "sctp". It takes at most AskTimeout.
func (h *Host) Ask(network, addr string) (reply string, err error) {
	return h.AskFrom(context.Background(), network, "", addr)
}

// AskFrom is Ask from a literal local address ("" for any), bounded by ctx too.
func (h *Host) AskFrom(ctx context.Context, network, laddr, addr string) (reply string, err error) {
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	if network == "sctp" {
		return h.askSCTP(ctx, laddr, addr)
	}
	c, err := h.dialTalk(ctx, network, laddr, addr)
	if err != nil {
		return "", err
	}
	defer c.conn.Close()
	return c.ask()
}

// talk is a connection on which one can ask more than once.
type talk struct {
	conn net.Conn
	r    *bufio.Reader
	http bool
}

// dialTalk opens a connection for questions. The deadline of ctx holds for it until
// another is set.
func (h *Host) dialTalk(ctx context.Context, network, laddr, addr string) (*talk, error) {
	transport := network
	if network == "http" {
		transport = "tcp"
	}
	conn, err := h.Dial(ctx, transport, laddr, addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return &talk{conn: conn, r: bufio.NewReaderSize(conn, 1024), http: network == "http"}, nil
}

// ask sends one question and reads the answer.
func (t *talk) ask() (string, error) {
	question := "?\n"
	if t.http {
		question = httpRequest
	}
	if _, err := io.WriteString(t.conn, question); err != nil {
		return "", err
	}
	if !t.http {
		line, err := t.r.ReadString('\n')
		return strings.TrimSuffix(line, "\n"), noEOF(err)
	}
	resp, err := http.ReadResponse(t.r, nil)
	if err != nil {
		return "", noEOF(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", noEOF(err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("http status %d", resp.StatusCode)
	}
	return strings.TrimSuffix(string(body), "\n"), nil
}

// errEarlyEnd is what a peer's orderly close means to one who waits for an answer.
var errEarlyEnd = errors.New("closed before the answer")

func noEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errEarlyEnd
	}
	return err
}

// backendID is the first word of an answer.
func backendID(reply string) string {
	id, _, _ := strings.Cut(reply, " ")
	return id
}
