// Command prove runs the heavy proofs: claims with figures that need thousands of flows, a minute
// of load, or a clean clone.
//
//	go run ./e2e/prove                # as root: all of them, in their full size
//	go run ./e2e/prove -small memory  # one, in the size that .ci/run uses
//
// It prints each figure beside its limit and ends with 1 if one is missed. It uses only the built
// binary and the lab; nobody imports it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// proof is one claim.
type proof struct {
	name, claim string
	run         func(*bench) error
}

func proofs() []proof {
	return []proof{
		{"startup", "`gatun run -- CMD` adds <= 40 ms to start-up", proveStartup},
		{"attribution", "the owner of a held flow is right >= 99.9 %, wrong 0", proveAttribution},
		{"stub", "the owner of a query to a resolver on loopback is the program that asked, >= 99.9 %, wrong 0", proveStub},
		{"memory", "idle flows cost little, and it is given back", proveMemory},
		{"close", "`Connection: close` load runs without a stall", proveClose},
		{"live", "a change of the policy closes exactly what it denies, at once", proveLive},
		{"ask", "thousands of flows wait for a person, and nobody else notices", proveAsk},
		{"hands", "foreign hands in random order: no packet of ordinary traffic leaks", proveHands},
		{"dns-table", "a table of queries is answered as unbound answers it", proveDNSTable},
		{"dns-peers", "every nameserver over every transport gives through gatun what it gives itself", proveDNSPeers},
		{"dns-clients", "other people's resolvers resolve through gatun, and are known by name", proveDNSClients},
		{"dns-hygiene", "a nameserver that means harm, and whoever forges its replies, poison nothing", proveDNSHygiene},
		{"dns-rebinding", "no public name leads into this machine or network, whatever the form", proveRebinding},
		{"dns-bypass", "every other way to resolve names is allowed, blocked or taken over as the settings say", proveBypass},
		{"dns-load", "dnsperf counts what gatun answers, beside unbound itself", proveDNSLoad},
		{"readme", "the README's commands work in a clean clone as uid 65534", proveReadme},
	}
}

// bench is the table on which a proof is made.
type bench struct {
	bins   lab.Binaries
	dir    string
	small  bool
	out    io.Writer
	missed []string
}

func main() {
	small := flag.Bool("small", false, "the size that .ci/run uses")
	flag.Parse()
	if err := run(os.Stdout, *small, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "prove:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, small bool, names []string) error {
	if os.Geteuid() != 0 {
		return lab.ErrNotRoot
	}
	dir, err := os.MkdirTemp("", "gatun-prove-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), lab.Sweep()); err != nil {
		return err
	}
	bins, err := lab.Build(dir)
	if err != nil {
		return err
	}
	return prove(&bench{bins: bins, dir: dir, small: small, out: out}, names)
}

// prove runs the named proofs, or all; it goes on after a failure.
func prove(b *bench, names []string) error {
	var errs []error
	found := 0
	for _, p := range proofs() {
		if !wanted(p.name, names) {
			continue
		}
		found++
		begin := time.Now()
		fmt.Fprintf(b.out, "== %s: %s\n", p.name, p.claim)
		b.missed = nil
		err := p.run(b)
		for _, m := range b.missed {
			errs = append(errs, fmt.Errorf("%s: %s", p.name, m))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		fmt.Fprintf(b.out, "   %s, %d missed, error %v\n", time.Since(begin).Round(time.Millisecond), len(b.missed), err)
	}
	if found == 0 {
		return fmt.Errorf("no proof is called %q", names)
	}
	return errors.Join(errs...)
}

func wanted(name string, names []string) bool {
	for _, n := range names {
		if n == name || strings.HasPrefix(name, n+"-") {
			return true
		}
	}
	return len(names) == 0
}

// atMost prints a figure and notes it if it is above the limit.
func (b *bench) atMost(what string, have, limit float64, unit string) {
	b.figure(what, fmt.Sprintf("%.4g %s (limit %.4g)", have, unit, limit), have <= limit)
}

// atLeast prints a figure and notes it if it is below the limit.
func (b *bench) atLeast(what string, have, limit float64, unit string) {
	b.figure(what, fmt.Sprintf("%.4g %s (at least %.4g)", have, unit, limit), have >= limit)
}

// note prints a figure that has no limit.
func (b *bench) note(what, text string) { b.figure(what, text, true) }

func (b *bench) figure(what, text string, ok bool) {
	mark := "  "
	if !ok {
		mark = "!!"
		b.missed = append(b.missed, what+": "+text)
	}
	fmt.Fprintf(b.out, "%s %-52s %s\n", mark, what, text)
}

// size is n in full, or the small size.
func (b *bench) size(full, small int) int {
	if b.small {
		return small
	}
	return full
}

// lab builds a lab in a folder of its own.
func (b *bench) lab(opt lab.Options) (*lab.Lab, error) {
	dir, err := os.MkdirTemp(b.dir, "lab-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	opt.Bins, opt.Dir = b.bins, dir
	return lab.New(opt)
}

// policy writes a configuration file.
func policy(l *lab.Lab, text string) (string, error) {
	file := filepath.Join(l.Dir, "policy.yaml")
	return file, os.WriteFile(file, []byte(text), 0o644)
}

// relayed makes every flow go through userspace; the setting has no effect at other levels.
const relayed = "version: 1\ncore: {releaseLevel: experimental}\nfilter: {permanentVerdicts: off}\n"

// started brings gatun up (or a run of it) in a lab.
func started(l *lab.Lab, mode, text string) (*lab.Gatun, error) {
	file, err := policy(l, text)
	if err != nil {
		return nil, err
	}
	if mode == "run" {
		return l.Run(file)
	}
	return l.Up(file)
}
