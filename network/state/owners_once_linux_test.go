package state

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// portSharer is one of several sockets that send from the same port.
type portSharer struct {
	fd     int
	cookie uint64
}

func sharePort(t *testing.T, local netip.AddrPort) portSharer {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return portSharer{fd, cookie}
}

func (s portSharer) send(to netip.AddrPort) error {
	return unix.Sendto(s.fd, []byte("x"), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}

// atOnce is another thread that sends at the same moment as the test does.
type atOnce struct {
	next, done atomic.Pointer[portSharer]
	stop       atomic.Bool
}

func (a *atOnce) run(to netip.AddrPort) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for !a.stop.Load() {
		if s := a.next.Swap(nil); s != nil {
			_ = s.send(to) // that it was not sent shows in the record
			a.done.Store(s)
		}
	}
}

// TestOwnersAtOnce: one socket sends through a flow that it has begun while another one takes the
// flow over. Whoever comes first, neither is forgotten: who is would be taken for the other.
func TestOwnersAtOnce(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("needs two processors")
	}
	const most, enough = 20_000, 2 * time.Second // on a busy machine a round takes long
	dummy(t, func() {
		o := openOwners(t, OwnersOptions{})
		f := packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("10.203.8.1:40404"), Remote: netip.MustParseAddrPort("10.203.8.9:4000")}
		key, a := keyOf(f, here), &atOnce{}
		ended := make(chan struct{})
		go func() { defer close(ended); a.run(f.Remote) }()
		defer func() { a.stop.Store(true); <-ended }()
		rounds, lost, taken := 0, 0, 0
		for start := time.Now(); rounds < most && time.Since(start) < enough; rounds++ {
			one, two := sharePort(t, f.Local), sharePort(t, f.Local)
			if err := one.send(f.Remote); err != nil {
				t.Fatal(err)
			}
			began := monotonic()
			a.next.Store(&two)
			for a.next.Load() != nil {
			}
			if err := one.send(f.Remote); err != nil {
				t.Fatal(err)
			}
			for a.done.Swap(nil) == nil {
			}
			var r flowRecord
			if err := o.hooks.flows.Lookup(&key, &r); err != nil {
				t.Fatal(err)
			}
			other := one.cookie
			if r.Cookie == one.cookie {
				other = two.cookie
			} else {
				taken++
			}
			if r.OtherCookie != other || r.Other < began {
				lost++
			}
			unix.Close(one.fd)
			unix.Close(two.fd)
		}
		t.Logf("%d rounds, in %d the second was the last", rounds, taken)
		if lost != 0 {
			t.Errorf("in %d of %d rounds one of two that sent at once was forgotten", lost, rounds)
		}
	})
}
