package lab

import (
	"context"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	os.Exit(Main(m))
}

// newNet returns a network that the test's end closes; nothing may be left of it.
func newNet(t *testing.T) *Net {
	t.Helper()
	Require(t)
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)
	return n
}

func closeAtEnd(t *testing.T, n *Net) {
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		goleak.VerifyNone(t)
	})
}

func newGateway(t *testing.T, o GatewayOptions) *Topology {
	t.Helper()
	Require(t)
	topo, err := Gateway(o)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, topo.Net)
	return topo
}

func newHost(t *testing.T, n *Net, name string) *Host {
	t.Helper()
	h, err := n.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must returns v of a call that has to work.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func testContext(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
