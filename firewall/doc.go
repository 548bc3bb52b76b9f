// Package firewall decides. Given the facts of a DNS query or of a flow's first packet it walks
// one ordered list of pure functions and returns a network.Decision with its reason.
//
// The Gate and the nameserver call the Decide methods of Master, the API calls Why. The package
// never does I/O, never blocks, holds no lock and carries nothing out: a verdict becomes an
// effect in firewall/interception only.
//
// To add a decider: write a function of type decide, and put it into the list in deciders.go,
// at the place where policy.md section 4 has it. The order of that list is the policy.
package firewall
