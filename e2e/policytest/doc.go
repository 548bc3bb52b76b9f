// Package policytest is the firewall's policy a second time: a slow evaluator, written from the
// text of the policy alone, and a generator of random policies and flows, so that what the
// program decides can be compared with what it should decide.
//
// Only tests use it (firewall, e2e). It imports nothing of ours and shares no code with what it
// judges: its own rule parser without an index, its own layers, its own grades. It is written to
// be read beside the policy, not to be fast, and it trusts its input: what the generator makes
// is valid.
//
// # Where the text leaves a choice
//
// These choices are the program's, recorded in the documentation of profiles, network and
// firewall, and taken over here:
//
//   - An "ask" that is reached for a name accepts the name: the connection is asked.
//   - Aliases (CNAMEs) make a decision stricter only: "-" and "--" match them, "+" and "?" do
//     not, and "!" turns that around.
//   - What the data says nothing about (a country, a list that nobody asked) makes the whole
//     rule not match, with or without "!". Addresses that are not on the Internet have no
//     country to be missing.
//   - A rule with ports does not match a protocol without ports.
//   - The port of an inbound flow is that of this machine.
//   - A condition on the network holds where all of it holds for one interface.
//   - No host can have an address of 0.0.0.0/8, 240.0.0.0/4 or "::". The ports of STUN are 3478, 5349
//     and 19302 to 19309.
//   - Queries to port 53 go to the built-in nameserver before any decider but "own traffic".
package policytest
