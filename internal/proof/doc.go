// Package proof holds tests that hold the whole against the kernel: what the evaluator
// says of a packet against what the kernel does with it, and what clients see while
// the configuration changes, backends die and come back, or something goes wrong with
// weir, its disk, its clock or the kernel's answers. The faults are a table, which TestFaults
// runs and docs/FAULTS.md shows. There is nothing in it to import.
//
// These can be set from outside:
//
//   - go test -run Agree ./internal/proof -rapid.checks=5000 -timeout 30m compares more
//     configurations than the 100 of a normal run;
//   - WEIR_PROOF_RATE is the number of new connections a second that the traffic tests
//     must reach. If it is not set they try for some 1,000 and log what they reached; fewer
//     than 100 are too few to show anything;
//   - WEIR_PROOF_FLAP and WEIR_PROOF_STOP are for how long a backend flaps and weir is
//     stopped, 8s and 3s if they are not set;
//   - go test -run Faults ./internal/proof -update writes docs/FAULTS.md anew.
package proof
