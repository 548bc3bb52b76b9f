package e2e

import (
	"bufio"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatun/e2e/lab"
)

// dnsmasq is the resolver that the stories let programs ask on loopback.
const dnsmasq = "/usr/sbin/dnsmasq"

// TestLoopbackResolver runs testdata/stub: programs that ask a real resolver on 127.0.0.53.
func TestLoopbackResolver(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(dnsmasq); err != nil {
		t.Skip("skipped: needs dnsmasq as the resolver on loopback")
	}
	p := params(t, "testdata/stub", nil)
	maps.Copy(p.Cmds, map[string]func(*testscript.TestScript, bool, []string){
		"copies":     cmdCopies,    // copies NAME…: programs of their own: the helper under other paths
		"runs":       cmdRuns,      // runs NAME COMMAND…: run such a copy as nobody, as `program` runs the helper
		"stub":       cmdStub,      // stub: dnsmasq on 127.0.0.53 and ::1, and on port 5300, asking the lab's name server
		"redirects":  cmdRedirects, // redirects: status says that queries to it are intercepted, or does within 20 s
		"stub-asked": cmdStubAsked, // stub-asked NAME ==|> N: how often it was asked for the name, or one below it
	})
	testscript.Run(t, p)
}

func cmdStub(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	for _, port := range []string{"53", "5300"} {
		_, err := s.lab.Start(s.lab.Host, lab.Spec{Log: filepath.Join(s.dir, "stub-"+port+".log")}, dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null",
			"--listen-address=127.0.0.53", "--listen-address=::1", "--bind-interfaces", "--port="+port, "--no-resolv", "--no-hosts",
			"--server="+lab.Resolver4, "--log-queries", "--log-facility=-", "--pid-file=", "--cache-size=1000")
		ts.Check(err)
	}
	ts.Check(lab.Wait(time.Minute, "dnsmasq listens", func() (bool, error) {
		out, err := s.lab.Host.Output("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6")
		return strings.Count(out, " 0A ") == 4, err
	}))
}

func cmdRedirects(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(lab.Wait(time.Minute, "queries to the stub are intercepted", func() (bool, error) {
		out, err := of(ts).gatun.Client("status")
		return strings.Contains(string(out), "DNS to loopback resolvers is intercepted"), err
	}))
}

func cmdStubAsked(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 3, "stub-asked NAME ==|> N")
	f, err := os.Open(filepath.Join(of(ts).dir, "stub-53.log"))
	ts.Check(err)
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// dnsmasq[7]: query[A] www.example.org from 127.0.0.1
		_, query, found := strings.Cut(lines.Text(), ": query[")
		fields := strings.Fields(query)
		if found && len(fields) > 1 && (fields[1] == args[0] || strings.HasSuffix(fields[1], "."+args[0])) {
			n++
		}
	}
	compare(ts, "the stub was asked for "+args[0]+" so often:", n, args[1], args[2])
}

func cmdDNSMoved(ts *testscript.TestScript, _ bool, _ []string) {
	if s := of(ts); (s.saw.TunTX > 0) == (s.gatun.Mode == "up") {
		ts.Fatalf("in %s %d packets went into the TUN, %d came out", s.gatun.Mode, s.saw.TunTX, s.saw.TunRX)
	}
}
