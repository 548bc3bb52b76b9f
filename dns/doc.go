// Package dns is the nameserver that answers all port 53 traffic of the programs, whatever
// server they asked, and the memory of which program resolved which name to which address.
//
// The Gate hands it queries (ServeUDP, ServeConn) together with the flow and its owner, and
// carries the reply back from the address that was asked. A query is decided twice by the
// Firewall: before it is resolved, and with the answer. Memory is filled before the answer is
// written, so that the connection which follows is judged by the name.
//
// Resolvers are asked over UDP with a socket for each query, and over TCP, TLS, HTTP/2, HTTP/3 and
// QUIC with connections that are kept. Run probes those that fail and closes everything at its end.
//
// It is the only package that imports miekg/dns. It opens no listening socket, decides nothing
// itself and does not know rules; it talks to upstream nameservers through the Dialer only.
package dns
