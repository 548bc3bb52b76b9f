package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/network"
	"gatun/network/packet"
)

// zone is what the real nameserver serves.
func zone() []string {
	z := []string{
		"peer.test. 300 IN SOA ns.peer.test. root.peer.test. 1 3600 600 86400 120",
		"peer.test. 300 IN NS ns.peer.test.",
		"peer.test. 300 IN MX 10 mail.peer.test.",
		"ns.peer.test. 300 IN A 192.0.2.53",
		"mail.peer.test. 300 IN A 192.0.2.25",
		"www.peer.test. 300 IN A 192.0.2.80",
		"www.peer.test. 300 IN AAAA 2001:db8::80",
		"txt.peer.test. 300 IN TXT \"hello world\" \"two\"",
		"svc.peer.test. 300 IN HTTPS 1 . alpn=h2,h3 ipv4hint=192.0.2.80",
		"_sip._tcp.peer.test. 300 IN SRV 1 2 5060 www.peer.test.",
		"peer.test. 300 IN CAA 0 issue \"ca.test\"",
		"4.2.0.192.in-addr.arpa. 300 IN PTR www.peer.test.",
	}
	for i := range 60 {
		z = append(z, fmt.Sprintf("many.peer.test. 300 IN A 192.0.2.%d", i+1))
	}
	for i := range 120 {
		z = append(z, fmt.Sprintf("toomany.peer.test. 300 IN A 198.51.100.%d", i+1))
	}
	for i := range 20 {
		z = append(z, fmt.Sprintf("bigtxt.peer.test. 300 IN TXT %q", strings.Repeat(string(rune('a'+i)), 200)))
	}
	return z
}

// unbound starts the real nameserver on loopback, or skips where it is not installed.
func unbound(t testing.TB) Resolver {
	t.Helper()
	path := unboundPath(t)
	for range 5 { // another process may take the port meanwhile
		if r, ok := startUnbound(t, path); ok {
			return r
		}
	}
	t.Fatal("unbound does not start; see its log above")
	return Resolver{}
}

func unboundPath(t testing.TB) string {
	path, err := exec.LookPath("unbound")
	if err != nil {
		if path = "/usr/sbin/unbound"; !exists(path) {
			t.Skip("unbound is not installed")
		}
	}
	return path
}

// startUnbound starts it with those lines of configuration more.
func startUnbound(t testing.TB, path string, lines ...string) (Resolver, bool) {
	free, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	dir := t.TempDir()
	var conf bytes.Buffer
	fmt.Fprintf(&conf, "server:\n interface: 127.0.0.1\n port: %d\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n directory: %q\n pidfile: \"\"\n use-syslog: no\n logfile: \"\"\n", at.Port(), dir)
	fmt.Fprintf(&conf, " access-control: 127.0.0.0/8 allow\n max-udp-size: 1232\n do-not-query-localhost: no\n module-config: \"iterator\"\n local-zone: \"peer.test.\" static\n local-zone: \"2.0.192.in-addr.arpa.\" static\n")
	for _, rr := range zone() {
		fmt.Fprintf(&conf, " local-data: '%s'\n", rr)
	}
	for _, line := range lines {
		conf.WriteString(" " + line + "\n")
	}
	conf.WriteString("remote-control:\n control-enable: no\n")
	file := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(file, conf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-d", "-c", file)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-gone })
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if m, err := mdns.Exchange(ask("www.peer.test", mdns.TypeA), at.String()); err == nil && len(m.Answer) == 1 {
			return Resolver{Scheme: SchemeDNS, Addr: at}, true
		}
		select {
		case <-gone:
			t.Logf("unbound said:\n%s", out.String())
			return Resolver{}, false
		case <-time.After(20 * time.Millisecond):
		}
	}
	return Resolver{}, false
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// front serves the server on loopback, as the Gate does on intercepted flows.
func front(t testing.TB, r *rig) netip.AddrPort {
	t.Helper()
	u := &upstreamSpy{}
	var err error
	for range 20 {
		if u.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		u.addr = u.udp.LocalAddr().(*net.UDPAddr).AddrPort()
		if u.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(u.addr)); err == nil {
			break
		}
		u.udp.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	o := owner("/usr/bin/dig", 0)
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := u.udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			msg := slices.Clone(buf[:n])
			wg.Go(func() {
				f := packet.Flow{Proto: packet.UDP, Local: from, Remote: u.addr}
				if b := r.ServeUDP(ctx, f, o, msg); b != nil {
					u.udp.WriteToUDPAddrPort(b, from)
				}
			})
		}
	})
	wg.Go(func() {
		for {
			c, err := u.tcp.Accept()
			if err != nil {
				return
			}
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
			wg.Go(func() { r.ServeConn(ctx, packet.Flow{Proto: packet.TCP, Local: from, Remote: u.addr}, o, c) })
		}
	})
	t.Cleanup(func() { cancel(); u.udp.Close(); u.tcp.Close(); wg.Wait() })
	return u.addr
}

// TestEqualsUnbound asks unbound directly and through us, and compares.
func TestEqualsUnbound(t *testing.T) {
	up := unbound(t)
	r := newRig(t, func(o *Options) { o.Config.ResolveSpecial = true }, up)
	via := front(t, r)
	type variant struct {
		name   string
		net    string
		change func(*mdns.Msg)
	}
	variants := []variant{
		{"udp", "udp", func(*mdns.Msg) {}},
		{"tcp", "tcp", func(*mdns.Msg) {}},
		{"edns 1232", "udp", func(m *mdns.Msg) { m.SetEdns0(1232, false) }},
		{"edns 4096", "udp", func(m *mdns.Msg) { m.SetEdns0(4096, false) }},
		{"edns 512 do", "udp", func(m *mdns.Msg) { m.SetEdns0(512, true) }},
		{"cookie", "udp", func(m *mdns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"})
		}},
		{"not recursive", "udp", func(m *mdns.Msg) { m.RecursionDesired = false }},
		{"AD", "udp", func(m *mdns.Msg) { m.AuthenticatedData = true }},
		{"tcp edns cd", "tcp", func(m *mdns.Msg) { m.SetEdns0(1232, false); m.CheckingDisabled = true }},
	}
	questions := []mdns.Question{
		{Name: "www.peer.test.", Qtype: mdns.TypeA}, {Name: "www.peer.test.", Qtype: mdns.TypeAAAA}, {Name: "wWw.PeEr.TeSt.", Qtype: mdns.TypeA},
		{Name: "www.peer.test.", Qtype: mdns.TypeMX}, {Name: "peer.test.", Qtype: mdns.TypeMX}, {Name: "peer.test.", Qtype: mdns.TypeSOA},
		{Name: "peer.test.", Qtype: mdns.TypeCAA}, {Name: "txt.peer.test.", Qtype: mdns.TypeTXT}, {Name: "svc.peer.test.", Qtype: mdns.TypeHTTPS},
		{Name: "_sip._tcp.peer.test.", Qtype: mdns.TypeSRV}, {Name: "no.peer.test.", Qtype: mdns.TypeA}, {Name: "many.peer.test.", Qtype: mdns.TypeA},
		{Name: "toomany.peer.test.", Qtype: mdns.TypeA}, {Name: "bigtxt.peer.test.", Qtype: mdns.TypeTXT}, {Name: "4.2.0.192.in-addr.arpa.", Qtype: mdns.TypePTR},
		{Name: "www.peer.test.", Qtype: mdns.TypeANY}, {Name: "no.peer.test.", Qtype: mdns.TypeANY}, {Name: "svc.peer.test.", Qtype: mdns.TypeA},
		{Name: "peer.test.", Qtype: mdns.TypeNS}, {Name: "peer.test.", Qtype: mdns.TypeDNSKEY}, {Name: "www.peer.test.", Qtype: 65400},
		{Name: "_dns.www.peer.test.", Qtype: mdns.TypeSVCB}, {Name: "a\\.b.peer.test.", Qtype: mdns.TypeA},
		{Name: "www.peer.test.", Qtype: mdns.TypeAXFR}, {Name: "www.peer.test.", Qtype: mdns.TypeOPT}, {Name: "www.peer.test.", Qtype: mdns.TypeMAILA},
	}
	cells := 0
	for _, q := range questions {
		for _, v := range variants {
			m := new(mdns.Msg)
			m.SetQuestion(q.Name, q.Qtype)
			v.change(m)
			direct, err := exchangeWith(v.net, m, up.Addr)
			if err != nil {
				t.Errorf("%v %s: asking unbound: %v", q, v.name, err)
				continue
			}
			ours, err := exchangeWith(v.net, m, via)
			if err != nil {
				t.Errorf("%v %s: asking us: %v", q, v.name, err)
				continue
			}
			cells++
			if a, b := essence(direct), essence(ours); a != b {
				t.Errorf("%s %s %s:\nunbound %s\nours    %s", q.Name, mdns.TypeToString[q.Qtype], v.name, a, b)
			}
		}
	}
	t.Logf("%d queries answered as unbound does", cells)
}

func exchangeWith(network string, m *mdns.Msg, to netip.AddrPort) (*mdns.Msg, error) {
	c := mdns.Client{Net: network, UDPSize: 4096, Timeout: 3 * time.Second}
	reply, _, err := c.Exchange(m.Copy(), to.String())
	return reply, err
}

// essence is what must be equal: rcode, question, TC, OPT and the answers, unless cut.
func essence(m *mdns.Msg) string {
	var list []string
	for _, rr := range m.Answer {
		rr = mdns.Copy(rr)
		rr.Header().Ttl, rr.Header().Name = 0, lower(rr.Header().Name)
		list = append(list, rr.String())
	}
	slices.Sort(list)
	if m.Truncated {
		list = nil
	}
	opt, question := "no OPT", ""
	if o := m.IsEdns0(); o != nil {
		opt = fmt.Sprintf("OPT version %d do %v", o.Version(), o.Do())
	}
	if m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError {
		m.RecursionAvailable = false // unbound says no where it refuses
	}
	if len(m.Question) > 0 {
		question = m.Question[0].String()
	}
	return fmt.Sprintf("%s %s TC %v RD %v RA %v CD %v %s %d %s", mdns.RcodeToString[m.Rcode], question, m.Truncated, m.RecursionDesired, m.RecursionAvailable, m.CheckingDisabled, opt, len(list), strings.Join(list, "|"))
}

// TestDig runs the real client.
func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("dig is not installed")
	}
	r := newRig(t, func(o *Options) { o.Config.ResolveSpecial = true }, unbound(t))
	r.firewall.before = func(q *Query) network.Decision {
		switch q.Name {
		case "blocked.peer.test":
			return network.Decision{Verdict: network.Block, Stage: network.StageBeforeIntel, Reason: "told so", Rule: network.RuleRef{Text: "- blocked.peer.test", File: "f.yaml", Line: 3}}
		case "dropped.peer.test":
			return network.Decision{Verdict: network.Drop, Stage: network.StageBeforeIntel, Reason: "told so"}
		}
		return network.Decision{}
	}
	at := front(t, r)
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		b, err := exec.CommandContext(ctx, dig, append([]string{"@127.0.0.1", "-p", fmt.Sprint(at.Port()), "+tries=1", "+time=2"}, args...)...).CombinedOutput()
		return string(b), err
	}
	for _, c := range []struct {
		args string
		want []string // in the output
		not  []string
		fail bool
	}{
		{"+short www.peer.test A", []string{"192.0.2.80"}, nil, false},
		{"+short www.peer.test AAAA", []string{"2001:db8::80"}, nil, false},
		{"+tcp www.peer.test A", []string{"NOERROR", "192.0.2.80", "(TCP)"}, nil, false},
		{"+noedns www.peer.test", []string{"NOERROR", "192.0.2.80"}, []string{"EDNS", "WARNING"}, false},
		{"+bufsize=4096 +dnssec www.peer.test", []string{"udp: 1232", "flags: do"}, []string{"WARNING"}, false},
		{"+norecurse www.peer.test", []string{"NOERROR", "192.0.2.80"}, nil, false},
		{"+short toomany.peer.test", []string{"198.51.100.120"}, nil, false}, // TC, then TCP
		{"+ignore toomany.peer.test", []string{" tc ", "ANSWER: 0"}, []string{"WARNING"}, false},
		{"no.peer.test", []string{"NXDOMAIN", "SOA"}, nil, false},
		{"blocked.peer.test", []string{"NXDOMAIN", "EDE: 17 (Filtered): (told so: - blocked.peer.test (f.yaml:3))", "info.gatun."}, []string{"WARNING"}, false},
		{"+noedns blocked.peer.test", []string{"NXDOMAIN", "info.gatun."}, []string{"EDE", "WARNING"}, false},
		{"dropped.peer.test", []string{"timed out"}, nil, true},
		{"+edns=1 +noednsneg www.peer.test", []string{"BADVERS"}, nil, false},
		{"+header-only", []string{"FORMERR"}, nil, false},
		{"+opcode=NOTIFY www.peer.test", []string{"NOTIMP"}, nil, false},
		{"-c CH version.bind TXT", []string{"REFUSED"}, nil, false},
		{"+cookie +subnet=192.0.2.0/24 +padding=128 www.peer.test", []string{"NOERROR", "192.0.2.80"}, []string{"WARNING", "CLIENT-SUBNET"}, false},
		{"+tcp +keepopen www.peer.test mail.peer.test txt.peer.test TXT", []string{"192.0.2.80", "192.0.2.25", "hello world"}, []string{"WARNING"}, false},
		{"-x 192.0.2.4", []string{"www.peer.test."}, nil, false},
		{"svc.peer.test HTTPS", []string{"192.0.2.80", "h2,h3"}, nil, false},
		{"www.peer.test AXFR", []string{"Transfer failed"}, nil, false},
		{"localhost", []string{"127.0.0.1"}, nil, false},
	} {
		if c.args == "localhost" {
			r.Configure(Config{Nameservers: r.upstream.config.Nameservers})
		}
		out, err := run(strings.Fields(c.args)...)
		var exit *exec.ExitError
		if c.fail != (err != nil) && !errors.As(err, &exit) || c.fail != (err != nil) {
			t.Errorf("dig %s: %v\n%s", c.args, err, out)
		}
		for _, s := range c.want {
			if !strings.Contains(out, s) {
				t.Errorf("dig %s: no %q in\n%s", c.args, s, out)
			}
		}
		for _, s := range c.not {
			if strings.Contains(out, s) {
				t.Errorf("dig %s: %q in\n%s", c.args, s, out)
			}
		}
	}
}
