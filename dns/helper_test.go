package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	accepted   = network.Decision{Verdict: network.Accept, Stage: network.StageAfterIntel, Code: "default-action", Reason: "default action"}
	clientFlow = packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("10.9.0.2:40000"), Remote: netip.MustParseAddrPort("192.0.2.53:53")}
	tcpFlow    = packet.Flow{Proto: packet.TCP, Local: clientFlow.Local, Remote: clientFlow.Remote}
)

func owner(path string, uid uint32) attribution.Owner {
	return attribution.Owner{
		Process:    &attribution.Process{PID: 7, Path: path, Name: path, UID: uid, Kind: attribution.KindProgram},
		Confidence: attribution.Exact,
	}
}

// fakeFirewall accepts unless a function says otherwise.
type fakeFirewall struct {
	before func(*Query) network.Decision
	after  func(*Query, *Answer) network.Decision
}

func (f *fakeFirewall) BeforeIntel(q *Query) network.Decision {
	if f.before == nil {
		return network.Decision{} // undecided: resolve
	}
	return f.before(q)
}

func (f *fakeFirewall) AfterIntel(q *Query, a *Answer) network.Decision {
	if f.after == nil {
		return accepted
	}
	return f.after(q, a)
}

// netDialer is the plain way out; it notes the local ports it was given.
type netDialer struct {
	mu    sync.Mutex
	ports map[uint16]int
}

func (d *netDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil && d.ports != nil && network == "udp" {
		d.mu.Lock()
		d.ports[uint16(c.LocalAddr().(*net.UDPAddr).Port)]++
		d.mu.Unlock()
	}
	return c, err
}

// upstreamSpy is a nameserver on loopback that is written with raw sockets. handle gets the
// raw query and a function that sends anything from the server's address.
type upstreamSpy struct {
	t       testing.TB
	udp     *net.UDPConn
	tcp     *net.TCPListener
	addr    netip.AddrPort
	queries atomic.Int64
	streams atomic.Int64
	wg      sync.WaitGroup
}

type handler func(q *mdns.Msg, raw []byte, from netip.AddrPort, send func([]byte))

func newUpstream(t testing.TB, udp handler, tcp func(q *mdns.Msg) *mdns.Msg) *upstreamSpy {
	t.Helper()
	u := &upstreamSpy{t: t}
	var err error
	for range 20 { // the TCP port of the same number may be taken
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
	u.wg.Go(func() { u.serveUDP(udp) })
	u.wg.Go(func() { u.serveTCP(tcp) })
	t.Cleanup(func() { u.udp.Close(); u.tcp.Close(); u.wg.Wait() })
	return u
}

func (u *upstreamSpy) resolver() Resolver { return Resolver{Scheme: SchemeDNS, Addr: u.addr} }

func (u *upstreamSpy) serveUDP(h handler) {
	buf := make([]byte, 4096)
	for {
		n, from, err := u.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		u.queries.Add(1)
		raw := append([]byte(nil), buf[:n]...)
		q := new(mdns.Msg)
		if err := q.Unpack(raw); err != nil {
			u.t.Errorf("the query we sent is broken: %v", err)
			continue
		}
		h(q, raw, from, func(b []byte) { u.udp.WriteToUDPAddrPort(b, from) })
	}
}

func (u *upstreamSpy) serveTCP(h func(*mdns.Msg) *mdns.Msg) {
	for {
		c, err := u.tcp.Accept()
		if err != nil {
			return
		}
		u.streams.Add(1)
		u.wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			raw := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, raw); err != nil {
				return
			}
			q := new(mdns.Msg)
			if q.Unpack(raw) != nil || h == nil {
				return
			}
			b, err := h(q).Pack()
			if err != nil {
				u.t.Error(err)
				return
			}
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		})
	}
}

// respond builds the reply to q with those records in presentation form.
func respond(t testing.TB, q *mdns.Msg, rcode int, records ...string) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetRcode(q, rcode)
	m.RecursionAvailable = true
	for _, text := range records {
		m.Answer = append(m.Answer, record(t, text))
	}
	return m
}

func record(t testing.TB, text string) mdns.RR {
	rr, err := mdns.NewRR(text)
	if err != nil {
		t.Errorf("%s: %v", text, err)
	}
	return rr
}

func packed(t testing.TB, m *mdns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

// answering is an upstream that gives every name the same records, "NAME" replaced.
func answering(t testing.TB, f func(q *mdns.Msg) *mdns.Msg) *upstreamSpy {
	return newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) { send(packed(t, f(q))) }, f)
}

// simple answers A with 198.51.100.7 and AAAA with 2001:db8::7.
func simple(t testing.TB) *upstreamSpy {
	return answering(t, func(q *mdns.Msg) *mdns.Msg {
		name := q.Question[0].Name
		switch q.Question[0].Qtype {
		case mdns.TypeA:
			return respond(t, q, mdns.RcodeSuccess, name+" 300 IN A 198.51.100.7")
		case mdns.TypeAAAA:
			return respond(t, q, mdns.RcodeSuccess, name+" 300 IN AAAA 2001:db8::7")
		}
		return respond(t, q, mdns.RcodeSuccess)
	})
}

type rig struct {
	*Server
	table    *network.Table
	memory   *Memory
	firewall *fakeFirewall
	dialer   *netDialer
}

func newRig(t testing.TB, change func(*Options), servers ...Resolver) *rig {
	t.Helper()
	r := &rig{table: network.NewTable(time.Now), memory: NewMemory(MemoryOptions{}), firewall: &fakeFirewall{}, dialer: &netDialer{}}
	o := Options{Firewall: r.firewall, Dialer: r.dialer, Memory: r.memory, Recorder: r.table, Config: Config{Nameservers: servers}}
	if change != nil {
		change(&o)
	}
	r.Server = New(o)
	t.Cleanup(r.Server.resolver.client.close)
	return r
}

func ask(name string, qtype uint16) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(name), qtype)
	return m
}

// query asks as /usr/bin/app; a nil result is silence.
func (r *rig) query(t testing.TB, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	return r.queryAs(t, owner("/usr/bin/app", 1000), m)
}

func (r *rig) queryAs(t testing.TB, o attribution.Owner, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	b := r.ServeUDP(context.Background(), clientFlow, o, packed(t, m))
	if b == nil {
		return nil
	}
	reply := new(mdns.Msg)
	if err := reply.Unpack(b); err != nil {
		t.Fatalf("our reply is broken: %v", err)
	}
	if reply.Id != m.Id || !reply.Response {
		t.Fatalf("reply with id %d, response %v to query %d", reply.Id, reply.Response, m.Id)
	}
	return reply
}

func (r *rig) last(t testing.TB) network.Report {
	t.Helper()
	all := r.table.All()
	if len(all) == 0 {
		t.Fatal("no query was recorded")
	}
	return all[len(all)-1].Report()
}

func ede(m *mdns.Msg) (uint16, string) {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*mdns.EDNS0_EDE); ok {
				return e.InfoCode, e.ExtraText
			}
		}
	}
	return 0, ""
}

// values are the data of the answer's records, sorted.
func values(m *mdns.Msg) string {
	var list []string
	for _, rr := range m.Answer {
		list = append(list, strings.Fields(rr.String())[4])
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}
