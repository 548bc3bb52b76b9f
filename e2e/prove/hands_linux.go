package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"gatun/e2e/lab"
)

// proveHands pulls at gatun's parts in random order while a program goes on trying an address
// that is blocked: the router must not see one packet of it.
func proveHands(b *bench) (err error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	g, err := started(l, "up", "version: 1\nfilter:\n  endpoints:\n    - \"- "+lab.Second4+"\"\n")
	if err != nil {
		return err
	}
	control, err := l.Peer(context.Background(), l.Twin, "tcp", lab.Second4+":7")
	if err != nil || control.Result != "connected" {
		return fmt.Errorf("positive control: %+v %w", control, err)
	}
	if err := l.ResetCounters(); err != nil {
		return err
	}
	pulls := b.size(50, 8)
	length := time.Duration(pulls)*400*time.Millisecond + 2*time.Second
	load, err := l.Start(l.Host, lab.Spec{User: lab.Nobody}, l.Bins.Peer, "load", "-workers", "2", "-for", length.String(), "conns", lab.Second4)
	if err != nil {
		return err
	}
	hands := [][]string{
		{"ip", "link", "set", "gatun0", "down"}, {"ip", "rule", "flush"}, {"ip", "-6", "rule", "flush"},
		{"nft", "flush", "ruleset"}, {"nft", "delete", "table", "inet", "gatun"},
	}
	for range pulls {
		hand := hands[rand.IntN(len(hands))]
		_, _ = l.Host.Output(hand...) // the table may be gone already
		time.Sleep(400 * time.Millisecond)
	}
	<-load.Done()
	n, err := l.Count(lab.Match{Dst: netip.MustParseAddr(lab.Second4)})
	if err != nil {
		return err
	}
	b.atMost(fmt.Sprintf("packets at the router after %d pulls", pulls), float64(n), 0, "packets")
	var healed lab.Result
	begin := time.Now()
	err = lab.Wait(30*time.Second, "gatun heals", func() (bool, error) {
		var err error
		healed, err = g.Program(context.Background(), "tcp", "-timeout", "2s", lab.Server4+":7")
		return healed.Result == "connected", err
	})
	b.atMost("whole again after the last pull", time.Since(begin).Seconds(), float64(b.size(15, 150))/10, "s")
	return err
}
