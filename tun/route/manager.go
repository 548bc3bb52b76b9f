package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gatun/network/packet"

	"go.uber.org/zap"
)

// ErrAlreadyRunning means that another instance holds this network namespace or this state
// directory. `gatun up` exits with 6.
var ErrAlreadyRunning = errors.New("gatun is already running")

// ErrUnsupported means that package route cannot change this operating system's routes yet.
var ErrUnsupported = errors.New("gatun up is implemented on Linux only: use gatun run there, or see the route plan in the documentation")

// Options configure a Manager.
type Options struct {
	Names    Names  // the zero value means DefaultNames
	StateDir string // holds the journal and the lock; made with mode 0700 if it is missing
	Policy   Policy
	Logger   *zap.Logger // may be nil
	// OnEvent is called by Run for every repair and change. It must not block.
	OnEvent func(Event)
	// Undone is called by Down when everything is undone, before another instance may come up.
	Undone func() error
	// AfterOp is called after each operation of Up. An error ends Up there with everything
	// left as it is, as a crash would: this is how tests stop at every step.
	AfterOp func(Op) error
}

// Event is something that Run did or found.
type Event struct {
	Kind   EventKind
	Detail string
	Took   time.Duration // of a repair, from noticing to done
}

// EventKind says what an Event is about.
type EventKind string

// The kinds of events.
const (
	GuardRepaired  EventKind = "guard repaired"
	RulesRepaired  EventKind = "rules repaired"
	RoutesRepaired EventKind = "routes repaired"
	DeviceRepaired EventKind = "device repaired"
	SysctlRepaired EventKind = "sysctl repaired"
	Reconfigured   EventKind = "network changed"
	DeviceGone     EventKind = "device gone" // open it again: Run sets it up as soon as it is there
	Failed         EventKind = "repair failed"
)

// Status is what `gatun status` shows about the capture of traffic.
type Status struct {
	State    State  `json:"state"`
	Reason   string `json:"reason,omitempty"` // why the state is degraded
	GuardOK  bool   `json:"guard_ok"`
	RulesOK  bool   `json:"rules_ok"`
	Adopted  bool   `json:"adopted"` // the guard of a crashed instance was taken over
	Repairs  uint64 `json:"repairs"`
	Snapshot int    `json:"snapshot"` // flows from before up that are still open
	// DNSPort is where port 53 is redirected to, 0 if it is not; DNSRefused is why the kernel
	// would not, if it was asked to.
	DNSPort    uint16 `json:"dns_port,omitempty"`
	DivertPort uint16 `json:"divert_port,omitempty"`
	DNSRefused string `json:"dns_refused,omitempty"`

	// InboundMode is what is in force, Inbound is that for people; InboundRefused is why the kernel
	// would not queue, if it was asked to.
	Inbound        string      `json:"inbound"`
	InboundMode    InboundMode `json:"-"`
	InboundRefused string      `json:"inbound_refused,omitempty"`
	LinkLocal      string      `json:"link_local"`
	Conflicts      []string    `json:"conflicts,omitempty"` // rules of others that come before ours, or that are not followed
	Forwarded      string      `json:"forwarded,omitempty"` // what becomes of forwarded traffic, where there is some
	Names          Names       `json:"names"`
}

// Manager brings the machine's traffic into the TUN device and keeps it there.
//
// Up, Run, Down are called one after another by one owner: Down only after Run has returned.
// Status, IsLocal and LocalAddrs may be called at any time from any goroutine.
type Manager struct {
	opts    Options
	guard   Guard
	release func()
	flows   map[packet.Flow]struct{} // the snapshot; owned by Up, then Run
	last    lastPlan
	locals  atomic.Pointer[map[netip.Addr]struct{}]
	lan     atomic.Bool   // the newest wish for Policy.BlockLAN
	dnsPort atomic.Uint32 // and for Policy.DNSPort
	diverts atomic.Bool   // Policy.DivertPort is in force
	closed  atomic.Bool   // and for Policy.BlockInbound
	wishes  chan struct{} // Run has not seen it yet
	stale   chan struct{} // connection tracking may remember an old way of port 53
	refused error         // what the kernel said to the redirect; nil: it takes it
	put     func(Guard, []packet.Flow) error
	queues  func(Names) (InboundMode, error)

	mu     sync.Mutex // guards status only
	status Status
}

// lastPlan is what was wanted last. If the same is wanted again, a difference in the kernel is
// somebody else's doing.
type lastPlan struct {
	routes []Route
	rules  []Rule
}

// New checks the options. It changes nothing on the machine.
func New(o Options) (*Manager, error) {
	if o.Names == (Names{}) {
		o.Names = DefaultNames()
	}
	if err := o.Names.Validate(); err != nil {
		return nil, err
	}
	if o.StateDir == "" {
		return nil, errors.New("route: Options.StateDir is empty")
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.Undone == nil {
		o.Undone = func() error { return nil }
	}
	if o.AfterOp == nil {
		o.AfterOp = func(Op) error { return nil }
	}
	m := &Manager{opts: o, put: installGuard, queues: queueMode, guard: NewGuard(o.Names, o.Policy), wishes: make(chan struct{}, 1), stale: make(chan struct{}, 1)}
	m.lan.Store(o.Policy.BlockLAN)
	m.dnsPort.Store(uint32(o.Policy.DNSPort))
	m.closed.Store(o.Policy.BlockInbound)
	m.locals.Store(&map[netip.Addr]struct{}{})
	m.status = Status{Names: o.Names, Inbound: InboundFree.text(), LinkLocal: linkLocalText(o.Policy)}
	return m, nil
}

func linkLocalText(p Policy) string {
	if p.BlockLAN {
		return "multicast, broadcast and link-local are refused"
	}
	return "multicast, broadcast and link-local stay on their interface and are not decided per program"
}

// Up captures the machine's traffic. The TUN device must exist and somebody must read it.
//
// If a crashed instance left its guard, Up adopts it: the flows it let through stay, and there
// is no moment without a guard. An error leaves everything done so far in place, which means
// closed: call Down to undo it.
func (m *Manager) Up(ctx context.Context) error {
	if state := m.Status().State; state != Off {
		return fmt.Errorf("route: Up in state %s", state)
	}
	n := m.opts.Names
	if err := os.MkdirAll(m.opts.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	release, err := lock(m.opts.StateDir)
	if err != nil {
		return err
	}
	if err := foreignTable(n); err != nil {
		release()
		return err
	}
	m.release = release
	m.step(Starting, "")
	if err := m.setUp(ctx); err != nil {
		m.step(Degraded, err.Error())
		return err
	}
	m.step(On, "")
	m.opts.Logger.Info("traffic captured", zap.Int("snapshot", len(m.flows)), zap.Bool("adopted", m.Status().Adopted))
	return nil
}

// setUp writes the journal, then does the plan.
func (m *Manager) setUp(ctx context.Context) error {
	n := m.opts.Names
	adopt, err := tableExists(n.NftTable)
	if err != nil {
		return err
	}
	m.update(func(s *Status) { s.Adopted = adopt })
	host, err := readHost()
	if err != nil {
		return err
	}
	m.setLocals(host)
	plan := Compute(n, host, m.opts.Policy)
	if err := m.record(plan); err != nil {
		return err
	}
	for _, op := range plan.Ops {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.do(op, adopt); err != nil {
			return err
		}
		if err := m.opts.AfterOp(op); err != nil {
			return err
		}
	}
	// What an earlier instance left under other settings.
	if err := sweepRoutes(n, n.Table); err != nil {
		return err
	}
	return m.reconcile(host)
}

// record writes the journal of plan, keeping the values that sysctls had before a crash.
func (m *Manager) record(plan Plan) error {
	before, _, err := readJournal(m.opts.StateDir)
	if err != nil {
		return err
	}
	j := journal{Names: m.opts.Names}
	for _, op := range plan.Ops {
		j.Ops = append(j.Ops, op.Name())
		s, ok := op.(Sysctl)
		if !ok {
			continue
		}
		now, err := getSysctl(s.Key)
		if err != nil {
			return err
		}
		r := sysctlRecord{Key: s.Key, Old: now, New: s.Value}
		for _, b := range before.Sysctls {
			if b.Key == s.Key && b.New == now {
				r.Old = b.Old
			}
		}
		j.Sysctls = append(j.Sysctls, r)
	}
	return writeJournal(m.opts.StateDir, j)
}

// do executes one operation.
func (m *Manager) do(op Op, adopt bool) error {
	n := m.opts.Names
	switch op := op.(type) {
	case Guard:
		return m.installFirstGuard(op, adopt)
	case Snapshot:
		return m.takeSnapshot(adopt)
	case Sysctl:
		return setSysctl(op.Key, op.Value)
	case LinkSetup:
		return setupLink(op)
	case Route:
		return addRoute(n, op)
	case Rule:
		return addRule(n, op)
	}
	return fmt.Errorf("route: operation %q is not for this system", op)
}

// installFirstGuard puts the guard in together with the flows that are open now, so that not
// one packet of theirs is dropped; or takes over the flows of a crashed instance's guard.
func (m *Manager) installFirstGuard(g Guard, adopt bool) error {
	m.flows = map[packet.Flow]struct{}{}
	if adopt {
		flows, err := readFlows(g.Table)
		if err != nil {
			return err
		}
		for _, f := range flows {
			m.flows[f] = struct{}{}
		}
	} else {
		flows, err := openFlows(packet.TCP, packet.UDP)
		if err != nil {
			return err
		}
		m.flows = flows
		if err := forgetHandedBack(m.opts.Names); err != nil {
			// A kernel that does not let us has handed nothing back either.
			m.opts.Logger.Warn("connections that an earlier instance handed back may break", zap.Error(err))
		}
	}
	if err := m.install(); err != nil {
		return err
	}
	m.update(func(s *Status) { s.GuardOK, s.Snapshot = true, len(m.flows) })
	m.forgetRedirected()
	m.mayBeStale()
	return nil
}

// takeSnapshot adds what was opened between the first listing and the guard. Only TCP: since
// the guard is in, no handshake can have been completed past it, while a UDP socket is
// "connected" without a packet.
func (m *Manager) takeSnapshot(adopt bool) error {
	if adopt {
		return nil // what opened since the crash was opened through the TUN device or not at all
	}
	flows, err := openFlows(packet.TCP)
	if err != nil {
		return err
	}
	var add []packet.Flow
	for f := range flows {
		if _, ok := m.flows[f]; !ok {
			add = append(add, f)
			m.flows[f] = struct{}{}
		}
	}
	m.update(func(s *Status) { s.Snapshot = len(m.flows) })
	return changeFlows(m.opts.Names.NftTable, add, nil)
}

func (m *Manager) flowList() []packet.Flow {
	list := make([]packet.Flow, 0, len(m.flows))
	for f := range m.flows {
		list = append(list, f)
	}
	return list
}

// Down undoes Up: rules, routes and device first, the guard last. Whatever the host had before
// is as it was. An error leaves the guard in place; Down may be called again.
func (m *Manager) Down(context.Context) error {
	if m.Status().State == Off {
		return nil
	}
	m.step(Stopping, "")
	if err := undo(m.opts.StateDir, m.opts.Names); err != nil {
		m.step(Degraded, err.Error())
		return err
	}
	m.update(func(s *Status) { s.GuardOK, s.RulesOK, s.Snapshot, s.DNSPort = false, false, 0, 0 })
	err := m.opts.Undone()
	m.step(Off, "")
	m.release()
	m.opts.Logger.Info("traffic released")
	return err
}

// Recover undoes whatever an instance left that did not end in order, from any point of its
// set-up. It needs no configuration, does not need the journal, and may be repeated. n is what
// to look for if the journal does not say. A running instance is ErrAlreadyRunning.
func Recover(stateDir string, n Names) error {
	dir := stateDir
	if _, err := os.Stat(dir); err != nil {
		dir = ""
	}
	release, err := lock(dir)
	if err != nil {
		return err
	}
	defer release()
	return undo(dir, n)
}

// undo removes everything that carries the given names or those of the journal.
func undo(dir string, n Names) error {
	j, found := journal{}, false
	if dir != "" {
		var err error
		if j, found, err = readJournal(dir); err != nil {
			return err
		}
	}
	names := []Names{n}
	if found && j.Names != (Names{}) && j.Names != n {
		names = append(names, j.Names)
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, sweep(n))
	}
	for _, s := range slices.Backward(j.Sysctls) {
		errs = append(errs, restoreSysctl(s))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the guard stays until this is solved: %w", err)
	}
	for _, n := range names {
		if err := removeGuard(n.NftTable); err != nil {
			return err
		}
	}
	// Sockets that were redirected would wait for us until connection tracking forgets them; that
	// it cannot be told so is no reason to keep a machine closed.
	_ = forgetRedirected(0)
	if dir == "" {
		return nil
	}
	return removeJournal(dir)
}

// Status returns a copy of the current status.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Conflicts = slices.Clone(s.Conflicts)
	return s
}

// IsLocal reports whether a program on this machine may use a as its source. The stack drops
// packets with any other source.
func (m *Manager) IsLocal(a netip.Addr) bool {
	_, ok := (*m.locals.Load())[a]
	return ok
}

// LocalAddrs returns the addresses of this machine, sorted.
func (m *Manager) LocalAddrs() []netip.Addr {
	set := *m.locals.Load()
	list := make([]netip.Addr, 0, len(set))
	for a := range set {
		list = append(list, a)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func (m *Manager) setLocals(h HostState) {
	set := h.locals()
	m.locals.Store(&set)
}

func (m *Manager) update(change func(*Status)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.status)
}

// step moves to next, if the diagram has that edge.
func (m *Manager) step(next State, reason string) {
	m.update(func(s *Status) {
		if s.State.may(next) {
			s.State, s.Reason = next, reason
		}
	})
}
