package network

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/network/packet"
)

// fixed is a branch with the keys of a list.
type fixed []string

func (f fixed) Get(key string) (any, bool) { return "value of " + key, slices.Contains(f, key) }

func (f fixed) Query(prefix string) (list []Record) {
	for _, k := range f {
		if strings.HasPrefix(k, prefix) {
			list = append(list, Record{Key: k, Value: "value of " + k})
		}
	}
	return list
}

func keysOf(list []Record) string {
	var keys []string
	for _, r := range list {
		keys = append(keys, r.Key)
	}
	return strings.Join(keys, " ")
}

func TestDatabase(t *testing.T) {
	d := NewDatabase(map[string]Source{"b": fixed{"x/1", "x/2", "y"}, "a": fixed{"1"}, "ab": fixed{"1"}})
	if got := strings.Join(d.Branches(), " "); got != "a ab b" {
		t.Errorf("branches %s", got)
	}
	for prefix, want := range map[string]string{
		"": "a/1 ab/1 b/x/1 b/x/2 b/y", "a": "a/1 ab/1", "a/": "a/1", "a/1": "a/1", "a/2": "", "b": "b/x/1 b/x/2 b/y", "b/x": "b/x/1 b/x/2", "b/x/2": "b/x/2",
	} {
		list, known := d.Query(prefix)
		if keysOf(list) != want || !known {
			t.Errorf("%q: got %q, %v", prefix, keysOf(list), known)
		}
	}
	for _, prefix := range []string{"c", "c/1", "abc", "/"} {
		if list, known := d.Query(prefix); known || list != nil {
			t.Errorf("%q: got %v", prefix, list)
		}
	}
	if v, ok := d.Get("b/x/1"); !ok || v != "value of x/1" {
		t.Errorf("got %v, %v", v, ok)
	}
	for _, key := range []string{"", "b", "b/", "b/z", "c/1"} {
		if v, ok := d.Get(key); ok {
			t.Errorf("%q: got %v", key, v)
		}
	}
}

// Links of one program to one name are one communication with their sums; what has no owner is
// an identity of its own each time; an ended link counts no more.
func TestCommunications(t *testing.T) {
	table := NewTable(time.Now)
	process := &attribution.Process{PID: 7, Path: "/usr/bin/a b", Name: "a/b", Kind: attribution.KindProgram}
	add := func(port uint16, o attribution.Owner, domain, addr string) *Link {
		f := packet.Flow{Proto: packet.TCP, Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), Remote: netip.AddrPortFrom(netip.MustParseAddr(addr), 443)}
		l, _ := table.Link(f)
		table.Bind(l, &Communication{Owner: o, Entity: Entity{Addr: f.Remote.Addr(), Domain: domain, Source: DomainDNS}})
		table.Decide(l, Decision{Verdict: Accept})
		l.AddSent(int(port))
		return l
	}
	owner := attribution.Owner{Process: process, Confidence: attribution.Exact}
	first := add(1, owner, "a.example", "198.51.100.1")
	add(2, owner, "a.example", "198.51.100.2")
	add(3, owner, "", "198.51.100.3")
	add(4, attribution.Unidentified("nobody"), "", "198.51.100.4")
	add(5, attribution.Unidentified("nobody"), "", "198.51.100.4")
	hidden := table.Unlisted(packet.Flow{Proto: packet.UDP})
	table.Bind(hidden, &Communication{Owner: owner})

	s := table.Communications()
	list := s.Query("")
	if want := "7/a%2Fb/outbound/a.example 7/a%2Fb/outbound/198.51.100.3 0/unidentified/outbound/198.51.100.4/4 0/unidentified/outbound/198.51.100.4/5"; keysOf(list) != want {
		t.Fatalf("got %s", keysOf(list))
	}
	r := list[0].Value.(CommunicationReport)
	if r.Sent != 3 || len(r.Links) != 2 || r.Verdict != "accept" || r.Domain != "a.example" || r.Scope != "Internet" {
		t.Errorf("got %+v", r)
	}
	if n := len(s.Query("7/")); n != 2 {
		t.Errorf("process 7 has %d", n)
	}
	table.End(first, "done")
	v, ok := s.Get("7/a%2Fb/outbound/a.example")
	if got, _ := v.(CommunicationReport); !ok || got.Sent != 2 || len(got.Links) != 1 {
		t.Errorf("got %+v", v)
	}
	if _, ok := s.Get("7/a%2Fb/outbound"); ok {
		t.Error("a prefix is no key")
	}
	if b, err := json.Marshal(v); err != nil || !strings.Contains(string(b), `"process":{"pid":7`) {
		t.Errorf("%v %s", err, b)
	}
}

func TestFlowsBranch(t *testing.T) {
	table := NewTable(time.Now)
	f := packet.Flow{Proto: packet.TCP, Remote: netip.MustParseAddrPort("198.51.100.1:443")}
	l, _ := table.Link(f)
	table.Decide(l, Decision{Verdict: Accept})
	table.End(l, "done")
	s := table.Flows()
	v, ok := s.Get(l.ID())
	if r, _ := v.(Report); !ok || r.ID != l.ID() || r.CloseCause != "done" {
		t.Errorf("got %v", v)
	}
	if _, ok := s.Get("x"); ok || keysOf(s.Query("")) != l.ID() || s.Query("x") != nil {
		t.Error("finds what is not there")
	}
}
