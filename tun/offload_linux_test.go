package tun

import (
	"encoding/binary"
	"testing"
)

// eachDriver runs a test with the driver that Open chooses, and with the portable one.
func eachDriver(t *testing.T, run func(t *testing.T, portable bool)) {
	t.Run("offload", func(t *testing.T) { run(t, false) })
	t.Run("portable", func(t *testing.T) { run(t, true) })
}

// complete fills in the transport checksum, where the sum of the pseudo header is.
func complete(p []byte) {
	l4, proto := int(p[0]&15)*4, p[9]
	if p[0]>>4 == 6 {
		l4, proto = 40, p[6]
	}
	at := l4 + 6
	if proto == 6 {
		at = l4 + 16
	}
	var sum uint32
	for b := p[l4:]; len(b) > 0; b = b[min(2, len(b)):] {
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
			break
		}
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[at:], ^uint16(sum))
}
