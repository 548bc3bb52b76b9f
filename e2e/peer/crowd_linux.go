package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// crowdCommand keeps many connections busy: N=ADDR:PORT,M=ADDR:PORT opens N and M of them, and
// each echoes a random block twice a second and compares it. It says when all are open, goes on
// until its input ends, and then tells how many of each group were kept, closed or corrupt, and
// when the first and the last were closed.
func crowdCommand(args []string) (result, error) {
	pause := 500 * time.Millisecond
	rest, err := flags("crowd", args, 1, func(fs *flag.FlagSet) { fs.DurationVar(&pause, "pause", pause, "between two blocks of one connection") })
	if err != nil {
		return result{}, err
	}
	var groups []*crowd
	for _, part := range strings.Split(rest[0], ",") {
		number, addr, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(number)
		if err != nil {
			return result{}, fmt.Errorf("crowd: want N=ADDR:PORT,…, got %q", part)
		}
		g, err := gather(n, addr)
		if err != nil {
			return failed(err), nil
		}
		groups = append(groups, g)
	}
	stop := make(chan struct{})
	var talking sync.WaitGroup
	for _, g := range groups {
		for _, c := range g.conns {
			talking.Go(func() { g.talk(c, pause, stop) })
		}
	}
	fmt.Println(`{"result":"talking"}`)
	_, _ = io.Copy(io.Discard, os.Stdin)
	close(stop)
	talking.Wait()
	r := result{Result: "done", Extra: map[string]float64{}}
	for i, g := range groups {
		g.report(strconv.Itoa(i), r.Extra)
	}
	return r, nil
}

// crowd is the connections to one address.
type crowd struct {
	conns []net.Conn

	mu                    sync.Mutex
	kept, closed, corrupt int
	blocks                int
	first, last           time.Time
}

func gather(n int, addr string) (*crowd, error) {
	g := &crowd{conns: make([]net.Conn, n)}
	errs := make([]error, n)
	var dialling sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range n {
		slots <- struct{}{}
		dialling.Go(func() {
			g.conns[i], errs[i] = net.DialTimeout("tcp", addr, 20*time.Second)
			<-slots
		})
	}
	dialling.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *crowd) talk(c net.Conn, pause time.Duration, stop <-chan struct{}) {
	defer c.Close()
	seed := rand.NewChaCha8([32]byte(bytes.Repeat([]byte{byte(rand.Int())}, 32)))
	out, in := make([]byte, 512), make([]byte, 512)
	for {
		_, _ = seed.Read(out)
		_, err := c.Write(out)
		if err == nil {
			_, err = io.ReadFull(c, in)
		}
		switch {
		case err != nil:
			g.note(&g.closed)
			return
		case !bytes.Equal(out, in):
			g.note(&g.corrupt)
			return
		}
		g.mu.Lock()
		g.blocks++
		g.mu.Unlock()
		if !g.sleep(c, pause, stop) {
			return
		}
	}
}

// sleep waits for the next block, and sees a connection that is closed meanwhile at once.
func (g *crowd) sleep(c net.Conn, pause time.Duration, stop <-chan struct{}) bool {
	select {
	case <-stop:
		g.note(&g.kept)
		return false
	default:
	}
	_ = c.SetReadDeadline(time.Now().Add(pause))
	var b [1]byte
	n, err := c.Read(b[:])
	_ = c.SetReadDeadline(time.Time{})
	if name, _ := outcome(err); n == 0 && name == "timeout" {
		return true
	}
	if n > 0 {
		g.note(&g.corrupt)
	} else {
		g.note(&g.closed)
	}
	return false
}

func (g *crowd) note(what *int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	*what++
	if what == &g.closed {
		g.last = time.Now()
		if g.first.IsZero() {
			g.first = g.last
		}
	}
}

func (g *crowd) report(name string, into map[string]float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	into["kept_"+name], into["closed_"+name], into["corrupt_"+name] = float64(g.kept), float64(g.closed), float64(g.corrupt)
	into["blocks_"+name] = float64(g.blocks)
	if !g.first.IsZero() {
		into["first_ms_"+name], into["last_ms_"+name] = float64(g.first.UnixMilli()), float64(g.last.UnixMilli())
	}
}
