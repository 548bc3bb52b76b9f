package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// fakeSession answers when it is told to.
type fakeSession struct {
	number  int
	answers chan struct{} // one value, one answer; closed: all
	broken  atomic.Bool
	closed  atomic.Bool
	asked   atomic.Int64
}

func (f *fakeSession) ask(ctx context.Context, q inquiry, _ packing) (*mdns.Msg, error) {
	f.asked.Add(1)
	if f.broken.Load() {
		return nil, &brokenError{errLostReply}
	}
	if q.name == "panic" {
		panic("test")
	}
	select {
	case <-f.answers:
		return &mdns.Msg{MsgHdr: mdns.MsgHdr{Id: uint16(f.number)}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fakeSession) usable() bool { return !f.broken.Load() }

func (f *fakeSession) close() { f.closed.Store(true) }

// fakePool opens fake sessions.
type fakePool struct {
	*pool
	mu       sync.Mutex
	sessions []*fakeSession
}

func newFakePool(t *testing.T) *fakePool {
	f := &fakePool{}
	f.pool = newPool(func(context.Context) (session, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		s := &fakeSession{number: len(f.sessions), answers: make(chan struct{}, 1000)}
		f.sessions = append(f.sessions, s)
		return s, nil
	})
	t.Cleanup(f.close)
	return f
}

func (f *fakePool) session(i int) *fakeSession {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[i]
}

func (f *fakePool) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions)
}

// TestPoolGrows: more queries than fit one connection open others, up to the limit, and then fail
// at once rather than wait for nothing.
func TestPoolGrows(t *testing.T) {
	f := newFakePool(t)
	f.suspect = time.Hour // else a silent one makes room for another
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for i := range maxLines * maxInFlight {
		group.Go(func() { f.ask(ctx, inquiry{}, padded) })
		eventually(t, "a query is not on its way", func() bool {
			n := int64(0)
			for j := range f.count() {
				n += f.session(j).asked.Load()
			}
			return n == int64(i+1)
		})
	}
	if f.count() != maxLines {
		t.Fatalf("%d connections", f.count())
	}
	if _, err := f.ask(ctx, inquiry{}, padded); !errors.Is(err, errLinesBusy) {
		t.Fatalf("one more: %v", err)
	}
	cancel()
	group.Wait()
}

// TestPoolSilence: a silent connection is passed over while others wait on it, used again once it
// answers, and given up when it never did.
func TestPoolSilence(t *testing.T) {
	f := newFakePool(t)
	f.suspect = 20 * time.Millisecond
	answered := make(chan error)
	go func() {
		_, err := f.ask(context.Background(), inquiry{}, padded)
		answered <- err
	}()
	eventually(t, "no query", func() bool { return f.count() == 1 && f.session(0).asked.Load() == 1 })
	time.Sleep(2 * f.suspect)
	ctx, cancel := context.WithCancel(context.Background())
	second := make(chan error)
	go func() {
		_, err := f.ask(ctx, inquiry{}, padded)
		second <- err
	}()
	eventually(t, "no second connection", func() bool { return f.count() == 2 && f.session(1).asked.Load() == 1 })
	f.session(0).answers <- struct{}{}
	if err := <-answered; err != nil || f.session(0).closed.Load() {
		t.Fatalf("the slow answer: %v", err)
	}
	close(f.session(0).answers)
	if m, err := f.ask(context.Background(), inquiry{}, padded); err != nil || m.Id != 0 {
		t.Fatalf("a connection that answers again: %v, %v", m, err)
	}
	time.Sleep(2 * f.suspect)
	cancel()
	<-second
	if m, err := f.ask(context.Background(), inquiry{}, padded); err != nil || m.Id != 0 || !f.session(1).closed.Load() {
		t.Fatalf("%v, %v; the one that never answered is closed: %v", m, err, f.session(1).closed.Load())
	}
	if f.count() != 2 {
		t.Fatalf("%d connections", f.count())
	}
}

// TestPoolQuickCancel: that a program goes away at once says nothing about the connection.
func TestPoolQuickCancel(t *testing.T) {
	f := newFakePool(t)
	f.suspect = time.Hour // then a minute is quick
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { f.ask(ctx, inquiry{}, padded); close(done) }()
	eventually(t, "no query", func() bool { return f.count() == 1 && f.session(0).asked.Load() == 1 })
	f.pool.mu.Lock()
	waits := !f.lines[0].silence.IsZero()
	f.pool.mu.Unlock()
	cancel()
	<-done
	f.pool.mu.Lock()
	left := !f.lines[0].silence.IsZero()
	f.pool.mu.Unlock()
	if !waits || left {
		t.Fatalf("the query was noted: %v, and that it is not answered: %v", waits, left)
	}
	close(f.session(0).answers)
	if _, err := f.ask(context.Background(), inquiry{}, padded); err != nil || f.count() != 1 {
		t.Fatalf("%v, %d connections", err, f.count())
	}
}

// TestPoolOneDial: 100 queries at once wait for one attempt to connect, and all get its error.
func TestPoolOneDial(t *testing.T) {
	var dials atomic.Int64
	var waiting sync.WaitGroup
	gate := make(chan struct{})
	p := newPool(func(context.Context) (session, error) {
		dials.Add(1)
		<-gate
		return nil, errors.New("refused for the test")
	})
	defer p.close()
	errs := make(chan error, 100)
	for range 100 {
		waiting.Add(1)
		go func() {
			waiting.Done()
			_, err := p.ask(context.Background(), inquiry{}, padded)
			errs <- err
		}()
	}
	waiting.Wait()
	eventually(t, "nobody connects", func() bool { return dials.Load() > 0 })
	close(gate)
	for range 100 {
		if err := <-errs; err == nil || err.Error() != "refused for the test" {
			t.Fatalf("got %v", err)
		}
	}
	if n := dials.Load(); n > 10 { // those who came late begin another
		t.Errorf("%d attempts", n)
	}
}

// TestPoolBroken: all who were on a connection that broke are asked once more on one new one; a
// resolver that breaks every connection is not asked for ever.
func TestPoolBroken(t *testing.T) {
	f := newFakePool(t)
	first := make(chan error, 1)
	go func() { _, err := f.ask(context.Background(), inquiry{}, padded); first <- err }()
	eventually(t, "no query", func() bool { return f.count() == 1 && f.session(0).asked.Load() == 1 })
	f.session(0).answers <- struct{}{}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	f.session(0).broken.Store(true) // usable() is false: it is noticed before it is used
	go func() { _, err := f.ask(context.Background(), inquiry{}, padded); first <- err }()
	eventually(t, "no new connection", func() bool { return f.count() == 2 })
	f.session(1).answers <- struct{}{}
	if err := <-first; err != nil || !f.session(0).closed.Load() {
		t.Fatalf("%v", err)
	}

	always := 0
	p := newPool(func(context.Context) (session, error) {
		always++
		return &breaking{}, nil
	})
	defer p.close()
	for i := range 5 {
		if _, err := p.ask(context.Background(), inquiry{}, padded); !errors.Is(err, errLostReply) {
			t.Fatalf("query %d: %v", i, err)
		}
	}
	if always != 5 {
		t.Fatalf("%d connections for 5 queries", always)
	}
}

// breaking breaks with the first query.
type breaking struct{}

func (*breaking) ask(context.Context, inquiry, packing) (*mdns.Msg, error) {
	return nil, &brokenError{errLostReply}
}
func (*breaking) usable() bool { return true }
func (*breaking) close()       {}

// TestPoolHangsUp: a resolver that ends every connection before it can be used is not dialled for
// ever.
func TestPoolHangsUp(t *testing.T) {
	dials := 0
	p := newPool(func(context.Context) (session, error) {
		dials++
		s := &fakeSession{}
		s.broken.Store(true)
		return s, nil
	})
	defer p.close()
	if _, err := p.ask(context.Background(), inquiry{}, padded); !errors.Is(err, errLostReply) || dials > maxLines {
		t.Fatalf("%v after %d connections", err, dials)
	}
}

// TestPoolPanic: a panic over a reply gives the place on the connection back.
func TestPoolPanic(t *testing.T) {
	f := newFakePool(t)
	for i := range 3 {
		func() {
			defer func() {
				if recover() == nil {
					t.Fatal("no panic")
				}
			}()
			f.ask(context.Background(), inquiry{name: "panic"}, padded)
		}()
		f.pool.mu.Lock()
		running := 0
		for _, l := range f.lines {
			running += l.running
		}
		f.pool.mu.Unlock()
		if running != 0 {
			t.Fatalf("after %d: %d are counted as running", i, running)
		}
	}
}

// TestPacking: queries to encrypted resolvers all have the same few lengths.
func TestPacking(t *testing.T) {
	var sizes []int
	for n := 1; n <= 60; n++ {
		q := inquiry{name: fmt.Sprintf("%0*d.example.org", n, 1), qtype: mdns.TypeHTTPS, do: n%2 == 0}
		b, err := q.pack(0, padded)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(sizes, len(b)) {
			sizes = append(sizes, len(b))
		}
		if r, rcode := parseRequest(b); rcode != mdns.RcodeSuccess || r.name != q.name || !r.edns {
			t.Fatalf("%s: %d", q.name, rcode)
		}
		if b, err = q.pack(0, withoutEDNS); err != nil || len(b) > 100 {
			t.Fatalf("%d bytes without EDNS, %v", len(b), err)
		}
	}
	if !slices.Equal(sizes, []int{128}) {
		t.Fatalf("sizes %v, want 128 for all", sizes)
	}
}
