//go:build linux

package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
)

// answerer is the other side of the redirect: it answers with what it knows of the flow.
type answerer struct {
	*DNSListener
	mu   sync.Mutex
	errs []error
	seen int
}

func (l *lab) answers() *answerer {
	l.t.Helper()
	d, err := ListenDNS()
	if err != nil {
		l.t.Fatal(err)
	}
	a := &answerer{DNSListener: d}
	for _, c := range d.UDP {
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				text := a.describe(packet.UDP, from, c.LocalAddr().(*net.UDPAddr).AddrPort())
				_, _ = c.WriteToUDPAddrPort(append(buf[:n:n], text...), from)
			}
		}()
	}
	for _, ln := range d.TCP {
		go func() {
			for {
				c, err := ln.AcceptTCP()
				if err != nil {
					return
				}
				text := a.describe(packet.TCP, c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort())
				go func() {
					defer c.Close()
					_, _ = c.Write([]byte(text))
					_, _ = io.Copy(c, c)
				}()
			}
		}()
	}
	return a
}

func (a *answerer) describe(p packet.Proto, from, at netip.AddrPort) string {
	o, err := a.Original(packet.Flow{Proto: p, Local: from, Remote: at})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen++
	if err != nil {
		a.errs = append(a.errs, err)
		return "error"
	}
	return fmt.Sprintf("|%v>%v", o.Local, o.Remote)
}

func (a *answerer) failures() []error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.errs)
}

func (a *answerer) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen
}

// servers53 are all kinds of addresses that a program may ask.
var servers53 = []string{"127.0.0.53", "127.0.0.1", "127.77.1.2", "::1", host4, host6, far4, far6, router4, router6, "203.0.113.9"}

// Whatever server is asked and however, our listener gets the question, knows who asked whom, and
// the program's answer comes from the server that it asked.
func TestLiveDNSIsRedirected(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		for _, rpFilter := range []string{"0", "1", "2"} {
			l.sh("sysctl -qw net.ipv4.conf.all.rp_filter=" + rpFilter + " net.ipv4.conf.eth0.rp_filter=" + rpFilter + " net.ipv4.conf.lo.rp_filter=" + rpFilter)
			a := l.answers()
			l.openTun(false)
			m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
			l.up(m)
			before := l.captured.Load()
			for _, server := range servers53 {
				to := net.JoinHostPort(server, "53")
				if err := connectedQuery(to); err != nil {
					t.Errorf("rp_filter %s: udp, connected: %v", rpFilter, err)
				}
				if err := unconnectedQuery(to); err != nil {
					t.Errorf("rp_filter %s: udp, unconnected: %v", rpFilter, err)
				}
				if err := streamQuery(to); err != nil {
					t.Errorf("rp_filter %s: tcp: %v", rpFilter, err)
				}
			}
			if want := 4 * len(servers53); a.count() != want || len(a.failures()) > 0 {
				t.Errorf("the listener saw %d of %d questions, errors %v", a.count(), want, a.failures())
			}
			if got := l.captured.Load() - before; got != 0 {
				t.Errorf("%d packets entered the TUN device", got)
			}
			if err := m.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.Close()
		}
	})
}

// expect checks an answer: the question, and the flow as the program knows it.
func expect(got []byte, local net.Addr, to string) error {
	if want := fmt.Sprintf("|%v>%v", local, to); !strings.HasSuffix(string(got), want) {
		return fmt.Errorf("%s: the listener knows %q, want %q", to, got, want)
	}
	return nil
}

func connectedQuery(to string) error {
	c, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 512)
	for range 2 {
		if _, err := c.Write([]byte("q")); err != nil {
			return err
		}
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("%s: %w", to, err)
		}
		if err := expect(buf[:n], c.LocalAddr(), to); err != nil {
			return err
		}
	}
	return nil
}

func unconnectedQuery(to string) error {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	server := netip.MustParseAddrPort(to)
	if _, err := c.WriteToUDPAddrPort([]byte("q"), server); err != nil {
		return err
	}
	buf := make([]byte, 512)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != server {
		return fmt.Errorf("%s: answer from %v", to, from)
	}
	if !strings.HasSuffix(string(buf[:n]), ">"+to) || !strings.Contains(string(buf[:n]), fmt.Sprintf(":%d>", c.LocalAddr().(*net.UDPAddr).Port)) {
		return fmt.Errorf("%s: the listener knows %q", to, buf[:n])
	}
	return nil
}

func streamQuery(to string) error {
	c, err := net.DialTimeout("tcp", to, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if c.RemoteAddr().String() != to {
		return fmt.Errorf("%s: peer %v", to, c.RemoteAddr())
	}
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return errors.Join(expect(buf[:n], c.LocalAddr(), to), echoes(c))
}

// A resolver that asks all its servers from one socket (musl does) has flows which are one after
// the redirect: the kernel tells them apart by another source port, and we must not take that for
// the program's.
func TestLiveDNSOneSocketManyServers(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		a := l.answers()
		defer a.Close()
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		for _, servers := range [][]string{{far4, router4, "203.0.113.9", host4}, {far6, router6, "2001:db8:9::9", host6}} {
			c, err := net.ListenUDP("udp", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			for _, s := range servers {
				if _, err := c.WriteToUDPAddrPort([]byte("q"), netip.AddrPortFrom(netip.MustParseAddr(s), 53)); err != nil {
					t.Fatal(err)
				}
			}
			port := c.LocalAddr().(*net.UDPAddr).Port
			for range servers {
				buf := make([]byte, 512)
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					t.Fatal(err)
				}
				asked := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()
				if !strings.HasSuffix(string(buf[:n]), fmt.Sprintf(":%d>%s", port, asked)) {
					t.Errorf("answer from %s: the listener knows %q, want port %d", asked, buf[:n], port)
				}
			}
			c.Close()
		}
		// Who sends to the listener itself has not been redirected.
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", a.Port))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("q")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 512)
		if n, err := c.Read(buf); err != nil || !bytes.HasSuffix(buf[:n], []byte("error")) {
			t.Errorf("sent to the listener itself: %q %v", buf[:n], err)
		}
		if errs := a.failures(); len(errs) != 1 || !errors.Is(errs[0], ErrNotRedirected) {
			t.Errorf("errors %v", errs)
		}
	})
}

// Our own questions pass; the mark alone is not ours.
func TestLiveDNSOfOurOwnPasses(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.atServer(func() { l.serve(net.JoinHostPort(far4, "53")) })
		l.serve("127.0.0.53:53")
		a := l.answers()
		defer a.Close()
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		own := marked(DefaultMark)
		for _, network := range []string{"udp", "tcp"} {
			for _, server := range []string{far4, "127.0.0.53"} {
				c, err := own.DialContext(t.Context(), network, net.JoinHostPort(server, "53"))
				if err == nil {
					err = echoes(c)
					c.Close()
				}
				if err != nil {
					t.Errorf("own %s to %s: %v", network, server, err)
				}
			}
		}
		if a.count() != 0 {
			t.Errorf("%d of our own questions came back", a.count())
		}
		cmd := exec.Command("/usr/bin/python3", "-c", `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 36, `+fmt.Sprint(DefaultMark)+`); s.settimeout(20)
s.connect(("127.0.0.53", 53)); s.send(b"q"); print(s.recv(512).decode())`)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: []uintptr{13}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), ">127.0.0.53:53") {
			t.Errorf("another user with our mark: %v %s", err, out)
		}
	})
}

// A program's flow and a question of ours may have the same port and server, one after the other:
// connection tracking remembers each for a while, and must not take one for the other. The host's
// own firewall lets in only what it knows.
func TestLiveDNSPortsAreUsedAgain(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.atServer(func() { l.serve(net.JoinHostPort(far4, "53")); l.serve(net.JoinHostPort(far6, "53")) })
		l.sh(`nft 'table inet ufw { chain in { type filter hook input priority 0; policy drop; iifname "lo" accept; ct state established accept; icmpv6 type { 133, 134, 135, 136 } accept; }; }'
			sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1`)
		a := l.answers()
		defer a.Close()
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		for _, server := range []string{far4, far6} {
			for i := range 6 {
				d := net.Dialer{LocalAddr: &net.UDPAddr{Port: 20000}}
				if i%2 == 1 {
					d = marked(DefaultMark)
					d.LocalAddr = &net.UDPAddr{Port: 20000}
				}
				before := a.count()
				c, err := d.Dial("udp", net.JoinHostPort(server, "53"))
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				buf := make([]byte, 512)
				_, _ = c.Write([]byte("q"))
				n, err := c.Read(buf)
				if redirected := a.count() > before; err != nil || redirected != (i%2 == 0) || bytes.Contains(buf[:n], []byte("error")) {
					t.Errorf("%s, question %d from the same port: redirected %v, %q %v", server, i, redirected, buf[:n], err)
				}
				c.Close()
			}
		}
	})
}

// Sockets that a program opened before up and keeps are redirected from then on, and are free again
// after down: connection tracking must not hold them to the old way.
func TestLiveDNSOfOpenSockets(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("nft 'table inet user { chain c { type filter hook output priority 0; ct state new accept; }; }'") // tracking is on
		l.serve("127.0.0.53:53")
		c, err := net.Dial("udp", "127.0.0.53:53")
		if err != nil {
			t.Fatal(err)
		}
		stream, err := net.Dial("tcp", "127.0.0.53:53")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(echoes(c), echoes(stream)); err != nil {
			t.Fatalf("control: %v", err)
		}
		a := l.answers()
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		stop := l.run(m)
		number := 0
		asks := func(want bool) func() bool {
			return func() bool {
				before := a.count()
				number++
				question := fmt.Appendf(nil, "question %d.", number)
				_ = c.SetDeadline(time.Now().Add(time.Second))
				_, _ = c.Write(question)
				buf := make([]byte, 512)
				n, err := c.Read(buf)
				for err == nil && !bytes.HasPrefix(buf[:n], question) { // an answer that was late
					n, err = c.Read(buf)
				}
				return err == nil && (a.count() > before) == want && bytes.Contains(buf[:n], []byte(">127.0.0.53:53")) == want
			}
		}
		l.eventually(patience, "the socket is redirected", asks(true))
		if err := echoes(stream); err != nil {
			t.Errorf("a connection that was open: %v", err)
		}
		m.SetDNSPort(0)
		l.eventually(patience, "not redirected any more", asks(false))
		if s := m.Status(); s.DNSPort != 0 || s.State != On {
			t.Errorf("status %+v", s)
		}
		m.SetDNSPort(a.Port)
		l.eventually(patience, "redirected again", asks(true))
		l.sh("nft delete chain inet gatun dns")
		l.eventually(patience, "the chain is back", func() bool { return strings.Contains(l.sh("nft list ruleset"), "redirect to") })
		l.eventually(patience, "redirected again", asks(true))
		stop()
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.eventually(patience, "free after down", asks(false))
		if err := echoes(stream); err != nil {
			t.Errorf("a connection that was open: %v", err)
		}
	})
}

// A resolver that replies when the redirect is in place to what it was asked before must not keep
// the socket on the way that it had.
func TestLiveDNSLateReply(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("nft 'table inet user { chain c { type filter hook output priority 0; ct state new accept; }; }'") // tracking is on
		resolver, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53), Port: 53})
		if err != nil {
			t.Fatal(err)
		}
		defer resolver.Close()
		c, err := net.Dial("udp", "127.0.0.53:53")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("early"))
		buf := make([]byte, 512)
		_ = resolver.SetDeadline(time.Now().Add(patience))
		_, from, err := resolver.ReadFrom(buf)
		if err != nil {
			t.Fatalf("control: %v", err)
		}
		a := l.answers()
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		if _, err := resolver.WriteTo([]byte("late"), from); err != nil {
			t.Fatal(err)
		}
		stop := l.run(m)
		l.eventually(patience, "the socket is redirected", func() bool {
			_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
			_, _ = c.Write([]byte("question"))
			n, err := c.Read(buf)
			return err == nil && bytes.Contains(buf[:n], []byte(">127.0.0.53:53"))
		})
		stop()
	})
}

// After a crash the redirect leads to a port that nobody listens on, and that nobody without
// privileges can take; recover opens the way, a restart answers again.
func TestLiveDNSAfterACrash(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve("127.0.0.53:53")
		refused := func(network, to string) error {
			c, err := net.Dial(network, net.JoinHostPort(to, "53"))
			if err == nil {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = c.Write([]byte("q"))
				_, err = c.Read(make([]byte, 512))
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("%s %s: %w", network, to, err)
			}
			return nil
		}
		a := l.answers()
		l.openTun(true)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		a.Close()
		l.crash(m)
		for _, network := range []string{"udp", "tcp"} {
			for _, to := range []string{"127.0.0.53", "::1", far4, far6} {
				if err := refused(network, to); err != nil {
					t.Error("after the crash: ", err)
				}
			}
		}
		thief := exec.Command("/usr/bin/python3", "-c", fmt.Sprintf(`import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("127.0.0.1", %d))`, a.Port))
		thief.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if out, err := thief.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("PermissionError")) {
			t.Errorf("another user can take our port: %v %s", err, out)
		}
		l.openTun(true)
		a = l.answers()
		m = l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		if err := errors.Join(connectedQuery("127.0.0.53:53"), connectedQuery(net.JoinHostPort(far6, "53"))); err != nil {
			t.Errorf("after the restart: %v", err)
		}
		a.Close()
		l.crash(m)
		if err := Recover(l.stateDir, DefaultNames()); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("udp", "127.0.0.53:53")
		if err != nil {
			t.Fatal(err)
		}
		if err := echoes(c); err != nil {
			t.Errorf("after recover: %v", err)
		}
	})
}

// The listener takes the next port if somebody has the first.
func TestLiveDNSPortInUse(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		first := l.answers()
		second := l.answers()
		if first.Port != firstDNSPort || second.Port != firstDNSPort+1 {
			t.Errorf("ports %d and %d", first.Port, second.Port)
		}
		for range lastDNSPort - firstDNSPort - 1 {
			l.answers()
		}
		if _, err := ListenDNS(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("no port is left: %v", err)
		}
		first.Close()
		second.Close()
	})
}

// Where the kernel does not take the redirect (it has no NAT), the guard goes in without it and
// says so; the next wish tries again.
func TestLiveDNSRefusedByTheKernel(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		var noNAT atomic.Bool
		noNAT.Store(true)
		l.openTun(false)
		m := l.manager()
		m.put = func(g Guard, flows []packet.Flow) error {
			if noNAT.Load() && g.Chains[len(g.Chains)-1].Type == "nat" {
				return syscall.ENOENT
			}
			return installGuard(g, flows)
		}
		l.up(m)
		stop := l.run(m)
		if s := m.Status(); s.State != On || !s.GuardOK || s.DNSPort != 0 || s.DNSRefused == "" {
			t.Errorf("status %+v", s)
		}
		captured := l.captured.Load()
		c, err := net.Dial("udp", net.JoinHostPort(far4, "53"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("q"))
		l.eventually(patience, "port 53 enters the TUN device", func() bool { return l.captured.Load() > captured })
		l.sh("nft flush ruleset")
		l.eventually(patience, "the guard is back", func() bool { return strings.Contains(l.sh("nft list ruleset"), "chain guard") })
		noNAT.Store(false)
		m.SetDNSPort(0)
		m.SetDNSPort(firstDNSPort + 1)
		l.eventually(patience, "the kernel takes it now", func() bool { return m.Status().DNSPort == firstDNSPort+1 && m.Status().DNSRefused == "" })
		stop()
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// dnsCells are the ways out of the leak tests, towards port 53.
func dnsCells() []cell {
	var cells []cell
	for _, c := range leakCells() {
		if c.proto != "icmp" {
			cells = append(cells, c)
		}
	}
	return cells
}

// Port 53 leaks no more than any other, with the redirect, while somebody removes it, and without
// it. Each cell must get out while gatun is down.
func TestLiveDNSDoesNotLeak(t *testing.T) {
	long(t)
	live(t, func(t *testing.T, l *lab) {
		script := readTrick(t)
		port := func(c cell) (int, string) { return l.tryPort(c, script, 53) }
		arrived := 0
		for _, c := range dnsCells() {
			n, said := port(c)
			if n == 0 {
				t.Errorf("control: %s did not get out (%s)", c, said)
			}
			arrived += n
		}
		a := l.answers()
		defer a.Close()
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.DNSPort = a.Port })
		l.up(m)
		leaked := 0
		all := func(when string) {
			t.Helper()
			for _, c := range dnsCells() {
				if n, said := port(c); n > 0 {
					leaked += n
					t.Errorf("%s: leak: %s: %d packets (%s)", when, c, n, said)
				}
			}
		}
		all("redirected")
		redirected := a.count()
		if redirected == 0 {
			t.Error("nothing was redirected")
		}
		captured := l.captured.Load()
		l.sh("nft delete chain inet gatun dns") // nobody repairs it: Run is not started
		all("redirect removed")
		if l.captured.Load() == captured || a.count() != redirected {
			t.Errorf("without the redirect %d packets were captured and %d questions answered", l.captured.Load()-captured, a.count()-redirected)
		}
		stop := l.run(m)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			for ctx.Err() == nil {
				_ = exec.Command("nft", "delete chain inet gatun dns").Run() // fails where it is gone
			}
		}()
		all("redirect removed again and again")
		cancel()
		<-gone
		if m.Status().Repairs == 0 {
			t.Error("nothing was repaired")
		}
		l.eventually(patience, "the redirect is back", func() bool { return strings.Contains(l.sh("nft list ruleset"), "redirect to") })
		t.Logf("%d cells: %d packets without gatun, %d with it; %d redirected at first, %d repairs", len(dnsCells()), arrived, leaked, redirected, m.Status().Repairs)
		stop()
	})
}
