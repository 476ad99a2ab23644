// Package proof holds tests that hold the whole against the kernel: what the evaluator
// says of a packet against what the kernel does with it, and what clients see while
// the configuration changes, weir dies, or somebody else flushes its rules. There is
// nothing in it to import.
//
// Two things can be set from outside:
//
//   - go test -run Agree ./internal/proof -rapid.checks=5000 -timeout 30m compares more
//     configurations than the 100 of a normal run;
//   - WEIR_PROOF_RATE is the number of new connections a second that the traffic tests
//     must reach, 1000 if it is not set. A slower machine needs a lower one: a test that
//     does not reach it fails with the figure it did reach.
package proof
