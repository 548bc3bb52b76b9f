package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"gatun/e2e/lab"
)

const permitAll = "version: 1\nfilter: {defaultAction: permit}\n"

// proveLive changes the policy under live connections: exactly those whose verdict changed are
// closed, at once, and the others lose no byte.
func proveLive(b *bench) (err error) {
	l, err := b.lab(lab.Options{NoCount: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	g, err := started(l, "up", permitAll)
	if err != nil {
		return err
	}
	keep, cut := b.size(900, 180), b.size(100, 20)
	crowd, err := l.Start(l.Host, lab.Spec{User: lab.Nobody, Pipe: true}, l.Bins.Peer, "crowd",
		fmt.Sprintf("%d=%s:7,%d=%s:7", keep, lab.Server4, cut, lab.Second4))
	if err != nil {
		return err
	}
	out := json.NewDecoder(crowd.Stdout)
	var ready, end lab.Result
	if err := out.Decode(&ready); err != nil || ready.Result != "talking" {
		return fmt.Errorf("crowd: %+v %w", ready, err)
	}
	edited, err := editTwice(l, g)
	if err != nil {
		return err
	}
	if err := crowd.Stdin.Close(); err != nil {
		return err
	}
	if err := out.Decode(&end); err != nil {
		return err
	}
	b.liveFigures(end.Extra, edited, keep, cut)
	return nil
}

// editTwice puts the identical file in place, then one that denies a part, and returns when.
func editTwice(l *lab.Lab, g *lab.Gatun) (edited time.Time, err error) {
	file, err := policy(l, permitAll)
	if err != nil {
		return edited, err
	}
	if err := replace(file, permitAll); err != nil {
		return edited, err
	}
	if _, err := g.Client("reload"); err != nil {
		return edited, err
	}
	time.Sleep(time.Second)
	edited = time.Now()
	err = replace(file, "version: 1\nfilter: {defaultAction: permit, endpoints: [\"- "+lab.Second4+"\"]}\n")
	time.Sleep(3 * time.Second)
	return edited, err
}

func (b *bench) liveFigures(x map[string]float64, edited time.Time, keep, cut int) {
	begin := float64(edited.UnixMilli())
	b.exactly("connections that the edit denies: closed", x["closed_1"], float64(cut))
	b.exactly("other connections: kept", x["kept_0"], float64(keep))
	b.exactly("connections with a wrong byte", x["corrupt_0"]+x["corrupt_1"], 0)
	b.note("blocks compared", fmt.Sprintf("%.0f", x["blocks_0"]+x["blocks_1"]))
	b.atLeast("the identical file closed nobody: first close after it", x["first_ms_1"]-begin, 0, "ms after the edit")
	b.atMost("from the edit to the last close", x["last_ms_1"]-begin, float64(b.size(200, 3000)), "ms")
}

// replace writes a file as editors do: beside it, then renamed over it.
func replace(file, text string) error {
	next := filepath.Join(filepath.Dir(file), ".next")
	return errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, file))
}

// exactly prints a figure and notes it if it is another one.
func (b *bench) exactly(what string, have, want float64) {
	b.figure(what, fmt.Sprintf("%.0f (want %.0f)", have, want), have == want)
}

// proveAsk holds thousands of flows for a person while another program goes on, and answers late.
func proveAsk(b *bench) (err error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	g, err := started(l, "up", "version: 1\nfilter: {defaultAction: permit, askTimeout: 120s, endpoints: [\"? "+lab.Second4+"\"]}\n")
	if err != nil {
		return err
	}
	if err := b.lateAnswer(l, g); err != nil {
		return err
	}
	return b.heldByThousands(l, g)
}

// lateAnswer lets a connect with a time-out of 30 s wait 8 s for the answer.
func (b *bench) lateAnswer(l *lab.Lab, g *lab.Gatun) error {
	if err := l.ResetCounters(); err != nil {
		return err
	}
	connected := make(chan lab.Result, 1)
	go func() {
		r, err := g.Program(context.Background(), "tcp", "-timeout", "30s", "-say", "hello", lab.Second4+":7")
		r.Error += fmt.Sprint(err)
		connected <- r
	}()
	id, err := waitPrompt(g, 1)
	if err != nil {
		return err
	}
	time.Sleep(8 * time.Second)
	before, err := l.Count(lab.Match{Dst: netip.MustParseAddr(lab.Second4)})
	if err != nil {
		return err
	}
	b.exactly("packets before the answer", float64(before), 0)
	if _, err := g.Client("prompt", "allow", id, "--for", "once"); err != nil {
		return err
	}
	return b.oneHandshake(g, <-connected)
}

// oneHandshake looks at the connect that waited: it succeeded, and all its SYNs were one flow.
func (b *bench) oneHandshake(g *lab.Gatun, r lab.Result) error {
	b.figure("a connect answered after 8 s", fmt.Sprintf("%s in %.0f ms %s", r.Result, r.MS, r.Error), r.Result == "connected" && r.MS > 8000 && r.MS < 9500)
	flows, err := g.Flows()
	if err != nil {
		return err
	}
	n := 0
	for _, f := range flows {
		if f.Match(map[string]string{"remote": lab.Second4 + ":7"}) {
			n++
		}
	}
	b.exactly("flows made of its retransmitted SYNs", float64(n), 1)
	return nil
}

// heldByThousands compares another program's connects while nobody and while thousands wait.
func (b *bench) heldByThousands(l *lab.Lab, g *lab.Gatun) error {
	n := b.size(5000, 600)
	free, err := b.otherProgram(g)
	if err != nil {
		return err
	}
	p, err := l.Start(l.Host, lab.Spec{User: lab.Nobody, Pipe: true}, l.Bins.Peer, "hold", "-n", fmt.Sprint(n), "-workers", fmt.Sprint(n), "-timeout", "100s", lab.Second4+":7")
	if err != nil {
		return err
	}
	id, err := waitPrompt(g, n)
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // the burst itself is over
	held, err := b.otherProgram(g)
	if err != nil {
		return err
	}
	b.exactly("failed connects of the other program", held.Extra["failed"], 0)
	b.atMost(fmt.Sprintf("p99 of its connects while %d flows wait", n), held.Extra["p99_us"]/free.Extra["p99_us"], float64(b.size(2, 10)),
		fmt.Sprintf("x of %.0f us", free.Extra["p99_us"]))
	return b.answered(g, p, id, n)
}

// answered lets them all go.
func (b *bench) answered(g *lab.Gatun, p *lab.Process, id string, n int) error {
	if _, err := g.Client("prompt", "allow", id, "--for", "10m"); err != nil {
		return err
	}
	var r lab.Result
	if err := json.NewDecoder(p.Stdout).Decode(&r); err != nil {
		return err
	}
	b.exactly("of them connected after the answer", r.Extra["held"], float64(n))
	if c, ok := p.Stdin.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (b *bench) otherProgram(g *lab.Gatun) (lab.Result, error) {
	return g.Program(context.Background(), "load", "-workers", "2", "-for", fmt.Sprintf("%ds", b.size(10, 4)), "conns", lab.Server4)
}

// waitPrompt waits until one prompt holds that many flows, and returns its ID.
func waitPrompt(g *lab.Gatun, flows int) (id string, err error) {
	err = lab.Wait(30*time.Second, fmt.Sprintf("%d flows wait", flows), func() (bool, error) {
		out, err := g.Client("prompt", "list", "--json")
		var list struct {
			Prompts []struct {
				ID    string
				Flows int
			}
		}
		if err == nil {
			err = json.Unmarshal(out, &list)
		}
		if err != nil || len(list.Prompts) != 1 {
			return false, err
		}
		id = list.Prompts[0].ID
		return list.Prompts[0].Flows >= flows, nil
	})
	return id, err
}
