package interception

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/firewall"
	"gatun/network"
	"gatun/network/packet"
)

// arrival is a held packet whose verdict the test waits for.
type arrival struct {
	flow      packet.Flow
	middle    bool
	solicited bool
	said      chan string
}

func (a *arrival) Flow() packet.Flow { return a.flow }
func (a *arrival) Opens() bool       { return !a.middle }
func (a *arrival) Solicited() bool   { return a.solicited }
func (a *arrival) Accept()           { a.said <- "accept" }
func (a *arrival) Drop()             { a.said <- "drop" }
func (a *arrival) Reject()           { a.said <- "reject" }

func arrive(proto packet.Proto, from, to string) *arrival {
	return &arrival{said: make(chan string, 2), flow: packet.Flow{Proto: proto, Local: netip.MustParseAddrPort(to), Remote: netip.MustParseAddrPort(from)}}
}

// inboundLab is an Inbound whose kernel and processes the test plays.
type inboundLab struct {
	*Inbound
	t *testing.T

	mu     sync.Mutex
	owner  attribution.Owner
	hold   chan struct{} // the look-up waits for it, if it is there
	asked  int
	panics bool
	gone   map[packet.Flow]bool
	ended  []packet.Flow
}

func (l *inboundLab) Listener(ctx context.Context, _ packet.Flow) attribution.Owner {
	l.mu.Lock()
	l.asked++
	hold, owner, panics := l.hold, l.owner, l.panics
	l.mu.Unlock()
	if panics {
		panic("as a fault of ours would")
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	}
	return owner
}

func (l *inboundLab) Look(f packet.Flow) (sent, received uint64, lives bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 7, 8, !l.gone[f]
}

func (l *inboundLab) End(f packet.Flow) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, f)
	return nil
}

func (l *inboundLab) close(f packet.Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[f] = true
}

func newInboundLab(t *testing.T, yaml string) *inboundLab {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	l := &inboundLab{t: t, owner: prog("/usr/sbin/sshd"), gone: map[packet.Flow]bool{}}
	g := &Gate{Table: network.NewTable(time.Now), Firewall: master(t, yaml), Log: zap.NewNop(), Prompts: firewall.NewPrompts(time.Now), Clock: time.Now}
	l.Inbound = &Inbound{Gate: g, Listeners: l, Flows: l}
	ctx, cancel := context.WithCancel(context.Background())
	g.Attach(ctx)
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

// verdict hands a packet in and returns what became of it.
func (l *inboundLab) verdict(a *arrival) string {
	l.t.Helper()
	l.Handle(a)
	return l.said(a)
}

func (l *inboundLab) said(a *arrival) string {
	l.t.Helper()
	select {
	case v := <-a.said:
		return v
	case <-time.After(30 * time.Second):
		l.t.Fatalf("%s: no verdict", a.flow)
		return ""
	}
}

// until waits for what a goroutine of the lab is about to do.
func (l *inboundLab) until(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatal("never: " + what)
		}
	}
}

const services = `
filter:
  blockInbound: off
  serviceEndpoints:
    - "-- 10.0.0.66"
    - "- 10.0.0.67"
    - "+ LAN TCP/22"
    - "+ LAN UDP/53"
`

func TestInboundVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		yaml  string
		owner attribution.Owner
		a     *arrival
		want  string
		code  string
	}{
		"by default":        {"", prog("/a"), arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22"), "drop", "block-inbound"},
		"a rule lets in":    {services, prog("/a"), arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22"), "accept", "rule"},
		"over IPv6":         {services, prog("/a"), arrive(packet.TCP, "[fd00::9]:4000", "[fd00::1]:22"), "accept", "rule"},
		"a datagram":        {services, prog("/a"), arrive(packet.UDP, "10.0.0.9:4000", "10.0.0.1:53"), "accept", "rule"},
		"from the Internet": {services, prog("/a"), arrive(packet.TCP, "198.51.100.9:4000", "10.0.0.1:22"), "drop", "default-inbound"},
		"another port":      {services, prog("/a"), arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:23"), "drop", "default-inbound"},
		"dropped":           {services, prog("/a"), arrive(packet.TCP, "10.0.0.66:4000", "10.0.0.1:22"), "drop", "rule"},
		"blocked":           {services, prog("/a"), arrive(packet.TCP, "10.0.0.67:4000", "10.0.0.1:22"), "drop", "rule"},
		"scope": {"filter: {blockInbound: off, blockLAN: on, serviceEndpoints: [\"+ *\"]}", prog("/a"),
			arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22"), "reject", "scope-lan"},
		"our own socket": {"filter: {blockInbound: off, serviceEndpoints: [\"+ *\"]}", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSelf}},
			arrive(packet.UDP, "10.0.0.9:4000", "10.0.0.1:4711"), "drop", "own-traffic"},
		"nobody listens": {"filter: {blockInbound: off, serviceEndpoints: [\"+ *\"]}", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindUnsolicited}, Cause: attribution.CauseNoListener},
			arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22"), "accept", "rule"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newInboundLab(t, c.yaml)
			l.owner = c.owner
			if got := l.verdict(c.a); got != c.want {
				t.Errorf("the packet: %s, want %s", got, c.want)
			}
			link := l.Gate.Table.Find(c.a.flow)
			r := link.Report()
			if r.Direction != "inbound" || r.ReasonCode != c.code || r.HandedBack != (c.want == "accept") {
				t.Errorf("the link: %+v", r)
			}
		})
	}
}

// While a flow is decided its datagrams wait in their order, and a SYN that comes again is dropped;
// the look-up is made once.
func TestInboundHoldsWhileItDecides(t *testing.T) {
	l := newInboundLab(t, services)
	l.hold = make(chan struct{})
	first, again := arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22"), arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22")
	l.Handle(first)
	if got := l.verdict(again); got != "drop" {
		t.Errorf("the second SYN: %s", got)
	}
	var datagrams []*arrival
	for range maxDatagrams + 1 {
		a := arrive(packet.UDP, "10.0.0.9:4000", "10.0.0.1:53")
		datagrams = append(datagrams, a)
		l.Handle(a)
	}
	if got := l.said(datagrams[maxDatagrams]); got != "drop" {
		t.Errorf("one datagram too many: %s", got)
	}
	close(l.hold)
	if got := l.said(first); got != "accept" {
		t.Errorf("the first SYN: %s", got)
	}
	for i, a := range datagrams[:maxDatagrams] {
		if got := l.said(a); got != "accept" {
			t.Errorf("datagram %d: %s", i, got)
		}
	}
	if l.asked != 2 {
		t.Errorf("%d look-ups for two flows", l.asked)
	}
	// The verdict is known now, also where connection tracking has forgotten the flow.
	if got := l.verdict(arrive(packet.UDP, "10.0.0.9:4000", "10.0.0.1:53")); got != "accept" || l.asked != 2 {
		t.Errorf("a later datagram: %s, %d look-ups", got, l.asked)
	}
}

// The middle of a connection is let in if somebody has its socket, and nobody hears of it otherwise.
func TestInboundMiddle(t *testing.T) {
	l := newInboundLab(t, "")
	a := arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22")
	a.middle = true
	if got := l.verdict(a); got != "accept" {
		t.Errorf("of a connection that lives: %s", got)
	}
	l.close(a.flow)
	if got := l.verdict(a); got != "drop" || l.Counters().Stray != 1 {
		t.Errorf("of none: %s, %+v", got, l.Counters())
	}
	if l.Gate.Table.LiveCount() != 0 || l.asked != 0 {
		t.Error("it is in the monitor")
	}
}

// What is killed is ended in the kernel; what ended there ends in the table; a new SYN on the tuple of
// a connection that nobody has seen end is a new link.
func TestInboundEnds(t *testing.T) {
	l := newInboundLab(t, services)
	killed, closed, replaced := arrive(packet.TCP, "10.0.0.9:1", "10.0.0.1:22"), arrive(packet.TCP, "10.0.0.9:2", "10.0.0.1:22"), arrive(packet.TCP, "10.0.0.9:3", "10.0.0.1:22")
	for _, a := range []*arrival{killed, closed, replaced} {
		if got := l.verdict(a); got != "accept" {
			t.Fatal(got)
		}
	}
	l.until("they are all counted", func() bool { return l.Counters().Live == 3 })
	link := l.Gate.Table.Find(killed.flow)
	l.until("it can be killed", func() bool { return link.Kill("killed") })
	l.until("it is ended", link.Ended)
	if len(l.ended) != 1 || l.ended[0] != killed.flow {
		t.Errorf("the kernel was told to end %v", l.ended)
	}
	link = l.Gate.Table.Find(closed.flow)
	l.close(closed.flow)
	l.until("its end is noticed", link.Ended)
	if r := link.Report(); r.CloseCause != "closed" {
		t.Errorf("%+v", r)
	}
	old := l.Gate.Table.Find(replaced.flow)
	if got := l.verdict(arrive(packet.TCP, "10.0.0.9:3", "10.0.0.1:22")); got != "accept" || !old.Ended() || l.Gate.Table.Find(replaced.flow) == old {
		t.Errorf("a new connection on its tuple: %s", got)
	}
	l.until("bytes are read", func() bool { s, r := l.Gate.Table.Find(replaced.flow).Bytes(); return s == 7 && r == 8 })
}

// A denial is remembered for packets that come again, and many denials do not pile up.
// The kernel's word of a connection's end says what it has carried, however short it was. The next one of its
// name is not ended by it, and what began here is nobody's business there.
func TestInboundClosed(t *testing.T) {
	l := newInboundLab(t, `filter: {blockInbound: off, serviceEndpoints: ["+ *"]}`)
	a := arrive(packet.TCP, "192.0.2.9:4000", "192.0.2.2:22")
	l.Closed(a.flow, 1, 1) // nobody knows it
	if v := l.verdict(a); v != "accept" {
		t.Fatal(v)
	}
	link := l.Gate.Table.Find(a.flow)
	l.Closed(a.flow, 70, 80)
	if sent, received := link.Bytes(); link.Ended() || sent != 70 || received != 80 {
		t.Errorf("lives on: ended %t, %d and %d bytes", link.Ended(), sent, received)
	}
	l.close(a.flow)
	l.Closed(a.flow, 100, 200)
	if sent, received := link.Bytes(); !link.Ended() || sent != 100 || received != 200 || link.Report().CloseCause != "closed" {
		t.Errorf("ended %t, %d and %d bytes, %q", link.Ended(), sent, received, link.Report().CloseCause)
	}
	out := packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("192.0.2.2:5000"), Remote: netip.MustParseAddrPort("192.0.2.9:80")}
	mine, _ := l.Gate.Table.Link(out)
	mine.SetHandedBack()
	l.close(out)
	l.Closed(out, 1, 1)
	if sent, _ := mine.Bytes(); mine.Ended() || sent != 0 {
		t.Error("what began here was ended as what came in")
	}
}

func TestInboundDenials(t *testing.T) {
	l := newInboundLab(t, "")
	for i := range maxDenied + 100 {
		if got := l.verdict(arrive(packet.TCP, fmt.Sprintf("10.%d.%d.9:4000", i>>8, i&255), "10.0.0.1:22")); got != "drop" {
			t.Fatal(got)
		}
	}
	l.until("the oldest go", func() bool { return l.Gate.Table.LiveCount() <= maxDenied })
	last, asked := arrive(packet.TCP, fmt.Sprintf("10.%d.%d.9:4000", (maxDenied+99)>>8, (maxDenied+99)&255), "10.0.0.1:22"), l.asked
	if got := l.verdict(last); got != "drop" || l.asked != asked {
		t.Errorf("a SYN that comes again: %s, and its listener is looked up again: %v", got, l.asked != asked)
	}
}

// A flood of one address leaves places for others, and a flood of all addresses is bounded.
func TestInboundFloodIsBounded(t *testing.T) {
	l := newInboundLab(t, services)
	l.hold = make(chan struct{})
	dropped := 0
	flood := func(from string, n int) {
		for i := range n {
			a := arrive(packet.TCP, fmt.Sprintf(from, i), "10.0.0.1:22")
			l.Handle(a)
			select {
			case <-a.said:
				dropped++
			default:
			}
		}
	}
	flood("10.0.0.9:%d", 2000)
	if dropped != 2000-maxOfOne {
		t.Errorf("%d of 2000 SYNs of one address were dropped", dropped)
	}
	other := arrive(packet.TCP, "10.0.0.10:4000", "10.0.0.1:22")
	l.Handle(other)
	dropped = 0
	flood("[fd00::%x]:4000", 2000)
	if want := 2000 - (maxWaiting - maxOfOne - 1); dropped != want {
		t.Errorf("%d of 2000 SYNs of many addresses were dropped, want %d", dropped, want)
	}
	if n := l.Gate.Table.LiveCount(); n != maxWaiting {
		t.Errorf("%d links for %d that wait", n, maxWaiting)
	}
	close(l.hold)
	if got := l.said(other); got != "accept" {
		t.Errorf("the other address: %s", got)
	}
	l.until("all are decided", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.asked == maxWaiting })
}

// An answer to our own multicast query passes from the LAN, and only what the guard has marked; what
// it may is not inherited by the next flow of the same pair of hosts.
func TestInboundSolicited(t *testing.T) {
	l := newInboundLab(t, "")
	a := arrive(packet.UDP, "10.0.0.9:5353", "10.0.0.1:4711")
	a.solicited = true
	if got := l.verdict(a); got != "accept" {
		t.Errorf("an answer: %s", got)
	}
	if got := l.verdict(arrive(packet.UDP, "10.0.0.9:5353", "10.0.0.1:4712")); got != "drop" {
		t.Errorf("another datagram of the same host: %s", got)
	}
	far := arrive(packet.UDP, "198.51.100.9:5353", "10.0.0.1:4711")
	far.solicited = true
	if got := l.verdict(far); got != "drop" {
		t.Errorf("an answer from the Internet: %s", got)
	}
}

// A rule that asks holds the packet; without an answer the default of the prompt applies.
func TestInboundAsks(t *testing.T) {
	l := newInboundLab(t, "filter: {blockInbound: off, askTimeout: 1s, serviceEndpoints: [\"? LAN TCP/22\", \"+ LAN TCP/23\"]}\n")
	asks := arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22")
	l.Handle(asks)
	if got := l.verdict(arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:23")); got != "accept" {
		t.Errorf("who does not ask waits for who does: %s", got)
	}
	if got := l.said(asks); got != "drop" {
		t.Errorf("nobody answered: %s", got)
	}
}

// A panic costs one flow its packets, and nobody waits for good.
func TestInboundSurvivesAPanic(t *testing.T) {
	l := newInboundLab(t, services)
	fails := func(on bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.panics = on
	}
	fails(true)
	a := arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22")
	if got := l.verdict(a); got != "drop" {
		t.Errorf("its packet: %s", got)
	}
	fails(false)
	l.until("its link is over", func() bool { return l.Gate.Table.LiveCount() == 0 })
	if got := l.verdict(arrive(packet.TCP, "10.0.0.9:4000", "10.0.0.1:22")); got != "accept" {
		t.Errorf("when it is tried again: %s", got)
	}
}
