package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gatun/e2e/lab"
)

// proveMemory holds idle TCP flows, then (socket, peer) pairs, and looks at gatun's memory before,
// with them, and after they are gone, while another program goes on connecting: once with flows
// that the kernel carries, and once with flows that are relayed.
func proveMemory(b *bench) error {
	return errors.Join(
		b.memory("handed back", "version: 1\n", 4, 4),
		b.memory("relayed", relayed, 44, 8),
	)
}

// memory is one of the two; the limits are KiB per flow and per pair.
func (b *bench) memory(how, text string, perFlow, perPair float64) (err error) {
	l, err := b.lab(lab.Options{NoCount: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	g, err := started(l, "up", text)
	if err != nil {
		return err
	}
	if _, err := g.Program(context.Background(), "load", "-workers", "16", "-for", "3s", "conns", lab.Server4); err != nil {
		return err
	}
	before, err := steadyMemory(g.Process.PID)
	if err != nil {
		return err
	}
	b.note(how+": memory at the start", mib(before))
	other := make(chan lab.Result, 1)
	stop, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { other <- keepConnecting(stop, g) }()

	flows := b.size(18000, 1500)
	if err := b.held(l, g, before, how+" idle TCP flow", flows, perFlow, "held",
		"hold", "-n", strconv.Itoa(flows), lab.Server4+":7"); err != nil {
		return err
	}
	peers := b.size(782, 40)
	if err := b.held(l, g, before, how+" (socket, peer) pair", 64*peers, perPair, "answered",
		"pairs", "-peers", strconv.Itoa(peers), "198.18.0.1:6000"); err != nil {
		return err
	}
	if err := b.givenBack(g, before, how); err != nil {
		return err
	}
	cancel()
	o := <-other
	b.atMost(how+": failures of another program meanwhile", o.Extra["failed"], 0, fmt.Sprintf("of %.0f connects %s", o.Extra["done"], o.Error))
	return nil
}

// keepConnecting connects ten times a second until the context ends.
func keepConnecting(ctx context.Context, g *lab.Gatun) lab.Result {
	total := lab.Result{Extra: map[string]float64{}}
	for ctx.Err() == nil {
		r, err := g.Program(context.Background(), "tcp", "-timeout", "10s", "-say", "x", lab.Second4+":7")
		total.Extra["done"]++
		if err != nil || r.Result != "connected" {
			total.Extra["failed"]++
			total.Error = fmt.Sprint(r.Result, " ", r.Error, " ", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return total
}

// held runs a program that holds n things, and prints what each costs; the limit is in KiB.
func (b *bench) held(l *lab.Lab, g *lab.Gatun, before int64, what string, n int, limit float64, key string, command ...string) error {
	p, err := l.Start(l.Host, lab.Spec{User: lab.Nobody, Pipe: true}, append([]string{l.Bins.Peer}, command...)...)
	if err != nil {
		return err
	}
	var r lab.Result
	if err := json.NewDecoder(p.Stdout).Decode(&r); err != nil {
		return fmt.Errorf("%v: %w", command, err)
	}
	b.atLeast(what+": held", r.Extra[key], float64(n)*0.999, fmt.Sprintf("of %d", n))
	time.Sleep(2 * time.Second) // buffers of the last ones go back
	with, err := lab.Memory(g.Process.PID)
	if err != nil {
		return err
	}
	files, err := lab.OpenFiles(g.Process.PID)
	if err != nil {
		return err
	}
	b.note(what+": memory with all of them", mib(with)+fmt.Sprintf(", %d files", files))
	if b.small {
		limit *= 2 // what is paid once is spread over few
	}
	b.atMost("memory per "+what, float64(with-before)/float64(n)/1024, limit, "KiB")
	p.Kill()
	return nil
}

// steadyMemory is the memory of a process that has come to rest: what only its start needed it gives back, and
// for a moment too much of it.
func steadyMemory(pid int) (int64, error) {
	last := int64(0)
	for range 15 {
		now, err := lab.Memory(pid)
		if err != nil || max(now-last, last-now) < last/50 {
			return now, err
		}
		last = now
		time.Sleep(2 * time.Second)
	}
	return last, nil
}

// givenBack waits and compares the memory with that of the start.
func (b *bench) givenBack(g *lab.Gatun, before int64, how string) error {
	wait := time.Duration(b.size(60, 15)) * time.Second
	time.Sleep(wait)
	after, err := lab.Memory(g.Process.PID)
	if err != nil {
		return err
	}
	ratio := 1.2
	if b.small {
		ratio = 1.3 // seen: 0.97; the rest is for a busy machine
	}
	files, err := lab.OpenFiles(g.Process.PID)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("%s: files open %s after the last", how, wait), strconv.Itoa(files))
	b.atMost(fmt.Sprintf("%s: memory %s after the last", how, wait), float64(after)/float64(before), ratio, "x of the start ("+mib(after)+")")
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// proveClose puts `Connection: close` requests on gatun without a pause: no slice of the time may
// be much slower than the others, and no request may fail.
func proveClose(b *bench) (err error) {
	for _, c := range []struct{ how, mode, text string }{
		{"handed back", "up", "version: 1\n"}, {"relayed", "up", relayed}, {"run", "run", "version: 1\n"},
	} {
		l, err := b.lab(lab.Options{NoCount: true})
		if err != nil {
			return err
		}
		g, err := started(l, c.mode, c.text)
		if err == nil {
			err = closeLoad(b, g, c.how)
		}
		if err := errors.Join(err, l.Close()); err != nil {
			return err
		}
	}
	return nil
}

func closeLoad(b *bench, g *lab.Gatun, how string) error {
	var rates []float64
	fails, worst, reason := 0.0, 0.0, ""
	for range b.size(12, 2) {
		r, err := g.Program(context.Background(), "load", "-workers", "32", "-for", "5s", "close", lab.Server4)
		if err != nil {
			return err
		}
		rates = append(rates, r.Extra["value"])
		fails, worst = fails+r.Extra["failed"], max(worst, r.Extra["max_us"])
		if r.Error != "" {
			reason = r.Error
		}
	}
	lowest := rates[0]
	for _, r := range rates {
		lowest = min(lowest, r)
	}
	b.note(how+": requests per second, median", fmt.Sprintf("%.0f", median(rates)))
	share := 0.5
	if b.small {
		share = 0.1 // two slices on a busy machine say only that nothing stands still
	}
	b.atLeast(how+": the slowest 5 s against the median", lowest/median(rates), share, "")
	b.atMost(how+": requests that failed", fails, 0, reason)
	b.atMost(how+": the longest request", worst/1e6, 3, "s")
	return nil
}
