package main

import (
	"flag"
	"net"
	"net/netip"
	"strings"
	"time"
)

// visitCommand does what a program does that was given a name: it asks for it, and then goes to
// the first address of the answer, in one process. "visit tcp|udp|ping ADDR:PORT" goes to an
// address at once; with -name and -server it asks first, for an address of that one's family.
// Net says where it ended: dns or the protocol.
func visitCommand(args []string) (result, error) {
	var timeout time.Duration
	var name, server, tag string
	rest, err := flags("visit", args, 2, func(fs *flag.FlagSet) {
		fs.DurationVar(&timeout, "timeout", 10*time.Second, "for each answer")
		fs.StringVar(&name, "name", "", "ask for this name first")
		fs.StringVar(&server, "server", "", "address of the name server")
		fs.StringVar(&tag, "tag", "", "to know the result by")
	})
	if err != nil {
		return result{}, err
	}
	to, err := netip.ParseAddrPort(rest[1])
	if err != nil {
		return result{}, err
	}
	if name != "" {
		qtype := "A"
		if to.Addr().Is6() {
			qtype = "AAAA"
		}
		r, err := dnsCommand([]string{"-timeout", timeout.String(), "-type", qtype, name, server})
		if err != nil || r.Result != "NOERROR" {
			r.Net, r.Data = "dns", tag
			return r, err
		}
		first, _, _ := strings.Cut(r.Data, " ")
		addr, err := netip.ParseAddr(first)
		if err != nil {
			return result{Result: "no address", Net: "dns", Data: tag}, nil
		}
		to = netip.AddrPortFrom(addr, to.Port())
	}
	r, err := goTo(rest[0], to, timeout)
	r.Net, r.Data = rest[0], tag
	return r, err
}

func goTo(proto string, to netip.AddrPort, timeout time.Duration) (result, error) {
	if proto == "ping" {
		return pingCommand([]string{"-timeout", timeout.String(), to.Addr().String()})
	}
	command := map[string]func([]string) (result, error){"tcp": tcpCommand, "udp": udpCommand}[proto]
	if command == nil {
		return result{}, net.UnknownNetworkError(proto)
	}
	return command([]string{"-timeout", timeout.String(), to.String()})
}
