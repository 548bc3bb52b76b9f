package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a running program of which the test holds both ends.
type daemon struct {
	table   *network.Table
	socket  string
	client  *Client
	reloads int
	reload  error
	stopped bool
	confirm error              // the answer to a confirmation
	kept    int                // how often it was confirmed
	end     context.CancelFunc // of the server
	policy  *policy
	server  *Server
	names   *names
	lists   *lists
}

func (d *daemon) Status() Status {
	rating := d.policy.cfg.Value("network/rating")
	return Status{
		Schema: network.Schema, State: "on", PID: 7, Rating: d.policy.cfg.String("network/rating"), RatingOrigin: rating.Origin.String(),
		Temporary: []profiles.Temporary{}, Modules: []status.Module{}, Notes: []string{}, Resolvers: []string{}, Nameservers: []string{}, Names: map[string]any{},
		Packets: map[string]uint64{}, Owners: map[string]uint64{}, Config: ConfigStatus{Warnings: []string{}},
	}
}

func (d *daemon) Reload(context.Context) error {
	d.reloads++
	return d.reload
}
func (d *daemon) Confirm() error {
	if d.confirm == nil {
		d.kept++
	}
	return d.confirm
}
func (d *daemon) Stop() { d.stopped = true }

func (d *daemon) WhyLink(l *network.Link) Why {
	return Why{Schema: network.Schema, Verdict: l.Decision().Verdict.String(), Rule: []byte("null"), Trail: []byte("[]")}
}

func (d *daemon) WhyDry(r DryRun) (Why, error) {
	if r.To == "wrong" {
		return Why{}, errors.New("--to: wrong")
	}
	return Why{Schema: network.Schema, Verdict: r.To + r.Exe, Rule: []byte("null"), Trail: []byte("[]")}, nil
}

func start(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{table: network.NewTable(time.Now), socket: filepath.Join(shortDir(t), "gatun.sock")}
	l, err := Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	d.policy = newPolicy(t, d.table)
	d.names, d.lists = newNames(), newLists()
	d.server = &Server{Daemon: d, Flows: d.table, Why: d, Control: d.policy, Names: d.names, Lists: d.lists, Database: d.policy.database(d)}
	ctx, cancel := context.WithCancel(context.Background())
	d.end = cancel
	done := make(chan error, 1)
	go func() { done <- d.server.Serve(ctx, l) }()
	d.client = NewClient(d.socket)
	t.Cleanup(func() {
		cancel()
		d.client.http.CloseIdleConnections()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// endingDaemon has ended before the answer to the order is written out.
type endingDaemon struct{ *daemon }

func (d endingDaemon) Stop() {
	d.end()
	time.Sleep(30 * time.Millisecond)
}

// Whoever tells the program to end learns that it heard, however fast it ends.
func TestDownIsAnswered(t *testing.T) {
	for range 3 {
		d := start(t)
		d.server.Daemon = endingDaemon{d}
		var s Status
		if err := d.client.Post(t.Context(), "/v1/down", &s); err != nil || s.PID != 7 {
			t.Fatalf("%v %+v", err, s)
		}
	}
}

func (d *daemon) link(port uint16, v network.Verdict) *network.Link {
	f := packet.Flow{Proto: packet.TCP, Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port), Remote: netip.MustParseAddrPort("198.51.100.1:443")}
	l, _ := d.table.Link(f)
	d.table.Bind(l, &network.Communication{
		Owner:  attribution.Owner{Process: &attribution.Process{PID: int(port), Path: "/usr/bin/curl", Name: "curl", Kind: attribution.KindProgram}},
		Entity: network.Entity{Addr: f.Remote.Addr(), Domain: "a.example", Source: network.DomainDNS},
	})
	d.table.Decide(l, network.Decision{Verdict: v, Stage: network.StageLink})
	return l
}

func TestFlowsAreFilteredAndLimited(t *testing.T) {
	d := start(t)
	d.link(1, network.Accept)
	d.table.End(d.link(2, network.Block), "blocked")
	d.link(3, network.Accept)
	for query, want := range map[string]int{
		"": 3, "live=1": 2, "verdict=block": 1, "process=3": 1, "process=curl": 3, "process=/usr/bin/curl": 3, "process=nobody": 0,
		"domain=a.ex": 3, "domain=b": 0, "remote=198.51": 3, "proto=udp": 0, "kind=dns": 0, "last=2": 2, "direction=inbound": 0,
	} {
		q, _ := url.ParseQuery(query)
		var list FlowList
		if err := d.client.Get(t.Context(), "/v1/flows", q, &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Flows) != want || list.Schema != network.Schema {
			t.Errorf("%q: got %d flows, want %d", query, len(list.Flows), want)
		}
	}
}

func TestKill(t *testing.T) {
	d := start(t)
	l := d.link(1, network.Accept)
	kill := func() error {
		var out struct{ Killed string }
		return d.client.Delete(t.Context(), "/v1/flows/"+l.ID(), &out)
	}
	if err := kill(); err == nil || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("nobody carries it: %v", err)
	}
	var cause string
	l = d.link(2, network.Accept)
	l.OnKill(func(c string) { cause = c })
	if err := kill(); err != nil || cause != "killed" {
		t.Errorf("kill: %v, cause %q", err, cause)
	}
	d.table.End(l, "killed")
	if err := kill(); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("an ended flow: %v", err)
	}
	if err := d.client.Delete(t.Context(), "/v1/flows/999", &struct{}{}); err == nil || !strings.Contains(err.Error(), "no flow") {
		t.Errorf("an unknown flow: %v", err)
	}
}

func TestReloadAndDown(t *testing.T) {
	d := start(t)
	var s Status
	if err := d.client.Post(t.Context(), "/v1/reload", &s); err != nil || d.reloads != 1 || s.State != "on" {
		t.Fatalf("reload: %v", err)
	}
	d.reload = errors.New("gatun.yaml:1:1: wrong")
	if err := d.client.Post(t.Context(), "/v1/reload", &s); err == nil || err.Error() != d.reload.Error() {
		t.Errorf("a failed reload: %v", err)
	}
	if err := d.client.Post(t.Context(), "/v1/down", &s); err != nil || !d.stopped {
		t.Errorf("down: %v", err)
	}
}

// A confirmation is heard once; what it cannot do is a conflict with the state of things, in words.
func TestConfirm(t *testing.T) {
	d := start(t)
	var s Status
	if err := d.client.Post(t.Context(), "/v1/confirm", &s); err != nil || d.kept != 1 || s.PID != 7 {
		t.Errorf("%v, heard %d times, %+v", err, d.kept, s)
	}
	d.confirm = errors.New("nothing waits")
	var answer *Error
	if err := d.client.Post(t.Context(), "/v1/confirm", &s); !errors.As(err, &answer) || answer.Code != 409 || err.Error() != "nothing waits" {
		t.Errorf("nothing waits: %v", err)
	}
	d.want(t, 405, "POST", "GET", "/v1/confirm", "") // who only looks does not confirm
	if d.kept != 1 {
		t.Errorf("confirmed %d times", d.kept)
	}
}

func TestWhy(t *testing.T) {
	d := start(t)
	l := d.link(1, network.Drop)
	var w Why
	if err := d.client.Get(t.Context(), "/v1/why", url.Values{"id": {l.ID()}}, &w); err != nil || w.Verdict != "drop" {
		t.Errorf("live: %v %q", err, w.Verdict)
	}
	if err := d.client.Get(t.Context(), "/v1/why", DryRun{Exe: "e", To: "t"}.Values(), &w); err != nil || w.Verdict != "te" {
		t.Errorf("dry: %v %q", err, w.Verdict)
	}
	if err := d.client.Get(t.Context(), "/v1/why", DryRun{To: "wrong"}.Values(), &w); err == nil || err.Error() != "--to: wrong" {
		t.Errorf("wrong: %v", err)
	}
}

func TestEventsReplayAndFollow(t *testing.T) {
	d := start(t)
	d.link(1, network.Accept)
	since := uint64(0)
	enough := errors.New("enough")
	var got []string
	err := d.client.Events(t.Context(), &since, func(b json.RawMessage) error {
		var e network.ReportEvent
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		got = append(got, fmt.Sprintf("%d %s %s", e.Seq, e.Event, e.Flow.Verdict))
		if len(got) == 1 {
			d.link(2, network.Block)
			return nil
		}
		return enough
	})
	if !errors.Is(err, enough) || fmt.Sprint(got) != "[1 decided accept 2 decided block]" {
		t.Errorf("got %v, %v", got, err)
	}
}

// The socket never gives more than its mode says, and a change needs root or the daemon's own
// user: the kernel's credentials count, not what a request claims.
func TestOnlyRootAndTheOwnerMayChange(t *testing.T) {
	d := start(t)
	fi, err := os.Stat(d.socket)
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Fatalf("mode %v, %v", fi.Mode(), err)
	}
	h := d.server.handler()
	for _, r := range []struct{ method, path string }{{"POST", "/v1/reload"}, {"POST", "/v1/down"}, {"POST", "/v1/confirm"}, {"DELETE", "/v1/flows/1"},
		{"GET", "/v1/dns/query?name=a.example"}, {"DELETE", "/v1/dns/cache"}, {"POST", "/v1/lists/update"}} {
		for _, who := range []struct {
			name string
			ctx  context.Context
		}{
			{"unknown", context.Background()},
			{"stranger", context.WithValue(context.Background(), peerKey{}, os.Geteuid()+4711)},
		} {
			if code := request(h, who.ctx, r.method, r.path); code != 403 {
				t.Errorf("%s %s by %s: got %d", r.method, r.path, who.name, code)
			}
		}
	}
	if d.reloads != 0 || d.stopped || d.kept != 0 || d.names.asked != nil || len(d.names.cache) != 3 || d.lists.updates != nil {
		t.Error("a refused request had an effect")
	}
}

func TestMetrics(t *testing.T) {
	d := start(t)
	b, err := d.client.Raw(t.Context(), "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"gatun_links 0\n", "gatun_dns_cache_entries 3\n", "gatun_dns_total{kind=\"hits\"} 7\n", "gatun_list_entries{list=\"ads\"} 7\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

func TestListen(t *testing.T) {
	d := start(t)
	if _, err := Listen(d.socket); !errors.Is(err, ErrServed) {
		t.Errorf("a second server: %v", err)
	}
	stale := filepath.Join(shortDir(t), "gatun.sock")
	l, err := Listen(stale)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if l, err = Listen(stale); err != nil {
		t.Fatalf("a socket that nobody serves must be replaced: %v", err)
	}
	_ = l.Close()
	if _, err := Listen(filepath.Join(shortDir(t), strings.Repeat("x", maxPath), "gatun.sock")); err == nil || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("a path that is too long: %v", err)
	}
	open := shortDir(t)
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(filepath.Join(open, "gatun.sock")); !errors.Is(err, errNoDir) {
		t.Errorf("a folder that everybody writes to: %v", err)
	}
}

func TestNotRunning(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	if err := c.Get(t.Context(), "/v1/status", nil, &Status{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
}

// request sends a request as if its peer were the one that ctx says.
func request(h http.Handler, ctx context.Context, method, path string) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil).WithContext(ctx))
	return w.Code
}
