package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatun/e2e/lab"
)

// dialer is a program that does what it is told, one connection after another in one process.
type dialer struct {
	t    *testing.T
	in   io.Writer
	out  *bufio.Scanner
	pid  int
	stop func()
}

// dialerText reads orders and answers each with a line of JSON.
const dialerText = `
import json, os, socket, sys
open_ = []
for line in sys.stdin:
    order, *args = line.split()
    answer = {"pid": os.getpid()}
    try:
        if order == "connect":
            s = socket.socket(socket.AF_INET6 if ":" in args[0] else socket.AF_INET)
            s.settimeout(float(args[2]))
            if len(args) > 3:
                s.setsockopt(socket.SOL_SOCKET, 36, int(args[3], 0))
            s.connect((args[0], int(args[1])))
            open_.append(s)
            answer["local"] = s.getsockname()[1]
        elif order == "say":
            open_[-1].sendall(args[0].encode())
            answer["data"] = open_[-1].recv(100).decode()
        elif order == "wait":
            try:
                open_[-1].settimeout(20)
                answer["data"] = open_[-1].recv(100).decode()
            except ConnectionAbortedError:
                answer["data"] = "aborted"
        elif order == "close":
            open_.pop().close()
        elif order == "exec":
            os.execv("/proc/self/exe", ["python3", "-u", sys.argv[0]])
    except Exception as e:
        if order == "connect":
            open_.append(s) # its SYN is sent again and again
        answer["error"] = type(e).__name__ + ": " + str(e)
    print(json.dumps(answer), flush=True)
`

type answer struct {
	PID         int
	Local       int
	Data, Error string
}

func newDialer(t *testing.T, l *lab.Lab) *dialer {
	t.Helper()
	file := filepath.Join(l.Dir, "dialer.py")
	if err := os.WriteFile(file, []byte(dialerText), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	cmd := l.Host.Command(ctx, lab.Spec{}, "/usr/bin/python3", "-u", file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &dialer{t: t, in: in, out: bufio.NewScanner(out), stop: func() { _ = in.Close(); cancel(); _ = cmd.Wait() }}
	t.Cleanup(d.stop)
	return d
}

func (d *dialer) do(format string, a ...any) (r answer) {
	d.t.Helper()
	if _, err := fmt.Fprintf(d.in, format+"\n", a...); err != nil || !d.out.Scan() {
		d.t.Fatalf("%s: the program has ended (%v)", fmt.Sprintf(format, a...), err)
	}
	if err := json.Unmarshal(d.out.Bytes(), &r); err != nil {
		d.t.Fatalf("%s: %v", d.out.Text(), err)
	}
	return r
}

// through connects, talks and closes, and returns how many packets went into the device meanwhile.
func (d *dialer) through(l *lab.Lab, to string) (r answer, packets int) {
	d.t.Helper()
	before := device(d.t, l)
	if r = d.do("connect %s 7 20", to); r.Error != "" {
		d.t.Fatalf("connect to %s: %s", to, r.Error)
	}
	if said := d.do("say hello"); said.Data != "hello" {
		d.t.Fatalf("%s: %+v", to, said)
	}
	d.do("close")
	return r, device(d.t, l) - before
}

// device is how many packets have gone into the device.
func device(t *testing.T, l *lab.Lab) int {
	t.Helper()
	out, err := l.Host.Output("ip", "-s", "-j", "link", "show", "gatun0")
	if err != nil {
		t.Fatal(err)
	}
	var links []struct {
		Stats64 struct{ TX struct{ Packets int } }
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("%s: %v", out, err)
	}
	return links[0].Stats64.TX.Packets
}

// settled connects until a connection does not come to the device: the hooks may still be attached, and a
// permission ends with its time. When it returns the connection has sent its last packet.
func (d *dialer) settled(l *lab.Lab, g *lab.Gatun, to string) answer {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		r, packets := d.through(l, to)
		if packets == 0 {
			if _, err := g.WaitFlow(30*time.Second, map[string]string{"local": localOf(to, r.Local), "close_cause": "closed"}); err != nil {
				d.t.Fatal(err)
			}
			return r
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("every connection to %s comes to the device", to)
		}
	}
}

func upWith(t *testing.T, l *lab.Lab, config string) *lab.Gatun {
	t.Helper()
	file := filepath.Join(l.Dir, "ahead.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := l.Up(file)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

const (
	permitAll  = "version: 1\nfilter: {defaultAction: permit}\n"
	denyServer = "version: 1\nfilter:\n  defaultAction: permit\n  endpoints: [\"- {" + lab.Server4 + "," + lab.Server6 + "}\"]\n"
)

// reaches is how many packets to the server's address the router sees while f runs.
func reaches(t *testing.T, l *lab.Lab, to string, f func()) int {
	t.Helper()
	m, err := lab.ParseMatch("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ResetCounters(); err != nil {
		t.Fatal(err)
	}
	f()
	n, err := l.Count(m)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func reload(t *testing.T, l *lab.Lab, g *lab.Gatun, config string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.Dir, "ahead.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := g.Client("reload"); err != nil {
		t.Fatalf("reload: %v %s", err, out)
	}
}

// TestAhead: connections that are permitted at connect(2) come to no device, and are listed as all others.
// They end with the policy that permits them.
func TestAhead(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := upWith(t, l, permitAll)
	d := newDialer(t, l)
	for _, to := range []string{lab.Server4, lab.Server6} {
		r := d.settled(l, g, to)
		f, err := g.WaitFlow(30*time.Second, map[string]string{
			"pid": strconv.Itoa(r.PID), "local": localOf(to, r.Local), "verdict": "permanent-accept", "handed_back": "true", "reason_code": "default-action",
			"bytes_sent": "5", "bytes_received": "5", "close_cause": "closed", "owner_confidence": "exact", "direction": "outbound",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(f)
	}
	if out, err := g.Client("status", "--json"); err != nil || !strings.Contains(string(out), "destinations of programs permitted at connect") {
		t.Errorf("status says nothing of it (%v):\n%s", err, out)
	}
	for _, to := range []string{lab.Server4, lab.Server6} {
		// The rule is in force when the command returns: what runs ends, and nothing begins.
		d.settled(l, g, to)
		if r := d.do("connect %s 7 20", to); r.Error != "" {
			t.Fatal(r.Error)
		}
		begun := time.Now()
		reload(t, l, g, denyServer)
		if r := d.do("wait"); r.Data != "aborted" {
			t.Errorf("%s: what ran when it was denied saw %+v", to, r)
		}
		t.Logf("closed %s after the order", time.Since(begun))
		n := reaches(t, l, to, func() {
			for range 3 {
				if r := d.do("connect %s 7 20", to); !strings.Contains(r.Error, "ConnectionRefused") {
					t.Errorf("%s is denied: %+v", to, r)
				}
			}
		})
		if n != 0 {
			t.Errorf("%d packets reached %s, which is denied", n, to)
		}
		reload(t, l, g, permitAll)
	}
}

func localOf(to string, port int) string {
	if strings.Contains(to, ":") {
		return fmt.Sprintf("[%s]:%d", lab.Host6, port)
	}
	return fmt.Sprintf("%s:%d", lab.Host4, port)
}

// TestAheadIsOneProgram: neither what a program becomes by exec nor another program that sets the mark
// itself gets by what was permitted; and nothing does when the daemon is gone.
func TestAheadIsOneProgram(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := upWith(t, l, permitAll)
	mark := backMark(t, g)
	d, other := newDialer(t, l), newDialer(t, l)
	for _, to := range []string{lab.Server4, lab.Server6} {
		d.settled(l, g, to)
		if _, packets := other.through(l, to); packets == 0 {
			t.Errorf("another program began a connection to %s by what was not permitted to it", to)
		}
		d.settled(l, g, to)
		before := device(t, l)
		if r := newDialer(t, l).do("connect %s 7 20 %d", to, mark); r.Error != "" || device(t, l) == before {
			t.Errorf("a mark that the program set itself kept its connection to %s from being decided: %+v", to, r)
		}
	}
	d.settled(l, g, lab.Server4)
	if _, err := fmt.Fprintln(d.in, "exec"); err != nil {
		t.Fatal(err)
	}
	if _, packets := d.through(l, lab.Server4); packets == 0 {
		t.Error("what it became by exec began a connection by what was not permitted to it")
	}
	d.settled(l, g, lab.Server4)
	d.do("connect %s 7 0.2 %d", lab.Server4, mark) // what it sends again falls into the time without a daemon
	g.Process.Kill()
	<-g.Process.Done()
	left := reaches(t, l, lab.Server4, func() {
		d.do("connect %s 7 1.5", lab.Server4)
		other.do("connect %s 7 1.5", lab.Server4)
	})
	if left != 0 {
		t.Errorf("%d packets reached the server after the daemon was killed", left)
	}
	if out, err := l.Host.Output(l.Bins.Gatun, "recover"); err != nil {
		t.Fatalf("recover: %v %s", err, out)
	}
	if n := reaches(t, l, lab.Server4, func() { other.do("connect %s 7 20 %d", lab.Server4, mark) }); n == 0 {
		t.Error("without gatun the mark reaches nobody either: the above says nothing")
	}
}

func backMark(t *testing.T, g *lab.Gatun) int {
	t.Helper()
	out, err := g.Client("status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Names struct {
			BackMark int `json:"back_mark"`
		}
	}
	if err := json.Unmarshal(out, &s); err != nil || s.Names.BackMark == 0 {
		t.Fatalf("%s: %v", out, err)
	}
	return s.Names.BackMark
}
