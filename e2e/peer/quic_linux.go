package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/quic-go/quic-go"
)

// quic answers each stream with what it says.
func (s *server) quic(addr string) error {
	if s.cert == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return err
	}
	l, err := quic.ListenAddr(addr, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"lab"}}, nil)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				for {
					stream, err := c.AcceptStream(context.Background())
					if err != nil {
						return
					}
					_, _ = io.Copy(stream, stream)
					_ = stream.Close()
				}
			}()
		}
	}()
	return nil
}

// quicCommand sends a megabyte over QUIC and wants it back: "quic CA-FILE ADDR:PORT".
func quicCommand(args []string) (result, error) {
	rest, err := flags("quic", args, 2, nil)
	if err != nil {
		return result{}, err
	}
	pem, err := os.ReadFile(rest[0])
	if err != nil {
		return result{}, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := quic.DialAddr(ctx, rest[1], &tls.Config{RootCAs: pool, ServerName: "example.org", NextProtos: []string{"lab"}}, nil)
	if err != nil {
		return failed(err), nil
	}
	defer func() { _ = c.CloseWithError(0, "") }()
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		return failed(err), nil
	}
	const n = 1 << 20
	go func() {
		_, _ = io.CopyN(stream, zeros{}, n)
		_ = stream.Close()
	}()
	got, err := io.Copy(io.Discard, stream)
	if err == nil && got != n {
		err = fmt.Errorf("%d bytes came back of %d", got, n)
	}
	if err != nil {
		return failed(err), nil
	}
	return result{Result: "answer", Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}, nil
}
