package handback

import (
	"encoding/binary"

	"gatun/network/packet"
)

// isSYN reports whether the whole packet b of f begins a connection.
func isSYN(f packet.Flow, b []byte) bool {
	segment := segmentOf(f, b)
	return segment != nil && segment[13]&0x02 != 0
}

// sequence is the sequence number of the whole packet b of f, 0 where it has none.
func sequence(f packet.Flow, b []byte) uint32 {
	if segment := segmentOf(f, b); segment != nil {
		return binary.BigEndian.Uint32(segment[4:])
	}
	return 0
}

func segmentOf(f packet.Flow, b []byte) []byte {
	h, err := packet.Parse(b)
	if err != nil || f.Proto != packet.TCP {
		return nil
	}
	return b[h.NetworkLen:]
}
