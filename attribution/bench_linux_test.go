package attribution

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

const (
	crowdSockets = 18_000
	crowdIdle    = 2_000
)

// crowd is a machine with 18 000 TCP sockets in two processes and 2 000 idle processes.
type crowd struct {
	one, two *helper
	flows    []packet.Flow
	owner    map[packet.Flow]int
}

// newCrowd starts it: each of the two connects to the other, so that each holds client and
// server ends.
func newCrowd(b *testing.B) *crowd {
	const body = `
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(4096); say(name(l))
port, n = int(wait()), int(wait()); kept = []
for _ in range(n):
    kept.append(socket.create_connection(("127.0.0.1", port))); kept.append(l.accept()[0])
    say(name(kept[-2]), name(kept[-1]))
spare = []
while True:
    command = wait()
    if command == "": break
    if command == "close": spare.clear(); say("closed"); continue
    spare.append(udp()); say(name(spare[-1]))
`
	c := &crowd{one: script(b, body), two: script(b, body), owner: map[packet.Flow]int{}}
	first, second := addr(c.one.line()), addr(c.two.line())
	n := crowdSockets / 4
	fmt.Fprintf(c.one.in, "%d\n%d\n", second.Port(), n)
	fmt.Fprintf(c.two.in, "%d\n%d\n", first.Port(), n)
	for range n {
		for h, remote := range map[*helper]netip.AddrPort{c.one: second, c.two: first} {
			client, _, _ := strings.Cut(h.line(), " ")
			flow := packet.Flow{Proto: packet.TCP, Local: addr(client), Remote: remote}
			c.flows = append(c.flows, flow)
			c.owner[flow] = h.pid()
		}
	}
	idle := exec.Command("setsid", "sh", "-c", fmt.Sprintf(
		`exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null 7</dev/null; i=0; while [ $i -lt %d ]; do sleep 600 & i=$((i+1)); done; echo; wait`, crowdIdle))
	out, _ := idle.StdoutPipe()
	if err := idle.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { syscall.Kill(-idle.Process.Pid, syscall.SIGKILL); idle.Wait() })
	out.Read(make([]byte, 1))
	return c
}

// stopwatch collects the wall and processor time of single look-ups.
type stopwatch struct {
	wall []time.Duration
	cpu  time.Duration
}

func (w *stopwatch) find(b *testing.B, f *Finder, flow packet.Flow, pid int) {
	b.Helper()
	used, start := processorTime(), time.Now()
	o := f.Find(b.Context(), flow)
	w.wall = append(w.wall, time.Since(start))
	w.cpu += processorTime() - used
	if o.Process.PID != pid || o.Confidence != Exact {
		b.Fatalf("%s: got %+v of %+v, want process %d", flow, o, o.Process, pid)
	}
}

func (w *stopwatch) report(b *testing.B) {
	slices.Sort(w.wall)
	n := len(w.wall)
	b.ReportMetric(float64(w.wall[n/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(w.wall[n*99/100].Nanoseconds())/1e3, "p99-µs")
	b.ReportMetric(float64(w.wall[n-1].Nanoseconds())/1e3, "max-µs")
	b.ReportMetric(float64(w.cpu.Nanoseconds())/1e3/float64(n), "cpu-µs/op")
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCrowd measures look-ups on a machine with 18 000 TCP sockets in two processes and
// 2 000 idle processes. Run it alone: go test -run '^$' -bench Crowd -benchtime 3000x.
func BenchmarkCrowd(b *testing.B) {
	c := newCrowd(b)
	b.Run("any-socket-from-cold", func(b *testing.B) { c.anySocket(b, newFinder(b)) })
	b.Run("any-socket", func(b *testing.B) {
		f := newFinder(b)
		for _, flow := range c.flows {
			f.Find(b.Context(), flow)
		}
		c.anySocket(b, f)
	})
	b.Run("new-socket-of-the-two", c.newSocket)
	b.Run("new-socket-of-a-small-program", func(b *testing.B) {
		f, w := newFinder(b), &stopwatch{}
		h := script(b, "while wait(): s = udp(); say(name(s))")
		for b.Loop() {
			h.tell("open")
			w.find(b, f, udpFlow(h.line()), h.pid())
		}
		w.report(b)
	})
	b.Run("new-process", newProcess)
	b.Run("64-at-once", c.manyAtOnce)
}

func (c *crowd) anySocket(b *testing.B, f *Finder) {
	w := &stopwatch{}
	for b.Loop() {
		flow := c.flows[rand.IntN(len(c.flows))]
		w.find(b, f, flow, c.owner[flow])
	}
	w.report(b)
}

// newSocket opens sockets in the two big processes in turn and closes them now and then.
func (c *crowd) newSocket(b *testing.B) {
	f, w := newFinder(b), &stopwatch{}
	both := []*helper{c.one, c.two}
	for i := 0; b.Loop(); i++ {
		h := both[i%2]
		h.tell("open")
		w.find(b, f, udpFlow(h.line()), h.pid())
		if i%64 > 61 {
			h.tell("close")
			h.line()
		}
	}
	w.report(b)
}

// newProcess looks up the first socket of a process that was just born.
func newProcess(b *testing.B) {
	f, w := newFinder(b), &stopwatch{}
	h := script(b, `
while wait():
    child = os.fork()
    if child == 0:
        s = udp(); say(name(s)); say(os.getpid()); time.sleep(60)
    wait(); os.kill(child, 9); os.wait()`)
	for b.Loop() {
		h.tell("fork")
		flow := udpFlow(h.line())
		pid, _ := strconv.Atoi(h.line())
		w.find(b, f, flow, pid)
		h.tell("end")
	}
	w.report(b)
}

// manyAtOnce measures 64 look-ups that start together; its figures are those of all 64.
func (c *crowd) manyAtOnce(b *testing.B) {
	f, w := newFinder(b), &stopwatch{}
	for b.Loop() {
		var group sync.WaitGroup
		used, start := processorTime(), time.Now()
		for range 64 {
			group.Go(func() { f.Find(b.Context(), c.flows[rand.IntN(len(c.flows))]) })
		}
		group.Wait()
		w.wall = append(w.wall, time.Since(start))
		w.cpu += processorTime() - used
	}
	w.report(b)
}
