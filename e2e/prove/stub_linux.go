package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

const dnsmasq = "/usr/sbin/dnsmasq"

// proveStub lets five binaries, eight at a time and in random order, ask a real resolver on loopback,
// each with a socket of its own that it closes at once. The truth is what each says of itself, and
// the resolver's own log.
func proveStub(b *bench) (err error) {
	if _, err := os.Stat(dnsmasq); err != nil {
		return fmt.Errorf("needs dnsmasq as the resolver on loopback: %w", err)
	}
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	log := filepath.Join(l.Dir, "stub.log")
	if err := startStub(l, log); err != nil {
		return err
	}
	if r, err := l.Peer(context.Background(), l.Host, "dns", "control.example.org", "127.0.0.53"); err != nil || r.Result != "NOERROR" {
		return fmt.Errorf("the control, without gatun: %+v %w", r, err)
	}
	g, err := started(l, "up", "version: 1\n")
	if err != nil {
		return err
	}
	events, err := watch(l, g)
	if err != nil {
		return err
	}
	bins, err := fiveBinaries(l)
	if err != nil {
		return err
	}
	asked, err := flock(l, g, "udp", b.size(2000, 200), bins, func(i int) []string {
		return []string{"dns", fmt.Sprintf("s%d.example.org", i), []string{"127.0.0.53", "::1", "127.0.0.1"}[i%3]}
	})
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // the last events
	flows, err := decided(events)
	if err != nil {
		return err
	}
	s := judge(asked, flows)
	least := 0.999
	if b.small {
		least = 0.98 // of so few, one is more than a thousandth
	}
	b.atLeast("queries to a resolver on loopback, owner right", s.share(s.right), least, fmt.Sprintf("of %d", s.all))
	b.note("unidentified, or no event", fmt.Sprintf("%d, %d", s.unknown, s.missing))
	b.atMost("owner wrong", float64(s.wrong), 0, "queries")
	for _, c := range causes(s) {
		b.note("owner_cause", c)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	b.atLeast("control: queries that reached the resolver without gatun", float64(strings.Count(string(text), "] control.example.org ")), 1, "queries")
	b.atMost("queries that reached the resolver", float64(strings.Count(string(text), ": query[")-strings.Count(string(text), "] control.example.org ")), 0, "queries")
	return nil
}

func startStub(l *lab.Lab, log string) error {
	_, err := l.Start(l.Host, lab.Spec{Log: log}, dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--listen-address=127.0.0.53",
		"--listen-address=127.0.0.1", "--listen-address=::1", "--bind-interfaces", "--no-resolv", "--no-hosts", "--server="+lab.Resolver4,
		"--log-queries", "--log-facility=-", "--pid-file=")
	if err != nil {
		return err
	}
	return lab.Wait(30*time.Second, "dnsmasq listens", func() (bool, error) {
		out, err := l.Host.Output("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6")
		return strings.Count(out, " 0A ") == 3, err
	})
}
