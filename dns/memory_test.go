package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/network"
)

type memoryRig struct {
	*Memory
	now time.Time
}

func newMemory(o MemoryOptions) *memoryRig {
	r := &memoryRig{now: time.Now()}
	o.Clock = func() time.Time { return r.now }
	r.Memory = NewMemory(o)
	return r
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestMemoryIsPerProgram(t *testing.T) {
	m := newMemory(MemoryOptions{})
	x := addr("198.51.100.1")
	ambiguous := owner("/usr/bin/a", 1000)
	ambiguous.Confidence = attribution.Ambiguous
	pathless := owner("", 1000)
	inherited := owner("/usr/bin/a", 1000)
	inherited.Confidence = attribution.Inherited
	otherPID := owner("/usr/bin/a", 1000)
	otherPID.Process.PID = 99
	unknown := attribution.Unidentified("gone")

	m.Remember(owner("/usr/bin/a", 1000), Resolved{Name: "a.example", CNAMEs: []string{"c.example"}, Addrs: []netip.Addr{x}, TTL: time.Minute})
	for name, c := range map[string]struct {
		o    attribution.Owner
		want string
	}{
		"itself":               {owner("/usr/bin/a", 1000), "a.example"},
		"another process":      {otherPID, "a.example"},
		"inherited socket":     {inherited, "a.example"},
		"another user":         {owner("/usr/bin/a", 0), ""},
		"another program":      {owner("/usr/bin/b", 1000), ""},
		"ambiguous":            {ambiguous, ""},
		"without a path":       {pathless, ""},
		"unidentified":         {unknown, ""},
		"the kernel":           {attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSystem}}, ""},
		"confidence only none": {attribution.Owner{Process: owner("/usr/bin/a", 1000).Process}, ""},
	} {
		if e := m.Entity(c.o, x); e.Domain != c.want || e.Addr != x {
			t.Errorf("%s: got %+v, want %q", name, e, c.want)
		}
	}
	e := m.Entity(owner("/usr/bin/a", 1000), x)
	if !slices.Equal(e.CNAMEs, []string{"c.example"}) || e.Source != network.DomainDNS {
		t.Errorf("got %+v", e)
	}
	if e := m.Entity(owner("/usr/bin/a", 1000), addr("::ffff:198.51.100.1")); e.Domain != "a.example" {
		t.Errorf("mapped address: %+v", e)
	}
	if m.Display(x) != "a.example" || m.Display(addr("198.51.100.2")) != "" {
		t.Error("display")
	}

	// The unidentified are one identity of their own, and never lend a name.
	y := addr("198.51.100.2")
	m.Remember(unknown, Resolved{Name: "u.example", Addrs: []netip.Addr{y}, TTL: time.Minute})
	if m.Entity(ambiguous, y).Domain != "u.example" || m.Entity(owner("/usr/bin/a", 1000), y).Domain != "" || m.Display(y) != "u.example" {
		t.Error("unidentified")
	}
}

// TestTwoProgramsOneAddress: 0 cross-attribution.
func TestTwoProgramsOneAddress(t *testing.T) {
	m := newMemory(MemoryOptions{})
	x := addr("198.51.100.1")
	a, b := owner("/usr/bin/a", 1000), owner("/usr/bin/b", 1000)
	for range 3 {
		m.now = m.now.Add(time.Second)
		m.Remember(a, Resolved{Name: "a.example", Addrs: []netip.Addr{x}, TTL: time.Minute})
		m.now = m.now.Add(time.Second)
		m.Remember(b, Resolved{Name: "b.example", Addrs: []netip.Addr{x}, TTL: time.Minute})
		ea, eb := m.Entity(a, x), m.Entity(b, x)
		if ea.Domain != "a.example" || eb.Domain != "b.example" || len(ea.Others)+len(eb.Others) != 0 || m.Display(x) != "b.example" {
			t.Fatalf("got %+v and %+v", ea, eb)
		}
	}
}

func TestNewestNameAndOthers(t *testing.T) {
	m := newMemory(MemoryOptions{})
	x, a := addr("2001:db8::1"), owner("/usr/bin/a", 0)
	for i := range 12 {
		m.now = m.now.Add(time.Second)
		m.Remember(a, Resolved{Name: fmt.Sprintf("n%d.example", i), Addrs: []netip.Addr{x}, TTL: time.Minute})
	}
	m.Remember(a, Resolved{Name: "n9.example", Addrs: []netip.Addr{x}, TTL: time.Minute})
	e := m.Entity(a, x)
	want := []string{"n11.example", "n10.example", "n8.example", "n7.example", "n6.example", "n5.example", "n4.example"}
	if e.Domain != "n9.example" || !slices.Equal(e.Others, want) {
		t.Fatalf("got %+v", e)
	}
}

func TestMemoryForgets(t *testing.T) {
	a, x := owner("/usr/bin/a", 0), addr("198.51.100.1")
	known := func(m *memoryRig) bool { return m.Entity(a, x).Domain != "" }

	m := newMemory(MemoryOptions{})
	m.Remember(a, Resolved{Name: "a.example", Addrs: []netip.Addr{x}, TTL: time.Second})
	m.now = m.now.Add(leastMemory + tailMemory - time.Second)
	if !known(m) {
		t.Error("forgotten within the tail")
	}
	m.now = m.now.Add(tailMemory + time.Second)
	if known(m) || m.Len() != 0 {
		t.Errorf("still known, or still held: %d", m.Len())
	}

	m.Remember(a, Resolved{Name: "a.example", Addrs: []netip.Addr{x}, TTL: time.Second})
	start := m.now
	for known(m) { // a program that goes on using it
		m.now = m.now.Add(50 * time.Minute)
	}
	if d := m.now.Sub(start); d < mostMemory-tailMemory || d > mostMemory+tailMemory {
		t.Errorf("in use, forgotten after %v", d)
	}

	m.Remember(a, Resolved{Name: "a.example", Addrs: []netip.Addr{x}, TTL: 1000 * time.Hour})
	m.now = m.now.Add(mostMemory + time.Second)
	if known(m) {
		t.Error("a huge TTL is believed for ever")
	}

	m = newMemory(MemoryOptions{})
	m.Remember(a, Resolved{Name: "old.example", Addrs: []netip.Addr{x}, TTL: time.Second})
	m.now = m.now.Add(leastMemory + tailMemory - time.Minute)
	m.Remember(a, Resolved{Name: "new.example", Addrs: []netip.Addr{x}, TTL: time.Second})
	m.now = m.now.Add(2 * time.Minute)
	if e := m.Entity(a, x); e.Domain != "new.example" || len(e.Others) != 0 {
		t.Errorf("got %+v", e)
	}
}

func TestMemoryFlood(t *testing.T) {
	m := newMemory(MemoryOptions{Max: 1000})
	a, flood := owner("/usr/bin/a", 0), owner("/usr/bin/flood", 0)
	for i := range 100 {
		m.Remember(a, Resolved{Name: "a.example", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, TTL: time.Minute})
	}
	for i := range 100_000 {
		m.Remember(flood, Resolved{Name: "f.example", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, TTL: time.Minute})
	}
	if m.Len() != 1000 || len(m.byAddr) != 1000 {
		t.Fatalf("%d held, %d addresses", m.Len(), len(m.byAddr))
	}
	for i := range 100 {
		if m.Entity(a, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})).Domain != "a.example" {
			t.Fatal("the flood pushed out another program's names")
		}
	}
	// Many programs with one address each.
	for i := range 5000 {
		m.Remember(owner(fmt.Sprint("/tmp/", i), 0), Resolved{Name: "p.example", Addrs: []netip.Addr{addr("198.51.100.9")}, TTL: time.Minute})
	}
	if m.Len() != 1000 || len(m.programs) > 1000 || len(m.byAddr[addr("198.51.100.9")]) > 1000 {
		t.Fatalf("%d held by %d programs", m.Len(), len(m.programs))
	}
}

func TestSystemResolverSpeaksForAll(t *testing.T) {
	stub := owner("/usr/lib/systemd/systemd-resolved", 101)
	m := newMemory(MemoryOptions{Resolver: IsSystemResolver})
	x, a := addr("198.51.100.1"), owner("/usr/bin/a", 0)
	m.Remember(stub, Resolved{Name: "s.example", Addrs: []netip.Addr{x}, TTL: time.Minute})
	if m.Entity(a, x).Domain != "s.example" || m.Entity(stub, x).Domain != "s.example" {
		t.Error("the stub's name does not count")
	}
	m.Remember(a, Resolved{Name: "own.example", Addrs: []netip.Addr{x}, TTL: time.Minute})
	if m.Entity(a, x).Domain != "own.example" || m.Entity(owner("/usr/bin/b", 0), x).Domain != "s.example" {
		t.Error("the program's own name must win")
	}
	m.Remember(a, Resolved{Name: "mine.example", Addrs: []netip.Addr{addr("198.51.100.2")}, TTL: time.Minute})
	if m.Entity(stub, addr("198.51.100.2")).Domain != "" {
		t.Error("the stub takes over a program's name")
	}
	doubtful := stub
	doubtful.Confidence = attribution.Ambiguous
	for _, o := range []attribution.Owner{doubtful, owner("/tmp/systemd-resolved", 0), owner("/usr/bin/curl", 0)} {
		if IsSystemResolver(o) {
			t.Errorf("%+v taken for the system's resolver", o.Process)
		}
	}
}

func TestMemoryConcurrently(t *testing.T) {
	m := NewMemory(MemoryOptions{Max: 200})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			o := owner(fmt.Sprint("/p", g%3), 0)
			for i := range 2000 {
				x := netip.AddrFrom4([4]byte{10, 0, byte(g), byte(i)})
				m.Remember(o, Resolved{Name: fmt.Sprint("n", g%3, ".example"), Addrs: []netip.Addr{x}, TTL: time.Minute})
				if d := m.Entity(o, x).Domain; d != "" && d != fmt.Sprint("n", g%3, ".example") {
					t.Errorf("got %s", d)
				}
				m.Display(x)
			}
		})
	}
	wg.Wait()
	if m.Len() > 200 {
		t.Fatal(m.Len())
	}
}

// TestMemoryMoves: in another network a private address is another host, a public one is not.
func TestMemoryMoves(t *testing.T) {
	m := newMemory(MemoryOptions{})
	private := []netip.Addr{addr("192.168.1.5"), addr("10.0.0.1"), addr("fd00::5"), addr("169.254.3.4"), addr("100.64.0.1")}
	public := []netip.Addr{addr("198.51.100.1"), addr("2001:db8::1")}
	a, b := owner("/usr/bin/a", 0), owner("/usr/bin/b", 0)
	for _, o := range []attribution.Owner{a, b} {
		m.Remember(o, Resolved{Name: "nas.home.arpa", Addrs: slices.Concat(private, public), TTL: time.Hour, Local: true})
	}
	m.Moved()
	for _, o := range []attribution.Owner{a, b} {
		for _, x := range private {
			if e := m.Entity(o, x); e.Domain != "" || m.Display(x) != "" {
				t.Errorf("%v is still %s", x, e.Domain)
			}
		}
		for _, x := range public {
			if e := m.Entity(o, x); e.Domain != "nas.home.arpa" || !e.Local {
				t.Errorf("%v is forgotten", x)
			}
		}
	}
	if m.Len() != 4 || len(m.byAddr) != 2 {
		t.Errorf("%d held, %d addresses", m.Len(), len(m.byAddr))
	}
}

// TestMemoryTellsOfNews: whoever relies on the names of an address is told before an answer is given that
// changes them, and of nothing else.
func TestMemoryTellsOfNews(t *testing.T) {
	var told []netip.Addr
	m := newMemory(MemoryOptions{Changed: func(a netip.Addr) { told = append(told, a) }})
	a, b := owner("/usr/bin/a", 1000), owner("/usr/bin/b", 1000)
	x, y, lan := addr("198.51.100.1"), addr("198.51.100.2"), addr("10.0.0.7")
	answer := func(r Resolved) Resolved { r.TTL = time.Minute; return r }
	for i, c := range []struct {
		do   func()
		want []netip.Addr
	}{
		{func() { m.Remember(a, answer(Resolved{Name: "a.example", Addrs: []netip.Addr{x, y}})) }, []netip.Addr{x, y}},
		{func() { m.Remember(a, answer(Resolved{Name: "a.example", Addrs: []netip.Addr{y, x}})) }, nil},
		{func() { m.Remember(b, answer(Resolved{Name: "a.example", Addrs: []netip.Addr{x}})) }, []netip.Addr{x}},
		{func() { m.Remember(a, answer(Resolved{Name: "b.example", Addrs: []netip.Addr{x}})) }, []netip.Addr{x}},
		{func() {
			m.Remember(a, answer(Resolved{Name: "b.example", CNAMEs: []string{"c.example"}, Addrs: []netip.Addr{x}}))
		}, []netip.Addr{x}},
		{func() { m.Remember(a, answer(Resolved{Name: "lan.example", Addrs: []netip.Addr{lan}})) }, []netip.Addr{lan}},
		{func() { m.Moved() }, []netip.Addr{lan}},
		{func() {
			m.now = m.now.Add(leastMemory + tailMemory + time.Second) // the name was forgotten meanwhile
			m.Remember(a, answer(Resolved{Name: "a.example", Addrs: []netip.Addr{y}}))
		}, []netip.Addr{y}},
	} {
		told = nil
		if c.do(); !slices.Equal(told, c.want) {
			t.Errorf("%d: told of %v, want %v", i, told, c.want)
		}
	}
}
