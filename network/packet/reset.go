package packet

import "encoding/binary"

// AppendReset appends to b the TCP segment that refuses a SYN (RFC 9293 3.10.7.1): RST and ACK,
// with sequence number 0. ack is the SYN's sequence number plus one.
func AppendReset(b []byte, ip *IP, srcPort, dstPort uint16, ack uint32) []byte {
	const length = 20
	b = ip.appendHeader(b, TCP, length)
	at := len(b)
	b = append(b, byte(srcPort>>8), byte(srcPort), byte(dstPort>>8), byte(dstPort), 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, length/4<<4, TCPRst|TCPAck, 0, 0, 0, 0, 0, 0)
	ip.seal(b[at:], 16, TCP)
	return b
}
