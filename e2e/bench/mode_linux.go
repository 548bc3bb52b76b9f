package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// handNothingBack is an experimental setting, and has no effect where those are not active.
const handNothingBack = "filter: {permanentVerdicts: off}\n"

// policyText permits everything. Only the relay column speaks of permanent verdicts: they are on
// unless somebody says otherwise.
func policyText(mode string, known bool) string {
	if mode == modeRelay && known {
		return "version: 1\ncore: {releaseLevel: experimental}\n" + handNothingBack
	}
	return "version: 1\n"
}

// modes are the columns to measure. A gatun that hands nothing back has no column of that name.
func (b *bench) modes() ([]string, error) {
	b.back = b.handsBack()
	var modes []string
	for _, m := range b.o.modes {
		switch m {
		case modeUp, modeRelay, modeRun:
		default:
			return nil, fmt.Errorf("no mode is called %q: %s, %s or %s", m, modeUp, modeRelay, modeRun)
		}
		if m == modeUp && !b.back {
			b.note("this gatun hands nothing back: `up` is measured as %s", modeRelay)
			m = modeRelay
		}
		if !slices.Contains(modes, m) {
			modes = append(modes, m)
		}
	}
	return modes, nil
}

// handsBack says whether this gatun has the setting: one that does not refuses any value but the
// default.
func (b *bench) handsBack() bool {
	file := filepath.Join(b.dir, "probe.yaml")
	if os.WriteFile(file, []byte("version: 1\n"+handNothingBack), 0o644) != nil {
		return false
	}
	return exec.Command(b.bins.Gatun, "check", file).Run() == nil
}

// lab builds a lab for measuring: no counters on the router, cubic everywhere.
func (b *bench) lab() (*lab.Lab, error) {
	dir, err := os.MkdirTemp(b.dir, "lab-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	l, err := lab.New(lab.Options{Bins: b.bins, Dir: dir, NoCount: true})
	if err != nil {
		return nil, err
	}
	if b.o.profile != "" {
		file := b.profileFile()
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, lab.Nobody, lab.Nobody)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.GatunEnv = []string{"GATUN_CPUPROFILE=" + file}
	}
	for _, ns := range []lab.Namespace{l.Host, l.Twin, l.Router, l.Server} {
		if _, err := ns.Output("sh", "-c", "grep -qw cubic /proc/sys/net/ipv4/tcp_available_congestion_control && echo cubic > /proc/sys/net/ipv4/tcp_congestion_control || true"); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// begin starts gatun in a mode.
func (b *bench) begin(l *lab.Lab, mode string) (*lab.Gatun, error) {
	file, err := b.policy(l, mode)
	if err != nil {
		return nil, err
	}
	if mode == modeRun {
		return l.Run(file, "--events", "") // the stories' file of events is not part of the work
	}
	return l.Up(file)
}

func (b *bench) policy(l *lab.Lab, mode string) (string, error) {
	file := filepath.Join(l.Dir, "policy.yaml")
	return file, os.WriteFile(file, []byte(policyText(mode, b.back)), 0o644)
}

// checkMode compares what `gatun flows` says of one connection and one datagram flow with what
// the mode claims.
func (b *bench) checkMode(l *lab.Lab, g *lab.Gatun, mode string) error {
	if mode == modeRun {
		return nil
	}
	for _, kind := range []string{"rtt-tcp", "rtt-udp"} {
		if _, err := g.Program(context.Background(), "load", "-for", "100ms", kind, lab.Second4); err != nil {
			return err
		}
	}
	flows, err := g.Flows()
	if err != nil {
		return err
	}
	for _, f := range flows {
		if !strings.HasPrefix(f.Field("remote"), lab.Second4) {
			continue
		}
		if back := f.Field("handed_back") == "true"; back != (mode == modeUp) {
			b.note("%s: `gatun flows` says handed_back %v of a %s flow", mode, back, f.Field("proto"))
		}
	}
	return nil
}

// machine says where figures come from.
type machine struct {
	Date   string `json:"date"`
	CPUs   int    `json:"cpus"`
	Model  string `json:"model"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{Date: time.Now().Format(time.DateOnly), CPUs: runtime.NumCPU(), Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(b), "model name")
		line, _, _ := strings.Cut(rest, "\n")
		m.Model = strings.Trim(line, "\t :")
	}
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%s: %d vCPU (%s) shared by client, gatun and server, Linux %s, %s", m.Date, m.CPUs, m.Model, m.Kernel, m.Go)
}

func (b *bench) profileFile() string { return filepath.Join(b.dir, "cpu") }

// keepProfile ends gatun, keeps its profile and prints what took most. It does nothing where no
// profile is wanted.
func (b *bench) keepProfile(g *lab.Gatun, mode string) error {
	if b.o.profile == "" {
		return nil
	}
	if _, err := g.Down(); err != nil {
		return err
	}
	data, err := os.ReadFile(b.profileFile())
	if err != nil {
		return err
	}
	kept := filepath.Join(os.TempDir(), "gatun-cpu-"+mode+"-"+b.o.profile+".pprof")
	if err := os.WriteFile(kept, data, 0o644); err != nil {
		return err
	}
	for _, order := range []string{"-flat", "-cum"} {
		// Time in the kernel is shown where it was called from.
		out, err := exec.Command("go", "tool", "pprof", "-top", order, "-hide=[Ss]yscall", "-nodecount=15", kept).CombinedOutput()
		if err != nil {
			return fmt.Errorf("go tool pprof: %w: %s", err, out)
		}
		fmt.Fprintf(os.Stderr, "%s %s (%s)\n%s\n", kept, order, mode, out)
	}
	return nil
}
