package interception

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/config"
	"gatun/firewall"
	"gatun/netenv"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/status"
)

// redirectLab is a Redirect on real sockets of loopback. What the kernel would translate, the test
// says: asked, by the source as the sockets see it.
type redirectLab struct {
	*Redirect
	t    *testing.T
	gate *Gate
	udp  netip.AddrPort
	tcp  netip.AddrPort

	mu      sync.Mutex
	asked   func(packet.Flow) (packet.Flow, error)
	owner   attribution.Owner
	finds   []packet.Flow
	sents   []packet.Flow // as their packets came, of those that are known by that
	served  []packet.Flow
	answer  func(query []byte) []byte
	holding chan struct{} // a query waits for this, if it is there
	clock   atomic.Int64
}

type waiting struct{}

var stub = netip.MustParseAddrPort("127.0.0.53:53")

func (l *redirectLab) Find(_ context.Context, f packet.Flow) attribution.Owner {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finds = append(l.finds, f)
	return l.owner
}

// FindAs makes it an Owners that is asked for flows behind the redirect.
func (l *redirectLab) FindAs(ctx context.Context, f, sent packet.Flow) attribution.Owner {
	l.mu.Lock()
	l.sents = append(l.sents, sent)
	l.mu.Unlock()
	return l.Find(ctx, f)
}

func (l *redirectLab) Entity(_ attribution.Owner, a netip.Addr) network.Entity {
	return network.Entity{Addr: a}
}

func (l *redirectLab) ServeUDP(ctx context.Context, f packet.Flow, o attribution.Owner, query []byte) []byte {
	l.mu.Lock()
	l.served = append(l.served, f)
	hold, answer := l.holding, l.answer
	l.mu.Unlock()
	if f, ok := ctx.Value(waiting{}).(func()); ok && hold != nil {
		f()
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	}
	if answer != nil {
		return answer(query)
	}
	return fmt.Appendf(nil, "%s to %s", query, o.Process.Path)
}

func (l *redirectLab) ServeConn(_ context.Context, f packet.Flow, _ attribution.Owner, c net.Conn) error {
	l.mu.Lock()
	l.served = append(l.served, f)
	l.mu.Unlock()
	defer c.Close()
	_, err := io.Copy(c, c)
	return err
}

func (l *redirectLab) is(o attribution.Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owner = o
}

func (l *redirectLab) translate(asked func(packet.Flow) (packet.Flow, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = asked
}

func (l *redirectLab) counts() (finds, served int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.finds), len(l.served)
}

func prog(path string) attribution.Owner {
	return attribution.Owner{Process: &attribution.Process{PID: 7, Path: path, Kind: attribution.KindProgram}, Confidence: attribution.Exact, Cause: attribution.CauseOne}
}

func newRedirectLab(t *testing.T, yaml string, change ...func(*Redirect)) *redirectLab {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	l := &redirectLab{t: t, owner: prog("/usr/bin/a")}
	l.clock.Store(time.Now().UnixNano())
	l.asked = func(f packet.Flow) (packet.Flow, error) { f.Remote = stub; return f, nil }
	l.gate = &Gate{
		Table: network.NewTable(time.Now), Firewall: master(t, yaml), Owners: l, Names: l, Nameserver: l, Log: zap.NewNop(),
		Prompts: firewall.NewPrompts(time.Now), Clock: func() time.Time { return time.Unix(0, l.clock.Load()) },
	}
	uc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	tl, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	l.udp, l.tcp = uc.LocalAddr().(*net.UDPAddr).AddrPort(), tl.Addr().(*net.TCPAddr).AddrPort()
	l.Redirect = &Redirect{Gate: l.gate, UDP: []*net.UDPConn{uc}, TCP: []*net.TCPListener{tl}, Original: func(f packet.Flow) (packet.Flow, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.asked(f)
	}}
	for _, c := range change {
		c(l.Redirect)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.gate.Attach(ctx)
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		uc.Close()
		tl.Close()
		waitFor(t, "the queries end", func() bool { return l.gate.queries.Load() == 0 && l.streams.Load() == 0 })
	})
	return l
}

func master(t *testing.T, yaml string) *firewall.Master {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"+yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	store, err := profiles.NewStore(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now()), profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return firewall.New(store)
}

func (l *redirectLab) dial() *net.UDPConn {
	l.t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(l.udp))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends one query and returns the answer, "" where there is none in time.
func ask(t *testing.T, c *net.UDPConn, query string, patience time.Duration) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte(query)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(buf[:n])
}

const (
	soon  = 10 * time.Second
	never = 100 * time.Millisecond // for what must not come: long on loopback
)

// A query is its program's: attributed, decided and listed by the flow that the program has. What
// follows on the socket costs no look-up; the next socket does.
func TestRedirectedQuery(t *testing.T) {
	l := newRedirectLab(t, "")
	c := l.dial()
	for range 3 {
		if got := ask(t, c, "q", soon); got != "q to /usr/bin/a" {
			t.Errorf("got %q", got)
		}
	}
	want := packet.Flow{Proto: packet.UDP, Local: c.LocalAddr().(*net.UDPAddr).AddrPort(), Remote: stub}
	if finds, served := l.counts(); finds != 1 || served != 3 || l.finds[0] != want || l.served[2] != want {
		t.Errorf("%d look-ups of %v, %d served", finds, l.finds, served)
	}
	link := l.gate.Table.Find(want)
	if link == nil || link.Decision().Verdict != network.RerouteToNameserver || link.Comm().Owner.Process.Path != "/usr/bin/a" {
		t.Fatalf("link %+v", link)
	}
	waitFor(t, "the bytes are counted", func() bool { s, r := link.Bytes(); return s == 3 && r == 3*uint64(len("q to /usr/bin/a")) })
	l.is(prog("/usr/bin/b"))
	if got := ask(t, l.dial(), "q", soon); got != "q to /usr/bin/b" {
		t.Errorf("another socket: %q", got)
	}
	// The program closes: the port's next owner is looked up.
	l.gate.SocketClosed(packet.UDP, want.Local)
	if !link.Ended() {
		t.Error("the link outlives its socket")
	}
	if got := ask(t, c, "q", soon); got != "q to /usr/bin/b" {
		t.Errorf("the port's next owner: %q", got)
	}
}

// Silent for a while, a socket is looked up anew; until then nothing of it is lost.
func TestRedirectedSocketIsForgotten(t *testing.T) {
	l := newRedirectLab(t, "")
	c := l.dial()
	ask(t, c, "q", soon)
	l.clock.Add(int64(queryIdle) - 1)
	l.gate.sweep()
	if got := l.gate.Table.LiveCount(); got != 1 {
		t.Errorf("%d links before the idle limit", got)
	}
	l.clock.Add(2)
	l.gate.sweep()
	l.Redirect.mu.Lock()
	askers := l.askers
	l.Redirect.mu.Unlock()
	if got := l.gate.Table.LiveCount(); got != 0 || askers != nil {
		t.Errorf("%d links, askers %v after it", got, askers)
	}
	if got := ask(t, c, "q", soon); got == "" {
		t.Error("no answer after the pause")
	}
	if finds, _ := l.counts(); finds != 2 {
		t.Errorf("%d look-ups", finds)
	}
}

// A flow whose port the kernel has changed is looked up at every query by its true port: the
// changed one may be another flow's next time.
func TestRedirectedWithAnotherPort(t *testing.T) {
	l := newRedirectLab(t, "")
	trueLocal := netip.MustParseAddrPort("127.0.0.1:9")
	l.translate(func(f packet.Flow) (packet.Flow, error) { f.Local, f.Remote = trueLocal, stub; return f, nil })
	c := l.dial()
	for range 3 {
		if got := ask(t, c, "q", soon); got == "" {
			t.Error("no answer")
		}
	}
	if finds, _ := l.counts(); finds != 3 || l.finds[2].Local != trueLocal {
		t.Errorf("look-ups %v", l.finds)
	}
	// Who was seen to send is known by the changed one.
	came := packet.Flow{Proto: packet.UDP, Local: c.LocalAddr().(*net.UDPAddr).AddrPort(), Remote: l.udp}
	if len(l.sents) != 3 || l.sents[2] != came {
		t.Errorf("asked who sent %v, want %v", l.sents, came)
	}
}

// What is answered to nobody: what was not redirected, our own questions, and programs whose port
// 53 is not ours by the newest policy.
func TestRedirectedSilence(t *testing.T) {
	for name, c := range map[string]struct {
		yaml  string
		owner attribution.Owner
		err   error
	}{
		"not redirected": {"", prog("/usr/bin/a"), errors.New("sent to the listener itself")},
		"our own":        {"", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSelf}}, nil},
		"policy changed": {"core: {releaseLevel: experimental}\nfilter: {dnsQueryInterception: off}\n", prog("/usr/bin/a"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newRedirectLab(t, c.yaml)
			l.is(c.owner)
			if c.err != nil {
				l.translate(func(f packet.Flow) (packet.Flow, error) { return f, c.err })
			}
			if got := ask(t, l.dial(), "q", never); got != "" {
				t.Errorf("answered %q", got)
			}
			if tc, err := net.Dial("tcp4", l.tcp.String()); err == nil { // else the reset came first
				defer tc.Close()
				_ = tc.SetDeadline(time.Now().Add(soon))
				if n, err := tc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a connection stays: %d %v", n, err)
				}
			}
			if _, served := l.counts(); served != 0 {
				t.Errorf("%d reached the nameserver", served)
			}
			waitFor(t, "no link is left", func() bool {
				l.clock.Add(int64(time.Minute))
				l.gate.sweep()
				return l.gate.Table.LiveCount() == 0
			})
		})
	}
}

// One program's unanswered queries leave places for others.
func TestRedirectedFlood(t *testing.T) {
	l := newRedirectLab(t, "")
	hold := make(chan struct{})
	l.mu.Lock()
	l.holding = hold
	l.mu.Unlock()
	flood := l.dial()
	for i := range maxQueriesOfOne + 200 {
		if _, err := flood.Write([]byte("q")); err != nil {
			t.Fatal(err)
		}
		if i%64 == 0 { // the socket's buffer is for bursts
			waitFor(t, "the reader keeps up", func() bool { _, served := l.counts(); return served >= min(i, maxQueriesOfOne)-64 })
		}
	}
	waitFor(t, "its share is full", func() bool { _, served := l.counts(); return served == maxQueriesOfOne })
	l.mu.Lock()
	l.holding = nil
	l.owner = attribution.Owner{Process: &attribution.Process{PID: 8, Path: "/usr/bin/b", Kind: attribution.KindProgram}, Confidence: attribution.Exact}
	l.mu.Unlock()
	if got := ask(t, l.dial(), "q", soon); got != "q to /usr/bin/b" {
		t.Errorf("another program: %q", got)
	}
	if _, served := l.counts(); served != maxQueriesOfOne+1 {
		t.Errorf("%d reached the nameserver", served)
	}
	close(hold)
	waitFor(t, "all are answered", func() bool { return l.gate.queries.Load() == 0 })
	if l.gate.askers.n != nil {
		t.Errorf("shares are left: %v", l.gate.askers.n)
	}
}

// A panic in one query is that query's.
func TestRedirectedPanic(t *testing.T) {
	l := newRedirectLab(t, "")
	l.mu.Lock()
	l.answer = func(query []byte) []byte {
		if string(query) == "bad" {
			panic("a bug")
		}
		return query
	}
	l.mu.Unlock()
	c := l.dial()
	if got := ask(t, c, "bad", never); got != "" {
		t.Errorf("answered %q", got)
	}
	if got := ask(t, c, "good", soon); got != "good" {
		t.Errorf("after it %q", got)
	}
	if l.gate.panics.Load() != 1 {
		t.Errorf("%d panics counted", l.gate.panics.Load())
	}
}

// A connection over TCP is one link, with its bytes and its end; a policy change closes it.
func TestRedirectedConnection(t *testing.T) {
	l := newRedirectLab(t, "")
	c, err := net.Dial("tcp4", l.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(soon))
	buf := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("%q %v", buf, err)
	}
	flow := packet.Flow{Proto: packet.TCP, Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: stub}
	link := l.gate.Table.Find(flow)
	if link == nil || l.finds[0] != flow || l.served[0] != flow {
		t.Fatalf("link %v, look-ups %v", link, l.finds)
	}
	if came := (packet.Flow{Proto: packet.TCP, Local: flow.Local, Remote: l.tcp}); l.sents[0] != came {
		t.Errorf("asked who sent %v, want %v", l.sents[0], came)
	}
	waitFor(t, "the bytes are counted", func() bool { s, r := link.Bytes(); return s == 5 && r == 5 })
	link.Kill("the policy changed")
	if _, err := c.Read(buf); err == nil {
		t.Error("the connection outlives its link")
	}
	waitFor(t, "the link ends", link.Ended)
}

// One program cannot take all connections.
func TestRedirectedConnectionsAreBounded(t *testing.T) {
	l := newRedirectLab(t, "")
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	works := func() bool {
		c, err := net.Dial("tcp4", l.tcp.String())
		if err != nil {
			return false // reset already
		}
		open = append(open, c)
		_ = c.SetDeadline(time.Now().Add(soon))
		_, _ = c.Write([]byte("x"))
		_, err = io.ReadFull(c, make([]byte, 1))
		return err == nil
	}
	for i := range maxStreamsOfOne {
		if !works() {
			t.Fatalf("connection %d", i)
		}
	}
	if works() {
		t.Error("one connection too many")
	}
	open[0].Close()
	waitFor(t, "a place is free again", works)
	l.mu.Lock()
	l.owner = attribution.Owner{Process: &attribution.Process{PID: 8, Kind: attribution.KindProgram}, Confidence: attribution.Exact}
	l.mu.Unlock()
	if !works() {
		t.Error("another program has none")
	}
}

// The reader answers by itself what need not wait, and lets another one read before it waits.
func TestRedirectedReaderGoesOn(t *testing.T) {
	l := newRedirectLab(t, "", func(r *Redirect) {
		r.Waits = func(ctx context.Context, f func()) context.Context { return context.WithValue(ctx, waiting{}, f) }
	})
	slow, quick := l.dial(), l.dial()
	for _, c := range []*net.UDPConn{slow, quick} {
		if got := ask(t, c, "known", soon); got == "" {
			t.Fatal("no answer")
		}
	}
	for round := range 3 {
		hold := make(chan struct{})
		l.mu.Lock()
		before := len(l.served)
		l.holding = hold
		l.mu.Unlock()
		for range 5 {
			if _, err := slow.Write([]byte("slow")); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, "all five wait at the same time", func() bool { _, served := l.counts(); return served == before+5 })
		l.mu.Lock()
		l.holding = nil
		l.mu.Unlock()
		if got := ask(t, quick, "quick", soon); got != "quick to /usr/bin/a" {
			t.Errorf("round %d: behind the waiting: %q", round, got)
		}
		close(hold)
		buf := make([]byte, 100)
		_ = slow.SetDeadline(time.Now().Add(soon))
		for range 5 {
			if n, err := slow.Read(buf); err != nil || string(buf[:n]) != "slow to /usr/bin/a" {
				t.Errorf("round %d: %q %v", round, buf[:n], err)
			}
		}
	}
	// A panic of the reader's own query does not end the reading.
	l.mu.Lock()
	l.answer = func(query []byte) []byte {
		if string(query) == "bad" {
			panic("a bug")
		}
		return query
	}
	l.mu.Unlock()
	if got := ask(t, quick, "bad", never); got != "" {
		t.Errorf("answered %q", got)
	}
	if got := ask(t, quick, "good", soon); got != "good" {
		t.Errorf("after a panic: %q", got)
	}
}
