// Package api serves the state of a running gatun over HTTP on a unix socket, and holds the
// client that the commands use. cmd wires it; nobody else imports it.
//
// Who may connect is the socket file's mode; who may change something is decided by the peer
// credentials that the kernel reports (root, or the user the daemon runs as). The package
// decides nothing else and keeps no state but its watchers. There is no TCP listener.
package api
