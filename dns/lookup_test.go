package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestLookup asks the system's nameserver each time, whatever the cache says; with settings that
// forbid it, the configured one.
func TestLookup(t *testing.T) {
	var says atomic.Value
	u := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		m := new(mdns.Msg).SetReply(q)
		switch name := q.Question[0].Name; {
		case name == "none.example.":
			m.Rcode = mdns.RcodeNameError
		case name == "blocked.example.":
			m.Answer = append(m.Answer, &mdns.A{Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 60}, A: net.IPv4zero})
		case name == "broken.example.":
			m.Rcode = mdns.RcodeServerFailure
		case q.Question[0].Qtype == mdns.TypeA:
			rr, err := mdns.NewRR(name + " 300 IN A " + says.Load().(string))
			if err != nil {
				t.Error(err)
				return
			}
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			t.Error(err)
			return
		}
		send(b)
	}, nil)
	system := []Resolver{u.resolver()}
	s := New(Options{Dialer: &netDialer{}, System: func() []Resolver { return system },
		Config: Config{Nameservers: []Resolver{{Scheme: SchemeDNS, Addr: netip.MustParseAddrPort("127.0.0.1:9")}}}})
	ask := func(name string) ([]netip.Addr, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return s.Lookup(ctx, name)
	}
	for _, want := range []string{"192.0.2.7", "198.51.100.1"} {
		says.Store(want)
		if got, err := ask("probe.example"); err != nil || !slices.Equal(got, []netip.Addr{netip.MustParseAddr(want)}) {
			t.Errorf("got %v, %v; want %s", got, err, want)
		}
	}
	if n := s.Counters().CacheEntries; n != 0 {
		t.Errorf("%d answers are cached", n)
	}
	if got, err := ask("none.example"); err != nil || len(got) != 0 {
		t.Errorf("a name that is not there: %v, %v", got, err)
	}
	if got, err := ask("broken.example"); err == nil {
		t.Errorf("a failure is an answer: %v", got)
	}
	if got, err := ask("blocked.example"); err != nil || len(got) != 0 {
		t.Errorf("a name that the nameserver blocks: %v, %v", got, err)
	}
	s.Configure(Config{Nameservers: []Resolver{u.resolver()}, NoAssigned: true})
	asked := 0
	system = []Resolver{newUpstream(t, func(*mdns.Msg, []byte, netip.AddrPort, func([]byte)) { asked++ }, nil).resolver()}
	if got, err := ask("probe.example"); err != nil || len(got) != 1 || asked != 0 {
		t.Errorf("with the system's forbidden: %v, %v, those were asked %d times", got, err, asked)
	}
	s.Configure(Config{NoAssigned: true})
	if _, err := ask("probe.example"); !errors.Is(err, ErrNoNameserver) {
		t.Errorf("with nobody to ask: %v", err)
	}
}

func TestSearchDomains(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 192.0.2.1\n":                                        "",
		"search Corp.Example. lan\nnameserver 192.0.2.1\n":              "corp.example lan",
		"nameserver 192.0.2.1\ndomain home.arpa\n":                      "home.arpa",
		"search a.example\nsearch b.example\nnameserver 192.0.2.1\n":    "b.example",
		"search . .. a a A a.\nnameserver 192.0.2.1\n":                  "a",
		"nameserver 127.0.0.53\nsearch of.the.stub\n":                   "of.uplink",
		"search\nnameserver 192.0.2.1\n":                                "",
		"search " + strings.Repeat("x ", 99) + "\nnameserver 192.0.2.1": "x",
	} {
		s := NewSystem(SystemOptions{Root: host(t, map[string]string{etcConf: text, uplinkConf: "nameserver 192.0.2.9\nsearch of.uplink\n"})}, time.Now)
		if got := strings.Join(s.Search(), " "); got != want {
			t.Errorf("%q: search %q, want %q", text, got, want)
		}
	}
}

// TestSystemRefresh: who saw a file change need not wait for the next second.
func TestSystemRefresh(t *testing.T) {
	root := host(t, map[string]string{etcConf: "nameserver 192.0.2.1\n"})
	now := time.Now()
	s := NewSystem(SystemOptions{Root: root}, func() time.Time { return now })
	if !slices.Contains(s.Paths(), root+etcConf) {
		t.Errorf("paths %v", s.Paths())
	}
	write(t, root+etcConf, "nameserver 192.0.2.22\nsearch new.example\n")
	if got := s.Search(); len(got) != 0 {
		t.Errorf("looked again at once: %v", got)
	}
	s.Refresh()
	if got := s.Search(); !slices.Equal(got, []string{"new.example"}) {
		t.Errorf("after Refresh: %v", got)
	}
}

// TestTold: who asked to know learns of each inquiry whether anybody answered, and nothing of
// what the cache answers.
func TestTold(t *testing.T) {
	var told []error
	silent := Resolver{Scheme: SchemeDNS, Addr: netip.MustParseAddrPort("127.0.0.1:9")} // refuses at once
	u := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		m := new(mdns.Msg).SetReply(q)
		rr, err := mdns.NewRR(q.Question[0].Name + " 300 IN A 192.0.2.7")
		if err != nil {
			t.Error(err)
			return
		}
		m.Answer = append(m.Answer, rr)
		if b, err := m.Pack(); err == nil {
			send(b)
		}
	}, nil)
	s := New(Options{Dialer: &netDialer{}, Told: func(err error) { told = append(told, err) }})
	for i, r := range []Resolver{u.resolver(), u.resolver(), silent} {
		k := key{name: "a.example", qtype: mdns.TypeA}
		if i == 2 {
			k.name = "b.example"
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, _ = s.resolver.resolve(ctx, program{}, k, choice{groups: [][]Resolver{{r}}})
		cancel()
	}
	if len(told) != 2 || told[0] != nil || told[1] == nil {
		t.Errorf("told %v; want one answer and one failure", told)
	}
}
