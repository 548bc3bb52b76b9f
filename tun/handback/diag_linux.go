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
	timeWait     = 6 // TCP_TIME_WAIT
	openStates   = anyState &^ (1 << timeWait)
	attrInfo     = 2 // INET_DIAG_INFO: struct tcp_info
	wantInfo     = 1 << (attrInfo - 1)
	// Offsets in struct tcp_info (linux/tcp.h; Linux 4.19).
	infoAcked    = 120 // bytes, the SYN counts as one
	infoReceived = 128
	infoSent     = 200
	infoAgain    = 208
	infoSize     = 216
)

// socket writes the question for, or the order about, the socket of f.
func (w *wire) socket(typ, flags uint16, states uint32, proto packet.Proto, is6 bool, local, remote netip.AddrPort) {
	family, extensions := byte(unix.AF_INET), byte(0)
	if is6 {
		family = unix.AF_INET6
	}
	if flags&unix.NLM_F_DUMP != 0 && proto == packet.TCP {
		extensions = wantInfo
	}
	at := w.begin(typ, flags, [4]byte{family, byte(proto), extensions})
	w.out = binary.NativeEndian.AppendUint32(w.out, states)
	w.out = binary.BigEndian.AppendUint16(w.out, local.Port())
	w.out = binary.BigEndian.AppendUint16(w.out, remote.Port())
	for _, a := range []netip.Addr{local.Addr(), remote.Addr()} {
		var raw [16]byte
		if a.IsValid() {
			copy(raw[:], a.AsSlice())
		}
		w.out = append(w.out, raw[:]...)
	}
	w.out = binary.NativeEndian.AppendUint32(w.out, 0) // any interface
	for range 8 {
		w.out = append(w.out, 0xff) // INET_DIAG_NOCOOKIE
	}
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
func (w *wire) ask(proto packet.Proto) (found packet.Flow, err error) {
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
			} else if found, _ = parseSocket(proto, m.body); proto == packet.TCP && len(m.body) > 1 && m.body[1] == timeWait {
				answer = unix.ENOENT // nobody's any more
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
func (w *wire) find(f packet.Flow) (packet.Flow, error) {
	local, remote := f.Local, f.Remote
	if f.Proto == packet.UDP { // the question, unlike the order, wants the two sides swapped
		local, remote = remote, local
	}
	w.socket(diagByFamily, 0, anyState, f.Proto, f.Is6(), local, remote)
	return w.ask(f.Proto)
}

// destroy ends the socket of f, if there is one that has nothing but f: TCP sockets, and UDP
// sockets that are connected. One UDP socket towards many peers is left alone: the next datagram
// to f's is undecided again.
func (w *wire) destroy(f packet.Flow) error {
	if f.Proto == packet.UDP {
		s, err := w.find(f)
		if errors.Is(err, unix.ENOENT) || err == nil && s.Remote != f.Remote {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: look for its socket: %w", f, err)
		}
	}
	w.socket(diagDestroy, unix.NLM_F_ACK, anyState, f.Proto, f.Is6(), f.Local, f.Remote)
	if _, err := w.ask(f.Proto); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: end its socket: %w", f, err)
	}
	return nil
}

// socket is a socket that there is, or was.
type socket struct {
	packet.Flow
	carried
	known  bool   // what it has carried
	cookie uint64 // 0: not known
}

func readSocket(proto packet.Proto, b []byte) (s socket, ok bool) {
	if s.Flow, ok = parseSocket(proto, b); ok && proto == packet.TCP {
		cookie := b[diagID+diagCookie:]
		s.cookie = uint64(binary.NativeEndian.Uint32(cookie)) | uint64(binary.NativeEndian.Uint32(cookie[4:]))<<32
		s.carried, s.known = carriedOf(b)
	}
	return s, ok
}

// sockets passes every socket of proto that somebody has.
func (w *wire) sockets(proto packet.Proto, each func(socket)) error {
	for _, is6 := range []bool{false, true} {
		w.socket(diagByFamily, unix.NLM_F_DUMP, openStates, proto, is6, netip.AddrPort{}, netip.AddrPort{})
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
