package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"gatun/tun"
	"gatun/tun/route"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// setUpTimeout bounds the set-up when the caller's context has no earlier deadline.
const setUpTimeout = 15 * time.Second

// Box is a sandbox that is set up. The caller starts its stack on Device, calls Go, and then
// Wait; Close at the end in every case.
type Box struct {
	ctl            *control
	cmd            *exec.Cmd
	device         tun.Device
	diag, closings *os.File
	files          route.DiverterFiles // until Diverter
	diverter       *route.Diverter
	log            *zap.Logger
	netns          uint64
	buf            []byte

	mu      sync.Mutex
	pid     int
	dialID  uint64
	dials   map[uint64]chan dialed // nil when no answer can come any more
	reaped  sync.Once
	exitErr error
}

// dialed is the answer to one DialInside.
type dialed struct {
	conn *net.TCPConn
	err  error
}

// Start builds the namespaces, the network and the mounts and returns when packets can be
// read from Device. The command does not run yet. ctx bounds the set-up only.
func Start(ctx context.Context, o Options) (*Box, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	ctl, theirs, err := newControl()
	if err != nil {
		return nil, err
	}
	b := &Box{ctl: ctl, log: o.Logger, buf: make([]byte, maxMessage), dials: map[uint64]chan dialed{}}
	if b.cmd, err = startSupervisor(o, theirs); err != nil {
		ctl.conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	if err := b.setUp(ctx, o); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// complete checks the options and fills in the defaults.
func (o *Options) complete() error {
	if len(o.Argv) == 0 {
		return errors.New("no command given: gatun run -- COMMAND")
	}
	if o.Dir != "" {
		if st, err := os.Stat(o.Dir); err != nil {
			return err
		} else if !st.IsDir() {
			return fmt.Errorf("%s: not a directory", o.Dir)
		}
	}
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.MTU < 1280 || o.MTU > 65535 {
		return fmt.Errorf("mtu %d: want 1280 to 65535", o.MTU)
	}
	if o.ResolvConf == nil {
		o.ResolvConf, _ = os.ReadFile(hostResolvConf) // without one there is nothing to take over
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	for file, standard := range map[**os.File]*os.File{&o.Stdin: os.Stdin, &o.Stdout: os.Stdout, &o.Stderr: os.Stderr} {
		if *file == nil {
			*file = standard
		}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return nil
}

// startSupervisor re-executes this program in new namespaces. It owns control.
func startSupervisor(o Options, control *os.File) (*exec.Cmd, error) {
	defer control.Close()
	extra, err := inheritedFiles()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range extra {
			if f != nil && f != control {
				f.Close()
			}
		}
	}()
	extra = append(extra, control)
	uids, gids := idMaps()
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       append([]string{childName, fmt.Sprint(len(extra) + 2)}, o.Argv...),
		Env:        o.Env,
		Dir:        o.Dir,
		Stdin:      o.Stdin,
		Stdout:     o.Stdout,
		Stderr:     o.Stderr,
		ExtraFiles: extra,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
			UidMappings: uids,
			GidMappings: gids,
			AmbientCaps: supervisorCaps(),
		},
	}
	if err := cmd.Start(); err != nil {
		return nil, explain("make the namespaces", err, readHostSettings(os.Geteuid() == 0))
	}
	return cmd, nil
}

// setUp sends the set-up and takes the descriptors that come back.
func (b *Box) setUp(ctx context.Context, o Options) error {
	setup := message{Op: opSetup, MTU: o.MTU, Link: o.Link, Sysctls: hostSysctls(), ResolvConf: resolvConf(o.ResolvConf, GatewayV4(), GatewayV6())}
	if err := b.ctl.send(setup); err != nil {
		return fmt.Errorf("set up the sandbox: %w", err)
	}
	m, fds, err := b.receive(ctx)
	if err != nil {
		return fmt.Errorf("set up the sandbox: %w", err)
	}
	switch {
	case m.Op == opFailed:
		closeAll(fds)
		return explain("set up the sandbox", &setUpError{m.Text, syscall.Errno(m.Errno)}, readHostSettings(os.Geteuid() == 0))
	case m.Op != opReady || len(fds) != 3+m.Divert.Listeners+m.Divert.Raw+m.Divert.Conntrack:
		closeAll(fds)
		return fmt.Errorf("set up the sandbox: got %q with %d descriptors", m.Op, len(fds))
	}
	for _, w := range m.Warnings {
		o.Logger.Warn("sandbox: " + w)
	}
	b.netns = m.NetNS
	b.diag = os.NewFile(uintptr(fds[1]), "sock_diag")
	b.closings = os.NewFile(uintptr(fds[2]), "closings")
	b.takeDiverter(m.Divert, fds[3:])
	if m.Divert.Refused != "" {
		o.Logger.Info("sandbox: connections are relayed through netstack", zap.String("because", m.Divert.Refused))
	}
	if len(m.MAC) == 0 {
		b.device, err = tun.FromFD(fds[0], o.MTU, DeviceName)
	} else {
		b.device, err = tun.FromPacketSocket(fds[0], m.IfIndex, m.MAC, o.MTU)
	}
	return err
}

// takeDiverter takes over the descriptors that let the kernel end connections.
func (b *Box) takeDiverter(m divertMessage, fds []int) {
	b.files.Port = m.Port
	for i, fd := range fds {
		switch {
		case i < m.Listeners:
			_ = unix.SetNonblock(fd, false) // else the runtime's poller takes it, see route.Diverter
			b.files.Listeners = append(b.files.Listeners, os.NewFile(uintptr(fd), "diverted"))
		case i < m.Listeners+m.Raw:
			_ = unix.SetNonblock(fd, true)
			b.files.Raw = append(b.files.Raw, os.NewFile(uintptr(fd), "raw socket"))
		default:
			b.files.Conntrack = append(b.files.Conntrack, os.NewFile(uintptr(fd), "conntrack"))
		}
	}
}

// setUpError is an error of the supervisor: its text, and the errno the advice depends on.
type setUpError struct {
	text  string
	errno syscall.Errno
}

func (e *setUpError) Error() string { return e.text }
func (e *setUpError) Unwrap() error { return e.errno }

// receive is control.receive until ctx ends.
func (b *Box) receive(ctx context.Context) (message, []int, error) {
	stop := context.AfterFunc(ctx, func() { _ = b.ctl.conn.SetReadDeadline(time.Unix(1, 0)) })
	m, fds, err := b.ctl.receive(b.buf)
	if !stop() && ctx.Err() != nil {
		closeAll(fds)
		return m, nil, ctx.Err()
	}
	return m, fds, err
}

// Device is the command's network. Close closes it.
func (b *Box) Device() tun.Device { return b.device }

// DiagFD is a NETLINK_SOCK_DIAG socket of the command's network namespace: it finds the
// sockets behind the flows that come out of Device. Close closes it.
func (b *Box) DiagFD() *os.File { return b.diag }

// Closings is a NETLINK_SOCK_DIAG socket of the command's network namespace that reports every
// closed UDP socket (state.ClosingGroups). Close closes it.
func (b *Box) Closings() *os.File { return b.closings }

// Diverter lets the kernel of the command's network end connections; nil where it cannot. Its connections
// are parked with those of d. It is to be called once; Close closes it.
func (b *Box) Diverter(d *route.Dialer) *route.Diverter {
	files := b.files
	b.files = route.DiverterFiles{}
	if len(files.Listeners) == 0 {
		return nil
	}
	v, err := route.NewDiverter(files, d, false)
	if err != nil {
		b.log.Warn("connections are relayed through netstack", zap.Error(err))
		return nil
	}
	b.diverter = v
	return v
}

// NetNS is the inode of the command's network namespace.
func (b *Box) NetNS() uint64 { return b.netns }

// SupervisorPID is the process between us and the command.
func (b *Box) SupervisorPID() int { return b.cmd.Process.Pid }

// PID is the command's process, 0 before Go.
func (b *Box) PID() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pid
}

// Go starts the command; it is to be called once, when the stack reads Device. The error is
// an *ExecError if there is no such command or it cannot be executed.
func (b *Box) Go(ctx context.Context) error {
	if err := b.ctl.send(message{Op: opStart}); err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	m, fds, err := b.receive(ctx)
	closeAll(fds)
	switch {
	case err != nil:
		return fmt.Errorf("start the command: %w", err)
	case m.Op == opNotStarted && m.Code == ExitOwnFailure:
		return fmt.Errorf("start the command: %s", m.Text)
	case m.Op == opNotStarted:
		return &ExecError{Code: m.Code, Name: b.cmd.Args[2], Reason: m.Text}
	case m.Op != opStarted:
		return fmt.Errorf("start the command: got %q", m.Op)
	}
	b.mu.Lock()
	b.pid = m.PID
	b.mu.Unlock()
	return nil
}

// Wait blocks until the command and all its descendants have ended and returns the command's
// exit code. It also carries the answers of DialInside. When ctx ends, everything inside gets
// SIGTERM and two seconds later SIGKILL.
func (b *Box) Wait(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() {
		_ = b.ctl.conn.CloseWrite()
		_ = b.cmd.Process.Signal(syscall.SIGCONT) // the command may have stopped the supervisor
	})
	defer stop()
	defer b.failDials()
	for {
		m, fds, err := b.ctl.receive(b.buf)
		switch {
		case err != nil:
			// The supervisor was killed, and the command with it; children it had are orphans
			// whose network ends with Device.
			signalAll(b.netns, syscall.SIGKILL)
			return ExitOwnFailure, fmt.Errorf("the supervisor of the command is gone: %w", errors.Join(err, b.reap()))
		case m.Op == opExited:
			closeAll(fds)
			_ = b.reap() // its code is the one in the message
			return m.Code, nil
		case m.Op == opDialed:
			b.answer(m, fds)
		default:
			closeAll(fds)
		}
	}
}

// Signal sends sig to the command, or to every process it left running if it has ended.
func (b *Box) Signal(sig syscall.Signal) error {
	err := b.ctl.send(message{Op: opSignal, Signal: int(sig)})
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return nil // everything inside has ended: nobody is left to be told
	}
	return err
}

// reap waits for the supervisor itself.
func (b *Box) reap() error {
	b.reaped.Do(func() { b.exitErr = b.cmd.Wait() })
	return b.exitErr
}

// Close ends what still runs inside, waits for it, and closes Device and DiagFD.
func (b *Box) Close() error {
	err := b.ctl.conn.Close()
	_ = b.cmd.Process.Signal(syscall.SIGCONT) // the command may have stopped the supervisor
	b.failDials()
	_ = b.reap() // how the supervisor ended is Wait's business
	if b.device != nil {
		err = errors.Join(err, b.device.Close())
	}
	b.files.Close()
	if b.diverter != nil {
		b.diverter.Close()
	}
	for _, f := range []*os.File{b.diag, b.closings} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
