package netenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var errDead = errors.New("nobody there")

// web is an HTTP server for pages that a test makes up, and a Probe that finds it under any name.
func web(t *testing.T, url string, h http.HandlerFunc) (*Probe, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return &Probe{
		URL: url,
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.80")}, nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
		},
	}, &asked
}

const testPage = "http://check.example/success.txt"

// TestPages: what is taken for the page, for a portal, and for neither.
func TestPages(t *testing.T) {
	say := func(code int, body string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	for _, c := range []struct {
		name, url string
		h         http.HandlerFunc
		want      finding
		portal    string
	}{
		{"the page", testPage, say(200, "success\n"), succeeded, ""},
		{"204", testPage, say(204, ""), succeeded, ""},
		{"a text of its own", testPage + "#NetworkManager is", say(200, "NetworkManager is online\n"), succeeded, ""},
		{"another text", testPage + "#NetworkManager is", say(200, "success\n"), foreign, testPage},
		{"204 where a text is wanted", testPage + "#NetworkManager", say(204, ""), foreign, testPage},
		{"a login page", testPage, say(200, "<html>success, after you log in</html>"), foreign, testPage},
		{"an empty page", testPage, say(200, ""), foreign, testPage},
		{"a page that begins well", testPage, say(200, "success\n<script>"), foreign, testPage},
		{"302", testPage, say(302, "", "Location", "http://login.example/?a=b"), foreign, "http://login.example/?a=b"},
		{"302 to a path", testPage, say(302, "", "Location", "/login"), foreign, "http://check.example/login"},
		{"307 to https", testPage, say(307, "", "Location", "https://login.example/"), foreign, "https://login.example/"},
		{"302 with the right text", testPage, say(302, "success", "Location", "http://login.example/"), foreign, "http://login.example/"},
		{"302 to nowhere", testPage, say(302, ""), foreign, testPage},
		{"302 to a script", testPage, say(302, "", "Location", "javascript:alert(1)"), foreign, testPage},
		{"302 to a file", testPage, say(302, "", "Location", "file:///etc/passwd"), foreign, testPage},
		{"302 with a password", testPage, say(302, "", "Location", "http://a:b@login.example/"), foreign, "http://login.example/"},
		{"302 with an escape sequence", testPage, say(302, "", "Location", "http://login.example/\xc2\x9b31m"), foreign, "http://login.example/%C2%9B31m"},
		{"302 with a long address", testPage, say(302, "", "Location", "http://login.example/"+strings.Repeat("x", 600)), foreign, testPage},
		{"its own encrypted page", testPage, say(301, "", "Location", "https://check.example/success.txt"), failed, ""},
		{"511", testPage, say(511, "log in"), foreign, testPage},
		{"304", testPage, say(304, ""), failed, ""},
		{"403", testPage, say(403, "success"), failed, ""},
		{"404", testPage, say(404, "success"), failed, ""},
		{"500", testPage, say(500, "success"), failed, ""},
		{"503", testPage, say(503, "success"), failed, ""},
		{"an endless page", testPage, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, foreign, testPage},
		{"an endless header", testPage, say(200, "success", "X-Long", strings.Repeat("x", 2*maxHeader)), failed, ""},
		{"a connection that ends", testPage, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, failed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, asked := web(t, c.url, c.h)
			got := p.run(t.Context(), nil)
			if got.page != c.want || got.portal != c.portal || got.names != succeeded || (got.err == nil) == (c.want == failed) {
				t.Errorf("page %d, portal %q, names %d, %v; want page %d, portal %q", got.page, got.portal, got.names, got.err, c.want, c.portal)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("%d requests: nothing is followed or repeated", n)
			}
		})
	}
}

// TestRequest: what strangers learn of this machine.
func TestRequest(t *testing.T) {
	var got []string
	p, _ := web(t, "http://check.example:8080/x?y=z#success", func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.String()+" "+r.Host)
		for k, v := range r.Header {
			got = append(got, fmt.Sprint(k, v))
		}
		http.SetCookie(w, &http.Cookie{Name: "id", Value: "1"})
		_, _ = io.WriteString(w, "success")
	})
	dialed := ""
	inner := p.Dial
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialed = network + " " + address
		return inner(ctx, network, address)
	}
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:9")
	for range 2 { // the second brings no cookie back
		got = nil
		if c := p.run(t.Context(), nil); c.page != succeeded {
			t.Fatalf("%+v", c)
		}
		want := "GET /x?y=z check.example:8080|Cache-Control[no-cache]|Connection[close]"
		if len(got) == 3 && got[1] > got[2] {
			got[1], got[2] = got[2], got[1]
		}
		if strings.Join(got, "|") != want || dialed != "tcp 192.0.2.80:8080" {
			t.Errorf("asked %q at %s, want %q", got, dialed, want)
		}
	}
}

func TestProbeWithoutAnswer(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.80")
	dead := func(context.Context, string, string) (net.Conn, error) { return nil, errDead }
	resolve := func(addrs []netip.Addr, err error) func(context.Context, string) ([]netip.Addr, error) {
		return func(context.Context, string) ([]netip.Addr, error) { return addrs, err }
	}
	for name, c := range map[string]struct {
		p           Probe
		known       []netip.Addr
		page, names finding
		dialed      int
	}{
		"off":                      {Probe{Dial: dead}, nil, unasked, unasked, 0},
		"no address":               {Probe{URL: ":", Dial: dead}, nil, unasked, unasked, 0},
		"encrypted":                {Probe{URL: "https://check.example/", Dial: dead}, nil, unasked, unasked, 0},
		"names may not be asked":   {Probe{URL: testPage, Dial: dead}, nil, unasked, unasked, 0},
		"but this is an address":   {Probe{URL: "http://192.0.2.80/", Dial: dead}, nil, failed, unasked, 1},
		"IPv6":                     {Probe{URL: "http://[2001:db8::1]/", Dial: dead}, nil, failed, unasked, 1},
		"names are dead":           {Probe{URL: testPage, Resolve: resolve(nil, errDead), Dial: dead}, nil, failed, failed, 0},
		"names are dead, known":    {Probe{URL: testPage, Resolve: resolve(nil, errDead), Dial: dead}, []netip.Addr{addr}, failed, failed, 1},
		"no such name":             {Probe{URL: testPage, Resolve: resolve(nil, nil), Dial: dead}, nil, failed, succeeded, 0},
		"nobody there":             {Probe{URL: testPage, Resolve: resolve([]netip.Addr{addr, addr}, nil), Dial: dead}, nil, failed, succeeded, 2},
		"this very machine":        {Probe{URL: testPage, Resolve: resolve([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:127.0.0.1"), netip.IPv6Loopback(), netip.IPv4Unspecified()}, nil), Dial: dead}, nil, failed, succeeded, 0},
		"more addresses than kept": {Probe{URL: testPage, Resolve: resolve(make4(20), nil), Dial: dead}, nil, failed, succeeded, maxAddrs},
	} {
		t.Run(name, func(t *testing.T) {
			dialed := 0
			p, inner := c.p, c.p.Dial
			p.Dial = func(ctx context.Context, n, a string) (net.Conn, error) { dialed++; return inner(ctx, n, a) }
			got := p.run(t.Context(), c.known)
			if got.page != c.page || got.names != c.names || dialed != c.dialed {
				t.Errorf("page %d, names %d, %d dialled (%v); want %d, %d, %d", got.page, got.names, dialed, got.err, c.page, c.names, c.dialed)
			}
		})
	}
}

func make4(n int) (list []netip.Addr) {
	for i := range n {
		list = append(list, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
	}
	return list
}

// TestProbeTriesTheNextAddress: one silent address does not hide the page.
func TestProbeTriesTheNextAddress(t *testing.T) {
	p, _ := web(t, testPage, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	p.Resolve = func(context.Context, string) ([]netip.Addr, error) {
		return append([]netip.Addr{netip.MustParseAddr("2001:db8::1")}, make4(2)...), nil
	}
	inner := p.Dial
	var tried []string
	p.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
		if tried = append(tried, a); strings.HasPrefix(a, "192") {
			return nil, errDead
		}
		return inner(ctx, n, a)
	}
	if c := p.run(t.Context(), nil); c.page != succeeded || fmt.Sprint(tried) != "[192.0.2.1:80 192.0.2.2:80 [2001:db8::1]:80]" {
		t.Errorf("%+v, tried %v", c, tried)
	}
}

// TestProbeEnds: a server that says nothing, and a check that is called off.
func TestProbeEnds(t *testing.T) {
	p, asked := web(t, testPage, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan checked, 1)
	go func() { done <- p.run(ctx, nil) }()
	for asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case c := <-done:
		if c.page != failed {
			t.Errorf("%+v", c)
		}
	case <-time.After(30 * time.Second):
		t.Error("a check that is called off goes on")
	}
}
