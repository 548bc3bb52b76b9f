package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatun/config"
	"gatun/intel"
	"gatun/profiles"
	"gatun/tun/route"
)

func configOf(t *testing.T, text string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file, CheckRule: profiles.CheckRule})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestIntelSpec: what a file says of lists is what the store is told, with names and places for the
// custom ones.
func TestIntelSpec(t *testing.T) {
	cfg := configOf(t, `version: 1
filter:
  customLists: [/etc/own.txt, "https://lists.example/a b/own.txt?key=1", /srv/own.txt, /etc/own.txt, "https://lists.example/"]
lists:
  - {id: custom-own.txt, category: BAD, format: hosts, path: /a}
  - {id: mal, category: MAL, format: domains, url: "https://lists.example/mal", every: 2h}
geo: {country: /c, asn: /n}
`)
	spec, at := intelPlaces(cfg)
	var got []string
	for _, l := range spec.Lists {
		got = append(got, strings.Join([]string{l.ID, l.Category, l.Format, l.Path, l.URL, l.Every.String(), filepath.Base(l.Source)}, " "))
		if at[l.ID].Line == 0 {
			t.Errorf("%s has no place", l.ID)
		}
	}
	want := []string{
		"custom-own.txt BAD hosts /a  0s gatun.yaml:5", "mal MAL domains  https://lists.example/mal 2h0m0s gatun.yaml:6",
		"custom2-own.txt CUSTOM auto /etc/own.txt  0s gatun.yaml:3", "custom3-own.txt CUSTOM auto  https://lists.example/a b/own.txt?key=1 0s gatun.yaml:3",
		"custom4-own.txt CUSTOM auto /srv/own.txt  0s gatun.yaml:3", "custom-lists.example CUSTOM auto  https://lists.example/ 0s gatun.yaml:3",
	}
	if !slices.Equal(got, want) || spec.Country != "/c" || spec.ASN != "/n" {
		t.Errorf("got\n%s\nwant\n%s\n%+v", strings.Join(got, "\n"), strings.Join(want, "\n"), spec)
	}
	if err := intel.New(intel.Options{}).Configure(spec); err != nil {
		t.Errorf("the store does not take it: %v", err)
	}
}

// TestConfigureKnowledge: a change is noticed once, whoever asks first.
func TestConfigureKnowledge(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ads")
	if err := os.WriteFile(file, []byte("ads.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := "version: 1\nlists: [{id: ads, category: ADS, format: domains, path: " + file + "}]\n"
	k := newKnowledge(&http.Client{}, "", zap.NewNop())
	for i, c := range []struct {
		text string
		want bool
	}{{"version: 1\n", false}, {with, true}, {with, false}, {with + "filter: {blockLAN: on}\n", false}, {"version: 1\n", true}} {
		if changed, err := k.configure(configOf(t, c.text)); err != nil || changed != c.want {
			t.Errorf("%d: changed %v, %v", i, changed, err)
		}
	}
	if _, err := k.configure(configOf(t, with)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("ads.example\nmore.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.store.Poll()
	select {
	case <-k.changed:
	default:
		t.Error("nobody is told that a file changed")
	}
	if !k.moved() || k.moved() {
		t.Error("a change counts once")
	}
}

// TestKnowledgeModule: what is missing or wrong is said, and only that is a warning.
func TestKnowledgeModule(t *testing.T) {
	k := newKnowledge(&http.Client{}, "", zap.NewNop())
	says := func(state string, parts ...string) {
		t.Helper()
		m := k.module(true, 3)
		for _, p := range parts {
			if !strings.Contains(m.Message, p) {
				t.Errorf("%q lacks %q", m.Message, p)
			}
		}
		if m.State.String() != state {
			t.Errorf("%s: %s, want %s", m.Message, m.State, state)
		}
	}
	says("warning", "no filter lists", "no country and ASN data", "do not match", "3 times")
	if m := k.module(false, 0); m.State.String() != "ok" {
		t.Errorf("nothing is wanted: %+v", m)
	}
	if _, err := k.configure(configOf(t, "version: 1\nlists: [{id: a, category: ADS, format: domains, path: /none/a}, {id: b, category: ADS, format: domains, url: \"https://b.example/b\"}]\ngeo: {country: /none/c}\n")); err != nil {
		t.Fatal(err)
	}
	says("warning", "2 filter lists, 0 entries", "list a: ", "no such file", "list b: not fetched yet", "/none/c: ")
}

// TestOwnClient: requests of our own go to the addresses that our own nameserver names, one after
// another, never to those of the environment's resolver or proxy, and the certificate is that of the
// name.
func TestOwnClient(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello "+r.Host) }))
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer web.Close()
	addr := netip.MustParseAddrPort(web.Listener.Addr().String())
	closed, err := net.Listen("tcp", "[::1]:0") // for an address that refuses
	if err == nil {
		_ = closed.Close()
	}
	var asked []string
	client := ownClient(&route.Dialer{}, func(_ context.Context, name string) ([]netip.Addr, error) {
		asked = append(asked, name)
		if name == "none.example" {
			return nil, errors.New("no such name")
		}
		return []netip.Addr{netip.IPv6Loopback(), addr.Addr()}, nil
	})
	defer client.CloseIdleConnections()
	transport := client.Transport.(*http.Transport)
	transport.TLSClientConfig = web.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	port := netip.AddrPortFrom(addr.Addr(), addr.Port()).String()
	port = port[strings.LastIndexByte(port, ':'):]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	get := func(url string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := get("https://example.com" + port); err != nil || got != "hello example.com"+port {
		t.Errorf("%q %v", got, err)
	}
	if _, err := get("https://other.test" + port); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("the certificate of another name: %v", err)
	}
	if _, err := get("https://none.example" + port); err == nil || !strings.Contains(err.Error(), "resolve none.example: no such name") {
		t.Errorf("a name that does not exist: %v", err)
	}
	if _, err := get("https://" + addr.String()); err != nil {
		t.Errorf("an address: %v", err)
	}
	if want := []string{"example.com", "other.test", "none.example"}; !slices.Equal(asked, want) {
		t.Errorf("resolved %q, want %q", asked, want)
	}
}

// TestCheckReadsLists: `check` says what is wrong with lists and data files, where the file names them.
func TestCheckReadsLists(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"good": "a.example\n", "page": "<html>", "country": "no data",
		"gatun.yaml": "version: 1\nfilter:\n  endpoints: [\"- L:good\", \"- L:TRAC\", \"- L:nobody\", \"- DE\"]\nlists:\n" +
			"  - {id: good, category: ADS, format: domains, path: " + dir + "/good}\n  - {id: page, category: MAL, format: domains, path: " + dir + "/page}\n" +
			"geo: {country: " + dir + "/country}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, warnings, err := check(configSource(filepath.Join(dir, "gatun.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, strings.ReplaceAll(w.Error(), dir+"/", ""))
	}
	want := []string{
		"gatun.yaml:3:40: filter/endpoints[2]: L:nobody never matches: no filter list has this id or category",
		"gatun.yaml:3:54: filter/endpoints[3]: DE never matches: there is no country data; name a file of it in the section geo",
		"gatun.yaml:6:5: lists[page]: a web page, not a list",
		"gatun.yaml:7:6: geo/country: not a MaxMind file: ",
	}
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
}
