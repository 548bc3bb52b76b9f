package state

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"gatun/network/packet"
)

// Table reads the socket tables of one network namespace. Its methods may be called from any
// goroutine.
type Table struct {
	pool    *pool
	udp     dumper
	procNet string
	device  uint32
}

// Open opens the socket tables that o names.
func Open(o Options) (*Table, error) {
	p, err := openPool(o.Files, min(max(runtime.NumCPU(), 2), 8))
	if err != nil {
		return nil, err
	}
	procNet := o.ProcNet
	if procNet == "" && len(o.Files) == 0 {
		procNet = "/proc/self/net"
	}
	t := &Table{pool: p, udp: dumper{pool: p}, procNet: procNet, device: o.Device}
	stat := o.ProcNet
	if stat == "" && len(o.Files) == 0 {
		stat = "/proc/thread-self/net" // where the pool was made
	}
	if stat != "" {
		t.udp.six, _ = os.Open(filepath.Join(stat, "sockstat6")) // nil: more work, the same answers
	}
	return t, nil
}

// Close gives back the files of t. Look-ups that run end on their own, later ones fail with
// os.ErrClosed.
func (t *Table) Close() error {
	t.pool.close()
	if t.udp.six != nil {
		return t.udp.six.Close()
	}
	return nil
}

// Find appends to dst the sockets that may have sent the packets of flow f: for TCP the one
// that is connecting or connected with these addresses; for UDP every socket of the local
// port, if one of them fits; for the others the ping and raw sockets. More than one socket
// means that the kernel does not tell which it was. No socket is not an error.
func (t *Table) Find(dst []Socket, f packet.Flow) ([]Socket, error) {
	switch f.Proto {
	case packet.TCP:
		return t.findTCP(dst, f)
	case packet.UDP:
		return t.udp.find(dst, f)
	default:
		start := len(dst)
		dst, err := t.rawSockets(dst, f.Is6())
		if f.Proto == protoUDPLite && err == nil {
			dst, err = t.liteSockets(dst)
		}
		return ownersOfRaw(dst, start, f), err
	}
}

// findTCP asks for the one connection with f's addresses. It never returns a listener: that
// is not the sender of an outgoing SYN whose socket is gone.
func (t *Table) findTCP(dst []Socket, f packet.Flow) ([]Socket, error) {
	family := uint8(familyV4)
	if f.Is6() {
		family = familyV6
	}
	r := request{family: family, proto: packet.TCP, states: allStates, source: f.Local, destination: f.Remote}
	start := len(dst)
	for _, device := range [...]uint32{0, t.device} {
		r.device = device
		var err error
		dst, err = t.pool.query(dst[:start], &r)
		if err != nil && err != errNotFound {
			return dst[:start], err
		}
		if len(dst) > start {
			if s := dst[start]; s.State != Listen && s.Local == f.Local && s.Remote == f.Remote {
				return dst[:start+1], nil
			}
		}
		if t.device == 0 {
			break
		}
	}
	return dst[:start], nil
}

// Listeners appends to dst the TCP sockets that wait for a connection to f.Local.
func (t *Table) Listeners(dst []Socket, f packet.Flow) ([]Socket, error) {
	start := len(dst)
	for _, family := range families(f) {
		var err error
		r := request{family: family, proto: packet.TCP, dump: true, states: 1 << Listen, ports: []uint16{f.Local.Port()}}
		if dst, err = t.pool.query(dst, &r); err != nil {
			return dst[:start], err
		}
	}
	kept := dst[:start]
	for _, s := range dst[start:] {
		if speaks(s, f.Local.Addr()) && (s.Local.Addr().IsUnspecified() || s.Local.Addr() == f.Local.Addr()) {
			kept = append(kept, s)
		}
	}
	return kept, nil
}

// All returns every socket of protocol p: for TCP in all states, for ICMP and other protocols
// the ping and raw sockets.
func (t *Table) All(p packet.Proto) ([]Socket, error) {
	var all []Socket
	if p != packet.TCP && p != packet.UDP {
		v4, err := t.rawSockets(nil, false)
		if err != nil {
			return nil, err
		}
		v6, err := t.rawSockets(nil, true)
		if err != nil {
			return nil, err
		}
		for _, s := range append(v4, v6...) {
			if s.Proto == p {
				all = append(all, s)
			}
		}
		return all, nil
	}
	for _, family := range [...]uint8{familyV4, familyV6} {
		var err error
		if all, err = t.pool.query(all, &request{family: family, proto: p, dump: true, many: true, states: allStates}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// rawSockets appends the ping and raw sockets that can send from the family: IPv6 sockets of
// these kinds never speak IPv4.
func (t *Table) rawSockets(dst []Socket, v6 bool) ([]Socket, error) {
	if t.procNet == "" {
		return dst, nil
	}
	files, ping := [...]string{"icmp", "raw"}, packet.ICMP
	if v6 {
		files, ping = [...]string{"icmp6", "raw6"}, packet.ICMPv6
	}
	for kind, name := range files {
		var err error
		if dst, err = t.procSockets(dst, name, tableKind(kind), ping); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// procSockets appends the sockets of one table of /proc/net; none for a kernel that has no such sockets.
func (t *Table) procSockets(dst []Socket, name string, kind tableKind, proto packet.Proto) ([]Socket, error) {
	text, err := os.ReadFile(filepath.Join(t.procNet, name))
	if errors.Is(err, fs.ErrNotExist) {
		return dst, nil
	}
	if err != nil {
		return dst, fmt.Errorf("read a socket table: %w", err)
	}
	if dst, err = parseProcNet(dst, text, kind, proto); err != nil {
		return dst, fmt.Errorf("%s: %w", name, err)
	}
	return dst, nil
}

// liteSockets appends the sockets of UDP-Lite, whose flows have no ports here: like raw ones of that protocol.
// Those of IPv6 may speak IPv4.
func (t *Table) liteSockets(dst []Socket) ([]Socket, error) {
	if t.procNet == "" {
		return dst, nil
	}
	start := len(dst)
	for _, name := range [...]string{"udplite", "udplite6"} {
		var err error
		if dst, err = t.procSockets(dst, name, pingTable, protoUDPLite); err != nil {
			return dst, err
		}
	}
	for i := start; i < len(dst); i++ {
		s := &dst[i]
		s.Raw = true
		s.Local, s.Remote = netip.AddrPortFrom(s.Local.Addr(), 0), netip.AddrPortFrom(s.Remote.Addr(), 0)
	}
	return dst, nil
}
