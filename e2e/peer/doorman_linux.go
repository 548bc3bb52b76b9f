package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// doorman listens on the given ports of every address, for TCP and UDP, echoes, and prints a line for
// everything that reaches it: what a firewall has let in.
func doorman(ports []string) error {
	failed := make(chan error)
	for _, port := range ports {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- admit(l) }()
		go func() { failed <- admitDatagrams(u) }()
	}
	fmt.Fprintln(os.Stdout, "listening on", strings.Join(ports, " "))
	return <-failed
}

func admit(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "tcp", c.RemoteAddr())
		go func() {
			defer c.Close()
			echoConn(c)
		}()
	}
}

func admitDatagrams(u net.PacketConn) error {
	b := make([]byte, 65536)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "udp", from)
		_, _ = u.WriteTo(b[:n], from)
	}
}
