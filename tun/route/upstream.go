package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"gatun/network/packet"
)

// What the relay asks of an upstream connection; *TCPConn has it on every system.
var _ interface {
	net.Conn
	CloseWrite() error
	Abort()
	Broken() bool
	Fill(get func() []byte, put func([]byte)) ([]byte, int, error)
} = (*TCPConn)(nil)

// ListenUDP opens an unconnected socket on a random port for the program's socket at local,
// whose family it takes. Datagrams from any peer arrive: the caller filters.
func (d *Dialer) ListenUDP(local netip.Addr) (*UDPSocket, error) {
	s, err := d.listenUDP(local.Unmap())
	if err != nil {
		return nil, fmt.Errorf("open udp socket for %v: %w", local, classify(err))
	}
	return s, nil
}

// ListenEcho opens a socket for echo requests from local to remote. It prefers a ping socket,
// whose identifier the kernel keeps apart from every other's, and takes a raw one where ping
// sockets are not allowed. Where neither is, the error is ErrEchoForbidden.
func (d *Dialer) ListenEcho(local, remote netip.Addr) (*EchoSocket, error) {
	if err := d.check(remote); err != nil {
		return nil, err
	}
	s, err := d.listenEcho(local.Unmap(), remote.Unmap())
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, errors.ErrUnsupported):
		return nil, fmt.Errorf("%w (%w)", ErrEchoForbidden, err)
	default:
		return nil, fmt.Errorf("open echo socket to %v: %w", remote, classify(err))
	}
}

const echoHeaderLen = 8

// appendEcho appends an echo request. The checksum is that of IPv4; IPv6's covers a pseudo
// header and is the kernel's work.
func appendEcho(b []byte, remote netip.Addr, id, seq uint16, payload []byte) []byte {
	at := len(b)
	typ := byte(packet.ICMP4Echo)
	if remote.Is6() {
		typ = packet.ICMP6Echo
	}
	b = append(b, typ, 0, 0, 0, byte(id>>8), byte(id), byte(seq>>8), byte(seq))
	b = append(b, payload...)
	if remote.Is4() {
		binary.BigEndian.PutUint16(b[at+2:], internetChecksum(b[at:]))
	}
	return b
}

// parseEcho reads an echo message of the given type, request or reply.
func parseEcho(b []byte, typ byte) (id, seq uint16, payload []byte, err error) {
	if len(b) < echoHeaderLen || b[0] != typ || b[1] != 0 {
		return 0, 0, nil, io.ErrUnexpectedEOF
	}
	return binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), b[echoHeaderLen:], nil
}

func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
