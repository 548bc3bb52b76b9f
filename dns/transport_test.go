package dns

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
)

// testClient is a client that is closed with the test.
func testClient(t testing.TB) *client {
	t.Helper()
	c := newClient(&netDialer{}, time.Now, zap.NewNop(), nil)
	t.Cleanup(c.close)
	return c
}

// secureClient trusts the authority.
func secureClient(t testing.TB, a *authority) *client {
	c := testClient(t)
	c.roots = a.roots()
	return c
}

// tryAsk asks for a name's address.
func tryAsk(c *client, r Resolver, name string) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.server(r, time.Now()).exchange(ctx, inquiry{name: name, qtype: mdns.TypeA})
}

func mustAsk(t testing.TB, c *client, r Resolver, name string) {
	t.Helper()
	m, err := tryAsk(c, r, name)
	if err != nil || len(m.Answer) != 1 || bareName(m.Answer[0].Header().Name) != name {
		t.Fatalf("%s over %s: %v, %v", name, r.Scheme, m, err)
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 10 s: %s", what)
		}
	}
}

// TestOneConnection: 100 queries one after another and 100 at once need one connection, and all
// get their own answer.
func TestOneConnection(t *testing.T) {
	for _, scheme := range kept() {
		t.Run(string(scheme), func(t *testing.T) {
			a := newAuthority(t)
			p := newPeer(t).serve(scheme, a, nil)
			c := secureClient(t, a)
			for i := range 100 {
				mustAsk(t, c, p.resolver(scheme), fmt.Sprintf("n%d.example", i))
			}
			var group sync.WaitGroup
			for i := range 100 {
				group.Go(func() {
					name := fmt.Sprintf("c%d.example", i)
					if m, err := tryAsk(c, p.resolver(scheme), name); err != nil || len(m.Answer) != 1 || bareName(m.Answer[0].Header().Name) != name {
						t.Errorf("%s: %v, %v", name, m, err)
					}
				})
			}
			group.Wait()
			t.Logf("%d queries over %d connections", p.queries.Load(), p.opened.Load())
			if p.queries.Load() != 200 || p.opened.Load() != 1 {
				t.Fatalf("%d queries over %d connections, want 200 over 1", p.queries.Load(), p.opened.Load())
			}
			if scheme.http() {
				if _, ok := p.serverNames.Load(fmt.Sprintf("%s:%d", serverName, p.addr.Port())); !ok {
					t.Error("the server was asked by another name")
				}
			}
		})
	}
}
