package dns

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestBogusOverConnections: what an encrypted resolver, or a broken one, sends instead of the
// answer is an error and never an answer. 50 of each kind.
func TestBogusOverConnections(t *testing.T) {
	const poison = "203.0.113.66"
	kinds := map[string]func(q, m *mdns.Msg){
		"wrong id":    func(q, m *mdns.Msg) { m.Id = q.Id + 1 },
		"other name":  func(_, m *mdns.Msg) { m.Question[0].Name = "other.example." },
		"other type":  func(_, m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAAAA },
		"other class": func(_, m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS },
		"QR=0":        func(_, m *mdns.Msg) { m.Response = false },
		"opcode":      func(_, m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify },
		"no question": func(_, m *mdns.Msg) { m.Question = nil },
		"truncated":   func(_, m *mdns.Msg) { m.Truncated = true },
	}
	for _, scheme := range kept() {
		a := newAuthority(t)
		p := newPeer(t)
		var change atomic.Value
		p.answer = func(q *mdns.Msg) *mdns.Msg {
			m := respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A "+poison)
			m.Question = []mdns.Question{q.Question[0]}
			change.Load().(func(q, m *mdns.Msg))(q, m)
			return m
		}
		p.serve(scheme, a, nil)
		c := secureClient(t, a)
		for name, f := range kinds {
			t.Run(string(scheme)+" "+name, func(t *testing.T) {
				change.Store(f)
				for i := range 50 {
					ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
					if name == "wrong id" && (scheme == SchemeTCP || scheme == SchemeDoT) { // nobody waits for that one
						cancel()
						ctx, cancel = context.WithTimeout(context.Background(), 5*time.Millisecond)
					}
					m, err := c.server(p.resolver(scheme), time.Now()).exchange(ctx, inquiry{name: fmt.Sprintf("n%d.example", i), qtype: mdns.TypeA})
					cancel()
					if err == nil {
						t.Fatalf("got %v", m)
					}
				}
			})
		}
		t.Run(string(scheme)+" control", func(t *testing.T) {
			change.Store(func(_, _ *mdns.Msg) {})
			mustAsk(t, c, p.resolver(scheme), "true.example")
		})
	}
}

// TestHostileHTTP: what a web server may send instead of an answer.
func TestHostileHTTP(t *testing.T) {
	var elsewhere atomic.Int64
	other := newPeer(t).serveHTTP1(nil)
	cases := []struct {
		name string
		h    http.HandlerFunc
		want string
	}{
		{"not found", http.NotFound, "answers HTTP 404 Not Found: check the path"},
		{"redirection", func(w http.ResponseWriter, r *http.Request) {
			elsewhere.Add(1)
			http.Redirect(w, r, "http://"+other.addr.String(), http.StatusTemporaryRedirect)
		}, "answers HTTP 307"},
		{"a web page", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, `content type "text/html; charset=utf-8"`},
		{"another type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/dns-json")
			io.WriteString(w, "{}")
		}, `content type "application/dns-json"`},
		{"nothing", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", mediaType) }, errBogus.Error()},
		{"garbage", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			w.Write(make([]byte, 300))
		}, errBogus.Error()},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			for b := make([]byte, 64<<10); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, "larger than 65535 bytes"},
		{"huge headers", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 40 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
			}
			w.Header().Set("Content-Type", mediaType)
		}, ""}, // each version of HTTP has its own words
		{"dripping", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte{0}); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}, context.DeadlineExceeded.Error()},
	}
	for _, scheme := range []Scheme{SchemeHTTPS, SchemeH3} {
		for _, c := range cases {
			t.Run(string(scheme)+" "+c.name, func(t *testing.T) {
				a := newAuthority(t)
				p := newPeer(t)
				if scheme == SchemeHTTPS {
					p.serveHTTP2(a.server(nil, "h2"), c.h)
				} else {
					p.serveHTTP3(a.server(nil, "h3"), c.h)
				}
				limit := 10 * time.Second
				if c.want == context.DeadlineExceeded.Error() {
					limit = 200 * time.Millisecond
				}
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				defer cancel()
				m, err := secureClient(t, a).server(p.resolver(scheme), time.Now()).exchange(ctx, inquiry{name: "a.example", qtype: mdns.TypeA})
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v, %v; want an error with %q", m, err, c.want)
				}
			})
		}
	}
	if elsewhere.Load() == 0 || other.opened.Load() != 0 {
		t.Fatalf("%d redirections, %d followed", elsewhere.Load(), other.opened.Load())
	}
}

// TestAge: an answer from an HTTP cache is as old as it says.
func TestAge(t *testing.T) {
	a := newAuthority(t)
	p := newPeer(t)
	p.serveHTTP2(a.server(nil, "h2"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Age", "100")
		p.ServeHTTP(w, r)
	}))
	m, err := tryAsk(secureClient(t, a), p.resolver(SchemeHTTPS), "a.example")
	if err != nil || m.Answer[0].Header().Ttl != 200 {
		t.Fatalf("%v, %v", m, err)
	}
}

// pipe is a pipeline whose other end is the test's.
func pipe(t *testing.T, limit time.Duration) (*pipeline, net.Conn) {
	near, far := net.Pipe()
	s := newPipeline(near, limit)
	t.Cleanup(func() { s.close(); far.Close() })
	return s, far
}

func hasEnded(t *testing.T, s *pipeline, want string) {
	t.Helper()
	eventually(t, "the connection is open", func() bool { return !s.usable() })
	if err := s.cause(); !strings.Contains(err.Error(), want) {
		t.Fatalf("ended with %v, want %q", err, want)
	}
}

// TestSlowloris: a peer that begins a message and does not end it, one that does not read, and
// one that sends what nobody asked for lose the connection.
func TestSlowloris(t *testing.T) {
	t.Run("half a message", func(t *testing.T) {
		s, far := pipe(t, 20*time.Millisecond)
		far.Write([]byte{1})
		hasEnded(t, s, "timeout")
	})
	t.Run("drop by drop", func(t *testing.T) {
		s, far := pipe(t, 50*time.Millisecond)
		go func() {
			for _, err := far.Write([]byte{0xff, 0xff}); err == nil; _, err = far.Write([]byte{0}) {
				time.Sleep(time.Millisecond)
			}
		}()
		hasEnded(t, s, "timeout")
	})
	t.Run("does not read", func(t *testing.T) {
		s, _ := pipe(t, 20*time.Millisecond)
		start := time.Now()
		_, err := s.ask(context.Background(), inquiry{name: "a.example", qtype: mdns.TypeA}, padded)
		var broken *brokenError
		if !errors.As(err, &broken) || time.Since(start) > 5*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
	t.Run("strange replies", func(t *testing.T) {
		s, far := pipe(t, time.Second)
		b := framed(make([]byte, headerLen))
		n := 0
		for ; n < 2*maxStrange; n++ {
			if _, err := far.Write(b); err != nil {
				break
			}
		}
		hasEnded(t, s, errStrange.Error())
		if n < maxStrange-1 || n > maxStrange+1 {
			t.Fatalf("after %d", n)
		}
	})
	t.Run("idle is fine", func(t *testing.T) {
		s, far := pipe(t, 10*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		go func() {
			raw, _ := readFrame(far)
			q := new(mdns.Msg)
			if q.Unpack(raw) == nil {
				far.Write(framed(packed(t, respond(t, q, mdns.RcodeSuccess))))
			}
		}()
		if m, err := s.ask(context.Background(), inquiry{name: "a.example", qtype: mdns.TypeA}, padded); err != nil {
			t.Fatalf("%v, %v", m, err)
		}
	})
}

// TestEndlessUpstreams: 24 hostile resolvers that send as fast as they can over TLS cost little
// memory.
func TestEndlessUpstreams(t *testing.T) {
	a := newAuthority(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", a.server(nil, "dot"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for b := framed(make([]byte, maxTCP)); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	c := secureClient(t, a)
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done := make(chan error)
	for i := range 24 {
		go func() {
			r := Resolver{Scheme: SchemeDoT, Addr: netip.AddrPortFrom(addr.Addr(), addr.Port()), Verify: serverName, Name: fmt.Sprint(i)}
			_, err := c.server(r, time.Now()).exchange(ctx, inquiry{name: "a.example", qtype: mdns.TypeA})
			done <- err
		}()
	}
	for range 24 {
		if err := <-done; err == nil {
			t.Error("an answer")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d KiB more", grown>>10)
	if grown > 48<<20 {
		t.Fatalf("%d MiB more", grown>>20)
	}
}
