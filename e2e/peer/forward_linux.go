package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// forwarder takes DNS queries over QUIC (RFC 9250) and HTTP/3 and passes them on over TCP to a
// nameserver that somebody else wrote: no packaged nameserver speaks these yet.
type forwarder struct {
	to   string
	pair tls.Certificate
}

// forward serves until it is killed: "forward -doq ADDR:PORT -h3 ADDR:PORT -cert F -key F NAMESERVER:PORT".
func forward(args []string) error {
	var doq, h3, cert, key string
	rest, err := flags("forward", args, 1, func(fs *flag.FlagSet) {
		fs.StringVar(&doq, "doq", "", "where DNS over QUIC is served")
		fs.StringVar(&h3, "h3", "", "where DNS over HTTP/3 is served")
		fs.StringVar(&cert, "cert", "", "certificate")
		fs.StringVar(&key, "key", "", "key")
	})
	if err != nil {
		return err
	}
	f := &forwarder{to: rest[0]}
	if f.pair, err = tls.LoadX509KeyPair(cert, key); err != nil {
		return err
	}
	l, err := quic.ListenAddr(doq, &tls.Config{Certificates: []tls.Certificate{f.pair}, NextProtos: []string{"doq"}}, nil)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp", h3)
	if err != nil {
		return err
	}
	ends := make(chan error, 2)
	go func() { ends <- f.doq(l) }()
	go func() {
		s := &http3.Server{TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{f.pair}}), Handler: f}
		ends <- s.Serve(c)
	}()
	fmt.Println("ready")
	return <-ends
}

func (f *forwarder) doq(l *quic.Listener) error {
	for {
		c, err := l.Accept(context.Background())
		if err != nil {
			return err
		}
		go func() {
			for {
				stream, err := c.AcceptStream(context.Background())
				if err != nil {
					return
				}
				go f.stream(stream)
			}
		}()
	}
}

// stream answers the one query of a stream; its ID must be 0 (RFC 9250, 4.2.1).
func (f *forwarder) stream(s *quic.Stream) {
	defer s.Close()
	b, err := io.ReadAll(io.LimitReader(s, 65537))
	if err != nil || len(b) < 14 || int(binary.BigEndian.Uint16(b)) != len(b)-2 || b[2] != 0 || b[3] != 0 {
		s.CancelWrite(2) // DOQ_PROTOCOL_ERROR
		return
	}
	reply, err := f.ask(b[2:])
	if err != nil {
		s.CancelWrite(1)
		return
	}
	_, _ = s.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
}

func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, 65536))
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/dns-message" || r.URL.Path != "/dns-query" {
		http.Error(w, "POST a DNS message to /dns-query", http.StatusBadRequest)
		return
	}
	reply, err := f.ask(b)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/dns-message")
	_, _ = w.Write(reply)
}

func (f *forwarder) ask(b []byte) ([]byte, error) {
	c, err := net.DialTimeout("tcp", f.to, 3*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(4 * time.Second))
	o := exchangeOrder{Net: "tcp"}
	reply, err := []byte(nil), o.send(c, b)
	if err == nil {
		reply, err = receive(c, "tcp")
	}
	if err == nil && len(reply) < 12 {
		err = errors.New("the nameserver's reply is no message")
	}
	return reply, err
}
