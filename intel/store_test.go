package intel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Duration(len(text)) * time.Second) // another mark, however fast the test is
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
}

// names makes a list of that many names.
func names(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "host%d.example\n", i)
	}
	return b.String()
}

// ids are the lists of matches as "id name", with "above" and "alias".
func ids(matches []Match) []string {
	var all []string
	for _, m := range matches {
		s := m.ID + " " + m.Name
		if m.Above {
			s += " above"
		}
		if m.Alias {
			s += " alias"
		}
		all = append(all, s)
	}
	return all
}

func TestStamp(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/ads", "0.0.0.0 ads.example\n0.0.0.0 tracker.example.org\n")
	write(t, dir+"/zone", "||zone.example^\n||ads.example^\n@@||good.zone.example^\n")
	write(t, dir+"/ips", "192.0.2.0/24\n192.0.2.7\n2001:db8::/32\n")
	s := New(Options{})
	if got := s.Stamp("ads.example", nil, netip.Addr{}); got == nil || got.Lists != nil {
		t.Fatalf("nothing configured: %+v", got)
	}
	if err := s.Configure(Spec{Lists: []ListSpec{
		{ID: "ads", Category: "ADS", Format: "hosts", Path: dir + "/ads", Source: "gatun.yaml:7"},
		{ID: "zone", Category: "TRAC", Format: "adblock", Path: dir + "/zone"},
		{ID: "ips", Category: "MAL", Format: "cidr", Path: dir + "/ips"},
	}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		domain, cnames, addr string
		want                 []string
	}{
		{"ads.example", "", "", []string{"ads ads.example", "zone ads.example"}},
		{"a.b.ads.example", "", "", []string{"ads ads.example above", "zone ads.example"}},
		{"ADS.Example.", "", "", []string{"ads ads.example", "zone ads.example"}},
		{"bads.example", "", "", nil},
		{"example", "", "", nil},
		{"zone.example", "", "", []string{"zone zone.example"}},
		{"www.good.zone.example", "", "", nil},
		{"good.zone.example", "x.ads.example", "", []string{"ads ads.example above alias", "zone ads.example alias"}},
		{"clean.example", "c.example cname.tracker.example.org", "", []string{"ads tracker.example.org above alias"}},
		{"", "", "192.0.2.7", []string{"ips 192.0.2.7/32", "ips 192.0.2.0/24"}},
		{"", "", "::ffff:192.0.2.8", []string{"ips 192.0.2.0/24"}},
		{"", "", "192.0.3.1", nil},
		{"ads.example", "", "2001:db8::1%eth0", []string{"ads ads.example", "zone ads.example", "ips 2001:db8::/32"}},
		{"..", "", "", nil},
		{strings.Repeat("a", 300) + ".ads.example", "", "", []string{"ads ads.example above", "zone ads.example"}},
	} {
		var addr netip.Addr
		if c.addr != "" {
			addr = netip.MustParseAddr(c.addr)
		}
		got := s.Stamp(c.domain, strings.Fields(c.cnames), addr)
		if diff := cmp.Diff(c.want, ids(got.Lists)); diff != "" {
			t.Errorf("%+v: %s", c, diff)
		}
	}
	if got, want := s.Matches(" tracker.example.ORG "), (Match{ID: "ads", Category: "ADS", Source: dir + "/ads", Line: 2, Name: "tracker.example.org"}); len(got) != 1 || got[0] != want {
		t.Errorf("Matches: %+v, want %+v", got, want)
	}
	if got := ids(s.Matches("192.0.2.9")); len(got) != 1 || got[0] != "ips 192.0.2.0/24" {
		t.Errorf("Matches of an address: %v", got)
	}
	st := s.Status()
	if st[0].Position != "gatun.yaml:7" || st[0].Entries != 2 || st[1].Exceptions != 1 || st[2].Entries != 3 || st[0].Error != "" || st[0].Updated.IsZero() {
		t.Errorf("Status: %+v", st)
	}
}

// TestPolicyFaults: all faults come at once, and nothing changes.
func TestPolicyFaults(t *testing.T) {
	s := New(Options{})
	err := s.Configure(Spec{Lists: []ListSpec{
		{ID: "a/b", Format: "hosts", Path: "x"}, {ID: "b", Format: "csv", Path: "x"}, {ID: "c", Format: "hosts"}, {ID: "d", Format: "hosts", Path: "x", URL: "y"},
		{ID: "e", Format: "hosts", URL: "ftp://x"}, {ID: "f", Format: "hosts", Path: "x", Checksum: "md5:1"}, {ID: "g", Format: "ips", Path: "x"}, {ID: "g", Format: "ips", Path: "x"},
	}})
	if err == nil || strings.Count(err.Error(), "\n") != 6 {
		t.Errorf("want 7 faults, got %v", err)
	}
	if s.Generation() != 0 || len(s.Status()) != 0 {
		t.Error("a wrong policy changed something")
	}
}

func TestLastGoodCopyOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, names(90_000))
	changes := 0
	s := New(Options{Changed: func() { changes++ }})
	spec := Spec{Lists: []ListSpec{{ID: "l", Category: "ADS", Format: "domains", Path: path}}}
	if err := s.Configure(spec); err != nil {
		t.Fatal(err)
	}
	generation := s.Generation()
	for _, c := range []struct{ text, want string }{
		{"", "it is empty, and had 90000"},
		{names(30_000), "it may have been cut off"},
		{"<html>", "a web page"},
		{strings.Repeat("\x00", 5000), "binary"},
		{strings.Repeat("x", 1<<20), "none of its 1 lines"},
	} {
		write(t, path, c.text)
		if err := s.Configure(spec); err != nil {
			t.Fatal(err)
		}
		st := s.Status()[0]
		if st.Entries != 90_000 || !strings.Contains(st.Error, c.want) || !strings.Contains(st.Error, "last good copy") || len(s.Matches("host89999.example")) != 1 {
			t.Errorf("%.20q: %+v, want %q", c.text, st, c.want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.pollFiles()
	if st := s.Status()[0]; st.Entries != 90_000 || !strings.Contains(st.Error, "no such file") && !strings.Contains(st.Error, "cannot find") {
		t.Errorf("removed: %+v", st)
	}
	if s.Generation() != generation || changes != 1 {
		t.Errorf("generation %d, want %d; %d changes, want 1", s.Generation(), generation, changes)
	}
	write(t, path, names(30_000))
	if err := s.Update(t.Context()); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("updating all takes a list that shrank: %v", err)
	}
	if err := s.Renew(t.Context(), "l"); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("renewing takes a list that shrank: %v", err)
	}
	for _, f := range []func(context.Context, ...string) error{s.Update, s.Renew} {
		if err := f(t.Context(), "l", "nolist"); !errors.Is(err, ErrNoList) || !strings.Contains(err.Error(), `no filter list "nolist"`) {
			t.Errorf("an unknown list: %v", err)
		}
	}
	if err := s.Update(t.Context(), "l"); err != nil || s.Status()[0].Entries != 30_000 || s.Generation() == generation {
		t.Errorf("updating by name: %v, %+v", err, s.Status())
	}
	sum := sha256.Sum256([]byte("a.example\n"))
	write(t, path, "b.example\n")
	spec.Lists[0].Checksum = fmt.Sprintf("sha256:%X", sum)
	if err := s.Configure(spec); err != nil || !strings.Contains(s.Status()[0].Error, "another checksum") {
		t.Errorf("checksum: %+v", s.Status())
	}
	write(t, path, "a.example\n")
	s.pollFiles()
	if st := s.Status()[0]; st.Entries != 1 || st.Error != "" {
		t.Errorf("checksum: %+v", st)
	}
}

// server is a web server in memory.
type server struct {
	mu      sync.Mutex
	body    string
	header  http.Header
	status  int
	fault   error
	err     error // while the body is read
	asked   []http.Header
	at      []time.Time
	finally string // URL after redirects
}

func (w *server) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked, w.at = append(w.asked, r.Header.Clone()), append(w.at, time.Now())
	if w.fault != nil {
		return nil, w.fault
	}
	resp := &http.Response{StatusCode: w.status, Header: w.header.Clone(), Request: r, ContentLength: -1}
	if resp.StatusCode == 0 {
		resp.StatusCode = http.StatusOK
	}
	if tag := w.header.Get("Etag"); tag != "" && r.Header.Get("If-None-Match") == tag {
		resp.StatusCode = http.StatusNotModified
	}
	if w.finally != "" {
		resp.Request = r.Clone(r.Context())
		resp.Request.URL.Scheme = w.finally
	}
	var body io.Reader = strings.NewReader(w.body)
	if w.err != nil {
		body = io.MultiReader(body, failing{w.err})
	}
	resp.Body = io.NopCloser(body)
	return resp, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "lists")
		web := &server{body: names(2000), header: http.Header{"Etag": {`"v1"`}, "Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}}}
		o := Options{CacheDir: dir, Client: &http.Client{Transport: web}, MaxBytes: 1 << 20}
		spec := Spec{Lists: []ListSpec{{ID: "mal", Category: "MAL", Format: "domains", URL: "https://user:secret@lists.example/mal.txt?key=secret", Every: 10 * time.Hour}}}
		s := New(o)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		if err := s.Configure(spec); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		st := s.Status()[0]
		if st.Entries != 2000 || st.Source != "https://lists.example/mal.txt" || st.Next.Sub(time.Now()) < 9*time.Hour || st.Next.Sub(time.Now()) > 11*time.Hour {
			t.Fatalf("at the start: %+v", st)
		}
		time.Sleep(11*time.Hour + time.Minute)
		synctest.Wait()
		if n := len(web.asked); n != 2 || web.asked[1].Get("If-None-Match") != `"v1"` || web.asked[1].Get("If-Modified-Since") == "" || s.Generation() != 2 {
			t.Fatalf("asked %d times, last %v", n, web.asked)
		}
		if st2 := s.Status()[0]; !st2.Updated.Equal(st.Updated) || !st2.Checked.After(st.Checked) {
			t.Errorf("not modified: %+v, was %+v", st2, st)
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		badAnswers(t, s, web)
		restarted := New(o)
		if err := restarted.Configure(spec); err != nil || restarted.Status()[0].Entries != 2000 || restarted.Status()[0].Next.IsZero() {
			t.Errorf("from the cache: %v, %+v", err, restarted.Status())
		}
		web.header.Set("Etag", `"v2"`)
		web.body = names(2100)
		if err := restarted.Update(t.Context()); err != nil || restarted.Status()[0].Entries != 2100 || web.asked[len(web.asked)-1].Get("If-None-Match") != `"v1"` {
			t.Errorf("after a restart: %v, %+v", err, restarted.Status())
		}
		spoilCache(t, o, spec, dir)
	})
}

// badAnswers: whatever the server says, the last good copy stays, with the reason and without the
// secrets of the URL.
func badAnswers(t *testing.T, s *Store, web *server) {
	t.Helper()
	good := web.body
	web.header.Del("Etag")
	for name, c := range map[string]struct {
		spoil func()
		want  string
	}{
		"empty":     {func() { web.body = "" }, "it is empty"},
		"truncated": {func() { web.body = good[:len(good)/3] }, "cut off"},
		"broken":    {func() { web.err = io.ErrUnexpectedEOF }, "unexpected EOF"},
		"huge":      {func() { web.body = strings.Repeat("a", 1<<20+1) }, "too large"},
		"page":      {func() { web.body = "<!DOCTYPE html>" }, "web page"},
		"404":       {func() { web.status = 404 }, "404 Not Found"},
		"304":       {func() { web.status = 204 }, "204"},
		"refused":   {func() { web.fault = errors.New("connection refused") }, "connection refused"},
		"downgrade": {func() { web.finally = "http" }, "without encryption"},
	} {
		web.body, web.err, web.status, web.fault, web.finally = good, nil, 0, nil, ""
		c.spoil()
		err := s.Update(t.Context())
		st := s.Status()[0]
		if err == nil || !strings.Contains(st.Error, c.want) || st.Entries != 2000 || strings.Contains(st.Error+err.Error(), "secret") {
			t.Errorf("%s: %v, %+v, want %q", name, err, st, c.want)
		}
		if wait := st.Next.Sub(time.Now()); wait < 50*time.Second || wait > 70*time.Minute {
			t.Errorf("%s: tried again after %v", name, wait)
		}
	}
	web.body, web.err, web.status, web.fault, web.finally = good, nil, 0, nil, ""
	if err := s.Update(t.Context()); err != nil || s.Status()[0].Error != "" {
		t.Errorf("a good answer at last: %v %+v", err, s.Status())
	}
	web.header.Set("Etag", `"v1"`)
	if err := s.Update(t.Context(), "mal"); err != nil {
		t.Error(err)
	}
}

// spoilCache: a copy that is not the one that was written counts as none.
func spoilCache(t *testing.T, o Options, spec Spec, dir string) {
	t.Helper()
	if left, err := filepath.Glob(dir + "/.*"); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v %v", left, err)
	}
	if err := os.WriteFile(dir+"/mal.list", []byte("evil.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(o)
	if err := s.Configure(spec); err != nil || s.Status()[0].Entries != 0 || !s.Status()[0].Next.IsZero() {
		t.Errorf("a changed copy: %v %+v", err, s.Status())
	}
	spec.Lists[0].URL = "https://other.example/"
	if err := s.Configure(spec); err != nil || s.Status()[0].Entries != 0 {
		t.Errorf("another URL: %v %+v", err, s.Status())
	}
}

// TestRetryOnAnotherNetwork: what could not be fetched is not left to the next hour, what could is
// left alone.
func TestRetryOnAnotherNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := &server{fault: errors.New("no route to host")}
		s := New(Options{Client: &http.Client{Transport: web}})
		if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Format: "hosts", URL: "http://lists.example/"}}}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(5 * time.Hour)
		web.mu.Lock()
		asked := len(web.at)
		web.fault, web.body = nil, "0.0.0.0 ads.example\n"
		web.mu.Unlock()
		s.Retry()
		time.Sleep(5 * time.Second)
		if got := s.Status()[0]; got.Entries != 1 || got.Error != "" {
			t.Errorf("%+v", got)
		}
		for range 10 {
			s.Retry()
			time.Sleep(5 * time.Second)
		}
		web.mu.Lock()
		if len(web.at) != asked+1 {
			t.Errorf("asked %d times more, want once", len(web.at)-asked)
		}
		web.mu.Unlock()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRetry: a server that is down is asked again after longer and longer times, at most hourly.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := &server{fault: errors.New("no route to host")}
		s := New(Options{Client: &http.Client{Transport: web}})
		if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Format: "hosts", URL: "http://lists.example/"}}}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), 24*time.Hour)
		defer stop()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if n := len(web.at); n < 25 || n > 35 {
			t.Errorf("asked %d times in a day, want about 29", n)
		}
		if first, last := web.at[1].Sub(web.at[0]), web.at[len(web.at)-1].Sub(web.at[len(web.at)-2]); first > 70*time.Second || last < 50*time.Minute || last > 70*time.Minute {
			t.Errorf("after %v first, %v last", first, last)
		}
	})
}

// TestUnreadable: a file that could not be read is tried again, and changes nothing until then.
func TestUnreadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	s := New(Options{})
	if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Format: "domains", Path: path}}}); err != nil {
		t.Fatal(err)
	}
	if st := s.Status()[0]; st.Error == "" || strings.Contains(st.Error, "last good") {
		t.Errorf("%+v", st)
	}
	generation := s.Generation()
	s.pollFiles()
	if s.Generation() != generation {
		t.Error("looking for it changes something")
	}
	write(t, path, "a.example\n")
	s.pollFiles()
	if st := s.Status()[0]; st.Error != "" || st.Entries != 1 || s.Generation() != generation+1 {
		t.Errorf("it came: %+v", st)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if s.pollFiles(); !strings.Contains(s.Status()[0].Error, "not a file") || len(s.Matches("a.example")) != 1 {
		t.Errorf("a directory: %+v", s.Status())
	}
}

// TestEnd: a download that the end of the program cuts off says nothing about the list.
func TestEnd(t *testing.T) {
	s := New(Options{Client: &http.Client{Transport: hanging{}}})
	if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Format: "hosts", URL: "http://lists.example/"}}}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	stop()
	if err := <-done; err != nil || s.Status()[0].Error != "" {
		t.Errorf("%v, %+v", err, s.Status())
	}
}

// hanging is a server that never answers.
type hanging struct{}

func (hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestRunReloadsFiles: a file that a person changes is read without a command.
func TestRunReloadsFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "list")
		write(t, path, "a.example\n")
		s := New(Options{})
		if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Format: "domains", Path: path}}}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		write(t, path, "a.example\nbb.example\n")
		time.Sleep(pollFiles + time.Second)
		synctest.Wait()
		if got := s.Matches("bb.example"); len(got) != 1 {
			t.Errorf("after %v: %v, %+v", pollFiles, got, s.Status())
		}
		stop()
		<-done
	})
}

// TestConcurrent reads while lists change; the race detector watches.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, names(50))
	s := New(Options{})
	spec := Spec{Lists: []ListSpec{{ID: "l", Format: "domains", Path: path}}}
	if err := s.Configure(spec); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := s.Stamp("www.host7.example", nil, netip.Addr{}); len(got.Lists) != 1 {
					t.Errorf("lost while the list changed: %+v", got)
					return
				}
				s.Status()
			}
		})
	}
	for i := range 100 {
		write(t, path, names(50+i%7))
		switch i % 3 {
		case 0:
			s.pollFiles()
		case 1:
			if err := s.Update(t.Context(), "l"); err != nil {
				t.Error(err)
			}
		default:
			if err := s.Configure(spec); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	wg.Wait()
}

func TestCategories(t *testing.T) {
	if got := Expand("NSFW"); len(got) != 5 || got[0] != "NSFW" {
		t.Errorf("NSFW: %v", got)
	}
	if got := Expand("ads"); len(got) != 1 || got[0] != "ads" {
		t.Errorf("ads: %v", got)
	}
	if !KnownCategory("PHISH") || !KnownCategory(Unbreak) || KnownCategory("ads") || KnownCategory("") {
		t.Error("KnownCategory")
	}
	seen := map[string]bool{}
	for _, id := range Categories() {
		if whole := PartOf(id); whole != "" && !slices.Contains(Expand(whole), id) || whole == "" && Expand(id)[0] != id {
			t.Errorf("%s is part of %q, which is made of %v", id, whole, Expand(whole))
		}
		for _, part := range Expand(id)[1:] {
			if PartOf(part) != id {
				t.Errorf("%s is part of %q, want %s", part, PartOf(part), id)
			}
		}
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
	}
}
