package main

import (
	"bytes"
	"crypto/rand"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// protoExperiment is answered on every address of a server: of the protocols that nobody relays, one of which the
// kernel knows nothing (RFC 3692).
const protoExperiment = 253

// otherCommand sends packets of a protocol that is neither TCP, UDP nor ICMP, and wants each back: "other PROTO
// ADDR". UDP-Lite (136) goes to port 7 and needs no rights; for the others root opens a raw socket.
func otherCommand(args []string) (result, error) {
	timeout, n, size := 10*time.Second, 1, 32
	rest, err := flags("other", args, 2, func(fs *flag.FlagSet) {
		fs.DurationVar(&timeout, "timeout", timeout, "for one answer")
		fs.IntVar(&n, "n", n, "how many packets")
		fs.IntVar(&size, "size", size, "bytes to send")
	})
	if err != nil {
		return result{}, err
	}
	proto, err := strconv.Atoi(rest[0])
	if err != nil {
		return result{}, err
	}
	to, err := netip.ParseAddr(rest[1])
	if err != nil {
		return result{}, err
	}
	fd, err := dialOther(proto, to, timeout)
	if err != nil {
		return failed(err), nil
	}
	defer unix.Close(fd)
	for range n {
		if err := exchangeOther(fd, size, to.Is4() && proto != unix.IPPROTO_UDPLITE); err != nil {
			return failed(err), nil
		}
	}
	return result{Result: "answer", Remote: to.String()}, nil
}

func dialOther(proto int, to netip.Addr, timeout time.Duration) (int, error) {
	kind, port := unix.SOCK_RAW, uint16(0)
	if proto == unix.IPPROTO_UDPLITE {
		kind, port = unix.SOCK_DGRAM, portEcho
	}
	fd, err := unix.Socket(familyOf(to), kind, proto)
	if err != nil {
		return 0, err
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err == nil {
		err = unix.Connect(fd, sockaddr(netip.AddrPortFrom(to, port)))
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// exchangeOther sends a packet and reads until it comes back. A raw socket of IPv4 shows the header too.
func exchangeOther(fd, size int, header bool) error {
	msg, got := make([]byte, size), make([]byte, 65536)
	_, _ = rand.Read(msg)
	if _, err := unix.Write(fd, msg); err != nil {
		return err
	}
	n, err := unix.Read(fd, got)
	for err == unix.EINTR {
		n, err = unix.Read(fd, got)
	}
	if err != nil {
		return err
	}
	b := got[:n]
	if header && n > 0 {
		b = b[min(n, int(b[0]&15)*4):]
	}
	if !bytes.Equal(b, msg) {
		return fmt.Errorf("another packet came back: %d bytes", n)
	}
	return nil
}

// others answers protoExperiment and UDP-Lite on one address.
func others(addr string) error {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	network := "ip4:"
	if a.Is6() {
		network = "ip6:"
	}
	c, err := net.ListenPacket(network+strconv.Itoa(protoExperiment), addr)
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return lite(a)
}

// lite answers UDP-Lite; newer kernels have none.
func lite(a netip.Addr) error {
	fd, err := unix.Socket(familyOf(a), unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	if err == unix.EPROTONOSUPPORT {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, portEcho))); err != nil {
		return err
	}
	go func() {
		b := make([]byte, 65536)
		for {
			if n, from, err := unix.Recvfrom(fd, b, 0); err == nil {
				_ = unix.Sendto(fd, b[:n], 0, from)
			} else if err != unix.EINTR {
				return
			}
		}
	}()
	return nil
}
