package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"gatun/network/packet"
)

// The parts of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h that are used here.
// They are spelled out so that the codec is tested and fuzzed on every system.
const (
	nlmsgError = 2
	nlmsgDone  = 3

	nlmFRequest = 0x1
	nlmFDump    = 0x300

	sockDiagByFamily = 20

	familyV4 = 2
	familyV6 = 10

	attrReqBytecode = 1
	attrSKV6Only    = 11
	attrCGroupID    = 21

	headerLen  = 16             // struct nlmsghdr
	requestLen = headerLen + 56 // + struct inet_diag_req_v2
	diagMsgLen = 72             // struct inet_diag_msg
	maxPorts   = 32             // local ports in one bytecode filter
	maxRequest = requestLen + 4 + 20*maxPorts
	allStates  = 1<<13 - 1 - 1 // bits 1..12
	bcJump     = 1
	bcSourceGE = 2
	bcSourceLE = 3
	bcReject   = 4 // a jump this far beyond the end refuses the socket
)

var (
	errTruncated = errors.New("truncated socket diagnosis message")
	errNotFound  = errors.New("no such socket")
)

// request is one inet_diag query. Ports is only used by dumps; an exact query gives the
// identity in source and destination, in the order the protocol's kernel code wants it.
type request struct {
	family      uint8
	proto       packet.Proto
	dump        bool
	states      uint32
	source      netip.AddrPort
	destination netip.AddrPort
	device      uint32
	ports       []uint16
	many        bool // a great many sockets are expected
}

// append encodes r with the sequence number seq after b.
func (r *request) append(b []byte, seq uint32) []byte {
	le := binary.NativeEndian
	start := len(b)
	flags := uint16(nlmFRequest)
	if r.dump {
		flags |= nlmFDump
	}
	b = le.AppendUint32(b, 0) // length, set below
	b = le.AppendUint16(b, sockDiagByFamily)
	b = le.AppendUint16(b, flags)
	b = le.AppendUint32(b, seq)
	b = le.AppendUint32(b, 0)
	b = append(b, r.family, byte(r.proto), 0, 0)
	b = le.AppendUint32(b, r.states)
	source := r.source.Port()
	if len(r.ports) == 1 {
		source = r.ports[0] // the kernel compares this one itself, without a program
	}
	b = binary.BigEndian.AppendUint16(b, source)
	b = binary.BigEndian.AppendUint16(b, r.destination.Port())
	b = appendAddr(b, r.source.Addr(), r.family)
	b = appendAddr(b, r.destination.Addr(), r.family)
	b = le.AppendUint32(b, r.device)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // INET_DIAG_NOCOOKIE
	if len(r.ports) > 1 {
		b = appendPortFilter(b, r.ports)
	}
	le.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendAddr encodes a in the 16 bytes of the kernel's field; in an IPv6 query an IPv4 address
// is mapped.
func appendAddr(b []byte, a netip.Addr, family uint8) []byte {
	if family == familyV4 {
		var four [4]byte
		if a.Is4() {
			four = a.As4()
		}
		b = append(b, four[:]...)
		return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	var sixteen [16]byte
	if a.IsValid() {
		sixteen = a.As16()
	}
	return append(b, sixteen[:]...)
}

// appendPortFilter encodes a filter program that accepts sockets whose local port is one of
// ports: per port ">=, else next; <=, else next; jump to the end" (= accept).
func appendPortFilter(b []byte, ports []uint16) []byte {
	le := binary.NativeEndian
	b = le.AppendUint16(b, uint16(4+20*len(ports)))
	b = le.AppendUint16(b, attrReqBytecode)
	for i, port := range ports {
		left := uint16(20 * (len(ports) - i)) // bytes from here to the end of the program
		next := uint16(20)
		if i == len(ports)-1 {
			next += bcReject
		}
		b = appendOp(b, bcSourceGE, 8, next)
		b = appendOp(b, 0, 0, port)
		b = appendOp(b, bcSourceLE, 8, next-8)
		b = appendOp(b, 0, 0, port)
		b = appendOp(b, bcJump, 4, left-16)
	}
	return b
}

// appendOp encodes one struct inet_diag_bc_op.
func appendOp(b []byte, code, yes uint8, no uint16) []byte {
	b = append(b, code, yes)
	return binary.NativeEndian.AppendUint16(b, no)
}

// parseReply reads the netlink messages in b that answer the query seq and appends their
// sockets to dst. done reports that the answer is complete; an exact query is complete with
// its first socket. A kernel error comes back as syscall.Errno, "not found" as errNotFound.
func parseReply(dst []Socket, b []byte, seq uint32, proto packet.Proto) (_ []Socket, done bool, err error) {
	le := binary.NativeEndian
	for len(b) > 0 {
		if len(b) < headerLen {
			return dst, false, errTruncated
		}
		size := int(le.Uint32(b))
		if size < headerLen || size > len(b) {
			return dst, false, errTruncated
		}
		body := b[headerLen:size]
		if le.Uint32(b[8:]) == seq {
			switch le.Uint16(b[4:]) {
			case nlmsgDone, nlmsgError:
				return dst, true, kernelError(body)
			case sockDiagByFamily:
				s, err := parseSocket(body, proto)
				if err != nil {
					return dst, false, err
				}
				dst = append(dst, s)
				done = le.Uint16(b[6:])&2 == 0 // NLM_F_MULTI: more to come
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return dst, done, nil
}

// kernelError reads the errno at the start of an NLMSG_ERROR or NLMSG_DONE body.
func kernelError(body []byte) error {
	if len(body) < 4 {
		return nil // NLMSG_DONE of old kernels carries nothing
	}
	n := -int32(binary.NativeEndian.Uint32(body))
	switch {
	case n == 0:
		return nil
	case syscall.Errno(n) == syscall.ENOENT:
		return errNotFound
	case n < 0:
		return fmt.Errorf("socket diagnosis answered %d", -n)
	}
	return syscall.Errno(n)
}

// parseSocket reads one struct inet_diag_msg and its attributes.
func parseSocket(b []byte, proto packet.Proto) (Socket, error) {
	if len(b) < diagMsgLen {
		return Socket{}, errTruncated
	}
	le := binary.NativeEndian
	family := b[0]
	if family != familyV4 && family != familyV6 {
		return Socket{}, fmt.Errorf("socket of unknown address family %d", family)
	}
	s := Socket{
		Proto:  proto,
		State:  State(b[1]),
		Local:  netip.AddrPortFrom(parseAddr(b[8:24], family), binary.BigEndian.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(parseAddr(b[24:40], family), binary.BigEndian.Uint16(b[6:])),
		Device: le.Uint32(b[40:]),
		Cookie: uint64(le.Uint32(b[44:])) | uint64(le.Uint32(b[48:]))<<32,
		UID:    le.Uint32(b[64:]),
		Inode:  uint64(le.Uint32(b[68:])),
	}
	return s, parseAttributes(&s, b[diagMsgLen:])
}

// parseAttributes reads the netlink attributes after a socket.
func parseAttributes(s *Socket, b []byte) error {
	le := binary.NativeEndian
	for len(b) >= 4 {
		size := int(le.Uint16(b))
		if size < 4 || size > len(b) {
			return errTruncated
		}
		value := b[4:size]
		switch le.Uint16(b[2:]) & 0x3fff {
		case attrSKV6Only:
			s.V6Only = len(value) > 0 && value[0] != 0
		case attrCGroupID:
			if len(value) >= 8 {
				s.CGroup = le.Uint64(value)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// parseAddr reads the address of a socket, unmapped.
func parseAddr(b []byte, family uint8) netip.Addr {
	if family == familyV4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16([16]byte(b[:16])).Unmap()
}
