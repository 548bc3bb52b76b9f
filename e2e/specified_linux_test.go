package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatun/e2e/lab"
)

// TestSpecifiedBehaviours runs testdata/sb: the numbered promises of the specification, each as
// a story that would end badly if the promise were broken. docs/specified-behaviours.md lists them.
func TestSpecifiedBehaviours(t *testing.T) {
	t.Parallel()
	p := params(t, "testdata/sb", nil)
	maps.Copy(p.Cmds, map[string]func(*testscript.TestScript, bool, []string){
		"copies":    cmdCopies,    // copies NAME…: programs of their own: the helper under other paths
		"runs":      cmdRuns,      // runs NAME COMMAND…: run such a copy as nobody, as `program` runs the helper
		"flows":     cmdFlows,     // flows KEY=VALUE… == N: so many flows of `gatun flows --json` fit
		"watch":     cmdWatch,     // watch FILE COMMAND…: a client command that goes on, into a file
		"unwatch":   cmdUnwatch,   // unwatch FILE: end it
		"awaits":    cmdAwaits,    // awaits FILE PATTERN: the file has a line like that, or gets it within 20 s
		"appears":   cmdAppears,   // appears PATTERN: a file of the state directory, within 20 s; it is printed
		"api":       cmdAPI,       // api [-CURL-FLAG VALUE]… PATH: curl over the daemon's socket
		"importers": cmdImporters, // importers OS PACKAGE: who imports it there, one per line
		"online":    cmdOnline,    // online STATE: status says so, or does within 30 s; it is printed
		"drawn":     cmdDrawn,     // drawn STAGE: the deciders of the last `why --json` are those of docs/decision-flow.svg, in that order
	})
	testscript.Run(t, p)
}

// TestSpecifiedBehavioursListed keeps docs/specified-behaviours.md complete: every number has a
// row, and a row names a story that exists or the part that brings it.
func TestSpecifiedBehavioursListed(t *testing.T) {
	doc, err := os.ReadFile("../docs/specified-behaviours.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("testdata/sb/SB-*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	story := map[string]bool{}
	for _, s := range scripts {
		story[strings.TrimSuffix(filepath.Base(s), ".txtar")] = true
	}
	named := regexp.MustCompile("`(SB-[0-9]{2}-[a-z0-9-]+)`")
	for n := 1; n <= 28; n++ {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| SB-%d \|.*$`, n)).FindString(string(doc))
		if row == "" {
			t.Errorf("SB-%d has no row", n)
			continue
		}
		found := named.FindAllStringSubmatch(row, -1)
		if len(found) == 0 && !strings.Contains(row, "comes with") {
			t.Errorf("SB-%d names no story and no part that it comes with: %s", n, row)
		}
		for _, m := range found {
			if !story[m[1]] || !strings.HasPrefix(m[1], fmt.Sprintf("SB-%02d-", n)) {
				t.Errorf("SB-%d names %s, which is no story of that number", n, m[1])
			}
			delete(story, m[1])
		}
	}
	for s := range story {
		t.Errorf("the story %s is in no row of its number", s)
	}
}

func cmdCopies(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	for _, name := range args {
		b, err := os.ReadFile(s.bins.Peer)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(s.dir, name), b, 0o755))
	}
}

func cmdRuns(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "runs NAME COMMAND…")
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := s.lab.Host.Command(ctx, lab.Spec{User: lab.Nobody}, append([]string{filepath.Join(s.dir, args[0])}, args[1:]...)...)
	out, err := cmd.Output()
	ts.Check(err)
	s.saw, err = lab.ParseResult(out)
	s.again = func() { cmdRuns(ts, false, args) }
	ts.Check(err)
	ts.Logf("%+v", s.saw)
}

func cmdFlows(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 3, "flows KEY=VALUE… ==|> N")
	want := map[string]string{}
	for _, a := range args[:len(args)-2] {
		k, v, ok := strings.Cut(a, "=")
		usage(ts, ok, "flows KEY=VALUE… ==|> N")
		want[k] = v
	}
	least, err := strconv.Atoi(args[len(args)-1])
	ts.Check(err)
	if args[len(args)-2] == ">" {
		least++
	}
	n := 0
	// Fewer than wanted may be on their way; more are too many.
	if err := lab.Wait(30*time.Second, fmt.Sprintf("%d flows with %v", least, want), func() (bool, error) {
		flows, err := of(ts).gatun.Flows()
		n = 0
		for _, f := range flows {
			if f.Match(want) {
				n++
			}
		}
		return err == nil && n >= least, err
	}); err != nil && !errors.Is(err, lab.ErrTimeout) {
		ts.Check(err)
	}
	compare(ts, fmt.Sprintf("flows with %v:", want), n, args[len(args)-2], args[len(args)-1])
}

func cmdWatch(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "watch FILE COMMAND…")
	s := of(ts)
	file, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	cmd := s.gatun.Command(context.Background(), args[1:]...)
	cmd.Stdout, cmd.Stderr = file, file
	ts.Check(cmd.Start())
	if s.watches == nil {
		s.watches = map[string]*exec.Cmd{}
	}
	s.watches[args[0]] = cmd
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = file.Close()
	})
	// A command that has just ended may still be connected: exactly the watches must be.
	ts.Check(lab.Wait(time.Minute, "the watch is connected", func() (bool, error) { return s.clients(ts) == len(s.watches), nil }))
	time.Sleep(100 * time.Millisecond) // and its request was read
}

// clients counts the connections of the daemon's socket, which may have had another name when it
// was bound.
func (s *story) clients(ts *testscript.TestScript) int {
	out, err := s.lab.Host.Output("cat", "/proc/net/unix")
	ts.Check(err)
	n := 0
	for _, line := range strings.Split(out, "\n") { // number, references, protocol, flags, type, state, inode, path
		if f := strings.Fields(line); len(f) == 8 && f[5] == "03" && strings.HasPrefix(f[7], s.gatun.Socket()) {
			n++
		}
	}
	return n
}

func cmdUnwatch(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 1, "unwatch FILE")
	cmd := of(ts).watches[args[0]]
	ts.Check(cmd.Process.Signal(syscall.SIGINT))
	ts.Check(cmd.Wait())
	delete(of(ts).watches, args[0])
}

func cmdAwaits(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "awaits FILE PATTERN")
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	file := ts.MkAbs(args[0])
	var text []byte
	err = lab.Wait(time.Minute, args[1]+" in "+args[0], func() (bool, error) {
		text, err = os.ReadFile(file)
		return re.Match(text), err
	})
	if err != nil {
		ts.Fatalf("%v; the file is:\n%s", err, text)
	}
}

func cmdAppears(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 1, "appears PATTERN")
	var found []string
	ts.Check(lab.Wait(time.Minute, args[0]+" in the state directory", func() (ok bool, err error) {
		found, err = filepath.Glob(filepath.Join(of(ts).lab.StateDir(), args[0]))
		return len(found) == 1, err
	}))
	b, err := os.ReadFile(found[0])
	ts.Check(err)
	_, _ = ts.Stdout().Write(b)
	ts.Setenv("FOUND", found[0])
}

func cmdAPI(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 1, "api [-FLAG VALUE]… PATH")
	s := of(ts)
	path := args[len(args)-1]
	command := append([]string{"curl", "-sS", "--fail-with-body", "--max-time", "10", "--unix-socket", s.gatun.Socket(), "-H", "Content-Type: application/json"}, args[:len(args)-1]...)
	cmd := s.lab.Host.Command(context.Background(), lab.Spec{Dir: s.dir}, append(command, "http://gatun"+path)...)
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	if err := cmd.Run(); (err != nil) != neg {
		ts.Fatalf("%v: %v", args, err)
	}
}

func cmdImporters(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "importers OS PACKAGE")
	root, err := lab.Root()
	ts.Check(err)
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+args[0], "CGO_ENABLED=0")
	out, err := cmd.Output()
	ts.Check(err)
	for _, line := range strings.Split(string(out), "\n") {
		f := strings.Fields(line)
		if len(f) > 0 && slices.Contains(f[1:], args[1]) {
			_, _ = fmt.Fprintln(ts.Stdout(), f[0])
		}
	}
}

func cmdOnline(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 1, "online STATE")
	var out []byte
	err := lab.Wait(time.Minute, "online is "+args[0], func() (ok bool, err error) {
		var s struct{ Online string }
		if out, err = of(ts).gatun.Client("status", "--json"); err == nil {
			err = json.Unmarshal(out, &s)
		}
		return s.Online == args[0], err
	})
	_, _ = ts.Stdout().Write(out)
	ts.Check(err)
}

func cmdDrawn(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 1, "drawn STAGE")
	var why struct {
		Trail []struct{ Decider, Stage string }
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &why))
	root, err := lab.Root()
	ts.Check(err)
	svg, err := os.ReadFile(filepath.Join(root, "docs", "decision-flow.svg"))
	ts.Check(err)
	column := map[string]string{"before-intel": "60", "after-intel": "130", "communication": "200", "link": "270"}[args[0]]
	dots := map[string]bool{} // by the height of the row
	for _, m := range regexp.MustCompile(`<circle class="dot" cx="`+column+`" cy="([0-9]+)"`).FindAllStringSubmatch(string(svg), -1) {
		dots[m[1]] = true
	}
	var drawn, asked []string
	for _, m := range regexp.MustCompile(`<text x="342" y="([0-9]+)">[0-9]+  ([a-z0-9-]+)<`).FindAllStringSubmatch(string(svg), -1) {
		y, err := strconv.Atoi(m[1])
		ts.Check(err)
		if dots[strconv.Itoa(y-5)] {
			drawn = append(drawn, m[2])
		}
	}
	for _, step := range why.Trail {
		if step.Stage == args[0] && step.Decider != "rule" {
			asked = append(asked, step.Decider)
		}
	}
	if len(asked) == 0 || !slices.Equal(drawn, asked) {
		ts.Fatalf("%s: drawn: %v\nasked: %v", args[0], drawn, asked)
	}
}
