package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"gatun/network"
)

// neighbourhood is three hosts: ours, and one on each of its two networks.
type neighbourhood struct {
	t                 testing.TB
	ours, left, right string
}

func newNeighbourhood(t testing.TB) *neighbourhood {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is not installed")
	}
	id := os.Getpid()
	n := &neighbourhood{t: t, ours: fmt.Sprintf("gtdn-o%d", id), left: fmt.Sprintf("gtdn-l%d", id), right: fmt.Sprintf("gtdn-r%d", id)}
	for _, ns := range []string{n.ours, n.left, n.right} {
		n.run("ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		// Addresses are usable at once, without looking whether a neighbour has them.
		n.run("ip", "netns", "exec", ns, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad")
		n.run("ip", "-n", ns, "link", "set", "lo", "up")
	}
	for i, ns := range []string{n.left, n.right} {
		here := fmt.Sprintf("lan%d", i+1)
		n.run("ip", "link", "add", "eth0", "netns", ns, "type", "veth", "peer", "name", here, "netns", n.ours)
		for _, end := range []struct{ ns, link, host string }{{n.ours, here, "1"}, {ns, "eth0", "2"}} {
			n.run("ip", "-n", end.ns, "addr", "add", fmt.Sprintf("10.77.%d.%s/24", i+1, end.host), "dev", end.link)
			n.run("ip", "-n", end.ns, "addr", "add", fmt.Sprintf("fd77:%d::%s/64", i+1, end.host), "dev", end.link, "nodad")
		}
		n.run("ip", "-n", n.ours, "link", "set", here, "up")
		n.run("ip", "-n", ns, "link", "set", "eth0", "up")
		n.run("ip", "-n", ns, "addr", "add", "198.51.100.1/32", "dev", "lo") // not on the link
	}
	for ns, want := range map[string]int{n.ours: 4, n.left: 2, n.right: 2} { // of both families
		eventually(t, "the networks are up in "+ns, func() bool { return len(inside{ns: ns}.networks()) == want && n.listens(ns) })
	}
	return n
}

// listens reports whether the IPv6 addresses are the host's: the kernel makes them so in a worker of
// its own some time after the link is up.
func (n *neighbourhood) listens(ns string) bool {
	n.t.Helper()
	out, err := exec.Command("ip", "-n", ns, "-6", "route", "show", "table", "local").Output()
	addrs, err2 := exec.Command("ip", "-n", ns, "-6", "addr", "show", "scope", "global").Output()
	return err == nil && err2 == nil && strings.Count(string(out), "local fd77:") == strings.Count(string(addrs), "inet6 fd77:")
}

func (n *neighbourhood) run(args ...string) {
	n.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// in runs f on a thread inside of the namespace. Sockets stay where they were opened.
func in(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		h, err := os.Open(filepath.Join("/run/netns", ns))
		if err == nil {
			defer h.Close()
			err = unix.Setns(int(h.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// inside is a Listener in a namespace.
type inside struct {
	ns   string
	open *counted // may be nil
}

// counted is the sockets that were opened.
type counted struct {
	mu   sync.Mutex
	list []*net.UDPConn
}

// count returns how many were opened, and how many of them are open.
func (c *counted) count() (all, left int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.list {
		if raw, err := s.SyscallConn(); err == nil && raw.Control(func(uintptr) {}) == nil {
			left++
		}
	}
	return len(c.list), left
}

func (l inside) ListenPacket(ctx context.Context, network, address string) (c net.PacketConn, err error) {
	err = in(l.ns, func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	if l.open != nil && err == nil {
		l.open.mu.Lock()
		defer l.open.mu.Unlock()
		l.open.list = append(l.open.list, c.(*net.UDPConn))
	}
	return c, err
}

func (l inside) networks() (list []nearby) {
	_ = in(l.ns, func() error { list = networks(); return nil })
	return list
}

// responder is a host that answers multicast DNS by hand, so that it can also lie.
type responder struct {
	t    testing.TB
	ns   string
	conn *net.UDPConn
	v6   bool

	mu   sync.Mutex
	seen []seen
}

// seen is a query with what the wire said about it.
type seen struct {
	question  mdns.Question
	port, ttl int
}

// respond starts a responder on the host's only network. say returns the replies to a query, each
// with how it is sent.
func (n *neighbourhood) respond(ns, network string, say func(q *mdns.Msg) []said) *responder {
	n.t.Helper()
	r := &responder{t: n.t, ns: ns, v6: network == "udp6"}
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: multicastPort}
	if r.v6 {
		group.IP = net.ParseIP("ff02::fb")
	}
	if err := in(ns, func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		r.conn, err = net.ListenMulticastUDP(network, link, group)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.serve(say) })
	n.t.Cleanup(func() { r.conn.Close(); wg.Wait() })
	return r
}

// reader returns how to read a packet with its TTL.
func (r *responder) reader() func(buf []byte) (n, ttl int, from net.Addr, err error) {
	if r.v6 {
		c := ipv6.NewPacketConn(r.conn)
		c.SetControlMessage(ipv6.FlagHopLimit, true)
		return func(buf []byte) (n, ttl int, from net.Addr, err error) {
			var cm *ipv6.ControlMessage
			if n, cm, from, err = c.ReadFrom(buf); cm != nil {
				ttl = cm.HopLimit
			}
			return
		}
	}
	c := ipv4.NewPacketConn(r.conn)
	c.SetControlMessage(ipv4.FlagTTL, true)
	return func(buf []byte) (n, ttl int, from net.Addr, err error) {
		var cm *ipv4.ControlMessage
		if n, cm, from, err = c.ReadFrom(buf); cm != nil {
			ttl = cm.TTL
		}
		return
	}
}

func (r *responder) serve(say func(q *mdns.Msg) []said) {
	read := r.reader()
	buf := make([]byte, 4096)
	for {
		n, ttl, from, err := read(buf)
		if err != nil {
			return
		}
		q := new(mdns.Msg)
		if q.Unpack(buf[:n]) != nil || q.Response || len(q.Question) != 1 {
			r.t.Errorf("%x is not a query with one question", buf[:n])
			continue
		}
		r.mu.Lock()
		r.seen = append(r.seen, seen{q.Question[0], from.(*net.UDPAddr).Port, ttl})
		r.mu.Unlock()
		for _, s := range say(q) {
			r.send(s, from.(*net.UDPAddr))
		}
	}
}

// said is one reply, and where it comes from.
type said struct {
	msg  *mdns.Msg
	from string // "" is port 5353 of the host
}

func (r *responder) send(s said, to *net.UDPAddr) {
	b := packed(r.t, s.msg)
	if s.from == "" {
		if _, err := r.conn.WriteTo(b, to); err != nil {
			r.t.Errorf("answering %v: %v", to, err)
		}
		return
	}
	if err := in(r.ns, func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		c, err := lc.ListenPacket(context.Background(), "udp4", s.from)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(b, to)
		return err
	}); err != nil {
		r.t.Errorf("sending from %s: %v", s.from, err)
	}
}

func (r *responder) queries() []seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// neighbour answers as a true one: what it has of that name and type, and silence for the rest.
func neighbour(t testing.TB, records ...string) func(q *mdns.Msg) []said {
	return func(q *mdns.Msg) []said {
		m := legacy(q)
		for _, text := range records {
			rr := record(t, text)
			if lower(rr.Header().Name) == lower(q.Question[0].Name) && rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if len(m.Answer) == 0 {
			return nil
		}
		return []said{{msg: m}}
	}
}

// legacy is an empty reply to a one-shot query (RFC 6762, section 6.7).
func legacy(q *mdns.Msg) *mdns.Msg {
	m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Id: q.Id, Response: true, Authoritative: true}, Question: slices.Clone(q.Question)}
	m.Question[0].Qclass &^= unicastResponse
	return m
}

func (n *neighbourhood) rig(change func(*Options), servers ...Resolver) *rig {
	at := inside{ns: n.ours}
	r := newRig(n.t, func(o *Options) {
		o.Multicast = at
		if change != nil {
			change(o)
		}
	}, servers...)
	r.resolver.multicast.networks = at.networks
	return r
}

func TestMulticast(t *testing.T) {
	n := newNeighbourhood(t)
	left := n.respond(n.left, "udp4", neighbour(t,
		"left.local. 10 IN A 10.77.1.2", "only4.local. 10 IN A 10.77.1.2", "loop.local. 10 IN A 127.0.0.1", "loop.local. 10 IN A 10.77.1.9",
		"_http._tcp.local. 10 IN PTR a._http._tcp.local.", "9.9.254.169.in-addr.arpa. 10 IN PTR left.local.",
		"left.local. 10 IN TXT \"hi\""))
	left6 := n.respond(n.left, "udp6", neighbour(t, "left.local. 10 IN AAAA fd77:1::2", "left.local. 10 IN AAAA fe80::1", "only6.local. 10 IN AAAA fd77:1::6", "warm.local. 10 IN AAAA fd77:1::7"))
	right := n.respond(n.right, "udp4", neighbour(t, "right.local. 10 IN A 10.77.2.2", "_http._tcp.local. 10 IN PTR b._http._tcp.local."))
	system := answering(t, func(q *mdns.Msg) *mdns.Msg {
		if strings.HasPrefix(q.Question[0].Name, "domain.") {
			return respond(t, q, mdns.RcodeSuccess, "domain.local. 60 IN A 10.0.0.8")
		}
		return respond(t, q, mdns.RcodeNameError)
	})
	configured := simple(t)
	r := n.rig(func(o *Options) { o.System = func() []Resolver { return []Resolver{system.resolver()} } }, configured.resolver())
	r.firewall.after = func(q *Query, a *Answer) network.Decision {
		if !a.Local && strings.HasSuffix(q.Name, ".local") {
			t.Errorf("%s is not local", q.Name)
		}
		return accepted
	}
	for i := 0; values(r.query(t, ask("warm.local", mdns.TypeAAAA))) != "fd77:1::7"; i++ {
		if i == 10 { // it takes a new link some time to find the neighbours' hardware addresses
			t.Fatal("the link carries no IPv6")
		}
		r.Flush()
	}
	system.queries.Store(0)
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string
	}{
		{"left.local", mdns.TypeA, 0, "10.77.1.2"},
		{"LEFT.local", mdns.TypeAAAA, 0, "fd77:1::2"}, // and not fe80::1, which needs an interface beside it
		{"left.local", mdns.TypeTXT, 0, `"hi"`},
		{"right.local", mdns.TypeA, 0, "10.77.2.2"},
		{"only6.local", mdns.TypeAAAA, 0, "fd77:1::6"},
		{"only4.local", mdns.TypeAAAA, 0, ""}, // the host exists
		{"only6.local", mdns.TypeA, 0, ""},
		{"loop.local", mdns.TypeA, 0, "10.77.1.9"},
		{"_http._tcp.local", mdns.TypePTR, 0, "a._http._tcp.local. b._http._tcp.local."},
		{"9.9.254.169.in-addr.arpa", mdns.TypePTR, 0, "left.local."},
		{"domain.local", mdns.TypeA, 0, "10.0.0.8"}, // nobody near has it, the network's nameserver does
		{"nobody.local", mdns.TypeA, mdns.RcodeNameError, ""},
	} {
		reply := r.query(t, ask(c.name, c.qtype))
		if reply.Rcode != c.rcode || values(reply) != c.want {
			t.Errorf("%s %s: got %s %q, want %q", c.name, mdns.TypeToString[c.qtype], mdns.RcodeToString[reply.Rcode], values(reply), c.want)
		}
	}
	if system.queries.Load() != 2 || configured.queries.Load() != 0 {
		t.Errorf("the network's nameserver was asked %d times, the configured one %d times; want 2 and 0", system.queries.Load(), configured.queries.Load())
	}
	for _, x := range []*responder{left, left6, right} {
		for _, q := range x.queries() {
			if q.question.Qclass != mdns.ClassINET|unicastResponse || q.port == multicastPort || q.ttl != 255 {
				t.Fatalf("a query with class %x from port %d, TTL %d", q.question.Qclass, q.port, q.ttl)
			}
		}
		if len(x.queries()) < 10 {
			t.Errorf("only %d queries on one network", len(x.queries()))
		}
	}
	e := r.memory.Entity(owner("/usr/bin/app", 1000), netip.MustParseAddr("10.77.1.2"))
	if !e.Local || e.Domain == "" {
		t.Errorf("remembered %+v", e)
	}
	if rep := r.last(t); rep.Domain != "nobody.local" || rep.Rcode != "NXDOMAIN" {
		t.Errorf("recorded %+v", rep)
	}

	// The cache is used, and the setting turns it all off.
	before := len(left.queries())
	if reply := r.query(t, ask("left.local", mdns.TypeA)); values(reply) != "10.77.1.2" || len(left.queries()) != before {
		t.Errorf("got %q after %d more queries", values(reply), len(left.queries())-before)
	}
	r.Configure(Config{NoMulticast: true})
	if reply := r.query(t, ask("left.local", mdns.TypeA)); reply.Rcode != mdns.RcodeNameError || len(left.queries()) != before {
		t.Errorf("switched off: got %q after %d more queries", values(reply), len(left.queries())-before)
	}
}

// TestMulticastLies: what no neighbour with that name may say is passed over, and the true answer
// after it is taken.
func TestMulticastLies(t *testing.T) {
	const bad = "10.66.66.66"
	n := newNeighbourhood(t)
	lie := func(q *mdns.Msg, change func(m *mdns.Msg), records ...string) *mdns.Msg {
		m := legacy(q)
		for _, text := range records {
			m.Answer = append(m.Answer, record(t, text))
		}
		if change != nil {
			change(m)
		}
		return m
	}
	lies := map[string]func(q *mdns.Msg) said{
		"another id": func(q *mdns.Msg) said {
			return said{msg: lie(q, func(m *mdns.Msg) { m.Id++ }, q.Question[0].Name+" 10 IN A "+bad)}
		},
		"not a reply": func(q *mdns.Msg) said {
			return said{msg: lie(q, func(m *mdns.Msg) { m.Response = false }, q.Question[0].Name+" 10 IN A "+bad)}
		},
		"an error": func(q *mdns.Msg) said {
			return said{msg: lie(q, func(m *mdns.Msg) { m.Rcode = 3 }, q.Question[0].Name+" 10 IN A "+bad)}
		},
		"an opcode": func(q *mdns.Msg) said {
			return said{msg: lie(q, func(m *mdns.Msg) { m.Opcode = 5 }, q.Question[0].Name+" 10 IN A "+bad)}
		},
		"another question": func(q *mdns.Msg) said {
			return said{msg: lie(q, func(m *mdns.Msg) { m.Question[0].Name = "x.local." }, q.Question[0].Name+" 10 IN A "+bad)}
		},
		"another name":  func(q *mdns.Msg) said { return said{msg: lie(q, nil, "other.local. 10 IN A "+bad)} },
		"another class": func(q *mdns.Msg) said { return said{msg: lie(q, nil, q.Question[0].Name+" 10 CH A "+bad)} },
		"additional record": func(q *mdns.Msg) said {
			return said{msg: lie(q, func(m *mdns.Msg) { m.Extra, m.Answer = m.Answer, nil }, q.Question[0].Name+" 10 IN A "+bad)}
		},
		"this machine": func(q *mdns.Msg) said { return said{msg: lie(q, nil, q.Question[0].Name+" 10 IN A 127.0.0.1")} },
		"another port": func(q *mdns.Msg) said { return said{lie(q, nil, q.Question[0].Name+" 10 IN A "+bad), "10.77.1.2:5354"} },
		"from off the link": func(q *mdns.Msg) said {
			return said{lie(q, nil, q.Question[0].Name+" 10 IN A "+bad), "198.51.100.1:5353"}
		},
	}
	var control atomic.Bool
	n.respond(n.left, "udp4", func(q *mdns.Msg) []said {
		if q.Question[0].Qtype != mdns.TypeA {
			return nil
		}
		what := strings.ReplaceAll(strings.TrimSuffix(q.Question[0].Name, ".local."), "-", " ")
		if control.Load() { // the same lie, told as a truth would be
			return []said{{msg: lie(q, nil, q.Question[0].Name+" 10 IN A "+bad)}}
		}
		truth := lie(q, nil, "other.local. 10 IN A "+bad, q.Question[0].Name+" 10 IN A 10.77.1.2")
		return []said{lies[what](q), {msg: truth}, {msg: lie(q, nil, q.Question[0].Name+" 10 IN A "+bad)}} // the last one contradicts
	})
	r := n.rig(nil)
	for what := range lies {
		name := strings.ReplaceAll(what, " ", "-") + ".local"
		if reply := r.query(t, ask(name, mdns.TypeA)); values(reply) != "10.77.1.2" {
			t.Errorf("%s: got %v", what, reply)
		}
	}
	if name := r.memory.Display(netip.MustParseAddr(bad)); name != "" {
		t.Errorf("the lie is remembered as %s", name)
	}
	control.Store(true)
	if reply := r.query(t, ask("control.local", mdns.TypeA)); values(reply) != bad {
		t.Errorf("positive control: got %v", reply)
	}
}

// TestMulticastEnds: nobody waits longer than that, and nothing is left behind.
func TestMulticastEnds(t *testing.T) {
	n := newNeighbourhood(t)
	r := n.rig(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan []byte)
	go func() {
		done <- r.ServeUDP(ctx, clientFlow, owner("/bin/a", 0), packed(t, ask("a.local", mdns.TypeA)))
	}()
	for r.Counters().Misses == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if b := <-done; b != nil {
		t.Error("a query that was given up is answered")
	}
	if reply := r.query(t, ask("b.local", mdns.TypeA)); reply.Rcode != mdns.RcodeNameError {
		t.Errorf("got %v", reply)
	}
}

// TestMulticastFlood: a program that asks for many names costs no more sockets than one that asks
// for one, and all of them are closed in the end.
func TestMulticastFlood(t *testing.T) {
	n := newNeighbourhood(t)
	n.respond(n.left, "udp4", neighbour(t, "there.local. 10 IN A 10.77.1.2"))
	open := &counted{}
	r := n.rig(func(o *Options) { o.Multicast = inside{ns: n.ours, open: open} })
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if reply := r.query(t, ask(fmt.Sprintf("n%d.local", i), mdns.TypeA)); reply.Rcode != mdns.RcodeNameError {
				t.Errorf("got %v", reply)
			}
		})
	}
	wg.Go(func() {
		if reply := r.queryAs(t, owner("/usr/bin/other", 0), ask("there.local", mdns.TypeA)); values(reply) != "10.77.1.2" {
			t.Errorf("another program got %v", reply)
		}
	})
	wg.Wait()
	all, left := open.count()
	t.Logf("101 names at once: %d sockets", all)
	if all < 4 || all > 12 || left != 0 { // 4 at a time, for two networks and two families; a slow machine may need two rounds
		t.Errorf("%d sockets for 101 names, %d are left", all, left)
	}
	if reply := r.query(t, ask("there.local", mdns.TypeA)); values(reply) != "10.77.1.2" {
		t.Errorf("after it: %v", reply)
	}
}
