package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatun/e2e/lab"
)

type storyKey struct{}

// story is the state of one script.
type story struct {
	bins   lab.Binaries
	dir    string
	lab    *lab.Lab
	gatun  *lab.Gatun
	saw    lab.Result // what the last program saw
	again  func()     // runs it once more
	keep   map[string]*lab.Process
	states map[string]string
	// watches are the client commands that go on, by the file that they write.
	watches map[string]*exec.Cmd
	found   lab.Flow
}

func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"lab":        cmdLab,        // lab [late-v6]: build the network
		"start":      cmdStart,      // start up|run FILE [FLAG…]: bring gatun up and wait until it is on
		"down":       cmdDown,       // down: end it; its exit code must be 0
		"exits":      cmdExits,      // exits CODE TEXT: gatun ends by itself within a minute, with that code and that text in its last line
		"sigkill":    cmdSigkill,    // sigkill: end it with SIGKILL
		"program":    cmdProgram,    // program COMMAND…: run the helper as nobody under gatun
		"asroot":     cmdAsRoot,     // asroot COMMAND…: run the helper as root in the host namespace
		"direct":     cmdDirect,     // direct COMMAND…: the same on the twin, which has no gatun
		"sees":       cmdSees,       // sees RESULT [DATA]: what the last program saw
		"within":     cmdWithin,     // within MILLISECONDS: and how soon
		"tun-moved":  cmdTunMoved,   // tun-moved: packets went into the TUN while it ran
		"tun":        cmdTun,        // tun IN OUT: as many packets went into the TUN, and came out, while it ran
		"dns-moved":  cmdDNSMoved,   // dns-moved: what it asked went into the TUN in `run`, and past it, redirected to us, in `up`
		"flow":       cmdFlow,       // flow KEY=VALUE…: `gatun flows --json` has it; mine = pid, start and path of the last program
		"router":     cmdRouter,     // router [-twin] PROTO DST ==|> N: what the router has counted
		"reset":      cmdReset,      // reset: the router counts anew
		"asked":      cmdAsked,      // asked NAME == N: how often the lab's name server was asked
		"inhost":     in("h"),       // inhost COMMAND…: run it as root in the host namespace
		"inrouter":   in("r"),       // and in the router's
		"inserver":   in("s"),       // and in the server's
		"intwin":     in("t"),       // and in the twin's
		"gatun":      cmdGatun,      // gatun COMMAND…: a client command; the exit code is $CODE, ! gatun wants it not to be 0
		"code":       cmdCode,       // code N: the exit code of the last gatun command
		"nobody":     cmdNobody,     // nobody COMMAND…: run it as uid 65534 in the host namespace; sets $CODE
		"begin":      cmdBegin,      // begin NAME NAMESPACE COMMAND…: run the helper in the background
		"ended":      cmdEnded,      // ended NAME RESULT: it has ended, and this is what it saw
		"running":    cmdRunning,    // running NAME: it has not ended
		"snapshot":   cmdSnapshot,   // snapshot NAME: the host's rules, routes, addresses, nftables
		"same":       cmdSame,       // same A B: two snapshots are equal
		"tricks":     cmdTricks,     // tricks: every trick x protocol x family as nobody; sets $SENT
		"pause":      cmdPause,      // pause MILLISECONDS: let the world act (not for waiting on gatun)
		"through":    cmdThrough,    // through COMMAND…: an ordinary command under gatun; stdout and the file out
		"ontwin":     cmdOnTwin,     // ontwin COMMAND…: the same on the twin, as nobody
		"serverside": cmdServerSide, // serverside COMMAND…: start a server and wait until it listens
		"sshd":       cmdSSHD,       // sshd: an SSH server on port 2222; the key is in id
		"ports":      cmdPorts,      // ports FILE STATE == N: of a scan
		"equal-scan": cmdEqualScan,  // equal-scan A B: two scans of the ports 2000-2999 are equal
		"equal-hops": cmdEqualHops,  // equal-hops A B: two traces show the same hops
		"healthy":    cmdHealthy,    // healthy: a program gets through, now or soon

		"mmdb":         cmdMMDB,        // mmdb FILE PREFIX=CC|ASN…: write a MaxMind file
		"names":        cmdNames,       // names FILE N: write a list of N names and ads.example.net
		"doorman":      cmdDoorman,     // doorman NAME PORT…: a server in the host namespace that prints whoever reaches it
		"heard":        cmdHeard,       // heard NAME tcp|udp ==|> N: how often it was reached
		"outside":      cmdOutside,     // outside s|t COMMAND…: the helper on the server or the twin, for something from the host
		"list-is":      cmdListIs,      // list-is ID KEY=VALUE… KEY~PART: `gatun list` says so, or will within 10 s
		"stamp-server": cmdStampServer, // stamp-server: a name server and a server of intelligence and lists
		"stamped":      cmdStamped,     // stamped asked|stamped|fetched VALUE == N: what that server was asked
	}
}

func of(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func cmdLab(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	l, err := lab.New(lab.Options{Bins: s.bins, Dir: s.dir, LateV6: len(args) == 1 && args[0] == "late-v6"})
	ts.Check(err)
	s.lab, s.keep, s.states = l, map[string]*lab.Process{}, map[string]string{}
	ts.Setenv("CA", l.CAFile())
	ts.Setenv("STATE", l.StateDir())
	cert, key := l.CertFiles()
	ts.Setenv("CERT", cert)
	ts.Setenv("KEY", key)
	ts.Defer(func() {
		if s.gatun != nil {
			ts.Logf("gatun %s said:\n%s", s.gatun.Mode, s.gatun.Tail())
		}
		if err := l.Close(); err != nil {
			ts.Logf("closing the lab: %v", err)
		}
	})
}

func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "start up|run FILE [FLAG…]")
	s := of(ts)
	if args[0] == "none" { // the story without gatun: shows that its own tools are right
		return
	}
	begin, file := s.lab.Up, ts.MkAbs(args[1])
	if args[0] == "run" {
		begin = s.lab.Run
	}
	g, err := begin(file, args[2:]...)
	s.gatun = g
	ts.Check(err)
}

func cmdDown(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	if s.gatun == nil {
		return
	}
	code, err := s.gatun.Down()
	ts.Check(err)
	if code != 0 {
		ts.Fatalf("gatun %s ended with %d: %s", s.gatun.Mode, code, s.gatun.Tail())
	}
	s.gatun = nil
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "exits CODE TEXT")
	s := of(ts)
	select {
	case <-s.gatun.Process.Done():
	case <-time.After(time.Minute):
		ts.Fatalf("gatun %s goes on", s.gatun.Mode)
	}
	said := strings.TrimSpace(s.gatun.Tail())
	if code := s.gatun.Process.ExitCode(); strconv.Itoa(code) != args[0] || !strings.Contains(said[strings.LastIndex(said, "\n")+1:], args[1]) {
		ts.Fatalf("gatun %s ended with %d, want %s and %q at the end of:\n%s", s.gatun.Mode, code, args[0], args[1], said)
	}
	s.gatun = nil
}

func cmdSigkill(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	s.gatun.Process.Kill()
	s.gatun = nil
}

func cmdProgram(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var err error
	if s.gatun != nil {
		s.saw, err = s.gatun.Program(ctx, args...)
	} else {
		s.saw, err = s.lab.Peer(ctx, s.lab.Host, args...)
	}
	s.again = func() { cmdProgram(ts, false, args) }
	ts.Check(err)
	ts.Logf("%+v", s.saw)
}

func cmdAsRoot(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	s.saw, err = s.lab.PeerAs(ctx, s.lab.Host, 0, args...)
	s.again = nil
	ts.Check(err)
	ts.Logf("%+v", s.saw)
}

func cmdDirect(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	var err error
	s.saw, err = s.lab.Peer(context.Background(), s.lab.Twin, args...)
	ts.Check(err)
	ts.Logf("%+v", s.saw)
}

func cmdSees(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 1, "sees RESULT [DATA]")
	saw := of(ts).saw
	ok := false
	for _, want := range strings.Split(args[0], "|") {
		ok = ok || saw.Result == want
	}
	if len(args) > 1 {
		ok = ok && saw.Data == strings.Join(args[1:], " ")
	}
	if ok == neg {
		of(ts).explain(ts)
		ts.Fatalf("the program saw %s %q (%s), want %v", saw.Result, saw.Data, saw.Error, args)
	}
}

// explain logs the flows of the last program: why it saw what it saw.
func (s *story) explain(ts *testscript.TestScript) {
	if s.gatun == nil {
		return
	}
	flows, err := s.gatun.Flows()
	if err != nil {
		ts.Logf("flows: %v", err)
	}
	for _, f := range flows {
		if f.Field("pid") == strconv.Itoa(s.saw.PID) || f.Field("remote") == s.saw.Remote {
			ts.Logf("%v", f)
		}
	}
}

func cmdWithin(ts *testscript.TestScript, _ bool, args []string) {
	limit, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	s := of(ts)
	// What happens at once does so at the best of some tries also where other programs want the processor.
	for tries := 0; ; tries++ {
		if s.saw.MS <= limit {
			return
		}
		if tries == 5 || s.again == nil {
			break
		}
		before := s.saw.Result
		if s.again(); s.saw.Result != before {
			ts.Fatalf("the program saw %s, and then %s", before, s.saw.Result)
		}
	}
	ts.Fatalf("it took %.1f ms, want at most %.0f", s.saw.MS, limit)
}

// cmdTun wants as many packets in the TUN, in and out, while the program worked.
func cmdTun(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "tun IN OUT")
	saw := of(ts).saw
	if in, out := strconv.Itoa(saw.TunTX), strconv.Itoa(saw.TunRX); in != args[0] || out != args[1] {
		ts.Fatalf("%s packets went into the TUN, %s came out; want %s and %s", in, out, args[0], args[1])
	}
}

func cmdTunMoved(ts *testscript.TestScript, neg bool, _ []string) {
	if saw := of(ts).saw; saw.TunTX > 0 == neg {
		ts.Fatalf("%d packets went into the TUN, %d came out", saw.TunTX, saw.TunRX)
	}
}

func cmdFlow(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	want := map[string]string{}
	for _, a := range args {
		if a == "mine" {
			want["pid"], want["path"] = strconv.Itoa(s.saw.PID), s.saw.Path
			want["start"] = s.saw.Start.Format(time.RFC3339Nano)
			continue
		}
		k, v, ok := strings.Cut(a, "=")
		usage(ts, ok, "flow [mine] KEY=VALUE…")
		want[k] = v
	}
	if neg {
		flows, err := s.gatun.Flows()
		ts.Check(err)
		for _, f := range flows {
			if f.Match(want) {
				ts.Fatalf("there is a flow with %v: %v", want, f)
			}
		}
		return
	}
	f, err := s.gatun.WaitFlow(30*time.Second, want)
	ts.Check(err)
	s.found = f
	ts.Setenv("FLOW", f.Field("id"))
}

func cmdRouter(ts *testscript.TestScript, _ bool, args []string) {
	twin := len(args) > 0 && args[0] == "-twin"
	if twin {
		args = args[1:]
	}
	usage(ts, len(args) == 4, "router [-twin] PROTO DST ==|> N")
	m, err := lab.ParseMatch(args[0], args[1])
	ts.Check(err)
	m.Twin = twin
	n, err := of(ts).lab.Count(m)
	ts.Check(err)
	if args[2] == "==" && args[3] == "0" && n > 0 {
		seen, err := of(ts).lab.Seen()
		ts.Check(err)
		for _, c := range seen {
			if m.Hit(c) {
				ts.Logf("%+v", c)
			}
		}
	}
	compare(ts, "the router counted", n, args[2], args[3])
}

func compare(ts *testscript.TestScript, what string, have int, op, text string) {
	want, err := strconv.Atoi(text)
	ts.Check(err)
	ok := map[string]bool{"==": have == want, ">": have > want, ">=": have >= want, "<=": have <= want}[op]
	if !ok {
		ts.Fatalf("%s %d, want %s %d", what, have, op, want)
	}
}

func cmdReset(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(of(ts).lab.ResetCounters()) }

func cmdAsked(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 3, "asked NAME ==|> N")
	n, err := of(ts).lab.Asked(args[0])
	ts.Check(err)
	compare(ts, "the server was asked for "+args[0]+" so often:", n, args[1], args[2])
}

func in(letter string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		s := of(ts)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		env := []string{"WORK=" + s.dir, "GATUN=" + s.bins.Gatun, "PEER=" + s.bins.Peer}
		cmd := s.lab.Namespace(letter).Command(ctx, lab.Spec{Env: env, Dir: s.dir}, args...)
		cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
		if err := cmd.Run(); (err != nil) != neg {
			ts.Fatalf("%v: %v", args, err)
		}
	}
}

func cmdGatun(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := s.lab.Host.Command(ctx, lab.Spec{Env: s.lab.Env()}, append([]string{s.bins.Gatun}, args...)...)
	if s.gatun != nil {
		cmd = s.gatun.Command(ctx, args...)
	}
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	_ = cmd.Run()
	if !cmd.ProcessState.Exited() {
		ts.Fatalf("%q did not end by itself", args)
	}
	setCode(ts, neg, cmd.ProcessState.ExitCode(), args)
}

func setCode(ts *testscript.TestScript, neg bool, code int, args []string) {
	ts.Setenv("CODE", strconv.Itoa(code))
	if (code != 0) != neg {
		ts.Fatalf("%q: exit code %d", args, code)
	}
}

func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	if have := ts.Getenv("CODE"); have != args[0] {
		ts.Fatalf("exit code %s, want %s", have, args[0])
	}
}

func cmdNobody(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	home := filepath.Join(s.dir, "nobody")
	ts.Check(os.MkdirAll(home, 0o700))
	ts.Check(os.Chown(home, lab.Nobody, lab.Nobody))
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	env := []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + home, "CURL_CA_BUNDLE=" + s.lab.CAFile(), "GATUN=" + s.bins.Gatun, "PEER=" + s.bins.Peer}
	cmd := s.lab.Host.Command(ctx, lab.Spec{User: lab.Nobody, Env: env, Dir: home}, args...)
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	_ = cmd.Run()
	setCode(ts, neg, cmd.ProcessState.ExitCode(), args)
}

func cmdBegin(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 3, "begin NAME h|s|t COMMAND…")
	s := of(ts)
	ns := s.lab.Namespace(args[1])
	command := args[2:]
	if command[0] == "peer" {
		command = append([]string{s.bins.Peer}, command[1:]...)
	}
	p, err := s.lab.Start(ns, lab.Spec{User: lab.Nobody, Log: filepath.Join(s.dir, args[0]+".log")}, command...)
	ts.Check(err)
	s.keep[args[0]] = p
}

func cmdEnded(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "ended NAME RESULT")
	s := of(ts)
	p := s.keep[args[0]]
	select {
	case <-p.Done():
	case <-time.After(2 * time.Minute):
		ts.Fatalf("%s did not end in two minutes", args[0])
	}
	b, err := os.ReadFile(p.Log)
	ts.Check(err)
	r, err := lab.ParseResult(b)
	ts.Check(err)
	if r.Result != args[1] {
		ts.Fatalf("%s saw %s (%s), want %s", args[0], r.Result, r.Error, args[1])
	}
}

func cmdRunning(ts *testscript.TestScript, _ bool, args []string) {
	select {
	case <-of(ts).keep[args[0]].Done():
		b, _ := os.ReadFile(of(ts).keep[args[0]].Log)
		ts.Fatalf("%s has ended: %s", args[0], b)
	default:
	}
}

// snapshotScript prints what `recover` must leave as it was. Lifetimes and counters are not part
// of it.
const snapshotScript = `ip -o rule; ip -o -6 rule; ip -4 -o route show table all; ip -o -6 route show table all | sed "s/ expires [0-9]*sec//";
ip -o address | sed "s/valid_lft.*//"; nft -s list ruleset; cat /etc/resolv.conf`

func cmdSnapshot(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	// The kernel adds the routes of an IPv6 address a moment after the address.
	ts.Check(lab.Wait(time.Minute, "the host's state is settled", func() (bool, error) {
		out, err := s.lab.Host.Output("sh", "-ec", snapshotScript)
		settled := err == nil && out == s.states[args[0]]
		s.states[args[0]] = out
		time.Sleep(100 * time.Millisecond)
		return settled, err
	}))
}

func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if a, b := s.states[args[0]], s.states[args[1]]; (a != b) != neg {
		ts.Fatalf("%s and %s:\n--- %s\n%s\n--- %s\n%s", args[0], args[1], args[0], a, args[1], b)
	}
}

// cmdTricks tries every way past the TUN as nobody, at a port and an address that only the
// tricks use.
func cmdTricks(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	cells := 0
	for name := range lab.TrickNames() {
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			for src, dst := range map[string]string{lab.Host4: lab.Second4 + ":7", lab.Host6: "[" + lab.Second6 + "]:7"} {
				_, err := s.lab.Peer(context.Background(), s.lab.Host, "trick", "-src", src, name, proto, dst)
				ts.Check(err)
				cells++
			}
		}
	}
	ts.Setenv("SENT", strconv.Itoa(cells))
}

func cmdPause(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	time.Sleep(time.Duration(n) * time.Millisecond)
}

// cmdHealthy repeats a program until it gets through.
func cmdHealthy(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	began := time.Now()
	ts.Check(lab.Wait(30*time.Second, "a program gets through", func() (bool, error) {
		r, err := s.gatun.Program(context.Background(), "tcp", "-timeout", "2s", "-say", "healthy", lab.Server4+":7")
		if err == nil && r.Result != "connected" {
			err = fmt.Errorf("the program saw %s (%s)", r.Result, r.Error)
		}
		return r.Result == "connected", err
	}))
	ts.Logf("healthy %s after it was asked for", time.Since(began))
}
