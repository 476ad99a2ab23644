// Package e2e holds the tests of weir as a whole, and nothing else.
//
// Their one idea: nothing is believed that a packet did not show. Each test builds a
// network out of namespaces, runs the real weir binary on the gateway with a file that a
// user could write, sends real packets from real clients to real servers, and counts
// what arrives where.
package e2e
