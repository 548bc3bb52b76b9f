package packet

import (
	"fmt"
	"net/netip"
	"syscall"
)

// ICMP types and codes that gatun sends or understands (RFC 792, RFC 4443).
const (
	ICMP4EchoReply    = 0
	ICMP4Unreachable  = 3
	ICMP4Echo         = 8
	ICMP4TimeExceeded = 11
	ICMP4ParamProblem = 12

	ICMP6Unreachable  = 1
	ICMP6TooBig       = 2
	ICMP6TimeExceeded = 3
	ICMP6ParamProblem = 4
	ICMP6Echo         = 128
	ICMP6EchoReply    = 129

	// Codes of ICMP4Unreachable.
	codeNet4, codeHost4, codeProto4, codePort4, codeFrag4, codeAdmin4 = 0, 1, 2, 3, 4, 13
	// Codes of ICMP6Unreachable.
	codeNoRoute6, codeAdmin6, codeAddr6, codePort6 = 0, 1, 3, 4
)

// ICMPError is an ICMP or ICMPv6 error message about a flow: who sent it and what it says. It
// is an error value; Unwrap gives the errno that a program would see, so
// errors.Is(err, syscall.EHOSTUNREACH) works.
//
// From is the router or host that sent it. An invalid From means "this machine": whoever
// answers the program fills in a truthful source, and Type and Code are those of IPv4. As4
// and As6 translate between the families.
type ICMPError struct {
	From       netip.Addr
	Type, Code uint8
	MTU        uint32 // of the next hop, for "packet too big" only
}

// Is6 reports whether Type and Code are those of ICMPv6.
func (e *ICMPError) Is6() bool { return e.From.Is6() }

// Error describes e as a person would say it: "192.0.2.1: host unreachable".
func (e *ICMPError) Error() string {
	what := e.describe()
	if !e.From.IsValid() {
		return what
	}
	return e.From.String() + ": " + what
}

func (e *ICMPError) describe() string {
	x := e.As4()
	switch {
	case x.Type == ICMP4TimeExceeded:
		return "time exceeded"
	case x.Type == ICMP4ParamProblem:
		return "parameter problem"
	case x.Type != ICMP4Unreachable:
		return fmt.Sprintf("icmp type %d code %d", e.Type, e.Code)
	}
	switch x.Code {
	case codeNet4, 6, 9, 11:
		return "network unreachable"
	case codeProto4:
		return "protocol unreachable"
	case codePort4:
		return "port unreachable"
	case codeFrag4:
		return fmt.Sprintf("packet too big, next hop takes %d bytes", e.MTU)
	case codeAdmin4:
		return "administratively prohibited"
	default:
		return "host unreachable"
	}
}

// Unwrap returns the syscall.Errno that Linux gives a program for this message
// (icmp_err_convert, icmpv6_err_convert), or nil for a message that is no error.
func (e *ICMPError) Unwrap() error {
	if e.Is6() {
		return e.errno6()
	}
	return e.errno4()
}

func (e *ICMPError) errno4() error {
	switch e.Type {
	case ICMP4TimeExceeded:
		return syscall.EHOSTUNREACH
	case ICMP4ParamProblem:
		return syscall.EPROTO
	case ICMP4Unreachable:
	default:
		return nil
	}
	switch e.Code {
	case codeNet4, 6, 9, 11:
		return syscall.ENETUNREACH
	case codeProto4:
		return syscall.ENOPROTOOPT
	case codePort4:
		return syscall.ECONNREFUSED
	case codeFrag4:
		return syscall.EMSGSIZE
	case 5:
		return syscall.EOPNOTSUPP
	case 7:
		return syscall.EHOSTDOWN
	default: // 8 is ENONET on Linux, which other systems do not have
		return syscall.EHOSTUNREACH
	}
}

func (e *ICMPError) errno6() error {
	switch e.Type {
	case ICMP6TooBig:
		return syscall.EMSGSIZE
	case ICMP6TimeExceeded:
		return syscall.EHOSTUNREACH
	case ICMP6ParamProblem:
		return syscall.EPROTO
	case ICMP6Unreachable:
	default:
		return nil
	}
	switch e.Code {
	case codeNoRoute6:
		return syscall.ENETUNREACH
	case codePort6:
		return syscall.ECONNREFUSED
	case codeAdmin6, 5, 6:
		return syscall.EACCES
	default:
		return syscall.EHOSTUNREACH
	}
}

// As4 returns e with the type and code of IPv4 (RFC 7915 section 5.2). From is kept only
// where it is an IPv4 address.
func (e *ICMPError) As4() ICMPError {
	if !e.Is6() {
		return *e
	}
	x := ICMPError{Type: ICMP4Unreachable, Code: codeHost4}
	switch e.Type {
	case ICMP6TooBig:
		x.Code, x.MTU = codeFrag4, e.MTU
	case ICMP6TimeExceeded:
		x.Type, x.Code = ICMP4TimeExceeded, e.Code
	case ICMP6ParamProblem:
		x.Type, x.Code = ICMP4ParamProblem, 0
		if e.Code == 1 { // unknown next header
			x.Type, x.Code = ICMP4Unreachable, codeProto4
		}
	case ICMP6Unreachable:
		switch e.Code {
		case codeNoRoute6:
			x.Code = codeNet4
		case codeAdmin6, 5, 6:
			x.Code = codeAdmin4
		case codePort6:
			x.Code = codePort4
		}
	}
	return x
}

// As6 returns e with the type and code of IPv6 (RFC 7915 section 4.2). From is kept only
// where it is an IPv6 address.
func (e *ICMPError) As6() ICMPError {
	if e.Is6() {
		return *e
	}
	x := ICMPError{Type: ICMP6Unreachable, Code: codeAddr6}
	switch e.Type {
	case ICMP4TimeExceeded:
		x.Type, x.Code = ICMP6TimeExceeded, e.Code
	case ICMP4ParamProblem:
		x.Type, x.Code = ICMP6ParamProblem, 0
	case ICMP4Unreachable:
		switch e.Code {
		case codeNet4, 6, 11:
			x.Code = codeNoRoute6
		case codeProto4:
			x.Type, x.Code = ICMP6ParamProblem, 1
		case codePort4:
			x.Code = codePort6
		case codeFrag4:
			x.Type, x.Code, x.MTU = ICMP6TooBig, 0, max(e.MTU, 1280)
		case 9, 10, codeAdmin4:
			x.Code = codeAdmin6
		}
	}
	return x
}

// For returns e in the family of addr, as As4 or As6 do.
func (e *ICMPError) For(addr netip.Addr) ICMPError {
	if addr.Is6() {
		return e.As6()
	}
	return e.As4()
}

func newError(from netip.Addr, type4, code4 uint8, mtu uint32) *ICMPError {
	e := ICMPError{Type: type4, Code: code4, MTU: mtu}
	if from.Is6() {
		e = e.As6()
	}
	e.From = from
	return &e
}

// PortUnreachable says that nobody listens: a program sees ECONNREFUSED.
func PortUnreachable(from netip.Addr) *ICMPError {
	return newError(from, ICMP4Unreachable, codePort4, 0)
}

// HostUnreachable says that the host does not answer its router: EHOSTUNREACH. Linux ignores
// it for UDP sockets without IP_RECVERR.
func HostUnreachable(from netip.Addr) *ICMPError {
	return newError(from, ICMP4Unreachable, codeHost4, 0)
}

// NetUnreachable says that there is no route: ENETUNREACH.
func NetUnreachable(from netip.Addr) *ICMPError {
	return newError(from, ICMP4Unreachable, codeNet4, 0)
}

// AdminProhibited says that a firewall forbids it: EHOSTUNREACH over IPv4, EACCES over IPv6.
func AdminProhibited(from netip.Addr) *ICMPError {
	return newError(from, ICMP4Unreachable, codeAdmin4, 0)
}

// ProtocolUnreachable says that the IP protocol is not spoken there: ENOPROTOOPT.
func ProtocolUnreachable(from netip.Addr) *ICMPError {
	return newError(from, ICMP4Unreachable, codeProto4, 0)
}

// TimeExceeded says that the hop limit ended at from; traceroute prints it.
func TimeExceeded(from netip.Addr) *ICMPError {
	return newError(from, ICMP4TimeExceeded, 0, 0)
}

// TooBig says that the link behind from takes packets of at most mtu bytes: EMSGSIZE.
func TooBig(from netip.Addr, mtu uint32) *ICMPError {
	return newError(from, ICMP4Unreachable, codeFrag4, mtu)
}
