package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"weir/internal/model"
)

// Probes asks one backend once. The zero value is ready; it is safe for concurrent use.
type Probes struct {
	// Roots are the authorities that Check.Verify trusts; nil: those of the system.
	Roots *x509.CertPool
}

// tooLate is how much later than its timeout a probe must end for the fault to be this
// machine's: the process was stopped, or got no processor. The answer may well have come
// in time and lie unread. A late timer alone is far from it.
const tooLate = time.Second

// Probe asks t and returns when it has the answer, or Check.Timeout later, or when ctx
// ends. The error of a context that ended is a void result.
func (p *Probes) Probe(ctx context.Context, t Target) Result {
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, t.Check.Timeout)
	defer cancel()
	seen, err := p.ask(limited, &t)
	r := Result{OK: err == nil, At: time.Now(), Detail: seen}
	r.Latency = r.At.Sub(start)
	if err != nil {
		late := r.Latency - t.Check.Timeout
		switch {
		case ctx.Err() != nil:
			r.Void, r.Detail = true, "given up"
		case isTimeout(err) && late > max(tooLate, t.Check.Timeout):
			r.Void, r.Detail = true, fmt.Sprintf("weir itself was %v late", late.Round(time.Millisecond))
		case isTimeout(err):
			r.Detail = fmt.Sprintf("no answer within %v", t.Check.Timeout)
		default:
			r.Void, r.Detail = isLocal(err), words(err)
		}
	}
	r.Detail = clean(r.Detail)
	return r
}

// ask runs the probe of the check's kind. It says what it saw of a good answer, and
// returns an error that says what was wrong with a bad one.
func (p *Probes) ask(ctx context.Context, t *Target) (string, error) {
	needsPort := t.Check.Kind != model.CheckICMP && t.Check.Kind != model.CheckExec
	if needsPort && t.port() == 0 {
		return "", localError{errors.New("no port to ask: the check must say one")}
	}
	switch t.Check.Kind {
	case model.CheckTCP:
		return askTCP(ctx, t)
	case model.CheckHTTP, model.CheckHTTPS:
		return p.askHTTP(ctx, t)
	case model.CheckUDP:
		return askUDP(ctx, t)
	case model.CheckDNS:
		return askDNS(ctx, t)
	case model.CheckGRPC:
		return p.askGRPC(ctx, t)
	case model.CheckICMP:
		return askICMP(ctx, t)
	case model.CheckExec:
		return askExec(ctx, t)
	}
	return "", localError{fmt.Errorf("no such kind of check: %d", t.Check.Kind)}
}

// dialer opens the sockets of the probes. They are too short for keep-alives.
var dialer = net.Dialer{KeepAlive: -1}

// dialTCP connects, and sees to it that closing sends an RST: a connection closed by the
// one who opened it stays in TIME_WAIT for a minute, and 2,500 probes a second would
// leave 150,000 of them and take every local port.
func dialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := dialer.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return nil, err
	}
	if err := c.SetLinger(0); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// bound makes what is read and written on c end when ctx ends. The caller calls the
// returned function before it closes c.
func bound(ctx context.Context, c interface{ SetDeadline(time.Time) error }) (stop func() bool) {
	if at, ok := ctx.Deadline(); ok {
		c.SetDeadline(at)
	}
	return context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
}

func askTCP(ctx context.Context, t *Target) (string, error) {
	c, err := dialTCP(ctx, t.addrPort())
	if err != nil {
		return "", err
	}
	c.Close()
	return "connected", nil
}

// tlsConfig is for a connection to t that speaks one of protos. Without a name to ask
// for, the certificate must be for the address, and no SNI is sent (RFC 6066 section 3).
func (p *Probes) tlsConfig(t *Target, protos ...string) *tls.Config {
	return &tls.Config{
		ServerName:         hostName(t),
		InsecureSkipVerify: !t.Check.Verify,
		RootCAs:            p.Roots,
		NextProtos:         protos,
	}
}

// hostName is Check.Host without a port, or the address without its zone.
func hostName(t *Target) string {
	if t.Check.Host == "" {
		return t.Addr.WithZone("").String()
	}
	if h, _, err := net.SplitHostPort(t.Check.Host); err == nil {
		return h
	}
	return t.Check.Host
}

// localError marks what is this machine's fault.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// isLocal reports whether err says that the question could not even be asked, for want
// of descriptors, memory, processes or local ports.
func isLocal(err error) bool {
	if _, ok := errors.AsType[localError](err); ok {
		return true
	}
	for _, no := range [...]syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS,
		syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout() && !errors.Is(err, syscall.ETIMEDOUT)
}

// words says err without the addresses that package net puts around it: who was asked is
// known, and one reason of many backends should read the same.
func words(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}
