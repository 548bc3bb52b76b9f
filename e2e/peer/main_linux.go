// Command peer is the lab's helper: the servers behind the router and the programs in front of
// gatun, in one small binary that says precisely, as JSON, what a program sees.
//
//	peer serve -addr A,B -dns C,D      echo, HTTP, HTTPS, sink, source, tokens, name server
//	peer tcp 198.51.100.10:7           connect, echo, and say what happened
//	peer udp | ping | dns | visit | trick | raw | hold | pairs | load | other | syns | synwatch | token | session | ra
//
// Only the lab calls it. It knows nothing of gatun: what it prints is what any program would see.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// result is one line of output (lab.Result reads it).
type result struct {
	Result string             `json:"result"`
	Error  string             `json:"error,omitempty"`
	MS     float64            `json:"ms"`
	Data   string             `json:"data,omitempty"`
	Local  string             `json:"local,omitempty"`
	Remote string             `json:"remote,omitempty"`
	Net    string             `json:"net,omitempty"` // tcp, udp
	PID    int                `json:"pid"`
	Start  time.Time          `json:"start"`
	Path   string             `json:"path"`
	TunTX  int                `json:"tun_tx"`
	TunRX  int                `json:"tun_rx"`
	Extra  map[string]float64 `json:"extra,omitempty"`
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: peer COMMAND ARGS…")
		os.Exit(2)
	}
	commands := map[string]func(args []string) (result, error){
		"tcp": tcpCommand, "udp": udpCommand, "ping": pingCommand, "dns": dnsCommand, "trick": trickCommand,
		"token": tokenCommand, "hold": holdCommand, "pairs": pairsCommand, "load": loadCommand, "quic": quicCommand, "syns": synsCommand, "synwatch": synwatchCommand,
		"crowd": crowdCommand, "raw": rawCommand, "other": otherCommand, "flood": floodCommand, "ra": advertiseCommand, "download": downloadCommand, "exchange": exchangeCommand, "insist": insistCommand, "lookup": lookupCommand, "flock": flockCommand, "talk": talkCommand, "visit": visitCommand,
	}
	switch name := os.Args[1]; name {
	case "serve":
		exitOn(serve(os.Args[2:]))
	case "forward":
		exitOn(forward(os.Args[2:]))
	case "hostile":
		exitOn(hostileServer(os.Args[2:]))
	case "doorman":
		exitOn(doorman(os.Args[2:]))
	case "portal":
		exitOn(portal(os.Args[2:]))
	case "stamp":
		exitOn(stampServe(os.Args[2:]))
	case "rebind":
		exitOn(rebindServer(os.Args[2:]))
	case "session":
		exitOn(session(os.Stdin, os.Stdout))
	default:
		command := commands[name]
		if command == nil {
			fmt.Fprintf(os.Stderr, "peer: no command %q\n", name)
			os.Exit(2)
		}
		exitOn(observe(command, os.Args[2:]))
	}
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

// observe runs a command between two readings of the TUN's counters and prints the result.
func observe(command func([]string) (result, error), args []string) error {
	tx, rx := tunPackets()
	begin := time.Now()
	r, err := command(args)
	if err != nil {
		return err
	}
	if r.MS == 0 {
		r.MS = float64(time.Since(begin).Microseconds()) / 1000
	}
	tx2, rx2 := tunPackets()
	r.TunTX, r.TunRX = tx2-tx, rx2-rx
	r.PID = os.Getpid()
	r.Path, _ = os.Executable()
	if r.Start, err = started(r.PID); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// tunPackets sums what went into (tx) and came out of (rx) devices called gatun*.
func tunPackets() (tx, rx int) {
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(rest)
		if !ok || !strings.HasPrefix(name, "gatun") || len(f) < 10 {
			continue
		}
		r, _ := strconv.Atoi(f[1])
		t, _ := strconv.Atoi(f[9])
		tx, rx = tx+t, rx+r
	}
	return tx, rx
}

// started is the start time of a process: boot time plus field 22 of its stat, in ticks of 10 ms.
func started(pid int) (time.Time, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	_, rest, _ := strings.Cut(string(stat), "\nbtime ")
	line, _, _ := strings.Cut(rest, "\n")
	boot, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(boot, 0).Add(time.Duration(ticks) * 10 * time.Millisecond).UTC(), nil
}

// outcome names an error as a program would: the errno, timeout, or EOF.
func outcome(err error) (name, text string) {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case err == nil:
		return "", ""
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout", err.Error()
	case errors.As(err, &errno):
		return errnoName(errno), err.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout", err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "EOF", err.Error()
	default:
		return "error", err.Error()
	}
}

func errnoName(e syscall.Errno) string {
	names := map[syscall.Errno]string{
		syscall.ECONNREFUSED: "ECONNREFUSED", syscall.EHOSTUNREACH: "EHOSTUNREACH", syscall.ENETUNREACH: "ENETUNREACH",
		syscall.ECONNRESET: "ECONNRESET", syscall.EACCES: "EACCES", syscall.EPERM: "EPERM", syscall.ENOPROTOOPT: "ENOPROTOOPT",
		syscall.EPIPE: "EPIPE", syscall.EADDRNOTAVAIL: "EADDRNOTAVAIL", syscall.ECONNABORTED: "ECONNABORTED",
		syscall.EPROTO: "EPROTO", syscall.EMSGSIZE: "EMSGSIZE", syscall.EINVAL: "EINVAL", syscall.ENODEV: "ENODEV",
	}
	if n := names[e]; n != "" {
		return n
	}
	return "errno " + strconv.Itoa(int(e))
}

func failed(err error) result {
	name, text := outcome(err)
	return result{Result: name, Error: text}
}
