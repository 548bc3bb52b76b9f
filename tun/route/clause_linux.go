package route

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Offsets in the IP headers (RFC 791, RFC 8200) that the clauses look at.
const (
	offSource4, offDestination4  = 12, 16
	offSource6, offDestination6  = 8, 24
	offHopLimit6                 = 7
	offICMPType                  = 0
	offSourcePort, offTargetPort = 0, 2
	offTCPFlags                  = 13
)

// Flags of TCP (RFC 9293): those that tell the packet that opens a connection, and that one.
const (
	tcpOpening = 0x17 // FIN, SYN, RST, ACK
	tcpSYN     = 0x02
)

func nativeBytes(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func nativeBytes16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }

func cmpEqual(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func loadMeta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

func bitwise(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: nativeBytes(mask), Xor: nativeBytes(xor)}
}

func networkHeader(offset, size, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

func transportHeader(offset, size, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

func interfaceName(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{loadMeta(key), &expr.Cmp{Op: op, Register: 1, Data: append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)}}
}

// loopbackIndex is what every network namespace numbers its loopback device: a word to compare, where a
// name is four and is copied first.
const loopbackIndex = 1

// clause translates one clause.
func (gt guardTable) clause(c Clause) []expr.Any {
	switch c.kind {
	case oifIs:
		return interfaceName(expr.MetaKeyOIFNAME, expr.CmpOpEq, c.text)
	case oifLoopback:
		return []expr.Any{loadMeta(expr.MetaKeyOIF), cmpEqual(nativeBytes(loopbackIndex))}
	case iifIs:
		return interfaceName(expr.MetaKeyIIFNAME, expr.CmpOpEq, c.text)
	case iifIsNot:
		return interfaceName(expr.MetaKeyIIFNAME, expr.CmpOpNeq, c.text)
	case iifLoopback:
		return []expr.Any{loadMeta(expr.MetaKeyIIF), cmpEqual(nativeBytes(loopbackIndex))}
	case iifNotLoopback:
		return []expr.Any{loadMeta(expr.MetaKeyIIF), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: nativeBytes(loopbackIndex)}}
	case markIs:
		return []expr.Any{loadMeta(expr.MetaKeyMARK), bitwise(c.mask, 0), cmpEqual(nativeBytes(c.num))}
	case markSet:
		return []expr.Any{loadMeta(expr.MetaKeyMARK), bitwise(^c.mask, c.num), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
	case ctMarkIs:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, bitwise(c.mask, 0), cmpEqual(nativeBytes(c.num))}
	case ctMarkSet:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, bitwise(^c.mask, c.num), &expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1}}
	case ctNew:
		return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, bitwise(expr.CtStateBitNEW, 0),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: nativeBytes(0)}}
	case ctKnown:
		return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, bitwise(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, 0),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: nativeBytes(0)}}
	case ctDirection:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, cmpEqual([]byte{byte(c.num)})}
	case uidIs:
		return []expr.Any{loadMeta(expr.MetaKeySKUID), cmpEqual(nativeBytes(c.num))}
	case hasUID:
		// Loading the user ends the rule where the packet has no socket with an owner.
		return []expr.Any{loadMeta(expr.MetaKeySKUID),
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: nativeBytes(0)}}
	case countPackets:
		return []expr.Any{&expr.Counter{}}
	case queueTo:
		return []expr.Any{queueExpr(uint16(c.num))}
	case queueCompat:
		return []expr.Any{compatQueueExpr(uint16(c.num))}
	case protocol:
		return protocolIs(byte(c.num))
	}
	return gt.headerClause(c)
}

// headerClause covers the clauses about packet headers.
func (gt guardTable) headerClause(c Clause) []expr.Any {
	switch c.kind {
	case inSnapshot4:
		return append(familyIs(unix.NFPROTO_IPV4),
			networkHeader(offSource4, 4, 1), networkHeader(offDestination4, 4, 9),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 10},
			transportHeader(offSourcePort, 2, 11), transportHeader(offTargetPort, 2, 2), gt.lookup(0))
	case inSnapshot6:
		return append(familyIs(unix.NFPROTO_IPV6),
			networkHeader(offSource6, 16, 1), networkHeader(offDestination6, 16, 2),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 3},
			transportHeader(offSourcePort, 2, 17), transportHeader(offTargetPort, 2, 18), gt.lookup(1))
	case asked4:
		return append(familyIs(unix.NFPROTO_IPV4), networkHeader(offSource4, 4, 1), transportHeader(offSourcePort, 2, 9), gt.remember(0))
	case asked6:
		return append(familyIs(unix.NFPROTO_IPV6), networkHeader(offSource6, 16, 1), transportHeader(offSourcePort, 2, 2), gt.remember(1))
	case toAsked4:
		return append(familyIs(unix.NFPROTO_IPV4), networkHeader(offDestination4, 4, 1), transportHeader(offTargetPort, 2, 9), gt.wasAsked(0))
	case toAsked6:
		return append(familyIs(unix.NFPROTO_IPV6), networkHeader(offDestination6, 16, 1), transportHeader(offTargetPort, 2, 2), gt.wasAsked(1))
	case backSnapshot4:
		return append(familyIs(unix.NFPROTO_IPV4),
			networkHeader(offDestination4, 4, 1), networkHeader(offSource4, 4, 9),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 10},
			transportHeader(offTargetPort, 2, 11), transportHeader(offSourcePort, 2, 2), gt.lookup(0))
	case backSnapshot6:
		return append(familyIs(unix.NFPROTO_IPV6),
			networkHeader(offDestination6, 16, 1), networkHeader(offSource6, 16, 2),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 3},
			transportHeader(offTargetPort, 2, 17), transportHeader(offSourcePort, 2, 18), gt.lookup(1))
	case destination:
		return destinationIn(c)
	case destinationType:
		return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, cmpEqual(nativeBytes(c.num))}
	case udpPorts:
		return append(protocolIs(unix.IPPROTO_UDP), transportHeader(offSourcePort, 4, 1), cmpEqual(binary.BigEndian.AppendUint32(nil, c.num)))
	case icmp6Type:
		return append(append(familyIs(unix.NFPROTO_IPV6), protocolIs(unix.IPPROTO_ICMPV6)...),
			transportHeader(offICMPType, 1, 1), cmpEqual([]byte{byte(c.num)}))
	case udpTo:
		return append(protocolIs(unix.IPPROTO_UDP), portIs(offTargetPort, c.num)...)
	case udpFrom:
		return append(protocolIs(unix.IPPROTO_UDP), portIs(offSourcePort, c.num)...)
	case tcpFrom:
		return append(protocolIs(unix.IPPROTO_TCP), portIs(offSourcePort, c.num)...)
	case tcpOpen, tcpOpenTo:
		return opens(c)
	case socketMarkIs:
		return []expr.Any{&expr.Socket{Key: expr.SocketKeyMark, Register: 1}, bitwise(c.mask, 0), cmpEqual(nativeBytes(c.num))}
	case zoneSet:
		return []expr.Any{&expr.Immediate{Register: 1, Data: nativeBytes16(uint16(c.num))}, &expr.Ct{Key: expr.CtKeyZONE, SourceRegister: true, Register: 1}}
	case keepSource4, keepSource6, redirectTo:
		return translates(c)
	case hopLimit:
		return []expr.Any{networkHeader(offHopLimit6, 1, 1), cmpEqual([]byte{byte(c.num)})}
	}
	panic(fmt.Sprintf("route: clause kind %d has no translation", c.kind))
}

// translates is what chains of type nat do.
func translates(c Clause) []expr.Any {
	switch c.kind {
	case keepSource4:
		return append(familyIs(unix.NFPROTO_IPV4), networkHeader(offSource4, 4, 1), &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})
	case keepSource6:
		return append(familyIs(unix.NFPROTO_IPV6), networkHeader(offSource6, 16, 1), &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV6, RegAddrMin: 1})
	}
	return []expr.Any{&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(c.num))}, &expr.Redir{RegisterProtoMin: 1}}
}

// portIs ends the rule unless the port at the offset is that one.
func portIs(offset, port uint32) []expr.Any {
	return []expr.Any{transportHeader(offset, 2, 1), cmpEqual(binary.BigEndian.AppendUint16(nil, uint16(port)))}
}

// opens ends the rule unless the segment opens a connection, to a port where the clause names one.
func opens(c Clause) []expr.Any {
	out := protocolIs(unix.IPPROTO_TCP)
	if c.kind == tcpOpenTo {
		out = append(out, portIs(offTargetPort, c.num)...)
	}
	return append(out, transportHeader(offTCPFlags, 1, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpOpening}, Xor: []byte{0}}, cmpEqual([]byte{tcpSYN}))
}

func protocolIs(proto byte) []expr.Any {
	return []expr.Any{loadMeta(expr.MetaKeyL4PROTO), cmpEqual([]byte{proto})}
}

func familyIs(proto byte) []expr.Any {
	return []expr.Any{loadMeta(expr.MetaKeyNFPROTO), cmpEqual([]byte{proto})}
}

func (gt guardTable) lookup(set int) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: gt.sets[set].Name, SetID: gt.sets[set].ID}
}

func (gt guardTable) wasAsked(set int) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: gt.asked[set].Name, SetID: gt.asked[set].ID}
}

// remember adds what the registers hold to a set, or renews it. A set that is full forgets nobody: the
// answers to later queries are unsolicited.
func (gt guardTable) remember(set int) expr.Any {
	return &expr.Dynset{SrcRegKey: 1, SetName: gt.asked[set].Name, SetID: gt.asked[set].ID, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE)}
}

// destinationIn loads whole bytes where the prefix ends on one and masks elsewhere.
func destinationIn(c Clause) []expr.Any {
	addr, ones := c.prefix.Addr().AsSlice(), c.prefix.Bits()
	proto, offset := byte(unix.NFPROTO_IPV6), uint32(offDestination6)
	if c.prefix.Addr().Is4() {
		proto, offset = unix.NFPROTO_IPV4, offDestination4
	}
	out := familyIs(proto)
	if ones%8 == 0 {
		return append(out, networkHeader(offset, uint32(ones/8), 1), cmpEqual(addr[:ones/8]))
	}
	mask := bytes.Repeat([]byte{0xff}, len(addr))
	for i := range mask {
		if bit := ones - i*8; bit <= 0 {
			mask[i] = 0
		} else if bit < 8 {
			mask[i] = 0xff << (8 - bit)
		}
	}
	return append(out, networkHeader(offset, uint32(len(addr)), 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))}, cmpEqual(addr))
}
