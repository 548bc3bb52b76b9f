package main

import (
	"crypto/rand"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// flags parses the options of a command and wants exactly n arguments after them.
func flags(name string, args []string, n int, define func(*flag.FlagSet)) ([]string, error) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	if define != nil {
		define(fs)
	}
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() != n {
		return nil, fmt.Errorf("%s wants %d arguments, got %q", name, n, fs.Args())
	}
	return fs.Args(), nil
}

// tcpCommand connects, sends a line and wants it back.
func tcpCommand(args []string) (result, error) {
	var timeout, hold time.Duration
	var say string
	rest, err := flags("tcp", args, 1, func(fs *flag.FlagSet) {
		fs.DurationVar(&timeout, "timeout", 20*time.Second, "for the connect and for the echo")
		fs.DurationVar(&hold, "hold", 0, "keep the connection so long afterwards")
		fs.StringVar(&say, "say", "", "a line to be echoed; empty: only connect")
	})
	if err != nil {
		return result{}, err
	}
	begin := time.Now()
	c, err := net.DialTimeout("tcp", rest[0], timeout)
	ms := float64(time.Since(begin).Microseconds()) / 1000
	if err != nil {
		r := failed(err)
		r.Remote, r.MS = rest[0], ms
		return r, nil
	}
	defer c.Close()
	r := result{Result: "connected", MS: ms, Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}
	if say != "" {
		_ = c.SetDeadline(time.Now().Add(timeout))
		if err := echo(c, say); err != nil {
			r.Result, r.Error = outcome(err)
			return r, nil
		}
		r.Data = say
	}
	time.Sleep(hold)
	return r, nil
}

func echo(c net.Conn, say string) error {
	if _, err := io.WriteString(c, say+"\n"); err != nil {
		return err
	}
	b := make([]byte, len(say)+1)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != say+"\n" {
		return fmt.Errorf("echo of %q was %q", say, b)
	}
	return nil
}

// talkCommand keeps one connection and echoes a line every 50 ms, like somebody at a shell; every
// line must come back, within -patience.
func talkCommand(args []string) (result, error) {
	length, patience, network := 5*time.Second, 10*time.Second, "tcp"
	rest, err := flags("talk", args, 1, func(fs *flag.FlagSet) {
		fs.DurationVar(&length, "for", length, "how long")
		fs.DurationVar(&patience, "patience", patience, "for one line")
		fs.StringVar(&network, "net", network, "tcp or udp")
	})
	if err != nil {
		return result{}, err
	}
	c, err := net.DialTimeout(network, rest[0], patience)
	if err != nil {
		return failed(err), nil
	}
	defer c.Close()
	lines, worst := 0, time.Duration(0)
	for end := time.Now().Add(length); time.Now().Before(end); lines++ {
		begin := time.Now()
		_ = c.SetDeadline(begin.Add(patience))
		if err := echo(c, fmt.Sprint("line ", lines)); err != nil {
			return failed(err), nil
		}
		worst = max(worst, time.Since(begin))
		time.Sleep(50 * time.Millisecond)
	}
	return result{Result: "complete", Extra: map[string]float64{"lines": float64(lines), "worst_ms": float64(worst.Milliseconds())}}, nil
}

// udpCommand sends a datagram from a connected socket and wants it back. Without an answer it
// sends twice more, because an ICMP error is only seen by the next call on the socket.
func udpCommand(args []string) (result, error) {
	var timeout time.Duration
	var size int
	rest, err := flags("udp", args, 1, func(fs *flag.FlagSet) {
		fs.DurationVar(&timeout, "timeout", 10*time.Second, "for the answer")
		fs.IntVar(&size, "size", 32, "bytes to send")
	})
	if err != nil {
		return result{}, err
	}
	c, err := net.Dial("udp", rest[0])
	if err != nil {
		return failed(err), nil
	}
	defer c.Close()
	r := result{Result: "answer", Local: c.LocalAddr().String(), Remote: rest[0]}
	msg, got := make([]byte, size), make([]byte, 65536)
	_, _ = rand.Read(msg)
	_ = c.SetDeadline(time.Now().Add(timeout))
	if _, err = c.Write(msg); err == nil {
		var n int
		if n, err = c.Read(got); err == nil && string(got[:n]) != string(msg) {
			err = fmt.Errorf("another datagram came back: %d bytes", n)
		}
	}
	if err != nil {
		r.Result, r.Error = outcome(err)
	}
	return r, nil
}

// pingCommand sends one echo request from a ping socket, as ping(8) without privileges does.
func pingCommand(args []string) (result, error) {
	var timeout time.Duration
	rest, err := flags("ping", args, 1, func(fs *flag.FlagSet) {
		fs.DurationVar(&timeout, "timeout", 10*time.Second, "for the answer")
	})
	if err != nil {
		return result{}, err
	}
	addr, err := netip.ParseAddr(rest[0])
	if err != nil {
		return result{}, err
	}
	family, proto := familyOf(addr), unix.IPPROTO_ICMP
	if addr.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, proto)
	if err != nil {
		return failed(fmt.Errorf("ping socket: %w", err)), nil
	}
	defer unix.Close(fd)
	r := result{Remote: rest[0]}
	if err := exchange(fd, sockaddr(netip.AddrPortFrom(addr, 0)), echoRequest(addr, 1), timeout); err != nil {
		r.Result, r.Error = outcome(err)
		return r, nil
	}
	r.Result = "answer"
	return r, nil
}

// exchange connects a socket, sends one packet and waits for one.
func exchange(fd int, to unix.Sockaddr, packet []byte, timeout time.Duration) error {
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	if _, err := unix.Write(fd, packet); err != nil {
		return err
	}
	n, err := unix.Read(fd, make([]byte, 65536))
	if err == nil && n == 0 {
		return io.EOF
	}
	return err
}

func echoRequest(to netip.Addr, seq uint16) []byte {
	b := make([]byte, 8+16)
	b[0] = 8
	if to.Is6() {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[6:], seq)
	_, _ = rand.Read(b[8:])
	return b
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// dnsCommand asks one server for one name and says NOERROR (Data: the addresses), NXDOMAIN, …
func dnsCommand(args []string) (result, error) {
	var timeout time.Duration
	var tcp bool
	var qtype string
	rest, err := flags("dns", args, 2, func(fs *flag.FlagSet) {
		fs.DurationVar(&timeout, "timeout", 10*time.Second, "for the answer")
		fs.BoolVar(&tcp, "tcp", false, "ask over TCP")
		fs.StringVar(&qtype, "type", "A", "A or AAAA")
	})
	if err != nil {
		return result{}, err
	}
	network := "udp"
	if tcp {
		network = "tcp"
	}
	server := net.JoinHostPort(rest[1], "53")
	c, err := net.DialTimeout(network, server, timeout)
	if err != nil {
		return failed(err), nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(timeout))
	reply, err := ask(c, rest[0], qtype, tcp)
	if err != nil {
		r := failed(err)
		r.Remote = server
		return r, nil
	}
	r := result{Local: c.LocalAddr().String(), Remote: server, Net: network}
	r.Result, r.Data = readAnswer(reply)
	return r, nil
}

func ask(c net.Conn, name, qtype string, tcp bool) (dnsmessage.Message, error) {
	var m dnsmessage.Message
	q, err := question(name, qtype)
	if err != nil {
		return m, err
	}
	if tcp {
		q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	}
	if _, err := c.Write(q); err != nil {
		return m, err
	}
	b := make([]byte, 65536)
	n := 0
	if tcp {
		if _, err := io.ReadFull(c, b[:2]); err != nil {
			return m, err
		}
		n = int(binary.BigEndian.Uint16(b))
		_, err = io.ReadFull(c, b[:n])
	} else {
		n, err = c.Read(b)
	}
	if err != nil {
		return m, err
	}
	return m, m.Unpack(b[:n])
}

func question(name, qtype string) ([]byte, error) {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, err
	}
	t := dnsmessage.TypeA
	if qtype == "AAAA" {
		t = dnsmessage.TypeAAAA
	}
	var id [2]byte
	_, _ = rand.Read(id[:])
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: binary.BigEndian.Uint16(id[:]), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: t, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

func readAnswer(m dnsmessage.Message) (code, data string) {
	names := map[dnsmessage.RCode]string{
		dnsmessage.RCodeSuccess: "NOERROR", dnsmessage.RCodeNameError: "NXDOMAIN",
		dnsmessage.RCodeRefused: "REFUSED", dnsmessage.RCodeServerFailure: "SERVFAIL",
	}
	var addrs []string
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			addrs = append(addrs, netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			addrs = append(addrs, netip.AddrFrom16(body.AAAA).String())
		}
	}
	return names[m.RCode], strings.Join(addrs, " ")
}

// tokenCommand tells the server who it is: pid, start, path and its own port, over TCP (which
// waits for the answer) or as a datagram that is fired and forgotten.
func tokenCommand(args []string) (result, error) {
	var network string
	rest, err := flags("token", args, 1, func(fs *flag.FlagSet) {
		fs.StringVar(&network, "net", "tcp", "tcp or udp")
	})
	if err != nil {
		return result{}, err
	}
	c, err := net.DialTimeout(network, rest[0], 10*time.Second)
	if err != nil {
		return failed(err), nil
	}
	defer c.Close()
	path, _ := os.Executable()
	local := c.LocalAddr().String()
	if _, err := fmt.Fprintf(c, "%d %s %s\n", os.Getpid(), path, local); err != nil {
		return failed(err), nil
	}
	if network == "tcp" {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
			return failed(err), nil
		}
	}
	return result{Result: "sent", Local: local, Remote: rest[0], Net: network}, nil
}

// downloadCommand reads a slow stream to its end and says whether every byte came.
func downloadCommand(args []string) (result, error) {
	var want int64
	rest, err := flags("download", args, 1, func(fs *flag.FlagSet) { fs.Int64Var(&want, "want", 0, "bytes expected") })
	if err != nil {
		return result{}, err
	}
	resp, err := http.Get(rest[0])
	if err != nil {
		return failed(err), nil
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && n != want {
		err = fmt.Errorf("%d bytes came, %d were expected: %w", n, want, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return failed(err), nil
	}
	return result{Result: "complete", Extra: map[string]float64{"bytes": float64(n)}}, nil
}
