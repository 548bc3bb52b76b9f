package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gatun/tun/route"
)

// childName is argv[0] of the supervisor; argv[1] is the descriptor of the control socket, the
// command follows.
const childName = "gatun-run-supervisor"

const (
	// grace is how long what is left may take to end after SIGTERM.
	grace = 2 * time.Second
	// killEvery is the pace of SIGKILL after that, until nothing is left: a process may have
	// forked while we looked.
	killEvery = 50 * time.Millisecond
	// dialTimeout bounds a connection to a port inside; it is loopback.
	dialTimeout = 5 * time.Second
)

// IsChild reports whether this process is the supervisor of a sandbox.
func IsChild() bool { return len(os.Args) > 2 && os.Args[0] == childName }

// ChildMain is the supervisor. It never returns.
func ChildMain() {
	// The main goroutine keeps its thread: that thread drops its capabilities, is the parent
	// of the command, and its end would kill the command.
	runtime.LockOSThread()
	code, err := supervise()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatun run:", err)
	}
	os.Exit(code)
}

// supervisor is the state of the process between the caller and the command.
type supervisor struct {
	ctl   *control
	netns uint64
	net   *os.File      // the network namespace; only the first thread is sure to be in it
	start chan struct{} // closed when the command may start
	gone  chan struct{} // closed when the caller is dead

	mu      sync.Mutex
	command int // pid; 0 before the start and after the end
}

func supervise() (int, error) {
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return ExitOwnFailure, fmt.Errorf("want a descriptor, got %q", os.Args[1])
	}
	unix.CloseOnExec(fd)
	ctl, err := openControl(fd)
	if err != nil {
		return ExitOwnFailure, err
	}
	keepSignalsFromUs()
	if err := forbidTracing(); err != nil {
		return ExitOwnFailure, err
	}
	s := &supervisor{ctl: ctl, start: make(chan struct{}), gone: make(chan struct{})}
	if err := s.setUp(); err != nil {
		return ExitOwnFailure, s.report(err)
	}
	go s.serve()
	select {
	case <-s.start:
	case <-s.gone:
		return ExitOwnFailure, nil
	}
	return s.run(os.Args[2:])
}

// keepSignalsFromUs catches what ends or reaches the whole process group: the command decides
// what a signal means, we wait for it. A caught signal is reset by exec; an ignored one
// (nohup) must stay ignored and is left alone.
func keepSignalsFromUs() {
	for _, sig := range relayed() {
		if sig != syscall.SIGCONT && !signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// report tells the caller why the set-up failed. Only what it cannot be told is our error; a
// caller that has left does not want to know.
func (s *supervisor) report(err error) error {
	m := message{Op: opFailed, Text: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		m.Errno = int(errno)
	}
	return s.tell(m, err)
}

func (s *supervisor) tell(m message, err error) error {
	sent := s.ctl.send(m)
	if sent == nil || errors.Is(sent, syscall.EPIPE) || errors.Is(sent, syscall.ECONNRESET) {
		return nil
	}
	return err
}

func (s *supervisor) setUp() error {
	m, _, err := s.ctl.receive(make([]byte, maxMessage))
	if err != nil {
		return fmt.Errorf("read the set-up: %w", err)
	}
	if m.Op != opSetup {
		return fmt.Errorf("want the set-up first, got %q", m.Op)
	}
	ownTable()
	if s.netns, err = netnsInode(); err != nil {
		return err
	}
	if s.net, err = openNetns(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of the command's children: %w", err)
	}
	opened := make(chan diverting, 1)
	go func() { opened <- s.openDiverter() }() // meanwhile: it needs none of the rest
	in, err := setUpNetwork(m.MTU, m.Link, m.Sysctls)
	if err != nil {
		return err
	}
	defer in.close() // the caller has copies: with the caller the device must go
	warnings, err := setUpMounts(m.ResolvConf)
	if err != nil {
		return err
	}
	ready := message{Op: opReady, NetNS: s.netns, IfIndex: in.ifIndex, MAC: in.mac, Warnings: append(in.warnings, warnings...)}
	d := <-opened
	defer d.files.Close()
	ready.Divert = divertMessage{Port: d.files.Port, Listeners: len(d.files.Listeners), Raw: len(d.files.Raw), Conntrack: len(d.files.Conntrack), Refused: d.refused}
	fds := []int{in.deviceFD, in.diagFD, in.closingsFD}
	for _, f := range slices.Concat(d.files.Listeners, d.files.Raw, d.files.Conntrack) {
		fds = append(fds, int(f.Fd()))
	}
	return s.ctl.send(ready, fds...)
}

// diverting is what lets the kernel of the command's network end connections.
type diverting struct {
	files   route.DiverterFiles
	refused string // why there are none: no nftables, or none for who is not root
}

func (s *supervisor) openDiverter() (d diverting) {
	err := enterNetns(s.net)
	if err == nil {
		_ = setSysctl(lowPorts, "0") // the rest of the set-up says so too, perhaps later; the listener's port is one
		n := route.DefaultNames()
		n.Device = DeviceName
		d.files, err = route.OpenInside(n)
	}
	if err != nil {
		d.refused = err.Error()
	}
	return d
}

// serve obeys the caller until it is gone, and then ends what is left in the namespace.
func (s *supervisor) serve() {
	defer s.terminate()
	defer close(s.gone)
	buf := make([]byte, 4096)
	started := false
	for {
		m, fds, err := s.ctl.receive(buf)
		if err != nil {
			return
		}
		closeAll(fds)
		switch m.Op {
		case opStart:
			if !started {
				started = true
				close(s.start)
			}
		case opSignal:
			s.signal(syscall.Signal(m.Signal))
		case opDial:
			go s.dial(m.ID, m.Port)
		}
	}
}

// signal passes sig to the command, or to whatever it left running.
func (s *supervisor) signal(sig syscall.Signal) {
	s.mu.Lock()
	pid := s.command
	if pid != 0 {
		// Under the lock the command is not reaped, so the pid is still its own.
		_ = syscall.Kill(pid, sig) // ended already: nobody to tell
	}
	s.mu.Unlock()
	if pid == 0 {
		signalAll(s.netns, sig)
	}
}

// terminate runs while the main goroutine reaps; that one ends the process when nothing is
// left. A process that cannot be killed keeps us here, and keeps its dead network.
func (s *supervisor) terminate() {
	signalAll(s.netns, syscall.SIGTERM)
	signalAll(s.netns, syscall.SIGCONT) // a stopped process cannot act on SIGTERM
	<-time.After(grace)
	for range time.Tick(killEvery) {
		signalAll(s.netns, syscall.SIGKILL)
	}
}

// dial connects to a port of the command and hands the socket out.
func (s *supervisor) dial(id uint64, port uint16) {
	answer := message{Op: opDialed, ID: id}
	var conn *net.TCPConn
	err := enterNetns(s.net)
	if err == nil {
		conn, err = dialLoopback(port)
	}
	if err != nil {
		answer.Text = err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			answer.Errno = int(errno)
		}
		_ = s.ctl.send(answer) // the caller is gone: serve sees it too
		return
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		answer.Text = err.Error()
		_ = s.ctl.send(answer)
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = s.ctl.send(answer, int(fd)) })
}

// dialLoopback tries both families: the command may listen on one of them only.
func dialLoopback(port uint16) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialer.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			return tcp, nil
		}
		conn.Close()
	}
	return nil, first
}

// run starts the command, reaps everything and returns the command's code.
func (s *supervisor) run(argv []string) (int, error) {
	if err := dropPrivileges(); err != nil {
		return ExitOwnFailure, s.notStarted(ExitOwnFailure, err)
	}
	pid, err := spawn(argv, os.Environ())
	if err != nil {
		code := spawnCode(err)
		return code, s.notStarted(code, err)
	}
	s.mu.Lock()
	s.command = pid
	s.mu.Unlock()
	_ = s.ctl.send(message{Op: opStarted, PID: pid}) // the caller is gone: serve ends the command
	code := s.reap(pid)
	_ = s.ctl.send(message{Op: opExited, Code: code})
	return code, nil
}

func (s *supervisor) notStarted(code int, err error) error {
	return s.tell(message{Op: opNotStarted, Code: code, Text: err.Error()}, err)
}

// reap waits for the command and all its descendants, which become our children when their
// parents end, and returns the command's code.
func (s *supervisor) reap(command int) int {
	code := ExitOwnFailure
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ECHILD
			return code
		}
		s.mu.Lock()
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == nil && pid == command {
			code = exitCode(ws)
			s.command = 0
		}
		s.mu.Unlock()
	}
}
