package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatun/e2e/lab"
)

// onlinePolicy permits everything. The page is one of the lab's server, which begins with hello.
const onlinePolicy = `version: 1
network: {onlineCheck: "http://check.example.org/#hello"}
`

// The router's rules: what a portal does with a machine that has not logged in, and other ways in
// which a network is broken. Portals drop IPv6.
const (
	portalFilter = `table inet portal {
  chain forward {
    type filter hook forward priority 0;
    ct state established accept
    iifname "br0" meta nfproto ipv6 drop
    iifname "br0" tcp dport 443 reject with tcp reset
    iifname "br0" drop
  }
}
`
	portalWeb = `table ip portalnat {
  chain prerouting {
    type nat hook prerouting priority -100;
    iifname "br0" tcp dport 80 redirect to :%d
    %s
  }
}
`
	portalNames = `iifname "br0" udp dport 53 redirect to :5353`
	forward     = "table inet portal {\n  chain forward {\n    type filter hook forward priority 0;\n    iifname \"br0\" %s\n  }\n}\n"
)

// site is a lab with `gatun up` in its host, whose router is now one thing, now another.
type site struct {
	*testing.T
	lab   *lab.Lab
	gatun *lab.Gatun
}

func newSite(t *testing.T) *site {
	t.Helper()
	l := newLab(t)
	p, err := l.Start(l.Router, lab.Spec{Pipe: true}, l.Bins.Peer, "portal", "-own", lab.Gateway4)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdout.Read(make([]byte, 16)); err != nil { // it says when it listens
		t.Fatal(err)
	}
	config := filepath.Join(l.Dir, "policy.yaml")
	if err := os.WriteFile(config, []byte(onlinePolicy), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &site{T: t, lab: l}
	s.host("ip", "-6", "route", "del", "default") // so that "no route" is one command
	if s.gatun, err = l.Up(config); err != nil {
		t.Fatal(err)
	}
	return s
}

// router gives the router these rules in place of those before.
func (s *site) router(rules string) {
	s.Helper()
	file := filepath.Join(s.lab.Dir, "portal.nft")
	text := "table inet portal\ndelete table inet portal\ntable ip portalnat\ndelete table ip portalnat\n" + rules
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
	if out, err := s.lab.Router.Output("nft", "-f", file); err != nil {
		s.Fatal(out, err)
	}
}

// online is what `status` says.
type online struct {
	Online, Portal string
	Nameservers    []string
	Modules        []struct{ Name, State, Message string }
}

func (s *site) status() (o online) {
	s.Helper()
	out, err := s.gatun.Client("status", "--json")
	if err == nil {
		err = json.Unmarshal(out, &o)
	}
	if err != nil {
		s.Fatal(err)
	}
	return o
}

// becomes waits for a state and returns how long that took. meanwhile is done again and again.
func (s *site) becomes(want string, meanwhile func()) time.Duration {
	s.Helper()
	began, was := time.Now(), map[string]bool{}
	for {
		have := s.status()
		if have.Online == want {
			return time.Since(began)
		}
		if was[have.Online] = true; time.Since(began) > 60*time.Second {
			s.Fatalf("it is %s after 60 s (it was %v), not %s; gatun said:\n%s", have.Online, was, want, s.gatun.Tail())
		}
		if meanwhile != nil {
			meanwhile()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// join makes the host leave the network and come back, as one does who carries a laptop.
func (s *site) join() {
	s.Helper()
	s.host("ip", "route", "del", "default")
	s.becomes("limited", nil)
	if err := s.lab.ResetCounters(); err != nil {
		s.Fatal(err)
	}
	s.host("ip", "route", "add", "default", "via", lab.Gateway4, "dev", "eth0")
	question, err := lab.ParseMatch("udp", lab.Resolver4+":53")
	if err != nil {
		s.Fatal(err)
	}
	// What it was before is no longer what it is: the check has begun.
	if err := lab.Wait(time.Minute, "it asks", func() (bool, error) {
		n, err := s.lab.Count(question)
		return n > 0, err
	}); err != nil {
		s.Fatal(err)
	}
}

func (s *site) host(command ...string) {
	s.Helper()
	if out, err := s.lab.Host.Output(command...); err != nil {
		s.Fatal(out, err)
	}
}

// program runs the helper as a program of the host, through gatun.
func (s *site) program(args ...string) lab.Result {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := s.gatun.Program(ctx, args...)
	if err != nil {
		s.Fatal(err)
	}
	return r
}

// networks is what the module of that name says.
func (o online) networks() string {
	for _, m := range o.Modules {
		if m.Name == "networks" {
			return m.State + ": " + m.Message
		}
	}
	return ""
}

// TestOnline brings a machine into networks of every kind, with gatun between it and them, and
// back out again.
func TestOnline(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	t.Logf("first seen online %v after it was up", s.becomes("online", nil).Round(time.Millisecond))
	if have := s.status(); fmt.Sprint(have.Nameservers) != "["+lab.Resolver4+" "+lab.Resolver6+"]" || have.Portal != "" || !strings.HasPrefix(have.networks(), "ok: ") {
		t.Errorf("online: %+v", have)
	}
	web := func() { s.program("tcp", "198.51.100.11:80") }
	for _, c := range []struct {
		name, rules, want string
		portal            string // the address in status
		program           string // what a program sees at port 80: its own SYN is taken by the portal
	}{
		{"302", portalFilter + fmt.Sprintf(portalWeb, 8302, portalNames), "portal", "http://login.portal.example/?for=check.example.org", "connected"},
		{"302, true names", portalFilter + fmt.Sprintf(portalWeb, 8302, "") + namesPass, "portal", "http://login.portal.example/?for=check.example.org", "connected"},
		{"200", portalFilter + fmt.Sprintf(portalWeb, 8200, portalNames), "portal", "http://check.example.org/", "connected"},
		{"511", portalFilter + fmt.Sprintf(portalWeb, 8511, portalNames), "portal", "http://check.example.org/", "connected"},
		{"no names", fmt.Sprintf(forward, "meta l4proto { tcp, udp } th dport 53 drop"), "semi-online", "", "connected"},
		{"no UDP", fmt.Sprintf(forward, "meta l4proto udp drop"), "semi-online", "", "connected"},
		{"nothing gets out", fmt.Sprintf(forward, "drop"), "limited", "", ""},
		{"no route behind the router", fmt.Sprintf(forward, "reject with icmpx type no-route"), "limited", "", ""},
		{"no web", fmt.Sprintf(forward, "tcp dport 80 drop"), "limited", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &site{T: t, lab: s.lab, gatun: s.gatun}
			s.router(c.rules)
			s.join()
			found := s.becomes(c.want, nil)
			have := s.status()
			if have.Portal != c.portal || (c.want == "portal") != strings.HasPrefix(have.networks(), "warning: a captive portal") {
				t.Errorf("portal %q, %q; want %q", have.Portal, have.networks(), c.portal)
			}
			if c.program != "" {
				s.stays(c.want, c.program)
			}
			s.router("")
			alone := s.becomes("online", nil)
			s.router(c.rules)
			s.join()
			s.becomes(c.want, nil)
			s.router("")
			hinted := s.becomes("online", web)
			t.Logf("%s: seen after %v; over after %v, with a program at work after %v", c.want,
				found.Round(time.Millisecond), alone.Round(time.Millisecond), hinted.Round(time.Millisecond))
		})
	}
}

// namesPass lets queries through in front of the other rules.
const namesPass = "insert rule inet portal forward udp dport 53 accept\n"

// stays: whatever programs connect to, and however well that works, the state is what it was.
// A SYN that gatun's own stack takes, or the portal does, says nothing about the Internet.
func (s *site) stays(want, sees string) {
	s.Helper()
	for range 20 {
		if r := s.program("tcp", "198.51.100.11:80"); r.Result != sees {
			s.Errorf("a program sees %s (%s), want %s", r.Result, r.Error, sees)
		}
		if have := s.status().Online; have != want {
			s.Fatalf("it became %s while programs connect, want %s", have, want)
		}
	}
}

// TestPortalLater: the portal ends the session while the machine is online. Nothing is sent until
// somebody notices that something is wrong.
func TestPortalLater(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.becomes("online", nil)
	before := s.asked()
	for range 20 {
		s.program("tcp", "198.51.100.11:80")
	}
	time.Sleep(2 * time.Second)
	if n := s.asked() - before; n != 0 {
		t.Errorf("the page was looked for %d times while all was well", n)
	}
	s.router(portalFilter + fmt.Sprintf(portalWeb, 8302, portalNames))
	took := s.becomes("portal", func() { s.program("tcp", "198.51.100.10:443") })
	t.Logf("noticed %v after the first program that was refused", took.Round(time.Millisecond))
	s.router("")
	s.becomes("online", nil)
}

// asked counts the queries for the page's host.
func (s *site) asked() int {
	s.Helper()
	n, err := s.lab.Asked("check.example.org")
	if err != nil {
		s.Fatal(err)
	}
	return n
}

// TestNoNetwork: a machine without a way out sends nothing, and notices at once when there is one.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.becomes("online", nil)
	s.host("ip", "link", "set", "eth0", "down")
	s.becomes("offline", nil)
	before := s.asked()
	time.Sleep(3 * time.Second)
	if n := s.asked() - before; n != 0 {
		t.Errorf("asked %d times without a network", n)
	}
	if have := s.status().networks(); have != "info: offline: no network" {
		t.Errorf("status says %q", have)
	}
	s.host("ip", "link", "set", "eth0", "up")
	s.host("ip", "route", "add", "default", "via", lab.Gateway4, "dev", "eth0")
	t.Logf("back after %v", s.becomes("online", nil).Round(time.Millisecond))
}
