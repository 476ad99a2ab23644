package nft

import "testing"

// Namespace moves the test into a fresh network namespace and connects to it, for tests
// that also need what imports this package.
func Namespace(tb testing.TB) *Conn { return namespace(tb).Conn }
