package e2e

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"gatun/e2e/lab"
)

// TestNettest runs the conformance tests of x/net across gatun: one end of the pipe is a
// connection dialled in the host namespace while `gatun up` holds it, the other end is what the
// server accepted. Connections are relayed, and handed back to the kernel.
func TestNettest(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var server net.Listener
	if err := inside(l.Server, func() (err error) {
		server, err = net.Listen("tcp4", "198.51.100.10:3333")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	pipe := func() (c1, c2 net.Conn, stop func(), err error) {
		if err = inside(l.Host, func() (err error) {
			c1, err = net.Dial("tcp4", "198.51.100.10:3333")
			return err
		}); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = server.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { _ = c1.Close(); _ = c2.Close() }, nil
	}
	for verdict, setting := range map[string]string{"accept": "off", "permanent-accept": "on"} {
		t.Run(verdict, func(t *testing.T) {
			config := filepath.Join(l.Dir, verdict+".yaml")
			text := "version: 1\ncore: {releaseLevel: experimental}\nfilter: {permanentVerdicts: " + setting + "}\n"
			if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			throughGatun(t, l, config, verdict, pipe)
		})
	}
}

// throughGatun brings gatun up for the tests, and looks whether it decided so on their connections.
func throughGatun(t *testing.T, l *lab.Lab, config, verdict string, pipe nettest.MakePipe) {
	g, err := l.Up(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if code, err := g.Down(); err != nil || code != 0 {
			t.Errorf("gatun up ended with %d, %v: %s", code, err, g.Tail())
		}
	}()
	t.Run("up", func(t *testing.T) { nettest.TestConn(t, pipe) })
	flows, err := g.Flows()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range flows {
		if f.Match(map[string]string{"remote": "198.51.100.10:3333", "verdict": verdict}) {
			n++
		}
	}
	if n < 8 {
		t.Errorf("%d flows went through gatun, want at least 8: %v", n, flows)
	}
}

// inside runs f on a thread that has entered a namespace: sockets stay where they were made.
func inside(ns lab.Namespace, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and where it is, is where the process is: keep it busy.
			failed <- inside(ns, f)
			runtime.UnlockOSThread()
			return
		}
		fd, err := os.Open("/run/netns/" + string(ns))
		if err != nil {
			failed <- err
			return
		}
		defer fd.Close()
		if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		failed <- f()
	}()
	return <-failed
}
