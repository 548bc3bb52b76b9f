package inbound

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"gatun/network/packet"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// quotedBytes of a held packet are kept for the ICMP error that may answer it.
const quotedBytes = 576

// Held is one packet that waits in the kernel. It gets one verdict; later ones do nothing.
type Held struct {
	q      *Queue
	id     uint32
	mark   uint32
	device uint32
	seq    uint32
	flow   packet.Flow
	opens  bool
	quoted []byte
	done   atomic.Bool
}

// Flow is the packet's, with this machine's side as Local.
func (h *Held) Flow() packet.Flow { return h.flow }

// Opens reports whether the packet may begin a flow: a datagram, or a SYN.
func (h *Held) Opens() bool { return h.opens }

// Solicited reports whether the guard saw this machine ask everybody on the link from where the
// packet goes to.
func (h *Held) Solicited() bool { return h.q.o.AskedMark != 0 && h.mark&h.q.o.Mask == h.q.o.AskedMark }

// Accept lets the packet and its flow in.
func (h *Held) Accept() {
	if h.done.CompareAndSwap(false, true) {
		h.q.accepted.Add(1)
		h.q.decide(h.id, repeat, h.q.o.AcceptMark)
	}
}

// Drop throws the packet away in silence.
func (h *Held) Drop() {
	if h.done.CompareAndSwap(false, true) {
		h.q.dropped.Add(1)
		h.q.decide(h.id, drop, 0)
	}
}

// Reject throws the packet away and tells its sender: by a reset, or that the port is unreachable.
func (h *Held) Reject() {
	if !h.done.CompareAndSwap(false, true) {
		return
	}
	h.q.rejected.Add(1)
	h.q.decide(h.id, drop, 0)
	if err := h.q.raw.refuse(h); err != nil {
		h.q.o.Logger.Debug("the sender of a refused inbound packet hears nothing", zap.Error(err))
	}
}

// answers sends resets and ICMP errors past the routes into the TUN device: the mark is that of our
// own sockets.
type answers struct{ v4, v6 *os.File }

func openAnswers(mark uint32) (*answers, error) {
	v4, err := openRaw(unix.AF_INET, unix.SOL_IP, unix.IP_HDRINCL, mark)
	if err != nil {
		return nil, err
	}
	v6, err := openRaw(unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_HDRINCL, mark)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, errors.Join(err, v4.Close())
	}
	return &answers{v4, v6}, nil
}

func openRaw(family, level, option int, mark uint32) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("%w: raw socket: %w", ErrUnsupported, err)
	}
	if err := errors.Join(unix.SetsockoptInt(fd, level, option, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: raw socket: %w", ErrUnsupported, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "raw socket"), nil
}

// refuse answers h.
func (a *answers) refuse(h *Held) error {
	f := h.flow
	file := a.v6
	to := unix.Sockaddr(&unix.SockaddrInet6{Addr: f.Remote.Addr().As16(), ZoneId: zone(f.Remote.Addr(), h.device)})
	if !f.Is6() {
		file, to = a.v4, &unix.SockaddrInet4{Addr: f.Remote.Addr().As4()}
	}
	b := answer(h)
	if file == nil || len(b) == 0 {
		return fmt.Errorf("%s: no answer is possible", f)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.Sendto(int(fd), b, 0, to) })
	return errors.Join(err, sent)
}

func zone(a netip.Addr, device uint32) uint32 {
	if a.IsLinkLocalUnicast() {
		return device
	}
	return 0
}

// answer is the packet that refuses h.
func answer(h *Held) []byte {
	if h.flow.Proto == packet.TCP {
		ip := packet.IP{Src: h.flow.Local.Addr(), Dst: h.flow.Remote.Addr(), TTL: packet.DefaultTTL}
		return packet.AppendReset(nil, &ip, h.flow.Local.Port(), h.flow.Remote.Port(), h.seq+1)
	}
	return packet.AppendICMPError(nil, packet.PortUnreachable(h.flow.Local.Addr()), h.quoted)
}

func (a *answers) close() {
	_ = a.v4.Close()
	if a.v6 != nil {
		_ = a.v6.Close()
	}
}
