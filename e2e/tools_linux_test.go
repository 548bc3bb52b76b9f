package e2e

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatun/e2e/lab"
)

// cmdThrough runs an ordinary command under gatun, whichever mode the story is told in. Its
// output is stdout, and the file out.
func cmdThrough(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if s.gatun == nil {
		cmdOn(ts, neg, s.lab.Host, args)
		return
	}
	r, err := s.gatun.Exec(nonEmpty(args)...)
	ts.Check(err)
	s.printed(ts, r.Data)
	if (r.Result != "ok") != neg {
		ts.Fatalf("%v: %s\n%s", args, r.Error, r.Data)
	}
}

// cmdOnTwin runs the same command where there is no gatun.
func cmdOnTwin(ts *testscript.TestScript, neg bool, args []string) {
	cmdOn(ts, neg, of(ts).lab.Twin, args)
}

func cmdOn(ts *testscript.TestScript, neg bool, ns lab.Namespace, args []string) {
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := ns.Command(ctx, lab.Spec{User: lab.Nobody}, nonEmpty(args)...).Output()
	s.printed(ts, string(out))
	if (err != nil) != neg {
		ts.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (s *story) printed(ts *testscript.TestScript, out string) {
	_, _ = fmt.Fprint(ts.Stdout(), out)
	ts.Check(os.WriteFile(filepath.Join(s.dir, "out"), []byte(out), 0o644))
}

// nonEmpty drops what an unset variable leaves.
func nonEmpty(args []string) []string {
	var out []string
	for _, a := range args {
		if a != "" {
			out = append(out, a)
		}
	}
	return out
}

// cmdServerSide starts a server in the server's namespace and waits until it listens, which it
// knows from a port that was not listening before.
func cmdServerSide(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	before := s.listening(ts)
	_, err := s.lab.Start(s.lab.Server, lab.Spec{Dir: s.dir}, args...)
	ts.Check(err)
	ts.Check(lab.Wait(time.Minute, args[0]+" listens", func() (bool, error) { return s.listening(ts) > before, nil }))
}

func (s *story) listening(ts *testscript.TestScript) int {
	out, err := s.lab.Server.Output("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6")
	ts.Check(err)
	return strings.Count(out, " 0A ")
}

// cmdSSHD starts an SSH server for root with a fresh key, which nobody may use.
func cmdSSHD(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	for _, name := range []string{"hostkey", "id"} {
		ts.Check(exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, name)).Run())
	}
	ts.Check(os.Chown(filepath.Join(s.dir, "id"), lab.Nobody, lab.Nobody))
	ts.Check(os.MkdirAll("/run/sshd", 0o755))
	cmdServerSide(ts, false, []string{
		"/usr/sbin/sshd", "-D", "-e", "-p", "2222", "-f", "/dev/null", "-h", filepath.Join(s.dir, "hostkey"),
		"-o", "AuthorizedKeysFile=" + filepath.Join(s.dir, "id.pub"), "-o", "StrictModes=no", "-o", "UsePAM=no",
		"-o", "PermitRootLogin=yes", "-o", "PidFile=none",
	})
}

// scan reads nmap's XML into port -> state: the listed ports, and the ranges that it sums up.
func scan(ts *testscript.TestScript, file string) map[int]string {
	var doc struct {
		Ports []struct {
			ID    int `xml:"portid,attr"`
			State struct {
				State string `xml:"state,attr"`
			} `xml:"state"`
		} `xml:"host>ports>port"`
		Extra []struct {
			State   string `xml:"state,attr"`
			Reasons []struct {
				Ports string `xml:"ports,attr"`
			} `xml:"extrareasons"`
		} `xml:"host>ports>extraports"`
	}
	ts.Check(xml.Unmarshal([]byte(ts.ReadFile(file)), &doc))
	states := map[int]string{}
	for _, p := range doc.Ports {
		states[p.ID] = p.State.State
	}
	for _, e := range doc.Extra {
		for _, r := range e.Reasons {
			for _, span := range strings.Split(r.Ports, ",") {
				from, to, ok := strings.Cut(span, "-")
				if !ok {
					to = from
				}
				a, err1 := strconv.Atoi(from)
				b, err2 := strconv.Atoi(to)
				ts.Check(errors.Join(err1, err2))
				for p := a; p <= b; p++ {
					states[p] = e.State
				}
			}
		}
	}
	return states
}

func cmdPorts(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 4, "ports FILE STATE == N")
	n := 0
	for _, s := range scan(ts, args[0]) {
		if s == args[1] {
			n++
		}
	}
	compare(ts, "ports that are "+args[1]+":", n, args[2], args[3])
}

func cmdEqualScan(ts *testscript.TestScript, _ bool, args []string) {
	a, b := scan(ts, args[0]), scan(ts, args[1])
	same := 0
	for p := 2000; p < 3000; p++ {
		if a[p] == b[p] && a[p] != "" {
			same++
		} else {
			ts.Logf("port %d: %s %q, %s %q", p, args[0], a[p], args[1], b[p])
		}
	}
	ts.Logf("%d of 1000 ports are equal", same)
	if same != 1000 {
		ts.Fatalf("%d of 1000 ports are equal", same)
	}
}

var hop = regexp.MustCompile(`(?m)^\s*(\d+)[:?]?\s+(?:\*\s+)*([0-9a-fA-F.:]+|\*|no reply)`)

// cmdEqualHops compares the addresses that two traces show, hop by hop; times differ.
func cmdEqualHops(ts *testscript.TestScript, _ bool, args []string) {
	var lists [2][]string
	for i, file := range args {
		for _, m := range hop.FindAllStringSubmatch(ts.ReadFile(file), -1) {
			lists[i] = append(lists[i], m[1]+" "+m[2])
		}
	}
	a, b := strings.Join(lists[0], "\n"), strings.Join(lists[1], "\n")
	if a != b || len(lists[0]) < 3 {
		ts.Fatalf("%s:\n%s\n%s:\n%s", args[0], ts.ReadFile(args[0]), args[1], ts.ReadFile(args[1]))
	}
}
