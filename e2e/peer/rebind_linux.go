package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// rebinder is a nameserver that leads names into the asker's own machine or network, in the way
// that the name says: WAY-ADDRESS.rebind.example, where an x stands for what separates the
// parts of the address ("second-10x0x0x1", "cname-64xff9bxx7f00x1").
//
//	plain    that address
//	first    that address, then an honest one
//	second   an honest one, then that address
//	cname    an alias of a name that has it
//	chain    the same over three aliases
//	outside  an alias of a name in another zone
//	dname    the name is below a zone that was moved to where it has it: host.dname-ADDRESS
//	extra    an honest answer, with that address among the additional records
//
// Asked for HTTPS or SVCB it gives the addresses as hints. Every other name has the honest
// address, whatever is asked.
type rebinder struct{}

// rebindServer serves until it is killed: "rebind [-echo PORT,PORT/udp] ADDR,ADDR". The echo ports,
// TCP and UDP, are for what is not DNS in clear text.
func rebindServer(args []string) error {
	var echoPorts string
	rest, err := flags("rebind", args, 1, func(fs *flag.FlagSet) { fs.StringVar(&echoPorts, "echo", "", "ports that echo") })
	if err != nil {
		return err
	}
	for _, addr := range strings.Split(rest[0], ",") {
		if err := serveBoth(net.JoinHostPort(addr, "53"), rebinder{}.answer, rebinder{}.serveTCP); err != nil {
			return err
		}
		for _, port := range strings.FieldsFunc(echoPorts, func(r rune) bool { return r == ',' }) {
			if err := serveEcho(addr, port); err != nil {
				return err
			}
		}
	}
	fmt.Println("ready")
	select {}
}

// serveEcho gives back what comes to a port, "443" or "443/udp".
func serveEcho(addr, port string) error {
	same := func(b []byte) []byte { return b }
	if number, ok := strings.CutSuffix(port, "/udp"); ok {
		return listenPacket(net.JoinHostPort(addr, number), same)
	}
	return serveBoth(net.JoinHostPort(addr, port), same, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// serveBoth serves datagrams and connections of one port.
func serveBoth(at string, datagram func([]byte) []byte, conn func(net.Conn)) error {
	if err := listenPacket(at, datagram); err != nil {
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
			go func() {
				defer c.Close()
				conn(c)
			}()
		}
	}()
	return nil
}

func (r rebinder) serveTCP(c net.Conn) {
	for {
		head := make([]byte, 2)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(head))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		out := r.answer(b)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

func (r rebinder) answer(b []byte) []byte {
	var q dnsmessage.Message
	if err := q.Unpack(b); err != nil || len(q.Questions) != 1 || q.Response {
		return nil
	}
	m := reply(q)
	m.Answers, m.Additionals = r.records(strings.ToLower(q.Questions[0].Name.String()), q.Questions[0].Type)
	out, err := pack(m)
	if err != nil {
		return nil
	}
	return out
}

func (rebinder) records(asked string, typ dnsmessage.Type) (answers, extra []dnsmessage.Resource) {
	label, below, _ := strings.Cut(asked, ".")
	if label == "host" {
		label, _, _ = strings.Cut(below, ".")
	}
	way, text, _ := strings.Cut(label, "-")
	bad, ok := addressOf(text)
	good := netip.AddrFrom4(honest)
	if typ == dnsmessage.TypeAAAA || ok && bad.Is6() { // hints of one kind
		good = netip.MustParseAddr("2001:db8:2::10")
	}
	switch {
	case !ok:
		return data(asked, typ, good), nil
	case way == "plain", way == "target":
		return data(asked, typ, bad), nil
	case way == "first":
		return data(asked, typ, bad, good), nil
	case way == "second":
		return data(asked, typ, good, bad), nil
	case way == "extra":
		family := dnsmessage.TypeA
		if bad.Is6() {
			family = dnsmessage.TypeAAAA
		}
		return data(asked, typ, good), data(asked, family, bad)
	}
	return led(way, asked, below, text, typ, bad), nil
}

// led leads a name to an address over other names.
func led(way, asked, below, text string, typ dnsmessage.Type, bad netip.Addr) []dnsmessage.Resource {
	to := "target-" + text + ".rebind.example."
	list := []dnsmessage.Resource{alias(asked, to)}
	switch way {
	case "chain":
		list = []dnsmessage.Resource{alias(asked, "a.rebind.example."), alias("a.rebind.example.", "b.rebind.example."), alias("b.rebind.example.", to)}
	case "outside":
		to = "target-" + text + ".elsewhere.example."
		list = []dnsmessage.Resource{alias(asked, to)}
	case "dname":
		moved := unknown(below, 39, nameData(to))
		to = "host." + to
		list = []dnsmessage.Resource{moved, alias(asked, to)}
	}
	return append(list, data(to, typ, bad)...)
}

// addressOf reads an address with x for what separates its parts.
func addressOf(text string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(text, "x", ".")); err == nil {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(text, "x", ":"))
	return a, err == nil
}

// data gives addresses as what was asked for: records of their family, or one record with hints.
func data(n string, typ dnsmessage.Type, addrs ...netip.Addr) (list []dnsmessage.Resource) {
	if typ == 64 || typ == 65 {
		key, hint := uint16(4), []byte(nil)
		for _, a := range addrs {
			if a.Is6() {
				key = 6
			}
			hint = append(hint, a.AsSlice()...)
		}
		b := append([]byte{0, 1, 0, 0, 1, 0, 3, 2}, "h2"...) // priority 1, this name, alpn=h2
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, key), uint16(len(hint)))
		return append(list, unknown(n, typ, append(b, hint...)))
	}
	for _, a := range addrs {
		switch {
		case a.Is4() && typ == dnsmessage.TypeA:
			list = append(list, address(name(n), a.As4()))
		case a.Is6() && typ == dnsmessage.TypeAAAA:
			list = append(list, dnsmessage.Resource{Header: header(name(n), typ), Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return list
}
