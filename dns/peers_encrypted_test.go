package dns

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestUnboundEncrypted asks unbound over TCP, TLS and HTTP/2: every record of its zone as over
// UDP, 200 at once, and after it was idle.
func TestUnboundEncrypted(t *testing.T) {
	path := unboundPath(t)
	a := newAuthority(t)
	config := a.server(nil)
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(config.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	store := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	keyFile, certFile := store("key.pem", "PRIVATE KEY", key), store("cert.pem", "CERTIFICATE", config.Certificates[0].Certificate[0])
	var plain Resolver
	var ports [2]uint16
	for try := 0; ; try++ {
		for i := range ports {
			l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			ports[i] = l.Addr().(*net.TCPAddr).AddrPort().Port()
			l.Close()
		}
		r, ok := startUnbound(t, path,
			fmt.Sprintf("interface: 127.0.0.1@%d\n tls-port: %d\n interface: 127.0.0.1@%d\n https-port: %d", ports[0], ports[0], ports[1], ports[1]),
			fmt.Sprintf("tls-service-key: %q\n tls-service-pem: %q\n incoming-num-tcp: 50\n num-queries-per-thread: 1000", keyFile, certFile))
		if plain = r; ok {
			break
		}
		if try == 4 {
			t.Fatal("unbound does not start; see its log above")
		}
	}
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(plain.Addr.Addr(), port) }
	c := secureClient(t, a)
	for _, r := range []Resolver{
		{Scheme: SchemeTCP, Addr: plain.Addr},
		{Scheme: SchemeDoT, Addr: at(ports[0]), Host: serverName},
		{Scheme: SchemeHTTPS, Addr: at(ports[1]), Host: serverName, Path: defaultPath},
	} {
		t.Run(string(r.Scheme), func(t *testing.T) {
			u := c.server(r, time.Now())
			for _, text := range zone() {
				rr := record(t, text)
				q := inquiry{name: bareName(rr.Header().Name), qtype: rr.Header().Rrtype}
				direct, err := c.server(plain, time.Now()).exchange(context.Background(), q)
				if err != nil {
					t.Fatal(err)
				}
				m, err := u.exchange(context.Background(), q)
				if err != nil {
					t.Fatalf("%v: %v", q, err)
				}
				if got, want := texts(m.Answer), texts(direct.Answer); got != want || m.Rcode != direct.Rcode || want == "" {
					t.Fatalf("%v: got %s, want %s", q, got, want)
				}
			}
			var group sync.WaitGroup
			for range 200 {
				group.Go(func() {
					if m, err := u.exchange(context.Background(), inquiry{name: "www.peer.test", qtype: mdns.TypeA}); err != nil || len(m.Answer) != 1 {
						t.Errorf("%v, %v", m, err)
					}
				})
			}
			group.Wait()
			u.pool.mu.Lock()
			opened := u.pool.opened
			u.pool.mu.Unlock()
			t.Logf("%d queries over %d connections", len(zone())+200, opened)
			if opened > maxLines {
				t.Errorf("%d connections", opened)
			}
		})
	}
}

func texts(records []mdns.RR) string {
	var list []string
	for _, rr := range records {
		list = append(list, rr.String())
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}
