package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatun/e2e/lab"
)

// cmdDoorman starts the helper that prints whoever reaches it, in the host's namespace.
func cmdDoorman(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "doorman NAME PORT…")
	s := of(ts)
	p, err := s.lab.Start(s.lab.Host, lab.Spec{User: lab.Nobody, Log: filepath.Join(s.dir, args[0]+".log")},
		append([]string{s.bins.Peer, "doorman"}, args[1:]...)...)
	ts.Check(err)
	s.keep[args[0]] = p
	ts.Check(lab.Wait(time.Minute, "the doorman listens", func() (bool, error) {
		b, err := os.ReadFile(p.Log)
		return strings.Contains(string(b), "listening"), err
	}))
}

// cmdHeard counts what reached a doorman.
func cmdHeard(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 4, "heard NAME tcp|udp ==|>|>=|<= N")
	b, err := os.ReadFile(of(ts).keep[args[0]].Log)
	ts.Check(err)
	compare(ts, "the doorman heard", strings.Count(string(b), args[1]+" "), args[2], args[3])
}

// cmdOutside runs the helper on the server or the twin, as somebody who wants something from the host.
func cmdOutside(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "outside s|t COMMAND…")
	s := of(ts)
	out, err := s.lab.Namespace(args[0]).Output(append([]string{s.bins.Peer}, args[1:]...)...)
	ts.Check(err)
	r, err := lab.ParseResult([]byte(out))
	ts.Check(err)
	s.saw = r
}
