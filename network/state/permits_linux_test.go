package state

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

const (
	testMark = 0x67650000
	testMask = 0xffff0000

	permitPatience = 20 * time.Second
)

// otherProgram connects and says which mark the socket got: it is the child of TestPermitsAreOneImages.
func otherProgram(to string) {
	fd, _, err := connectTo(netip.MustParseAddrPort(to), 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Print(markOf(fd))
	os.Exit(0)
}

// permitted opens hooks that permit ahead, in a namespace with a device that swallows packets.
func permitted(t *testing.T, f func(o *Owners, p *Permits)) {
	t.Helper()
	dummy(t, func() {
		o := openOwners(t, OwnersOptions{Mark: testMark, Mask: testMask})
		p, err := o.Permits()
		if err != nil {
			t.Error(err)
			return
		}
		f(o, p)
	})
}

// connectTo begins a connection, from a socket with a mark, and returns the socket and its flow.
func connectTo(to netip.AddrPort, mark int) (fd int, f packet.Flow, err error) {
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: as4(to.Addr())}
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, f, err
	}
	if mark != 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark)
	}
	if err == nil {
		if err = unix.Connect(fd, sa); err == unix.EINPROGRESS {
			err = nil
		}
	}
	name, nameErr := unix.Getsockname(fd)
	if err = errors.Join(err, nameErr); err != nil {
		return fd, f, errors.Join(err, unix.Close(fd))
	}
	f = packet.Flow{Proto: packet.TCP, Remote: to}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		f.Local = netip.AddrPortFrom(netip.AddrFrom4(n.Addr), uint16(n.Port))
	case *unix.SockaddrInet6:
		f.Local = netip.AddrPortFrom(netip.AddrFrom16(n.Addr), uint16(n.Port))
	}
	return fd, f, nil
}

func markOf(fd int) int {
	mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
	if err != nil {
		return -1
	}
	return mark
}

// begin is connectTo for this test, which closes the socket at its end, and returns its mark.
func begin(t *testing.T, to netip.AddrPort, mark int) (packet.Flow, int) {
	t.Helper()
	fd, f, err := connectTo(to, mark)
	if err != nil {
		t.Errorf("connect to %s: %v", to, err)
		return f, -1
	}
	t.Cleanup(func() { unix.Close(fd) })
	return f, markOf(fd)
}

// permit permits what this thread has connected to before.
func permit(t *testing.T, o *Owners, p *Permits, to netip.AddrPort, until time.Time) Permission {
	t.Helper()
	at := p.Now()
	fd, f, err := connectTo(to, 0)
	if err != nil {
		t.Errorf("connect to %s: %v", to, err)
		return Permission{}
	}
	defer unix.Close(fd) // it sends no SYN again
	s, found := o.Sender(f)
	if !found || !s.Certain {
		t.Errorf("nobody was seen to send %s: %+v", f, s)
	}
	a := Permission{ImageID: s.ImageID, UID: s.UID, Proto: packet.TCP, Remote: to}
	if err := p.Permit(a, at, until); err != nil {
		t.Errorf("permit %s: %v", to, err)
	}
	return a
}

func begunOf(p *Permits) (all []Begun) {
	p.Begun(func(b Begun) { all = append(all, b) })
	return all
}

// wiretap counts the SYNs that leave, by their destination.
type wiretap struct {
	fd int
	mu sync.Mutex
	n  map[netip.AddrPort]int
}

func tap(t *testing.T) *wiretap {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(uint16(unix.ETH_P_ALL)<<8|uint16(unix.ETH_P_ALL)>>8))
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	w := &wiretap{fd: fd, n: map[netip.AddrPort]int{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); w.read(stop) }()
	t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
	return w
}

func (w *wiretap) read(stop chan struct{}) {
	buf := make([]byte, 2048)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err != nil {
			continue
		}
		if l, ok := from.(*unix.SockaddrLinklayer); !ok || l.Pkttype != unix.PACKET_OUTGOING {
			continue
		}
		if h, err := packet.Parse(buf[:n]); err == nil && (h.Flow.Proto == packet.UDP || h.TCPFlags&packet.TCPSyn != 0) {
			w.mu.Lock()
			w.n[h.Flow.Remote]++
			w.mu.Unlock()
		}
	}
}

func (w *wiretap) count(to netip.AddrPort) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n[to]
}

// settle waits until everything that was sent before is counted.
func (w *wiretap) settle(t *testing.T) {
	t.Helper()
	marker := netip.MustParseAddrPort("10.203.8.9:9999")
	before := w.count(marker)
	for deadline := time.Now().Add(permitPatience); w.count(marker) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the wiretap sees nothing")
		}
		sendTo(t, "udp", marker)
	}
}

var targets = []string{"10.203.8.9:4000", "[fd00:203::9]:4000"}

// TestPermitsGiveTheMark: what is permitted gets the mark and is told; everything else does not.
func TestPermitsGiveTheMark(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		if err := p.Renew(); err != nil {
			t.Error(err)
		}
		for _, target := range targets {
			to := netip.MustParseAddrPort(target)
			a := permit(t, o, p, to, time.Now().Add(time.Hour))
			if all := begunOf(p); len(all) != 0 {
				t.Errorf("told of %+v, which nobody had permitted", all)
			}
			f, mark := begin(t, to, 0)
			if mark != testMark {
				t.Errorf("%s: mark %#x, want %#x", f, mark, testMark)
			}
			all := begunOf(p)
			if len(all) != 1 || all[0].Flow != f || all[0].Sender.ImageID != a.ImageID || all[0].Sender.Cookie == 0 || all[0].Stale {
				t.Errorf("told %+v, want %s", all, f)
			}
			for _, other := range []netip.AddrPort{netip.AddrPortFrom(to.Addr(), 4001), netip.AddrPortFrom(to.Addr().Prev(), 4000)} {
				if f, mark := begin(t, other, 0); mark != 0 {
					t.Errorf("%s is not permitted and has the mark %#x", f, mark)
				}
			}
			if f, mark := begin(t, to, 0x1234); mark != 0x1234 {
				t.Errorf("%s: the program's mark became %#x", f, mark)
			}
			if err := p.Forget(to); err != nil || p.Len() != 0 {
				t.Errorf("forget: %v, %d left", err, p.Len())
			}
			if f, mark := begin(t, to, 0); mark != 0 {
				t.Errorf("%s was taken back and has the mark %#x", f, mark)
			}
		}
	})
}

// TestPermitsEnd: a permission ends with its time, with a change of the policy, and one that rests on
// what was before a change never holds.
func TestPermitsEnd(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		to := netip.MustParseAddrPort(targets[0])
		early := p.Now()
		_ = p.Renew()
		a := permit(t, o, p, to, time.Now())
		if _, mark := begin(t, to, 0); mark != 0 {
			t.Errorf("its time was over: mark %#x", mark)
		}
		later := time.Now().Add(time.Hour)
		ends := []struct {
			name string
			end  func() error
		}{
			{"policy", p.Renew},
			{"answer", func() error { return p.ForgetAddr(to.Addr()) }},
			{"use", func() error { _, err := p.Extend(time.Now().Add(time.Second), later); return err }},
			{"kill", func() error { return p.Forget(to) }},
		}
		for _, c := range ends {
			at := p.Now()
			if err := p.Permit(a, at, later); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if left, err := p.Extend(time.Now().Add(-time.Hour), later); err != nil || len(left) != 1 || left[0] != to {
				t.Errorf("%s: extended %v, %v", c.name, left, err)
			}
			if _, mark := begin(t, to, 0); mark != testMark {
				t.Errorf("%s: permitted, but mark %#x", c.name, mark)
			}
			if err := c.end(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if _, mark := begin(t, to, 0); mark != 0 {
				t.Errorf("%s: over, but mark %#x", c.name, mark)
			}
			if err := p.Permit(a, at, later); c.name != "use" && !errors.Is(err, ErrOutdated) {
				t.Errorf("%s: what was decided before is permitted after: %v", c.name, err)
			}
		}
		if err := p.Permit(a, early, later); !errors.Is(err, ErrOutdated) {
			t.Errorf("decided before everything: %v", err)
		}
	})
}

// TestPermitsRefuse: destinations that are never permitted ahead.
func TestPermitsRefuse(t *testing.T) {
	for _, to := range []string{"127.0.0.1:80", "[::1]:80", "10.0.0.1:53", "224.0.0.251:80", "169.254.1.1:80", "[fe80::1]:80", "[::ffff:10.0.0.1]:80", "0.0.0.0:80", "10.0.0.1:0", "255.255.255.255:80"} {
		if cacheable(packet.TCP, netip.MustParseAddrPort(to)) {
			t.Errorf("%s can be permitted", to)
		}
	}
	if cacheable(packet.UDP, netip.MustParseAddrPort("10.0.0.1:80")) || !cacheable(packet.TCP, netip.MustParseAddrPort("10.0.0.1:80")) {
		t.Error("want TCP, and only TCP")
	}
}

// TestPermitsWantProof: no SYN leaves with a mark that the program set itself, nor from a raw socket.
func TestPermitsWantProof(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		w, to := tap(t), netip.MustParseAddrPort(targets[0])
		_ = p.Renew()
		a := permit(t, o, p, to, time.Now().Add(time.Hour))
		w.settle(t)
		before := w.count(to)
		for range 5 {
			rawSYN(t, to, testMark)
		}
		w.settle(t)
		if n := w.count(to) - before; n != 0 {
			t.Errorf("%d SYNs left a raw socket with a mark that nobody gave", n)
		}
		rawSYN(t, to, 0) // positive control
		if _, mark := begin(t, to, 0); mark != testMark {
			t.Errorf("mark %#x", mark)
		}
		w.settle(t)
		if n := w.count(to) - before; n < 2 {
			t.Errorf("%d SYNs left, want the permitted one and that of the raw socket without a mark", n)
		}
		if all := begunOf(p); len(all) != 1 || all[0].Sender.ImageID != a.ImageID {
			t.Errorf("told of %+v, want one", all)
		}
	})
}

// TestPermitsTakeTheMarkAway: a program that gives its socket the mark connects without it; one that does so
// when the SYN has left sends no other.
func TestPermitsTakeTheMarkAway(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		w, control := tap(t), netip.MustParseAddrPort("10.203.8.9:4002")
		_ = p.Renew()
		for _, target := range targets {
			if _, mark := begin(t, netip.MustParseAddrPort(target), testMark|0x12); mark != 0x12 {
				t.Errorf("%s: mark %#x, want what is not ours", target, mark)
			}
		}
		to := netip.MustParseAddrPort("10.203.8.9:4003")
		fd, _, err := connectTo(to, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, testMark); err != nil {
			t.Error(err)
		}
		w.settle(t)
		before := w.count(to)
		begin(t, control, 0)
		for deadline := time.Now().Add(permitPatience); w.count(control) < 2; time.Sleep(10 * time.Millisecond) { // sent again, as the other would be
			if time.Now().After(deadline) {
				t.Error("no SYN was sent again")
				return
			}
		}
		if n := w.count(to); n != before || before == 0 {
			t.Errorf("%d SYNs left, %d of them after it had the mark", n, n-before)
		}
	})
}

// rawSYN sends a SYN from a raw socket.
func rawSYN(t *testing.T, to netip.AddrPort, mark int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			t.Error(err)
		}
	}
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	b[3] = 40
	copy(b[12:], []byte{10, 203, 8, 1})
	a := to.Addr().As4()
	copy(b[16:], a[:])
	b[20], b[21], b[22], b[23] = 0x30, 0x39, byte(to.Port()>>8), byte(to.Port())
	b[32], b[33] = 0x50, 0x02
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: a}); err != nil && err != unix.EPERM {
		t.Error(err)
	}
}

// TestPermitsAreOneImages: neither another program, nor the same one as another user, nor a socket whose
// permission was for another destination.
func TestPermitsAreOneImages(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		to := netip.MustParseAddrPort(targets[0])
		_ = p.Renew()
		permit(t, o, p, to, time.Now().Add(time.Hour))
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), "GATUN_STATE_CONNECT="+to.String())
		if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "0" {
			t.Errorf("another process got the mark %s (%v)", out, err)
		}
		asUser(t, 12345, func() {
			if _, mark := begin(t, to, 0); mark != 0 {
				t.Errorf("another user got the mark %#x", mark)
			}
		})
		fd, _, err := connectTo(to, 0)
		if err != nil || markOf(fd) != testMark {
			t.Errorf("mark %#x, %v", markOf(fd), err)
			return
		}
		defer unix.Close(fd)
		disconnect := [16]byte{} // AF_UNSPEC
		if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&disconnect)), uintptr(len(disconnect))); e != 0 {
			t.Error(e)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 4001, Addr: to.Addr().As4()}); err != nil && err != unix.EINPROGRESS {
			t.Error(err)
		}
		if mark := markOf(fd); mark != 0 {
			t.Errorf("the mark %#x was for another destination", mark)
		}
	})
}

// asUser runs f on a thread of another effective user.
func asUser(t *testing.T, uid int, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
		t.Fatal(e)
	}
	f()
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); e != 0 {
		panic(e)
	}
}

// TestPermitsOfOthers: what somebody else permits in another network namespace is none of our business,
// whatever the mark means there.
func TestPermitsOfOthers(t *testing.T) {
	openOwners(t, OwnersOptions{Mark: testMark, Mask: testMask}) // of this namespace
	permitted(t, func(o *Owners, p *Permits) {
		w, to := tap(t), netip.MustParseAddrPort(targets[0])
		_ = p.Renew()
		permit(t, o, p, to, time.Now().Add(time.Hour))
		w.settle(t)
		before := w.count(to)
		_, mark := begin(t, to, 0)
		w.settle(t)
		if n := w.count(to) - before; n == 0 || mark != testMark || len(begunOf(p)) != 1 {
			t.Errorf("%d SYNs left, with the mark %#x", n, mark)
		}
	})
}

// TestPermitsWake: whoever waits is woken for every connection, also where somebody else reads the same ring.
func TestPermitsWake(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		to := netip.MustParseAddrPort(targets[0])
		_ = p.Renew()
		permit(t, o, p, to, time.Now().Add(time.Hour))
		ctx, cancel := context.WithCancel(t.Context())
		var told atomic.Int64
		count := func(Begun) { told.Add(1) }
		var readers sync.WaitGroup
		readers.Go(func() {
			for p.Wait(ctx) == nil {
				p.Begun(count)
			}
		})
		readers.Go(func() {
			for ctx.Err() == nil {
				p.Begun(count)
				runtime.Gosched()
			}
		})
		const many = 5000
		for range many {
			fd, _, err := connectTo(to, 0)
			if err != nil {
				t.Error(err)
				break
			}
			unix.Close(fd)
		}
		for deadline := time.Now().Add(permitPatience); told.Load() < many && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		cancel()
		readers.Wait()
		if n := told.Load(); n != many {
			t.Errorf("told of %d of %d", n, many)
		}
	})
}

// TestPermitsWakeAgain: a wake-up whose connection somebody else has read already is not the last one.
func TestPermitsWakeAgain(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		to := netip.MustParseAddrPort(targets[0])
		_ = p.Renew()
		permit(t, o, p, to, time.Now().Add(time.Hour))
		alone, end := context.WithTimeout(t.Context(), permitPatience)
		defer end()
		woken := make(chan error, 1)
		for range 200 {
			go func() { woken <- p.Wait(alone) }()
			for !p.waiting.Load() {
				runtime.Gosched()
			}
			for n := range 4 {
				fd, _, err := connectTo(to, 0)
				if err != nil {
					t.Error(err)
					return
				}
				unix.Close(fd)
				if n < 3 {
					p.Begun(func(Begun) {}) // what woke it may be gone when it looks
				}
			}
			if err := <-woken; err != nil {
				t.Errorf("nobody was woken: %v", err)
				return
			}
			p.Begun(func(Begun) {})
		}
	})
}

// TestPermitsTellOfAll: a connection that cannot be told of does not begin; and there is one wake-up for
// many.
func TestPermitsTellOfAll(t *testing.T) {
	permitted(t, func(o *Owners, p *Permits) {
		w, to := tap(t), netip.MustParseAddrPort(targets[0])
		_ = p.Renew()
		permit(t, o, p, to, time.Now().Add(time.Hour))
		w.settle(t)
		before := w.count(to)
		const many = begunRoom/(begunSize+ringHeader) + 200
		for range many {
			fd, _, err := connectTo(to, 0)
			if err != nil {
				t.Error(err)
				return
			}
			unix.Close(fd)
		}
		ctx, cancel := context.WithTimeout(t.Context(), permitPatience)
		defer cancel()
		if err := p.Wait(ctx); err != nil {
			t.Errorf("wait for what is there: %v", err)
		}
		told := len(begunOf(p))
		w.settle(t)
		if n := w.count(to) - before; n != told || told < many-250 || told >= many {
			t.Errorf("%d connections, %d told of, %d SYNs left", many, told, n)
		}
		waited := make(chan error, 1)
		go func() { waited <- p.Wait(ctx) }()
		_, mark := begin(t, to, 0)
		if err := <-waited; err != nil || mark != testMark || len(begunOf(p)) != 1 {
			t.Errorf("after the flood: %v, mark %#x", err, mark)
		}
		ended, end := context.WithCancel(t.Context())
		go func() { waited <- p.Wait(ended) }()
		end()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Errorf("the end of a wait: %v", err)
		}
	})
}
