package model

import (
	"reflect"
	"time"
)

// CheckKind is how a backend's health is asked for.
type CheckKind uint8

// The kinds.
const (
	CheckTCP   CheckKind = iota // a connection can be opened
	CheckHTTP                   // a request is answered as expected
	CheckHTTPS                  // the same over TLS
	CheckUDP                    // a datagram is answered as expected
	CheckDNS                    // a name is resolved
	CheckGRPC                   // grpc.health.v1.Health/Check says SERVING
	CheckICMP                   // an echo request is answered
	CheckExec                   // a command exits with 0
	CheckNone                   // not at all; the other fields are zero. Only as a Backend's own Check
)

var checkNames = [...]string{"tcp", "http", "https", "udp", "dns", "grpc", "icmp", "exec", "none"}

// String returns the word of the configuration file.
func (k CheckKind) String() string { return checkNames[k] }

// Limits and defaults of checks.
const (
	DefaultCheckEvery   = 2 * time.Second
	DefaultCheckTimeout = time.Second
	DefaultCheckRise    = 2
	DefaultCheckFall    = 3
	DefaultCheckJitter  = 0.1
)

// Check is how the health of a service's backends, or of one backend, is found out. It
// is immutable, and comparable by reflect.DeepEqual.
type Check struct {
	Kind    CheckKind
	Every   time.Duration // from the start of one probe to the start of the next, at most; 100ms to 1h
	Timeout time.Duration // of one probe, 10ms to Every
	Rise    int           // good probes in a row that make a backend up, 1 to 100
	Fall    int           // bad probes in a row that make it down, 1 to 100
	Jitter  float64       // each interval is shorter than Every by a random part of it up to this, 0 to 0.5
	Port    uint16        // 0: the port on which the backend gets its traffic

	Path   string      // CheckHTTP and CheckHTTPS: the path, with its query
	Host   string      // the Host header and, over TLS, the name that is asked for; an IPv6 address in brackets; "": the address
	Method string      // "GET", "HEAD", …
	Status []CodeRange // status codes that are good; empty: 200 to 399
	Body   string      // what the body must contain within its first 64 KiB; "": anything
	Verify bool        // over TLS: the certificate must be valid for Host
	Plain  bool        // CheckGRPC: without TLS
	Send   string      // CheckUDP: the datagram
	Expect string      // CheckUDP: what the answer must begin with; "": any answer
	Name   string      // CheckDNS: the name; CheckGRPC: the service, "" for the whole server
	Type   string      // CheckDNS: "A", "AAAA", "SOA", "NS", "TXT" or "MX"
	Args   []string    // CheckExec: the command and its arguments; no shell
}

// CodeRange is an inclusive range of HTTP status codes.
type CodeRange struct{ Lo, Hi int }

// Equal reports whether two checks are the same in all that they say; nil equals nil.
func (c *Check) Equal(o *Check) bool { return reflect.DeepEqual(c, o) }

// CheckOf returns the check of backend b of s, nil if it has none. What it returns is
// never of the kind CheckNone.
func (s *Service) CheckOf(b Backend) *Check {
	switch {
	case b.Check == nil:
		return s.Check
	case b.Check.Kind == CheckNone:
		return nil
	}
	return b.Check
}
