package route

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// udpPoller takes what arrives for many sockets, with one epoll instance and one goroutine. A goroutine
// for each socket costs a new flow two wake-ups and four system calls more than its datagrams do,
// most of which find nothing.
type udpPoller struct {
	f     *os.File // the epoll instance, itself in the runtime's poller
	raw   syscall.RawConn
	alone bool // it serves one socket, and ends with it

	events []unix.EpollEvent // the goroutine's, like again
	again  []*UDPSocket      // that have more than fits into one turn

	mu    sync.Mutex
	socks []polledSocket // by descriptor
	count int
	turn  int32
}

// polledSocket tells an event for a closed socket from one for the next with its descriptor.
type polledSocket struct {
	s    *UDPSocket
	turn int32
}

const (
	pollBatch = 128
	// turnBatches is how much one socket may bring before the others have their turn.
	turnBatches = 16
	// maxPollers bounds the goroutines that share the work on machines with many processors.
	maxPollers = 4
)

func newUDPPoller() (*udpPoller, error) {
	f, raw, err := newEpoll()
	if err != nil {
		return nil, err
	}
	return &udpPoller{f: f, raw: raw, events: make([]unix.EpollEvent, pollBatch)}, nil
}

func (p *udpPoller) run() error {
	var failed error
	err := p.raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.EpollWait(int(fd), p.events, 0)
			if err != nil && err != unix.EINTR {
				failed = os.NewSyscallError("epoll_wait", err)
				return true
			}
			for _, e := range p.events[:max(n, 0)] {
				if s := p.find(e.Fd, e.Pad); s != nil {
					p.take(s, e.Events&unix.EPOLLERR != 0)
				}
			}
			p.goOn()
			if err == nil && n < len(p.events) && len(p.again) == 0 {
				return false // what comes from now on is an edge that ends the wait
			}
		}
	})
	return errors.Join(err, failed)
}

func (p *udpPoller) take(s *UDPSocket, faults bool) {
	if s.take(faults) {
		p.again = append(p.again, s)
	}
}

// goOn gives those their next turn that had more.
func (p *udpPoller) goOn() {
	for range len(p.again) {
		s := p.again[0]
		p.again = p.again[1:]
		p.take(s, false)
	}
	if len(p.again) == 0 {
		p.again = nil
	}
}

func (p *udpPoller) find(fd, turn int32) *UDPSocket {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(fd) < len(p.socks) && p.socks[fd].turn == turn {
		return p.socks[fd].s
	}
	return nil
}

// add watches the socket for edges.
func (p *udpPoller) add(s *UDPSocket) error {
	p.mu.Lock()
	for s.fd >= len(p.socks) {
		p.socks = append(p.socks, polledSocket{})
	}
	p.turn++
	p.socks[s.fd] = polledSocket{s, p.turn}
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(s.fd), Pad: p.turn}
	p.count++
	p.mu.Unlock()
	var err error
	if cerr := p.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, s.fd, &e) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		p.remove(s)
	}
	return err
}

// remove forgets the socket; the kernel does so itself when the descriptor is closed.
func (p *udpPoller) remove(s *UDPSocket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.fd >= len(p.socks) || p.socks[s.fd].s != s {
		return
	}
	p.socks[s.fd] = polledSocket{}
	if p.count--; p.count == 0 {
		p.socks = nil
	}
}

// udpPollers share the sockets of a Dialer.
type udpPollers []*udpPoller

func openUDPPollers(n int) (all udpPollers, err error) {
	for range min(n, maxPollers) {
		p, err := newUDPPoller()
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all = append(all, p)
	}
	return all, nil
}

func (all udpPollers) close() error {
	var errs []error
	for _, p := range all {
		errs = append(errs, p.f.Close())
	}
	return errors.Join(errs...)
}

// run takes what arrives until close.
func (all udpPollers) run() error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() { errs[i] = p.run() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// udpCalls are who takes what arrives at a socket.
type udpCalls struct {
	datagram func(b []byte, from netip.AddrPort, tos uint8)
	report   func(peer netip.AddrPort, e *packet.ICMPError)
}

// Attach is Serve without a goroutine: it returns at once, and datagram and report are called by
// the Dialer's Watch until Close. They must not block, and the slice is valid during the call only.
// False: nobody watches, and Serve is to be used.
func (s *UDPSocket) Attach(datagram func(b []byte, from netip.AddrPort, tos uint8), report func(peer netip.AddrPort, e *packet.ICMPError)) bool {
	all := s.d.pollers.Load()
	if all == nil {
		return false
	}
	p := (*all)[s.fd%len(*all)]
	return s.attach(p, udpCalls{datagram, report}) == nil
}

func (s *UDPSocket) attach(p *udpPoller, calls udpCalls) error {
	if !s.hold() {
		return os.ErrClosed
	}
	defer s.drop()
	s.calls = calls
	s.poller.Store(p)
	err := p.add(s)
	if s.closed.Load() { // meanwhile: Close may have come before the poller knew of it
		p.forget(s)
	}
	return err
}

// forget is what Close does.
func (p *udpPoller) forget(s *UDPSocket) {
	p.remove(s)
	if p.alone {
		p.f.Close()
	}
}

// Serve calls datagram for each datagram that arrives and report for each ICMP error about one
// that was sent, until the socket is closed; then it returns os.ErrClosed. While nothing is
// there it holds no buffer. The slice is valid during the call only.
func (s *UDPSocket) Serve(datagram func(b []byte, from netip.AddrPort, tos uint8), report func(peer netip.AddrPort, e *packet.ICMPError)) error {
	p, err := newUDPPoller()
	if err != nil {
		return err
	}
	defer p.f.Close()
	p.alone = true
	if err := s.attach(p, udpCalls{datagram, report}); err != nil {
		return closedError(err)
	}
	return closedError(p.run())
}

// take reads what is there, and reports whether there may be more.
func (s *UDPSocket) take(faults bool) (more bool) {
	if !s.hold() {
		return false
	}
	defer s.drop()
	b := s.d.batch()
	defer s.d.batches.Put(b)
	more = true
	for i := 0; more && i < turnBatches; i++ {
		more = s.receive(s.fd, b, s.calls.datagram)
	}
	for faults && s.reportOne(s.fd, b, s.calls.report) {
	}
	return more
}

// hold keeps the descriptor open until drop. False: it is closed.
func (s *UDPSocket) hold() bool {
	for n := s.refs.Load(); n > 0 && !s.closed.Load(); n = s.refs.Load() {
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

func (s *UDPSocket) drop() {
	if s.refs.Add(-1) == 0 {
		unix.Close(s.fd)
	}
}

// Close ends Serve. It may be called more than once.
func (s *UDPSocket) Close() error {
	if s.closed.Swap(true) {
		return os.ErrClosed
	}
	if p := s.poller.Load(); p != nil {
		p.forget(s)
	}
	s.drop()
	return nil
}
