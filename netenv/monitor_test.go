package netenv

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a source whose state a test sets.
type fake struct {
	mu      sync.Mutex
	state   Snapshot
	err     error
	looks   int
	cost    time.Duration
	changed func()
	ready   chan struct{}
	ended   error // what watch returns without being asked
	closed  int
}

func newFake() *fake { return &fake{ready: make(chan struct{})} }

func (f *fake) look() (Snapshot, error) {
	time.Sleep(f.cost)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return f.state, f.err
}

func (f *fake) watch(ctx context.Context, changed func()) error {
	if f.ended != nil {
		return f.ended
	}
	f.changed = changed
	close(f.ready)
	<-ctx.Done()
	return nil
}

func (f *fake) close() { f.closed++ }

// set changes the state without a notification.
func (f *fake) set(vpn bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.err = Snapshot{VPN: vpn, At: time.Now()}, err
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looks
}

// running runs m until the test ends.
func running(t *testing.T, m *Monitor) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not end")
		}
	})
}

func receives(t *testing.T, m *Monitor) {
	t.Helper()
	select {
	case <-m.Changed():
	case <-time.After(30 * time.Second):
		t.Fatal("no change is told")
	}
}

func silent(t *testing.T, m *Monitor, d time.Duration) {
	t.Helper()
	select {
	case <-m.Changed():
		t.Fatal("a change is told that is none")
	case <-time.After(d):
	}
}

func TestMonitorPublishesDifferences(t *testing.T) {
	f := newFake()
	m, err := start(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m)
	<-f.ready
	if m.Snapshot().VPN {
		t.Fatal("the first look is not what New knows")
	}
	f.set(true, nil)
	f.changed()
	receives(t, m)
	at := m.Snapshot().At
	if !m.Snapshot().VPN || at.IsZero() {
		t.Errorf("the snapshot is %+v", m.Snapshot())
	}
	f.set(true, nil) // the same, later
	f.changed()
	silent(t, m, 100*time.Millisecond)
	if !m.Snapshot().At.Equal(at) {
		t.Error("a look that finds nothing new replaced the snapshot")
	}
}

// Looks that cost much are made less often, and the last change is found all the same.
func TestMonitorRests(t *testing.T) {
	f := newFake()
	f.cost = 20 * time.Millisecond
	m, err := start(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m)
	<-f.ready
	began := time.Now()
	for time.Since(began) < 500*time.Millisecond {
		f.changed()
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	// A look every cost*(1+restFactor) = 100 ms, the first at once, and the one of New.
	if got, most := f.count(), int(took/(100*time.Millisecond))+3; got > most || got < 3 {
		t.Errorf("%d looks in %v of steady changes, want 3 to %d", got, took, most)
	}
	f.set(true, nil)
	f.changed()
	receives(t, m)
	if !m.Snapshot().VPN {
		t.Error("the last change is not seen")
	}
}

func TestMonitorKeepsWhatItKnowsWhenLooksFail(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	f := newFake()
	f.set(true, nil)
	m, err := start(f, Options{Logger: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m)
	<-f.ready
	f.set(false, errors.New("no memory"))
	f.changed()
	silent(t, m, 100*time.Millisecond)
	if !m.Snapshot().VPN || logs.Len() != 1 {
		t.Errorf("VPN %v, %d warnings; want the last known state and one warning", m.Snapshot().VPN, logs.Len())
	}
	f.set(false, nil) // nobody notifies: the failed look is repeated
	receives(t, m)
	if m.Snapshot().VPN {
		t.Error("the state is not the new one")
	}
}

func TestMonitorEnds(t *testing.T) {
	f := newFake()
	f.ended = errors.New("no more")
	m, err := start(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context()); !errors.Is(err, f.ended) {
		t.Errorf("Run returns %v", err)
	}
	m.Close()
	if f.closed != 1 {
		t.Errorf("closed %d times", f.closed)
	}
	f = newFake()
	f.err = errors.New("no")
	if _, err := start(f, Options{}); !errors.Is(err, f.err) || f.closed != 1 {
		t.Errorf("New returns %v, closed %d times", err, f.closed)
	}
}

func TestSnapshotEqual(t *testing.T) {
	make := func(edit func(*Snapshot)) Snapshot {
		s := Snapshot{
			Interfaces: []Interface{{Name: "eth0", Index: 2, MAC: "02:00:5e:10:00:01", Kind: kindEthernet, Up: true,
				Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}}},
			Gateways: []Gateway{{Addr: netip.MustParseAddr("192.0.2.1"), MAC: "02:00:5e:10:00:02", Interface: "eth0"}},
			At:       time.Unix(1, 0),
		}
		edit(&s)
		return s
	}
	same := make(func(*Snapshot) {})
	if !same.Equal(make(func(s *Snapshot) { s.At = time.Unix(9, 0) })) {
		t.Error("the time is a difference")
	}
	for name, edit := range map[string]func(*Snapshot){
		"name":      func(s *Snapshot) { s.Interfaces[0].Name = "eth1" },
		"index":     func(s *Snapshot) { s.Interfaces[0].Index = 3 },
		"mac":       func(s *Snapshot) { s.Interfaces[0].MAC = "" },
		"kind":      func(s *Snapshot) { s.Interfaces[0].Kind = kindTUN },
		"up":        func(s *Snapshot) { s.Interfaces[0].Up = false },
		"addrs":     func(s *Snapshot) { s.Interfaces[0].Addrs = nil },
		"number":    func(s *Snapshot) { s.Interfaces = nil },
		"gateways":  func(s *Snapshot) { s.Gateways = nil },
		"router":    func(s *Snapshot) { s.Gateways[0].MAC = "02:00:5e:10:00:03" },
		"reachable": func(s *Snapshot) { s.Gateways[0].Interface = "eth1" },
		"vpn":       func(s *Snapshot) { s.VPN = true },
		"route":     func(s *Snapshot) { s.DefaultRoute = true },
		"servers":   func(s *Snapshot) { s.Nameservers = []netip.Addr{netip.MustParseAddr("192.0.2.53")} },
		"suffixes":  func(s *Snapshot) { s.DNSSuffixes = []string{"home.arpa"} },
		"online":    func(s *Snapshot) { s.Online = Portal },
		"portal":    func(s *Snapshot) { s.PortalURL = "http://192.0.2.1/" },
	} {
		if same.Equal(make(edit)) || make(edit).Equal(same) {
			t.Errorf("%s is no difference", name)
		}
	}
}
