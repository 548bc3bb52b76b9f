package main

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// zone is what the lab's name server knows. A name that starts with "*." stands for every name
// below; the longest match wins. Everything else does not exist.
type zone map[string][]netip.Addr

func labZone() zone {
	a := netip.MustParseAddr
	first := []netip.Addr{a("198.51.100.10"), a("2001:db8:2::10")}
	second := []netip.Addr{a("198.51.100.11"), a("2001:db8:2::11")}
	return zone{
		"example.org": first, "*.example.org": first,
		"example.net": second, "*.example.net": second,
		"example.com": first, "*.example.com": first,
		"far.example": {a("203.0.113.10"), a("2001:db8:3::10")},
	}
}

// aliases are the names of the zone that stand for another one.
func aliases() map[string]string {
	return map[string]string{"cloaked.example.org": "edge.tracker.example.com"}
}

// questionName is the name that a query asks for.
func questionName(b []byte) (string, bool) {
	var q dnsmessage.Message
	if err := q.Unpack(b); err != nil || len(q.Questions) != 1 {
		return "", false
	}
	return strings.ToLower(strings.TrimSuffix(q.Questions[0].Name.String(), ".")), true
}

func (z zone) find(name string) ([]netip.Addr, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if addrs, ok := z[name]; ok {
		return addrs, true
	}
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return nil, false
		}
		if addrs, ok := z["*."+parent]; ok {
			return addrs, true
		}
		name = parent
	}
}

func (s *server) dns(addr string) error {
	z := labZone()
	if err := listenPacket(addr, func(b []byte) []byte { return s.answer(z, b, "udp") }); err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.dnsConn(z, c)
		}
	}()
	return nil
}

func (s *server) dnsConn(z zone, c net.Conn) {
	defer c.Close()
	for {
		head := make([]byte, 2)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(head))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		reply := s.answer(z, b, "tcp")
		if reply == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

func (s *server) answer(z zone, b []byte, network string) []byte {
	var q dnsmessage.Message
	if err := q.Unpack(b); err != nil || len(q.Questions) != 1 || q.Response {
		return nil
	}
	name := q.Questions[0].Name
	s.record("asked", strings.TrimSuffix(name.String(), "."), network)
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true},
		Questions: q.Questions,
	}
	if target := aliases()[strings.ToLower(strings.TrimSuffix(name.String(), "."))]; target != "" {
		to := dnsmessage.MustNewName(target + ".")
		reply.Answers = append(reply.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 300}, Body: &dnsmessage.CNAMEResource{CNAME: to},
		})
		name = to
	}
	addrs, ok := z.find(name.String())
	if !ok {
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 300}
		switch {
		case a.Is4() && q.Questions[0].Type == dnsmessage.TypeA:
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Questions[0].Type == dnsmessage.TypeAAAA:
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	out, err := reply.Pack()
	if err != nil {
		return nil
	}
	return out
}
