package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatun/api"
	"gatun/attribution"
	"gatun/dns"
	"gatun/intel"
	"gatun/network"
)

// answering is a nameserver that says what the test wants.
type answering struct {
	owner  attribution.Owner
	asked  string
	result dns.Result
	err    error
	cache  []dns.CacheEntry
	gone   []string
}

func (a *answering) Query(_ context.Context, o attribution.Owner, name, qtype string) (dns.Result, error) {
	a.owner, a.asked = o, name+" "+qtype
	return a.result, a.err
}
func (a *answering) Cached(string) []dns.CacheEntry { return a.cache }
func (a *answering) Flush() int                     { a.gone = append(a.gone, "all"); return 9 }
func (a *answering) FlushName(name string) int      { a.gone = append(a.gone, name); return 1 }
func (a *answering) Counters() dns.Counters {
	return dns.Counters{Hits: 3, CacheEntries: 2, CacheBytes: 700}
}

func (a *answering) Nameservers() []dns.Nameserver {
	r, err := dns.ParseResolver("dns://192.0.2.53")
	if err != nil {
		panic(err)
	}
	return []dns.Nameserver{{Resolver: r, Source: dns.SourceSystem, Failing: true, Failures: 6, Latency: 1500 * time.Microsecond, Error: errors.New("timeout")}}
}

// TestQueryAsAProgram: the program that is named asks, as `why` describes it, and no process of
// the machine.
func TestQueryAsAProgram(t *testing.T) {
	a := &answering{result: dns.Result{
		Name: "a.example", Type: "A", Rcode: "NOERROR", Records: []string{"x"}, TTL: 90 * time.Second, Cached: true, Resolver: "dns://192.0.2.53", Duration: 1500 * time.Microsecond,
		Decision: network.Decision{Verdict: network.Accept, Stage: network.StageAfterIntel, Reason: "r", Code: "c", Setting: "s", Rule: network.RuleRef{Text: "+ *", File: "f", Line: 3, Col: 4}, List: "ads"},
	}}
	got, err := nameControl{a}.Query(t.Context(), api.DNSQuestion{Name: "a.example", Type: "A", Program: "/usr/bin/curl", User: "4711"})
	if err != nil || a.asked != "a.example A" {
		t.Fatal(err, a.asked)
	}
	p := a.owner.Process
	if p.Path != "/usr/bin/curl" || p.Name != "curl" || p.UID != 4711 || p.PID != 0 || a.owner.Confidence != attribution.Exact {
		t.Errorf("asked as %+v", a.owner)
	}
	if got.Outcome != api.DNSAnswered || got.TTL != 90 || got.DurationMS != 1.5 || got.Verdict != "accept" || got.Stage != "after-intel" || got.ReasonCode != "c" ||
		got.Rule.Line != 3 || got.List != "ads" || !got.Cached || got.Program != "/usr/bin/curl" {
		t.Errorf("got %+v", got)
	}
	if _, err := (nameControl{a}).Query(t.Context(), api.DNSQuestion{Name: "a.example"}); err != nil || a.owner.Process.Kind == attribution.KindProgram {
		t.Errorf("%v: nobody was named, and %+v asks", err, a.owner.Process)
	}
}

func TestQueryOutcomes(t *testing.T) {
	for _, c := range []struct {
		verdict network.Verdict
		rcode   string
		want    string
	}{
		{network.Accept, "NOERROR", api.DNSAnswered},
		{network.Accept, "NXDOMAIN", api.DNSAnswered},
		{network.Accept, "SERVFAIL", api.DNSFailed},
		{network.Accept, "REFUSED", api.DNSFailed},
		{network.Accept, "", api.DNSFailed},
		{network.Block, "NXDOMAIN", api.DNSBlocked},
		{network.Block, "NOERROR", api.DNSBlocked}, // blockStyle zero
		{network.Drop, "", api.DNSBlocked},
		{network.Undecided, "NOERROR", api.DNSBlocked},
	} {
		a := &answering{result: dns.Result{Rcode: c.rcode, Decision: network.Decision{Verdict: c.verdict}}}
		if got, err := (nameControl{a}).Query(t.Context(), api.DNSQuestion{}); err != nil || got.Outcome != c.want || got.Rule != nil {
			t.Errorf("%v %s: got %s, %v; want %s", c.verdict, c.rcode, got.Outcome, err, c.want)
		}
	}
	a := &answering{err: errors.New("no such type")}
	if _, err := (nameControl{a}).Query(t.Context(), api.DNSQuestion{}); !errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v", err)
	}
	if _, err := (nameControl{a}).Query(t.Context(), api.DNSQuestion{Program: "/x", User: "no such user here"}); !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), "--user") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (nameControl{a}).Query(ctx, api.DNSQuestion{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestCacheAndItsRecords(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	a := &answering{cache: []dns.CacheEntry{
		{Name: "example.org", Type: "A", Rcode: "NOERROR", Expires: at, Resolver: "dns://192.0.2.53", Scope: "configured", Shared: true},
		{Name: "example.org", Type: "A", Rcode: "NOERROR", Expires: at, Scope: "configured"},
		{Name: "notexample.org", Type: "A", Stale: true, Shared: true},
		{Name: "www.example.org", Type: "TXT", Shared: true},
	}}
	c := nameControl{a}
	for name, want := range map[string]int{"": 4, "example.org": 3, "Example.ORG.": 3, "www.example.org": 1, "xample.org": 0, ".": 4} {
		if got := c.Cached(name); len(got) != want {
			t.Errorf("%q: got %+v, want %d", name, got, want)
		}
	}
	if got := c.Cached("example.org"); got[0].Scope != "configured" || got[1].Scope != "profile, configured" {
		t.Errorf("got %+v", got)
	}
	if c.Forget("") != 9 || c.Forget(".") != 9 || c.Forget("Example.org.") != 1 || c.Forget("bücher.example") != 1 ||
		!slices.Equal(a.gone, []string{"all", "all", "example.org", "xn--bcher-kva.example"}) {
		t.Errorf("flushed %v", a.gone)
	}
	st := c.Nameserver()
	if st.Resolvers[0].URL != "dns://192.0.2.53:53" && st.Resolvers[0].URL != "dns://192.0.2.53" || st.Resolvers[0].Source != "system" || !st.Resolvers[0].Failing || st.Resolvers[0].Error != "timeout" || st.Resolvers[0].LatencyMS != 1.5 || st.Resolvers[0].Failures != 6 || st.Counters["hits"] != 3 || st.Cache.Bytes != 700 {
		t.Errorf("got %+v", st)
	}
	var keys []string
	for _, r := range dnsRecords(c) {
		keys = append(keys, r.Key)
	}
	if want := "[cache/example.org/A cache/example.org/A/2 cache/notexample.org/A cache/www.example.org/TXT resolvers/1]"; fmt.Sprint(keys) != want {
		t.Errorf("got %v, want %s", keys, want)
	}
}

func TestHostName(t *testing.T) {
	for text, want := range map[string]string{
		"Ads.Example.": "ads.example", "_dmarc.ads.example": "_dmarc.ads.example", "bücher.example": "xn--bcher-kva.example", "example": "example",
		"https://ads.example/": "", "ads.example:443": "", "two words": "", "a..example": "", "192.0.2.1:443": "", "192.0.2": "", "": "", ".": "",
		strings.Repeat("a", 64) + ".example": "", strings.Repeat("a.", 130) + "example": "",
	} {
		if got, ok := hostName(text); ok != (want != "") || ok && got != want {
			t.Errorf("%q: got %q %v, want %q", text, got, ok, want)
		}
	}
}

// TestListControl asks a real store.
func TestListControl(t *testing.T) {
	dir := t.TempDir()
	good, big := writeIn(t, dir, "ads.txt", "0.0.0.0 ads.example\n0.0.0.0 x.example\n"), writeIn(t, dir, "big.txt", manyNames(2000))
	store := intel.New(intel.Options{})
	spec := intel.Spec{Lists: []intel.ListSpec{
		{ID: "ads", Category: "TRAC", Format: "hosts", Path: good, Source: "gatun.yaml:7"}, {ID: "big", Category: "BAD", Format: "domains", Path: big},
		{ID: "gone", Category: "BAD", Format: "domains", Path: dir + "/none"},
	}}
	if err := store.Configure(spec); err != nil {
		t.Fatal(err)
	}
	told := 0
	c := listControl{store, func() { told++ }}
	all := c.Lists()
	if len(all) != 3 || all[0].Entries != 2 || all[0].Position != "gatun.yaml:7" || all[0].Updated == nil || all[2].Error == "" || all[2].Updated != nil {
		t.Fatalf("got %+v", all)
	}
	m, err := c.OnLists("Sub.ADS.example.")
	if err != nil || len(m.Matches) != 1 || m.Matches[0].List != "ads" || m.Matches[0].Line != 1 || m.Matches[0].Entry != "ads.example" || !m.Matches[0].Above {
		t.Errorf("%v %+v", err, m)
	}
	if m, err := c.OnLists("192.0.2.1"); err != nil || len(m.Matches) != 0 {
		t.Errorf("%v %+v", err, m)
	}
	if _, err := c.OnLists("https://ads.example/"); !errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v", err)
	}
	writeIn(t, dir, "big.txt", manyNames(10))
	if err := c.Update(t.Context(), api.ListUpdate{IDs: []string{"big"}}); err != nil || c.Lists()[1].Entries != 2000 || c.Lists()[1].Error == "" {
		t.Errorf("%v: a list that may have been cut off was taken: %+v", err, c.Lists()[1])
	}
	if err := c.Update(t.Context(), api.ListUpdate{IDs: []string{"big"}, Smaller: true}); err != nil || c.Lists()[1].Entries != 10 || c.Lists()[1].Error != "" {
		t.Errorf("%v: %+v", err, c.Lists()[1])
	}
	if err := c.Update(t.Context(), api.ListUpdate{IDs: []string{"no", "big", "none"}}); !errors.Is(err, api.ErrNotFound) || strings.Count(err.Error(), "there is no filter list") != 2 {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Update(ctx, api.ListUpdate{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if told != 4 {
		t.Errorf("watchers were told %d times", told)
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "host%d.example\n", i)
	}
	return b.String()
}

func writeIn(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
