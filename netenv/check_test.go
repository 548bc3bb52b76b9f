package netenv

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// TestAbout: what hints say of whether something works.
func TestAbout(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	at := func(s int) int64 {
		if s < 0 {
			return 0
		}
		return begin.Add(time.Duration(s) * time.Second).UnixNano()
	}
	for _, c := range []struct {
		name      string
		good, bad int // seconds; -1: never
		since     int
		want      finding
	}{
		{"nothing", -1, -1, 0, unasked},
		{"made", 5, -1, 0, succeeded},
		{"failed", -1, 5, 0, failed},
		{"made, then failed", 5, 20, 0, succeeded},
		{"made, then failed for long", 5, 36, 0, failed},
		{"failed, then made", 36, 5, 0, succeeded},
		{"made in another network", 5, -1, 10, unasked},
		{"failed in another network", -1, 5, 10, unasked},
		{"made in another, failed in this", 5, 12, 10, failed},
	} {
		var h hearing
		h.last[Connected].Store(at(c.good))
		h.last[Unconnected].Store(at(c.bad))
		if got := h.about(Connected, Unconnected, time.Unix(0, at(c.since))); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// checks counts the looks of a day in which the state never changes.
func checks(p pace, s OnlineState, hintsEvery time.Duration) (hour, day int) {
	begin := time.Unix(1_800_000_000, 0)
	const took = 8 * time.Second // of a look that waits in vain
	for now := begin; now.Sub(begin) < 24*time.Hour; {
		p.asked = hintsEvery > 0
		at, ok := p.due(s)
		if !ok {
			break
		}
		if at.Before(now) {
			at = now
		}
		now = at.Add(took)
		p.ended(now, false)
		if now.Sub(begin) < time.Hour {
			hour++
		}
		day++
	}
	return hour, day
}

// TestNobodyIsHammered: a machine that stays without Internet, or behind a portal, or that has a
// thousand failing connections while all is well.
func TestNobodyIsHammered(t *testing.T) {
	for _, c := range []struct {
		name               string
		state              OnlineState
		hints              time.Duration
		leastHour, mostDay int
	}{
		{"online, nothing hints", Online, 0, 1, 1},
		{"online, failures all the time", Online, time.Millisecond, 10, 300},
		{"offline", Offline, 0, 1, 1},
		{"limited", Limited, 0, 10, 160},
		{"limited, hints all the time", Limited, time.Millisecond, 60, 2400},
		{"semi-online", SemiOnline, 0, 10, 160},
		{"portal", Portal, 0, 80, 2400},
		{"portal, somebody is at it", Portal, time.Millisecond, 300, 9000},
	} {
		hour, day := checks(pace{}, c.state, c.hints)
		if hour < c.leastHour || day > c.mostDay {
			t.Errorf("%s: %d looks in the first hour, %d on the day; want at least %d and at most %d", c.name, hour, day, c.leastHour, c.mostDay)
		}
		t.Logf("%s: %d, %d", c.name, hour, day)
	}
}

// TestMovesAreNoHammer: a few networks in a row are each looked at, at once; a gateway that seems
// to be another one ten times a second costs a look now and then. After a rest it is as at first.
func TestMovesAreNoHammer(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var p pace
	looks := 0
	look := func() {
		if at, ok := p.due(Unknown); ok && !at.After(now) {
			looks++
			p.ended(now, true)
		}
	}
	for range freeMoves {
		now = now.Add(time.Second)
		p.elsewhere(now, false)
		look()
	}
	if looks != freeMoves {
		t.Errorf("%d looks in %d networks", looks, freeMoves)
	}
	looks = 0
	for range 10 * 3600 {
		now = now.Add(100 * time.Millisecond)
		p.elsewhere(now, false)
		look()
	}
	if looks < 600 || looks > 730 {
		t.Errorf("%d looks in an hour of 36000 moves", looks)
	}
	now = now.Add(moveRest)
	p.elsewhere(now, false)
	if at, ok := p.due(Unknown); !ok || at.After(now) {
		t.Error("after a rest the next network is not looked at at once")
	}
}

// TestPortalIsLeftSoon: while somebody is at a portal, however long it has been there, the next
// look is not far.
func TestPortalIsLeftSoon(t *testing.T) {
	last := time.Unix(1_800_000_000, 0)
	for same := range 100 {
		at, ok := (&pace{last: last, same: same, asked: true}).due(Portal)
		if d := at.Sub(last); !ok || d > portalGap {
			t.Fatalf("after %d looks: %v", same, d)
		}
		at, ok = (&pace{last: last, same: same}).due(Portal)
		if d := at.Sub(last); !ok || d > portalPause {
			t.Fatalf("after %d looks, nobody there: %v", same, d)
		}
	}
}

// TestWanted: a state takes no hint for news that fits it.
func TestWanted(t *testing.T) {
	for _, c := range []struct {
		state OnlineState
		names finding
		want  []Hint
	}{
		{Unknown, unasked, []Hint{Connected, Unconnected, Resolved, Unresolved}},
		{Offline, unasked, nil},
		{Limited, succeeded, []Hint{Connected}},
		{Limited, failed, []Hint{Connected, Resolved}},
		{Portal, succeeded, []Hint{Connected}},
		{Portal, failed, []Hint{Connected}},
		{SemiOnline, succeeded, []Hint{Unconnected, Unresolved}},
		{SemiOnline, failed, []Hint{Unconnected, Resolved, Unresolved}},
		{Online, succeeded, []Hint{Unconnected, Unresolved}},
	} {
		var want uint32
		for _, h := range c.want {
			want |= 1 << h
		}
		if got := wanted(c.state, c.names); got != want {
			t.Errorf("%s: %04b, want %04b", c.state, got, want)
		}
	}
}

// internet is a page that a test switches.
type internet struct {
	answer atomic.Int32 // what the page says: a status; 0: nobody answers
	asked  *atomic.Int32
	probe  *Probe
}

func newInternet(t *testing.T, answer int) *internet {
	t.Helper()
	i := new(internet)
	i.answer.Store(int32(answer))
	i.probe, i.asked = web(t, testPage, func(w http.ResponseWriter, r *http.Request) {
		if code := int(i.answer.Load()); code != 0 {
			w.Header().Set("Location", "http://login.example/")
			w.WriteHeader(code)
			return
		}
		panic(http.ErrAbortHandler)
	})
	return i
}

// routed is a network with a way out, whose gateway is the n-th.
func routed(n byte) Snapshot {
	gw := netip.AddrFrom4([4]byte{192, 0, 2, n})
	return Snapshot{DefaultRoute: true, Gateways: []Gateway{{Addr: gw, Interface: "eth0"}},
		Interfaces: []Interface{{Name: "eth0", Index: 2, Kind: kindEthernet, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}}}
}

func monitorOf(t *testing.T, s Snapshot, p Probe) (*Monitor, *fake) {
	t.Helper()
	f := newFake()
	f.state = s
	m, err := start(f, Options{Probe: p})
	if err != nil {
		t.Fatal(err)
	}
	return m, f
}

// becomes waits for a state.
func becomes(t *testing.T, m *Monitor, want OnlineState) time.Duration {
	t.Helper()
	began := time.Now()
	limit := time.After(20 * time.Second)
	for m.Snapshot().Online != want {
		select {
		case <-m.Changed():
		case <-limit:
			t.Fatalf("it is %s after 20 s, not %s", m.Snapshot().Online, want)
		}
	}
	return time.Since(began)
}

// unchanged fails if anything changes; that what is known already is told only now is no change.
func unchanged(t *testing.T, m *Monitor, d time.Duration) {
	t.Helper()
	before := m.Snapshot()
	for end := time.After(d); ; {
		select {
		case <-m.Changed():
			if now := m.Snapshot(); !now.Equal(before) {
				t.Fatalf("it changes from %+v to %+v", before, now)
			}
		case <-end:
			return
		}
	}
}

func TestOnlineAndQuiet(t *testing.T) {
	i := newInternet(t, 204)
	m, _ := monitorOf(t, routed(1), *i.probe)
	if s := m.Snapshot().Online; s != Unknown {
		t.Errorf("before Run it is %s", s)
	}
	running(t, m)
	becomes(t, m, Online)
	unchanged(t, m, 300*time.Millisecond)
	if n := i.asked.Load(); n != 1 {
		t.Errorf("asked %d times, nothing hinted", n)
	}
	// What fits is no reason; what does not is one, however often it is said.
	for range 100_000 {
		m.Hint(Connected)
		m.Hint(Resolved)
	}
	for range 100_000 {
		m.Hint(Unconnected)
		m.Hint(hints) // none that there is
	}
	waitFor(t, func() bool { return i.asked.Load() > 1 })
	if n := i.asked.Load(); n > 6 || m.Snapshot().Online != Online {
		t.Errorf("asked %d times after a flood of hints, it is %s", n, m.Snapshot().Online)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("does not happen within 20 s")
		}
	}
}

func TestPortalAndOut(t *testing.T) {
	i := newInternet(t, 302)
	m, _ := monitorOf(t, routed(1), *i.probe)
	running(t, m)
	m.Hint(Connected) // the portal takes every connection
	becomes(t, m, Portal)
	if u := m.Snapshot().PortalURL; u != "http://login.example/" {
		t.Errorf("the portal is %q", u)
	}
	for range 1000 {
		m.Hint(Connected)
		m.Hint(Resolved)
	}
	waitFor(t, func() bool { return i.asked.Load() > 2 })
	if s := m.Snapshot().Online; s != Portal {
		t.Errorf("hints made it %s", s)
	}
	i.answer.Store(204)
	m.Hint(Connected)
	took := becomes(t, m, Online)
	if m.Snapshot().PortalURL != "" {
		t.Errorf("online, and the portal is %q", m.Snapshot().PortalURL)
	}
	t.Logf("seen after %v", took)
}

// TestPortalAndOutAlone: nobody hints.
func TestPortalAndOutAlone(t *testing.T) {
	i := newInternet(t, 511)
	m, _ := monitorOf(t, routed(1), *i.probe)
	running(t, m)
	becomes(t, m, Portal)
	i.answer.Store(204)
	t.Logf("seen after %v", becomes(t, m, Online))
}

// TestPageOutOfReach: it is limited, until something else works.
func TestPageOutOfReach(t *testing.T) {
	i := newInternet(t, 0)
	m, _ := monitorOf(t, routed(1), *i.probe)
	running(t, m)
	becomes(t, m, Limited)
	m.Hint(Connected)
	becomes(t, m, SemiOnline)
	i.answer.Store(204)
	becomes(t, m, Online)
}

// TestNamesAreMissing: where names are no longer resolved, the page is looked for where it was
// found, in another network too; where a portal said it was, it is not.
func TestNamesAreMissing(t *testing.T) {
	i := newInternet(t, 204)
	var dead atomic.Bool
	resolve := i.probe.Resolve
	i.probe.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
		if dead.Load() {
			return nil, errDead
		}
		return resolve(ctx, name)
	}
	m, f := monitorOf(t, routed(1), *i.probe)
	running(t, m)
	becomes(t, m, Online)
	<-f.ready
	move := func(n byte) {
		f.mu.Lock()
		f.state = routed(n)
		f.mu.Unlock()
		f.changed()
	}
	dead.Store(true)
	move(2)
	becomes(t, m, SemiOnline)
	dead.Store(false)
	m.Hint(Resolved)
	becomes(t, m, Online)
	other := *i.probe
	other.URL += "?2"
	i.answer.Store(302)
	m.SetProbe(other)
	becomes(t, m, Portal)
	dead.Store(true)
	i.answer.Store(204)
	move(3)
	becomes(t, m, Limited)
}

func TestNoWayNoQuestion(t *testing.T) {
	i := newInternet(t, 204)
	m, f := monitorOf(t, Snapshot{}, *i.probe)
	running(t, m)
	<-f.ready
	if s := m.Snapshot().Online; s != Offline {
		t.Errorf("without a network it is %s", s)
	}
	for range 100 {
		m.Hint(Connected)
		m.Hint(Unresolved)
	}
	silent(t, m, 200*time.Millisecond)
	if n := i.asked.Load(); n != 0 {
		t.Errorf("asked %d times without a network", n)
	}
	set := func(s Snapshot) {
		f.mu.Lock()
		f.state = s
		f.mu.Unlock()
		f.changed()
	}
	set(routed(1))
	becomes(t, m, Online)
	only := routed(1)
	only.DefaultRoute, only.Gateways = false, nil
	set(only)
	becomes(t, m, Limited)
	set(Snapshot{})
	becomes(t, m, Offline)
	if n := i.asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once: in the network that led out", n)
	}
}

// TestAnotherNetwork: what was known of one is not believed of the next, and a check that is
// under way when the network changes says nothing about the new one.
func TestAnotherNetwork(t *testing.T) {
	i := newInternet(t, 204)
	held := make(chan struct{})
	var called atomic.Int32
	inner := i.probe.Dial
	i.probe.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
		if called.Add(1) == 2 {
			close(held)
			<-ctx.Done() // until it is called off
			return inner(t.Context(), n, a)
		}
		return inner(ctx, n, a)
	}
	m, f := monitorOf(t, routed(1), *i.probe)
	running(t, m)
	becomes(t, m, Online)
	<-f.ready
	set := func(s Snapshot) {
		f.mu.Lock()
		f.state = s
		f.mu.Unlock()
		f.changed()
	}
	set(routed(2))
	<-held
	if s := m.Snapshot().Online; s != Unknown {
		t.Errorf("in another network it is %s before anybody looked", s)
	}
	i.answer.Store(302)
	set(routed(3))
	becomes(t, m, Portal)
	// News of the same network leave what is known.
	mac := routed(3)
	mac.Gateways[0].MAC = "02:00:5e:10:00:01"
	set(mac)
	receives(t, m)
	if s := m.Snapshot(); s.Online != Portal || s.Gateways[0].MAC == "" {
		t.Errorf("after the MAC of the gateway is known: %s, %+v", s.Online, s.Gateways)
	}
}

// TestHintsAlone: with the check off nothing is asked, and hints judge.
func TestHintsAlone(t *testing.T) {
	i := newInternet(t, 204)
	off := *i.probe
	off.URL = ""
	m, _ := monitorOf(t, routed(1), off)
	running(t, m)
	silent(t, m, 100*time.Millisecond)
	if s := m.Snapshot().Online; s != Unknown {
		t.Errorf("nothing is known, and it is %s", s)
	}
	m.Hint(Unresolved)
	becomes(t, m, Limited)
	m.Hint(Connected)
	becomes(t, m, SemiOnline)
	m.Hint(Resolved)
	becomes(t, m, Online)
	if n := i.asked.Load(); n != 0 {
		t.Errorf("asked %d times although it is off", n)
	}
	m.SetProbe(*i.probe)
	waitFor(t, func() bool { return i.asked.Load() == 1 })
	becomes(t, m, Online)
	m.SetProbe(*i.probe) // the same
	select {
	case <-m.Changed(): // of before
	default:
	}
	silent(t, m, 200*time.Millisecond)
	if n := i.asked.Load(); n != 1 {
		t.Errorf("asked %d times after the same was set again", n)
	}
	i.answer.Store(302)
	other := *i.probe
	other.URL += "?2"
	m.SetProbe(other)
	becomes(t, m, Portal)
	m.SetProbe(off)
	becomes(t, m, Unknown)
}

// TestSystemNameservers: they come with every look, and who changes them asks for one.
func TestSystemNameservers(t *testing.T) {
	var servers atomic.Pointer[[]netip.Addr]
	set := func(text string) { servers.Store(&[]netip.Addr{netip.MustParseAddr(text)}) }
	set("192.0.2.53")
	f := newFake()
	f.state = routed(1)
	m, err := start(f, Options{System: func() ([]netip.Addr, []string) { return *servers.Load(), []string{"home.arpa"} }})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m)
	if s := m.Snapshot(); len(s.Nameservers) != 1 || s.Nameservers[0].String() != "192.0.2.53" || len(s.DNSSuffixes) != 1 {
		t.Errorf("at first: %+v", s)
	}
	set("192.0.2.54")
	m.Look()
	receives(t, m)
	if s := m.Snapshot(); s.Nameservers[0].String() != "192.0.2.54" {
		t.Errorf("after Look: %+v", s)
	}
	m.Look()
	silent(t, m, 100*time.Millisecond)
}

func BenchmarkHint(b *testing.B) {
	f := newFake()
	f.state = routed(1)
	m, err := start(f, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Hint(Connected)
	}
}
