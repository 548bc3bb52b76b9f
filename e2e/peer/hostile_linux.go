package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The addresses that a hostile nameserver gives: the true one, and the one that nobody may see.
var (
	honest = [4]byte{198, 51, 100, 10}
	poison = [4]byte{203, 0, 113, 66}
)

// hostile is a nameserver that does, for a query, what the first label of its name says:
//
//	slow-…          answers after 300 ms
//	bogus-KIND-…    sends a forged reply of that kind first, with the source address and port of its own
//	poison-N-…      answers truly, and adds records of other names in the N-th way
//
// and answers every other name truly. It writes a line of JSON per query: name, port, ID.
type hostile struct {
	mu  sync.Mutex
	log *json.Encoder
}

// asked is a line of its log.
type asked struct {
	Name string `json:"name"`
	Port uint16 `json:"port"`
	ID   uint16 `json:"id"`
}

// hostileServer serves until it is killed: "hostile -log FILE -mute ADDR ADDR,ADDR". On the mute
// address everything is accepted and nothing is answered.
func hostileServer(args []string) error {
	var log, mute string
	rest, err := flags("hostile", args, 1, func(fs *flag.FlagSet) {
		fs.StringVar(&log, "log", "", "a line of JSON per query")
		fs.StringVar(&mute, "mute", "", "an address that never answers")
	})
	if err != nil {
		return err
	}
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	h := &hostile{log: json.NewEncoder(f)}
	for _, a := range strings.Split(rest[0], ",") {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := h.listen(netip.AddrPortFrom(addr, 53)); err != nil {
			return err
		}
	}
	if err := muteListeners(mute); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

func muteListeners(addr string) error {
	for _, port := range []string{"53", "853", "8443"} {
		at := net.JoinHostPort(addr, port)
		if err := listenPacket(at, func([]byte) []byte { return nil }); err != nil {
			return err
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, c) }()
			}
		}()
	}
	return nil
}

func (h *hostile) listen(at netip.AddrPort) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	_ = c.SetReadBuffer(8 << 20)
	raw, err := unix.Socket(familyOf(at.Addr()), unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(b[:n]) != nil || len(q.Questions) != 1 || q.Response {
				continue
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			h.note(q, from)
			go func() {
				kind, delay := behaviour(q.Questions[0].Name.String())
				h.forge(raw, kind, at, from, q)
				time.Sleep(delay)
				if reply, err := pack(answerOf(q)); err == nil {
					_, _ = c.WriteToUDPAddrPort(reply, from)
				}
			}()
		}
	}()
	return nil
}

func (h *hostile) note(q dnsmessage.Message, from netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.log.Encode(asked{Name: strings.ToLower(q.Questions[0].Name.String()), Port: from.Port(), ID: q.ID})
}

// behaviour reads the first label. The true reply comes after the forged one, so that a client
// that takes what comes first is seen to do so.
func behaviour(name string) (forgery string, delay time.Duration) {
	label, _, _ := strings.Cut(name, ".")
	parts := strings.Split(label, "-")
	switch parts[0] {
	case "slow":
		return "", 300 * time.Millisecond
	case "bogus":
		return parts[1], 30 * time.Millisecond
	}
	return "", 0
}

// forge sends a reply that is false in one way. All but "foreign" must be passed over.
func (h *hostile) forge(raw int, kind string, at, to netip.AddrPort, q dnsmessage.Message) {
	if kind == "" {
		return
	}
	m := reply(q)
	m.Answers = []dnsmessage.Resource{address(q.Questions[0].Name, poison)}
	cut := 0
	switch kind {
	case "id":
		m.ID++
	case "port":
		at = netip.AddrPortFrom(at.Addr(), 5353)
	case "address":
		at = netip.AddrPortFrom(at.Addr().Next(), 53)
	case "name":
		m.Questions = []dnsmessage.Question{{Name: name("other.hostile.example."), Type: q.Questions[0].Type, Class: dnsmessage.ClassINET}}
	case "type":
		m.Questions = []dnsmessage.Question{{Name: q.Questions[0].Name, Type: dnsmessage.TypeMX, Class: dnsmessage.ClassINET}}
	case "class":
		m.Questions = []dnsmessage.Question{{Name: q.Questions[0].Name, Type: q.Questions[0].Type, Class: dnsmessage.ClassCHAOS}}
	case "qr":
		m.Response = false
	case "none":
		m.Questions = nil
	case "two":
		m.Questions = append(m.Questions, m.Questions[0])
	case "opcode":
		m.OpCode = 4
	case "cut":
		cut = 9 // in the middle of the only record
	case "foreign":
		m.Answers[0] = address(q.Questions[0].Name, honest)
		m.Additionals = []dnsmessage.Resource{address(name("victim-foreign.bank.example."), poison)}
	}
	b, err := pack(m)
	if err != nil {
		return
	}
	b = b[:len(b)-cut]
	packet := ipPacket(at.Addr(), to.Addr(), uint16(time.Now().UnixNano()), udpSegment(at, to, b), fragment{})
	_ = unix.Sendto(raw, packet, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
}

func reply(q dnsmessage.Message) dnsmessage.Message {
	return dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true},
		Questions: q.Questions,
	}
}

func pack(m dnsmessage.Message) ([]byte, error) { return m.Pack() }

func name(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }

func header(n dnsmessage.Name, typ dnsmessage.Type) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: n, Type: typ, Class: dnsmessage.ClassINET, TTL: 3600}
}

func address(n dnsmessage.Name, a [4]byte) dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(n, dnsmessage.TypeA), Body: &dnsmessage.AResource{A: a}}
}

func alias(from, to string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(name(from), dnsmessage.TypeCNAME), Body: &dnsmessage.CNAMEResource{CNAME: name(to)}}
}

func delegation(zone, ns string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(name(zone), dnsmessage.TypeNS), Body: &dnsmessage.NSResource{NS: name(ns)}}
}

func startOf(zone string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(name(zone), dnsmessage.TypeSOA), Body: &dnsmessage.SOAResource{
		NS: name("ns." + zone), MBox: name("a." + zone), Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, MinTTL: 3600,
	}}
}

// unknown is a record of a type that the library does not write.
func unknown(n string, typ dnsmessage.Type, data []byte) dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(name(n), typ), Body: &dnsmessage.UnknownResource{Type: typ, Data: data}}
}

// nameData is a name as data of a record.
func nameData(s string) []byte {
	var b []byte
	for _, label := range strings.FieldsFunc(s, func(r rune) bool { return r == '.' }) {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

// answerOf is the true reply, with the additions of poison-N.
func answerOf(q dnsmessage.Message) dnsmessage.Message {
	m := reply(q)
	asked := q.Questions[0].Name
	if q.Questions[0].Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{address(asked, honest)}
	}
	var n int
	if _, err := fmt.Sscanf(asked.String(), "poison-%d-", &n); err == nil && q.Questions[0].Type == dnsmessage.TypeA {
		addPoison(&m, n, asked.String())
	}
	return m
}

// addPoison adds what a careless cache would keep for victim-N.bank.example.
func addPoison(m *dnsmessage.Message, n int, asked string) {
	victim := fmt.Sprintf("victim-%d.bank.example.", n)
	bad := address(name(victim), poison)
	hint := binary.BigEndian.AppendUint16(nil, 1)
	hint = append(append(hint, nameData(".")...), 0, 4, 0, 4, poison[0], poison[1], poison[2], poison[3])
	switch n {
	case 1: // an additional address
		m.Additionals = append(m.Additionals, bad)
	case 2: // an address beside the answer
		m.Answers = append(m.Answers, bad)
	case 3: // before it
		m.Answers = append([]dnsmessage.Resource{bad}, m.Answers...)
	case 4: // a nameserver for the victim's zone, with its address
		m.Authorities = append(m.Authorities, delegation("bank.example.", "ns.bank.example."))
		m.Additionals = append(m.Additionals, address(name("ns.bank.example."), poison), bad)
	case 5: // for the zone above
		m.Authorities = append(m.Authorities, delegation("example.", "ns.hostile.example."), delegation(".", "ns.hostile.example."))
		m.Additionals = append(m.Additionals, address(name("ns.hostile.example."), poison), bad)
	case 6: // the asked name is an alias of the victim, whose address comes along
		m.Answers = []dnsmessage.Resource{alias(asked, victim), bad}
	case 7: // over one more alias
		m.Answers = []dnsmessage.Resource{alias(asked, "a.hostile.example."), alias("a.hostile.example.", victim), bad}
	case 8: // the victim is an alias of a hostile name
		m.Answers = append(m.Answers, alias(victim, "x.hostile.example."), address(name("x.hostile.example."), poison))
	case 9: // the alias among the additional records
		m.Additionals = append(m.Additionals, alias(victim, "x.hostile.example."), address(name("x.hostile.example."), poison))
	case 10: // a DNAME of the victim's zone
		m.Answers = append(m.Answers, unknown("bank.example.", 39, nameData("hostile.example.")), alias(victim, fmt.Sprintf("victim-%d.hostile.example.", n)),
			address(name(fmt.Sprintf("victim-%d.hostile.example.", n)), poison))
	case 11: // a DNAME of the top
		m.Authorities = append(m.Authorities, unknown("example.", 39, nameData("hostile.")))
		m.Additionals = append(m.Additionals, bad)
	case 12: // a wildcard of the victim's zone
		m.Answers = append(m.Answers, address(name("*.bank.example."), poison))
	case 13: // the victim does not exist
		m.RCode, m.Answers = dnsmessage.RCodeNameError, []dnsmessage.Resource{alias(asked, victim)}
		m.Authorities = append(m.Authorities, startOf("bank.example."), unknown(victim, 47, append(nameData("z.bank.example."), 0, 1, 0x40)))
		m.Additionals = append(m.Additionals, bad)
	case 14: // nothing of its zone exists
		m.RCode, m.Answers = dnsmessage.RCodeNameError, nil
		m.Authorities = append(m.Authorities, startOf("example."))
		m.Additionals = append(m.Additionals, bad)
	default:
		addMorePoison(m, n, victim, asked, bad, hint)
	}
}

func addMorePoison(m *dnsmessage.Message, n int, victim, asked string, bad dnsmessage.Resource, hint []byte) {
	switch n {
	case 15: // in another case
		m.Additionals = append(m.Additionals, address(name(strings.ToUpper(victim)), poison))
	case 16: // an address in a hint
		m.Additionals = append(m.Additionals, unknown(victim, 65, hint))
		m.Answers = append(m.Answers, unknown(victim, 65, hint))
	case 17: // of another class
		bad.Header.Class = dnsmessage.ClassANY
		m.Additionals = append(m.Additionals, bad)
		m.Answers = append(m.Answers, bad)
	case 18: // for the longest time
		bad.Header.TTL = 1<<31 - 1
		m.Answers, m.Additionals = append(m.Answers, bad), append(m.Additionals, bad)
	case 19: // a denial that covers the victim (aggressive use of NSEC, RFC 8198)
		m.RCode, m.Answers = dnsmessage.RCodeNameError, nil
		m.Authorities = append(m.Authorities, startOf("example."), unknown("a.example.", 47, append(nameData("zzz.example."), 0, 1, 0x40)))
		m.Additionals = append(m.Additionals, bad)
	case 20: // the zone of the asked name moved onto the victim's
		m.Answers = []dnsmessage.Resource{unknown("hostile.example.", 39, nameData("bank.example.")),
			alias(asked, strings.Replace(asked, "hostile", "bank", 1)), address(name(strings.Replace(asked, "hostile", "bank", 1)), poison), bad}
	}
}
