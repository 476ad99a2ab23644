package health

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
)

// maxStrays is how many datagrams that do not answer the question are read over before
// the probe gives up: a flood of them must not keep it busy until its timeout.
const maxStrays = 100

// dialUDP returns a connected socket: the kernel drops what others send to it, and hands
// over an ICMP refusal as an error of the next call, so that a closed port is seen at once.
func dialUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	return dialer.DialUDP(ctx, "udp", netip.AddrPort{}, to)
}

func askUDP(ctx context.Context, t *Target) (string, error) {
	c, err := dialUDP(ctx, t.addrPort())
	if err != nil {
		return "", err
	}
	defer c.Close()
	defer bound(ctx, c)()
	if _, err := c.Write([]byte(t.Check.Send)); err != nil {
		return "", err
	}
	buf := make([]byte, max(len(t.Check.Expect), MaxDetail)) // the kernel cuts off the rest
	n, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	got := string(buf[:n])
	if !strings.HasPrefix(got, t.Check.Expect) {
		return "", fmt.Errorf("unexpected answer: %s", got)
	}
	return "answered: " + got, nil
}

func askDNS(ctx context.Context, t *Target) (string, error) {
	query, err := dnsQuery(uint16(rand.Uint32()), t.Check.Name, t.Check.Type)
	if err != nil {
		return "", localError{err}
	}
	c, err := dialUDP(ctx, t.addrPort())
	if err != nil {
		return "", err
	}
	defer c.Close()
	defer bound(ctx, c)()
	if _, err := c.Write(query); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	for range maxStrays {
		n, err := c.Read(buf)
		if err != nil {
			return "", err
		}
		a, err := dnsParse(buf[:n], query)
		if errors.Is(err, errStray) {
			continue
		}
		if err != nil {
			return "", err
		}
		return a.judge(t.Check.Type)
	}
	return "", errStray
}
