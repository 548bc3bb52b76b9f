// Package network holds what the firewall talks about: verdicts, decisions, the other end of
// a flow, communications and links, and the table of them all.
//
// The firewall, the Gate, the nameserver, the API and the history read and fill it. It never
// decides, never does I/O and starts no goroutine.
//
// A Communication is a program and a domain, or an address where no name is known. A Link is
// one flow of it. The Table finds links by flow, keeps the newest ended ones for people to
// look at, and tells watchers what happened.
package network
