package state

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"

	"gatun/network/packet"
)

// tableKind says which of the /proc/net tables a text is: both look the same, but the number
// after the local address is an echo identifier in one and a protocol in the other.
type tableKind uint8

const (
	pingTable tableKind = iota // /proc/net/icmp, icmp6
	rawTable                   // /proc/net/raw, raw6
)

// parseProcNet reads a table of /proc/net/icmp, icmp6, raw or raw6 and appends its sockets to
// dst. The sockets of a ping table get the protocol ping; those of a raw table have their own.
func parseProcNet(dst []Socket, text []byte, kind tableKind, ping packet.Proto) ([]Socket, error) {
	_, text, _ = bytes.Cut(text, []byte{'\n'}) // the heading
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) < 10 {
			return dst, fmt.Errorf("socket table line of %d fields, want at least 10", len(fields))
		}
		s, err := parseProcLine(fields)
		if err != nil {
			return dst, err
		}
		s.Proto = ping
		if kind == rawTable {
			s.Raw = true
			s.Proto = packet.Proto(s.Local.Port())
			s.Local = netip.AddrPortFrom(s.Local.Addr(), 0)
			s.Remote = netip.AddrPortFrom(s.Remote.Addr(), 0)
		}
		dst = append(dst, s)
	}
	return dst, nil
}

// parseProcLine reads the columns "sl local_address rem_address st tx:rx tr:when retrnsmt uid
// timeout inode …".
func parseProcLine(fields [][]byte) (Socket, error) {
	var s Socket
	var err error
	if s.Local, err = parseHexAddr(fields[1]); err != nil {
		return s, err
	}
	if s.Remote, err = parseHexAddr(fields[2]); err != nil {
		return s, err
	}
	state, err := strconv.ParseUint(string(fields[3]), 16, 8)
	if err != nil {
		return s, fmt.Errorf("socket state: %w", err)
	}
	uid, err := strconv.ParseUint(string(fields[7]), 10, 32)
	if err != nil {
		return s, fmt.Errorf("socket user: %w", err)
	}
	s.State, s.UID = State(state), uint32(uid)
	if s.Inode, err = strconv.ParseUint(string(fields[9]), 10, 64); err != nil {
		return s, fmt.Errorf("socket inode: %w", err)
	}
	return s, nil
}

// parseHexAddr reads "0100007F:0035": 32-bit words in the machine's byte order, then the port.
func parseHexAddr(b []byte) (netip.AddrPort, error) {
	host, port, found := bytes.Cut(b, []byte{':'})
	if !found || (len(host) != 8 && len(host) != 32) {
		return netip.AddrPort{}, fmt.Errorf("socket address %q", b)
	}
	var raw [16]byte
	n, err := hex.Decode(raw[:], host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("socket address %q: %w", b, err)
	}
	for word := raw[:n]; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	number, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("socket port: %w", err)
	}
	addr, _ := netip.AddrFromSlice(raw[:n])
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}
