package handback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"gatun/network/packet"

	"golang.org/x/sys/unix"
)

// sock_diag(7), in as far as the ends of flows need it.
const (
	diagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagDestroy  = 21 // SOCK_DESTROY
	diagID       = 4  // offset of struct inet_diag_sockid in struct inet_diag_msg
	diagCookie   = 40 // in it
	diagMessage  = 72
	anyState     = 0xffffffff
	// States of a TCP socket (linux/tcp_states.h).
	timeWait   = 6
	closeWait  = 8
	lastAck    = 9
	listening  = 10
	closing    = 11
	openStates = anyState &^ (1 << timeWait)
	anyCookie  = ^uint64(0) // INET_DIAG_NOCOOKIE
	attrInfo   = 2          // INET_DIAG_INFO: struct tcp_info
	wantInfo   = 1 << (attrInfo - 1)
	// Offsets in struct tcp_info (linux/tcp.h; Linux 4.19).
	infoAcked    = 120 // bytes, the SYN counts as one
	infoReceived = 128
	infoSent     = 200
	infoAgain    = 208
	infoSize     = 216
)

// question is what is asked for, or ordered about, sockets.
type question struct {
	typ, flags    uint16
	states        uint32
	proto         packet.Proto
	is6           bool
	local, remote netip.AddrPort
	extensions    byte
	cookie        uint64 // anyCookie: whichever socket it is
}

// ofFlow asks for the socket of f. The question about UDP, unlike the order, wants the two sides swapped.
func ofFlow(f packet.Flow) question {
	q := question{typ: diagByFamily, states: anyState, proto: f.Proto, is6: f.Is6(), local: f.Local, remote: f.Remote, cookie: anyCookie}
	if f.Proto == packet.UDP {
		q.local, q.remote = q.remote, q.local
	}
	return q
}

// socket writes the question.
func (w *wire) socket(q question) {
	family := byte(unix.AF_INET)
	if q.is6 {
		family = unix.AF_INET6
	}
	at := w.begin(q.typ, q.flags, [4]byte{family, byte(q.proto), q.extensions})
	w.out = binary.NativeEndian.AppendUint32(w.out, q.states)
	w.out = binary.BigEndian.AppendUint16(w.out, q.local.Port())
	w.out = binary.BigEndian.AppendUint16(w.out, q.remote.Port())
	for _, a := range []netip.Addr{q.local.Addr(), q.remote.Addr()} {
		var raw [16]byte
		if a.IsValid() {
			copy(raw[:], a.AsSlice())
		}
		w.out = append(w.out, raw[:]...)
	}
	w.out = binary.NativeEndian.AppendUint32(w.out, 0)                // any interface
	w.out = binary.NativeEndian.AppendUint32(w.out, uint32(q.cookie)) // the low half first, on every machine
	w.out = binary.NativeEndian.AppendUint32(w.out, uint32(q.cookie>>32))
	w.end(at)
}

// parseSocket reads struct inet_diag_msg.
func parseSocket(proto packet.Proto, b []byte) (f packet.Flow, ok bool) {
	if len(b) < diagMessage {
		return f, false
	}
	id := b[diagID:]
	local, remote := netip.AddrFrom4([4]byte(id[4:8])), netip.AddrFrom4([4]byte(id[20:24]))
	if b[0] == unix.AF_INET6 {
		local, remote = netip.AddrFrom16([16]byte(id[4:20])).Unmap(), netip.AddrFrom16([16]byte(id[20:36])).Unmap()
	}
	return packet.Flow{Proto: proto, Local: netip.AddrPortFrom(local, binary.BigEndian.Uint16(id)),
		Remote: netip.AddrPortFrom(remote, binary.BigEndian.Uint16(id[2:]))}, true
}

// carried is what a TCP socket says of itself.
type carried struct {
	Traffic
	answered bool // somebody has taken the connection
}

// carriedOf reads what a TCP socket has sent and received, from the attributes behind struct
// inet_diag_msg. known is false where the kernel does not say.
func carriedOf(b []byte) (c carried, known bool) {
	for b = b[min(len(b), diagMessage):]; len(b) >= 4; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return c, false
		}
		if info := b[4:size]; binary.NativeEndian.Uint16(b[2:]) == attrInfo && len(info) >= infoSize {
			at := func(offset int) uint64 { return binary.NativeEndian.Uint64(info[offset:]) }
			return carried{Traffic{Sent: at(infoSent) - at(infoAgain), Received: at(infoReceived)}, at(infoAcked) > 0}, true
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return c, false
}

// ask sends what was written as the last message and returns its answer: the socket, or the error.
func (w *wire) ask(proto packet.Proto) (found socket, err error) {
	seq := w.seq
	if err := w.send(); err != nil {
		return found, err
	}
	for done := false; !done; {
		var answer error
		done, err = w.receive(func(m message) bool {
			if m.seq != seq {
				return false
			}
			if m.typ == unix.NLMSG_ERROR {
				if e := m.errno(); e != 0 {
					answer = e
				}
			} else if found, _ = readSocket(proto, m.body); !found.connected() {
				answer = unix.ENOENT // nobody's any more, or a listener's, which answers where there is no connection
			}
			return true
		})
		if err = errors.Join(err, answer); err != nil {
			return found, err
		}
	}
	return found, nil
}

// find returns the socket of f, or ENOENT.
func (w *wire) find(f packet.Flow) (socket, error) {
	w.socket(ofFlow(f))
	return w.ask(f.Proto)
}

// destroy ends the socket of f, if there is one that has nothing but f: TCP sockets, and UDP
// sockets that are connected. One UDP socket towards many peers is left alone: the next datagram
// to f's is undecided again. It ends the socket that it has found and no other: by its addresses
// alone the kernel would end a listener on f's port where the connection is over. last is what the socket
// says of itself, as far as it is known.
func (w *wire) destroy(f packet.Flow) (last socket, err error) {
	q := ofFlow(f)
	if f.Proto == packet.TCP {
		q.extensions = wantInfo
	}
	w.socket(q)
	last, err = w.ask(f.Proto)
	if errors.Is(err, unix.ENOENT) || err == nil && f.Proto == packet.UDP && last.Remote != f.Remote {
		return last, nil
	}
	if err != nil {
		return last, fmt.Errorf("%s: look for its socket: %w", f, err)
	}
	q.typ, q.flags, q.local, q.remote, q.extensions, q.cookie = diagDestroy, unix.NLM_F_ACK, f.Local, f.Remote, 0, last.cookie
	w.socket(q)
	if _, err := w.ask(f.Proto); err != nil && !errors.Is(err, unix.ENOENT) {
		return last, fmt.Errorf("%s: end its socket: %w", f, err)
	}
	return last, nil
}

// socket is a socket that there is, or was.
type socket struct {
	packet.Flow
	carried
	known  bool   // what it has carried
	state  byte   // of TCP
	cookie uint64 // 0: not known
}

// connected reports whether the socket has a connection, or is one of UDP.
func (s *socket) connected() bool {
	return s.Proto != packet.TCP || s.state != timeWait && s.state != listening
}

func readSocket(proto packet.Proto, b []byte) (s socket, ok bool) {
	if s.Flow, ok = parseSocket(proto, b); !ok {
		return s, false
	}
	cookie := b[diagID+diagCookie:]
	s.cookie = uint64(binary.NativeEndian.Uint32(cookie)) | uint64(binary.NativeEndian.Uint32(cookie[4:]))<<32
	if proto == packet.TCP {
		s.state = b[1]
		s.carried, s.known = carriedOf(b)
	}
	switch s.state {
	case closeWait, lastAck, closing: // the other side's FIN counts as a byte
		s.Received -= min(s.Received, 1)
	}
	return s, true
}

// sockets passes every socket of proto that somebody has.
func (w *wire) sockets(proto packet.Proto, each func(socket)) error {
	for _, is6 := range []bool{false, true} {
		q := question{typ: diagByFamily, flags: unix.NLM_F_DUMP, states: openStates, proto: proto, is6: is6, cookie: anyCookie}
		if proto == packet.TCP {
			q.extensions = wantInfo
		}
		w.socket(q)
		err := w.dump(func(body []byte) {
			if s, ok := readSocket(proto, body); ok {
				each(s)
			}
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("list sockets: %w", err)
		}
	}
	return nil
}

// dump sends what was written and passes the messages of the answer until its end.
func (w *wire) dump(each func(body []byte)) error {
	seq := w.seq
	if err := w.send(); err != nil {
		return err
	}
	for done := false; !done; {
		var refused, err error
		done, err = w.receive(func(m message) bool {
			switch {
			case m.seq != seq:
				return false
			case m.typ == unix.NLMSG_DONE || m.typ == unix.NLMSG_ERROR:
				if e := m.errno(); e != 0 {
					refused = e
				}
				return true
			}
			each(m.body)
			return false
		})
		if err = errors.Join(err, refused); err != nil {
			return err
		}
	}
	return nil
}
