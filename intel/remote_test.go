package intel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// answering is a server of intelligence that is a function.
type answering func(r *http.Request) (*http.Response, error)

func (f answering) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f(r)
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

func says(code int, body string) (*http.Response, error) {
	return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}}, nil
}

func remote(f answering, change func(*RemoteOptions)) *Remote {
	o := RemoteOptions{URL: "https://u:secret@stamp.example/v1?key=secret", Client: &http.Client{Transport: f}}
	if change != nil {
		change(&o)
	}
	return NewRemote(o)
}

func TestRemote(t *testing.T) {
	var asked []string
	r := remote(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.Method+" "+r.URL.Path+" "+r.URL.Query().Get("name")+" "+r.URL.Query().Get("key")+r.Header.Get("Cookie"))
		if r.URL.Query().Get("name") == "free.example" {
			return says(404, "")
		}
		return says(200, `{"lists":[{"id":"far","category":"ADS"},{"id":"a/b","category":"MAL"},{"id":"own","category":"CUSTOM"},{"id":"x","category":"?"}],
			"country":"de","continent":"Moon","asn":64496,"as_owner":"Net\u001b[31m","more":[1]}`)
	}, nil)
	s := New(Options{Remote: r})
	addr, private := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("10.0.0.1")
	if got := s.Stamp("bad.example", nil, addr); got.Lists != nil {
		t.Fatalf("before anybody asked: %+v", got)
	}
	for range 2 {
		r.Fetch(context.Background(), "bad.example")
		r.Fetch(context.Background(), "free.example")
	}
	want := []string{"GET /v1 bad.example secret", "GET /v1 free.example secret"}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Error(diff)
	}
	match := Match{ID: "far", Category: "ADS", Source: "https://stamp.example/v1", Name: "bad.example"}
	got := s.Stamp("bad.example", nil, addr)
	if diff := cmp.Diff(&Stamp{Lists: []Match{match}, Country: "DE", Continent: "EU", ASN: 64496, ASOwner: "Net[31m"}, got); diff != "" {
		t.Error(diff)
	}
	if got := s.Stamp("bad.example", nil, private); got.Country != "" || len(got.Lists) != 1 {
		t.Errorf("a local address has no country: %+v", got)
	}
	if got := s.Stamp("bad.example", nil, netip.Addr{}); got.Country != "" || len(got.Lists) != 1 {
		t.Errorf("without an address: %+v", got)
	}
	match.Alias = true
	if diff := cmp.Diff([]Match{match}, s.Stamp("free.example", []string{"bad.example"}, addr).Lists); diff != "" {
		t.Errorf("an alias: %s", diff)
	}
	if st := r.Status(); st.Asked != 2 || st.Failed != 0 || st.Known != 2 || st.URL != "https://stamp.example/v1" {
		t.Errorf("%+v", st)
	}
	r.Configure("https://other.example/")
	if got := s.Stamp("bad.example", nil, addr); len(got.Lists) != 0 || !r.Wants("bad.example") {
		t.Errorf("another server: %+v", got)
	}
	r.Configure("")
	if r.Wants("bad.example") || r.Status().URL != "" {
		t.Error("nobody is to be asked")
	}
}

// TestRemoteMerge: what is known here comes first, and is not changed.
func TestRemoteMerge(t *testing.T) {
	country, asn := geoFiles(t)
	dir := t.TempDir()
	write(t, dir+"/l", "bad.example\n")
	r := remote(func(*http.Request) (*http.Response, error) {
		return says(200, `{"lists":[{"id":"far","category":"MAL"}],"country":"US","asn":1}`)
	}, nil)
	s := New(Options{Remote: r})
	if err := s.Configure(Spec{Country: country, ASN: asn, Lists: []ListSpec{{ID: "l", Category: "BAD", Format: "domains", Path: dir + "/l"}}}); err != nil {
		t.Fatal(err)
	}
	r.Fetch(context.Background(), "bad.example")
	addr := netip.MustParseAddr("198.51.100.7")
	got := s.Stamp("bad.example", nil, addr)
	if got.Country != "DE" || got.ASN != 64500 || len(got.Lists) != 2 || got.Lists[0].ID != "l" || got.Lists[1].ID != "far" {
		t.Errorf("%+v", got)
	}
	if again := s.Stamp("", nil, addr); len(again.Lists) != 0 || again.Country != "DE" {
		t.Errorf("a shared stamp was changed: %+v", again)
	}
}

func TestRemoteIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests atomic.Int64
		r := remote(func(*http.Request) (*http.Response, error) {
			requests.Add(1)
			time.Sleep(100 * time.Millisecond)
			return says(200, `{"lists":[{"id":"far","category":"MAL"}]}`)
		}, nil)
		s := New(Options{Remote: r})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				r.Fetch(t.Context(), "a.example")
				if len(s.Stamp("a.example", nil, netip.Addr{}).Lists) != 1 {
					t.Error("returned before it is known")
				}
			})
		}
		wg.Wait()
		if n := requests.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
		time.Sleep(time.Hour + time.Second)
		if len(s.Stamp("a.example", nil, netip.Addr{}).Lists) != 0 || !r.Wants("a.example") {
			t.Error("an answer holds for ever")
		}
	})
}

// TestRemoteIsLate: nobody waits longer than the deadline; what comes late is for the next one; what
// never comes is given up and remembered for a short time.
func TestRemoteIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delay := time.Second
		var requests atomic.Int64
		r := remote(func(req *http.Request) (*http.Response, error) {
			requests.Add(1)
			select {
			case <-time.After(delay):
				return says(200, `{"lists":[{"id":"far","category":"MAL"}]}`)
			case <-req.Context().Done():
				return nil, req.Context().Err()
			}
		}, nil)
		begin := time.Now()
		r.Fetch(t.Context(), "late.example")
		if took := time.Since(begin); took != 300*time.Millisecond {
			t.Errorf("waited %v", took)
		}
		time.Sleep(time.Second)
		if r.Wants("late.example") {
			t.Error("what came late is lost")
		}
		delay = time.Hour
		r.Fetch(t.Context(), "never.example")
		time.Sleep(5 * time.Second)
		if n := requests.Load(); n != 2 || r.Wants("never.example") {
			t.Errorf("%d requests; a failure is not remembered: %+v", n, r.Status())
		}
		time.Sleep(10 * time.Second)
		if st := r.Status(); !r.Wants("never.example") || st.Failed != 1 || st.Late != 2 || st.Error == "" {
			t.Errorf("a failure is remembered too long: %+v", st)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin = time.Now()
		if r.Fetch(ctx, "gone.example"); time.Since(begin) != 0 {
			t.Error("the program is gone and is waited for")
		}
		time.Sleep(time.Minute)
	})
}

// TestRemoteBounds: no flood of names makes it ask more at once, or remember more, than it may.
func TestRemoteBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		r := remote(func(*http.Request) (*http.Response, error) {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(time.Second)
			now.Add(-1)
			return says(404, "")
		}, func(o *RemoteOptions) { o.Most = 100 })
		for round := range 20 {
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() { r.Fetch(t.Context(), fmt.Sprintf("a%d.b%d.example", i, round)) })
			}
			wg.Wait()
			time.Sleep(2 * time.Second)
		}
		if most.Load() != remoteAtOnce || r.Status().Known > 100 {
			t.Errorf("%d at once, %d names known", most.Load(), r.Status().Known)
		}
	})
}

func TestRemoteHostile(t *testing.T) {
	answers := map[string]answering{
		"html":   func(*http.Request) (*http.Response, error) { return says(200, "<html>") },
		"types":  func(*http.Request) (*http.Response, error) { return says(200, `{"lists":"all"}`) },
		"number": func(*http.Request) (*http.Response, error) { return says(200, `{"asn":-1}`) },
		"500": func(*http.Request) (*http.Response, error) {
			return says(500, `{"lists":[{"id":"far","category":"MAL"}]}`)
		},
		"large": func(*http.Request) (*http.Response, error) { return says(200, strings.Repeat(" ", remoteBytes)+"{}") },
		"away":  func(*http.Request) (*http.Response, error) { return nil, errors.New("no route to host") },
		"unfinished": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader("{"), failing{errors.New("reset")}))}, nil
		},
	}
	for name, f := range answers {
		r := remote(f, nil)
		r.Fetch(context.Background(), "a.example")
		if st := r.Status(); st.Failed != 1 || st.Error == "" || strings.Contains(st.Error, "secret") {
			t.Errorf("%s: %+v", name, st)
		}
		if got := New(Options{Remote: r}).Stamp("a.example", nil, netip.Addr{}); got.Lists != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	many := `{"lists":[` + strings.Repeat(`{"id":"far","category":"MAL"},`, 500) + `{"id":"far","category":"MAL"}],"ttl":1e300}`
	r := remote(func(*http.Request) (*http.Response, error) { return says(200, many) }, nil)
	r.Fetch(context.Background(), "a.example")
	if n := len(New(Options{Remote: r}).Stamp("a.example", nil, netip.Addr{}).Lists); n != remoteLists {
		t.Errorf("%d lists", n)
	}
}

// TestRemoteStaysEncrypted: a server cannot lead to where everybody on the way sees the names.
func TestRemoteStaysEncrypted(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"lists":[{"id":"far","category":"MAL"}]}`)
	}))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	defer secure.Close()
	r := NewRemote(RemoteOptions{URL: secure.URL, Client: secure.Client(), Deadline: 5 * time.Second})
	r.Fetch(context.Background(), "a.example")
	secure.Client().CloseIdleConnections()
	if st := r.Status(); st.Failed != 1 || !strings.Contains(st.Error, "without encryption") {
		t.Errorf("%+v", st)
	}
}

// TestRemotePrivacy: names that are nobody's business are not told.
func TestRemotePrivacy(t *testing.T) {
	r := remote(func(r *http.Request) (*http.Response, error) {
		t.Errorf("asked for %s", r.URL)
		return says(404, "")
	}, func(o *RemoteOptions) { o.Skip = func(name string) bool { return strings.HasSuffix(name, ".lan") } })
	r.Fetch(context.Background(), "printer.lan")
	r.Fetch(context.Background(), "")
}

func FuzzRemote(f *testing.F) {
	f.Add([]byte(`{"lists":[{"id":"far","category":"MAL"}],"country":"DE","asn":1,"ttl":-5}`))
	f.Add([]byte(`{"ttl":1e999}`))
	r := remote(nil, nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, keep, err := r.read(data, "p", "a.example")
		if err != nil {
			return
		}
		if keep < remoteKeepMin || keep > remoteKeepMax || len(s.Lists) > remoteLists || len(s.Country) != 0 && len(s.Country) != 2 {
			t.Fatalf("%+v %v", s, keep)
		}
		for _, m := range s.Lists {
			if !validID(m.ID) || !KnownCategory(m.Category) {
				t.Fatalf("%+v", m)
			}
		}
	})
}
