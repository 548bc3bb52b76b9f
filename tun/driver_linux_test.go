package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newNetns moves the test's thread into a network namespace of its own. The thread is never
// unlocked, so it ends with the test and the namespace with it.
func newNetns(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

// ip runs ip(8) in the namespace of the calling thread.
func ip(t testing.TB, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

func buffers(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs, make([]int, n)
}

// readUDP reads until an IP packet with the given UDP payload comes; the kernel's own packets
// (multicast reports) are passed over.
func readUDP(t testing.TB, d Device, payload string) []byte {
	t.Helper()
	bufs, sizes := buffers(d.BatchSize(), d.MaxPacket())
	defer time.AfterFunc(time.Minute, func() { _ = d.Close() }).Stop() // a lost packet ends the test
	for range 100 {
		n, err := d.Read(bufs, sizes)
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		for i := range n {
			if p := bufs[i][:sizes[i]]; bytes.HasSuffix(p, []byte(payload)) {
				if d.Unsummed(i) {
					complete(p)
				}
				return bytes.Clone(p)
			}
		}
	}
	t.Fatalf("no packet with payload %q in 100 reads", payload)
	return nil
}

// reverse turns a UDP packet into its own answer: ends swapped, which leaves both checksums
// as they are.
func reverse(p []byte) []byte {
	r := bytes.Clone(p)
	addrs, size, l4 := 12, 4, int(p[0]&15)*4
	if p[0]>>4 == 6 {
		addrs, size, l4 = 8, 16, 40
	}
	copy(r[addrs:], p[addrs+size:addrs+2*size])
	copy(r[addrs+size:], p[addrs:addrs+size])
	copy(r[l4:], p[l4+2:l4+4])
	copy(r[l4+2:], p[l4:l4+2])
	return r
}

func udpChecksumValid(p []byte) bool {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	l4 := int(p[0]&15) * 4
	if p[0]>>4 == 6 {
		l4 = 40
		add(p[8:40])
	} else {
		add(p[12:20])
	}
	add(p[l4:])
	sum += 17 + uint32(len(p)-l4)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
}

// echo sends a datagram to an address behind the device and lets the "device side" answer.
func echo(t *testing.T, d Device, network, local, remote, payload string) {
	t.Helper()
	conn, err := net.Dial(network, remote)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if host, _, _ := net.SplitHostPort(conn.LocalAddr().String()); host != local {
		t.Fatalf("source %s, want %s", host, local)
	}
	if _, err := conn.Write([]byte(payload)); err != nil {
		t.Fatal(err)
	}
	p := readUDP(t, d, payload)
	if !udpChecksumValid(p) {
		t.Errorf("%s: the packet came with an incomplete checksum: % x", network, p)
	}
	if n, err := d.Write([][]byte{reverse(p)}); n != 1 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	got := make([]byte, 2000)
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := conn.Read(got)
	if err != nil || string(got[:n]) != payload {
		t.Fatalf("%s: answer %q, %v; want %q", network, got[:n], err, payload)
	}
}

// tunDevice is a TUN device that is up with an address of each family.
func tunDevice(t testing.TB, o Options) Device {
	t.Helper()
	d, err := o.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	addressed(t, d.Name())
	return d
}

func addressed(t testing.TB, name string) {
	t.Helper()
	ip(t, "addr add 10.139.1.2/24 dev "+name)
	ip(t, "addr add fd00:139::2/64 nodad dev "+name)
	ip(t, "link set "+name+" up")
	// The kernel makes it an address of this host in a worker of its own.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		out, err := exec.Command("ip", "-6", "route", "show", "table", "local").Output()
		if err == nil && strings.Contains(string(out), "local fd00:139::2 dev "+name) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the address is not there: %v: %s", err, out)
		}
	}
}

func TestDriverCarriesBothFamilies(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		d := tunDevice(t, Options{Name: "gatun0", Portable: portable, MTU: 1400})
		if d.Name() != "gatun0" || d.MTU() != 1400 {
			t.Errorf("name %q, mtu %d", d.Name(), d.MTU())
		}
		if ifc, err := net.InterfaceByName("gatun0"); err != nil || ifc.MTU != 1400 {
			t.Errorf("the interface has mtu %v, %v; want 1400", ifc, err)
		}
		echo(t, d, "udp4", "10.139.1.2", "10.139.1.9:7", "over IPv4")
		echo(t, d, "udp6", "fd00:139::2", "[fd00:139::9]:7", "over IPv6")
	})
}

// TestReadTakesABatch proves that a burst comes back in one call, in order, and that a burst
// larger than the buffers is not lost.
func TestReadTakesABatch(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		d := tunDevice(t, Options{Name: "gatun0", Portable: portable})
		conn, err := net.Dial("udp4", "10.139.1.9:7")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		readQueued(t, d)
		for i := range 10 {
			if _, err := conn.Write([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		bufs, sizes := buffers(8, d.MTU())
		var got []byte
		for calls := 0; len(got) < 10; calls++ {
			n, err := d.Read(bufs, sizes)
			if err != nil {
				t.Fatal(err)
			}
			if calls == 0 && n != 8 {
				t.Errorf("first call took %d packets, want all 8 buffers filled", n)
			}
			for i := range n {
				if bufs[i][0]>>4 == 4 {
					got = append(got, bufs[i][sizes[i]-1])
				}
			}
		}
		for i, b := range got {
			if int(b) != i {
				t.Fatalf("order %v", got)
			}
		}
	})
}

// readQueued empties the device of what the kernel itself sent when the link came up.
func readQueued(t testing.TB, d Device) {
	t.Helper()
	conn, err := net.Dial("udp4", "10.139.1.9:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("marker")); err != nil {
		t.Fatal(err)
	}
	readUDP(t, d, "marker")
}

func TestCloseEndsABlockedRead(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		d, err := Options{Name: "gatun0", Portable: portable}.Open()
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			bufs, sizes := buffers(1, d.MaxPacket())
			_, err := d.Read(bufs, sizes)
			ended <- err
		}()
		time.Sleep(50 * time.Millisecond) // let it block; if it has not, the result is the same
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read after Close: %v, want os.ErrClosed", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("Read did not end")
		}
		if _, err := d.Write([][]byte{{0x45}}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write after Close: %v, want os.ErrClosed", err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// TestLinkDownDropsPackets: a link that goes down and comes back is not the end of the device.
func TestLinkDownDropsPackets(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		d := tunDevice(t, Options{Name: "gatun0", Portable: portable})
		packet := make([]byte, 28)
		packet[0] = 0x45
		ip(t, "link set gatun0 down")
		if n, err := d.Write([][]byte{packet, packet}); n != 0 || err != nil {
			t.Fatalf("Write while down = %d, %v; want 0 packets and no error", n, err)
		}
		ip(t, "link set gatun0 up")
		echo(t, d, "udp4", "10.139.1.2", "10.139.1.9:7", "up again")
		if n, err := d.Write([][]byte{{0xff, 0xff}, packet}); n != 1 || err != nil {
			t.Fatalf("Write of a malformed and a good packet = %d, %v; want 1 and no error", n, err)
		}
	})
}

func TestDeletedDeviceIsFatal(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		d := tunDevice(t, Options{Name: "gatun0", Portable: portable})
		ip(t, "link del gatun0")
		packet := make([]byte, 28)
		packet[0] = 0x45
		if _, err := d.Write([][]byte{packet}); !errors.Is(err, ErrGone) {
			t.Errorf("Write: %v, want ErrGone", err)
		}
		bufs, sizes := buffers(4, d.MTU())
		var err error
		for range 100 { // packets that were queued may come first
			if _, err = d.Read(bufs, sizes); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrGone) {
			t.Errorf("Read: %v, want ErrGone", err)
		}
	})
}

func TestPersistentDeviceSurvivesAndIsAttachedAgain(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		o := Options{Name: "gatun0", Portable: portable, Persist: true}
		first, err := o.Open()
		if err != nil {
			t.Fatal(err)
		}
		addressed(t, "gatun0")
		if _, err := o.Open(); !errors.Is(err, ErrBusy) {
			t.Errorf("second Open: %v, want ErrBusy", err)
		}
		before, err := net.InterfaceByName("gatun0")
		if err != nil {
			t.Fatal(err)
		}
		first.Close()
		after, err := net.InterfaceByName("gatun0")
		if err != nil || after.Index != before.Index {
			t.Fatalf("after Close: %v, %v; want the same device", after, err)
		}
		second, err := o.Open()
		if err != nil {
			t.Fatalf("attach again: %v", err)
		}
		echo(t, second, "udp4", "10.139.1.2", "10.139.1.9:7", "attached again")
		second.Close()

		last, err := Options{Name: "gatun0", Portable: portable}.Open()
		if err != nil {
			t.Fatal(err)
		}
		last.Close()
		if _, err := net.InterfaceByName("gatun0"); err == nil {
			t.Error("a device opened without Persist is still there after Close")
		}
	})
}

func TestOpenNamesTheProblem(t *testing.T) {
	newNetns(t)
	ip(t, "link add gtdrv0 type veth peer name gtdrv1")
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"taken by another kind", Options{Name: "gtdrv0"}, "not a TUN device"},
		{"mtu too small", Options{Name: "gatun0", MTU: 10}, "want 68 to 65535"},
		{"mtu too large", Options{Name: "gatun0", MTU: 70000}, "want 68 to 65535"},
	} {
		if _, err := c.o.Open(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
}

func TestDescriptorIsNotInherited(t *testing.T) {
	eachDriver(t, func(t *testing.T, portable bool) {
		newNetns(t)
		d := tunDevice(t, Options{Name: "gatun0", Portable: portable})
		b, ok := d.(*batch)
		if o, large := d.(*offload); large != !portable {
			t.Fatalf("driver is %T", d)
		} else if large {
			b, ok = o.batch, true
		}
		if !ok {
			t.Fatalf("driver is %T", d)
		}
		flags := 0
		if err := b.raw.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFD, 0) }); err != nil {
			t.Fatal(err)
		}
		if flags&unix.FD_CLOEXEC == 0 {
			t.Error("a program started by us would inherit the TUN descriptor")
		}
	})
}

// vethDevice is a veth pair: the program's end gatun0 with addresses, a packet socket on the
// other.
func vethDevice(t testing.TB) Device {
	t.Helper()
	ip(t, "link add gatun0 type veth peer name gatun0p")
	ip(t, "link set gatun0 arp off mtu 1500")
	ip(t, "link set gatun0p up")
	addressed(t, "gatun0")
	near, err := net.InterfaceByName("gatun0")
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.InterfaceByName("gatun0p")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := FromPacketSocket(fd, far.Index, near.HardwareAddr, 1500)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestPacketSocketCarriesBothFamilies(t *testing.T) {
	newNetns(t)
	d := vethDevice(t)
	echo(t, d, "udp4", "10.139.1.2", "10.139.1.9:7", "over IPv4")
	echo(t, d, "udp6", "fd00:139::2", "[fd00:139::9]:7", "over IPv6")
	if n, err := d.Write([][]byte{{0x10, 0x00}, {}}); n != 0 || err != nil {
		t.Errorf("Write of no IP packets = %d, %v; want 0 and no error", n, err)
	}
}

// TestPacketSocketNeedsNoQueue: the queue of the far end appears some time after it is up, when the
// kernel has noticed the carrier. What is written before that must arrive as well.
func TestPacketSocketNeedsNoQueue(t *testing.T) {
	newNetns(t)
	d := vethDevice(t)
	readQueued(t, d)
	if out, err := exec.Command("tc", "qdisc", "add", "dev", "gatun0p", "root", "pfifo", "limit", "0").CombinedOutput(); err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	echo(t, d, "udp4", "10.139.1.2", "10.139.1.9:7", "over IPv4")
	echo(t, d, "udp6", "fd00:139::2", "[fd00:139::9]:7", "over IPv6")
}

func TestPacketSocketLinkDownAndUp(t *testing.T) {
	newNetns(t)
	d := vethDevice(t)
	packet := make([]byte, 28)
	packet[0] = 0x45
	ip(t, "link set gatun0p down")
	if n, err := d.Write([][]byte{packet}); n != 0 || err != nil {
		t.Fatalf("Write while down = %d, %v; want 0 packets and no error", n, err)
	}
	ip(t, "link set gatun0p up")
	untilUp(t, d)
	echo(t, d, "udp4", "10.139.1.2", "10.139.1.9:7", "up again")
}

// untilUp sends until something arrives: the kernel notices a carrier in a worker of its own, and
// drops what programs send before that.
func untilUp(t *testing.T, d Device) {
	t.Helper()
	conn, err := net.Dial("udp4", "10.139.1.9:9")
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			_, _ = conn.Write([]byte("up?"))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	readUDP(t, d, "up?")
	close(stop)
	<-stopped
	_ = conn.Close()
}

func TestFromPacketSocketRefusesWhatItCannotUse(t *testing.T) {
	newNetns(t)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FromPacketSocket(fd, 9999, make(net.HardwareAddr, 6), 1500); err == nil {
		t.Error("an interface that does not exist was accepted")
	}
	if err := unix.Close(fd); err != unix.EBADF {
		t.Errorf("the descriptor is still open after the failure: %v", err)
	}
}

// TestDriversDoNotAllocate is the budget of the packet path: nothing is allocated per packet
// or per batch.
func TestDriversDoNotAllocate(t *testing.T) {
	newNetns(t)
	allocs(t, "offload", tunDevice(t, Options{Name: "off0"}))
	ip(t, "link del off0")
	allocs(t, "water", tunDevice(t, Options{Name: "gatun0", Portable: true}))
	ip(t, "link del gatun0") // the pair wants the name
	allocs(t, "veth", vethDevice(t))
}

func allocs(t *testing.T, name string, d Device) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 139, 1, 9}, Port: 7}); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := buffers(d.BatchSize(), d.MaxPacket())
	payload := []byte("x")
	out := make([][]byte, 0, len(bufs))
	got := testing.AllocsPerRun(200, func() {
		for range 4 {
			if _, err := unix.Write(fd, payload); err != nil {
				t.Fatal(err)
			}
		}
		n, err := d.Read(bufs, sizes)
		if err != nil {
			t.Fatal(err)
		}
		out = out[:0]
		for i := range n {
			out = append(out, bufs[i][:sizes[i]])
		}
		if _, err := d.Write(out); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 {
		t.Errorf("%s: %v allocations per batch, want 0", name, got)
	}
}

func benchmarkRead(b *testing.B, d Device) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 139, 1, 9}, Port: 7}); err != nil {
		b.Fatal(err)
	}
	bufs, sizes := buffers(d.BatchSize(), d.MaxPacket())
	payload := make([]byte, 1200)
	b.ReportAllocs()
	packets := 0
	for b.Loop() {
		for range 32 {
			if _, err := unix.Write(fd, payload); err != nil {
				b.Fatal(err)
			}
		}
		for left := 32; left > 0; {
			n, err := d.Read(bufs, sizes)
			if err != nil {
				b.Fatal(err)
			}
			left -= n
			packets += n
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(packets), "ns/packet")
}

func BenchmarkReadWater(b *testing.B) {
	newNetns(b)
	benchmarkRead(b, tunDevice(b, Options{Name: "gatun0"}))
}

func BenchmarkReadPacketSocket(b *testing.B) {
	newNetns(b)
	benchmarkRead(b, vethDevice(b))
}

func BenchmarkWriteWater(b *testing.B) {
	newNetns(b)
	d := tunDevice(b, Options{Name: "gatun0"})
	conn, err := net.Dial("udp4", "10.139.1.9:7")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	payload := make([]byte, 1200)
	copy(payload[1190:], "benchmark!")
	if _, err := conn.Write(payload); err != nil {
		b.Fatal(err)
	}
	answer := reverse(readUDP(b, d, "benchmark!"))
	batch := make([][]byte, 32)
	for i := range batch {
		batch[i] = answer
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Write(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/32, "ns/packet")
}
