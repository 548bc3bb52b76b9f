package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// The ports of a captive portal: a web server for each way in which portals answer in the place
// of others, and a nameserver for which every name is the portal's own.
const (
	portalRedirect = 8302 // to the login page
	portalPage     = 8200 // the login page itself, with status 200
	portalAuth     = 8511 // RFC 6585
	portalDNS      = 5353
)

// portal serves one until it is killed: "portal -own 192.0.2.1". Rules of the router lead to it.
func portal(args []string) error {
	var own string
	if _, err := flags("portal", args, 0, func(fs *flag.FlagSet) { fs.StringVar(&own, "own", "", "its address") }); err != nil {
		return err
	}
	addr, err := netip.ParseAddr(own)
	if err != nil || !addr.Is4() {
		return fmt.Errorf("-own wants an IPv4 address, got %q", own)
	}
	const login = "<html>success: log in, or stay outside</html>"
	for port, answer := range map[int]http.HandlerFunc{
		portalRedirect: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://login.portal.example/?for="+r.Host, http.StatusFound)
		},
		portalPage: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, login) },
		portalAuth: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNetworkAuthenticationRequired)
			fmt.Fprintln(w, login)
		},
	} {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(l, answer) }()
	}
	if err := listenPacket(fmt.Sprintf("%s:%d", own, portalDNS), func(b []byte) []byte { return allAre(addr, b) }); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

// allAre answers every query for an address with the same one.
func allAre(addr netip.Addr, b []byte) []byte {
	var q dnsmessage.Message
	if err := q.Unpack(b); err != nil || len(q.Questions) != 1 || q.Response {
		return nil
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: q.Questions,
	}
	if q.Questions[0].Type == dnsmessage.TypeA {
		reply.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 3600},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
	}
	out, err := reply.Pack()
	if err != nil {
		return nil
	}
	return out
}
