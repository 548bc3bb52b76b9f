package state

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

func openTable(t testing.TB) *Table {
	t.Helper()
	table, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// inode is the inode of the socket behind c, as /proc/self/fd shows it.
func inode(t testing.TB, c syscall.Conn) (ino uint64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			t.Fatal(err)
		}
		ino = st.Ino
	})
	return ino
}

// wantOne asks for f and expects the one socket with the inode.
func wantOne(t *testing.T, table *Table, f packet.Flow, ino uint64) Socket {
	t.Helper()
	got, err := table.Find(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Inode != ino || got[0].UID != uint32(os.Getuid()) {
		t.Fatalf("%s: got %+v, want one socket with inode %d", f, got, ino)
	}
	return got[0]
}

func TestFindTCP(t *testing.T) {
	table := openTable(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			f := packet.Flow{Proto: packet.TCP, Local: addrPort(c.LocalAddr()), Remote: addrPort(c.RemoteAddr())}
			if s := wantOne(t, table, f, inode(t, c.(*net.TCPConn))); s.State != Established || s.Cookie == 0 {
				t.Errorf("state %s, cookie %d", s.State, s.Cookie)
			}
			f.Remote = netip.AddrPortFrom(f.Remote.Addr(), 1)
			if got, err := table.Find(nil, f); err != nil || len(got) != 0 {
				t.Errorf("a flow that does not exist: %+v, %v", got, err)
			}
			// The listener must never answer for an outgoing flow from its port.
			f = packet.Flow{Proto: packet.TCP, Local: addrPort(l.Addr()), Remote: netip.AddrPortFrom(f.Remote.Addr(), 9)}
			if got, err := table.Find(nil, f); err != nil || len(got) != 0 {
				t.Errorf("the listener answered: %+v, %v", got, err)
			}
			if got, err := table.Listeners(nil, f); err != nil || len(got) != 1 || got[0].Inode != inode(t, l.(*net.TCPListener)) {
				t.Errorf("listeners: %+v, %v", got, err)
			}
		})
	}
}

// socket6 makes an IPv6 socket of the kind and connects it to an IPv4 address by mapping.
func socket6(t *testing.T, kind int, to netip.AddrPort) (*os.File, packet.Flow) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "socket6")
	t.Cleanup(func() { file.Close() })
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in6 := sa.(*unix.SockaddrInet6)
	local := netip.AddrPortFrom(netip.AddrFrom16(in6.Addr).Unmap(), uint16(in6.Port))
	return file, packet.Flow{Local: local, Remote: to}
}

func TestFindMapped(t *testing.T) {
	table := openTable(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for proto, kind := range map[packet.Proto]int{packet.TCP: unix.SOCK_STREAM, packet.UDP: unix.SOCK_DGRAM} {
		file, f := socket6(t, kind, addrPort(l.Addr()))
		f.Proto = proto
		wantOne(t, table, f, inode(t, file))
	}
}

func TestFindSynSent(t *testing.T) {
	table := openTable(t)
	// A full backlog leaves a connect hanging in SYN-SENT, as a held flow hangs.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, _ := unix.Getsockname(fd)
	for range 8 {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		unix.Connect(c, sa)
		var st unix.Stat_t
		unix.Fstat(c, &st)
		self, _ := unix.Getsockname(c)
		me, peer := self.(*unix.SockaddrInet4), sa.(*unix.SockaddrInet4)
		f := packet.Flow{Proto: packet.TCP, Local: netip.AddrPortFrom(netip.AddrFrom4(me.Addr), uint16(me.Port)),
			Remote: netip.AddrPortFrom(netip.AddrFrom4(peer.Addr), uint16(peer.Port))}
		if s := wantOne(t, table, f, st.Ino); s.State == SynSent {
			return
		}
	}
	t.Fatal("no connect stayed in SYN-SENT")
}

func TestFindUDP(t *testing.T) {
	table := openTable(t)
	for _, test := range []struct{ network, bind, from, to string }{
		{"udp4", "127.0.0.1:0", "127.0.0.1", "127.0.0.9:53"},
		{"udp4", "0.0.0.0:0", "127.0.0.5", "127.0.0.9:53"},
		{"udp6", "[::1]:0", "::1", "[::1]:53"},
		{"udp6", "[::]:0", "::1", "[::1]:53"},
		{"udp", ":0", "127.0.0.1", "127.0.0.1:53"}, // one IPv6 socket for both families
		{"udp", ":0", "::1", "[::1]:53"},
	} {
		t.Run(test.network+test.bind+test.from, func(t *testing.T) {
			c, err := net.ListenPacket(test.network, test.bind)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			f := packet.Flow{Proto: packet.UDP, Remote: netip.MustParseAddrPort(test.to),
				Local: netip.AddrPortFrom(netip.MustParseAddr(test.from), addrPort(c.LocalAddr()).Port())}
			wantOne(t, table, f, inode(t, c.(*net.UDPConn)))
		})
	}
}

func TestFindUDPShared(t *testing.T) {
	table := openTable(t)
	reuse := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	first, err := reuse.ListenPacket(context.Background(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := reuse.ListenPacket(context.Background(), "udp4", first.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	f := packet.Flow{Proto: packet.UDP, Local: addrPort(first.LocalAddr()), Remote: netip.MustParseAddrPort("127.0.0.1:9")}
	got, err := table.Find(nil, f)
	if err != nil || len(got) != 2 {
		t.Errorf("got %+v, %v; want both sockets", got, err)
	}
}

// TestFindUDPMany: an answer that is longer than what one read takes is complete.
func TestFindUDPMany(t *testing.T) {
	table := openTable(t)
	reuse := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	const sockets = 300
	local := "127.0.0.1:0"
	for range sockets {
		c, err := reuse.ListenPacket(context.Background(), "udp4", local)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		local = c.LocalAddr().String()
	}
	f := packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort("127.0.0.1:9")}
	for range 3 {
		got, err := table.Find(nil, f)
		if err != nil || len(got) != sockets {
			t.Fatalf("got %d sockets, %v; want %d", len(got), err, sockets)
		}
		if _, err := table.All(packet.UDP); err != nil { // its reads are larger
			t.Fatal(err)
		}
	}
}

// TestFindConcurrent drives the coalescing and the filter program: every asker must get
// exactly its own socket.
func TestFindConcurrent(t *testing.T) {
	table := openTable(t)
	var wg sync.WaitGroup
	for range 200 {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f := packet.Flow{Proto: packet.UDP, Local: addrPort(c.LocalAddr()), Remote: netip.MustParseAddrPort("127.0.0.1:9")}
		ino := inode(t, c.(*net.UDPConn))
		wg.Go(func() {
			for range 20 {
				if got, err := table.Find(nil, f); err != nil || len(got) != 1 || got[0].Inode != ino {
					t.Errorf("%s: %+v, %v; want inode %d", f, got, err, ino)
				}
			}
		})
	}
	wg.Wait()
}

func TestPortFilter(t *testing.T) {
	table := openTable(t)
	var ports []uint16
	for range maxPorts {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ports = append(ports, addrPort(c.LocalAddr()).Port())
	}
	for n := 2; n <= maxPorts; n++ {
		r := request{family: familyV4, proto: packet.UDP, dump: true, states: allStates, ports: ports[:n]}
		got, err := table.pool.query(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		var found []uint16
		for _, s := range got {
			found = append(found, s.Local.Port())
		}
		slices.Sort(found)
		if want := slices.Sorted(slices.Values(ports[:n])); !slices.Equal(found, want) {
			t.Fatalf("%d ports: got %v, want %v", n, found, want)
		}
	}
}

func TestFindRaw(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raw sockets need root")
	}
	table := openTable(t)
	c, err := net.ListenIP("ip4:253", &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}) // RFC 3692: for experiments
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantOne(t, table, flow(253, "127.0.0.1:0", "127.0.0.9:0"), inode(t, c))
	if got, err := table.Find(nil, flow(254, "127.0.0.1:0", "127.0.0.9:0")); err != nil || len(got) != 0 {
		t.Errorf("another protocol: %+v, %v", got, err)
	}
	all, err := table.All(253)
	if err != nil || len(all) != 1 {
		t.Errorf("all: %+v, %v", all, err)
	}
}

// UDP-Lite has ports, but its flows have none: whoever may have sent such a datagram counts, also IPv4 by a socket
// of IPv6.
func TestFindLite(t *testing.T) {
	table := openTable(t)
	find := func(from, to string) []uint64 {
		found, err := table.Find(nil, flow(protoUDPLite, from, to))
		if err != nil {
			t.Fatal(err)
		}
		var inodes []uint64
		for _, s := range found {
			if s.Proto == protoUDPLite {
				inodes = append(inodes, s.Inode)
			}
		}
		return inodes
	}
	open := func(family int, to unix.Sockaddr) uint64 {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			t.Skip("the kernel has no UDP-Lite")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		var stat unix.Stat_t
		if err := errors.Join(unix.Connect(fd, to), unix.Fstat(fd, &stat)); err != nil {
			t.Fatal(err)
		}
		return stat.Ino
	}
	four := open(unix.AF_INET, &unix.SockaddrInet4{Port: 7, Addr: [4]byte{127, 0, 0, 9}})
	mapped := open(unix.AF_INET6, &unix.SockaddrInet6{Port: 7, Addr: netip.MustParseAddr("::ffff:127.0.0.8").As16()})
	six := open(unix.AF_INET6, &unix.SockaddrInet6{Port: 7, Addr: netip.MustParseAddr("::1").As16()})
	for _, c := range []struct {
		from, to string
		want     []uint64
	}{
		{"127.0.0.1:0", "127.0.0.9:0", []uint64{four}}, {"127.0.0.1:0", "127.0.0.8:0", []uint64{mapped}},
		{"[::1]:0", "[::1]:0", []uint64{six}}, {"127.0.0.1:0", "127.0.0.7:0", nil}, {"127.0.0.2:0", "127.0.0.9:0", nil},
	} {
		if got := find(c.from, c.to); !slices.Equal(got, c.want) {
			t.Errorf("%s to %s: found %v, want %v", c.from, c.to, got, c.want)
		}
	}
	if got, err := table.Find(nil, flow(254, "127.0.0.1:0", "127.0.0.9:0")); err != nil || len(got) != 0 {
		t.Errorf("another protocol: %+v, %v", got, err)
	}
}

func TestAll(t *testing.T) {
	table := openTable(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := map[uint64]bool{}
	for range 300 { // more than one datagram of the dump
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want[inode(t, c.(*net.TCPConn))] = true
	}
	all, err := table.All(packet.TCP)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		delete(want, s.Inode)
	}
	if len(want) != 0 {
		t.Errorf("%d of 300 connections are missing", len(want))
	}
}

// inNamespace runs f on a thread of its own in a new network namespace, which ends with it.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		result <- f()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func TestNewFromFD(t *testing.T) {
	var diag *os.File
	var ino uint64
	var local netip.AddrPort
	var c int
	inNamespace(t, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return err
		}
		diag = os.NewFile(uintptr(fd), "diag")
		if c, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Bind(c, &unix.SockaddrInet4{}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(c)
		var st unix.Stat_t
		unix.Fstat(c, &st)
		ino, local = st.Ino, netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), uint16(sa.(*unix.SockaddrInet4).Port))
		return err
	})
	defer unix.Close(c)
	inside, err := NewFromFD(diag, "")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if err := diag.Close(); err != nil { // the table works on a duplicate
		t.Fatal(err)
	}
	f := packet.Flow{Proto: packet.UDP, Local: local, Remote: netip.MustParseAddrPort("192.0.2.1:53")}
	wantOne(t, inside, f, ino)
	if got, err := openTable(t).Find(nil, f); err != nil || len(got) != 0 {
		t.Errorf("seen from outside: %+v, %v", got, err)
	}
}

// TestFindBoundToDevice has a connection that SO_BINDTODEVICE ties to an interface.
func TestFindBoundToDevice(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bound := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), lo.Name) })
		return errors.Join(err, failed)
	}}
	c, err := bound.Dial("tcp4", l.Addr().String())
	if errors.Is(err, unix.EPERM) {
		t.Skip("binding to a device needs CAP_NET_RAW on this kernel")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	table, err := Open(Options{Device: uint32(lo.Index)})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	f := packet.Flow{Proto: packet.TCP, Local: addrPort(c.LocalAddr()), Remote: addrPort(c.RemoteAddr())}
	if s := wantOne(t, table, f, inode(t, c.(*net.TCPConn))); s.Device != uint32(lo.Index) {
		t.Errorf("device %d", s.Device)
	}
	if got, err := openTable(t).Find(nil, f); err != nil || len(got) != 0 {
		t.Errorf("without the device: %+v, %v", got, err)
	}
}

func TestClose(t *testing.T) {
	table, err := New()
	if err != nil {
		t.Fatal(err)
	}
	table.Close()
	if _, err := table.Find(nil, flow(packet.TCP, "127.0.0.1:1", "127.0.0.1:2")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want os.ErrClosed", err)
	}
}

func BenchmarkFind(b *testing.B) {
	table := openTable(b)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	tcp, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", ":0")
	if err != nil {
		b.Fatal(err)
	}
	defer udp.Close()
	udpLocal := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), addrPort(udp.LocalAddr()).Port())
	for _, f := range []packet.Flow{
		{Proto: packet.TCP, Local: addrPort(tcp.LocalAddr()), Remote: addrPort(tcp.RemoteAddr())},
		{Proto: packet.UDP, Local: udpLocal, Remote: netip.MustParseAddrPort("127.0.0.1:9")},
	} {
		b.Run(f.Proto.String(), func(b *testing.B) {
			b.ReportAllocs()
			var buf []Socket
			for b.Loop() {
				if buf, err = table.Find(buf[:0], f); err != nil || len(buf) != 1 {
					b.Fatal(buf, err)
				}
			}
		})
		b.Run(f.Proto.String()+"-parallel", func(b *testing.B) {
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				var buf []Socket
				for pb.Next() {
					if buf, err := table.Find(buf[:0], f); err != nil || len(buf) != 1 {
						b.Error(buf, err)
						return
					}
				}
			})
		})
	}
}

// TestFindUDPWithoutIPv6: in a namespace that has no IPv6 UDP socket one walk is enough, until there is
// one, which may speak IPv4 and shares the port.
func TestFindUDPWithoutIPv6(t *testing.T) {
	inNamespace(t, func() error {
		table, err := New()
		if err != nil {
			return err
		}
		defer table.Close()
		socket := func(domain int, at unix.Sockaddr) (int, error) {
			fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return 0, err
			}
			return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Bind(fd, at))
		}
		four, err := socket(unix.AF_INET, &unix.SockaddrInet4{Port: 4000})
		if err != nil {
			return err
		}
		defer unix.Close(four)
		if table.udp.mayHaveV6() {
			return errors.New("an IPv6 socket is reported in a fresh namespace")
		}
		f := packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("10.9.9.9:4000"), Remote: netip.MustParseAddrPort("192.0.2.1:53")}
		if got, err := table.Find(nil, f); err != nil || len(got) != 1 {
			return fmt.Errorf("got %+v, %w; want one socket", got, err)
		}
		six, err := socket(unix.AF_INET6, &unix.SockaddrInet6{Port: 4000})
		if errors.Is(err, unix.EAFNOSUPPORT) {
			t.Log("no IPv6: its half is not tested")
			return nil
		}
		if err != nil {
			return err
		}
		defer unix.Close(six)
		if got, err := table.Find(nil, f); err != nil || len(got) != 2 {
			return fmt.Errorf("got %+v, %w; want both sockets", got, err)
		}
		return nil
	})
}

func TestNoUDP6(t *testing.T) {
	for text, want := range map[string]bool{
		"TCP6: inuse 3\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n": true,
		"TCP6: inuse 0\nUDP6: inuse 10\nUDPLITE6: inuse 0\n":                                        false,
		"TCP6: inuse 0\nUDPLITE6: inuse 0\n":                                                        false,
		"":                                                                                          false,
	} {
		if got := noUDP6([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
