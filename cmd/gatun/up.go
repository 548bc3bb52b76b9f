package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gatun/api"
	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/firewall/interception"
	"gatun/network/state"
	"gatun/profiles"
	"gatun/status"
	"gatun/tun"
	"gatun/tun/handback"
	"gatun/tun/route"
)

// errDown is the explicit act that ends `up`.
var errDown = errors.New("down")

// up is the running `gatun up`.
type up struct {
	policy  engineOptions
	places  *places
	log     *zap.Logger
	engine  *engine
	manager *route.Manager
	stop    context.CancelCauseFunc
	confirm *confirmation
	door    *door

	witnesses  *witnesses
	inbound    *inboundControl
	carrier    *carrier
	dialer     *route.Dialer
	diverter   *route.Diverter    // nil: netstack ends what is relayed
	redirect   *route.DNSListener // of port 53; nil: noRedirect says why
	noRedirect error
}

func upCommand(p *places) *cobra.Command {
	var file string
	var limit confirmTime
	c := &cobra.Command{
		Use: "up", Short: "Capture the whole machine (root; stays in the foreground)", Args: cobra.NoArgs,
		Long: "Capture the whole machine, until `gatun down` or a signal (root; stays in the foreground).\n" +
			"With --confirm everything is rolled back, and the exit code is 1, unless `gatun confirm` comes in time: for machines that you reach over the network only.",
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Geteuid() > 0 {
				return exitStatus{exitPermission, errors.New("up changes the machine's routes: run it as root (sudo gatun up), or use `gatun run -- CMD`, which needs no root")}
			}
			return bringUp(c.Context(), p, file, &confirmation{limit: time.Duration(limit), talk: c.ErrOrStderr()})
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file (default "+defaultConfig+")")
	c.Flags().Var(&limit, "confirm", "roll everything back unless gatun confirm comes within this time, 1s to 24h")
	_ = c.RegisterFlagCompletionFunc("confirm", completeConfirm) // the flag is there
	return c
}

// bringUp runs until it is told to stop. Only an order leaves the machine open: after any
// error the guard stays, and says so.
func bringUp(parent context.Context, p *places, named string, confirm *confirmation) error {
	outlive()
	source := configSource(named)
	source.Data = config.OpenData(p.stateDir())
	level := zap.NewAtomicLevel()
	log, err := newLogger(level)
	if err != nil {
		return err
	}
	policy, err := loadPolicy(source, nil, dns.SystemOptions{Stub: dns.AvoidStub, Own: ownNameserver}, log, route.DeviceName)
	if err != nil {
		return closedBy(parent, p, confirm, err)
	}
	policy.level = &level
	followLevel(&level, policy.cfg)
	u := &up{policy: policy, places: p, log: log, confirm: confirm}
	ctx, stop := context.WithCancelCause(parent)
	u.stop = stop
	defer u.stop(nil)
	u.obey(ctx)
	if err := u.run(ctx); err != nil && !errors.Is(err, errDown) {
		if u.manager != nil && u.manager.Status().State != route.Off {
			if confirm.open() {
				return confirm.rollBackAfter(parent, err, u.down)
			}
			log.Error("traffic stays closed; start gatun again, or open the machine with `gatun recover`", zap.Error(err))
		}
		return err
	}
	return nil
}

// closedBy handles a configuration that cannot be used: the machine is closed, not open with
// defaults (safety.md). Flows that are open already go on.
func closedBy(ctx context.Context, p *places, confirm *confirmation, cause error) error {
	m, err := route.New(route.Options{StateDir: p.stateDir(), Policy: route.Policy{UID: uint32(os.Geteuid()), MTU: tun.DefaultMTU, Inbound: route.InboundDropped}})
	if err != nil {
		return errors.Join(cause, err)
	}
	d, err := tun.Options{Name: route.DeviceName, Persist: true}.Open()
	if errors.Is(err, tun.ErrBusy) {
		return cause // another instance runs: nothing changes for it
	}
	if err != nil {
		return errors.Join(cause, err)
	}
	defer d.Close()
	confirm.begin(time.Now())
	err = m.Up(ctx)
	if errors.Is(err, route.ErrAlreadyRunning) {
		err = nil
	}
	if m.Status().State != route.Off && confirm.open() {
		return exitStatus{exitConfig, confirm.rollBackAfter(ctx, errors.Join(cause, err), func(ctx context.Context) error {
			return errors.Join(m.Down(ctx), handback.Recover(handback.Options{})) // a crash may have left both
		})}
	}
	if err != nil {
		return errors.Join(cause, err)
	}
	return exitStatus{exitConfig, fmt.Errorf("%w\nthe machine is closed until this is mended and `gatun up` runs, or `gatun recover` opens it", cause)}
}

func names(cfg *config.Config) route.Names {
	n := route.DefaultNames()
	if v := cfg.Int("core/mark"); v != 0 {
		n = n.WithMark(uint32(v))
	}
	if v := cfg.Int("core/table"); v != 0 {
		n = n.WithTable(v)
	}
	return n
}

// blocksLAN is what holds for everybody: the guard knows no programs.
func blocksLAN(s *profiles.Store) bool {
	all := s.For(attribution.Unidentified(""))
	return all.BlockLAN.Active && !all.Paused
}

func (u *up) run(ctx context.Context) (err error) {
	n := names(u.policy.cfg)
	if u.door, err = openDoor(u.places.socketPath()); err != nil {
		return err
	}
	defer u.door.close()
	u.openRedirect()
	defer u.closeRedirect()
	u.inbound = openInbound(n, u.log)
	defer u.inbound.close()
	u.dialer = &route.Dialer{Mark: n.Mark, BindSource: true}
	if u.diverter = openDiverter(n, u.dialer, u.log); u.diverter != nil {
		defer u.diverter.Close()
	}
	u.manager, err = route.New(route.Options{
		Names: n, StateDir: u.places.stateDir(), Logger: u.log, OnEvent: u.repaired, Undone: func() error { return u.carrier.close() },
		Policy: route.Policy{UID: uint32(os.Geteuid()), MTU: tun.DefaultMTU, BlockLAN: blocksLAN(u.policy.store), DNSPort: u.dnsPort(), DivertPort: u.diverter.Port(),
			Inbound: u.inbound.mode(), BlockInbound: blocksInbound(u.policy.store)},
	})
	if err != nil {
		return err
	}
	_, absent := net.InterfaceByName(n.Device) // nil: a crash has left it, with all else
	device, err := tun.Options{Name: n.Device, MTU: tun.DefaultMTU, Persist: true}.Open()
	if errors.Is(err, tun.ErrBusy) {
		return fmt.Errorf("%w: %w", route.ErrAlreadyRunning, err)
	}
	if err != nil {
		return err
	}
	defer func() {
		_ = device.Close()
		if absent != nil && err != nil && u.manager.Status().State == route.Off {
			err = errors.Join(err, u.carrier.close())
			removeDevice(n.Device)
		}
	}()
	if err := u.build(device, n); err != nil {
		return err
	}
	return u.serve(ctx)
}

// removeDevice takes away what this process has made, and nobody came to use: a device that is opened to be gone
// with its file is gone.
func removeDevice(name string) {
	if d, err := (tun.Options{Name: name}).Open(); err == nil {
		_ = d.Close()
	}
}

func (u *up) build(device tun.Device, n route.Names) error {
	iface, err := net.InterfaceByName(n.Device)
	if err != nil {
		return err
	}
	sockets, err := state.Open(state.Options{Device: uint32(iface.Index)})
	if err != nil {
		return err
	}
	u.witnesses = &witnesses{local: u.manager.IsLocal, log: u.log, redirect: u.redirect}
	finder := attribution.New(attribution.Options{State: sockets, Senders: u.witnesses, Self: os.Getpid(), Logger: u.log})
	closings, err := state.OpenClosings()
	if err != nil {
		return err
	}
	o := u.policy
	o.mode, o.device, o.owners, o.closings, o.local = "up", device, finder, closings, u.manager.IsLocal
	o.dialer, o.diverter, o.diverts = u.dialer, u.diverter, u.manager.Diverts
	o.namesForAll, o.redirect = u.namesForAll, u.redirect
	o.netns, o.listCache = currentNetNS(), filepath.Join(u.places.stateDir(), "lists")
	u.carrier = openCarrier(o.cfg, n, func() *interception.Gate { return u.engine.gate }, u.inbound.closed, u.log)
	o.kernel = u.carrier.kernel()
	o.ahead = u.carrier.permitAhead(u.witnesses, finder, n, u.log)
	o.inForce = func() {
		u.manager.SetBlockLAN(blocksLAN(o.store))
		u.manager.SetDNSPort(u.dnsPort())
		u.manager.SetBlockInbound(blocksInbound(o.store))
	}
	if u.engine, err = newEngine(o); err != nil {
		return err
	}
	u.inbound.attach(u.engine)
	return nil
}

// ownNameserver names addresses that lead back to us; in `up` the nameserver has none of its
// own, it answers for whatever server was asked.
func ownNameserver(a netip.Addr) bool { return a.IsUnspecified() }

// serve captures, serves the API and watches the file until an order or a failure ends it.
// What can fail comes before the capture: then the machine is still as it was.
func (u *up) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	u.engine.start(ctx, g) // somebody must read the device before routes lead into it
	u.inbound.start(ctx, g)
	g.Go(func() error { return u.witnesses.Run(ctx) })
	u.confirm.begin(time.Now())
	g.Go(func() error { return u.confirm.wait(ctx) }) // a capture that hangs is not confirmed either
	g.Go(func() error { return u.carrier.run(ctx) })
	if err := u.manager.Up(ctx); err != nil {
		return u.failed(ctx, err, g.Wait)
	}
	g.Go(func() error { u.engine.gate.Adopt(ctx, u.carrier.adopted); return nil })
	u.engine.fetch(ctx, g)
	server := u.engine.serve(u)
	server.Refresh = func() { u.carrier.refresh(u.engine.gate) }
	g.Go(u.door.serve(ctx, server))
	g.Go(func() error { return u.manager.Run(ctx) })
	g.Go(func() error { return u.watch(ctx) })
	g.Go(func() error { return u.hangups(ctx) })
	notifyReady()
	if s, note := u.confirm.status(time.Now()); s != nil {
		u.log.Warn(note)
	}
	err := g.Wait()
	if errors.Is(err, errUnconfirmed) {
		notifyStopping()
		return rolledBack(err, u.down(context.WithoutCancel(ctx)))
	}
	if cause := context.Cause(ctx); errors.Is(cause, errDown) || errors.Is(err, errDown) {
		notifyStopping()
		return u.down(context.WithoutCancel(ctx))
	}
	return err
}

// down leaves the machine as it was. The routes go first: what the kernel carries then needs us no
// more, and goes before another instance may come up (see route.Options.Undone).
func (u *up) down(ctx context.Context) error { return u.manager.Down(ctx) }

// failed ends what was begun when the capture failed with err, or was called off.
func (u *up) failed(ctx context.Context, err error, wait func() error) error {
	ordered := errors.Is(context.Cause(ctx), errDown)
	u.stop(err)
	waited := wait()
	switch {
	case ordered && u.manager.Status().State != route.Off:
		notifyStopping()
		return u.down(context.WithoutCancel(ctx))
	case errors.Is(waited, errUnconfirmed):
		return waited
	default:
		return err
	}
}

// obey takes TERM and INT as `down`, from the start on: a machine that is closed half-way is not what was
// ordered.
func (u *up) obey(ctx context.Context) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() {
		defer signal.Stop(c)
		select {
		case <-ctx.Done():
		case <-c:
			u.stop(errDown)
		}
	}()
}

// hangups takes HUP as `reload`.
func (u *up) hangups(ctx context.Context) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	defer signal.Stop(c)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c:
			_ = u.Reload(ctx) // said in the log and in status
		}
	}
}

// watch reloads when the file, or one beside it, was changed.
func (u *up) watch(ctx context.Context) error {
	return config.Watch(ctx, u.policy.source.Paths(), func() { _ = u.Reload(ctx) })
}

// Reload implements api.Daemon.
func (u *up) Reload(context.Context) error {
	err := u.engine.reload()
	if err != nil {
		u.log.Error("the new configuration is not in force; the running policy goes on", zap.Error(err))
	}
	return err
}

// Confirm implements api.Daemon.
func (u *up) Confirm() error {
	err := u.confirm.confirm(time.Now())
	if err == nil {
		u.log.Info("confirmed: gatun stays up")
		u.engine.table.PublishState()
	}
	return err
}

// Stop implements api.Daemon.
func (u *up) Stop() { u.stop(errDown) }

// Status implements api.Daemon.
func (u *up) Status() api.Status {
	s := u.engine.status()
	m := u.manager.Status()
	s.State = m.State.String()
	inbound := u.inbound.status(&s, m)
	s.Notes = append(s.Notes, m.LinkLocal)
	s.Notes = append(s.Notes, m.Conflicts...)
	if m.Forwarded != "" {
		s.Notes = append(s.Notes, m.Forwarded)
	}
	if m.Reason != "" {
		s.Notes = append(s.Notes, m.Reason)
	}
	if c, note := u.confirm.status(time.Now()); c != nil {
		s.Confirm, s.Notes = c, append(s.Notes, note)
	}
	redirect := u.redirectModule(m)
	s.Notes = append(s.Notes, redirect.Message)
	s.Modules = append(s.Modules, captureModule(m), inbound, redirect, trackingModule(route.Tracked()), u.witnesses.module(), u.carrier.module(u.engine.permanent(), u.engine.gate.Refused()))
	s.Names = map[string]any{
		"device": m.Names.Device, "nft_table": m.Names.NftTable, "handback_table": handback.DefaultTable, "mark": m.Names.Mark, "old_mark": m.Names.OldMark, "in_mark": m.Names.InMark, "asked_mark": m.Names.AskedMark, "back_mark": m.Names.BackMark, "lasting_mark": m.Names.LastingMark, "divert_mark": m.Names.DivertMark, "queue": m.Names.Queue, "mask": m.Names.Mask,
		"table": m.Names.Table, "priority_own": m.Names.PriorityOwn, "priority_old": m.Names.PriorityOld,
		"priority_link": m.Names.PriorityLink, "priority_tun": m.Names.PriorityTun,
	}
	s.Worst = status.Worst(s.Modules).State.String()
	s.Guard = &api.GuardStatus{OK: m.GuardOK && m.RulesOK, Repairs: m.Repairs, Snapshot: m.Snapshot}
	return s
}

// captureModule says whether everything that keeps traffic captured is in place.
func captureModule(m route.Status) status.Module {
	switch {
	case m.State != route.On:
		return status.Module{Name: "capture", State: status.Error, Message: m.State.String() + ": " + m.Reason}
	case !m.GuardOK || !m.RulesOK:
		return status.Module{Name: "capture", State: status.Error, Message: "somebody removed the guard or the routes: being repaired"}
	case len(m.Conflicts) > 0:
		return status.Module{Name: "capture", State: status.Warning, Message: strings.Join(m.Conflicts, "; ")}
	default:
		return status.Module{Name: "capture", Message: "inbound " + m.Inbound}
	}
}

func (u *up) repaired(e route.Event) {
	u.log.Warn("somebody changed what keeps traffic captured", zap.String("what", string(e.Kind)), zap.String("detail", e.Detail), zap.Duration("took", e.Took))
	if u.engine != nil {
		u.engine.table.PublishState()
	}
}

func downCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End `gatun up` and leave the machine as it was", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var s api.Status
			if err := p.client().Post(c.Context(), "/v1/down", &s); err != nil {
				return err
			}
			return waitGone(c.Context(), p.client())
		},
	}
}

// waitGone returns when the daemon no longer answers: then everything is undone.
func waitGone(ctx context.Context, cl *api.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var s api.Status
		if err := cl.Get(ctx, "/v1/status", nil, &s); errors.Is(err, api.ErrNotRunning) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("gatun was told to stop and still answers after 30 s; see its log")
		case <-tick.C:
		}
	}
}

func recoverCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "recover", Short: "Undo whatever a crash left behind (root; needs no configuration)", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if os.Geteuid() > 0 {
				return exitStatus{exitPermission, errors.New("recover changes the machine's routes: run it as root")}
			}
			err := route.Recover(p.stateDir(), route.DefaultNames())
			if errors.Is(err, route.ErrAlreadyRunning) {
				return err // what the kernel carries is that instance's
			}
			return errors.Join(err, handback.Recover(handback.Options{}))
		},
	}
}
