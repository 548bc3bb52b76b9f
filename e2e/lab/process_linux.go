package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Nobody is the user that the programs under test run as.
const Nobody = 65534

// Process is a command that the lab started and will end.
type Process struct {
	PID    int
	Stdin  io.WriteCloser
	Stdout io.Reader
	Log    string // the file with its standard error (and output, unless Stdout is piped)

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Spec says how to start a command.
type Spec struct {
	User int // 0 root
	Env  []string
	Dir  string
	Log  string // a file for stderr, and for stdout unless Pipe
	Pipe bool   // give Stdin and Stdout
}

// Command returns a command in the namespace. Everything between here and the program replaces
// itself by exec, so its pid is the program's.
func (ns Namespace) Command(ctx context.Context, spec Spec, command ...string) *exec.Cmd {
	args := []string{"netns", "exec", string(ns)}
	if spec.User != 0 {
		id := strconv.Itoa(spec.User)
		args = append(args, "setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--")
	}
	cmd := exec.CommandContext(ctx, "ip", append(args, command...)...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Dir = spec.Dir
	cmd.WaitDelay = time.Second
	return cmd
}

// Start starts a command in a namespace; Close of the lab ends it at the latest.
func (l *Lab) Start(ns Namespace, spec Spec, command ...string) (*Process, error) {
	p := &Process{Log: spec.Log, done: make(chan struct{}), cmd: ns.Command(context.Background(), spec, command...)}
	if p.Log == "" {
		p.Log = filepath.Join(l.Dir, fmt.Sprintf("%s-%s-%d.log", ns, filepath.Base(command[0]), time.Now().UnixNano()))
	}
	log, err := os.Create(p.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if spec.Pipe {
		p.cmd.Stdout = nil
		if p.Stdin, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
		if p.Stdout, err = p.cmd.StdoutPipe(); err != nil {
			return nil, err
		}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.PID = p.cmd.Process.Pid
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	l.mu.Lock()
	l.procs = append(l.procs, p)
	l.mu.Unlock()
	return p, nil
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode waits and returns the exit code, -1 after a signal.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// ErrTimeout says that something did not happen in time.
var ErrTimeout = errors.New("did not happen in time")

// Wait polls until ok returns true, and returns its error then; an error with false is kept for
// the message if the time runs out.
func Wait(limit time.Duration, what string, ok func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	var last error
	for {
		done, err := ok()
		if done {
			return err
		}
		last = err
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%s: %w (%s)", what, ErrTimeout, limit), last)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Result is what a program of the lab (e2e/peer) saw, as it printed it.
type Result struct {
	Result string    `json:"result"` // connected, answer, NXDOMAIN, ECONNREFUSED, EHOSTUNREACH, timeout, …
	Error  string    `json:"error"`
	MS     float64   `json:"ms"`
	Data   string    `json:"data"`
	Local  string    `json:"local"`
	Remote string    `json:"remote"`
	Net    string    `json:"net"` // tcp, udp: where it matters
	PID    int       `json:"pid"`
	Start  time.Time `json:"start"`
	Path   string    `json:"path"`
	TunTX  int       `json:"tun_tx"` // packets into the TUN while the program worked
	TunRX  int       `json:"tun_rx"`
	Extra  map[string]float64
}

// Peer runs the helper in a namespace as nobody and returns what it saw.
func (l *Lab) Peer(ctx context.Context, ns Namespace, args ...string) (Result, error) {
	return l.PeerAs(ctx, ns, Nobody, args...)
}

// PeerAs is Peer as another user.
func (l *Lab) PeerAs(ctx context.Context, ns Namespace, uid int, args ...string) (Result, error) {
	cmd := ns.Command(ctx, Spec{User: uid}, append([]string{l.Bins.Peer}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return Result{}, fmt.Errorf("peer %s: %w", strings.Join(args, " "), err)
	}
	return ParseResult(out)
}

// ParseResult reads one line of the helper.
func ParseResult(b []byte) (Result, error) {
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("peer printed %q: %w", b, err)
	}
	return r, nil
}
