package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gatun/api"
	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/network"
	"gatun/network/state"
	"gatun/status"
	"gatun/tun/route"
	"gatun/tun/sandbox"
)

// runOptions are the flags of `gatun run`.
type runOptions struct {
	file, events string
	only         []string
	publish      []string
	failOnBlock  bool
	hostLoopback bool
	quiet        bool
	argv         []string
	talk         io.Writer
}

func runCommand() *cobra.Command {
	o := runOptions{}
	c := &cobra.Command{
		Use: "run [flags] -- CMD [ARG…]", Short: "Run one command behind the firewall, without root (Linux)",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("say which command to run: gatun run -- CMD")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			o.argv, o.talk = args, c.ErrOrStderr()
			code, err := runIn(c.Context(), o)
			if err == nil && code == 0 {
				return nil
			}
			return exitStatus{code, err}
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.file, "config", "c", "", "configuration file")
	f.StringVar(&o.events, "events", "", "write every event as one JSON object per line to this file")
	f.StringArrayVar(&o.only, "only", nil, "permit only what this rule matches, as in \"example.org TCP/443\" (may be repeated)")
	f.StringArrayVar(&o.publish, "publish", nil, "HOST-PORT:PORT opens a way to a port of the command from 127.0.0.1 (may be repeated)")
	f.BoolVar(&o.failOnBlock, "fail-on-block", false, "exit with 10 if the command succeeded but something was blocked")
	f.BoolVar(&o.hostLoopback, "host-loopback", false, "let the command reach this host's loopback as "+sandbox.GatewayV4().String()+" and "+sandbox.GatewayV6().String())
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no line per decision and no summary")
	return c
}

// runIn runs the command and returns its exit code, or 125 and why it never ran.
func runIn(ctx context.Context, o runOptions) (int, error) {
	level, err := zap.ParseAtomicLevel(firstOf(os.Getenv("GATUN_LOG"), "error"))
	if err != nil {
		return exitRunFailed, fmt.Errorf("GATUN_LOG: %w", err)
	}
	log, err := newLogger(level)
	if err != nil {
		return exitRunFailed, err
	}
	source := configSource(o.file)
	source.Data = config.OpenData("") // nothing is kept on disk
	policy, err := loadPolicy(source, o.only, dns.SystemOptions{Stub: dns.UseStub}, log)
	if err != nil {
		return exitRunFailed, err
	}
	publish, err := parsePublish(o.publish)
	if err != nil {
		return exitRunFailed, err
	}
	box, err := sandbox.Start(ctx, sandbox.Options{Argv: o.argv, Logger: log})
	if err != nil {
		return startFailure(err)
	}
	defer box.Close()
	r := &run{o: o, box: box, log: log, publish: publish}
	if r.engine, err = r.build(policy); err != nil {
		return exitRunFailed, err
	}
	return r.serve(ctx)
}

// startFailure tells "no such command" from a failure of ours.
func startFailure(err error) (int, error) {
	var exec *sandbox.ExecError
	if errors.As(err, &exec) {
		return exec.Code, err
	}
	return exitRunFailed, err
}

// run is the running `gatun run`.
type run struct {
	o       runOptions
	box     *sandbox.Box
	log     *zap.Logger
	engine  *engine
	publish []publication
}

func (r *run) build(o engineOptions) (*engine, error) {
	sockets, err := state.NewFromFD(r.box.DiagFD(), fmt.Sprintf("/proc/%d/net", r.box.SupervisorPID()))
	if err != nil {
		return nil, err
	}
	finder := attribution.New(attribution.Options{State: sockets, Self: os.Getpid(), Root: r.box.SupervisorPID(), Logger: r.log})
	if o.closings, err = state.AdoptClosings(r.box.Closings()); err != nil {
		return nil, err
	}
	o.mode, o.device, o.owners = "run", r.box.Device(), finder
	o.dialer = &route.Dialer{Own: r.ownPrefixes()}
	o.diverter, o.diverts = r.box.Diverter(o.dialer), func() bool { return true }
	o.local = func(a netip.Addr) bool { return a == sandbox.AddressV4() || a == sandbox.AddressV6() }
	o.netns = fmt.Sprint(r.box.NetNS())
	if r.o.hostLoopback {
		o.translate = toHostLoopback
	}
	return newEngine(o)
}

// ownPrefixes are never dialled: on the host they mean nothing, or something else.
func (r *run) ownPrefixes() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(sandbox.AddressV4(), 32), netip.PrefixFrom(sandbox.GatewayV4(), 32),
		netip.PrefixFrom(sandbox.AddressV6(), 128), netip.PrefixFrom(sandbox.GatewayV6(), 128),
	}
}

// toHostLoopback makes the gateway's addresses mean this host's loopback.
func toHostLoopback(a netip.Addr) netip.Addr {
	switch a {
	case sandbox.GatewayV4():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case sandbox.GatewayV6():
		return netip.IPv6Loopback()
	default:
		return a
	}
}

// serve runs the parts around the command, and returns the code to exit with.
func (r *run) serve(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	report, err := newReporter(r.o, r.engine.table)
	if err != nil {
		return exitRunFailed, err
	}
	g, ctx := errgroup.WithContext(ctx)
	r.engine.start(ctx, g)
	r.engine.fetch(ctx, g)
	for _, p := range r.publish {
		l, err := p.listen()
		if err != nil {
			return exitRunFailed, err
		}
		g.Go(func() error { return p.serve(ctx, l, r.box) })
	}
	if closeAPI, err := r.serveAPI(ctx, g); err != nil {
		r.log.Warn("no API for this run", zap.Error(err))
	} else {
		defer closeAPI()
	}
	relaySignals := r.box.CatchSignals()
	if err := r.box.Go(ctx); err != nil {
		return startFailure(err)
	}
	g.Go(func() error { return relaySignals(ctx) })
	code, err := r.box.Wait(ctx)
	cancel()
	if gerr := g.Wait(); err == nil && gerr != nil && !errors.Is(gerr, context.Canceled) {
		r.log.Error("the firewall failed while the command ran", zap.Error(gerr))
	}
	blocked := report.finish()
	if err != nil {
		return startFailure(err)
	}
	if code == 0 && blocked && r.o.failOnBlock {
		return exitBlocked, nil
	}
	return code, nil
}

// serveAPI offers the API of this run to its own user.
func (r *run) serveAPI(ctx context.Context, g *errgroup.Group) (closeAPI func(), err error) {
	dir, err := runtimeDir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("run-%d.sock", os.Getpid()))
	l, err := api.Listen(path)
	if err != nil {
		return nil, err
	}
	server := r.engine.serve(r)
	g.Go(func() error { return server.Serve(ctx, l) })
	return func() { _ = os.Remove(path) }, nil
}

// runtimeDir is a folder that only this user can enter.
func runtimeDir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	dir := filepath.Join(base, "gatun")
	if base == "" {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("gatun-%d", os.Geteuid()))
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// Status implements api.Daemon.
func (r *run) Status() api.Status {
	s := r.engine.status()
	s.Names = map[string]any{"device": sandbox.DeviceName}
	s.Worst = status.Worst(s.Modules).State.String()
	s.Notes = append(s.Notes, "unix sockets of the host can be reached: IP traffic is what is confined")
	return s
}

// Reload implements api.Daemon.
func (r *run) Reload(context.Context) error { return r.engine.reload() }

// Confirm implements api.Daemon: `run` changes nothing that could be rolled back.
func (r *run) Confirm() error { return errNoConfirm }

// Stop implements api.Daemon: it ends the command as a terminal would.
func (r *run) Stop() { _ = r.box.Signal(terminate) }

// reporter prints a line per decision and writes the events' file.
type reporter struct {
	o       runOptions
	watch   *network.Watcher
	talk    *bufio.Writer // to o.talk
	file    *os.File      // of --events, nil without
	lines   *bufio.Writer // to file
	encoder *json.Encoder // to lines
	started time.Time

	quit chan struct{}
	done sync.WaitGroup

	flow                    network.Report // that a line is made of
	flows, queries, blocked int
	failure                 error
}

func newReporter(o runOptions, t *network.Table) (*reporter, error) {
	r := &reporter{o: o, watch: t.Watch(0), talk: bufio.NewWriterSize(o.talk, 16<<10), started: time.Now(), quit: make(chan struct{})}
	if o.events != "" {
		f, err := os.OpenFile(o.events, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("--events: %w", err)
		}
		r.file, r.lines = f, bufio.NewWriterSize(f, 64<<10)
		r.encoder = json.NewEncoder(r.lines)
		r.encoder.SetEscapeHTML(false)
	}
	r.done.Go(r.loop)
	return r, nil
}

// linesWithin is how late a line may be: those of a busy program are written together.
const linesWithin = 5 * time.Millisecond

// loop takes events until finish. Those that come soon after another one wait for the pause between two
// writes, so that nobody is woken for each flow of a busy program; but what goes to --events says how a
// flow was when it happened.
func (r *reporter) loop() {
	events := r.watch.Events()
	var pause <-chan time.Time
	for {
		select {
		case e := <-events:
			r.event(e)
			if pause == nil {
				pause = time.After(linesWithin)
			}
			if r.file == nil {
				r.drain()
				events = nil
			}
		case <-pause:
			pause, events = nil, r.watch.Events()
			r.flush()
		case <-r.quit:
			r.drain()
			return
		}
	}
}

// drain writes what is there.
func (r *reporter) drain() {
	for range len(r.watch.Events()) {
		r.event(<-r.watch.Events())
	}
	r.flush()
}

func (r *reporter) event(e network.Event) {
	if r.file != nil && r.failure == nil {
		r.failure = r.encoder.Encode(e.Report())
	}
	if e.Link == nil || e.Type != network.EventDecided && e.Type != network.EventDNS {
		return
	}
	if e.Type == network.EventDNS {
		r.queries++
	} else {
		r.flows++
	}
	d := e.Link.Decision()
	if !d.Verdict.Permits() {
		r.blocked++
	}
	if !r.o.quiet && d.Verdict != network.RerouteToNameserver { // its queries have lines of their own
		r.flow = e.Link.Report()
		_, _ = r.talk.WriteString(line(&r.flow))
		_ = r.talk.WriteByte('\n')
	}
}

// flush writes the lines that wait.
func (r *reporter) flush() {
	if r.talk.Flush() != nil {
		r.talk.Reset(r.o.talk) // an error stays otherwise, and the next line may find room
	}
	if r.lines == nil {
		return
	}
	if err := r.lines.Flush(); r.failure == nil {
		r.failure = err
	}
}

// finish prints the summary and reports whether anything was blocked.
func (r *reporter) finish() (blocked bool) {
	close(r.quit)
	r.done.Wait()
	r.watch.Close()
	if r.file != nil {
		if err := errors.Join(r.failure, r.file.Close()); err != nil {
			_, _ = fmt.Fprintln(r.o.talk, "gatun: --events:", err)
		}
	}
	if !r.o.quiet {
		_, _ = fmt.Fprintf(r.o.talk, "gatun: %d flows, %d names, %d blocked in %s\n", r.flows, r.queries, r.blocked, elapsed(time.Since(r.started)))
		if n := r.watch.Lost(); n > 0 {
			_, _ = fmt.Fprintf(r.o.talk, "gatun: %d events came too fast to be printed\n", n)
		}
	}
	return r.blocked > 0
}
