package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Gatun is one running gatun of the lab: a daemon that holds the whole host namespace, or one
// `gatun run` whose command is the helper's session.
type Gatun struct {
	Mode    string // up, run
	Process *Process
	Events  string // run: the file of --events

	lab     *Lab
	env     []string
	mu      sync.Mutex // one program of a session at a time
	replies *bufio.Reader
}

// TrickNames are the ways past a TUN that a program without privileges has (peer trick), each
// with what it does.
func TrickNames() map[string]string {
	return map[string]string{
		"bindtodevice": "SO_BINDTODEVICE to the physical device",
		"bindaddr":     "bind to the physical address",
		"unicastif":    "IP_UNICAST_IF, IPV6_UNICAST_IF",
		"pktinfo-if":   "IP_PKTINFO naming the device",
		"pktinfo-src":  "IP_PKTINFO naming the source",
		"pktinfo-both": "both, on a bound socket",
	}
}

// Env is the environment in which the lab's gatun keeps its state and its socket, and in which it
// trusts the lab's certificates.
func (l *Lab) Env() []string {
	return []string{"GATUN_STATE=" + l.StateDir(), "SSL_CERT_FILE=" + l.CAFile()}
}

// StateDir is where `gatun up` of this lab keeps its state.
func (l *Lab) StateDir() string { return filepath.Join(l.Dir, "state-"+string(l.Host)) }

// StartUp starts `gatun up` in the host namespace without waiting.
func (l *Lab) StartUp(config string, flags ...string) (*Gatun, error) {
	env, err := l.upEnv(config)
	if err != nil {
		return nil, err
	}
	command := append([]string{l.Bins.Gatun, "up", "-c", config}, flags...)
	p, err := l.Start(l.Host, Spec{Env: append(env, l.GatunEnv...)}, command...)
	if err != nil {
		return nil, err
	}
	return &Gatun{Mode: "up", Process: p, lab: l, env: l.Env()}, nil
}

// upEnv switches the online check off where the configuration does not speak of it: stories count
// the packets that leave, and its page is not in the lab.
func (l *Lab) upEnv(config string) ([]string, error) {
	b, err := os.ReadFile(config)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // some stories want no file
		return nil, err
	}
	if bytes.Contains(b, []byte("onlineCheck")) {
		return l.Env(), nil
	}
	return append(l.Env(), "GATUN_NETWORK__ONLINECHECK=off"), nil
}

// Up starts `gatun up` in the host namespace and waits until its state is on.
func (l *Lab) Up(config string, flags ...string) (*Gatun, error) {
	g, err := l.StartUp(config, flags...)
	if err != nil {
		return nil, err
	}
	return g, g.WaitState("on")
}

// WaitState waits until `gatun status` reports a state.
func (g *Gatun) WaitState(state string) error {
	return Wait(time.Minute, "gatun "+g.Mode+" is "+state, func() (bool, error) {
		select {
		case <-g.Process.Done():
			return true, fmt.Errorf("gatun %s ended with %d: %s", g.Mode, g.Process.ExitCode(), tail(g.Process.Log))
		default:
		}
		out, err := g.Client("status", "--json")
		var s struct{ State string }
		if json.Unmarshal(out, &s) != nil || err != nil {
			return false, err
		}
		return s.State == state, nil
	})
}

// Run starts `gatun run` as nobody; its command waits for Program.
func (l *Lab) Run(config string, flags ...string) (*Gatun, error) {
	runtime, err := os.MkdirTemp(l.Dir, "runtime-")
	if err != nil {
		return nil, err
	}
	if err := os.Chown(runtime, Nobody, Nobody); err != nil {
		return nil, err
	}
	g := &Gatun{Mode: "run", lab: l, Events: filepath.Join(runtime, "events.ndjson")}
	env := []string{"XDG_RUNTIME_DIR=" + runtime, "HOME=" + runtime, "GATUN_LOG=warn", "SSL_CERT_FILE=" + l.CAFile()}
	command := append([]string{l.Bins.Gatun, "run", "-c", config, "--events", g.Events}, flags...)
	g.Process, err = l.Start(l.Host, Spec{User: Nobody, Env: slices.Concat(env, l.GatunEnv), Pipe: true}, append(command, "--", l.Bins.Peer, "session")...)
	if err != nil {
		return nil, err
	}
	g.env = append(env, "GATUN_SOCKET="+filepath.Join(runtime, "gatun", "run-"+strconv.Itoa(g.Process.PID)+".sock"))
	g.replies = bufio.NewReader(g.Process.Stdout)
	if _, err := g.Exec("true"); err != nil {
		return g, fmt.Errorf("%w: %s", err, tail(g.Process.Log))
	}
	return g, nil
}

// Program runs the helper under this gatun and returns what it saw.
func (g *Gatun) Program(ctx context.Context, args ...string) (Result, error) {
	if g.Mode == "up" {
		return g.lab.Peer(ctx, g.lab.Host, args...)
	}
	return g.ask(ctx, args)
}

// Exec runs an ordinary command under this gatun; Result is ok or failed, Data its output.
func (g *Gatun) Exec(command ...string) (Result, error) {
	if g.Mode == "run" {
		return g.ask(context.Background(), append([]string{"exec"}, command...))
	}
	cmd := g.lab.Host.Command(context.Background(), Spec{User: Nobody, Env: []string{"CURL_CA_BUNDLE=" + g.lab.CAFile()}}, command...)
	out, err := cmd.Output()
	r := Result{Result: "ok", Data: string(out)}
	if err != nil {
		r.Result, r.Error = "failed", err.Error()
	}
	return r, nil
}

func (g *Gatun) ask(ctx context.Context, args []string) (Result, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	line, err := json.Marshal(args)
	if err != nil {
		return Result{}, err
	}
	if _, err := g.Process.Stdin.Write(append(line, '\n')); err != nil {
		return Result{}, fmt.Errorf("the session of gatun run is gone: %w: %s", err, tail(g.Process.Log))
	}
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		b, err := g.replies.ReadBytes('\n')
		got <- answer{b, err}
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return Result{}, fmt.Errorf("%q in gatun run: %w: %s", args, a.err, tail(g.Process.Log))
		}
		return ParseResult(a.line)
	case <-ctx.Done():
		g.Process.Kill()
		return Result{}, ctx.Err()
	}
}

// Client runs a client command (status, flows, why, …) against this gatun as root and returns
// its standard output.
func (g *Gatun) Client(args ...string) ([]byte, error) {
	out, talk, code, err := g.client(args)
	if err == nil && code != 0 {
		err = fmt.Errorf("gatun %s: exit code %d: %s", strings.Join(args, " "), code, talk)
	}
	return out, err
}

// ClientCode is Client for commands whose exit code says something.
func (g *Gatun) ClientCode(args ...string) ([]byte, int, error) {
	out, _, code, err := g.client(args)
	return out, code, err
}

func (g *Gatun) client(args []string) (out, talk []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := g.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		code, err = exit.ExitCode(), nil
	}
	return stdout.Bytes(), stderr.Bytes(), code, err
}

// Command is a client command against this gatun as root, not started yet.
func (g *Gatun) Command(ctx context.Context, args ...string) *exec.Cmd {
	return g.lab.Host.Command(ctx, Spec{Env: g.env, Dir: g.lab.Dir}, append([]string{g.lab.Bins.Gatun}, args...)...)
}

// Socket is where the clients of this gatun find it.
func (g *Gatun) Socket() string {
	for _, e := range g.env {
		if path, ok := strings.CutPrefix(e, "GATUN_SOCKET="); ok {
			return path
		}
	}
	return filepath.Join(g.lab.StateDir(), "gatun.sock")
}

// Down ends gatun in its ordinary way and returns the exit code.
func (g *Gatun) Down() (int, error) {
	if g.Mode == "run" {
		_ = g.Process.Stdin.Close()
		return g.Process.ExitCode(), nil
	}
	if _, err := g.Client("down"); err != nil {
		return -1, fmt.Errorf("%w: %s", err, tail(g.Process.Log))
	}
	select {
	case <-g.Process.Done():
		return g.Process.ExitCode(), nil
	case <-time.After(time.Minute):
		return -1, fmt.Errorf("gatun up after `down`: %w: %s", ErrTimeout, tail(g.Process.Log))
	}
}

// tail is the end of a log, for messages.
func tail(file string) string {
	b, _ := os.ReadFile(file)
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return string(b)
}

// Tail is the end of gatun's own log.
func (g *Gatun) Tail() string { return tail(g.Process.Log) }
