package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
)

// The ports of the lab's servers.
const (
	portEcho   = 7
	portSink   = 9
	portSource = 19
	portHTTP   = 80
	portHTTPS  = 443
	portToken  = 5001
	portQUIC   = 4433
	portCount  = 5002 // how many datagrams the sink has received
	portMany   = 6000 // echo on every address that is local to the namespace
	portScan   = 2000 // ten open ports from here, for the port scan
)

// server is the set of servers in one namespace.
type server struct {
	addrs     []string
	cert, key string
	mu        sync.Mutex
	log       io.Writer
	sunk      atomic.Int64 // datagrams at the sink
}

func serve(args []string) error {
	var addr, dns, log string
	s := &server{log: io.Discard}
	if _, err := flags("serve", args, 0, func(fs *flag.FlagSet) {
		fs.StringVar(&addr, "addr", "", "addresses, separated by commas")
		fs.StringVar(&dns, "dns", "", "addresses of the name server")
		fs.StringVar(&s.cert, "cert", "", "certificate")
		fs.StringVar(&s.key, "key", "", "key")
		fs.StringVar(&log, "log", "", "a line of JSON per name asked and per token")
	}); err != nil {
		return err
	}
	s.addrs = strings.Split(addr, ",")
	if log != "" {
		f, err := os.Create(log)
		if err != nil {
			return err
		}
		s.log = f
	}
	if err := s.listenAll(dns); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

func (s *server) listenAll(dns string) error {
	streams := map[int]func(net.Conn){portEcho: echoConn, portSink: sinkConn, portSource: sourceConn, portToken: s.tokenConn, portCount: s.countConn}
	for i := range 10 {
		streams[portScan+i] = echoConn
	}
	for port, handle := range streams {
		if err := listen(port, handle); err != nil {
			return err
		}
	}
	if err := s.web(); err != nil {
		return err
	}
	if err := echoEverywhere(); err != nil {
		return err
	}
	for _, a := range s.addrs {
		if err := others(a); err != nil {
			return err
		}
		for port, handle := range map[int]func([]byte) []byte{portEcho: echoDatagram, portSink: s.sinkDatagram, portToken: s.tokenDatagram} {
			if err := listenPacket(net.JoinHostPort(a, strconv.Itoa(port)), handle); err != nil {
				return err
			}
		}
		if err := s.quic(net.JoinHostPort(a, strconv.Itoa(portQUIC))); err != nil {
			return err
		}
	}
	if dns != "" {
		for _, a := range strings.Split(dns, ",") {
			if err := s.dns(net.JoinHostPort(a, "53")); err != nil {
				return err
			}
		}
	}
	return nil
}

func listen(port int, handle func(net.Conn)) error {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return nil
}

// listenPacket binds one address, so that an answer comes from the address that was asked.
func listenPacket(addr string, handle func([]byte) []byte) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	_ = c.(*net.UDPConn).SetReadBuffer(8 << 20)
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if reply := handle(b[:n]); reply != nil {
				_, _ = c.WriteTo(reply, from)
			}
		}
	}()
	return nil
}

// echoConn hides the types from io.Copy: splicing would take a pipe per idle connection.
func echoConn(c net.Conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4096))
}

func sinkConn(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func sourceConn(c net.Conn) {
	b := make([]byte, 256<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func (s *server) sinkDatagram([]byte) []byte {
	s.sunk.Add(1)
	return nil
}

func (s *server) countConn(c net.Conn) { fmt.Fprintln(c, s.sunk.Load()) }

// echoEverywhere answers from whatever local address was asked: one socket stands for many peers.
func echoEverywhere() error {
	c, err := net.ListenPacket("udp4", ":"+strconv.Itoa(portMany))
	if err != nil {
		return err
	}
	_ = c.(*net.UDPConn).SetReadBuffer(8 << 20)
	p := ipv4.NewPacketConn(c)
	if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return err
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, cm, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(b[:n], &ipv4.ControlMessage{Src: cm.Dst}, from)
		}
	}()
	return nil
}

func echoDatagram(b []byte) []byte { return b }

func (s *server) record(key, value, from string) {
	line, err := json.Marshal(map[string]string{key: value, "from": from})
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.log.Write(append(line, '\n'))
}

func (s *server) tokenConn(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	s.record("token", strings.TrimSpace(line), "tcp")
	_, _ = io.WriteString(c, "ok\n")
}

func (s *server) tokenDatagram(b []byte) []byte {
	s.record("token", strings.TrimSpace(string(b)), "udp")
	return nil
}

// web serves /, /bytes?n=N and /slow?n=CHUNKS (one KiB every 10 ms), in clear and with TLS.
func (s *server) web() error {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello from", r.Host) })
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		_, _ = io.Copy(w, io.LimitReader(zeros{}, n))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		for range n {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	plain, err := net.Listen("tcp", ":"+strconv.Itoa(portHTTP))
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(plain, mux) }()
	if s.cert == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return err
	}
	secure, err := tls.Listen("tcp", ":"+strconv.Itoa(portHTTPS), &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(secure, mux) }()
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
