// Package interception is the Gate: the only place where a verdict becomes an effect.
//
// The stack hands it flows that are held. The Gate finds out whose each is, asks the firewall,
// and carries the verdict out in one switch: it relays, rejects, drops, or hands the flow to
// the nameserver. The Relay carries what is permitted: it dials before it accepts, so that a
// program sees of the server what it would see without us, and it copies streams, datagrams
// and echo requests, with their errors, both ways. Redirect has port 53 answered that the kernel
// leads past the stack, to sockets on loopback.
//
// cmd makes Gate and Relay, gives them their parts, and runs both. The package decides nothing
// by itself, knows no rules, and opens no socket but through the dialer that it is given: Redirect is
// given its sockets too.
package interception
