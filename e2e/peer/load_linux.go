package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func intFlag(p *int, name, usage string) func(*flag.FlagSet) {
	return func(fs *flag.FlagSet) { fs.IntVar(p, name, *p, usage) }
}

// load is one kind of work done for a while by several workers.
type load struct {
	workers int
	length  time.Duration
	addr    string
	size    int
	total   atomic.Int64 // bytes or operations
	fails   atomic.Int64
	dialled atomic.Int64 // sockets
	packets atomic.Int64 // at least so many, where it is known
	mu      sync.Mutex
	took    []time.Duration
	reason  string
}

// loadCommand does one kind of work and reports how much per second: "load KIND ADDR". up and
// down are bytes; conns, rtt-tcp, rtt-udp, flows, close, keep, dns, dns-cached operations;
// pps the datagrams that arrived at the sink; lossless those that arrived at the highest rate at
// which they all did.
func loadCommand(args []string) (result, error) {
	l := &load{workers: 1, length: 2 * time.Second, size: 64}
	rest, err := flags("load", args, 2, func(fs *flag.FlagSet) {
		fs.IntVar(&l.workers, "workers", l.workers, "at a time")
		fs.DurationVar(&l.length, "for", l.length, "how long")
		fs.IntVar(&l.size, "size", l.size, "bytes of a datagram")
	})
	if err != nil {
		return result{}, err
	}
	l.addr = rest[1]
	if rest[0] == "lossless" {
		return l.lossless()
	}
	kinds := map[string]func(context.Context, int) error{
		"up": l.up, "down": l.down, "conns": l.conns, "rtt-tcp": l.rttTCP, "rtt-udp": l.rttUDP, "flows": l.flows,
		"close": l.httpClose, "keep": l.httpKeep, "dns": l.dnsDistinct, "dns-cached": l.dnsCached, "pps": l.datagrams,
	}
	work := kinds[rest[0]]
	if work == nil {
		return result{}, fmt.Errorf("no load %q", rest[0])
	}
	before, err := l.sinkCount(rest[0])
	if err != nil {
		return failed(err), nil
	}
	took := l.run(work)
	after, err := l.sinkCount(rest[0])
	if err != nil {
		return failed(err), nil
	}
	if rest[0] == "pps" {
		l.total.Store(after - before)
	}
	l.packets.Store(l.total.Load())
	if rest[0] == "up" || rest[0] == "down" {
		l.packets.Store(l.total.Load() >> 16) // packets of the largest size
	}
	return l.result(took), nil
}

func (l *load) run(work func(context.Context, int) error) time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), l.length)
	defer cancel()
	begin := time.Now()
	var group sync.WaitGroup
	for i := range l.workers {
		group.Go(func() {
			if err := work(ctx, i); err != nil && ctx.Err() == nil {
				l.fail(err)
			}
		})
	}
	group.Wait()
	return time.Since(begin)
}

func (l *load) fail(err error) {
	l.fails.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reason = err.Error()
}

func (l *load) done(took time.Duration) {
	l.total.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, took)
}

// resent is how long an operation takes at least whose first packet was lost: TCP sends it again
// after a second.
const resent = 900 * time.Millisecond

func (l *load) result(took time.Duration) result {
	extra := map[string]float64{"value": float64(l.total.Load()) / took.Seconds(), "failed": float64(l.fails.Load()),
		"flows": float64(l.dialled.Load()), "packets": float64(l.packets.Load())}
	if n := len(l.took); n > 0 {
		sort.Slice(l.took, func(i, j int) bool { return l.took[i] < l.took[j] })
		extra["p50_us"] = float64(l.took[n/2].Nanoseconds()) / 1000
		extra["p99_us"] = float64(l.took[n*99/100].Nanoseconds()) / 1000
		extra["max_us"] = float64(l.took[n-1].Nanoseconds()) / 1000
		second := sort.Search(n, func(i int) bool { return l.took[i] >= resent })
		extra["slow"] = float64(n - second)
	}
	return result{Result: "done", Error: l.reason, Extra: extra}
}

func (l *load) up(ctx context.Context, _ int) error {
	return l.stream(ctx, portSink, func(c net.Conn, b []byte) (int, error) { return c.Write(b) })
}

func (l *load) down(ctx context.Context, _ int) error {
	return l.stream(ctx, portSource, func(c net.Conn, b []byte) (int, error) { return c.Read(b) })
}

func (l *load) stream(ctx context.Context, port int, step func(net.Conn, []byte) (int, error)) error {
	c, err := l.dial(ctx, "tcp", port)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	b := make([]byte, 256<<10)
	for ctx.Err() == nil {
		n, err := step(c, b)
		l.total.Add(int64(n))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *load) dial(ctx context.Context, network string, port int) (net.Conn, error) {
	return l.connect(ctx, network, net.JoinHostPort(l.addr, strconv.Itoa(port)))
}

func (l *load) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	l.dialled.Add(1)
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// conns: connect, one echo, close; a failure counts and the work goes on.
func (l *load) conns(ctx context.Context, _ int) error {
	return l.repeat(ctx, func() error {
		c, err := l.dial(ctx, "tcp", portEcho)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return echo(c, "x")
	})
}

func (l *load) flows(ctx context.Context, _ int) error {
	return l.repeat(ctx, func() error {
		c, err := l.dial(ctx, "udp", portEcho)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		return echo(c, "x")
	})
}

// repeat does op until the time is over. A dial that the end cuts short is no failure, and its
// deadline may pass a moment before the context notices.
func (l *load) repeat(ctx context.Context, op func() error) error {
	end, _ := ctx.Deadline()
	for time.Now().Before(end) {
		begin := time.Now()
		if err := op(); err != nil {
			if time.Now().Before(end) {
				l.fail(err)
			}
			continue
		}
		l.done(time.Since(begin))
	}
	return nil
}

func (l *load) rttTCP(ctx context.Context, _ int) error { return l.pingPong(ctx, "tcp") }
func (l *load) rttUDP(ctx context.Context, _ int) error { return l.pingPong(ctx, "udp") }

func (l *load) pingPong(ctx context.Context, network string) error {
	c, err := l.dial(ctx, network, portEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	return l.repeat(ctx, func() error {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		return echo(c, "x")
	})
}

func (l *load) httpClose(ctx context.Context, _ int) error {
	return l.http(ctx, &http.Transport{DisableKeepAlives: true, DialContext: l.connect})
}

func (l *load) httpKeep(ctx context.Context, _ int) error {
	return l.http(ctx, &http.Transport{DialContext: l.connect})
}

func (l *load) http(ctx context.Context, tr *http.Transport) error {
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	return l.repeat(ctx, func() error {
		resp, err := client.Get("http://" + net.JoinHostPort(l.addr, "80") + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	})
}

func (l *load) dnsDistinct(ctx context.Context, worker int) error {
	n := 0
	return l.queries(ctx, func() string {
		n++
		return fmt.Sprintf("n%d-%d-%d.example.org", os.Getpid(), worker, n)
	})
}

func (l *load) dnsCached(ctx context.Context, _ int) error {
	return l.queries(ctx, func() string { return "www.example.org" })
}

func (l *load) queries(ctx context.Context, name func() string) error {
	c, err := l.dial(ctx, "udp", 53)
	if err != nil {
		return err
	}
	defer c.Close()
	return l.repeat(ctx, func() error {
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		m, err := ask(c, name(), "A", false)
		if err == nil && len(m.Answers) == 0 {
			err = fmt.Errorf("no address in the answer: %v", m.RCode)
		}
		return err
	})
}

// datagrams sends unpaced to the sink; what arrived is asked of the sink afterwards.
func (l *load) datagrams(ctx context.Context, _ int) error {
	c, err := l.dial(ctx, "udp", portSink)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, l.size)
	for ctx.Err() == nil {
		for range 32 {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *load) sinkCount(kind string) (int64, error) {
	if kind != "pps" {
		return 0, nil
	}
	time.Sleep(200 * time.Millisecond) // what is still under way arrives
	c, err := l.dial(context.Background(), "tcp", portCount)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
